"The flow of a ledger has no number but the ledger's, and balances"
import re
from xml.etree import ElementTree

import datasets, pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st
from clm_nb.look.flow import flow_bars, ledger_flow
from clm_nb.group import group
from clm_nb.ledger import Ledger
import tiny
from drawings import rects

datasets.disable_progress_bars()
tokenizer = tiny.tokenizer()
quick = settings(max_examples=40, deadline=None)


counts = st.integers(0, 50)


@st.composite
def ledgers(draw):
    "A ledger that balances, some of its first and last stages missing"
    ledger, kept = Ledger(), draw(st.integers(1, 200))
    lost, empty, missing, special, remainder, padding = (draw(counts) for _ in range(6))
    texts = draw(st.integers(1, 300))
    tokens = draw(st.integers(60, 10**6))
    ledger.add("load", "train", read=kept + lost, dropped_duplicates=lost, records=kept)
    ledger.add("flatten", "train", records=kept, texts=texts + empty + missing, documents=texts, dropped_empty=empty, dropped_missing=missing)
    ledger.add("tokenize", "train", documents=texts, tokens=tokens, text_tokens=tokens - special, special_tokens=special)
    ledger.add("group", "train", tokens=tokens, blocks=draw(st.integers(1, 99)), tokens_in_blocks=tokens - remainder,
               dropped_remainder=remainder, padding=padding)
    stages = list(ledger.entries)
    first, last = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    return Ledger({k: ledger.entries[k] for k in stages[first:max(last, first + 1)]})


@quick
@given(ledgers())
def test_the_flow_balances_and_has_no_number_of_its_own(ledger):
    flow = ledger_flow(ledger)
    known = {f"{n:,}" for entry in ledger.entries.values() for n in entry.values()}
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", flow._repr_html_(), re.S)[0])
    texts = [t.text for t in svg.iter("text")]
    shown = {n for t in texts if t for n in re.findall(r"\d[\d,]*", t)}
    assert shown <= known
    dropped = {f"✗ {n:,}" for entry in ledger.entries.values() for k, n in entry.items() if k.startswith("dropped") and n}
    assert dropped == {t for t in texts if t and t.startswith("✗")}
    for step, (taken, given, *lost) in zip(flow.steps, flow.heights(), strict=True):
        assert step.taken[1] == step.given[1] + sum(n for _, n in step.dropped)
        assert taken == pytest.approx(given + sum(lost))
    for (_, given, *_), (taken, *_) in zip(flow.heights(), flow.heights()[1:]): assert taken == pytest.approx(given)
    for step, (taken, given, *lost) in zip(flow.steps, flow.heights(), strict=True):
        for (_, n), h in zip((step.given, *step.dropped), (given, *lost), strict=True): assert h*step.taken[1] == pytest.approx(n*taken)


def test_widths_from_tokens_on_are_in_proportion_to_tokens():
    ledger = Ledger()
    ledger.add("tokenize", "test", documents=4, tokens=1000, text_tokens=996, special_tokens=4)
    ledger.add("group", "test", tokens=1000, blocks=6, tokens_in_blocks=600, dropped_remainder=400, padding=0)
    flow = ledger_flow(ledger, "test")
    _, found = rects(flow._repr_html_())
    bars = [r for r in found if r["width"] == "10"]
    lost, taken, kept = sorted(bars, key=lambda r: ("url" not in r["fill"], float(r["x"])))
    assert float(kept["height"])/float(taken["height"]) == pytest.approx(.6, abs=.01)
    assert float(lost["height"])/float(taken["height"]) == pytest.approx(.4, abs=.01)
    assert [bar.count for bar in flow_bars(flow)] == [("tokens", 1000), ("tokens_in_blocks", 600)]
    assert taken["fill"] == "#d55e00"


def test_a_ledger_that_does_not_balance_is_not_drawn():
    ledger = Ledger()
    with pytest.raises(ValueError, match="no stage of split='train'. Splits: none"): ledger_flow(ledger)
    ledger.add("group", "train", tokens=10, blocks=1, tokens_in_blocks=8, dropped_remainder=1)
    with pytest.raises(ValueError, match="doesn't balance"): ledger_flow(ledger)


def test_padding_and_texts_of_records_are_drawn():
    texts = ["The fox", "", "A dog runs.", "No"]
    records = Dataset.from_dict({"answers": [{"text": texts}, {"text": ["more of it"]}]})
    from clm_nb.flatten import flatten
    from clm_nb.tokenize import tokenize
    ledger = Ledger()
    docs = flatten(DatasetDict(train=records), explode=True, ledger=ledger)
    group(tokenize(docs, tokenizer, ledger=ledger), 16, "pad", ledger=ledger)
    flow = ledger_flow(ledger)
    assert [bar.count[0] for bar in flow_bars(flow)][:2] == ["texts", "documents"]
    assert "dropped: empty" in flow._repr_html_() and f"{ledger['group', 'train']['padding']} padding" in flow._repr_html_()


@pytest.mark.parametrize("dropped,expected", [(0, [("records", ""), ("documents", "flatten")]),
                                              (2, [("records", ""), ("texts", "flatten"), ("documents", "kept")])])
def test_every_ribbon_is_labelled(dropped, expected):
    ledger = Ledger()
    ledger.add("load", "train", read=3, records=3)
    ledger.add("flatten", "train", records=3, texts=9, documents=9 - dropped, dropped_empty=dropped)
    flow = ledger_flow(ledger)
    assert [(bar.count[0], bar.via) for bar in flow_bars(flow)] == expected
    assert [sum(h for _, h in bar.dropped) > 0 for bar in flow_bars(flow)][-1] == bool(dropped)
    labels = re.findall(r'font-style="italic" font-size="15">([^<]*)<', flow._repr_html_())
    assert labels == [via for _, via in expected[1:]] and all(labels)
