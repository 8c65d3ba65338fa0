"The site's sources are sound: everything that can be known without Quarto."
import builtins, configparser, functools, importlib.metadata, importlib.util, keyword, os, re, subprocess, sys
from pathlib import Path
from urllib.parse import unquote

import nbformat, pytest, yaml

from tree import copy_tree, root, run

sys.path.insert(0, str(root/"tools"))
import docs  # tools/docs.py

ini = configparser.ConfigParser(delimiters="=")
ini.read(root/"settings.ini", encoding="utf-8")
ini = ini["DEFAULT"]
quarto = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))
notebooks = [p.relative_to(root/"nbs") for p in docs.notebooks(root/"nbs")]
fenced = r"^(```|~~~).*?^\1" # a fenced block of code, with re.S and re.M
every_notebook = pytest.mark.parametrize("nb", notebooks, ids=str)


# What nbdev makes of the notebooks

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A copy of the tree with the plain preview built: _proc/ is what Quarto would be given, _docs/ the preview."
    installed = importlib.metadata.entry_points(group="nbdev", name="clm_nb")
    assert installed, "clm_nb is not installed: pip install -e '.[dev]'"
    tree = copy_tree(tmp_path_factory.mktemp("docs")/"tree")
    done = run(tree, "tools/docs.py", "site", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


@pytest.fixture(scope="module")
def pages(built):
    "The processed notebooks: {path relative to nbs/: notebook}."
    return {p: nbformat.read(built/"_proc"/p, as_version=4) for p in notebooks if (built/"_proc"/p).exists()}


@pytest.fixture(scope="module")
def anchors(pages):
    "The ids on every page: {page.html: {id, …}}."
    ids = lambda nb: {docs.anchor(h) for md in docs.markdowns(nb) for h in docs.headings(md)}
    return {docs.page(p): ids(nb) for p, nb in pages.items()}


def test_every_notebook_is_processed(pages):
    assert list(pages) == notebooks
    fronts = {p: docs.front_matter(nb) for p, nb in pages.items()}
    for p, front in fronts.items():
        assert front["title"] and front.get("description"), f"{p}: needs an H1 title and a one-line `>` subtitle"
        assert front["output-file"] == Path(docs.page(p)).name
    assert len({docs.page(p) for p in pages}) == len(pages)


def test_index_and_quickstart_are_there():
    assert {Path("index.ipynb"), Path("tutorials/quickstart.ipynb")} <= set(notebooks)


def test_api_pages_are_filled_in(anchors):
    "Every public function and class that a module defines has its show_doc entry on the page its link goes to."
    from clm_nb._modidx import d
    public = {name: at for syms in d["syms"].values() for name, at in syms.items() if not re.search(r"\._", name)}
    top = {n: at for n, at in public.items() if n.count(".") == 2}
    assert top
    missing = [n for n, (at, _) in top.items() if at.partition("#")[2] not in anchors[at.partition("#")[0]]]
    assert not missing, f"no documentation on the page for {missing}"


# Entries for functions and classes

def fake_entry(name, line, signature="def f():", module="clm_nb/data/leaks"):
    "A cell as nbdev makes one for a function or class"
    source = f"[source](https://github.com/clm-nb/clm_nb/blob/main/{module}.py#L{line})"
    text = f"---\n\n{source}\n\n### {name}\n\n```python\n{signature}\n```\n\n*What it is*"
    output = nbformat.v4.new_output("display_data", {"text/markdown": text})
    return nbformat.v4.new_code_cell(f"#| echo: false\nshow_doc({name})", outputs=[output])


def test_entries_stand_before_their_source_in_its_order():
    code = nbformat.v4.new_code_cell("#| exports: true\nclass Leak: pass\ndef jaccard(a, b): return 1")
    prose = nbformat.v4.new_markdown_cell("And now another.")
    cells = [fake_entry("jaccard", 75), code, fake_entry("Leak", 41), fake_entry("Leakage.__repr__", 80), prose,
             fake_entry("shingles", 31)]
    found = docs.api.in_order(cells)
    assert [docs.api.name(c) for c in found if docs.api.is_entry(c)] == ["Leak", "jaccard", "shingles"]
    assert found[2] is code and found[3] is prose
    signed = ["```python" in docs.api.markdown(c) for c in found if docs.api.is_entry(c)]
    assert signed == [False, False, True], "only the last has its source out of sight"


def test_a_class_is_shown_as_a_class_with_its_fields():
    from clm_nb.data.leaks import Leak
    from clm_nb.ledger import Ledger
    shown = docs.api.as_class(docs.api.markdown(fake_entry("Leak", 75, "def Leak(\n    *args, **kwargs\n):")), Leak)
    assert "class Leak(NamedTuple):\n    test: int #" in shown and "*args" not in shown
    shown = docs.api.as_class(docs.api.markdown(fake_entry("Ledger", 1, "def Ledger(\n    entries=None\n):")), Ledger)
    assert "```python\nclass Ledger(\n    entries=None" in shown


def test_names_that_differ_in_case_have_anchors_of_their_own():
    site = "https://clm-nb.github.io/clm_nb/data/leaks.html#leakage"
    text = f"## [`leakage`]({site})\n\n[`leakage`]({site}), [`Leakage`]({site}), [`clm_nb.data.leaks.Leakage`]({site})"
    prose = nbformat.v4.new_markdown_cell(text)
    nb = nbformat.v4.new_notebook(cells=[fake_entry("Leakage", 85), fake_entry("leakage", 114, "def leakage(a:__main__.Leak):"), prose])
    docs.api.mend({"data/leaks.html": nb})
    upper, lower = map(docs.api.markdown, nb.cells[:2])
    assert "### Leakage {#class-leakage}" in upper and "### leakage\n" in lower and "__main__" not in lower
    heading, links = prose.source.split("\n\n")
    assert heading == "## `leakage` {#about-leakage}"
    assert [o.partition("#")[2] for o in re.findall(r"\(([^)]*)\)", links)] == ["leakage", "class-leakage", "class-leakage"]


def test_nbdev_leaves_what_was_mended(built):
    "nbdev-docs processes a notebook again only where it is newer than what lies in _proc"
    processed = [built/"_proc"/nb for nb in notebooks]
    before = [p.read_bytes() for p in processed]
    again = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0)"
    done = subprocess.run([sys.executable, "-c", again], cwd=built, capture_output=True, text=True)
    assert done.returncode == 0 and [p.read_bytes() for p in processed] == before, done.stderr


