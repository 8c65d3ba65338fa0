"The page of `clm_nb app` without a browser: what it shows, what it refuses, how it starts and ends"
import json, os, re, signal, socket, subprocess, sys, threading, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat, psutil, pytest
import tiny
from clm_nb.look.serve import Comparison, RunApp, app_notebook, check_app, find_base, find_models
from clm_nb.look.web_page import free_port, page_environment, voila_settings, write_page


def save(folder, source=None, **kwargs):
    "A tiny model's folder; a run folder where `source` is given"
    tiny.gpt2(**kwargs).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    if source is not None: (folder/"run.json").write_text(json.dumps(dict(source=source)), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path): return save(tmp_path/"run", dict(model_name_or_path=str(save(tmp_path/"base", n_head=4))))


@pytest.mark.parametrize("source, says", [
    (dict(config_name="gpt2"), "trained from scratch"), ({}, "doesn't name"), (None, "no run.json"),
    (dict(model_name_or_path="owner/model"), "owner/model, is not on this machine"),
    (dict(model_name_or_path="/no/such/folder"), "/no/such/folder, is not on this machine")])
def test_a_run_without_a_base_says_why(tmp_path, source, says):
    if source is not None: (tmp_path/"run.json").write_text(json.dumps(dict(source=source)), encoding="utf-8")
    base, note = find_base(tmp_path)
    assert base is None and says in note
    assert find_models(tmp_path).names() == {tmp_path.name: str(tmp_path)}


@pytest.mark.parametrize("text", ["", "[1", "[1]", "null"])
def test_a_broken_run_json_costs_the_base_only(tmp_path, text):
    (tmp_path/"run.json").write_text(text, encoding="utf-8")
    assert find_base(tmp_path) == (None, "Its run.json can't be read.")


def test_a_base_in_the_hubs_cache_is_found_without_network(tmp_path, monkeypatch):
    "The layout that huggingface_hub writes, for a branch and for a commit"
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was asked"))
    commit, repo = "a"*40, tmp_path/"models--owner--model"
    snapshot = save(repo/"snapshots"/commit)
    (repo/"refs").mkdir()
    (repo/"refs"/"main").write_text(commit, encoding="utf-8")
    for revision in (None, "main", commit):
        (tmp_path/"run.json").write_text(json.dumps(dict(source=dict(model_name_or_path="owner/model", revision=revision))), encoding="utf-8")
        assert find_base(tmp_path) == (str(snapshot), "")
    (snapshot/"model.safetensors").unlink()
    assert find_base(tmp_path)[0] is None  # a config alone is no model


def test_both_models_are_shown(run):
    app = RunApp(str(run), prompt="The quick", max_new_tokens=3, seed=1)
    assert [*app.app.models] == ["base", "fine-tuned"]
    assert [m.config.n_head for m in app.app.models.values()] == [4, 2]
    assert str(run) in app._repr_html_() and app.app.prompt.value == "The quick"
    app.app.generate()
    app.app.wait(60)
    assert all(app.app.texts.values())


def test_what_can_be_found_is_checked_by_loading_it(run, tmp_path):
    assert check_app(run) == Comparison(str(run), str(tmp_path/"base"))
    (tmp_path/"base"/"model.safetensors").write_bytes(b"broken")
    found = check_app(run)
    assert found.base is None and "can't be loaded" in found.note
    (run/"model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="no causal language model that can be loaded"): check_app(run)


def test_names_are_escaped(tmp_path):
    app = RunApp(Comparison(str(save(tmp_path/"<b>")), note="<script>"))
    assert "<b>" not in app.heading().replace("<b>fine", "") and "<script>" not in app.heading()


def test_the_embedded_run_is_called_by_a_name(run):
    "Its folder in the cache is named by a hash"
    found = Comparison(str(run), "python-docs-gpt2", name="mine, fine-tuned")
    assert "mine, fine-tuned" in RunApp(found).heading() and str(run) not in RunApp(found).heading()
    assert [*replace(found, base=None).names()] == ["mine, fine-tuned"]
    assert find_models().title == "python-docs-gpt2, fine-tuned"


def test_the_notebook_makes_the_app(run):
    "Its code, run here, shows the models that were found, whatever the working directory"
    notebook = app_notebook(find_models(run), prompt='It\'s "quoted"\n')
    nbformat.validate(notebook)
    names = {}
    source, last = notebook.cells[0].source.rsplit("\n", 1)
    exec(source, names)
    app = eval(last, names)
    assert app.found == find_models(run) and app.app.prompt.value == 'It\'s "quoted"\n'


def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch):
    "A kernel of the same name in the home folder doesn't win"
    from jupyter_client.kernelspec import KernelSpecManager
    other = tmp_path/"home"/"kernels"/"clm_nb"
    other.mkdir(parents=True)
    (other/"kernel.json").write_text(json.dumps(dict(argv=["other"], display_name="other", language="python")), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path/"home"))
    notebook = nbformat.read(write_page(tmp_path/"page", app_notebook(Comparison("/run"))), 4)
    for name, value in page_environment(tmp_path/"page").items(): monkeypatch.setenv(name, value)
    assert KernelSpecManager().get_kernel_spec(notebook.metadata.kernelspec.name).argv[0] == sys.executable


def test_only_loopback():
    settings = voila_settings(1234, "x.ipynb", "word")
    assert settings["Voila"]["ip"] == "127.0.0.1" and settings["Voila"]["port_retries"] == 0
    assert not settings["Voila"]["tornado_settings"]["allow_remote_access"]


