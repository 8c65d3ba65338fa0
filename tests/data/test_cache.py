"What is found in the cache is what was put there"
import logging, os, signal, subprocess, sys, time
from types import SimpleNamespace

import datasets, pytest
from datasets import Dataset, DatasetDict
import clm_nb.data.whole
from clm_nb.data.cache import cache_fault, cache_folder, fingerprint, made_once, sweep_cache
from clm_nb.group import group
from clm_nb.tokenize import tokenize
from tiny import tokenizer

datasets.disable_progress_bars()
rows = [f"The {n}th text of a small corpus." for n in range(40)]


def blocks(**how):
    "Tokens and blocks of a small corpus"
    return group(tokenize(DatasetDict(train=Dataset.from_dict({"text": rows})), tokenizer(), **how), 8)["train"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    path.write_bytes(data)


damages = {"cut": lambda p: p.write_bytes(p.read_bytes()[:-40]), "flipped": flip, "gone": lambda p: p.unlink(), "empty": lambda p: p.write_bytes(b"")}


@pytest.mark.parametrize("damage", damages)
@pytest.mark.parametrize("kind", ["tokens", "blocks"])
def test_a_damaged_result_is_made_anew(kind, damage, cache, caplog):
    expected = blocks()["input_ids"][:]
    (path,) = (cache/kind).rglob("*.arrow")
    damages[damage](path)
    assert blocks()["input_ids"][:] == expected and "is damaged" in caplog.text and "made anew" in caplog.text
    caplog.clear()
    assert blocks()["input_ids"][:] == expected and not caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change that programs can't set")
def test_a_result_is_read_once_and_again_after_each_change(cache, monkeypatch, counted, caplog):
    def make(folder): (folder/"a").write_text("whole", encoding="utf-8")
    def found(): return (made_once("tokens", "key", make)/"a").read_text(encoding="utf-8")
    assert found() == "whole"
    counted(clm_nb.data.whole, "file_digest")
    assert (found(), found()) == ("whole", "whole") and counted.calls["file_digest"] == 2  # it may still change within a tick of the clock
    monkeypatch.setattr(clm_nb.data.whole, "time", SimpleNamespace(time=lambda: time.time() + 10))
    assert (found(), found(), found()) == ("whole",)*3 and counted.calls["file_digest"] == 3
    path = cache/"tokens/key/a"
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found() == "whole" and "is damaged (a has changed)" in caplog.text


def test_with_two_processes_the_same_is_found_again(cache):
    one = blocks(num_proc=2)["input_ids"][:]
    times = {p: p.stat().st_mtime_ns for p in cache.rglob("*.arrow")}
    assert blocks(num_proc=2)["input_ids"][:] == one and {p: p.stat().st_mtime_ns for p in cache.rglob("*.arrow")} == times


def test_a_list_that_cannot_be_read_is_a_damage(cache):
    def make(folder): (folder/"a").write_text("a", encoding="utf-8")
    folder = made_once("models", "key", make)
    for text in ("{", "[]", "3", '{"a": 1}'):
        (folder/"files.json").write_text(text, encoding="utf-8")
        assert text == "[]" or cache_fault(folder)
    assert (made_once("models", "key", make)/"a").read_text(encoding="utf-8") == "a"


killed = """
import os, signal, sys
from clm_nb.data.cache import made_once
def make(folder):
    (folder/"a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
made_once("tokens", "key", make)
"""


def test_what_a_killed_program_left_half_made_is_swept_and_never_found(cache):
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert [p.name for p in (cache/"tokens").iterdir() if p.is_dir()] == ["_new-key"]
    assert [p.name for p in sweep_cache()] == ["_new-key"] and sweep_cache() == []
    folder = made_once("tokens", "key", lambda folder: (folder/"a").write_text("whole", encoding="utf-8"))
    assert (folder/"a").read_text(encoding="utf-8") == "whole"


def test_what_is_being_made_is_not_swept(cache):
    "As another notebook's `prepare` would, in the middle of the making"
    swept = []

    def make(folder):
        (folder/"a").write_text("half", encoding="utf-8")
        swept.append(sweep_cache())

    folder = made_once("tokens", "alive", make)
    assert swept == [[]] and (folder/"a").read_text(encoding="utf-8") == "half"