@every_notebook
def test_no_entry_repeats_its_source_or_speaks_of_main(nb, pages):
    cells = pages[nb].cells
    entries = [(c, after) for c, after in zip(cells, cells[1:]) if docs.api.is_entry(c)]
    for cell, after in entries:
        assert "__main__" not in docs.api.markdown(cell) and not re.search(r"(^|\.)_", docs.api.name(cell))
        if "#| exports" in after.source: assert "```python" not in docs.api.markdown(cell)
    lines = [(docs.api.line(c), docs.api.line(after)) for c, after in entries if docs.api.is_entry(after)]
    assert all(before <= after for before, after in lines), lines


@every_notebook
def test_show_doc_has_output(nb, pages):
    for cell in pages[nb].cells:
        if cell.cell_type != "code" or "show_doc(" not in cell.source: continue
        assert any("text/markdown" in o.get("data", {}) for o in cell.outputs), cell.source


# Links

def prose(nb):
    "A notebook's Markdown without code: fenced blocks and inline code taken out."
    text = re.sub(fenced, "", "\n\n".join(docs.markdowns(nb)), flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def links(text):
    "The targets of a Markdown text's links and pictures."
    return re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:href|src)=[\"']([^\"']+)", text)


def problem(target, here, anchors):
    "What is wrong with a link on a page, or None."
    path, _, fragment = unquote(target).partition("#")
    blob = f"{ini['git_url']}/blob/{ini['branch']}/"
    if path.startswith(ini["doc_url"]): page = path.removeprefix(ini["doc_url"]) or "index.html"
    elif path.startswith(blob): return None if (root/path.removeprefix(blob)).exists() else "no such file in the tree"
    elif re.match(r"[a-z][a-z0-9+.-]*:", path): return None # another site
    elif not path: page = docs.page(here)
    else:
        file = Path(os.path.normpath(here.parent/path))
        if path.endswith(".html"): return "link to the notebook (.ipynb), which works in Jupyter and on GitHub too"
        if not (root/"nbs"/file).exists(): return "no such file in nbs/"
        if not path.endswith(".ipynb"): return None
        page = docs.page(file)
    if page not in anchors: return "no such page"
    return "no such heading on that page" if fragment and fragment not in anchors[page] else None


