"Objects of another kind at each stage: taken, or one line with the type and what to give instead"
import datasets, numpy as np, pandas as pd, pyarrow as pa, pytest
from datasets import Dataset, DatasetDict, IterableDataset
from clm_nb.data.objects import column_pieces
from clm_nb.data.split import column_chunks, column_texts, find_text_column, record_groups
from clm_nb.flatten import flatten
from clm_nb.group import group
from clm_nb.load import load_corpus, read_corpus
from clm_nb.tokenize import tokenize
import tiny

datasets.disable_progress_bars()
texts = [f"text number {i}" for i in range(20)]
frame = pd.DataFrame({"text": texts}, index=list("abcdefghijklmnopqrst"))
stream = lambda: IterableDataset.from_generator(lambda: iter([{"text": t} for t in texts]))
taken = {"DataFrame": frame, "list": texts, "tuple": tuple(texts), "records": [{"text": t} for t in texts], "columns": {"text": texts},
         "Series": frame["text"], "array": np.array(texts), "Arrow table": pa.table({"text": texts}), "generator": iter(list(texts)), "stream": stream()}


@pytest.mark.parametrize("kind", taken)
def test_what_people_hold_is_taken(kind):
    assert sorted(sum((part["text"][:] for part in load_corpus(taken[kind]).values()), [])) == sorted(texts)


def test_a_stream_that_never_ends_is_read_as_far_as_asked():
    def endless():
        while True: yield {"text": "more"}
    assert len(read_corpus(IterableDataset.from_generator(endless), split="train[:7]")) == 7


@pytest.mark.parametrize("splits", [{"train": frame[:15], "test": frame[15:]}, {"train": texts[:15], "dev": texts[15:]},
                                    {"train": Dataset.from_dict({"text": texts[:15]}), "validation": [{"text": t} for t in texts[15:]]}])
def test_a_dict_of_splits_keeps_them(splits):
    corpus = load_corpus(splits)
    assert corpus["train"]["text"][:] == texts[:15] and corpus["test"]["text"][:] == texts[15:]


def test_one_data_set_goes_through_all_stages(cache):
    tokens = tokenize(flatten(Dataset.from_dict({"text": texts})), tiny.tokenizer())
    assert list(group(tokens["train"], 8)) == ["train"] and list(tokenize(texts, tiny.tokenizer())) == ["train"]


ids = Dataset.from_dict({"input_ids": [[1, 2, 3]]*9})
doors = {"load": load_corpus, "flatten": flatten, "tokenize": lambda x: tokenize(x, tiny.tokenizer()), "group": lambda x: group(x, 4)}
wrong = {"None": None, "number": 3, "name": b"python-docs", "object": object(), "empty list": [], "empty dict": {}, "no splits": DatasetDict(),
         "mixed list": ["a", 3], "list of lists": [["a"]], "a text for a column": {"text": "one text"}, "ragged columns": {"a": ["x"], "b": ["x", "y"]},
         "mixed column": pd.DataFrame({"text": ["a", 3]}, dtype=object), "numbers": [1, 2], "bytes": {"text": [b"a"]}, "no rows": Dataset.from_dict({}),
         "a model": tiny.gpt2, "a split that is none": {"train": None}}


@pytest.mark.parametrize("door", doors)
@pytest.mark.parametrize("kind", wrong)
def test_anything_else_is_one_line(kind, door, cache):
    with pytest.raises((ValueError, TypeError)) as error: doors[door](wrong[kind])
    message = str(error.value)
    assert type(error.value) in (ValueError, TypeError) and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("door,data,message", [
    ("tokenize", [*texts, None], "'text' is missing"), ("tokenize", ids, "input_ids .* Expected one text a row"),
    ("group", texts, r"text \(string\).* Expected a list of token ids"), ("group", {"input_ids": [[1, None]]}, "missing or negative"),
    ("group", {"input_ids": [[1, -2]]}, "missing or negative"), ("group", {"input_ids": [["a"]]}, "Expected a list of token ids"),
    ("group", {"input_ids": [[1, 2]], "labels": [[-100, 2]]}, "would lose the 'labels'"), ("flatten", "python-docs", "goes to load_corpus")])
def test_the_wrong_column_is_told_at_the_door(door, data, message, cache):
    with pytest.raises((ValueError, TypeError), match=message): doors[door](data)


def test_rows_that_were_filtered_out_do_not_count(cache):
    documents = Dataset.from_dict({"text": [None, *texts, None, "more"]})
    tokens = Dataset.from_dict({"input_ids": [None, [1, -2], *[[1, 2, 3]]*9, [1, None], [4, 5]]})
    for data, rows, door in [(documents, [*range(1, 21), 22], "tokenize"), (tokens, [*range(2, 11), 12], "group")]:
        assert len(doors[door](data.select(rows[::-1]))["train"])
        for i in set(range(len(data))) - set(rows):
            with pytest.raises(ValueError, match="missing"): doors[door](data.select([rows[0], i, rows[1]]))


