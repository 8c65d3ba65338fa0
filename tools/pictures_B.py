"The picture of the explorer, made in a running JupyterLab"
import io, time
from pathlib import Path

cell = """from clm_nb.explore import NextTokenExplorer
from clm_nb.train import load_model, embedded_run
from clm_nb.tokenize import load_tokenizer
import transformers; transformers.logging.disable_progress_bar()
models = {"base": load_model("python-docs-gpt2"), "fine-tuned": load_model(embedded_run())}
NextTokenExplorer(models, load_tokenizer("python-docs-gpt2"), "Return a new list", n=10)"""


def notebook(path: Path):
    "A notebook with nothing but the explorer, for `explorer`"
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nb.metadata["kernelspec"] = dict(display_name="python3", language="python", name="python3")
    nbformat.write(nb, path)


def slide(page, name: str, key: str, presses: int, row: int = 0):
    "Press a key on the slider of this name"
    handle = page.locator(f".widget-inline-hbox:has(label:text-is('{name}')) .noUi-handle").nth(row)
    handle.focus()
    for _ in range(presses): page.keyboard.press(key)


def explorer(page, out: Path, url: str, dark: bool = False):
    "Runs the notebook at `url`, moves sliders by keyboard, appends a token by keyboard and one by click, takes the picture"
    page.set_viewport_size(dict(width=1330, height=1100))
    page.goto(url)
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.wait_for_timeout(4000)
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Always the likeliest", timeout=120_000)
    slide(page, "top-k (0: all)", "ArrowRight", 7)
    slide(page, "temperature", "ArrowLeft", 5)
    page.wait_for_timeout(800)
    page.get_by_role("button", name="·of").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=4 + 1 tokens")
    page.get_by_role("button", name="·the").first.click()
    page.wait_for_selector("text=4 + 2 tokens")
    page.wait_for_timeout(800)
    page.mouse.move(5, 5)
    save(page.locator(".jp-OutputArea-output .widget-vbox").first.screenshot(), out)


def save(png: bytes, out: Path):
    "In 256 colours"
    from PIL import Image
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, optimize=True)
