"Held-out text beside what models make of it, against plain transformers"
import pytest, torch
from datasets import Dataset, DatasetDict
from clm_nb.generate import generate
from clm_nb.look.results import ResultRow, Results, continuation_losses, held_out_pairs, show_results
import tiny

tokenizer = tiny.tokenizer()
texts = ["The quick brown fox jumps over the lazy dog. It wasn't the first time.", "Short.",
         "def f(x):\n    return x + 1\n# and <b>more & more</b> of it, to be sure, until the end", "A list of numbers or more of them."]
fast = dict(prompt_tokens=5, max_new_tokens=6, n=2)


@pytest.mark.parametrize("family", tiny.families)
def test_losses_are_those_of_plain_transformers(family):
    model = tiny.families[family]()
    pairs = held_out_pairs(texts, tokenizer, n=3, prompt_tokens=5, truth_tokens=30)
    assert len({len(truth) for _, truth in pairs}) > 1  # rows of different lengths, so that some are padded
    for loss, (prompt, truth) in zip(continuation_losses(model, tokenizer, pairs), pairs, strict=True):
        start = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([start + truth])
        with torch.no_grad(): logits = model(ids).logits[0].double().log_softmax(-1)
        expected = [-logits[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1])]
        assert loss == pytest.approx(sum(expected)/len(expected), abs=1e-4)


def test_pairs_are_beginnings_of_documents_and_end_with_them():
    pairs = held_out_pairs(texts, tokenizer, n=3, prompt_tokens=5, truth_tokens=500, seed=1)
    for prompt, truth in pairs:
        assert truth[-1] == tokenizer.eos_token_id and truth.count(tokenizer.eos_token_id) == 1
        assert prompt + tokenizer.decode(truth[:-1]) in texts
    assert pairs == held_out_pairs(texts, tokenizer, n=3, prompt_tokens=5, truth_tokens=500, seed=1)
    many = [f"{i} {t}" for i in range(9) for t in texts]
    assert len({tuple(p for p, _ in held_out_pairs(many, tokenizer, 3, 5, seed=s)) for s in range(5)}) > 1
    assert all(len(truth) <= 4 for _, truth in held_out_pairs(texts, tokenizer, 3, 5, 4))


def test_blocks_are_cut_at_the_seams_of_documents():
    block = [5, 6, 0, 7, 8, 9, 10, 11, 0, 12, 13]
    padded = Dataset.from_dict({"input_ids": [block, [0, 20, 21, 22, 23, 24] + [30]*5], "attention_mask": [[1]*11, [1]*6 + [0]*5]})
    (first, rest), (_, second) = held_out_pairs(padded, tokenizer, n=2, prompt_tokens=3, truth_tokens=99)
    assert first == tokenizer.decode([7, 8, 9]) and rest == [10, 11, 0]
    assert second == [23, 24]  # nothing of the padding
    ids = [tokenizer(t)["input_ids"] + [0] for t in texts]
    wanted = held_out_pairs(texts, tokenizer, 2, 5)
    assert held_out_pairs(ids, tokenizer, 2, 5) == wanted
    assert held_out_pairs(Dataset.from_dict({"text": texts}), tokenizer, 2, 5) == wanted
    assert held_out_pairs(Dataset.from_dict({"input_ids": ids}), tokenizer, 2, 5) == wanted


@pytest.mark.parametrize("do_sample", [False, True])
def test_each_column_is_what_generate_gives(do_sample):
    model, base = tiny.gpt2(), tiny.llama()
    results = show_results(model, texts, tokenizer, base, do_sample=do_sample, bf16=False, **fast)
    pairs = held_out_pairs(texts, tokenizer, 2, 5, 6)
    prompts = [prompt for prompt, _ in pairs]
    for name, one in (("base", base), ("fine-tuned", model)):
        alone = generate(one, tokenizer, prompts, max_new_tokens=6, do_sample=do_sample, seed=42, return_full_text=False, bf16=False)
        assert [row.texts[name] for row in results.rows] == alone
        assert [row.losses[name] for row in results.rows] == continuation_losses(one, tokenizer, pairs)
    assert [row.prompt for row in results.rows] == prompts
    assert [row.truth for row in results.rows] == [tokenizer.decode([i for i in t if i]) for _, t in pairs]
    assert results == show_results(model, texts, tokenizer, base, do_sample=do_sample, bf16=False, **fast)
    assert set(results.losses) == {"base", "fine-tuned"}
    assert list(show_results(model, texts, tokenizer, **fast).losses) == ["fine-tuned"]


def test_text_is_escaped_and_the_lower_loss_marked():
    row = ResultRow("<b>p", "t & <i>", {"base": "<script>x", "fine-tuned": "y"}, {"base": 1.5, "fine-tuned": 2.5})
    other = ResultRow("q", "u", {"base": "v", "fine-tuned": "w"}, {"base": 3.0, "fine-tuned": 1.0})
    html = Results([row, other])._repr_html_()
    assert "<script" not in html and "<b>p" not in html and "<i>" not in html and "t &amp; &lt;i&gt;" in html
    assert "pre-wrap" in html and html.count("▼ lower") == 2
    first, second = html.split(">q<")
    assert "1.50</b> nats per token<b> ▼ lower" in first and "1.00</b> nats per token<b> ▼ lower" in second
    assert Results([row, other]).losses == {"base": 2.25, "fine-tuned": 1.75}
    assert "base <b>2.25</b>" in html and "fine-tuned <b>1.75</b>" in html
    assert "base (truth: 1.50 nats/token): <script>x" in str(Results([row]))
    alone = ResultRow("p", "t", {"fine-tuned": "y"}, {"fine-tuned": 2.5})
    assert "▼" not in Results([alone])._repr_html_()


def test_bad_input_is_named():
    model = tiny.gpt2()
    for data, options, message in [
        (texts, dict(n=0), "n=0"), (texts, dict(prompt_tokens=0), "prompt_tokens=0"), (texts, dict(n=4, prompt_tokens=9), "Only 3 rows"),
        (DatasetDict(test=Dataset.from_dict({"text": texts})), {}, "holds the splits test"),
        (Dataset.from_dict({"title": texts}), {}, "neither 'input_ids' nor 'text'"), ([], {}, "Only 0 rows")]:
        with pytest.raises(ValueError, match=message): show_results(model, data, tokenizer, **options)
