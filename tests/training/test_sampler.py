"A text at each evaluation is the model's own, and the training doesn't know of it"
import functools

import pytest, torch
import clm_nb.training.sampler
from clm_nb.generate import generate
from clm_nb.model.model import load_model
from clm_nb.training.sampler import Sampler
from short_runs import losses, parameters
from test_train import run
from tiny import bf16_or_not, families, gpt2, tokenizer

prompt = "The quick"
often = dict(max_steps=6, eval_steps=2, logging_steps=1)


@pytest.mark.parametrize("bf16", bf16_or_not)
@pytest.mark.parametrize("family", families)
def test_samples_change_no_bit_of_the_training(family, bf16, tmp_path):
    make = lambda: gpt2(dropout=0.2) if family == "gpt2" else families[family]()
    asked = [run(tmp_path/str(i), make(), sample_prompt=p, bf16=bf16, **often) for i, p in enumerate([None, prompt])]
    for key in ("loss", "eval_loss", "grad_norm"): assert losses(asked[0], key) == losses(asked[1], key), key
    assert torch.equal(*map(parameters, (t.model for t in asked)))
    assert [len(t.live.samples) for t in asked] == [0, 3]
    assert "forward" not in vars(asked[1].model)


@pytest.mark.parametrize("exact_loss", [True, False])
@pytest.mark.parametrize("bf16", bf16_or_not)
def test_a_sample_is_what_plain_transformers_makes_of_the_checkpoint(bf16, exact_loss, tmp_path, monkeypatch):
    monkeypatch.setattr(clm_nb.training.sampler, "generate", functools.partial(generate, bf16=False))  # with transformers' random numbers
    trainer = run(tmp_path, sample_prompt=prompt, bf16=bf16, exact_loss=exact_loss, save_strategy="steps", save_steps=2,
                  save_total_limit=9, seed=7, **often)
    assert [s["step"] for s in trainer.live.samples] == [2, 4, 6] and len({s["text"] for s in trainer.live.samples}) > 1
    words = tokenizer()
    ids = words(prompt, return_tensors="pt").input_ids
    for sample in trainer.live.samples:
        model = load_model(tmp_path/f"checkpoint-{sample['step']}")
        torch.manual_seed(7)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.6, top_k=50, top_p=0.95,
                             max_new_tokens=40, pad_token_id=0)[0]
        assert words.decode(out, skip_special_tokens=True) == prompt + sample["text"]


def test_a_forward_that_was_there_before_the_trainer_is_sampled_from(tmp_path):
    model, seen = gpt2(), []
    own = model.forward
    def forward(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return own(*args, **kwargs)
    model.forward = functools.wraps(own)(forward)
    sampler = Sampler(model, tokenizer(), prompt)
    first, wrapped = model.forward, lambda *a, **k: pytest.fail("the trainer's forward was called")
    model.forward = wrapped
    assert sampler(model) and seen and not any(seen)
    assert model.forward is wrapped and first is sampler.forward


def test_a_prompt_without_room_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="sample_prompt has 3.. tokens, and the model's context is 256: nothing can follow"):
        run(tmp_path/"run", sample_prompt="a b "*90)
    assert not (tmp_path/"run").exists()
    assert Sampler(gpt2(n_positions=16), tokenizer(), "a b c").options["max_new_tokens"] == 11  # five tokens, sixteen places
