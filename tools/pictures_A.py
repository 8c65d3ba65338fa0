"""The picture of the generation app, taken in a real JupyterLab with a live kernel

python tools/pictures_A.py nbs/images/generation_app.png [--dark]"""
import json, os, socket, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

cell = """from clm_nb.train import embedded_run, load_model
from clm_nb.tokenize import load_tokenizer
from clm_nb.widgets import GenerationApp
models = {"base": load_model("python-docs-gpt2"), "fine-tuned": load_model(embedded_run())}
app = GenerationApp(models, load_tokenizer("python-docs-gpt2"), "The with statement is used to", seed=1, max_new_tokens=60)
app"""


def notebook(source: str) -> dict:
    cells = [dict(cell_type="code", id="app", metadata={}, source=source, outputs=[], execution_count=None)]
    kernel = dict(name="python3", display_name="python3", language="python")
    return dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


@contextmanager
def jupyterlab(source: str, dark: bool = False):
    "The address of a JupyterLab, on loopback, with one notebook of one cell"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/"app.ipynb").write_text(json.dumps(notebook(source)))
        theme = Path(folder)/"settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings"
        theme.parent.mkdir(parents=True)
        theme.write_text(json.dumps(dict(theme="JupyterLab Dark" if dark else "JupyterLab Light")))
        news = theme.with_name("notification.jupyterlab-settings")
        news.write_text(json.dumps(dict(fetchNews="false", checkForUpdates=False)))
        env = os.environ | dict(JUPYTERLAB_SETTINGS_DIR=f"{folder}/settings", JUPYTERLAB_WORKSPACES_DIR=f"{folder}/workspaces")
        command = [Path(sys.executable).with_name("jupyter-lab"), "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
                   "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="]
        server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield wait_for(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait()


def wait_for(address: str, seconds: int = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=2)
            return f"{address}/lab/tree/app.ipynb"
        except OSError: time.sleep(0.3)
    raise TimeoutError(f"{address} doesn't answer")


def open_app(page, address: str):
    "The app in a live notebook"
    page.goto(address)
    page.locator(".jp-Cell .cm-content").first.click(timeout=60_000)
    page.wait_for_selector('.jp-Toolbar-kernelStatus[data-status="idle"], [data-status="idle"]', timeout=60_000, state="attached")
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".clm-generation", timeout=120_000)
    return page.locator(".clm-generation").first


def button(app, name: str): return app.locator("button", has_text=name).first


def done(app, text: str = "Done"): app.get_by_role("status").filter(has_text=text).wait_for(timeout=60_000)


def generation_app(page, path: str):
    "Two generations, the second on the page, the first below it"
    app = page.locator(".clm-generation").first
    button(app, "Generate").click()
    done(app)
    button(app, "greedy").click()
    button(app, "Generate").click()
    app.get_by_text("#2").wait_for()
    done(app)
    page.add_style_tag(content=".jp-SideBar, .jp-LabShell > #jp-top-panel { visibility: hidden }")
    app.screenshot(path=path)


def shrink(path: str):
    from PIL import Image
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def main(path: str, dark: bool = False, work=generation_app):
    from playwright.sync_api import sync_playwright
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
    with jupyterlab(cell, dark) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=quiet)
        page = browser.new_page(viewport=dict(width=1330, height=1500), device_scale_factor=2)
        open_app(page, address)
        work(page, path)
        browser.close()
    shrink(path)


if __name__ == "__main__": main(sys.argv[1], "--dark" in sys.argv)
