"The loop you own: the losses of `train`, a recorded step that a stand-in repeats, and what it refuses"
import os, subprocess, sys
from copy import deepcopy
from pathlib import Path
import pytest, torch
from datasets import Dataset, DatasetDict
from clm_nb.core import fit, perplexity, push_each_epoch, train
from clm_nb.model import recorded as recorded_room
from clm_nb.training import captured, fit as room
from clm_nb.training.diverged import TrainingDiverged
import tiny
from hub import Hub
from short_runs import make_blocks

tokenizer, secret = tiny.tokenizer(), "hf_secretsecret"


def some_blocks(rows: int, tokens: int = 16, **columns) -> Dataset:
    ids = torch.randint(1, 300, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    return Dataset.from_dict({"input_ids": ids.tolist()} | columns)


blocks = DatasetDict(train=some_blocks(22), test=some_blocks(6))


def losses_of_train(model, blocks, folder, epochs=2, **settings) -> list[float]:
    trainer = train(model, blocks, tokenizer, folder, num_train_epochs=epochs, logging_strategy="epoch", eval_strategy="no", save_strategy="no", use_cpu=True,
                    disable_tqdm=True, **settings)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] + [perplexity(model, blocks["test"]).loss]


def losses_of_fit(model, blocks, epochs=2, **settings) -> list[float]:
    history = fit(model, blocks, epochs, **settings)
    return [entry["loss"] for entry in history] + [history[-1]["eval_loss"]]


@pytest.mark.parametrize("settings", [{}, dict(weight_decay=0.5), dict(warmup_steps=3), dict(warmup_steps=0.4, seed=7)], ids=str)
def test_the_losses_are_those_of_train(settings, tmp_path, cache, monkeypatch):
    "with dropout, a short last batch, decay and warm-up"
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    start = tiny.gpt2(dropout=0.1)
    theirs = losses_of_train(deepcopy(start), blocks, tmp_path/"run", learning_rate=5e-3, **settings)
    assert losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3, **settings) == pytest.approx(theirs, abs=2e-6)
    assert theirs[1] < theirs[0] - 0.01


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_schedules_are_those_of_train(schedule, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    start = tiny.gpt2()
    theirs = losses_of_train(deepcopy(start), blocks, tmp_path/"run", learning_rate=5e-3, lr_scheduler_type=schedule)
    assert losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3, schedule=schedule) == pytest.approx(theirs, abs=2e-6)


@pytest.mark.parametrize("kind", ["padded", "apart", "labelled"])
@pytest.mark.parametrize("family", tiny.families)
def test_rows_of_every_kind_count_as_in_train(kind, family, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    part = make_blocks(kind)
    if kind == "labelled": part = part.add_column("labels", [[-100]*4 + row[4:] for row in part["input_ids"]])
    data, start = DatasetDict(train=part, test=part), tiny.families[family]()
    theirs = losses_of_train(deepcopy(start), data, tmp_path/"run", learning_rate=5e-3)
    assert losses_of_fit(deepcopy(start), data, learning_rate=5e-3) == pytest.approx(theirs, abs=2e-5)


def test_the_groups_are_those_of_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments
    model = tiny.gpt2()
    theirs = Trainer(model, TrainingArguments(tmp_path, weight_decay=0.1, report_to="none")).create_optimizer().param_groups
    ours = room.adamw(model, 1e-3, 0.1).param_groups
    assert [[set(map(id, g["params"])), g["weight_decay"]] for g in ours] == [[set(map(id, g["params"])), g["weight_decay"]] for g in theirs]


@pytest.fixture
def stand_in(monkeypatch):
    "In the place of a GPU: work that is recorded is done when it is repeated; what was recorded"
    recorded = []
    monkeypatch.setattr(recorded_room, "aside", lambda work: work())
    monkeypatch.setattr(recorded_room, "recording", lambda work: recorded.append(work) or work)
    def quickest(model, optimizer, rows):
        return captured.CapturedStep(room.TrainingStep(model, optimizer), "cpu", rows)
    monkeypatch.setattr(room, "quickest_step", quickest)
    return recorded


@pytest.mark.parametrize("mask", [None, "short rows"])
def test_recorded_steps_give_the_losses_of_plain_ones(mask, stand_in, monkeypatch):
    "also with a filled last batch, and with one whose mask hides something"
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    data = blocks
    if mask: data = DatasetDict(train=some_blocks(22, attention_mask=[[1]*16]*18 + [[1]*9 + [0]*7]*4), test=blocks["test"])
    start, steps = tiny.gpt2(), []
    filled = losses_of_fit(deepcopy(start), data, learning_rate=5e-3, batch_size=4)
    assert len(stand_in) == 1
    monkeypatch.setattr(room, "quickest_step", lambda model, optimizer, rows: room.TrainingStep(model, optimizer))
    assert filled == pytest.approx(losses_of_fit(deepcopy(start), data, learning_rate=5e-3, batch_size=4), abs=2e-6)


def test_a_step_that_cannot_be_recorded_stays_plain(stand_in, monkeypatch, caplog):
    def refuse(work): raise RuntimeError("operation not permitted when stream is capturing")
    monkeypatch.setattr(recorded_room, "recording", refuse)
    recorded_room.tell.cache_clear()
    start = tiny.gpt2()
    plain = losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3)
    assert "one operation at a time, which is slower: recording one fails here" in caplog.text
    monkeypatch.setattr(room, "quickest_step", lambda model, optimizer, rows: room.TrainingStep(model, optimizer))
    assert plain == pytest.approx(losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3), abs=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_recorded_steps_give_the_losses_of_plain_ones(monkeypatch):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    start, recorded, real = tiny.gpt2(), [], recorded_room.recording
    monkeypatch.setattr(recorded_room, "recording", lambda work: recorded.append(work) or real(work))
    quick = losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3, batch_size=4)
    assert len(recorded) == 1
    monkeypatch.setattr(room, "quickest_step", lambda model, optimizer, rows: room.TrainingStep(model, optimizer))
    assert quick == pytest.approx(losses_of_fit(deepcopy(start), blocks, learning_rate=5e-3, batch_size=4), abs=1e-4)


