"""The pictures of the pages, taken with the browser of the tests

python tools/pictures.py                   all of them, into nbs/images
python tools/pictures.py app explorer      these
python tools/pictures.py app --dark --out /tmp/look

A picture is a function of a Playwright page and the path of the file to write; its name is the picture's. `fragment` and
`notebook` do what most of them need."""
import argparse, os, re, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/"tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
width, largest = 900, 300_000  # CSS pixels; bytes
embedded = """
import datasets
from clm_nb.data.tokenizer import load_tokenizer
from clm_nb.model.model import load_model
from clm_nb.train import embedded_run
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
datasets.disable_progress_bars()
disable_progress_bar()
set_verbosity_error()
models = {"base": load_model("python-docs-gpt2"), "fine-tuned": load_model(embedded_run())}
tokenizer = load_tokenizer("python-docs-gpt2")
"""


def dark(page) -> bool: return page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def fragment(page, path, html: str, act=lambda page: None):
    "A picture of a fragment of HTML, on paper or on a dark page, after `act` has moved what there is to move"
    page.set_viewport_size(dict(width=width, height=1600))
    look = "background:#111;color:#eee" if dark(page) else "background:#fff;color:#111"
    page.set_content(f'<meta charset="utf-8"><body style="margin:0;{look};font:15px/1.5 system-ui,sans-serif">'
                     f'<div id="picture" style="display:inline-block;max-width:{width - 24}px;padding:12px">{html}</div>')
    act(page)
    page.locator("#picture").screenshot(path=str(path))


def notebook(page, path, code: str, act=lambda part: None, part: str = ".jp-OutputArea-output", setup: str = embedded):
    "A picture of what a cell puts out in JupyterLab, after `act` has clicked what there is to click"
    from browser import Jupyter
    page.set_viewport_size(dict(width=1370, height=1700))
    with tempfile.TemporaryDirectory() as folder, Jupyter(folder) as lab:
        lab.write("picture.ipynb", setup, code)
        lab.open(page, "picture.ipynb")
        lab.theme(page, "dark" if dark(page) else "light")
        page.add_style_tag(content=f"{part} {{ padding: 14px !important; background: var(--jp-layout-color0) }}")
        lab.run(page, 0)
        shown = lab.run(page, 1).locator(part).first
        shown.wait_for()
        act(shown)
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        shown.screenshot(path=str(path))


def quantise(path):
    "Make a picture small; `ValueError` where it stays too large for a page"
    from PIL import Image
    with Image.open(path) as image: small = image.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    if (size := Path(path).stat().st_size) > largest: raise ValueError(f"{path} has {size:,} bytes. Show less of it.")


def clm_nb(*argv, **options):
    "The command line in a process of its own"
    code = "import sys; from clm_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, text=True, **options)


def models():
    "The names that `embedded` makes, in this process"
    names = {}
    exec(embedded, names)
    return names["models"]["base"], names["models"]["fine-tuned"], names["tokenizer"]


def button(place, name): return place.get_by_role("button", name=re.compile(f"{name}$"))


def generated(app, n: int = 1):
    "Click Generate for the n-th time, and wait for the end"
    button(app, "Generate").click()
    app.get_by_text(f"#{n}").first.wait_for(state="attached")
    app.get_by_role("status").filter(has_text="Done").wait_for()


def blocks(page, path):
    "Short documents laid end to end, and the tutorial's way beneath"
    from datasets import Dataset, DatasetDict
    from clm_nb.look.blocks import show_blocks
    from clm_nb.tokenize import tokenize
    poem = ["The sky is blue.", "Roses are red, violets are blue.", "Yes.",
            "A list is a sequence of values.\nIt can grow.", "An end is an end."]
    *_, tokenizer = models()
    short = tokenize(DatasetDict(train=Dataset.from_dict({"text": poem})), tokenizer)["train"]
    fragment(page, path, show_blocks(short, tokenizer, block_size=12, batch_size=3)._repr_html_())


def ledger_flow(page, path):
    "What became of the embedded corpus, the tutorial's way"
    from clm_nb.look import flow
    from clm_nb.flatten import flatten
    from clm_nb.group import group
    from clm_nb.ledger import Ledger
    from clm_nb.load import load_corpus
    from clm_nb.tokenize import tokenize
    *_, tokenizer = models()
    ledger = Ledger()
    documents = flatten(load_corpus("python-docs", ledger=ledger), explode=True, ledger=ledger)
    group(tokenize(documents, tokenizer, ledger=ledger), block_size=1024, remainder="batch", batch_size=10, ledger=ledger)
    fragment(page, path, f'<div style="width:{width - 24}px">{flow.ledger_flow(ledger)._repr_html_()}</div>')


def batch(page, path):
    "A batch from our collator, and the same rows from the stock one"
    from transformers import DataCollatorForLanguageModeling
    from clm_nb.look.batch import show_batch
    from clm_nb.collate import CausalCollator
    *_, tokenizer = models()
    eos = tokenizer.pad_token_id = tokenizer.eos_token_id
    rows = [{"input_ids": tokenizer(text).input_ids + [eos]} for text in ["The sky is blue.", "Yes."]]
    collators = {"CausalCollator": CausalCollator(eos), "DataCollatorForLanguageModeling, padding = EOS":
                 DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)}
    title = '<p style="font:bold 17px sans-serif;margin:18px 0 4px">{}</p>'.format
    fragment(page, path, "".join(title(name) + show_batch(collate(rows), tokenizer)._repr_html_()
                                 for name, collate in collators.items()))


