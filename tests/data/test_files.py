"What people's files are like: splits of their own, odd names, other separators and encodings, damage"
import codecs, gzip, io, json, os

import datasets, pytest
from datasets import load_dataset
from clm_nb.cli import main
from clm_nb.data.faults import has_null_record
from clm_nb.data.files import csv_separator, split_of
from clm_nb.load import load_corpus, read_corpus

datasets.disable_progress_bars()
texts = [f"text number {i}" for i in range(20)]


def rows(some): return "\n".join(json.dumps({"text": text}) for text in some)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str): content = content.encode()
    path.write_bytes(content)
    return path


layouts = ["{}.jsonl", "{}/a.jsonl", "data/{}-00000-of-00001.jsonl", "my_{}_part.jsonl", "deep/er/{}/x.jsonl", "{}-2.jsonl", "x {}.jsonl"]


@pytest.mark.parametrize("held", ["test", "validation", "dev", "eval"])
@pytest.mark.parametrize("layout", layouts)
def test_a_folder_keeps_its_splits_as_load_dataset_does(layout, held, tmp_path, cache):
    if "of-" in layout and held in ("dev", "eval"): pytest.skip("shards have the split's own name")
    put(tmp_path/"f"/layout.format("train"), rows(texts[:15]))
    put(tmp_path/"f"/layout.format(held), rows(texts[15:]))
    put(tmp_path/"f/README.md", "# About this data")
    corpus = load_corpus(tmp_path/"f")
    theirs = load_dataset(str(tmp_path/"f"), cache_dir=str(tmp_path/"theirs"))
    assert corpus["train"]["text"][:] == theirs["train"]["text"][:] == texts[:15]
    (name,) = set(theirs) - {"train"}
    assert corpus["test"]["text"][:] == theirs[name]["text"][:] == texts[15:]


def test_a_split_that_is_not_used_and_a_file_of_no_split_are_told(tmp_path, cache, caplog):
    for name, part in [("train.jsonl", texts[:9]), ("valid.jsonl", texts[9:12]), ("test.jsonl", texts[12:15]), ("more.jsonl", texts[15:])]:
        put(tmp_path/"f"/name, rows(part))
    corpus = load_corpus(tmp_path/"f")
    assert corpus["test"]["text"][:] == texts[12:15]
    said = " ".join(r.message for r in caplog.records)
    assert "more.jsonl" in said and "train and test are used, validation not" in said


def test_documents_with_such_names_are_documents(tmp_path, cache):
    for name in ["intro.txt", "training.txt", "notes.txt"]: put(tmp_path/"f"/name, f"about {name}")
    assert len(read_corpus(tmp_path/"f")) == 3
    assert split_of("contest.csv") is split_of("trainer.csv") is None


@pytest.mark.parametrize("name", ["a[1].jsonl", "what?.jsonl", "a*b.jsonl", "[x]/train.jsonl", "{a,b}.jsonl", "a#b.jsonl", "é ü.jsonl", "**.jsonl"])
def test_a_name_is_no_pattern(name, tmp_path, cache):
    put(tmp_path/name, rows(texts))
    put(tmp_path/"a1.jsonl", rows(["another file"]*3))
    assert read_corpus(tmp_path/name)["text"][:] == texts
    if "/" in name:
        put(tmp_path/"[x]/test.jsonl", rows(["held"]))
        assert load_corpus(tmp_path/"[x]")["test"]["text"][:] == ["held"]


@pytest.mark.parametrize("name", ["B.TXT", "B.Jsonl", "B.CSV", "B.Csv.GZ"])
def test_capitals_do_not_count(name, tmp_path, cache):
    content = {"t": "\n\n".join(texts), "j": rows(texts), "c": "text\n" + "\n".join(texts)}[name[2].lower()].encode()
    if name.endswith("GZ"): content = gzip.compress(content)
    assert read_corpus(put(tmp_path/name, content))["text"][:] == texts
    with pytest.raises(FileNotFoundError, match="doesn't exist"): read_corpus(f"no/{name}")


@pytest.mark.parametrize("name,content", [("a.txt", "\n\n".join(texts)), ("a.jsonl", rows(texts)), ("a.csv", "text\n" + "\n".join(texts)),
                                          ("a.json", json.dumps([dict(text=t) for t in texts]))])
def test_a_byte_order_mark_is_no_text(name, content, tmp_path, cache):
    assert read_corpus(put(tmp_path/name, codecs.BOM_UTF8 + content.encode()))["text"][:] == texts


@pytest.mark.parametrize("name,sign,said", [("a.csv", ",", 0), ("a.csv", ";", 1), ("a.csv", "\t", 1), ("a.csv", "|", 1), ("a.tsv", "\t", 0),
                                            ("a.tsv", ",", 1), ("a.tsv", ";", 1)])
def test_the_separator_of_a_table_is_seen_and_told(name, sign, said, tmp_path, cache, caplog):
    table = f"id{sign}text\n" + "\n".join(f"{i}{sign}{text}" for i, text in enumerate(texts))
    assert read_corpus(put(tmp_path/name, table))["text"][:] == texts
    assert len([r for r in caplog.records if "separator" in r.message]) == said


@pytest.mark.parametrize("name,sign", [("a.csv.zst", ","), ("a.tsv.zst", "\t"), ("a.CSV.ZST", ",")])
def test_no_separator_is_read_from_what_cannot_be_unpacked(name, sign, tmp_path, caplog):
    assert csv_separator(put(tmp_path/name, b"(\xb5/\xfd;\x00\n")) == sign and not caplog.records


