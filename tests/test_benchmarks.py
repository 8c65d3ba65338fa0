"The benchmarks: the peers do the same work as ours, a case answers in JSON, a failure is a row. Never a time."
import json, math, sys

import datasets, numpy as np, pytest
from datasets import Dataset, DatasetDict
from clm_nb.core import flatten, group, perplexity, prepare, tokenize, train, tutorial_choices
from tree import root
import tiny

sys.path.append(str(root/"benchmarks"))
import cases, peers, report, run

block_size = 16


@pytest.fixture
def records(cache):
    "Nested records of tiny texts, on disk, as the benchmarks read them"
    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    texts = lambda: [str(t) for t in rng.choice(tiny.texts, rng.integers(1, 4))]
    rows = [{"q_id": str(i), "answers": {"text": texts()}} for i in range(1300)]
    DatasetDict(train=Dataset.from_list(rows[:1200]), test=Dataset.from_list(rows[1200:])).save_to_disk(cache/"records")
    return datasets.load_from_disk(cache/"records")


def ids(blocks): return {split: part.with_format(None)["input_ids"][:] for split, part in blocks.items()}


def ours(records, add_eos=False, allow_special=False, remainder="drop"):
    return group(tokenize(flatten(records), tiny.tokenizer(), add_eos, allow_special), block_size, remainder)


def test_the_peers_do_the_work_that_ours_does(records):
    tokenizer = tiny.tokenizer()
    wanted = ids(ours(records, **tutorial_choices))
    assert ids(peers.tutorial(records, tokenizer, block_size, num_proc=None)) == wanted
    assert ids(peers.run_clm(records, tokenizer, block_size, num_proc=None)) == wanted


def test_trl_packs_the_same_tokens(records):
    pytest.importorskip("trl")
    packed = ids(peers.trl(records, tiny.tokenizer(), block_size, num_proc=None))
    flat = {split: sum(rows, []) for split, rows in packed.items()}
    tokens = ids(peers.tokenized(records, tiny.tokenizer(), None))
    assert flat == {split: sum(rows, []) for split, rows in tokens.items()}


def test_trainer_and_ours_learn_the_same(records, tmp_path):
    blocks, losses = ours(records), {}
    settings = dict(max_steps=3, learning_rate=1e-3, weight_decay=0.01, per_device_train_batch_size=8, seed=42,
                    save_strategy="no", eval_strategy="no", bf16=False, use_cpu=True)
    for name in ("ours", "trainer"):
        model = tiny.gpt2()
        clock = cases.make_clock(model, blocks["test"].select(range(16)), [1, 3])
        objects = model, blocks, tiny.tokenizer(), str(tmp_path/name)
        if name == "ours": train(*objects, callbacks=(clock,), disable_tqdm=True, **settings)
        else: peers.train_with_trainer(*objects, clock, settings)
        assert len(clock.seconds) == 3
        losses[name] = clock.losses
    assert [step for step, _ in losses["ours"]] == [1, 3]
    assert losses["ours"][0][1] > losses["ours"][-1][1]
    assert np.allclose(losses["ours"], losses["trainer"], rtol=1e-3)


def test_the_float32_figure_is_the_perplexity(records):
    model, blocks = tiny.gpt2(), ours(records)["test"]
    assert math.isclose(peers.float32_perplexity(model, blocks), perplexity(model, blocks).perplexity, rel_tol=1e-3)


def test_made_up_records_are_always_the_same(monkeypatch):
    monkeypatch.setattr(cases, "sentences", lambda: [f"{i}. {text}" for i, text in enumerate(tiny.texts*60)])
    monkeypatch.setattr(cases, "the_tokenizer", tiny.tokenizer)
    one, other = (cases.made_up_records(40) for _ in range(2))
    assert one[:] == other[:]
    length = np.mean([len(tiny.tokenizer()(" ".join(a["text"])).input_ids) for a in one["answers"]])
    assert 200 < length < 500


def test_a_case_answers_in_json(records, monkeypatch, tmp_path):
    monkeypatch.delenv("CLM_NB_TEST_DATA", raising=False)
    with monkeypatch.context() as m:
        m.delenv("CLM_NB_CACHE")  # the embedded tokenizer, where it was made before
        tokenizer = cases.the_tokenizer()
        found = run.measure("preprocess", "ours", corpus=tmp_path/"cache/records",
                            memory=sys.platform == "linux", block_size=32)
    assert "error" not in found, found
    blocks = prepare(records, tokenizer, block_size=32)
    assert found["blocks"] == sum(map(len, blocks.values())) and found["tokens"] == 32*found["blocks"]
    assert sys.platform != "linux" or found["megabytes"] > 0


