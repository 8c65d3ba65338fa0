"The batch that fits, whatever the memory: the rows of a step stay, and all else is as it was"
import pytest, torch
from transformers import TrainingArguments
import clm_nb.model.loss, clm_nb.training.plan, clm_nb.training.settings
from clm_nb.model.loss import linear_cross_entropy
from clm_nb.training.amounts import limits
from clm_nb.training.settings import fit_batch, training_arguments, training_settings
from clm_nb.train import train
from short_runs import parameters, run
from tiny import gpt2


def arguments(tmp_path, batch=12, accumulation=1, **kwargs):
    return TrainingArguments(str(tmp_path), per_device_train_batch_size=batch, use_cpu=True, report_to="none",
                             gradient_accumulation_steps=accumulation, **kwargs)


class Memory:
    "A model's forward that fits `most` rows"
    def __init__(self, model, most):
        self.asked, forward = [], type(model).forward
        def limited(this, input_ids=None, *args, **kwargs):
            if input_ids.shape[-1] == 8: self.asked.append(len(input_ids))
            if len(input_ids) > max(most, 2*(input_ids.shape[-1] == 4)): raise torch.OutOfMemoryError
            return forward(this, input_ids, *args, **kwargs)
        model.__class__ = type("Limited", (type(model),), dict(forward=limited))


@pytest.mark.parametrize("batch,accumulation,most,expected", [
    (12, 1, 12, (12, 1)), (12, 1, 7, (6, 2)), (3, 4, 5, (4, 3)), (7, 1, 6, (1, 7)),
    (2, 6, 99, (12, 1)), (1, 1, 1, (1, 1))])
def test_fit_batch_keeps_the_rows_of_a_step_and_all_else_as_it_was(batch, accumulation, most, expected, tmp_path):
    model, args = gpt2(dropout=0.5).train(), arguments(tmp_path, batch, accumulation)
    model.transformer.h[0].eval()
    memory, before = Memory(model.transformer, most), parameters(model).clone()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fit_batch(model, args, 8)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected
    assert memory.asked[-1] == expected[0] and memory.asked == sorted(memory.asked, reverse=True)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(parameters(model), before)
    assert all(p.grad is None for p in model.parameters()) and "forward" not in vars(model)
    assert [m.training for m in model.modules()] == modes


def test_the_batch_is_fitted_with_the_loss_that_will_be_used(tmp_path, counted):
    counted(clm_nb.model.loss, "linear_cross_entropy")
    fit_batch(gpt2(), arguments(tmp_path), 8)
    assert counted.calls["linear_cross_entropy"] == 1


def test_where_not_one_row_fits_it_says_so(tmp_path):
    model, args = gpt2(), arguments(tmp_path)
    Memory(model.transformer, 0)
    with pytest.raises(ValueError, match="one row of 8 tokens"): fit_batch(model, args, 8)
    assert not model.training and args.per_device_train_batch_size == 12
    assert all(p.grad is None for p in model.parameters())


def test_on_a_cpu_the_batch_is_the_one_asked_for(tmp_path, counted):
    counted(clm_nb.training.plan, "fit_batch")
    run(tmp_path, gpt2(), max_steps=1)
    assert not counted.calls


def test_no_loss_is_summed_in_fp16(tmp_path):
    "Where a thousand tokens could overflow"
    for fp16 in (False, True):
        args = arguments(tmp_path)
        args.fp16 = fp16
        with clm_nb.training.settings.step_loss(gpt2(), args) as fused: assert fused is not fp16


@pytest.mark.parametrize("asked,words", [
    (dict(metric_for_best_model="accuracy"), "metric_for_best_model='accuracy' isn't measured. Use 'loss' or 'perplexity'"),
    (dict(metric_for_best_model="eval_bleu"), "isn't measured"), (dict(per_device_eval_batch_size=0), "is no batch"),
    (dict(num_train_epochs=0), "trains nothing"), (dict(report_to="tensorbord"), "is no integration")], ids=str)
def test_a_setting_that_would_fail_late_is_refused_at_the_door(asked, words, tmp_path):
    with pytest.raises(ValueError, match=words) as refused: training_arguments(tmp_path, **training_settings(**asked))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["loss", "eval_loss", "perplexity", "eval_perplexity", None])
def test_the_figures_of_an_evaluation_may_choose_the_best_checkpoint(name, tmp_path):
    assert training_arguments(tmp_path, **training_settings(metric_for_best_model=name)).metric_for_best_model == name


def test_workers_that_would_run_a_script_again_are_refused_at_the_door(tmp_path, monkeypatch):
    script = tmp_path/"script.py"
    script.write_text("train()", encoding="utf-8")
    monkeypatch.setattr("__main__.__file__", str(script), raising=False)
    monkeypatch.setattr("clm_nb.data.processes.begins_with_nothing", lambda library: True)
    with pytest.raises(RuntimeError, match="dataloader_num_workers=2 starts new processes"):
        training_arguments(tmp_path, **training_settings(dataloader_num_workers=2))
    assert training_arguments(tmp_path, **training_settings(dataloader_num_workers=0)).dataloader_num_workers == 0


@pytest.mark.parametrize("name, value", [
    *[(name, float("nan")) for name in limits if isinstance(limits[name][0], float) or name.startswith(("adam", "learning", "weight", "warmup"))],
    ("learning_rate", -1.0), ("weight_decay", -1.0), ("adam_beta1", 1.0), ("adam_beta2", -0.5), ("adam_epsilon", 0.0), ("seed", -1), ("seed", 2**70),
    ("data_seed", -1), ("max_steps", 10**400), ("dataloader_num_workers", -1), ("dataloader_num_workers", 10**9), ("warmup_steps", float("inf")),
    ("per_device_train_batch_size", 10**30), ("neftune_noise_alpha", -1.0), ("label_smoothing_factor", 2.0), ("learning_rate", [1]),
    ("lr_scheduler_kwargs", "x"), ("lr_scheduler_type", "x"), ("torch_compile_backend", "x"), ("torch_compile_mode", "x"), ("optim", "galore_adamw"),
    ("accelerator_config", "not/there.json"), ("deepspeed", "not/there.json"), ("fsdp", "x"), ("gradient_checkpointing_kwargs", "{")], ids=str)
def test_what_no_training_can_have_is_one_line_with_a_next_step(name, value, tmp_path):
    "Numbers out of bounds by their name; words by a trial of the optimiser, the schedule and the compiler"
    with pytest.raises(ValueError, match="Use a number|Use 1 or more|--help_training") as error:
        training_arguments(tmp_path/"run", **training_settings(**{name: value}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and not (tmp_path/"run").exists()
