"A headless browser, and the JupyterLab or Notebook that it looks at"
import json, os, re, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import TimeoutError as PlaywrightTimeout

flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
names = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
connected = """async () => {
    const at = () => window.jupyterapp.shell.currentWidget?.sessionContext;
    while (!at()?.session?.kernel) await new Promise(done => setTimeout(done, 50));
    await at().ready;
    await at().session.kernel.info;
    while (at().session.kernel.connectionStatus != 'connected' || at().session.kernel.status != 'idle')
        await new Promise(done => setTimeout(done, 50)) }"""
patience = int(os.environ.get('PATIENCE', 300_000))  # ms until something that must appear is taken to be missing


def starts(path) -> bool:
    "Whether a program is there and more than a note that something else must be installed"
    return bool(path) and Path(path).is_file() and not subprocess.run([path, "--version"], capture_output=True).returncode


def installed() -> str | None:
    "The browser that is here, if any"
    return next(filter(starts, [os.environ.get("CHROME_PATH"), *map(shutil.which, names)]), None)


def by_apt() -> str | None:
    "Debian's chromium, for root, and a font"
    if getattr(os, "geteuid", lambda: 1)() or not shutil.which("apt-get"): return None
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = dict(env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        subprocess.run(["apt-get", *command], **quiet)
    return installed()


def by_playwright() -> str | None:
    "Playwright's own download"
    from playwright.sync_api import sync_playwright
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    with sync_playwright() as playwright: path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def find_chromium() -> str:
    "The browser that is here, or one that is installed now; `RuntimeError` where neither works"
    for find in (installed, by_apt, by_playwright):
        if path := find(): return path
    raise RuntimeError("The browser tests need Chromium, and it could neither be found nor installed. Install it "
                       "(Debian: apt-get install chromium; elsewhere: playwright install chromium), or set CHROME_PATH.")


@contextmanager
def chromium():
    "A headless browser"
    from playwright.sync_api import sync_playwright
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try: yield browser
        finally: browser.close()


def open_page(browser, width: int = 1100, height: int = 1000, scheme: str = "light", **options):
    "A page that takes down where its requests went, in `hosts`, and what went wrong on it, in `errors`"
    page = browser.new_page(viewport=dict(width=width, height=height), color_scheme=scheme, **options)
    page.hosts, page.errors = set(), []
    page.set_default_timeout(patience)
    host = lambda url: url.split("/")[2].split(":")[0]
    page.on("request", lambda request: page.hosts.add(host(request.url)) if "://" in request.url else None)
    page.on("websocket", lambda ws: page.hosts.add(host(ws.url)))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    return page


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(url: str, process, seconds: float = 600):
    "Wait until a server answers"
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError):
            with urllib.request.urlopen(url, timeout=5): return
        time.sleep(0.1)
    raise RuntimeError(f"{url} doesn't answer")


def end(process):
    "Ask a process to end; kill it where it doesn't"
    process.terminate()
    try: process.wait(300)
    except subprocess.TimeoutExpired: process.kill()


def settings_of(folder: Path) -> dict:
    "Environment variables that keep a server out of the settings of whoever runs the tests"
    parts = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_RUNTIME_DIR="runtime", JUPYTER_DATA_DIR="data", IPYTHONDIR="ipython",
                 JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces")
    chosen = {"apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
              "notebook-extension/tracker": dict(windowingMode="none")}  # cells out of sight are on the page too
    for name, values in chosen.items():
        file = folder/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    return {name: str(folder/part) for name, part in parts.items()}


class Jupyter:
    "JupyterLab or Notebook on a free port of the loopback address, with a token, over the notebooks in `folder`/work"
    def __init__(self, folder, kind: str = "lab"):
        self.kind, self.folder, self.port, self.token = kind, Path(folder), free_port(), os.urandom(8).hex()
        self.work = self.folder/"work"
        self.work.mkdir(parents=True, exist_ok=True)
        module = {"lab": "jupyterlab", "notebook": "notebook"}[kind]
        argv = ["--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.work}", "--ServerApp.allow_root=True",
                "--LabApp.extension_manager=readonly", "--expose-app-in-browser", "--ServerApp.log_level=ERROR"]
        with open(self.folder/"server.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([sys.executable, "-m", module, *argv], stdout=log, stderr=log,
                                            env=os.environ | settings_of(self.folder))
        try: answers(f"http://127.0.0.1:{self.port}/api?token={self.token}", self.process)
        except RuntimeError as e: raise RuntimeError((self.folder/"server.log").read_text(encoding="utf-8")[-2000:]) from e

    def __enter__(self): return self

    def __exit__(self, *_): end(self.process)

    def write(self, name: str, *cells: str):
        "A notebook of these cells"
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook
        kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel), self.work/name)

    def open(self, page, name: str):
        "Open a notebook as a link to it would"
        tree = "lab/tree" if self.kind == "lab" else "notebooks"
        page.goto(f"http://127.0.0.1:{self.port}/{tree}/{name}?token={self.token}&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.evaluate(connected)

    def run(self, page, n: int):
        "Click into a cell, run it, and give its place on the page"
        cell = page.locator(".jp-Notebook .jp-CodeCell").nth(n)
        started = cell.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[[*\d]+\]"))
        for timeout in (10_000, patience):  # a kernel that is only just there may lose the first request
            cell.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
            with suppress(PlaywrightTimeout if timeout < patience else ()):
                started.wait_for(timeout=timeout)
                return cell

    def theme(self, page, name: str):
        "Switch to JupyterLab's light or dark theme"
        page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
                      f"JupyterLab {name.title()}")
        page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str(name == "light").lower())
        page.locator("#jupyterlab-splash").wait_for(state="detached")


def shots() -> Path | None:
    "The folder for pictures of what the tests see, where CLM_NB_SHOTS names one"
    return Path(os.environ["CLM_NB_SHOTS"]) if os.environ.get("CLM_NB_SHOTS") else None


def shot(place, name: str, **options):
    "Keep a picture of a page or a part of it, where they are asked for"
    if not shots(): return
    shots().mkdir(parents=True, exist_ok=True)
    place.screenshot(path=str(shots()/f"{name}.png"), **options)
