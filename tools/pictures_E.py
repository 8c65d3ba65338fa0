"Pictures of a live run and of the learning-rate finder: python tools/pictures_E.py live_training|lr_finder OUT.png [dark]"
import contextlib, json, os, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

chromium = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync").split()
training = """
import datasets; datasets.disable_progress_bars()
from clm_nb.core import *
tokenizer, blocks = load_tokenizer("python-docs-gpt2"), prepare()
trainer = train(load_model("python-docs-gpt2"), blocks, tokenizer, "run", sample_prompt="The for statement is used to",
                **embedded_finetuning | dict(eval_strategy="steps", eval_steps=25, save_strategy="no"))
print(f"{trainer.live.drawing/trainer.live.elapsed:.2%} drawing, {trainer.live.sampler.seconds/trainer.live.elapsed:.2%} texts")
"""


def cut(page, locator, out: Path, margin: int = 14):
    "Save an element, with a margin around it, as a small PNG"
    from PIL import Image
    locator.evaluate(f"e => e.style.cssText += ';padding:{margin}px;background:var(--jp-layout-color0, #fff)'")
    locator.screenshot(path=str(out))
    Image.open(out).convert("RGB").quantize(256).save(out, optimize=True)


@contextlib.contextmanager
def jupyter(folder: Path, theme: str):
    "The address of a JupyterLab on a folder"
    settings = folder/"settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings/"themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    (folder/"settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    env = os.environ | dict(JUPYTERLAB_SETTINGS_DIR=str(folder/"settings"))
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=1)
                break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def live_training(page, out: Path, theme: str = "JupyterLab Light") -> list[tuple]: # (seconds, outputs, displays, step)
    "A run half way, in JupyterLab; returns what was seen of its outputs while it went"
    import nbformat
    seen = []
    with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder), theme) as address:
        cell = nbformat.v4.new_code_cell(training)
        kernel = dict(kernelspec=dict(name="python3", display_name="Python 3"))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), Path(folder)/"live.ipynb")
        page.goto(f"{address}/lab/tree/live.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        page.click(".jp-Notebook .jp-CodeCell")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".jp-OutputArea-output svg[role=img]", timeout=120_000)
        start, taken = time.time(), False
        while time.time() - start < 120:
            outputs = page.locator(".jp-OutputArea-child")
            step = page.locator(".jp-OutputArea-output", has=page.locator("svg[role=img]")).first.inner_text().split("\n")[1]
            seen.append((round(time.time() - start, 1), outputs.count(), page.locator("svg[role=img]").count(), step))
            done, total = (int(n.replace(",", "")) for n in step.split(" of "))
            if not taken and done > 0.68*total:
                cut(page, page.locator(".jp-RenderedHTMLCommon", has=page.locator("svg[role=img]")).first.locator("xpath=./div"), out)
                taken = True
            if page.locator("text=% drawing").count(): break
            time.sleep(0.5)
        seen.append(page.locator(".jp-OutputArea-child").last.inner_text())
        if not taken or os.environ.get("WHOLE"): page.screenshot(path=str(out.with_suffix(".whole.png")), full_page=True)
    return seen


def lr_finder(page, out: Path):
    "The sweep of the embedded fine-tuning, as its HTML"
    from clm_nb.core import embedded_finetuning, load_model, load_tokenizer, prepare
    from clm_nb.lr_finder import find_lr
    found = find_lr(load_model("python-docs-gpt2"), prepare(), load_tokenizer("python-docs-gpt2"), **embedded_finetuning)
    page.set_content(f'<body style="margin:0;font:16px system-ui,sans-serif">{found._repr_html_()}</body>')
    page.locator("figure").evaluate("e => e.style.width = '640px'")
    cut(page, page.locator("figure"), out)
    return str(found)


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright
    name, out, *theme = sys.argv[1:]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=chromium)
        page = browser.new_page(viewport=dict(width=1240, height=1100), device_scale_factor=2)
        print(globals()[name](page, Path(out), *(["JupyterLab Dark"] if theme else [])))
        browser.close()
