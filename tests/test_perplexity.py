"Perplexity against independent references: loops in float64, the block figure, bytes counted by hand"
import math, subprocess, sys
import numpy as np, pytest, torch
from datasets import Dataset, concatenate_datasets
import clm_nb.model.device, clm_nb.model.loss, clm_nb.tokenize
from clm_nb.model.inference import bf16_pays, in_bf16
from clm_nb.model.model import evaluating
from clm_nb.model.loss import logit_losses
from clm_nb.model.metric import LossSums, Perplexity, perplexity_hooks, perplexity_metric
from clm_nb.model.scored_rows import windows
from clm_nb.perplexity import document_perplexities, perplexity, token_losses
import tiny
from tiny import Seen, everywhere, families, gpt2, needs_bf16, tokenizer

rng = np.random.default_rng(0)
bigger = tokenizer()
bigger.add_tokens([f"word{i}" for i in range(420 - len(bigger))])


def make_blocks(rows=21, block=32, padding=0):
    "Random blocks; the last one ends in padding, as group(remainder='pad') leaves it"
    ids, mask = rng.integers(0, 400, (rows, block)), np.ones((rows, block), np.int8)
    if padding: mask[-1, -padding:] = 0
    return Dataset.from_dict({"input_ids": ids.tolist()} | ({"attention_mask": mask.tolist()} if padding else {}))


def float64_losses(model, ids):
    "The losses of one row, one token at a time, in double precision"
    with torch.no_grad(): logits = model(torch.tensor([ids])).logits[0].double().numpy()
    return [np.log(np.exp(row - row.max()).sum()) + row.max() - row[token] for row, token in zip(logits, ids[1:])]


def reference(model, blocks):
    "(mean loss, tokens) by the float64 loop over unpadded blocks"
    rows = [row["input_ids"][:sum(row.get("attention_mask", [1]*len(row["input_ids"])))] for row in blocks]
    losses = [loss for ids in rows for loss in float64_losses(model, ids)]
    return math.fsum(losses)/len(losses), len(losses)


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("padding", [0, 29])
def test_exact_token_mean_whatever_the_batch_size(family, padding):
    model, blocks = families[family](), make_blocks(padding=padding)
    loss, tokens = reference(model, blocks)
    for batch_size in (1, 3, 8, 64):
        found = perplexity(model, blocks, batch_size=batch_size)
        assert found.tokens == tokens == 21*31 - padding
        assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_short_last_row_counts_by_its_tokens():
    model = gpt2()
    ids = rng.integers(0, 400, (6, 32)).tolist()
    ragged = Dataset.from_dict({"input_ids": [*ids[:5], ids[5][:3]]})
    assert perplexity(model, ragged, batch_size=4).loss == pytest.approx(reference(model, ragged)[0], rel=1e-6)


def test_token_losses_are_nan_where_masked_and_right_elsewhere():
    model, blocks = gpt2(), make_blocks(padding=10)
    found = token_losses(model, blocks["input_ids"][:], blocks["attention_mask"][:])
    assert found.shape == (21, 31) and found.dtype == torch.float32
    assert found.isnan().sum() == 10 and found[-1, -10:].isnan().all()
    assert np.allclose(found[-1, :21], float64_losses(model, blocks[-1]["input_ids"][:22]), atol=1e-5)


def test_logits_are_turned_into_float32_by_parts_without_changing_a_loss():
    logits, labels = torch.randn(3, 50, 400).bfloat16(), torch.randint(0, 400, (3, 50))
    labels[:, -5:] = -100
    whole = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")
    for positions in (1, 7, 128): assert torch.allclose(logit_losses(logits, labels, positions), whole, atol=1e-6)


def test_a_model_that_gives_nan_is_not_flattered():
    model = gpt2()
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = math.nan
    assert math.isnan(perplexity(model, make_blocks(padding=5)).loss)


def test_dropout_is_off_and_every_mode_comes_back():
    model, blocks = gpt2(dropout=0.5), make_blocks()
    exact = perplexity(model, blocks).loss
    model.train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    assert perplexity(model, blocks).loss == exact
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluating(model): 1/0
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()


@needs_bf16
def test_bfloat16_model_gives_float32_losses():
    blocks = make_blocks()
    exact, found = perplexity(gpt2(), blocks).loss, token_losses(gpt2().bfloat16(), blocks["input_ids"][:])
    assert found.dtype == torch.float32
    assert found.mean().item() == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("block,stride", [(b, s) for b in (2, 5, 8) for s in range(1, b + 1)])
