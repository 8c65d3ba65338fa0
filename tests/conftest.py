"What the tests share: no network, caches of their own, the command line in this process"
import os
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # a closed port: no test can reach the Hub
os.environ.pop("HF_HUB_OFFLINE", None)
threads = os.environ.get("OMP_NUM_THREADS")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on more

import shutil, socket, subprocess, sys
from collections import Counter
from pathlib import Path

import pytest


environ = os.environ
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


def pytest_collection_modifyitems(items):
    "Files that take minutes come first, so that neither of two processes is left alone with one at the end"
    long = "test_docs", "test_readme", "test_browser", "test_checkpoint", "test_cli", "test_train"
    items.sort(key=lambda item: item.path.stem not in long)


@pytest.fixture(autouse=True)
def one_environment():
    "`Dataset.map(num_proc=2)` puts a copy in the place of `os.environ`, on which monkeypatch can't undo its changes"
    yield
    os.environ = environ


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "Empty caches, for this test only: the folder of clm_nb's own"
    import datasets.config
    folder = tmp_path/"cache"
    monkeypatch.setenv("CLM_NB_CACHE", str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path/"datasets_cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"datasets_cache")
    return folder


@pytest.fixture(autouse=True)
def asked_before(tmp_path_factory):
    "What is tried once in a process isn't tried in the middle of a test that counts calls or watches numbers"
    trial, trainer = (sys.modules.get(f"clm_nb.training.{name}") for name in ("trial", "trainer"))
    if not trial or not trainer or trial in asked: return
    from transformers import TrainingArguments
    from clm_nb.model.device import hardware_has_bf16
    for bf16 in {False, hardware_has_bf16("cpu")}:
        folder = tmp_path_factory.mktemp("trial")
        trial.counting_works(trainer.CausalTrainer, TrainingArguments(folder, use_cpu=True, report_to="none", bf16=bf16))
    asked.append(trial)


asked = []


@pytest.fixture
def asked_anew():
    "What is tried once in a process is tried again, in this test and after it"
    from clm_nb.probe import forget
    forget()
    yield
    forget()
    asked.clear()


@pytest.fixture
def counted(monkeypatch):
    "Counts the calls of functions: `counted(module, name)` from then on, `counted.calls[name]`"
    from tiny import everywhere
    def count(module, name):
        function = getattr(module, name)
        def spy(*args, **kwargs):
            count.calls[name] += 1
            return function(*args, **kwargs)
        everywhere(monkeypatch, module, name, spy)
    count.calls = Counter()
    return count


def python(code: str, *argv, **env):
    "Start another Python process on `code`, with these environment variables; see `answer`"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | dict(PYTHONPATH=path) | {k: str(v) for k, v in env.items()}
    return subprocess.Popen([sys.executable, "-c", code, *argv], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process) -> str:
    "What the process printed, when it has ended well"
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def link(path, target):
    "A symbolic link; the test is skipped where nobody may make one, as on Windows by default"
    try: path.symlink_to(target)
    except OSError: pytest.skip("no symbolic links here")


def ranks(n: int) -> list[dict]:
    "The environments of `n` processes that work together, as torchrun sets them"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [dict(WORLD_SIZE=n, RANK=i, LOCAL_RANK=i, MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for i in range(n)]