def test_a_small_part_of_a_loop_is_small():
    import inspect
    code = [o for o in inspect.getsource(fit).splitlines() if o.strip()]
    assert len(code) <= 40


def test_callbacks_see_the_model_and_the_history_after_each_epoch():
    seen = []
    model = tiny.gpt2()
    fit(model, blocks, 3, callbacks=(lambda m, history: seen.append((m is model, m.training, len(history))),))
    assert seen == [(True, False, 1), (True, False, 2), (True, False, 3)]


@pytest.mark.parametrize("options, words", [
    (dict(epochs=0), "epochs=0"), (dict(epochs=1.5), "epochs=1.5"), (dict(batch_size=0), "per_device_train_batch_size=0"), (dict(learning_rate="fast"), "learning_rate='fast'"),
    (dict(weight_decay=-1), "weight_decay=-1"), (dict(warmup_steps=-1), "warmup_steps=-1"), (dict(schedule="steep"), "steep"), (dict(seed=-1), "seed=-1")])
def test_numbers_that_no_training_can_have_are_refused_at_once(options, words, monkeypatch):
    def begun(*args): pytest.fail("it began")
    monkeypatch.setattr(room, "quickest_step", begun)
    with pytest.raises(ValueError, match=words): fit(tiny.gpt2(), blocks, **options)


def test_a_loss_that_is_no_number_ends_it():
    model = tiny.gpt2()
    with pytest.raises(TrainingDiverged, match="step 2 of the epoch .* lower learning_rate"):
        with torch.no_grad(): model.transformer.wte.weight[5] = torch.nan
        room.epoch_loss([torch.tensor(1.0), torch.tensor(torch.nan)], [torch.tensor(3)]*2)
    with pytest.raises(TrainingDiverged): fit(model, blocks, learning_rate=1e-3)
    assert not model.training


pushing = """
import sys, tempfile
from datasets import Dataset, DatasetDict
from clm_nb.core import fit, push_each_epoch
import tiny
part = Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9]]*6})
push = push_each_epoch("me/small", tiny.tokenizer(), token=sys.argv[1])
print(len(fit(tiny.gpt2(), DatasetDict(train=part, test=part), 2, callbacks=(push,))))
"""


@pytest.fixture
def hub():
    hub = Hub({secret: "me"})
    yield hub
    hub.close()


def pushed(hub, tmp_path, token=secret):
    "What a process that knows this Hub prints, and says, while it fits and pushes"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path/"home"), CLM_NB_CACHE=str(tmp_path/"cache"), PYTHONPATH=path)
    return subprocess.run([sys.executable, "-c", pushing, token], env=env, text=True, capture_output=True, timeout=tiny.patience)


def test_each_epoch_is_pushed_and_a_push_that_fails_ends_nothing(hub, tmp_path):
    done = pushed(hub, tmp_path)
    repo = hub.repos["model", "me/small"]
    assert done.returncode == 0 and done.stdout.split() == ["2"], done.stderr
    assert {"model.safetensors", "tokenizer.json"} <= set(repo.at()) and any("Epoch 2: perplexity" in message for message in repo.messages)
    with hub.failing("refuse"): done = pushed(hub, tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["2"], done.stderr
    assert "Epoch 1 wasn't pushed: the Hub refused (403)" in done.stderr and secret not in done.stderr


def test_a_push_that_cannot_be_is_refused_before_any_training(hub, tmp_path):
    with hub.failing("closed"): done = pushed(hub, tmp_path)
    assert done.returncode == 1 and not done.stdout and "can't be reached" in done.stderr
    assert "the Hub refused (401)" in pushed(hub, tmp_path, "hf_unknownunknown").stderr