@every_notebook
def test_every_internal_link_resolves(nb, pages, anchors):
    found = {t: problem(t, nb, anchors) for t in links(prose(pages[nb]))}
    assert not (bad := {t: p for t, p in found.items() if p}), bad


def test_a_broken_link_is_noticed(anchors):
    here = Path("tutorials/quickstart.ipynb")
    assert problem("../index.ipynb", here, anchors) is None
    assert problem("index.ipynb", here, anchors) == "no such file in nbs/"
    assert problem("../index.ipynb#nowhere", here, anchors) == "no such heading on that page"
    assert problem(ini["doc_url"] + "gone.html", here, anchors) == "no such page"
    assert problem("../index.html", here, anchors).startswith("link to the notebook")


@pytest.mark.parametrize("heading, expected", [
    ("Why `group_texts` is slow", "why-group_texts-is-slow"), ("3. The *plain* way!", "the-plain-way"),
    ("`Ledger.add`", "ledger.add"), ("[Load](00_load.ipynb), then train", "load-then-train"),
    ("Tokens & blocks", "tokens-blocks")])
def test_anchor_is_pandocs(heading, expected): assert docs.anchor(heading) == expected


# Backticked names

@pytest.fixture(scope="module")
def code_words():
    "Every word that occurs in code (fenced code too), in what code printed, or in the project's own settings."
    cells = [c for p in notebooks for c in nbformat.read(root/"nbs"/p, as_version=4).cells]
    text = [c.source for c in cells if c.cell_type == "code"]
    text += [m[0] for c in cells if c.cell_type == "markdown" for m in re.finditer(fenced, c.source, flags=re.S | re.M)]
    text += [str(o.get("text") or o.get("data", {}).get("text/plain", "")) for c in cells for o in c.get("outputs", [])]
    files = [p for d in ("clm_nb", "tests", "tools") for p in (root/d).glob("*.py") if p.name != "_modidx.py"]
    files += [root/n for n in ("settings.ini", "Makefile", "pyproject.toml", "_quarto.yml", "constraints.txt")]
    text += [p.read_text(encoding="utf-8") for p in files]
    return set(re.findall(r"\w+", "\n".join(text))) | set(dir(builtins)) | set(keyword.kwlist)


def importable(name):
    "Whether a dotted name is a module, or an attribute of one, here or in the libraries the notebooks are about."
    libs = "transformers", "datasets", "torch", "torch.nn.functional", "tokenizers", "evaluate", "accelerate"
    for lib in ("", *libs):
        parts = f"{lib}.{name}".lstrip(".").split(".")
        for i in range(len(parts), 0, -1):
            try: obj = importlib.import_module(".".join(parts[:i]))
            except ImportError: continue
            if all(hasattr(obj, a) and (obj := getattr(obj, a), True)[1] for a in parts[i:]): return True
            break
    return False


@functools.cache
def their_words():
    "Every word in the sources of the libraries the notebooks are about: arguments and attributes are not importable."
    home = lambda lib: Path(importlib.util.find_spec(lib).origin).parent
    folders = home("transformers"), home("transformers")/"generation", home("datasets")
    files = [p for o in folders for p in o.glob("*.py")]
    return {w for p in files for w in re.findall(r"\w+", p.read_text(encoding="utf-8"))}


def known_elsewhere(name): return set(name.split(".")) <= their_words() or importable(name)


