"""The docs, with or without Quarto.

python tools/docs.py readme [--check]  README.md and its pictures, from nbs/index.ipynb
python tools/docs.py colab [--check]   the Colab link, and the cell that installs clm_nb where it's missing, in every notebook
python tools/docs.py llms [--check]    nbs/llms.txt: the pages as a list that language models read
python tools/docs.py site [--plain]    the site, into _docs/: nbdev-docs where Quarto is installed, else a plain preview
"""
import argparse, html, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

import nbformat, yaml
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import get_config, nbpath2html

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root/"tools")]
import api  # tools/api.py
pictures = "nbs/images" # where README.md's pictures lie
on_gpu = ["05_train.ipynb", "09_core.ipynb", "tutorials/quickstart.ipynb"] # pages that train: Colab gives them a GPU


# The sources: notebooks, and what nbdev makes of them

def notebooks(
    nbs: Path = root/"nbs", # the folder of notebooks
) -> list[Path]: # every page's notebook, index first
    "The notebooks that are pages of the site."
    found = [p for p in nbs.rglob("*.ipynb") if not any(o[0] in "._" for o in p.relative_to(nbs).parts)]
    return sorted(found, key=lambda p: (p.name != "index.ipynb", p.relative_to(nbs)))


def page(
    nb: Path, # a notebook, relative to the folder of notebooks
) -> str: # "tutorials/quickstart.html", "load.html"
    "The address of a notebook's page, relative to the site."
    return nbpath2html(nb).as_posix()


def anchor(
    heading: str, # a heading's Markdown
) -> str: # "load-the-corpus"
    "The id that Pandoc gives a heading (its auto_identifiers)."
    if own := re.search(r"\{#([\w.-]+)\}$", heading): return own[1]
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?", r"\1", heading)
    text = re.sub(r"[^\w\s.-]", "", text).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text)) or "section"


def headings(
    markdown: str, # a cell's or an output's Markdown
) -> list[str]: # the headings' Markdown, in order
    "The ATX headings outside of fenced code."
    prose = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.S | re.M)
    return [o.rstrip("# ") for o in re.findall(r"^#{1,6} +(.+)$", prose, flags=re.M)]


def markdowns(
    nb, # a processed notebook
) -> list[str]: # prose cells and Markdown outputs (show_doc's among them), in order
    "The Markdown of a processed notebook."
    res = []
    for cell in nb.cells:
        if cell.cell_type == "markdown": res.append(cell.source)
        for out in cell.get("outputs", []):
            if md := out.get("data", {}).get("text/markdown"): res.append(md if isinstance(md, str) else "".join(md))
    return res


# Colab

def colab_url(
    nb: Path, # a notebook, relative to the folder of notebooks
) -> str:
    "The address that opens a notebook in Colab, from the repository that settings.ini names."
    cfg = get_config(root)
    path = f"{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{cfg.nbs_path.name}/{nb.as_posix()}"
    return f"https://colab.research.google.com/github/{path}"


# The install cell. NEEDED and SOURCE are filled in from settings.ini.
install = """#| hide
#| eval: false
# Installs clm_nb where it is missing: on Colab or Kaggle, in conda, in VS Code. Elsewhere it does nothing.
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from IPython.core.error import UsageError

there = packages_distributions()
if not {NEEDED} <= there.keys():
    loaded = {d: version(d) for m in sys.modules if m[0] != "_" for d in there.get(m, [])}
    clone = [p for p in (Path.cwd(), *Path.cwd().parents) if (p/"clm_nb/_modidx.py").exists()]
    github = "SOURCE"
    source = f'-e "{clone[0]}[nb]"' if clone else f'"{github}"'
    beside = " ".join({"gradio", "diffusers"} & there.keys())  # Colab's: pip keeps what they need
    %pip install -q {source} {beside}
    sys.path += map(str, clone)  # only the next kernel finds the clone by itself
    if old := [d for d in loaded if version(d) != loaded[d]]:
        again = "Restart the kernel (in Colab: the session), then run all cells"
        raise UsageError(f"{again}: it still has the old {', '.join(old)}.")"""


