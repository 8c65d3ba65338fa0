"The n-grams against dictionaries and the formulas as they stand in Chen & Goodman"
import math, re
from collections import Counter, defaultdict
from itertools import product

import numpy as np, pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st

from clm_nb.model.baselines import NGram, baselines, discounts, kneser_ney
from clm_nb.model.metric import Perplexity
from clm_nb.perplexity import perplexity
from tiny import gpt2, texts, tokenizer

rng = np.random.default_rng(0)


def dataset(rows, **columns): return Dataset.from_dict({"input_ids": rows} | columns)


def zipf_rows(vocab_size, rows, length, seed=0):
    "Rows in which some tokens are frequent and depend on the one before, so that all counts of counts are there"
    rng, out = np.random.default_rng(seed), []
    for _ in range(rows):
        row = [0]
        while len(row) < length: row.append(int(row[-1]*7 + rng.zipf(1.6)) % vocab_size)
        out.append(row)
    return out


class Reference:
    "Interpolated, modified Kneser-Ney, one token at a time; texts are lists of ids that no n-gram leaves"
    def __init__(self, texts, vocab_size, order):
        self.vocab_size, self.order, self.followers = vocab_size, order, []
        grams = lambda n: [tuple(t[i:i+n]) for t in texts for i in range(len(t) - n + 1)]
        for n in range(1, order + 1):
            counts = Counter(grams(n)) if n == order else Counter(g[1:] for g in set(grams(n + 1)))
            followers = defaultdict(dict)
            for g, c in counts.items(): followers[g[:-1]][g[-1]] = c
            self.followers.append((followers, self.discounts(counts.values())))

    @staticmethod
    def discounts(counts):
        n1, n2, n3, n4 = (sum(c == j for c in counts) for j in (1, 2, 3, 4))
        try:
            y = n1/(n1 + 2*n2)
            d = 1 - 2*y*n2/n1, 2 - 3*y*n3/n2, 3 - 4*y*n4/n3
        except ZeroDivisionError: return 0.5, 1, 1.5
        return d if all(0 < x <= j for j, x in enumerate(d, 1)) else (0.5, 1, 1.5)

    def p(self, context, token, n=None):
        n = min(self.order, len(context) + 1) if n is None else n
        if n == 0: return 1/self.vocab_size
        followers, discounts = self.followers[n - 1]
        here = followers.get(tuple(context[len(context) - n + 1:]))
        shorter = self.p(context, token, n - 1)
        if not here: return shorter
        d = lambda c: discounts[min(c, 3) - 1] if c else 0
        share = (here.get(token, 0) - d(here.get(token, 0)))/sum(here.values())
        return share + sum(map(d, here.values()))/sum(here.values())*shorter

    def losses(self, text): return [-math.log(self.p(text[:i], text[i])) for i in range(1, len(text))]


def close(found, rows, reference):
    expected = [loss for row in rows for loss in reference.losses(row)]
    np.testing.assert_allclose(found[~np.isnan(found)], expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("vocab_size, rows, length", [(5, 4, 12), (60, 40, 30)])
def test_losses_are_those_of_the_formulas(order, vocab_size, rows, length):
    train, test = zipf_rows(vocab_size, rows, length), zipf_rows(vocab_size, 9, length, seed=1)
    close(kneser_ney(dataset(train), vocab_size, order).token_losses(dataset(test)), test,
          Reference(train, vocab_size, order))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_losses_on_text(order):
    ids = tokenizer()([text + tail for text in texts for tail in (texts[0], "", texts[2])])["input_ids"]
    train, test = ids[:20], ids[20:]
    close(kneser_ney(dataset(train), 400, order).token_losses(dataset(test)), test, Reference(train, 400, order))


some_rows = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(some_rows.filter(any), some_rows.filter(any), st.integers(1, 5))
def test_any_rows_however_short(train, test, order):
    model = kneser_ney(dataset(train), 7, order)
    close(model.token_losses(dataset(test)), test, Reference(train, 7, order))


def test_both_kinds_of_discounts_are_tested():
    "The estimates are used on the larger rows above, the half counts on the smaller ones"
    counts = lambda size: list(Counter(t for row in zipf_rows(*size) for t in zip(row, row[1:])).values())
    half = [0, 0.5, 1, 1.5]
    assert discounts(counts((5, 4, 12))).tolist() == half
    assert discounts(counts((60, 40, 30))).tolist() != half
    np.testing.assert_allclose(discounts(np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 3])),
                               [0, 1 - 2*4/7*15/40, 2 - 3*4/7*8/15, 3 - 4*4/7*5/8])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("context", [[3], [0, 7], [0, 1, 2], [29, 29, 29], [5, 29, 0, 7]])
