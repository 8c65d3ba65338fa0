"A log stays short: what the stages write into a file is counted, and a terminal is left as it was"
import io, json, random, re, sys, time
from contextlib import redirect_stderr

import pytest, tqdm.auto, tqdm.std
import clm_nb.progress
from clm_nb.progress import few_lines
from conftest import python
from tiny import gpt2, texts, tokenizer

between = 5  # seconds, at least, between two lines of a log

stages = """
import sys, time
from pathlib import Path
from clm_nb.core import *
folder, began = Path(sys.argv[1]), time.perf_counter()
tokenizer = load_tokenizer(folder/"model")
documents = flatten(load_corpus(str(folder/"records.jsonl")))
tokens = tokenize(documents, tokenizer, encoder="tokenizers")
blocks = group(tokens, 128)
model = load_model(folder/"model")
train(model, blocks, tokenizer, folder/"run", max_steps=2, per_device_train_batch_size=2, eval_strategy="no", **eval(sys.argv[2]))
print(perplexity(load_model(folder/"run"), blocks["test"].select(range(8)), tokenizer))
print(time.perf_counter() - began)
"""


def written(log: str) -> list[str]: return [line for line in re.split(r"[\r\n]+", log) if line.strip()]


@pytest.mark.parametrize("settings, own", [(dict(disable_tqdm=True), 0), ({}, 3)])
def test_some_thousand_records_through_all_stages_leave_few_lines(settings, own, tmp_path, cache):
    words = " ".join(texts).split()
    records = [" ".join(random.Random(i).choices(words, k=40)) + f" {i}" for i in range(4000)]
    (tmp_path/"records.jsonl").write_text("".join(json.dumps(dict(text=text)) + "\n" for text in records), encoding="utf-8")
    for part in (gpt2(), tokenizer()): part.save_pretrained(tmp_path/"model")
    process = python(stages, str(tmp_path), repr(settings), CLM_NB_CACHE=cache, HF_DATASETS_CACHE=tmp_path/"datasets")
    out, err = process.communicate()
    assert process.returncode == 0, err
    seconds = float(out.splitlines()[-1])
    assert len(written(err)) <= own + seconds/between, err  # the training's own line: as it begins, as it ends, and how fast it was


def bars(n=3, **options):
    "What bars over ten things, an hour by the clock, leave"
    with redirect_stderr(io.StringIO()) as log:
        for _ in range(n):
            for _ in tqdm.auto.tqdm(range(10), **options): time.sleep(0.002)
    return written(log.getvalue())


def test_inside_few_and_outside_as_always():
    assert len(bars()) >= 6
    with few_lines(): assert bars() == []
    with few_lines():
        with few_lines(): assert bars() == []
        assert bars() == []
    assert len(bars()) >= 6


def test_long_work_says_how_far_it_is():
    with few_lines(seconds=0.004): lines = bars(1)
    assert lines and "10/10" in lines[-1]


def test_after_an_error_all_is_as_it_was():
    before = vars(tqdm.std.tqdm)["__init__"]
    with pytest.raises(ZeroDivisionError):
        with few_lines(): 1/0
    assert vars(tqdm.std.tqdm)["__init__"] is before


def test_what_is_asked_for_by_name_is_given():
    with few_lines(): assert len(bars(delay=0, mininterval=0)) > 3*10


@pytest.mark.parametrize("watched", ["terminal", "notebook"])
def test_who_watches_sees_every_bar(watched, monkeypatch):
    terminal = io.StringIO()
    if watched == "terminal": terminal.isatty = lambda: True
    else: monkeypatch.setattr(clm_nb.progress, "notebook_shell", lambda: "live")
    monkeypatch.setattr(sys, "stderr", terminal)
    with few_lines():
        for _ in tqdm.std.tqdm(range(3)): pass
    assert "3/3" in terminal.getvalue()


def test_a_function_under_it_keeps_its_name_and_its_arguments():
    @few_lines()
    def add(a, b=2):
        "A sum"
        return a + b
    assert add(1) == 3 and add.__name__ == "add" and add.__doc__ == "A sum" and add.__wrapped__(1, 1) == 2
