"""The pictures of the pages, taken with the browser of the tests

python tools/pictures.py                   all of them, into nbs/images
python tools/pictures.py app explorer      these
python tools/pictures.py app --dark --out /tmp/look

A picture is a function of a Playwright page and the path of the file to write, here or in a file pictures_*.py beside
this one; its name is the picture's. `fragment` and `notebook` do what most of them need."""
import argparse, importlib.util, inspect, os, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/"tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
width, largest = 900, 300_000  # CSS pixels; bytes
embedded = """
from clm_nb.train import embedded_run, load_model
from clm_nb.tokenize import load_tokenizer
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()
models = {"base": load_model("python-docs-gpt2"), "fine-tuned": load_model(embedded_run())}
tokenizer = load_tokenizer("python-docs-gpt2")
"""


def dark(page) -> bool: return page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def fragment(page, path, html: str):
    "A picture of a fragment of HTML, on paper or on a dark page"
    look = "background:#111;color:#eee" if dark(page) else "background:#fff;color:#111"
    page.set_content(f'<meta charset="utf-8"><body style="margin:0;{look};font:15px/1.5 system-ui,sans-serif">'
                     f'<div id="picture" style="display:inline-block;max-width:{width}px;padding:12px">{html}</div>')
    page.locator("#picture").screenshot(path=str(path))


def notebook(page, path, code: str, act=lambda page: None, part: str = ".jp-OutputArea-output", setup: str = embedded):
    "A picture of what a cell puts out in JupyterLab, after `act` has clicked what there is to click"
    from browser import Jupyter
    with tempfile.TemporaryDirectory() as folder, Jupyter(folder) as lab:
        lab.write("picture.ipynb", setup, code)
        lab.open(page, "picture.ipynb")
        lab.theme(page, "dark" if dark(page) else "light")
        lab.run_all(page)
        shown = page.locator(".jp-CodeCell").nth(1).locator(part).first
        shown.wait_for()
        act(page)
        page.mouse.move(0, 0)
        shown.screenshot(path=str(path))


def quantise(path):
    "Make a picture small; `ValueError` where it stays too large for a page"
    from PIL import Image
    with Image.open(path) as image: small = image.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    if (size := Path(path).stat().st_size) > largest: raise ValueError(f"{path} has {size:,} bytes. Show less of it.")


def app(page, path):
    "The page of `clm_nb app`"
    import re, subprocess
    code = "import sys; from clm_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "app", "--prompt", "The with statement is used to", "--seed", "1", "--max_new_tokens", "60"]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        page.goto(re.search(r"http://\S+", server.stdout.readline())[0])
        page.get_by_role("button", name=re.compile("Generate$")).click()
        page.get_by_role("status").filter(has_text="Done").wait_for()
        page.mouse.move(0, 0)
        page.locator("#rendered_cells").screenshot(path=str(path))
    finally:
        server.terminate()
        server.wait()


def functions(module) -> dict:
    "The pictures that a module takes"
    own = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    required = lambda f: [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    return {name: f for name, f in own.items() if required(f) in (["page", "path"], ["page", "out"])}


def all_pictures() -> dict:
    "The pictures of this file and of those beside it"
    found = functions(sys.modules[__name__])
    for file in sorted(Path(__file__).parent.glob("pictures_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        found |= functions(module)
    return {name: f for name, f in found.items() if name not in ("fragment", "notebook", "quantise")}


def main():
    from browser import chromium, open_page
    known = all_pictures()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known))
    parser.add_argument("--dark", action="store_true", help="as it looks on a dark page")
    parser.add_argument("--out", type=Path, default=root/"nbs"/"images", help="folder (default: nbs/images)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known): parser.error(f"no picture is called {', '.join(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name in given.names or known:
            page = open_page(browser, width=width, scheme="dark" if given.dark else "light", device_scale_factor=2)
            known[name](page, given.out/f"{name}.png")
            page.close()
            quantise(given.out/f"{name}.png")
            print(given.out/f"{name}.png")


if __name__ == "__main__": main()
