"What the trainer measures in the middle of a run and after it, against perplexity and against itself"
import json, shutil
from collections import Counter

import datasets, pytest, torch, transformers
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback
import clm_nb.model.loss, clm_nb.training.diverged
from clm_nb.collate import BlockRows
from clm_nb.ledger import Ledger, check_ledger
from clm_nb.look.flow import ledger_flow
from clm_nb.generate import generate
from clm_nb.perplexity import perplexity
from clm_nb.model.loss import linear_losses
from clm_nb.training.diverged import TrainingDiverged
from clm_nb.training.trainer import RunTrainer
from short_runs import losses, on_disk, make_blocks, run, short
from tiny import Questions, bf16_or_not, families, gpt2, llama, tokenizer


@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
def test_evaluation_during_training_is_perplexity_with_bf16_off(kind, tmp_path, counted):
    counted(clm_nb.model.loss, "linear_losses")
    options = dict(eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5)
    trainer = run(tmp_path, llama(), make_blocks(kind), **options)
    assert counted.calls["linear_losses"] == 5
    exact = perplexity(trainer.model, trainer.eval_dataset.blocks, bf16=False)
    assert losses(trainer, "eval_loss") == pytest.approx([exact.loss], rel=1e-6)
    assert losses(trainer, "eval_tokens") == [exact.tokens]


@pytest.mark.parametrize("bf16", bf16_or_not)
def test_a_callback_may_measure_and_generate_in_the_middle_of_training(bf16, tmp_path):
    found, data, tok = [], make_blocks(), tokenizer()
    def measured(model):
        text = generate(model, tok, "The", max_new_tokens=4, seed=1)
        return perplexity(model, data, bf16=bf16).loss, text
    class Measures(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs): found.append(measured(model))
    trainer = run(tmp_path, gpt2(), data, callbacks=[Measures()], bf16=bf16)
    after = measured(trainer.model)
    assert len(found) == 3 and found[-1][0] == pytest.approx(after[0], rel=1e-2 if bf16 else 1e-6)
    if not bf16: assert found[-1][1] == after[1]


def test_evaluation_outside_training_takes_the_labels_away(tmp_path):
    model, labelled = gpt2(), []
    trainer = run(tmp_path, model, max_steps=1)
    exact = perplexity(model, trainer.eval_dataset.blocks, bf16=False)
    model.register_forward_pre_hook(lambda m, args, kwargs: labelled.append(kwargs.get("labels")), with_kwargs=True)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact.loss, rel=1e-6)
    assert labelled[0] is None and not trainer.fused


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_gets_views_and_workers_change_nothing(workers, tmp_path):
    data = on_disk(tmp_path/"data", 24, 16)
    trainer = run(tmp_path/"run", gpt2(), data, dataloader_num_workers=workers)
    assert type(trainer.train_dataset) is type(trainer.eval_dataset) is BlockRows
    assert losses(trainer) == losses(run(tmp_path/"other", gpt2(), data))
    tutorial = run(tmp_path/"tutorial", gpt2(), data, exact_loss=False, max_steps=1)
    assert not isinstance(tutorial.train_dataset, BlockRows)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_compiled_model_has_the_losses_of_the_other(tmp_path, monkeypatch):
    # torch's own cache of kernels doesn't ask which vector instructions they were written for
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path/"kernels"))
    data = make_blocks()
    plain, compiled = (losses(run(tmp_path/str(on), gpt2(n_layer=1), data, torch_compile=on)) for on in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-4)


two_epochs = dict(num_train_epochs=2, max_steps=-1)


def graphs(folder, data, **settings):
    "(how many graphs two compiled epochs take, their losses)"
    torch._dynamo.reset()
    counters.clear()
    trainer = run(folder, gpt2(n_layer=1), data, torch_compile=True, torch_compile_backend="eager", **two_epochs, **settings)
    return counters["stats"]["unique_graphs"], losses(trainer)


@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
def test_a_short_last_batch_an_evaluation_and_a_text_are_not_compiled_again(kind, tmp_path):
    "And the losses are those of the plain run"
    data = make_blocks(kind, 26)
    even, _ = graphs(tmp_path/"even", data.select(range(24)))
    more = dict(eval_strategy="epoch", sample_prompt="a b") if kind == "full" else {}
    short, found = graphs(tmp_path/"short", data, **more)
    assert short == even
    assert found == pytest.approx(losses(run(tmp_path/"plain", gpt2(n_layer=1), data, **two_epochs)), rel=1e-6)


