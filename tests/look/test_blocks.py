"The pictures of blocks and of the ledger, against `group` itself, plain Python and the ledger's own numbers"
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import datasets, pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings, strategies as st
from clm_nb.look.token_text import token_texts
from clm_nb.look.cutting import cut_documents, line_parts
from clm_nb.look.blocks import show_blocks
from clm_nb.look.flow import flow_bars, ledger_flow
from clm_nb.group import group
from clm_nb.ledger import Ledger
import tiny

datasets.disable_progress_bars()
eos, tokenizer = 0, tiny.tokenizer()
ragged = Features(input_ids=List(Value("int32")))
documents = st.lists(st.lists(st.integers(1, 399), max_size=12), min_size=1, max_size=12).filter(lambda d: sum(map(len, d)) > 12)
quick = settings(max_examples=40, deadline=None)


def split_of(lists): return Dataset.from_dict({"input_ids": lists}, features=ragged)


def places(lists):
    "(document, place in it) of every token, end to end"
    return [(d, i) for d, row in enumerate(lists) for i in range(len(row))]


def drawn(cutting, kind):
    "The lines of one kind, each a list of (token id, document, place in it); None for padding"
    begins = [sum(cutting.lengths[:d]) for d in range(len(cutting.lengths))]
    where = lambda s, d: None if s < 0 else (int(cutting.ids[s]), int(d), int(s - begins[d]))
    return [[where(s, d) for s, d in zip(line.serials, cutting.documents(line.serials))] for line in cutting.lines if line.kind == kind]


@quick
@given(documents, st.integers(2, 12), st.sampled_from(["drop", "pad"]), st.booleans())
def test_every_token_is_drawn_where_group_puts_it(lists, block_size, remainder, isolate):
    ledger = Ledger()
    blocks = group(DatasetDict(train=split_of(lists)), block_size, remainder, ledger=ledger, isolate_documents=isolate)["train"]
    cutting = cut_documents(lists, block_size, remainder, isolate_documents=isolate)
    tape = [(lists[d][i], d, i) for d, i in places(lists)]
    rows, lost = drawn(cutting, "block"), drawn(cutting, "dropped")[0]
    assert [[0 if o is None else o[0] for o in row] for row in rows] == blocks["input_ids"][:]
    flat = [o for row in rows for o in row if o is not None]
    assert flat + lost == tape  # the documents and places too; what is dropped is what is missing
    if remainder == "pad": assert [[int(o is not None) for o in row] for row in rows] == blocks["attention_mask"][:]
    if isolate: assert [line.positions.tolist() for line in cutting.lines if line.kind == "block"] == blocks["position_ids"][:]
    assert {k: cutting.counts[k] for k in ledger["group", "train"]} == ledger["group", "train"]


@quick
@given(documents, st.integers(2, 12), st.integers(1, 5))
def test_the_tutorials_side_is_the_tutorials(lists, block_size, batch_size):
    ledger = Ledger()
    blocks = group(DatasetDict(train=split_of(lists)), block_size, "batch", batch_size=batch_size, ledger=ledger)["train"]
    cutting = cut_documents(lists, block_size, "batch", batch_size)
    rows, lost = drawn(cutting, "block"), drawn(cutting, "dropped")
    assert [[o[0] for o in row] for row in rows] == blocks["input_ids"][:]
    for n, dropped in enumerate(lost):
        tape = [(lists[d][i], d, i) for d, i in places(lists) if d//batch_size == n]
        whole = len(tape) if len(tape) < block_size else len(tape)//block_size*block_size
        assert dropped == tape[whole:]
    assert len(lost) == -(-len(lists)//batch_size)
    assert {k: cutting.counts[k] for k in ledger["group", "train"]} == ledger["group", "train"]


@quick
@given(documents, st.integers(2, 12), st.integers(1, 4))
def test_parts_tell_beginning_and_end(lists, block_size, batch_size):
    cutting = cut_documents(lists, block_size, "batch", batch_size)
    for line in cutting.lines:
        parts = line_parts(cutting, line)
        assert [s for part in parts for s in part.serials] == list(line.serials)
        assert all(a.document != b.document for a, b in zip(parts, parts[1:]))
        for part in parts:
            where = [places(lists)[s] for s in part.serials]
            assert {d for d, _ in where} == {part.document}
            assert part.begins == (where[0][1] == 0) and part.ends == (where[-1][1] == len(lists[part.document]) - 1)


@quick
@given(documents, st.integers(2, 9))
def test_seams_are_documents_that_run_together(lists, block_size):
    rows = [row + [eos]*(i % 2) for i, row in enumerate(lists)]
    cutting, tape = cut_documents(rows, block_size, eos=eos), places(rows)
    kept = cutting.counts["tokens_in_blocks"]
    assert cutting.seams == sum(tape[i][0] != tape[i - 1][0] and rows[tape[i - 1][0]][-1] != eos
                                for i in range(1, kept) if i % block_size)


class Texts(HTMLParser):
    "The tags of a fragment, and the texts in them"
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.texts.append(data)


def tokenized(texts): return [tokenizer(t)["input_ids"] + [eos] for t in texts]


def test_every_token_of_every_document_can_be_read():
    lists = tokenized(tiny.texts[:3] + ["<script>alert(1)</script> a & b"])
    view = show_blocks(lists, tokenizer, block_size=16, n_blocks=1000, compare=False)
    html = view._repr_html_()
    shown = "".join(t for t in Texts(html).texts if t not in ("1 document", "2 the next"))
    for row in lists: assert all(text in shown for text in token_texts(tokenizer, row[:-1]))
    assert ">&lt;<" in html and "&amp;<" in html and "<<" not in html and "http" not in html and html.count(">EOS<") == len(lists) + 1  # one in the legend
    dropped = view.ours.lines[-1].serials
    assert f"{len(dropped)} token" in html and "hatched" in html
    assert view.theirs is None and "tutorial" not in html


def numbered_labels(html): return re.findall(r'vertical-align:.35em;padding:0 3px;">(…?\d+)', html)


def test_documents_are_numbered_and_cuts_marked():
    lists = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0]]
    html = show_blocks(lists, tokenizer, block_size=5, compare=False)._repr_html_()
    assert numbered_labels(html) == ["1", "2", "…2", "3", "…3"]
    assert re.findall(r'title="cut">✂ (\d)…', html) == ["2", "3"]
    assert "end of the split: 3 tokens dropped" in html
    padded = show_blocks(lists, tokenizer, block_size=5, remainder="pad", compare=False)._repr_html_()
    assert "padding × 2" in padded and "nothing dropped" in padded
    apart = show_blocks(lists, tokenizer, block_size=5, compare=False, isolate_documents=True)._repr_html_()
    assert re.findall(r"position (\d–\d)", apart) == ["0–3", "0–0", "0–1", "0–2"]