def test_windows_count_each_token_once_with_all_the_context_promised(block, stride):
    for n in range(30):
        counted = [t for begin, end, first in windows(n, block, stride) for t in range(first, end)]
        blind = set(range(0, n, block)) if stride == block else {0}
        assert counted == [t for t in range(n) if t not in blind]
        for begin, end, first in windows(n, block, stride):
            assert begin < first < end <= min(begin + block, n)
            assert begin == 0 or first - begin >= max(block - stride, 1)


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("bos", [False, True])
def test_sliding_window_against_a_loop_over_tokens(family, bos):
    model, tok = families[family](), tokenizer(bos)
    text = "The quick brown fox: naïve café 日本語. "*6
    ids = [0]*bos + tok(text, add_special_tokens=False)["input_ids"] + [0]
    for block, stride in [(16, 16), (16, 8), (16, 3), (128, 128)]:
        losses, at = [], 1
        for begin in range(0, len(ids), stride):
            end = min(begin + block, len(ids))
            losses += float64_losses(model, ids[begin:end])[max(at - begin - 1, 0):] if end - begin > 1 else []
            at = end
            if end == len(ids): break
        found = perplexity(model, text, tok, block_size=block, stride=stride, batch_size=3)
        assert found.tokens == len(losses)
        assert found.loss == pytest.approx(math.fsum(losses)/len(losses), rel=1e-6)


def test_stride_of_a_window_is_the_block_figure_for_every_document():
    from datasets import DatasetDict
    from clm_nb.group import group
    from clm_nb.tokenize import tokenize
    model, tok = gpt2(), tokenizer()
    found, nats, tokens = [], 0, 0
    documents = ["The quick brown fox. "*20, "Naïve café 🙂 "*9, "list"]
    for text in documents:
        ids = tokenize(DatasetDict(test=Dataset.from_dict({"text": [text]})), tok, encoder="tokenizers")
        block = perplexity(model, group(ids, 32, remainder="pad")["test"])
        nats, tokens = nats + block.loss*block.tokens, tokens + block.tokens
    ours = perplexity(model, documents, tok, block_size=32, stride=32)
    assert (ours.tokens, ours.loss) == (tokens, pytest.approx(nats/tokens, rel=1e-6))


def test_bits_per_byte_by_hand():
    model, tok = gpt2(), tokenizer(bos=True)
    text = "Naïve café: 日本語 🙂 and the lazy dog."
    found = perplexity(model, text, tok)
    assert found.bits_per_byte == pytest.approx(found.loss*found.tokens/math.log(2)/len(text.encode()), rel=1e-9)
    slid = perplexity(model, text*5, tok, block_size=16, stride=4, batch_size=3)
    assert slid.bits_per_byte == pytest.approx(slid.loss*slid.tokens/math.log(2)/len((text*5).encode()), rel=1e-9)
    without = tokenizer()
    ids = without(text)["input_ids"]
    seen = len(without.decode(ids[1:]).encode())
    found = perplexity(model, text, without, add_eos=False)
    assert found.bits_per_byte == pytest.approx(math.fsum(float64_losses(model, ids))/math.log(2)/seen, rel=1e-6)
    assert perplexity(model, make_blocks()).bits_per_byte is None


def stock(model, tokenizer, texts, add_start_token):
    "`evaluate`'s metric `perplexity`, restated: one batch padded on the right, exp of each text's mean, their mean"
    rows = [[tokenizer.bos_token_id]*add_start_token + tokenizer(t, add_special_tokens=False).input_ids for t in texts]
    ids = torch.tensor([row + [0]*(max(map(len, rows)) - len(row)) for row in rows])
    mask = torch.tensor([[1]*len(row) + [0]*(ids.shape[1] - len(row)) for row in rows])
    with torch.no_grad(): logits = model(ids, attention_mask=mask).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")*mask[:, 1:]
    each = (losses.sum(1)/mask[:, 1:].sum(1)).exp()
    return each.tolist(), each.mean().item()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", families)
def test_each_texts_figure_is_the_stock_metrics_and_its_mean_is_not_the_perplexity(family, bos):
    "With a tokenizer that adds BOS: `add_start_token=True`. The means differ as exp of a mean and mean of exps do"
    model, tokenizer, texts = families[family](), tiny.tokenizer(bos=bos), tiny.texts[:3] + ["A very short one."]
    expected, mean = stock(model, tiny.tokenizer(), texts, bos)
    found = document_perplexities(model, texts, tokenizer, add_eos=False)
    np.testing.assert_allclose([p.perplexity for p in found], expected, rtol=1e-4)
    whole, tokens = perplexity(model, texts, tokenizer, add_eos=False), np.array([p.tokens for p in found])
    assert math.isclose(whole.loss, float(np.log(expected)@tokens/tokens.sum()), abs_tol=1e-5)
    assert mean == pytest.approx(np.mean([p.perplexity for p in found]), rel=1e-4)
    assert abs(whole.perplexity/mean - 1) > 1e-3


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_documents_figures_add_up_whatever_the_batch_size(size):
    model, tokenizer, texts = gpt2(), tiny.tokenizer(), [*tiny.texts, "", "x y z", tiny.texts[0]*9]
    each, whole = (f(model, texts, tokenizer, block_size=20, stride=7, batch_size=size) for f in (document_perplexities, perplexity))
    assert len(each) == len(texts) and each[-3].tokens == 0 and math.isnan(each[-3].loss)
    assert sum(p.tokens for p in each) == whole.tokens
    assert math.isclose(sum(p.loss*p.tokens for p in each if p.tokens)/whole.tokens, whole.loss, rel_tol=1e-9)
    for text, found in zip(texts, each, strict=True):
        if not found.tokens: continue
        alone = perplexity(model, text, tokenizer, block_size=20, stride=7)
        assert found.tokens == alone.tokens and found.loss == pytest.approx(alone.loss, rel=1e-5)
        assert found.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-5)


