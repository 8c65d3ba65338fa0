"Where every token went, against `group` itself and plain Python"
import datasets
from datasets import DatasetDict
from hypothesis import given, settings, strategies as st
from clm_nb.look.cutting import cut_documents, line_parts
from clm_nb.group import group
from clm_nb.ledger import Ledger
import tiny
from tiny import split_of

datasets.disable_progress_bars()
eos, tokenizer = 0, tiny.tokenizer()
documents = st.lists(st.lists(st.integers(1, 399), max_size=12), min_size=1, max_size=12).filter(lambda d: sum(map(len, d)) > 12)
quick = settings(max_examples=40, deadline=None)


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