def install_cell() -> str: # a code cell's source
    "What makes a notebook run wherever it is opened."
    cfg = get_config(root)
    ini = ConfigParser(delimiters="=")
    ini.read(root/"settings.ini", encoding="utf-8")
    extra = [re.match(r"[\w-]+", line)[0] for line in ini["DEFAULT"]["nb_requirements"].split()]
    needed = ", ".join(f'"{name}"' for name in [cfg.lib_name, *extra])
    source = f"{cfg.lib_name}[nb] @ {cfg.git_url}/archive/{cfg.branch}.zip" # needs no git, unlike git+https
    return install.replace("NEEDED", needed).replace("SOURCE", source)


def colab_cells(
    nb: Path, # a notebook, relative to the folder of notebooks
) -> tuple[str, str]: # a Markdown cell's and a code cell's source
    "The two cells that follow a notebook's title: the link, and what installs clm_nb where it is missing."
    return f"[Open in Colab]({colab_url(nb)})", install_cell()


def colab_metadata(
    nb: Path, # a notebook, relative to the folder of notebooks
) -> dict: # entries of the notebook's metadata
    "What a notebook asks of Colab: a GPU where it trains."
    return {"accelerator": "GPU", "colab": {"gpuType": "T4"}} if nb.as_posix() in on_gpu else {}


def after_title(nb) -> int:
    "Where the cell after a notebook's title is."
    return 1 + next(i for i, c in enumerate(nb.cells) if c.cell_type == "markdown" and c.source.startswith("# "))


def has_colab(path: Path, nbs: Path) -> bool:
    "Whether the cells after a notebook's title are `colab_cells`, and its metadata `colab_metadata`."
    name = path.relative_to(nbs)
    i = after_title(nb := read_nb(path))
    asked = {k: v for k, v in nb.metadata.items() if k in ("accelerator", "colab")}
    cells = tuple(c.source.strip() for c in nb.cells[i:i+2])
    return cells == colab_cells(name) and asked == colab_metadata(name)


def add_colab(path: Path, nbs: Path) -> None:
    "Put `colab_cells` after a notebook's title, in place of any that were there, and `colab_metadata` into its metadata."
    nb, cells = read_nb(path), colab_cells(path.relative_to(nbs))
    old = lambda c: c.source.startswith("[Open in Colab](") or "-e /content ]" in c.source or c.get("id") == "colab-install"
    nb.cells = [c for c in nb.cells if not old(c)]
    new = [mk_cell(src, kind) for src, kind in zip(cells, ("markdown", "code"))]
    for name, cell in zip(("colab-link", "colab-install"), new): cell["id"] = name
    i = after_title(nb)
    nb.cells[i:i] = new
    for key in ("accelerator", "colab"): nb.metadata.pop(key, None)
    nb.metadata.update(colab_metadata(path.relative_to(nbs)))
    write_nb(nb, path)


def colab(check: bool) -> int:
    "Give every notebook its Colab cells, or (check) say which lack them."
    nbs = root/"nbs"
    for path in (lacking := [p for p in notebooks(nbs) if not has_colab(p, nbs)]):
        name = path.relative_to(root)
        if not check: add_colab(path, nbs)
        print(f"{name}: Colab cells" + (" missing or out of date. Run `make prepare`." if check else ""))
    return int(check and bool(lacking))


# README.md

def processed(
    path: Path, # a notebook
):
    "A notebook as nbdev hands it to Quarto: links made, hidden cells gone, API documentation filled in."
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import exec_nb
    with tempfile.TemporaryDirectory() as tmp:
        exec_nb(path, Path(tmp)/"nb.ipynb", FilterDefaults)
        return nbformat.read(Path(tmp)/"nb.ipynb", as_version=4)


def to_root(
    markdown: str, # with links relative to nbs/
) -> str: # with links relative to the repository's root
    "The same Markdown, moved from nbs/ to the root."
    fix = lambda m: m[1] + os.path.normpath(f"nbs/{m[2]}") + m[3]
    relative = r"((?!#|[a-z][a-z0-9+.-]*:|/)[^)\"\s#]+)"
    markdown = re.sub(rf"(\]\(){relative}([)#\s])", fix, markdown)
    return re.sub(rf"((?:src|href)=\"){relative}([\"#])", fix, markdown)


def front_matter(nb) -> dict:
    "A processed notebook's title, description and output-file."
    return yaml.safe_load(nb.cells[0].source.strip().strip("-"))


def directives(cell) -> dict[str, str]:
    "A code cell's `#| name: value` lines."
    return dict(re.findall(r"^#\| *([\w-]+): *(.*?) *$", cell.source, flags=re.M)) if cell.cell_type == "code" else {}


