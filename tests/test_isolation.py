"Documents kept apart: a document in a packed block is to the model what it is alone"
import datasets, numpy as np, pytest, torch
from datasets import DatasetDict
from hypothesis import given, settings, strategies as st
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM
from clm_nb.model.baselines import kneser_ney
from clm_nb.collate import CausalCollator
from clm_nb.group import group
from clm_nb.ledger import Ledger, check_ledger
from clm_nb.perplexity import perplexity, token_losses
from clm_nb.model.model import check_isolation
from clm_nb.train import train
import tiny
from tiny import split_of

datasets.disable_progress_bars()
rng = np.random.default_rng(0)
block_size = 32
documents = [rng.integers(1, 400, rng.integers(1, 50)).tolist() + [0] for _ in range(60)]


def cut(rows, block_size):
    "Each document in the parts that the edges of the blocks make of it: (block, column, ids)"
    parts, at = [], 0
    for ids in rows:
        while ids:
            room = block_size - at % block_size
            parts.append((at//block_size, at % block_size, ids[:room]))
            at, ids = at + len(ids[:room]), ids[room:]
    return parts


@pytest.fixture(params=["drop", "pad"])
def blocks(request, cache):
    return group(DatasetDict(train=split_of(documents)), block_size, request.param, isolate_documents=True)["train"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", tiny.families)
def test_logits_in_a_block_are_those_of_the_document_alone(family, attention, blocks):
    model = tiny.families[family](attn_implementation=attention)
    assert model.config._attn_implementation == attention
    check_isolation(model)
    batch = CausalCollator()(list(blocks))
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    with torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        mixed = model(batch["input_ids"], use_cache=False).logits
        parts = [part for part in cut(documents, block_size) if part[0] < len(blocks)]
        assert sum(column > 0 for _, column, _ in parts) > 20
        for block, column, ids in parts:
            alone = model(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(packed[block, column:column + len(ids)], alone, rtol=1e-4, atol=5e-5)
            if column: assert not torch.allclose(mixed[block, column:column + len(ids)], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", tiny.families)
def test_losses_are_those_of_the_documents_alone(family, blocks):
    "Perplexity, token losses, what `Trainer` reports: the mean over the tokens that have one before them in their document"
    model = tiny.families[family]().double()
    parts = [torch.tensor([ids]) for block, _, ids in cut(documents, block_size) if block < len(blocks) and len(ids) > 1]
    with torch.no_grad(): log_p = [model(ids).logits[0, :-1].log_softmax(-1) for ids in parts]
    alone = torch.cat([-p.gather(1, ids[0, 1:, None])[:, 0] for p, ids in zip(log_p, parts)])
    found = perplexity(model.float(), blocks, batch_size=7)
    assert found.tokens == len(alone) and abs(found.loss - alone.mean().item()) < 1e-5
    losses = torch.cat([token_losses(model, **batch) for batch in blocks.iter(5)])
    torch.testing.assert_close(losses[~losses.isnan()].double(), alone, rtol=1e-4, atol=1e-4)
    assert kneser_ney(blocks, 400).perplexity(blocks).tokens == len(alone)


def test_training_keeps_documents_apart_and_reports_their_losses(blocks, tmp_path):
    data = DatasetDict(train=blocks, test=blocks)
    how = dict(max_steps=1, logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no", bf16=False,
               disable_tqdm=True, per_device_train_batch_size=len(blocks), learning_rate=0.0)
    model = tiny.gpt2()
    trainer = train(model, data, tiny.tokenizer(), tmp_path/"run", **how)
    logs = {k: v for log in trainer.state.log_history for k, v in log.items()}
    expected = perplexity(model, blocks).loss
    assert abs(logs["loss"] - expected) < 1e-5 and abs(logs["eval_loss"] - expected) < 1e-5


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=15), st.integers(2, 9), st.booleans())
def test_positions_restart_with_documents_and_blocks_and_nothing_else_changes(tmp_path_factory, rows, size, pad):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLM_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        tokens, ledgers = DatasetDict(train=split_of(rows)), (Ledger(), Ledger())
        remainder = "pad" if pad else "drop"
        if sum(map(len, rows)) < (1 if pad else size): return
        apart = group(tokens, size, remainder, isolate_documents=True, ledger=ledgers[0])["train"]
        plain = group(tokens, size, remainder, ledger=ledgers[1])["train"]
    assert check_ledger(ledgers[0]) == ledgers[1]
    assert apart.remove_columns("position_ids")[:] == plain[:]
    expected = np.zeros(len(apart)*size, int)
    for block, column, ids in cut(rows, size):
        if block < len(apart): expected[block*size + column:][:len(ids)] = range(len(ids))
    assert np.ravel(apart["position_ids"][:]).tolist() == expected.tolist()


def test_positions_take_two_bytes(cache):
    column = group(DatasetDict(train=split_of(documents)), block_size, isolate_documents=True)["train"].features["position_ids"]
    assert column.feature.dtype == "int16" and column.length == block_size


def bloom():
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3))


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, initializer_range=0.3))


@pytest.mark.parametrize("make", [bloom, mamba])
def test_a_model_that_can_not_keep_them_apart_is_refused(make, blocks, tmp_path):
    for work in (lambda: train(make(), DatasetDict(train=blocks, test=blocks), tiny.tokenizer(), tmp_path/"run"),
                 lambda: perplexity(make(), blocks)):
        with pytest.raises(ValueError, match="ForCausalLM can't keep|isn't known to keep documents apart") as error: work()
        assert "\n" not in str(error.value)
    assert not (tmp_path/"run").exists()


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_an_attention_implementation_that_was_not_tried_is_refused(attention):
    model = tiny.gpt2()
    model.config._attn_implementation = attention
    with pytest.raises(ValueError, match=f"'{attention}' isn't known .*'sdpa' or 'eager'"): check_isolation(model)


def test_the_tutorials_remainder_and_isolation_exclude_each_other(cache):
    with pytest.raises(ValueError, match="not the tutorial's way"):
        group(DatasetDict(train=split_of(documents)), block_size, "batch", isolate_documents=True)
