"What the tests share: no network, caches of their own, the command line in this process"
import os
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # a closed port: no test can reach the Hub
os.environ.pop("HF_HUB_OFFLINE", None)
threads = os.environ.get("OMP_NUM_THREADS")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on more

import subprocess, sys
from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "Empty caches, for this test only: the folder of clm_nb's own"
    import datasets.config
    folder = tmp_path/"cache"
    monkeypatch.setenv("CLM_NB_CACHE", str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path/"datasets_cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"datasets_cache")
    return folder


@pytest.fixture
def clm_nb(tmp_path, monkeypatch, capfd):
    "A function that runs the command line: (exit status, what it printed, its errors); in an empty folder"
    from clm_nb.cli import main
    (tmp_path/"work").mkdir()
    monkeypatch.chdir(tmp_path/"work")
    def run(*argv):
        capfd.readouterr()
        try: status = main([str(a) for a in argv])
        except SystemExit as exit: status = exit.code
        return status, *capfd.readouterr()
    return run


def python(code: str, *argv, **env):
    "Start another Python process on `code`, with these environment variables; see `answer`"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], env=os.environ | {k: str(v) for k, v in env.items()},
                            cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process) -> str:
    "What the process printed, when it has ended well"
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out