def answers(rows=24, block=16, ragged=False):
    "Rows whose first tokens, a few more in each, are questions; some have padding"
    data = make_blocks("padded" if ragged else "full", rows, block)
    def labels(row, i):
        mask = row.get("attention_mask", [1]*block)
        return {"labels": [id if m and place > i % 7 else -100 for place, (id, m) in enumerate(zip(row["input_ids"], mask))]}
    return data.map(labels, with_indices=True)


@pytest.mark.parametrize("family", families)
def test_the_users_own_labels_are_used_in_the_tutorials_way_too(family, tmp_path):
    "The losses are those of plain transformers, whose collator leaves such labels alone"
    data = answers()
    trainer = run(tmp_path/"run", families[family](), data, exact_loss=False, use_cpu=True)
    args = transformers.TrainingArguments(tmp_path/"plain", report_to="none", use_cpu=True, **short)
    plain = transformers.Trainer(families[family](), args, transformers.default_data_collator, data)
    plain.train()
    assert losses(trainer) == losses(plain) != losses(run(tmp_path/"other", families[family](), data.remove_columns("labels"), exact_loss=False, use_cpu=True))


@pytest.mark.parametrize("exact_loss", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_ledger_counts_what_is_not_learnt(exact_loss, ragged, tmp_path):
    data, ledger = answers(ragged=ragged), Ledger()
    run(tmp_path/"run", gpt2(), datasets.DatasetDict(train=data, test=data.select(range(3))), exact_loss=exact_loss, ledger=ledger)
    for split, part in dict(train=data, test=data.select(range(3))).items():
        tokens = sum(map(sum, part["attention_mask"])) if ragged else 16*len(part)
        learnt = sum(label != -100 for row in part["labels"] for label in row)
        assert ledger["learn", split] == dict(tokens=tokens, learnt=learnt, not_learnt=tokens - learnt) and learnt < tokens
        assert json.loads((tmp_path/"run/run.json").read_bytes())["ledger"][split]["learn"] == ledger["learn", split]
    check_ledger(ledger)
    assert "not learnt" in str(ledger) and "not learnt" in ledger_flow(ledger)._repr_html_()
    assert f"{ledger['learn', 'train']['not_learnt']:,} not learnt" in str(ledger_flow(ledger))


def test_blocks_without_labels_have_nothing_to_count(tmp_path):
    run(tmp_path/"run", gpt2(), ledger=(ledger := Ledger()))
    assert not ledger.entries


def test_a_step_asks_the_device_once_whether_its_numbers_are_finite(tmp_path, counted):
    "On a GPU each question waits for all that was sent"
    counted(clm_nb.training.diverged, "gradient_norm")
    asked = []
    for steps in (2, 7):
        with Questions() as questions: run(tmp_path/str(steps), gpt2(), max_steps=steps, eval_strategy="no", save_strategy="no", logging_steps=100)
        asked.append(Counter(file for _, file in questions.asked))
    more = asked[1] - asked[0]
    others = {"model/loss.py", "transformers/masking_utils.py", "accelerate/data_loader.py"}  # what is labelled, and what is masked
    assert more["training/diverged.py"] == 5 and set(more) <= {"training/diverged.py", *others}
    assert not counted.calls  # Trainer knows the length


@pytest.mark.parametrize("settings", [{}, dict(max_grad_norm=0.0), dict(gradient_accumulation_steps=2)])
@pytest.mark.parametrize("told", [True, False])
def test_a_gradient_that_is_no_number_never_reaches_the_weights(told, settings, tmp_path, monkeypatch):
    if not told: monkeypatch.delattr(RunTrainer, "_get_grad_norm")  # of another transformers
    usual, model, calls = RunTrainer.training_step, gpt2(), []
    def spoiled(self, *args, **kwargs):
        loss = usual(self, *args, **kwargs)
        calls.append(loss)
        if len(calls) == 2: next(model.parameters()).grad[0, 0] = float("inf")
        return loss
    monkeypatch.setattr(RunTrainer, "training_step", spoiled)
    with pytest.raises(TrainingDiverged, match="At step [12], .*a gradient is not a finite number"): run(tmp_path, model, **settings)
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_no_number_ends_a_run_also_with_fine_gradients(loss, tmp_path, monkeypatch):
    usual = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *args, **kwargs: usual(self, *args, **kwargs) + float(loss))
    with pytest.raises(TrainingDiverged, match=f"At step 1, .*the loss is {loss}"): run(tmp_path, gpt2())