def test_probabilities_sum_to_one(order, context):
    model = kneser_ney(dataset(zipf_rows(28, 30, 20)), 30, order)  # 28 and 29 are never seen
    p = np.exp(-model.token_losses(dataset([[*context, token] for token in range(30)]))[:, -1])
    assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)


def test_only_the_context_within_reach_matters():
    model = kneser_ney(dataset(zipf_rows(28, 30, 20)), 28, 3)
    last = lambda *row: model.token_losses(dataset([row]))[0, -1]
    assert last(4, 9, 0, 7, 14) == last(1, 1, 0, 7, 14) != last(1, 1, 7, 7, 14)


def test_uniform_is_the_logarithm_of_the_vocabulary():
    found = NGram(400).perplexity(dataset(zipf_rows(400, 5, 9)))
    assert found.loss == pytest.approx(math.log(400), rel=1e-14) and found.tokens == 5*8


def padded_blocks():
    mask = np.ones((6, 16), int)
    mask[-2, 11:], mask[-1, 1:] = 0, 0
    return dataset(rng.integers(0, 300, (6, 16)).tolist(), attention_mask=mask.tolist()), mask


def test_the_tokens_that_perplexity_counts():
    (blocks, mask), tok = padded_blocks(), tokenizer()
    ragged = dataset(rng.integers(0, 300, (3, 16)).tolist() + [[5, 6, 7], [8]])
    for split in (blocks, ragged):
        network, ngram = perplexity(gpt2(), split, tok), kneser_ney(split, 400).perplexity(split, tok)
        assert network.tokens == ngram.tokens
        assert network.bits_per_byte/network.loss == pytest.approx(ngram.bits_per_byte/ngram.loss)
    losses = kneser_ney(blocks, 400).token_losses(blocks)
    assert losses.shape == (6, 15) and (np.isnan(losses) == (mask[:, 1:] == 0)).all()
    assert kneser_ney(blocks, 400).perplexity(blocks).bits_per_byte is None


def test_mean_and_standard_error_are_over_blocks():
    test = zipf_rows(60, 12, 30, seed=1)
    found = kneser_ney(dataset(zipf_rows(60, 40, 30)), 60).perplexity(dataset(test))
    means = [np.mean(Reference(zipf_rows(60, 40, 30), 60, 3).losses(row)) for row in test]
    assert found.loss == pytest.approx(np.mean(means))
    assert found.standard_error == pytest.approx(np.std(means, ddof=1)/12**.5)


def test_padding_is_neither_learnt_nor_context():
    blocks, mask = padded_blocks()
    rows = [row["input_ids"][:sum(row["attention_mask"])] for row in blocks]
    for order in (1, 3):
        padded, cut = (kneser_ney(b, 400, order).token_losses(dataset(rows)) for b in (blocks, dataset(rows)))
        np.testing.assert_array_equal(padded, cut)
    wrong = dataset([[1, 2, 3]], attention_mask=[[0, 1, 1]])
    with pytest.raises(ValueError, match="padding before text"): kneser_ney(wrong, 400)