def test_commas_in_a_table_of_one_column_are_text(tmp_path, cache):
    assert read_corpus(put(tmp_path/"a.csv", 'text\n"one; two"\nthree')).to_list() == [{"text": "one; two"}, {"text": "three"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_other_content_at_the_same_time_is_read(name, tmp_path, cache):
    content = lambda some: rows(some) if name == "a.jsonl" else "\n\n".join(some)
    path = put(tmp_path/name, content(texts))
    first, time = read_corpus(path), path.stat().st_mtime_ns
    put(path, content([t.upper() for t in texts]))
    os.utime(path, ns=(time, time))
    again = read_corpus(path)
    assert again["text"][:] == [t.upper() for t in texts] and again._fingerprint != first._fingerprint


def test_how_records_end_is_told_and_can_be_said(tmp_path, cache, caplog):
    path = put(tmp_path/"a.txt", "\n".join(texts))
    assert len(read_corpus(path)) == 1 and "sample_by='line'" in caplog.records[0].message
    assert read_corpus(path, sample_by="line")["text"][:] == texts
    assert len(read_corpus(path, sample_by="document")) == 1
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match="^sample_by='word' is unknown.*'document'[^.]*.$"): read_corpus(path, sample_by="word")
    with pytest.raises(ValueError, match="is for text files, and this is json"): read_corpus(put(tmp_path/"a.jsonl", rows(texts)), sample_by="line")


packed = gzip.compress(os.urandom(9000).hex().encode())
damaged = {"latin.csv": ("text\na\nna\xefve".encode("latin-1"), "line 3 of latin.csv isn't UTF-8"),
           "latin.jsonl": (rows(texts).encode() + '\n{"text": "na\xefve"}'.encode("latin-1"), "line 21 of latin.jsonl isn't UTF-8"),
           "wide.txt": ("a\n\nb".encode("utf-16"), "line 1 of wide.txt isn't UTF-8"),
           "half.jsonl": (rows(texts) + '\n{"text": ', "line 21 of half.jsonl isn't JSON"),
           "cut.jsonl.gz": (packed[:4000], "cut.jsonl.gz is cut off"), "cut.txt.gz": (packed[:4000], "cut.txt.gz is cut off"),
           "cut.csv.gz": (packed[:4000], "cut.csv.gz is cut off"),
           "deep.jsonl": ('{"a":'*900 + "1" + "}"*900, "nested too deeply. Give flat records"),
           "deep.json": ("["*100_000, "deep.json can't be read as json: .* Save it anew")}


@pytest.mark.parametrize("name", damaged)
def test_a_damaged_file_is_one_line_that_names_file_and_line(name, tmp_path, cache):
    content, message = damaged[name]
    with pytest.raises(ValueError, match=message) as error: load_corpus(put(tmp_path/name, content))
    assert "\n" not in str(error.value)


null_records = {"first": b"null", "behind a mark": b"\xef\xbb\xbf\n null\n", "last": (rows(texts) + "\nnull\n").encode(),
                "many": (rows(texts) + "\nnull"*20_000).encode(), "in a list": b'[null, {"text": "a"}]',
                "in a list, spread": b'[\n {"text": "a"},\n null\n]'}
records_with_null = {"a value": b'{"text": null}\n' + rows(texts).encode(), "spread": b'{"text": "a",\n "more": [1,\n null\n]}\n'*3,
                     "in code": b'{"text": "if (x) { y } null; } null"}\n'*3, "in text": b'{"text": "}\\n null null"}\n{"text": "null"}', "in a list": b'[{"text": "a", "more": [null]}]'}


@pytest.mark.parametrize("end", [".jsonl", ".json", ".jsonl.gz"])
@pytest.mark.parametrize("name", null_records)
def test_a_null_in_the_place_of_a_record_ends_no_process(name, end, tmp_path, cache):
    "pyarrow reads other memory there, and the system ends the program"
    content = gzip.compress(null_records[name]) if end.endswith("gz") else null_records[name]
    with pytest.raises(ValueError, match="a null in the place of a record. Take it out") as error: load_corpus(put(tmp_path/f"a{end}", content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [1, 7, 2**24])
def test_a_null_is_seen_wherever_the_parts_end(part):
    for content in null_records.values(): assert has_null_record(io.BytesIO(content), part)
    for content in records_with_null.values(): assert not has_null_record(io.BytesIO(content), part)


def test_files_for_training_and_testing(tmp_path, cache, capsys):
    train, held = put(tmp_path/"a [1].jsonl", rows(texts[:15])), put(tmp_path/"b.TXT", "\n\n".join(texts[15:]))
    corpus = load_corpus({"train": train, "test": str(held)})
    assert corpus["train"]["text"][:] == texts[:15] and corpus["test"]["text"][:] == texts[15:]
    for flags, message in [(["--validation_file", held], "is for use beside --train_file"), (["--dataset_name", ""], "dataset_name is empty"),
                           (["--train_file", train, "--dataset_name", train], "Both --dataset_name and a file"),
                           (["--dataset_name", train, "--test_size", "2.5"], "test_size=2.5")]:
        assert main(["perplexity", *map(str, flags)]) == 1
        assert message in capsys.readouterr().err