@pytest.mark.parametrize("tokenizer", [None, "python-docs-gpt2", 3, str])
def test_a_tokenizer_of_another_kind(tokenizer, cache):
    with pytest.raises(TypeError, match="tokenizer= is of the type"): tokenize(texts, tokenizer)


@pytest.mark.parametrize("block_size", [10**9, 2**24 + 1, 1, 0, -5, 2.0, "128", None, True])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_block_sizes_that_can_not_be(block_size, remainder, cache):
    with pytest.raises((ValueError, TypeError), match="block_size="): group(ids, block_size, remainder)


@pytest.mark.parametrize("test_size", [2.5, float("inf"), float("nan"), 1.0, 0, -1, 20, True, "0.2", None])
def test_sizes_of_a_test_split_that_can_not_be(test_size):
    with pytest.raises(ValueError, match="test_size="): load_corpus(texts, test_size=test_size)


@pytest.mark.parametrize("columns,message", [
    ({"id": ["a"], "conversations": [[{"from": "human", "value": "q"}]]}, r"A chat \(conversations\).*id.*conversations \(list"),
    ({"messages": [[{"role": "user", "content": "q"}]]}, r"A chat \(messages\)"),
    ({"id": ["a"], "body": [{"parts": [["x"]]}]}, r"body \(struct"), ({"id": ["a"], "tags": [[["x"]]]}, r"tags \(list"),
    ({"one": ["a"], "two": ["b"]}, "Text columns: one, two")])
def test_an_id_is_no_text(columns, message):
    with pytest.raises(ValueError, match=message): find_text_column(Dataset.from_dict(columns))


def test_one_column_of_text_among_numbers_is_the_text():
    assert find_text_column(Dataset.from_dict({"story": ["a"], "stars": [3], "good": [True], "nothing": [None]})) == "story"


def test_names_with_dots_are_names():
    data = Dataset.from_dict({"answers.text": [[t] for t in texts], "desc.": texts, "a.b": texts})
    for column in ("answers.text", "desc.", "a.b"):
        documents = flatten(load_corpus(data, text_column=column, test_size=3), column)
        assert sorted(documents["train"]["text"][:] + documents["test"]["text"][:]) == sorted(texts)


def test_a_long_chain_of_shared_values_is_one_group():
    n = 3000
    order = np.random.default_rng(0).permutation(n)
    data = Dataset.from_dict({"title": [f"t{i//2}" for i in order], "text": [f"x{(i + 1)//2}" for i in order]})
    assert not record_groups(data).any()


def test_a_title_that_all_share_and_a_split_that_falls_short_are_told(caplog):
    same = Dataset.from_dict({"title": ["same"]*20, "text": texts})
    with pytest.raises(ValueError, match="by 'title'.*test_size=5.*rename_column"): load_corpus(same, test_size=5)
    pairs = Dataset.from_dict({"title": [f"t{i//2}" for i in range(20)], "text": texts})
    assert len(load_corpus(pairs, test_size=5)["test"]) == 4
    assert "test holds 4 of the 5 records asked for: others share a 'title'" in caplog.records[-1].message


def test_a_shuffled_column_may_be_longer_than_one_array_can_be():
    "Arrow's own take puts all pieces together first, and fails beyond 2 GB of text"
    piece = pa.array(["x"*99_999 + str(i % 10) for i in range(1000)])
    table = pa.table({"text": pa.chunked_array([piece]*22)})
    part = Dataset(table, fingerprint="long").select([21_999, 3, 3, 0, 1005])  # without a name, all of it would be pickled for one
    for column in (pa.chunked_array(column_pieces(part, "text")), column_chunks(part, "text")):
        assert [text[-1] for text in column.to_pylist()] == [*"93305"]


@pytest.mark.parametrize("size", [1, 7, 10_000, 30_000])
def test_pieces_are_the_rows_in_their_order(size):
    "As `datasets` gives them, shuffled, with rows twice, from a slice and from none"
    ids = [[i, i + 1][:i % 3] for i in range(25_000)]
    whole = Dataset(pa.table({"input_ids": pa.chunked_array([ids[i:i + size] for i in range(0, len(ids), size)] if size > 1 else [ids[:50], ids[50:]])}))
    for part in (whole, whole.shuffle(seed=0), whole.select(range(5, 20_000)), whole.select([7, 7, 3]), whole.select(range(9, 90)).shuffle(seed=1), whole.select([])):
        pieces = [*column_pieces(part, "input_ids")]
        assert all(pieces) and [row for piece in pieces for row in piece.to_pylist()] == part["input_ids"][:]


def test_texts_are_put_together_in_arrays_without_an_end():
    "A plain array of strings ends at 2 GB; the numbers of the records stay right in lists, with holes"
    for values, rows in [(["a", None, " b "], [0, 2]), ([["a"], [], None, [" ", "b"]], [0, 3])]:
        record, found = column_texts(Dataset.from_dict({"text": values}), "text")
        assert found.type == pa.large_string() and found.to_pylist() == ["a", "b"] and record.tolist() == rows
