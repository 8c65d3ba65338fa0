"Every family that transformers knows: who looks ahead, who obeys padding, and the same figures and texts as a plain loop"
import os

import pytest, torch, transformers
from datasets import Dataset, DatasetDict
from packaging.version import Version

import clm_nb.model.causal
from clm_nb.generate import generate
from clm_nb.model.causal import check_causal, reads_ahead, takes_padding
from clm_nb.model.loss import fused_loss
from clm_nb.model.sampling import next_tokens
from clm_nb.perplexity import perplexity, token_losses
from clm_nb.train import train
from families import bidirectional, every, few, make
from tiny import gpt2, needs_bf16, tokenizer

asked = every if os.environ.get("CLM_NB_EVERY_FAMILY") else few
numbers_places = {"bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
                  "rwkv", "trocr", "whisper"}  # their decoders number the places of padding, or read it
rows = [list(range(100, 120)), list(range(200, 211)), [7]]


def float64_losses(model, ids):
    "-ln p of each token but the first, from the model's own logits"
    with torch.no_grad(): scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("family", asked)
def test_a_family_is_scored_as_by_a_loop_in_float64(family):
    model = make(family)
    expected = torch.cat([float64_losses(model, row) for row in rows])
    for batch_size in (1, 3):
        found = perplexity(model, {"input_ids": rows}, batch_size=batch_size)
        assert found.tokens == len(expected) and found.loss == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("family", asked)
def test_what_replaces_the_loss_is_the_loss_also_of_large_logits(family):
    "a cap, a scale or a bias behind the last layer shows"
    model, ids = make(family), torch.tensor(rows[:1])
    with torch.no_grad(): model.get_output_embeddings().weight.mul_(100)
    own = model(ids, labels=ids).loss.item()
    with fused_loss(model): found = model(ids, labels=ids).loss.item()
    assert found == pytest.approx(own, rel=1e-4)


@pytest.mark.parametrize("family", asked)
def test_a_family_writes_the_same_in_a_batch_and_alone(family):
    model, tok = make(family), tokenizer()
    prompts = ["The", "The quick brown fox jumps", "def f(x):\n"]
    how = dict(max_new_tokens=5, do_sample=False, return_full_text=False)
    assert generate(model, tok, prompts, **how) == [generate(model, tok, prompt, **how) for prompt in prompts]
    assert takes_padding(model) == (family not in numbers_places)


@needs_bf16
@pytest.mark.parametrize("family", asked)
def test_a_family_is_trained_in_bf16_and_goes_on_as_before(family, tmp_path):
    model, ids = make(family), torch.tensor(rows[:1])
    blocks = DatasetDict(train=Dataset.from_dict({"input_ids": rows[:1]*4}))
    train(model, blocks, tokenizer(), tmp_path, max_steps=1, bf16=True, eval_strategy="no", save_strategy="no", disable_tqdm=True)
    assert "forward" not in vars(model) and isinstance(model(ids, return_dict=False), tuple)
    assert isinstance(generate(model, tokenizer(), "The", max_new_tokens=3, seed=0), str)


def last_shows_first(model):
    "Whether another last token changes the first token's logits"
    ids = torch.arange(5, 13)[None].repeat(2, 1)
    ids[1, -1] = 99
    first, other = model(ids, use_cache=False).logits[:, 0]
    return not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", bidirectional)
def test_a_model_that_looks_ahead_is_told_from_one_that_does_not(family, dtype):
    "In transformers 5.17 some do even as decoders"
    decoder, encoder = (make(family, is_decoder=on).to(dtype) for on in (True, False))
    assert reads_ahead(encoder) and last_shows_first(encoder)
    assert reads_ahead(decoder) == last_shows_first(decoder)
    assert not reads_ahead(decoder) or Version(transformers.__version__) < Version("5.23")


def test_a_model_that_looks_ahead_is_refused_at_every_door(tmp_path):
    model, tok, blocks = make("bert", is_decoder=False), tokenizer(), Dataset.from_dict({"input_ids": rows[:1]})
    doors = [lambda: perplexity(model, blocks), lambda: token_losses(model, rows[:1]), lambda: generate(model, tok, "The", max_new_tokens=4),
             lambda: next_tokens(model, tok, "The"), lambda: train(model, DatasetDict(train=blocks), tok, tmp_path/"run")]
    for door in doors:
        with pytest.raises(ValueError, match="BertLMHeadModel reads ahead.*is_decoder=True"): door()
    assert not (tmp_path/"run").exists()
    check_causal(make("bert"))


def test_it_is_asked_once_and_short_contexts_can_be_asked():
    check_causal(gpt2(n_positions=2))
    model = gpt2(n_positions=3)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    check_causal(model), check_causal(model)
    assert len(calls) == 1


def test_a_second_batch_of_prompts_asks_the_model_nothing(counted):
    for name in ("reads_ahead", "takes_padding"): counted(clm_nb.model.causal, name)
    model = gpt2()
    for _ in range(2): generate(model, tokenizer(), ["The", "The quick"], max_new_tokens=2)
    assert counted.calls == dict(reads_ahead=1, takes_padding=1)


def test_a_model_of_no_numbers_is_not_taken_for_one_that_looks_ahead():
    model = gpt2()
    with torch.no_grad(): model.lm_head.weight.fill_(float("nan"))
    check_causal(model)