def test_documents_kept_apart_are_as_if_in_blocks_of_their_own():
    pieces = [[[3, 4, 3], [4, 3, 4, 5]], [[5, 3, 4], [3], [4, 5, 3]]]
    ids, positions = ([sum(map(make, row), []) for row in pieces] for make in (list, lambda p: list(range(len(p)))))
    assert all(len(row) == 7 for row in ids)
    packed, apart = dataset(ids, position_ids=positions), dataset([p for row in pieces for p in row])
    for order, (learnt, measured) in product((1, 2, 4), product((packed, apart), repeat=2)):
        losses = kneser_ney(learnt, 6, order).token_losses(measured)
        close(losses, sum(pieces, []), Reference(sum(pieces, []), 6, order))
    assert np.argwhere(np.isnan(kneser_ney(packed, 6).token_losses(packed))).tolist() == [[0, 2], [1, 2], [1, 3]]
    assert kneser_ney(packed, 6).perplexity(packed).tokens == 9


def test_views_and_formats_of_a_dataset_are_the_dataset():
    rows = zipf_rows(60, 20, 15)
    model = kneser_ney(dataset(rows), 60)
    picked = dataset(rows).select([7, 3, 11]).with_format("torch")
    copied = dataset([rows[i] for i in (7, 3, 11)])
    np.testing.assert_array_equal(model.token_losses(picked), model.token_losses(copied))
    halves = kneser_ney(dataset(rows).select(range(4, 20)), 60), kneser_ney(dataset(rows[4:]), 60)
    np.testing.assert_array_equal(*(half.token_losses(picked) for half in halves))


def test_order_of_rows_and_repetition_change_nothing():
    rows = zipf_rows(60, 20, 15)
    one, again, turned = (kneser_ney(dataset(r), 60, 4).token_losses(dataset(rows)) for r in (rows, rows, rows[::-1]))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(one, turned, rtol=1e-12)


def test_a_large_vocabulary_and_a_long_context_fit_into_an_integer():
    last = 2**31 - 1
    rows = [[last, last - 1, last, last - 1, last, 3, last, last - 1, last, last - 1, 2]]*2
    model = kneser_ney(dataset(rows), last + 1, 8)
    close(model.token_losses(dataset(rows)), rows, Reference(rows, last + 1, 8))


def test_baselines_learn_from_train_and_measure_on_test():
    blocks = DatasetDict(train=dataset(zipf_rows(60, 40, 30)), test=dataset(zipf_rows(60, 9, 30, seed=1)))
    table = baselines(blocks, 60, orders=(2, 4))
    assert list(table) == ["uniform", "unigram", "2-gram", "4-gram"] and {p.tokens for p in table.values()} == {9*29}
    assert table["4-gram"] == kneser_ney(blocks["train"], 60, 4).perplexity(blocks["test"])
    assert table["unigram"] == kneser_ney(blocks["train"], 60, 1).perplexity(blocks["test"])
    assert table["uniform"].loss == pytest.approx(math.log(60)) and table["2-gram"].loss < math.log(60)


rows = dataset([[1, 2, 3]])


@pytest.mark.parametrize("message, attempt", [
    ("order=0 is no n-gram. Use 1 or more", lambda: kneser_ney(rows, 9, order=0)),
    ("Token id 3 is beyond vocab_size=3", lambda: kneser_ney(rows, 3)),
    ("Token id 3 is beyond vocab_size=3", lambda: NGram(3).perplexity(rows)),
    ("Token id -1 is beyond vocab_size=3", lambda: kneser_ney(dataset([[1, -1]]), 3)),
    ("blocks hold no token", lambda: kneser_ney(rows.select([]), 9)),
    ("blocks hold no token", lambda: kneser_ney(dataset([[], []]), 9)),
    ("There is no token to predict", lambda: NGram(9).perplexity(dataset([[1], [2]]))),
    ("no column 'input_ids'", lambda: kneser_ney(Dataset.from_dict({"text": ["a"]}), 9)),
    ("no column 'input_ids'", lambda: kneser_ney(DatasetDict(train=rows), 9)),
    ("no split 'test', only ['train']", lambda: baselines(DatasetDict(train=rows), 9)),
])
def test_errors_are_one_clear_line(message, attempt):
    with pytest.raises(ValueError) as e: attempt()
    assert message in str(e.value) and "\n" not in str(e.value)