def names(text):
    "The backticked names of a Markdown text that carry no link, as {name: whether it can only be a name, not a word}."
    text = re.sub(r"\[`[^`\n]+`\]\([^)]*\)", "", re.sub(fenced, "", text, flags=re.S | re.M))
    found = re.findall(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(\))?`(?!`)", text)
    file = re.compile(r"\.(py|json|jsonl|csv|parquet|txt|md|ini|toml|ya?ml|png|safetensors|html|ipynb)$")
    sure = lambda name, call: bool(call or re.search(r"[._]|[a-z][A-Z]", name)) and not file.search(name)
    return {name: sure(name, call) for name, call in found}


@every_notebook
def test_every_backticked_name_resolves(nb, pages, code_words):
    "A name of the library becomes a link; any other occurs in code or can be imported."
    from clm_nb._modidx import d
    full = [n for syms in d["syms"].values() for n in syms if "._" not in n]
    library = {o for n in full for o in (n, n.split(".", 1)[1], n.split(".", 2)[2])}
    text = "\n\n".join(docs.markdowns(pages[nb]))
    found = names(text)
    own = set(re.findall(r"^#+ `([^`]+)` \{#about-", text, flags=re.M)) # a heading above the entry itself
    unlinked = sorted(set(names(re.sub(r"^#+ .*\{#about-.*$", "", text, flags=re.M))) & library)
    assert {o.lower() for o in own} <= {docs.api.name(c).lower() for c in pages[nb].cells if docs.api.is_entry(c)}
    assert not unlinked, f"no links from {unlinked}: write `name` or `clm_nb.module.name`"
    here = lambda n: set(n.split(".")) <= code_words
    unknown = sorted(n for n, sure in found.items() if sure and not here(n) and not known_elsewhere(n))
    assert not unknown, f"names that occur in no code, here or in the libraries, and can't be imported: {unknown}"


def test_a_name_that_is_nowhere_is_noticed(code_words):
    gone = "load_" + "corpora"
    assert names(f"Call `{gone}()` or [`load_corpus`](load.html#load_corpus).") == {gone: True}
    assert names("`word` `run.json`") == {"word": False, "run.json": False}
    assert gone not in code_words and not known_elsewhere(gone)
    assert importable("AutoModelForCausalLM.from_pretrained") and importable("clm_nb.load")


# _quarto.yml

known = { # the keys that Quarto's schema allows, as far as the site uses that part of it
    (): "project website format format-links execute metadata-files lang",
    ("project",): "title type output-dir render resources pre-render post-render preview",
    ("website",): """title description favicon site-url site-path repo-url repo-link-target repo-link-rel repo-subdir
        repo-branch issue-url repo-actions reader-mode google-analytics cookie-consent search navbar sidebar body-header
        body-footer margin-header margin-footer page-navigation back-to-top-navigation bread-crumbs page-footer image
        image-alt comments open-graph twitter-card other-links code-links""",
    ("website", "search"): "location type limit collapse-after copy-button keyboard-shortcut show-item-context algolia",
    ("website", "navbar"): """title logo logo-alt logo-href background foreground search pinned collapse collapse-below
        left right toggle-position tools""",
    ("website", "sidebar"): """id title logo search tools contents style background foreground border alignment
        collapse-level pinned header footer""",
    ("website", "page-footer"): "left right center border background foreground",
    ("format",): "html commonmark",
    ("format", "html"): """theme toc toc-depth toc-title toc-location css code-copy code-fold code-overflow code-tools
        html-math-method keep-md highlight-style html-table-processing respect-user-color-scheme link-external-newwindow link-external-icon anchor-sections
        smooth-scroll grid include-in-header""",
}


def test_quarto_yml_has_only_keys_that_quarto_knows():
    for path, keys in known.items():
        part = quarto
        for key in path: part = part[key]
        assert not (unknown := set(part) - set(keys.split())), f"{'.'.join(path)}: {unknown}"