def test_ports():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port} is taken"): free_port(port)
        assert free_port() != port
    assert free_port(port) == port
    for bad in (-1, 65536):
        with pytest.raises(ValueError, match=f"port={bad} is not a port"): free_port(bad)


command = "import sys; from clm_nb.cli import main; sys.exit(main(sys.argv[1:]))"


def cli(*argv, code=command):
    done = subprocess.run([sys.executable, "-c", code, "app", *map(str, argv)], capture_output=True, text=True, timeout=tiny.patience)
    return done.returncode, done.stdout, done.stderr


def test_voila_missing_is_one_line_before_any_work():
    hidden = """
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"): raise AssertionError(name)
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == "voila" else found(name, *rest)
sys.meta_path.insert(0, Hidden())
""" + command
    assert cli(code=hidden) == (1, "", 'clm_nb: clm_nb app needs Voilà: pip install "clm_nb[app]"\n')


@pytest.mark.parametrize("argv, says", [
    (["--model", "./no/run"], "./no/run is not a folder"), (["--port", "70000"], "port=70000 is not a port"),
    (["--port", "x"], "invalid int value")])
def test_wrong_use_is_one_line(argv, says):
    status, out, err = cli(*argv)
    assert status and not out and says in err and err.count("\n") == 1


def start(run, *argv, code=command):
    process = subprocess.Popen([sys.executable, "-c", code, "app", "--model", str(run), *argv], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S{20,}", line)
    assert address, process.communicate()[1]
    return process, address[0], int(address[1])


def get(address, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=tiny.patience) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.headers, ""


def test_the_server(run, tmp_path, monkeypatch):
    "Answers once its line is out, on loopback only and to its own name only; SIGTERM ends it, its kernel and its files"
    monkeypatch.setenv("TMPDIR", str(tmp_path/"tmp"))
    (tmp_path/"tmp").mkdir()
    process, address, port = start(run)
    try:
        listening = [c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert [c.laddr for c in listening if c.laddr.port == port] == [("127.0.0.1", port)]
        assert get(address, Host="evil.example")[0] == 403
        status, headers, page = get(address)
        assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//(?!127\\.0\\.0\\.1)""", page)
        assert "disable_progress_bar" not in page, "the source is shown"
        kernels = psutil.Process(process.pid).children(recursive=True)
        assert len(kernels) == 1
        assert cli("--model", run, "--port", port)[2].startswith(f"clm_nb: port={port} is taken")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=tiny.patience)
        assert (process.returncode, out) == (0, "clm_nb app: stopped\n") and "Traceback" not in err
        assert not psutil.wait_procs(kernels, timeout=tiny.patience)[1]
        assert not [*(tmp_path/"tmp").glob("clm_nb_app_*"), *(tmp_path/"tmp").glob("voila_*")]
    finally: process.kill()


def test_other_pages_start_no_kernel_and_nobody_starts_many(run):
    "Without the token, from another page, or beyond the limit: no kernel; what a browser's address bar asks starts one"
    process, address, port = start(run, code="import clm_nb.look.web_page as page; page.most_pages = 2\n" + command)
    kernels = lambda: len(psutil.Process(process.pid).children(recursive=True))
    try:
        plain = address.partition("?")[0]
        for wrong in (plain, plain + "?token=", plain + "?token=wrong", plain + "voila/render/app.ipynb"): assert "token" in get(wrong)[2] or get(wrong)[0] >= 400
        elsewhere = [dict(Sec_Fetch_Site="cross-site"), dict(Sec_Fetch_Site="same-site"), dict(Origin="http://evil.example"), dict(Origin="null"),
                     dict(Origin=f"http://127.0.0.1:{port + 1}"), dict(Host="evil.example"), dict(Host=f"evil.example:{port}")]
        for headers in elsewhere: assert get(address, **headers)[0] == 403, headers
        assert kernels() == 0
        with ThreadPoolExecutor(4) as pool: answers = [*pool.map(lambda _: get(address, Sec_Fetch_Site="none")[0], range(4))]
        assert sorted(answers) == [200, 200, 503, 503] and kernels() == 2
    finally:
        process.terminate()
        out, err = process.communicate(timeout=tiny.patience)
        assert (out, process.returncode) == ("clm_nb app: stopped\n", 0)
        assert all(line.startswith("Blocking request with non-local 'Host'") for line in err.splitlines()), err  # and no token


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_server_leaves_no_kernel(run):
    process, address, _ = start(run)
    get(address)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert len(kernels) == 1 and not psutil.wait_procs(kernels, timeout=tiny.patience)[1]


of_windows = """
import asyncio
from voila.app import Voila
initialize = Voila.initialize
def other_policy(self, *given):
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    return initialize(self, *given)
Voila.initialize = other_policy
"""
interrupted_elsewhere = """
import signal, sys, threading
def interrupt():
    sys.stdin.readline()
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="on Windows, both are so without us")
def test_the_server_starts_and_ends_as_on_windows(run):
    "Voilà chooses another kind of event loop while it starts; Ctrl-C doesn't wake a loop that waits"
    process = subprocess.Popen([sys.executable, "-c", of_windows + interrupted_elsewhere + command, "app", "--model", str(run)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    late = threading.Timer(tiny.patience, process.kill)
    late.start()
    try:
        assert "http://127.0.0.1:" in process.stdout.readline()
        assert process.communicate("now\n", timeout=tiny.patience)[0] == "clm_nb app: stopped\n" and process.returncode == 0
    finally:
        late.cancel()
        process.kill()
