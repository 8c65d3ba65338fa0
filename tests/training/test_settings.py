"The batch that fits, whatever the memory: the rows of a step stay, and all else is as it was"
import json

import pytest, torch
from datasets import DatasetDict
from transformers import TrainingArguments
import clm_nb.model.loss, clm_nb.training.plan, clm_nb.training.settings
from clm_nb.model.loss import linear_cross_entropy
from clm_nb.training.amounts import limits
from clm_nb.model.model import load_model
from clm_nb.training.lr_finder import find_lr
from clm_nb.training.settings import bring_weights, fit_batch, training_arguments, training_settings
from clm_nb.train import train
from short_runs import make_blocks, parameters, run
from tiny import auto, gpt2, tokenizer


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
    (dict(metric_for_best_model="eval_bleu"), "isn't measured"), (dict(per_device_eval_batch_size=0), "per_device_eval_batch_size=0 can't be used. Use a number from 1 to"),
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
    ("learning_rate", "1e-3"), ("num_train_epochs", None), ("max_steps", "9"), ("seed", None), ("seed", 1.5), ("learning_rate", True), ("seed", True), ("per_device_train_batch_size", 2.5),
    ("per_device_train_batch_size", "8"), ("gradient_accumulation_steps", None),
    ("lr_scheduler_kwargs", "x"), ("lr_scheduler_type", "x"), ("torch_compile_backend", "x"), ("torch_compile_mode", "x"), ("optim", "galore_adamw"),
    ("bf16", {}), ("fp16", "false"), ("load_best_model_at_end", "yes"), ("use_cpu", 2), ("report_to", True), ("report_to", -1.5), ("report_to", {"x": 1}),
    ("accelerator_config", "not/there.json"), ("deepspeed", "not/there.json"), ("fsdp", "x"), ("gradient_checkpointing_kwargs", "{")], ids=str)
def test_what_no_training_can_have_is_one_line_with_a_next_step(name, value, tmp_path):
    "Numbers out of bounds by their name; words by a trial of the optimiser, the schedule and the compiler"
    with pytest.raises(ValueError, match="Use a number|Use 1 or more|Use True or False|Use 'none', 'all', or names|--help_training") as error:
        training_arguments(tmp_path/"run", **training_settings(**{name: value}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and not (tmp_path/"run").exists()


@pytest.mark.parametrize("given", [dict(adam_beta1=0), dict(adam_beta2=0), dict(label_smoothing_factor=1), dict(label_smoothing_factor=0.5), dict(data_seed=None),
                                   dict(warmup_steps=0.1), dict(warmup_steps=3), dict(num_train_epochs=0.5), dict(learning_rate=1), dict(eval_steps=None)], ids=str)
def test_what_a_training_can_have_is_taken_as_it_was_given(given, tmp_path):
    args = training_arguments(tmp_path, **training_settings(**given))
    assert {name: getattr(args, name) for name in given} == given


def types(model): return {str(p.dtype).removeprefix("torch.") for p in model.parameters()}


def moved(model, before): return (parameters(model) != before.to(parameters(model).dtype)).float().mean().item()


tutorial = dict(max_steps=20, learning_rate=2e-5, optim="adamw_torch", weight_decay=0.01)


@pytest.mark.parametrize("kind,short", [("GPT2", torch.bfloat16), ("GPT2", torch.float16), ("Qwen2", torch.bfloat16), ("Mamba", torch.bfloat16)])
def test_nearly_all_weights_move_whatever_type_the_model_comes_in(kind, short, tmp_path, caplog):
    "In bf16, a step of 2e-5 would leave nearly all of them; it is the object that was given, and it is saved as it was trained"
    model = tiny_of(kind).to(short)
    before, objects = parameters(model).clone(), list(map(id, model.parameters()))
    trainer = run(tmp_path/"run", model, **tutorial)
    assert trainer.model is model and list(map(id, model.parameters())) == objects
    assert moved(model, before) > 0.95 and types(model) == {"float32"}
    said = [r.message for r in caplog.records if "saved in float32" in r.message]
    assert len(said) == 1 and said[0].count("\n") == 0 and str(short).removeprefix("torch.") in said[0] and "dtype='auto'" in said[0]
    assert types(load_model(tmp_path/"run", dtype="auto")) == {"float32"}
    assert json.loads((tmp_path/"run/config.json").read_bytes())["dtype"] == "float32"


def tiny_of(kind): return gpt2() if kind == "GPT2" else auto(kind)


def test_told_so_weights_are_trained_in_bf16(tmp_path, caplog):
    for number, (dtype, model) in enumerate([("auto", gpt2().bfloat16()), ("bfloat16", gpt2()), (torch.bfloat16, gpt2().bfloat16())]):
        before = parameters(model).clone()
        run(tmp_path/f"{number}", model, dtype=dtype, **tutorial | dict(max_steps=5))
        assert types(model) == {"bfloat16"} and moved(model, before) < 0.9
        assert types(load_model(tmp_path/f"{number}", dtype="auto")) == {"bfloat16"}
    said = [r.message for r in caplog.records if "saved in bfloat16" in r.message]
    assert len(said) == 3 and all("2e-05" in line and "dtype='float32'" in line for line in said)


@pytest.mark.parametrize("dtype,model", [("float16", gpt2()), (torch.float16, gpt2()), ("auto", gpt2().half()), ("int8", gpt2()),
                                         (None, gpt2()), (3, gpt2())], ids=str)
def test_a_type_that_nothing_is_trained_in_is_refused_before_anything_is_written(dtype, model, tmp_path):
    was = types(model)
    with pytest.raises(ValueError, match="no type that weights are trained in. Use 'float32', 'bfloat16', or 'auto'"):
        run(tmp_path/"run", model, dtype=dtype)
    assert types(model) == was and not (tmp_path/"run").exists()


def test_weights_of_32_bits_and_frozen_ones_stay_as_they_are(tmp_path, caplog):
    model = gpt2()
    model.transformer.bfloat16().requires_grad_(False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().float())
    bring_weights(model)
    assert types(model) == {"bfloat16", "float32"}
    bring_weights(double := gpt2().double())
    assert types(double) == {"float64"} and not caplog.records


def test_the_users_own_optimizer_moves_the_weights_that_were_brought(tmp_path):
    model = gpt2().bfloat16()
    before, optimizer = parameters(model).clone(), torch.optim.AdamW(model.parameters(), lr=2e-5)
    run(tmp_path/"run", model, optimizer=optimizer, **tutorial | dict(lr_scheduler_type="constant"))
    assert moved(model, before) > 0.95


def test_a_sweep_is_made_in_float32_and_gives_the_model_back_in_bf16():
    settings = dict(per_device_train_batch_size=8, bf16=False, use_cpu=True, steps=20, start=1e-4, end=1e-2)
    data, model = DatasetDict(train=make_blocks()), gpt2().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find_lr(model, data, tokenizer(), **settings)
    assert all(torch.equal(before[name], tensor) and before[name].dtype == tensor.dtype for name, tensor in model.state_dict().items())
    assert found.raw == find_lr(gpt2().bfloat16().float(), data, tokenizer(), **settings).raw
