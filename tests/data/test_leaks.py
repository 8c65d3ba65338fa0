"Copies on both sides of a split: against brute force, and what is done about them"
import json, logging, random

import datasets, pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st
from clm_nb.ledger import Ledger, check_ledger
from clm_nb.data.leaks import leakage, near_duplicates, remove_leaks, shingles
from clm_nb.load import load_corpus

datasets.disable_progress_bars()
words = [f"word{i}" for i in range(500)]


def changed(text, n, rng):
    "The text with `n` of its words replaced, somewhere"
    parts = text.split()
    for i in rng.sample(range(len(parts)), n): parts[i] = rng.choice(words)
    return " ".join(parts)


def brute_force(texts, others, threshold):
    sets = [[shingles(t) for t in some] for some in (texts, others)]
    return [(i, j, len(a & b)/len(a | b)) for i, a in enumerate(sets[0]) for j, b in enumerate(sets[1])
            if len(a & b)/len(a | b) >= threshold]


@pytest.mark.parametrize("threshold", [0.8, 0.6])
def test_near_duplicates_are_those_of_brute_force(threshold):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(20, 200))) for _ in range(150)]
    others = [changed(t, rng.randint(0, 6), rng) for t in texts] + [" ".join(rng.choices(words, k=80)) for _ in range(100)]
    expected = brute_force(texts, others, threshold)
    assert 50 < len(expected) < 150
    assert near_duplicates(texts, others, threshold) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8), st.lists(st.text(max_size=40), max_size=8))
def test_nothing_is_taken_for_a_copy_that_is_none_and_every_copy_is_found(texts, others):
    assert near_duplicates(texts, others + texts, 0.8) == brute_force(texts, others + texts, 0.8)


@pytest.mark.parametrize("text,other", [
    ("The sky is blue because of Rayleigh scattering, mostly.", "the SKY is blue because of rayleigh scattering mostly"),
    ("空は青い。なぜなら光が散乱するからである。それだけのことだ。", "空は青い。なぜなら光が散乱するからである。それだけのことだ！"),
    ("Yes.", "yes!"), ("...", "..."), ("Ein Satz, der sich wiederholt.\n"*30, "Ein Satz, der sich wiederholt. "*30)])
def test_case_punctuation_white_space_and_script_do_not_hide_a_copy(text, other):
    assert near_duplicates([text], [other]) == [(0, 0, 1.0)]


def corpus(n=40, copies=((0, 0), (3, 1), (7, 2))):
    "Train and test records with several answers each; (record, words replaced) of the copies in test"
    rng = random.Random(1)
    text = lambda: " ".join(rng.choices(words, k=120))
    record = lambda q, texts: {"q_id": q, "title": q, "answers": {"text": texts}}
    train = [record(f"a{i}", [text(), text()]) for i in range(n)]
    test = [record(f"b{i}", [text()]) for i in range(n//2)]
    for i, (source, replaced) in enumerate(copies):
        test[2*i]["answers"]["text"].append("  " + changed(train[source]["answers"]["text"][1], replaced, rng) + "\n")
    return DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))


def test_what_leaks_is_counted_and_named():
    found = leakage(corpus())
    assert [(leak.test, leak.train, leak.exact) for leak in found.leaks] == [(0, 0, True), (2, 3, False), (4, 7, False)]
    assert found.leaked(True) == {0} and found.leaked(False) == {2, 4} and found.leaked() == {0, 2, 4}
    assert "20" in repr(found) and all(0.8 <= leak.similarity <= 1 for leak in found.leaks)


def test_leaks_are_taken_from_the_test_side_and_from_nowhere_else():
    before = corpus()
    after, found = remove_leaks(before)
    assert after["train"][:] == before["train"][:] and len(found.leaks) == 3
    assert after["test"]["q_id"][:] == [f"b{i}" for i in range(20) if i not in (0, 2, 4)]
    assert leakage(after).leaks == []


def test_the_ledger_counts_what_was_taken(tmp_path):
    ledger = Ledger()
    data = load_corpus(corpus(), dedupe=True, ledger=ledger)
    assert check_ledger(ledger)["load", "test"] == dict(read=20, dropped_duplicates=3, records=17) and len(data["test"]) == 17
    assert ledger["load", "train"] == dict(read=40, dropped_duplicates=0, records=40)


def test_near_copies_in_one_file_are_found_after_the_split(tmp_path, cache):
    rng = random.Random(2)
    texts = [" ".join(rng.choices(words, k=100)) for _ in range(50)]
    texts += [changed(t, 2, rng) for t in texts]
    (tmp_path/"texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    plain, mended = (load_corpus(tmp_path/"texts.jsonl", dedupe=dedupe) for dedupe in (False, True))
    assert len(leakage(plain).leaked(False)) > 5 and leakage(mended).leaks == []
    assert set(mended["test"]["text"]) < set(plain["test"]["text"]) and mended["train"][:] == plain["train"][:]


def test_identical_texts_in_the_data_s_own_splits_are_told(caplog):
    with caplog.at_level(logging.WARNING, "clm_nb"): load_corpus(corpus())
    assert "1 of 20 test records share a text" in caplog.text and "dedupe=True" in caplog.text
    caplog.clear()
    load_corpus(corpus(copies=())), load_corpus(corpus(), dedupe=True)
    assert not caplog.text


def test_a_test_split_of_nothing_but_copies_is_one_clear_line():
    data = corpus()
    with pytest.raises(ValueError, match="Each of the 40 test records shares"): remove_leaks(DatasetDict(data | {"test": data["train"]}))