def test_quarto_yml_says_what_settings_say():
    web = quarto["website"]
    assert quarto["project"] | {"type": "website", "output-dir": ini["doc_path"]} == quarto["project"]
    assert (web["title"], web["description"]) == (ini["lib_name"], ini["description"])
    assert (web["site-url"], web["repo-url"]) == (ini["doc_url"], ini["git_url"])
    assert (web["repo-branch"], web["repo-subdir"]) == (ini["branch"], ini["nbs_path"])
    assert set(web["repo-actions"]) <= {"none", "edit", "source", "issue"}
    assert ini["license"] in web["page-footer"]["left"]


def test_quarto_renders_every_page_and_no_model_card():
    globs = quarto["project"]["render"]
    assert {p.relative_to(root/"nbs") for g in globs for p in (root/"nbs").glob(g)} == {*notebooks, Path("404.qmd")}
    assert not any(Path("runs/quickstart/README.md").match(g) for g in globs)


def test_no_file_is_a_symbolic_link():
    "On Windows, git writes a link as a file that holds the path it points to."
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=root, capture_output=True, text=True)
    if listed.returncode: pytest.skip("no checkout of git here")
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]


def test_themes_are_light_and_dark_and_ask_nothing_of_other_hosts():
    html = quarto["format"]["html"]
    assert set(html["theme"]) == {"light", "dark"} and html["html-math-method"] == "mathml"
    for layers in html["theme"].values():
        sheets = [root/"nbs"/o for o in layers if o.endswith(".scss")]
        assert any("$web-font-path: false;" in s.read_text(encoding="utf-8") for s in sheets)


def items(part):
    "The entries of a navbar's or a sidebar's part, nested ones too."
    for o in part:
        yield o
        if isinstance(o, dict): yield from items(o.get("menu", o.get("contents", [])))


def test_every_page_is_in_the_sidebar_once():
    listed = [Path(o) for o in items(quarto["website"]["sidebar"]["contents"]) if isinstance(o, str)]
    assert sorted(listed) == sorted(notebooks)
    assert [name for name, _ in docs.sidebar()] == ["Start", "The eight stages", "All in one call", "Look",
        "Under the hood", "What load and tokenize are made of", "A model, and what it costs to ask it", "What train is made of",
        "What the views are made of", "Reference"]


def test_every_navbar_entry_exists():
    navbar = quarto["website"]["navbar"]
    targets = [o["href"] for o in items(navbar["left"] + navbar["right"]) if "href" in o]
    assert ini["git_url"] in targets
    assert {Path(t) for t in targets if "://" not in t} <= set(notebooks)


# Colab

@every_notebook
def test_every_page_opens_in_colab(nb, pages):
    place = f"{ini['user']}/{ini['repo']}/blob/{ini['branch']}/{ini['nbs_path']}/{nb.as_posix()}"
    url = f"https://colab.research.google.com/github/{place}"
    assert f"[Open in Colab]({url})" in docs.markdowns(pages[nb])[:3], "run `make prepare`"
    install, = [c for c in nbformat.read(root/"nbs"/nb, as_version=4).cells if "%pip install" in c.source]
    assert install.source == docs.install_cell() and ini["git_url"] in install.source
    assert "#| eval: false" in install.source and "#| hide" in install.source


# The plain preview

def test_preview_has_every_page_and_says_what_it_is(built):
    out = built/"_docs"
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.html")} == {docs.page(p) for p in notebooks}
    for p in out.rglob("*.html"): assert docs.notice in p.read_text(encoding="utf-8"), p


@every_notebook
def test_preview_needs_no_other_host(nb, built):
    text = (built/"_docs"/docs.page(nb)).read_text(encoding="utf-8")
    loads = re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^\"]*|<link[^>]*>", text)
    loads += re.findall(r"@import[^;]*|url\((?:https?:)?//[^)]*", text)
    assert not loads, loads