def plain(
    nb, # a processed notebook; changed in place
):
    "The notebook for nbconvert: without front matter and comments, its Quarto directives obeyed and taken out."
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if c.cell_type != "raw" and not c.source.startswith("<!-- WARNING")]
    for cell in nb.cells:
        cell.metadata = {"transient": {"remove_source": True}} if directives(cell).get("echo") == "false" else {}
        if named := directives(cell).get("classes"): cell.metadata["tags"] = named.split()
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    return nb


def readme_files() -> dict[str, bytes]: # path relative to the root → contents
    "README.md and its pictures, as nbs/index.ipynb says they should be."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    nb = processed(root/"nbs/index.ipynb")
    fm = front_matter(nb)
    title = f"# {fm['title']}\n\n" + (f"> {fm['description']}\n\n" if fm.get("description") else "")
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = to_root(cell.source)
    alts = [directives(c).get("fig-alt", "").strip("\"'") for c in nb.cells if c.cell_type != "raw"][1:]
    kinds = ["text/markdown", "image/png", "image/jpeg", "image/svg+xml", "text/plain"] # GitHub drops HTML's styles
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": kinds}))
    body, res = exporter.from_notebook_node(plain(nb), {"output_files_dir": pictures, "unique_key": "readme"})
    body = re.sub(rf"!\[\w+\]\(({pictures}/readme_(\d+)_)", lambda m: f"![{alts[int(m[2])]}]({m[1]}", body)
    note = "<!-- Written by `make prepare` from nbs/index.ipynb: edit that. -->\n\n"
    body = re.sub(r"[ \t]+$", "", note + title + body, flags=re.M)
    body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    return {"README.md": body.encode(), **{n: data for n, data in res["outputs"].items() if n in body}}


def readme(check: bool) -> int:
    "Write README.md and its pictures, or (check) say which are out of date."
    files = readme_files()
    stale = {p.relative_to(root).as_posix() for p in (root/pictures).glob("readme_*")} - set(files)
    changed = [n for n, data in files.items() if not (root/n).exists() or (root/n).read_bytes() != data]
    for name in sorted(stale) + changed:
        print(f"{name}: out of date with nbs/index.ipynb. Run `make prepare`." if check else name)
    if check: return int(bool(stale or changed))
    for name in stale: (root/name).unlink()
    for name in changed:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(files[name])
    return 0


# The site

notice = "This is a plain preview: no search, no API styling, formulas as LaTeX, no switch between light and dark. Quarto builds the real site."
quarto_help = """Quarto is not installed, so this is a plain preview of every page. For the real site, install Quarto
(https://quarto.org/docs/get-started/, a download without further requirements) and run `make docs` again."""

style = """
body { font: 16px/1.6 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 75rem; margin: 0 auto; padding: 0 1rem }
.notice { background: #fff3cd; color: #533f03; border-radius: 4px; padding: .5rem 1rem; margin: 1rem 0 }
.columns { display: flex; gap: 2rem } nav { flex: 0 0 12rem } main { flex: 1; min-width: 0 }
nav ul { list-style: none; padding-left: .8rem } nav b a, nav a { text-decoration: none } a { color: #1d6ec7 }
pre, .output_subarea { overflow-x: auto }
.highlight pre, .celltag_flowing .output_area pre { white-space: pre-wrap; overflow-wrap: anywhere }
.highlight pre { background: #f8f8f8; padding: .6rem } .output_area pre { padding: .2rem .6rem }
.only-github { display: none }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
main table { display: block; max-width: 100%; overflow-x: auto }
main :is(p, li, td) code, main :is(h1, h2, h3, h4) { overflow-wrap: anywhere } main td:has(code) { min-width: 8rem } main td:first-child:has(code) { min-width: 11rem }
main td[style*="right"], main table.numbers td:not(:first-child), main .dataframe td { white-space: nowrap }
table { border-collapse: collapse; border: 0 } th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left }
img { max-width: 100%; background: #fff } .prompt { display: none }
@media (max-width: 600px) {
  .output_area img, main :is(p, figure) > img:not(.gallery *) { max-width: 40rem } .output_area svg[role="img"] { min-width: 32rem }
  main :is(p, figure):has(> img) { overflow-x: auto } .highlight pre { white-space: pre; overflow-wrap: normal }
}
@media (max-width: 50rem) { .columns { flex-direction: column-reverse } nav { flex: none } main { max-width: 100% } }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark } body { color: #ddd; background: #181818 } a { color: #79b8ff }
  .highlight pre { background: #262626 } th, td { border-color: #444 }
}
"""