def test_the_tutorials_side_has_no_eos_and_drops_at_each_batch():
    lists = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0], [15, 16, 0]]
    view = show_blocks(lists, tokenizer, block_size=3, batch_size=2)
    assert view.theirs.ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    html = view._repr_html_()
    assert "end of batch 1: 2 tokens dropped" in html and "end of batch 2: 1 token dropped" in html
    assert view.ours.seams == 0 and view.theirs.seams == 1
    assert re.search(r"documents run together +0 +1", str(view))
    without = [row[:-1] for row in lists]
    assert show_blocks(without, tokenizer, block_size=3, batch_size=2).theirs.ids.tolist() == view.theirs.ids.tolist()


def rects(html):
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", html, re.S)[0])
    return svg, [r.attrib for r in svg.iter("rect")]


def test_stripes_are_in_proportion_to_tokens():
    lists = [[5]*40 + [0], [6]*10 + [0], [7]*70 + [0], [8]*30 + [0]]
    html = show_blocks(lists, tokenizer, block_size=64, compare=False)._repr_html_()
    svg, found = rects(html)
    segments = [r for r in found if r.get("stroke")]
    expected = [41, 11, 12, 59, 5, 26]  # blocks 1 and 2 and 26 tokens dropped
    assert [round(float(r["width"])*64/400) for r in segments] == expected
    assert [r["fill"].startswith("url(") for r in segments] == [False]*5 + [True]
    assert len([r for r in found if r["fill"] == "#111"]) == 4  # EOS
    assert svg.find(".//*[@id]").get("id") in segments[-1]["fill"]


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_an_excerpt_draws_no_more_than_asked_and_counts_the_rest(lengths, n_blocks, batch_size):
    lists = [[5]*n for n in lengths] + [[5]*4]
    view = show_blocks(lists, tokenizer, block_size=3, batch_size=batch_size, n_blocks=n_blocks, remainder="batch", compare=False)
    html = view._repr_html_()
    shown, left = len(re.findall(r">block \d+<", html)), sum(map(int, re.findall(r"(\d+) more block", html)))
    assert shown <= n_blocks and shown + left == view.ours.counts["blocks"]
    ends = re.findall(r"end of batch \d+: (\d+|nothing)", html)
    lost = sum(int(n) for n in ends if n != "nothing") + sum(map(int, re.findall(r"with (\d+) tokens? dropped", html)))
    assert lost == view.ours.counts["dropped_remainder"] and "nothing" in ends or lost or not ends
    assert len(ends) + sum(map(int, re.findall(r"(\d+) more ends? of a batch", html))) == -(-len(lists)//batch_size)


def test_bad_input_is_named():
    lists = [[1, 2, 3, 0]]
    for args, message in [((["text"],), "not lists of token ids"), (([{"input_ids": [1]}],), "not lists of token ids"),
                          (([],), "no token in 0 documents"), ((Dataset.from_dict({"text": ["a"]}),), "no column 'input_ids'"),
                          ((DatasetDict(train=split_of(lists)),), "holds the splits train")]:
        with pytest.raises(ValueError, match=message): show_blocks(*args, tokenizer)
    for options, message in [(dict(zoom="x"), "zoom='x'"), (dict(n_blocks=0), "n_blocks=0"), (dict(block_size=1), "block_size=1"),
                             (dict(remainder="keep"), "remainder='keep'"), (dict(batch_size=0), "batch_size=0"),
                             (dict(block_size=8), "fewer than one block of 8")]:
        with pytest.raises(ValueError, match=message): show_blocks(lists, tokenizer, **options)


def test_sentencepiece_spaces_are_seen():
    class Metaspace:
        batch_decode = lambda self, rows, **_: ["the", "x"][:len(rows)]
        convert_ids_to_tokens = lambda self, ids: ["▁the", "x"][:len(ids)]
    assert token_texts(Metaspace(), [1, 2]) == ["·the", "x"]


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
    for step, (taken, given, *lost) in zip(flow.steps, flow.heights()):
        assert step.taken[1] == step.given[1] + sum(n for _, n in step.dropped)
        assert taken == pytest.approx(given + sum(lost))
    for (_, given, *_), (taken, *_) in zip(flow.heights(), flow.heights()[1:]): assert taken == pytest.approx(given)
    for step, (taken, given, *lost) in zip(flow.steps, flow.heights()):
        for (_, n), h in zip((step.given, *step.dropped), (given, *lost)): assert h*step.taken[1] == pytest.approx(n*taken)


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