def test_one_text_is_a_list_of_one():
    found = document_perplexities(gpt2(), tiny.texts[0], tiny.tokenizer())
    assert found == document_perplexities(gpt2(), tiny.texts[:1], tiny.tokenizer()) and len(found) == 1


def test_a_column_of_a_data_set_is_a_list_of_texts():
    column = Dataset.from_dict({"text": tiny.texts})["text"]
    assert perplexity(gpt2(), column, tiny.tokenizer()) == perplexity(gpt2(), tiny.texts, tiny.tokenizer())


def test_special_tokens_spelled_out_are_text():
    text, tok = "a<|endoftext|>b", tokenizer()
    ids = tok.backend_tokenizer.model.tokenize(text)
    assert len(tok(text)["input_ids"]) == 3
    assert perplexity(gpt2(), text, tok, add_eos=False).tokens > 3 and len(ids) > 3


def test_standard_error_is_the_bootstrap_over_rows():
    per_row = rng.normal(4, 0.5, (300, 1)) + rng.normal(0, 1, (300, 40))
    counted = np.arange(40) < rng.integers(10, 41, (300, 1))
    sums = LossSums()
    for part in np.array_split(np.arange(300), 7): sums.add(per_row[part], counted[part])
    nats, n = np.where(counted, per_row, 0).sum(1), counted.sum(1)
    draws = rng.integers(0, 300, (4000, 300))
    bootstrap = (nats[draws].sum(1)/n[draws].sum(1)).std()
    found = sums.result()
    assert found.loss == pytest.approx(nats.sum()/n.sum(), rel=1e-12)
    assert found.standard_error == pytest.approx(bootstrap, rel=0.08)


def test_standard_error_of_equal_rows_is_that_of_their_means():
    rows = rng.normal(4, 1, (4, 10))
    sums = LossSums()
    sums.add(rows, np.ones((4, 10), bool))
    sums.add(rows[:1], np.zeros((1, 10), bool))
    assert sums.result().standard_error == pytest.approx(rows.mean(1).std(ddof=1)/2, rel=1e-9)
    assert sums.result().tokens == 40


def test_result_shows_itself():
    found = Perplexity(math.log(50), 1000, 0.1, 1.25)
    low, high = found.interval
    assert low*high == pytest.approx(2500) and math.log(high/50) == pytest.approx(0.196)
    assert "50.00" in str(found) and "\n" not in str(found)
    assert "| 50.00 |" in found._repr_markdown_() and len(found._repr_markdown_().splitlines()) == 3
    assert found.to_dict()["perplexity"] == pytest.approx(50)
    one = Perplexity(1000.0, 3)
    assert (one.perplexity, one.interval) == (math.inf, None) and "–" in str(one)


def test_metric_streams_forgets_and_starts_again():
    import evaluate
    model, blocks = gpt2(), make_blocks(padding=10)
    metric, exact = perplexity_metric(), perplexity(model, blocks)
    assert isinstance(metric, evaluate.Metric)
    ids, mask = torch.tensor(blocks["input_ids"][:]), torch.tensor(blocks["attention_mask"][:])
    losses, labels = token_losses(model, ids, mask), ids.masked_fill(mask == 0, -100)
    for i in range(0, 21, 4): metric.add_batch(predictions=losses[i:i+4], references=labels[i:i+4])
    assert metric.sums.total.shape == (2,) and metric.sums.moments.shape == (2, 2)
    first = metric.compute()
    assert first["loss"] == pytest.approx(exact.loss) and first["perplexity"] == pytest.approx(exact.perplexity)
    assert first["tokens"] == exact.tokens
    metric.add(prediction=losses[0], reference=labels[0])
    assert metric.compute()["tokens"] == 31
    assert metric.compute(predictions=losses, references=labels) == first
    with pytest.raises(ValueError, match="no token"): metric.compute()