code_styles = {"light": "default", "dark": "github-dark"}  # Pygments' names


def sidebar() -> list[tuple[str, list[Path]]]: # (section, notebooks relative to nbs/)
    "The sidebar's sections, from _quarto.yml."
    contents = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return [(o["section"], [Path(p) for p in o["contents"]]) for o in contents]


def nav(
    here: Path, # a notebook, relative to nbs/
    titles: dict[Path, str], # of every notebook
) -> str:
    "The sidebar as HTML, with links relative to the page of `here`."
    up = "../" * (len(here.parts) - 1)
    link = lambda p: f'<li><a href="{up}{page(p)}">{html.escape(titles[p])}</a></li>'
    links = lambda pages: "".join(link(p) for p in pages if p in titles)
    return "".join(f"<b>{html.escape(name)}</b><ul>{links(pages)}</ul>" for name, pages in sidebar())


def preview_links(
    body: str, # a page's HTML
    here: Path, # its notebook, relative to nbs/
) -> str:
    "The same HTML with links to notebooks, and to the published site, led to the preview's own pages."
    up, site = "../" * (len(here.parts) - 1), re.escape(get_config(root).doc_url)
    body = re.sub(rf'href="{site}([^"]*)"', rf'href="{up}\1"', body)
    to_page = lambda m: f'href="{nbpath2html(m[1]).as_posix()}{m[2] or ""}"'
    body = re.sub(r'href="(?![a-z]+:)([^"#]+\.ipynb)(#[^"]*)?"', to_page, body)
    text = lambda m: html.unescape(re.sub(r"<[^>]+>", "", m[2])).replace("¶", "")
    shown = lambda m: re.sub(r" \{#[\w.-]+\}", "", m[2])
    with_id = lambda m: f'<h{m[1]} id="{anchor(text(m).strip())}">{shown(m)}</h{m[1]}>'
    return re.sub(r'<h(\d)(?: id="[^"]*")?>(.*?)</h\1>', with_id, body, flags=re.S)


def in_columns(
    text: str, # what a cell printed
) -> bool:
    "Whether things stand one below another in it, as in a table: two lines with a gap that is no end of a sentence, or far in."
    return len(re.findall(r"^.*[^\s.?!:] {2,}\S|^\|.*\|$|^ {16,}\S", text, flags=re.M)) > 1


def shown_text(
    output, # of a cell
) -> str:
    "What a page shows of it as plain text; behind a picture or a table, the text isn't shown."
    data = output.get("data", {})
    if "text/html" in data:
        return "\n".join(map(html.unescape, re.findall(r"<pre[^>]*>(.*?)</pre>", data["text/html"], flags=re.S)))
    richer = [kind for kind in data if kind == "text/markdown" or kind.startswith("image/")]
    return output.get("text") or ("" if richer else data.get("text/plain", ""))


def let_flow(
    nb, # a processed notebook; changed in place
):
    "Let printed lines that are wider than the page go on below, where nothing stands in columns: messages, lists, texts."
    for cell in nb.cells:
        texts = [shown_text(o) for o in cell.get("outputs", [])]
        if any(texts) and not any(map(in_columns, texts)): cell.source = f"#| classes: flowing\n{cell.source}"


def process() -> Path: # the folder of processed notebooks
    "What Quarto is given: nbdev's notebooks with our entries. nbdev-docs takes them as they are, since they are new."
    from nbdev.serve import proc_nbs
    os.chdir(root)
    proc = proc_nbs(n_workers=0, force=True)
    api.mend_files({page(p.relative_to(proc)): p for p in notebooks(proc)}, also=let_flow)
    return proc