@every_notebook
def test_preview_links_resolve(nb, built):
    page = built/"_docs"/docs.page(nb)
    text = re.sub(r"<pre>.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.S)
    local = [t for t in re.findall(r"<a[^>]*href=\"([^\"]+)\"", text) if not re.match(r"[a-z]+:", t)]
    assert local
    for target in local:
        path, _, fragment = target.partition("#")
        file = page.parent/path if path else page
        assert file.exists(), target
        assert not fragment or f'id="{fragment}"' in file.read_text(encoding="utf-8"), target


@every_notebook
def test_each_id_is_there_once(nb, built):
    text = (built/"_docs"/docs.page(nb)).read_text(encoding="utf-8")
    ids = re.findall(r"<[^>]*\sid=\"([^\"]+)\"", text)
    assert not {i for i in ids if ids.count(i) > 1}


@every_notebook
def test_a_linked_name_leads_to_that_name(nb, built):
    "Also where another name differs from it only in case"
    page = built/"_docs"/docs.page(nb)
    named = re.findall(r"<a[^>]*href=\"([^\":]*)#([^\"]+)\"[^>]*><code>([\w.]+)(?:\(\))?</code></a>", page.read_text(encoding="utf-8"))
    for path, fragment, name in named:
        text = (page.parent/path if path else page).read_text(encoding="utf-8")
        there = re.search(rf"<h\d id=\"{re.escape(fragment)}\">(.*?)</h\d>", text, flags=re.S)
        heading = re.sub(r"<[^>]+>|¶", "", there[1]).strip() if there else ""
        assert there and (name == heading or name.endswith(f".{heading}") or heading.endswith(f".{name}")), (name, path, fragment, heading)


def test_without_quarto_docs_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(docs.shutil, "which", lambda name: None)
    monkeypatch.setattr(docs, "preview", lambda out: [out/"index.html"])
    assert docs.main(["site"]) == 0
    assert "https://quarto.org/docs/get-started/" in capsys.readouterr().out


def test_with_quarto_docs_is_nbdevs(monkeypatch):
    ran = []
    def record(cmd, **kwargs):
        ran.append(Path(cmd[0]).name)
        return subprocess.CompletedProcess(cmd, 0)
    monkeypatch.setattr(docs.shutil, "which", lambda name: "/usr/bin/quarto")
    copied = []
    monkeypatch.setattr(docs.subprocess, "run", record)
    monkeypatch.setattr(docs.shutil, "copyfile", lambda *paths: copied.append(paths))
    monkeypatch.setattr(docs, "process", lambda: ran.append("process"))
    assert docs.main(["site"]) == 0 and ran == ["process", "nbdev-docs"]
    assert copied == [(root/"_quarto.yml", root/"nbs/_quarto.yml")]


def test_scripts_of_other_hosts_are_taken_out_and_nothing_else_is():
    ours = '<script src="site_libs/quarto.js"></script><script>let a = 1;</script><a href="https://jupyter.org">x</a>'
    theirs = """<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" integrity="x"></script>
<script src="https://cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1/jquery.min.js" crossorigin="anonymous"></script>
<script type="application/javascript">define('jquery', [],function() {return window.jQuery;})</script>"""
    assert docs.without_foreign_scripts(ours) == ours
    assert "cdnjs" not in docs.without_foreign_scripts(theirs + ours) and docs.without_foreign_scripts(theirs + ours).endswith(ours)


def test_the_pictures_import_what_is_there():
    "Also in the code that they hand to a notebook as text"
    text = (root/"tools"/"pictures.py").read_text(encoding="utf-8")
    imports = re.findall(r"from (clm_nb[\w.]*) import (\w+(?:, \w+)*)", text)
    missing = [f"{module}.{name}" for module, names in imports for name in names.split(", ") if not importable(f"{module}.{name}")]
    assert len(imports) > 15 and not missing


def test_a_name_inside_a_link_is_not_linked_again(pages):
    "nbdev links backticked names, also where a link is already around them, and both then show as raw Markdown"
    double = {p: re.findall(r"\[\[`[^\n]*?\)\]\([^)]*\)", "\n".join(docs.markdowns(nb))) for p, nb in pages.items()}
    assert not {p: found for p, found in double.items() if found}


@every_notebook
def test_pictures_have_an_alternative_text(nb, pages):
    text = "\n".join(docs.markdowns(pages[nb]))
    assert not re.findall(r"!\[\]\([^)]*\)|<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", re.sub(fenced, "", text, flags=re.S | re.M))


@every_notebook
def test_headings_are_in_order(nb, pages):
    levels = [len(o) for md in docs.markdowns(pages[nb]) for o in re.findall(r"^(#{1,6}) ", re.sub(fenced, "", md, flags=re.S | re.M), flags=re.M)]
    assert all(after <= before + 1 or before >= 2 for before, after in zip(levels, levels[1:])), levels


def test_what_stands_in_columns_keeps_them_and_the_rest_flows():
    table = "         loss  tokens\nbefore   3.77  27,178\nafter    3.56  27,178"
    assert docs.in_columns(table) and docs.in_columns("| a | b |\n| --- | --- |")
    assert docs.in_columns("  --block_size BLOCK_SIZE" + 2*f"\n{'':24}tokens per row") # argparse's help
    assert not docs.in_columns("A sentence.  And one more.\n  Another?  Yes.") and not docs.in_columns("{'a': 1,\n 'b': 2}")
    stream = lambda text: nbformat.v4.new_output("stream", text=text)
    cells = [nbformat.v4.new_code_cell("#| exports\nf()", outputs=[stream(text) for text in texts])
             for texts in ([], ["A line."], [table], ["A line.", table])]
    shown = nbformat.v4.new_output("display_data", data={"text/plain": table, "text/html": "<table>…</table>"})
    in_pre = nbformat.v4.new_output("display_data", data={"text/plain": "A line.", "text/html": f"<pre>{table}</pre>"})
    cells += [nbformat.v4.new_code_cell("#| exports\nf()", outputs=[stream("A line."), o]) for o in (shown, in_pre)]
    docs.let_flow(nb := nbformat.v4.new_notebook(cells=cells))
    assert [docs.directives(c).get("classes") for c in nb.cells] == [None, "flowing", None, None, "flowing", None]
    assert all("#| exports" in c.source for c in nb.cells)


@every_notebook
def test_the_preview_shows_no_raw_markdown(nb, built):
    "Backticks, and links around links: outside of code, and of views, which may show any text"
    text = (built/"_docs"/docs.page(nb)).read_text(encoding="utf-8").partition("<main>")[2]
    prose = [text.partition("<div class=\"cell")[0], *re.findall(r"<div class=\"(?:text_cell_render|output_markdown).*?</div>", text, flags=re.S)]
    shown = re.sub(r"<[^>]*>", "", re.sub(r"<(pre|code|style)\b.*?</\1>", "", "\n".join(prose), flags=re.S))
    assert not re.findall(r"[^\n]*`[^\n]*|\]\([^)\n]*\)", shown)


def test_a_branch_and_a_split_carry_no_link(pages):
    "`main` and `train` are functions as well, and nbdev makes a link of any backticked name that is one"
    wrong = r"\[`main`\]\([^)]*\)|(?:split|branch)s? \[`\w+`\]|\[`train`\]\([^)]*\),? (?:and|or) (?:a )?`test`"
    found = {p: re.findall(wrong, "\n".join(docs.markdowns(nb))) for p, nb in pages.items() if p.name != "10_cli.ipynb"}
    assert not {p: f for p, f in found.items() if f and p.name != "reference.ipynb"}


def test_no_page_of_the_preview_scrolls_sideways_on_a_phone(built):
    "Nor does what is printed, unless it stands in columns; code keeps its indents, and scrolls inside itself"
    from browser import chromium, open_page
    wide, cut = {}, {}
    inside = "[...document.querySelectorAll('.celltag_flowing .output_area pre')].filter(e => e.scrollWidth > e.clientWidth).length"
    with chromium() as browser:
        page = open_page(browser, width=390, height=800)
        for nb in notebooks:
            page.goto((built/"_docs"/docs.page(nb)).as_uri())
            if (width := page.evaluate("document.documentElement.scrollWidth")) > 390: wide[nb] = width
            if count := page.evaluate(inside): cut[nb] = count
        spaces = page.evaluate("getComputedStyle(document.querySelector('.highlight pre')).whiteSpace")
    assert not wide and not cut and spaces == "pre"
