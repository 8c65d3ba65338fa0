"A model by name: float32, and its loss named, so that transformers needn't warn; nothing else changes"
import copy, pickle

import pytest, torch
from transformers import GPT2Config, LlamaForCausalLM, Trainer, TrainingArguments
from transformers import AutoModelForCausalLM, modeling_utils
from transformers.loss.loss_utils import ForCausalLMLoss

from clm_nb.data.hub import base_model_folder
from clm_nb.model.device import has_bf16
from clm_nb.model.model import load_model, name_loss, training_flops
from tiny import gpt2, llama

ids = torch.arange(24).reshape(2, 12)


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", lambda text, *_: found.append(text))
    return found


def step(model):
    "(loss, every gradient) of one training step"
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def twins(tmp_path):
    "One GPT-2 loaded by transformers and by us"
    gpt2().save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), load_model(tmp_path)


def test_a_gpt2_trains_without_the_warning_and_with_the_same_losses(tmp_path, warnings):
    theirs, ours = twins(tmp_path)
    (loss, gradients), warned = step(theirs), len(warnings)
    found, same = step(ours)
    assert torch.equal(loss, found) and all(map(torch.equal, gradients, same))
    assert warned == len(warnings) == 1 and "loss_type=None" in warnings[0]


def test_what_is_saved_is_what_it_was(tmp_path):
    theirs, ours = twins(tmp_path/"one")
    for model, name in ((theirs, "theirs"), (ours, "ours")): model.save_pretrained(tmp_path/name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path/"ours"/file).read_bytes() == (tmp_path/"theirs"/file).read_bytes()


def test_what_trainer_makes_of_the_model_is_what_it_was(tmp_path):
    args = TrainingArguments(tmp_path/"run", report_to="none", use_cpu=True)
    theirs, ours = (Trainer(model, args) for model in twins(tmp_path))
    assert ours._loss_shifts_labels == theirs._loss_shifts_labels and ours.model.loss_type is None


def test_a_copy_of_the_model_has_the_loss_too(tmp_path, warnings):
    ours = twins(tmp_path)[1]
    for model in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))): step(model)
    assert warnings == []


def test_a_model_that_knows_its_loss_keeps_it():
    class Own(LlamaForCausalLM):
        def loss_function(self, *args, **kwargs): return None
    own = llama()
    own.__class__ = Own
    assert "_loss_function" not in vars(name_loss(llama())) and "loss_function" not in vars(name_loss(own))
    assert name_loss(gpt2()).loss_function is ForCausalLMLoss


def test_a_model_from_scratch_is_float32_whatever_the_config_says(tmp_path):
    "as that of the base model, whose file is float16"
    for how in (dict(config_name=base_model_folder()), dict(config=GPT2Config(n_embd=8, n_layer=1, n_head=1, dtype="float16"))):
        assert {p.dtype for p in load_model(**how).parameters()} == {torch.float32}


def test_operations_of_a_training_step_are_counted_right_for_grouped_queries():
    width, mlp, block, vocabulary = 32, 64, 48, 400
    for heads in (1, 2):
        model = llama(num_key_value_heads=heads).train()
        per_token = 2*(2*(2*width**2 + 2*width*16*heads + 3*width*mlp) + vocabulary*width) + 2*4*block*width
        assert training_flops(model, block) == pytest.approx(3*per_token, rel=1e-3) and model.training
        with torch.autocast("cpu", torch.bfloat16, has_bf16("cpu")): found = training_flops(model, block)
        assert found == pytest.approx(3*per_token, rel=1e-3)
    width = 64
    by_hand = 2*(3*12*width**2 + vocabulary*width) + 3*4*block*width
    model = gpt2(dropout=0.5, n_embd=width, n_layer=3).train()
    state = torch.get_rng_state()
    assert training_flops(model, block) == 3*by_hand and torch.equal(torch.get_rng_state(), state)