def results(page, path):
    "How held-out documents go on: really, before and after fine-tuning"
    from clm_nb.flatten import flatten
    from clm_nb.load import load_corpus
    from clm_nb.look.results import show_results
    base, model, tokenizer = models()
    documents = flatten(load_corpus("python-docs"), explode=True)["test"]
    fragment(page, path, show_results(model, documents, tokenizer, base)._repr_html_())


def lr_finder(page, path):
    "The sweep of the embedded fine-tuning"
    from clm_nb.train import embedded_finetuning
    from clm_nb.core import find_lr, prepare
    base, _, tokenizer = models()
    found = find_lr(base, prepare(), tokenizer, **embedded_finetuning)
    fragment(page, path, f'<div style="width:640px">{found._repr_html_()}</div>')


def heatmap(page, path):
    "The three views of a short text, the box of one token open in the last, with room below it"
    from clm_nb.flatten import flatten
    from clm_nb.look.heatmap import loss_map
    from clm_nb.load import load_corpus
    base, model, tokenizer = models()
    texts = flatten(load_corpus("python-docs"))["test"]["text"]
    text = next(t for t in texts if t.startswith('The "return" statement'))
    found = loss_map(model, tokenizer, "\n\n".join(text.split("\n\n")[:3]), base=base)
    room = '<div style="height:290px"></div></div>'
    html = re.sub('<div class="h"><b>The tokens with the highest loss.*', room, found.html(), flags=re.DOTALL)
    last = max(i for i, name in enumerate(found.names) if "definition" in name)
    fragment(page, path, html, lambda page: page.locator(".t").nth(2*len(found.names) + last).hover())


def explorer(page, path):
    "What comes next, after top-k and temperature were moved and two tokens appended"
    def act(shown):
        def slide(name, key, presses):
            shown.locator(f".widget-inline-hbox:has(label:text-is('{name}')) .noUi-handle").first.focus()
            for _ in range(presses): page.keyboard.press(key)
        slide("top-k (0: all)", "ArrowRight", 7)
        slide("temperature", "ArrowLeft", 5)
        for n, name in enumerate(("·of", "·the"), 1):
            shown.get_by_role("button", name=name).first.click()
            shown.get_by_text(f"4 + {n} tokens").first.wait_for()
    notebook(page, path, "from clm_nb.look.explorer import NextTokenExplorer\n"
             'NextTokenExplorer(models, tokenizer, "Return a new list", n=10)', act)


def generation_app(page, path):
    "Two generations, the second in full, the first in the history"
    def act(shown):
        generated(shown)
        button(shown, "greedy").click()
        generated(shown, 2)
    notebook(page, path, "from clm_nb.look.generation_app import GenerationApp\n"
             'GenerationApp(models, tokenizer, "The with statement is used to", seed=1, max_new_tokens=60)', act)


def app(page, path):
    "The page of `clm_nb app`"
    server = clm_nb("app", "--prompt", "The with statement is used to", "--seed", "1", "--max_new_tokens", "60")
    page.set_viewport_size(dict(width=1000, height=950))
    try:
        page.goto(re.search(r"http://\S+", server.stdout.readline())[0])
        generated(page)
        page.mouse.move(0, 0)
        page.locator("#rendered_cells").screenshot(path=str(path))
    finally:
        server.terminate()
        server.wait()


def live_training(page, path):
    "A run in JupyterLab, two thirds through"
    code = ('import tempfile\nfrom clm_nb.core import prepare, train\nfrom clm_nb.train import embedded_finetuning\n'
            'train(models["base"], prepare(), tokenizer, tempfile.mkdtemp(), sample_prompt="The for statement is used to",\n'
            '      **embedded_finetuning | dict(eval_strategy="steps", eval_steps=25, save_strategy="no"))\nNone')
    far = lambda shown: page.wait_for_function("""() => {
        const found = document.querySelector('.jp-Notebook').innerText.match(/([\\d,]+) of ([\\d,]+)/);
        const [done, all] = found ? found.slice(1).map(n => Number(n.replace(',', ''))) : [0, 1];
        return done > 0.68*all }""", timeout=600_000)
    notebook(page, path, code, far, part=".jp-RenderedHTMLCommon > div")


def report(page, path, height: int = 1400):
    "The beginning of the report of `clm_nb demo`"
    with tempfile.TemporaryDirectory() as folder:
        demo = clm_nb("demo", "--output_dir", f"{folder}/demo", stderr=subprocess.DEVNULL)
        demo.communicate()
        if demo.returncode: raise RuntimeError("clm_nb demo failed. Run it to see why.")
        page.set_viewport_size(dict(width=width, height=height))
        page.goto(f"file://{folder}/demo/report.html")
        page.screenshot(path=str(path))


pictures = [blocks, ledger_flow, batch, results, heatmap, explorer, generation_app, app, live_training, lr_finder, report]


def main():
    from browser import chromium, open_page
    known = {f.__name__: f for f in pictures}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(known))
    parser.add_argument("--dark", action="store_true", help="as it looks on a dark page")
    parser.add_argument("--out", type=Path, default=root/"nbs"/"images", help="folder (default: nbs/images)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known): parser.error(f"no picture is called {', '.join(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name in given.names or known:
            start, file = time.monotonic(), given.out/f"{name}.png"
            page = open_page(browser, width=width, scheme="dark" if given.dark else "light", device_scale_factor=2)
            known[name](page, file)
            page.close()
            quantise(file)
            print(f"{file} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__": main()