def test_the_steps_of_fit_are_those_of_train(records, monkeypatch):
    "In the bench: the same batches in another order, so nearly the same loss"
    monkeypatch.setattr(cases, "setting", lambda model, block_size: (tiny.gpt2(), tiny.tokenizer(), prepare(records, tiny.tokenizer(), block_size=block_size)))
    options = dict(model="tiny", steps=30, held_out=8, block_size=16, learning_rate=1e-3)
    begin = cases.case_fit("ours", **options | dict(steps=8, learning_rate=1e-9))
    fit, train = cases.case_fit("ours", **options), cases.case_train("ours", points=1, **options)
    assert fit["loss"] == pytest.approx(train["loss"], rel=0.02) and fit["loss"] < begin["loss"] - 0.1


def test_a_failure_is_an_answer():
    assert run.measure("nothing", "ours") == {"error": "KeyError: 'case_nothing'"}
    runs = run.side_by_side("nothing", dict(ours=2, theirs=2))
    assert {variant: len(answers) for variant, answers in runs.items()} == dict(ours=1, theirs=1)


def fake(case, variant, **options):
    "An answer with everything in it; TRL fails"
    if variant in ("trl", "sft"): return dict(error="ModuleNotFoundError: No module named 'trl'")
    worse = 1 if variant.startswith("ours") else 50
    return dict(seconds=0.5*worse, first=0.1, again=0.1*worse, process_seconds=4.0, megabytes=100.0*worse,
                tokens=1_000_000, blocks=8000, records=5, tokens_per_second=1000/worse, mfu=0.4/worse, loss=4.0,
                losses=[[1, 5.0], [3, 4.0]], perplexity=55.0, stages={"load": 1.0, "train": 30.0})


def test_every_group_ends_in_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "measure", fake)
    monkeypatch.setattr(run, "answer", lambda *args: {})
    monkeypatch.setenv("CLM_NB_TEST_DATA", "anywhere")
    run.main(["--only", ",".join([*run.groups, "gpu"]), "--scale", "2", "--out", str(tmp_path)])
    text = (tmp_path/"RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith(report.header) and all(f"## {name.capitalize()}" in text for name in run.groups)
    assert "not run: ModuleNotFoundError: No module named 'trl'" in text
    assert "nan" not in text and "| 25.0 s | 0.5 s | **50.0x** | ≥ 40x | yes |" in text
    assert text == report.markdown(json.loads((tmp_path/"results.json").read_bytes()))
    assert all((tmp_path/name).read_bytes().startswith(b"\x89PNG") for name in ("ratios.png", "losses.png"))


def test_what_a_row_says():
    values = lambda *seconds: [dict(seconds=s) for s in seconds]
    faster = report.row("x", "y", values(1, 2, 9), values(5, 7), target=3)
    assert report.ratio(faster) == 3 and report.met(faster)
    slower = report.row("x", "y", values(2), values(1), target=1.7)
    assert report.ratio(slower) == 0.5 and report.met(slower) is False and report.cells(slower)[-2] == "no"
    assert report.ratio(report.row("x", "y", values(6), values(2), better="higher")) == 3
    equal = report.row("x", "y", values(0.98), values(1), better="equal", target=0.01)
    assert report.met(equal) is False and report.cells(equal)[4:6] == ["-2 %", "≤ 1 %"]
    assert report.met(report.row("x", "y", values(0.5), values(1), better="not above", target=0.1))
    assert report.met(report.row("x", "", values(0.6), [], better="below", target=0.5)) is False
    failed = report.row("x", "y", values(1), [dict(error="no | room")], target=3)
    assert report.met(failed) is None and report.cells(failed)[4] == "not run: no / room"
    assert report.row("x", "y", values(1), [{}])["error"] == "no seconds was measured"


@pytest.mark.parametrize("kind", ["bf16", "float32"])
def test_results_are_what_was_measured(kind):
    folder = root/"benchmarks"/kind
    results = json.loads((folder/"results.json").read_bytes())
    assert results["machine"]["kind"] == kind
    assert (folder/"RESULTS.md").read_text(encoding="utf-8") == report.markdown(results), "run `make bench`"