def preview(out: Path) -> list[Path]: # the pages written
    "Write a plain preview of every page into a folder, with nothing that other hosts would have to serve."
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    proc = process()
    pages = {p.relative_to(proc): nbformat.read(p, as_version=4) for p in notebooks(proc)}
    titles = {p: front_matter(nb)["title"] for p, nb in pages.items()}
    exporter = HTMLExporter(template_name="basic", require_js_url="", mathjax_url="", jquery_url="", mermaid_js_url="",
                            exclude_anchor_links=True)
    colours = {scheme: HtmlFormatter(style=name).get_style_defs(".highlight") for scheme, name in code_styles.items()}
    css = style + "".join(f"@media (prefers-color-scheme: {scheme}) {{ {rules} }}" for scheme, rules in colours.items())
    shutil.rmtree(out, ignore_errors=True)
    for p, nb in pages.items():
        fm = front_matter(nb)
        for o in (o for c in nb.cells for o in c.get("outputs", []) if "text/markdown" in o.get("data", {})):
            o.data["text/markdown"] = re.sub(r"\)\{[^}]*\}", ")", o.data["text/markdown"]) # Pandoc's link attributes
        body = preview_links(exporter.from_notebook_node(plain(nb))[0], p)
        subtitle = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(fm.get("description") or ""))
        (out/page(p)).parent.mkdir(parents=True, exist_ok=True)
        (out/page(p)).write_text(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(fm["title"])} · clm_nb</title><style>{css}</style></head><body>
<p class="notice">{notice}</p><div class="columns"><nav>{nav(p, titles)}</nav><main>
<h1>{html.escape(fm["title"])}</h1><p><i>{subtitle}</i></p>
{body}</main></div></body></html>
""", encoding="utf-8")
    if (proc/"images").exists(): shutil.copytree(proc/"images", out/"images")
    return [out/page(p) for p in pages]


def without_foreign_scripts(
    page: str, # a built page's HTML
) -> str:
    "The same without scripts of other hosts: Quarto adds jQuery and require.js for any HTML output, and no page of ours needs them."
    return re.sub(r'<script\b[^>]*\bsrc="(?:https?:)?//[^"]*"[^>]*>\s*</script>\s*|<script>(?:define\(|window\.PlotlyConfig)[^<]*</script>', "", page)


def titles() -> dict[Path, tuple[str, str]]: # notebook relative to nbs/ → (title, subtitle)
    "What the notebooks call themselves."
    found = {}
    for path in notebooks():
        lines = next(c.source for c in read_nb(path).cells if c.cell_type == "markdown" and c.source.startswith("# ")).split("\n")
        found[path.relative_to(root/"nbs")] = lines[0][2:], " ".join(o[2:] for o in lines if o.startswith("> "))
    return found


def llms_txt() -> str: # after https://llmstxt.org
    "Every page of the site in one list, by the sections of the sidebar, with its address as Markdown and its subtitle."
    cfg, known = get_config(root), titles()
    parts = [f"# {cfg.lib_name}", f"> {cfg.description}"]
    for name, pages in sidebar():
        lines = [f"- [{known[p][0]}]({cfg.doc_url.rstrip('/')}/{page(p)}.md): {known[p][1]}" for p in pages]
        parts.append(f"## {name}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def llms(check: bool) -> int:
    "Write nbs/llms.txt, or (check) say whether it is out of date."
    path, text = root/"nbs/llms.txt", llms_txt()
    stale = not path.exists() or path.read_text(encoding="utf-8") != text
    if stale and not check: path.write_text(text, encoding="utf-8", newline="\n")
    if stale: print("nbs/llms.txt" + (": out of date. Run `make prepare`." if check else ""))
    return int(check and stale)


def site(
    use_plain: bool, # the plain preview, even where Quarto is installed
) -> int: # exit status
    "Build the site with nbdev and Quarto; without Quarto, say how to get it and write the plain preview."
    out, quarto = get_config(root).doc_path, shutil.which("quarto")
    nbdev_docs = Path(sys.executable).with_name("nbdev-docs")
    if quarto and not use_plain:
        shutil.copyfile(root/"_quarto.yml", root/"nbs/_quarto.yml")  # a link there is none on Windows
        process()
        status = subprocess.run([nbdev_docs], cwd=root).returncode
        for built in out.rglob("*.html"):
            built.write_text(without_foreign_scripts(built.read_text(encoding="utf-8")), encoding="utf-8")
        return status
    if not quarto: print(quarto_help)
    print(f"{len(preview(out))} pages: {out/'index.html'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in dict(readme="write README.md", colab="write the Colab cells", llms="write nbs/llms.txt").items():
        command = commands.add_parser(name, help=what)
        command.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    commands.add_parser("site", help="build the site into _docs").add_argument(
        "--plain", action="store_true", help="the plain preview, even where Quarto is installed")
    args = parser.parse_args(argv)
    os.chdir(root)
    return site(args.plain) if args.command == "site" else {"readme": readme, "colab": colab, "llms": llms}[args.command](args.check)


if __name__ == "__main__": sys.exit(main())
