"Rows are views of a file, and no token becomes a Python number on its way to the model"
import itertools, pickle, tracemalloc

import numpy as np, pyarrow as pa, pytest, torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from clm_nb.collate import BlockRows, CausalCollator
from clm_nb.tokenize import tokenize_batch, tokenizer_json
from short_runs import on_disk, make_blocks
from tiny import texts, tokenizer

rng = np.random.default_rng(0)


def as_lists(rows): return [{name: value.tolist() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
def test_rows_are_views_of_the_file_however_it_is_cut(kind, tmp_path):
    data, other = on_disk(tmp_path/"a", 60, 16, kind=kind), on_disk(tmp_path/"b", 9, 16, kind=kind)
    joined = concatenate_datasets([data, other, data.select(range(3, 4))])
    for blocks in (data, data.select(range(5, 50)), joined, data.select([])):
        rows = BlockRows.of(blocks)
        assert isinstance(rows, BlockRows) and len(rows) == len(blocks) and as_lists(rows) == list(blocks)
        for beyond in (len(blocks), len(blocks) + 99, -1, -len(blocks) - 1):
            with pytest.raises(IndexError): rows[beyond]
        for row in itertools.islice(rows, 3):
            for v in row.values(): assert isinstance(v, np.ndarray) and not v.flags.owndata and not v.flags.writeable


def test_a_mask_of_bools_will_do():
    features = Features(input_ids=List(Value("int32"), length=3), attention_mask=List(Value("bool"), length=3))
    columns = dict(input_ids=[[1, 2, 3], [4, 5, 6]], attention_mask=[[True]*3, [True, False, False]])
    blocks = Dataset.from_dict(columns, features=features)
    rows = BlockRows.of(blocks)
    batch = CausalCollator()([rows[i] for i in range(2)])
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_rows_go_to_other_processes_as_the_name_of_their_file(tmp_path):
    data = on_disk(tmp_path/"a")
    rows = BlockRows.of(data)
    first = rows[0]["input_ids"].tolist()
    again = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 20_000 < 4000*128*4
    assert again[0]["input_ids"].tolist() == first and len(again) == 4000
    loader = torch.utils.data.DataLoader(rows, 500, collate_fn=CausalCollator(), num_workers=2)
    assert torch.cat([b["input_ids"] for b in loader]).equal(torch.tensor(data["input_ids"][:]))


def test_only_what_the_model_takes_is_in_a_row_and_odd_rows_stay_a_dataset():
    data = make_blocks("padded").add_column("source", ["a"]*24)
    assert set(BlockRows.of(data)[0]) == {"input_ids", "attention_mask"}
    ragged = Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    for odd in (ragged, data.shuffle(seed=1)):
        rows = BlockRows.of(odd)
        assert isinstance(rows, Dataset) and isinstance(rows[0]["input_ids"], np.ndarray)
        assert "source" not in rows.column_names


def test_a_token_is_never_a_python_number_on_its_way_to_the_model(tmp_path):
    documents, tok = pa.table({"text": ["".join(rng.choice(texts, 20)) for _ in range(400)]}), tokenizer()
    spec = tokenizer_json(tok)
    work = lambda: tokenize_batch(documents, spec, suffix=(0,), encoder="gigatoken")
    tokens = len(work()["input_ids"].combine_chunks().flatten())
    rows = BlockRows.of(on_disk(tmp_path/"a", 1000))
    rows[0]
    take = lambda: CausalCollator()([rows[i] for i in range(1000)])
    for what, n, most in ((work, tokens, 12), (take, 128_000, 45)):  # a list has 8 for each and 32 for the number
        tracemalloc.start()
        try: kept, peak = what(), tracemalloc.get_traced_memory()[1]
        finally: tracemalloc.stop()
        assert tokens > 50_000 and peak < most*n


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "labels"])
@pytest.mark.parametrize("given", [[5], [5, 5], [5, 5, 5, 5]])
def test_a_column_of_another_length_is_one_line(name, given):
    with pytest.raises(ValueError, match=f"3 input_ids, and {len(given)} {name}"): CausalCollator()([{"input_ids": [5, 5, 5], name: given}])