@pytest.mark.parametrize("streamed", [False, True])
def test_trainer_reports_the_exact_figure(streamed, tmp_path):
    from transformers import Trainer, TrainingArguments, default_data_collator
    model, blocks = gpt2(), make_blocks(padding=20)
    labels = torch.tensor(blocks["input_ids"][:]).masked_fill(torch.tensor(blocks["attention_mask"][:]) == 0, -100)
    args = TrainingArguments(tmp_path, report_to=[], disable_tqdm=True, use_cpu=True, batch_eval_metrics=streamed)
    trainer = Trainer(model, args, eval_dataset=blocks.add_column("labels", labels.tolist()),
                      data_collator=default_data_collator, **perplexity_hooks())
    for _ in range(2):
        found, exact = trainer.evaluate(), perplexity(model, blocks)
        assert found["eval_tokens"] == exact.tokens
        assert found["eval_perplexity"] == pytest.approx(exact.perplexity, rel=1e-5)


@pytest.mark.parametrize("arguments,message", [
    (dict(data="text"), "needs a tokenizer"),
    (dict(data="text", tokenizer=tokenizer(), block_size=257), "block_size=257 is longer than the model's context"),
    (dict(data="text", tokenizer=tokenizer(), block_size=1), "leaves nothing to predict"),
    (dict(data="text", tokenizer=tokenizer(), block_size=8, stride=9), "stride=9 can't be used. Use 1 to block_size=8"),
    (dict(data="text", tokenizer=tokenizer(), stride=0), "stride=0 can't be used. Use 1 to"),
    (dict(data="text", tokenizer=tokenizer(), batch_size=0), "batch_size=0"),
    (dict(data=[1, 2]), "Give a Dataset of blocks, a text, or a list of texts"),
    (dict(data="", tokenizer=tokenizer(), add_eos=False), "no token to predict"),
    (dict(data=[], tokenizer=tokenizer()), "no token to predict"),
    (dict(data=make_blocks(), stride=16), "are for text"),
    (dict(data=make_blocks(block=257)), "longer than the model's context"),
    (dict(data=Dataset.from_dict({"input_ids": [[1]*8]*20 + [[1]*257]})), "longer than the model's context"),
    (dict(data="text", tokenizer=bigger), "420 tokens, the model knows 400"),
    (dict(data=make_blocks(), tokenizer=bigger), "420 tokens, the model knows 400"),
    (dict(data=Dataset.from_dict({"input_ids": [[1, 2, 400]]})), "Token id 400 is beyond the model's vocabulary"),
    (dict(data=Dataset.from_dict({"text": ["a"]})), "needs a tokenizer"),
    (dict(data=Dataset.from_dict({"ids": [[1, 2]]})), "no column 'input_ids'"),
])
def test_one_clear_line_before_any_work(arguments, message):
    model = gpt2()
    model.forward = lambda *args, **kwargs: pytest.fail("worked before checking")
    with pytest.raises(ValueError, match=message) as error: perplexity(model, **arguments)
    assert "\n" not in str(error.value)


def test_padding_on_the_left_is_refused():
    with pytest.raises(ValueError, match="padding before text"): token_losses(gpt2(), [[0, 1, 2]], [[0, 1, 1]])
    left = Dataset.from_dict({"input_ids": [[0, 1, 2]], "attention_mask": [[0, 1, 1]]})
    with pytest.raises(ValueError, match="padding before text"): perplexity(gpt2(), left)


def test_a_model_is_looked_at_once_for_all_batches(counted):
    counted(clm_nb.model.loss, "loss_forward")
    perplexity(gpt2(), make_blocks(), batch_size=2)
    assert counted.calls["loss_forward"] == 1


@needs_bf16
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bf16_in_perplexity_is_asked_for_or_pays(name, monkeypatch):
    kinds = lambda model, **options: {d for d, s in see(model, **options) if s[-1:] == (400,)}
    short = make_blocks()
    long = concatenate_datasets([short]*(4096//clm_nb.tokenize.list_length(short) + 1))
    def see(model, blocks=long, **options):
        with Seen() as seen: perplexity(model, blocks, **options)
        return seen.tensors
    small, large = families[name](), families[name](**{"n_embd" if name == "gpt2" else "hidden_size": 512})
    has = {True: {torch.float32, torch.bfloat16}, False: {torch.float32}}
    for fast in (True, False):
        everywhere(monkeypatch, clm_nb.model.device, "has_bf16", lambda device: fast)
        assert [bf16_pays(m) for m in (small, large)] == [False, fast] and not bf16_pays(in_bf16(large))
        assert [bool(torch.bfloat16 in kinds(m)) for m in (small, large)] == [False, fast]
        assert torch.bfloat16 not in kinds(large, blocks=short)
        for bf16 in (True, False): assert kinds(small, bf16=bf16) == kinds(large, bf16=bf16) == has[bf16 and fast]
