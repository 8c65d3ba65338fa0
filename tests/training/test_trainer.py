"What the trainer measures in the middle of a run and after it, against perplexity and against itself"
import shutil

import pytest, torch
from transformers import TrainerCallback
import clm_nb.model.loss
from clm_nb.collate import BlockRows
from clm_nb.generate import generate
from clm_nb.perplexity import perplexity
from clm_nb.model.loss import linear_losses
from short_runs import losses, on_disk, make_blocks, run
from tiny import bf16_or_not, gpt2, llama, tokenizer


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
