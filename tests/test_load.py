"Every kind of corpus, splits that don't leak, a Hub that isn't there"
import bz2, csv, gzip, json, lzma, pathlib, re, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets, pandas as pd, pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings, strategies as st
from clm_nb.ledger import Ledger
from clm_nb.data.files import is_path, local_files
from clm_nb.data.python_docs import python_docs
from clm_nb.data.split import record_groups, split_corpus
from clm_nb.load import load_corpus, read_corpus
from clm_nb.data.tokenizer import load_tokenizer
from clm_nb.model.model import load_model
from conftest import answer, python
import tiny

datasets.disable_progress_bars()
answers = [f'Answer {i}, with "quotes",\ttabs, a new\nline, and 日本語 🙂' for i in range(12)]
records = [{"q_id": f"q{i}", "title": f"Question {i}?", "text": text, "score": i} for i, text in enumerate(answers)]
nested = [{"q_id": r["q_id"], "answers": {"a_id": ["a", "b"], "text": [r["text"], r["title"]]}} for r in records]


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)


def write_folder(path):
    (path/"deeper").mkdir(parents=True)
    (path/".hidden.txt").write_text("not a document", encoding="utf-8")
    for i, text in enumerate(answers):
        (path/("deeper" if i % 2 else "")/f"{i}.txt").write_text(text + "\n\nend", encoding="utf-8")


def write_gzip(path):
    with gzip.open(path, "wt", encoding="utf-8") as file: json.dump(records, file)


lines = "\n".join(json.dumps(r) for r in records)
formats = {
    "corpus.json": lambda p: p.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8"),
    "lines.json": lambda p: p.write_text(lines, encoding="utf-8"), "corpus.jsonl": lambda p: p.write_text(lines + "\n", encoding="utf-8"),
    "corpus.v2.json.gz": write_gzip, "corpus.csv": write_csv, "corpus.tsv": lambda p: write_csv(p, "\t"),
    "corpus.parquet": lambda p: Dataset.from_list(records).to_parquet(p),
    "corpus.txt": lambda p: p.write_text("\n\n".join(answers), encoding="utf-8"), "texts": write_folder,
    "saved": lambda p: Dataset.from_list(records).save_to_disk(p),
    "two words.json": lambda p: p.write_text(json.dumps(records), encoding="utf-8"),
    "nested.json": lambda p: p.write_text(json.dumps(nested), encoding="utf-8"),
}


def texts(corpus):
    "The (first) text of every record"
    return [r["answers"]["text"][0] if "answers" in r else r["text"] for split in corpus.values() for r in split]


@pytest.mark.parametrize("name", formats)
def test_local_formats(name, tmp_path, cache):
    formats[name](tmp_path/name)
    ledger = Ledger()
    corpus = load_corpus(tmp_path/name, test_size=3, ledger=ledger)
    assert sorted(texts(corpus)) == sorted(t + "\n\nend" if name == "texts" else t for t in answers)
    assert {split: len(part) for split, part in corpus.items()} == dict(train=9, test=3)
    counts = lambda n: dict(read=n, dropped_duplicates=0, records=n)
    assert ledger["load", "train"] == counts(9) and ledger["load", "test"] == counts(3)
    assert texts(load_corpus(str(tmp_path/name), test_size=3)) == texts(corpus)


@pytest.mark.parametrize("name", ["corpus.jsonl", "saved"])
def test_slices_of_local_data(name, tmp_path, cache):
    formats[name](tmp_path/name)
    assert read_corpus(tmp_path/name, split="train[2:7]")["text"][:] == answers[2:7]
    assert read_corpus(tmp_path/name, split="train[-3:]")["text"][:] == answers[-3:]
    assert read_corpus(tmp_path/name, split="train[:50%]")["text"][:] == answers[:6]
    with pytest.raises(ValueError, match="validation"): read_corpus(tmp_path/name, split="validation[:3]")


def test_a_changed_file_is_read_again(tmp_path, cache):
    path = tmp_path/"corpus.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    first = read_corpus(path)
    path.write_text(json.dumps(records[::-1]), encoding="utf-8")
    assert read_corpus(path)["text"][:] == first["text"][::-1]


def test_objects_and_their_slices():
    data = Dataset.from_list(records)
    assert sorted(texts(load_corpus(data, test_size=0.25))) == sorted(answers)
    assert len(load_corpus(data, test_size=0.25)["test"]) == 3
    assert read_corpus(data, split="train[50%:]")["text"][:] == answers[6:]
    assert read_corpus(data, split="train[:100]")["text"][:] == answers
    assert read_corpus(DatasetDict(train=data, dev=data.select([0])), split="dev")["text"][:] == answers[:1]
    assert read_corpus(DatasetDict(train=data), split="train[:5]")["text"][:] == answers[:5]
    with pytest.raises(ValueError, match="dev"): read_corpus(DatasetDict(train=data), split="dev")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("held", ["test", "validation"])
def test_own_splits_are_kept(held, saved, tmp_path):
    data = DatasetDict({"train": Dataset.from_list(records[:9]), held: Dataset.from_list(records[9:])})
    if saved: data.save_to_disk(tmp_path/"saved")
    corpus = load_corpus(tmp_path/"saved" if saved else data)
    assert list(corpus) == ["train", "test"]
    assert corpus["train"]["text"][:] == answers[:9] and corpus["test"]["text"][:] == answers[9:]


def test_test_comes_before_validation_and_a_lone_split_is_split():
    one = lambda i: Dataset.from_list(records[i:i + 1])
    corpus = load_corpus(DatasetDict(train=one(0), validation=one(1), test=one(2)))
    assert texts(corpus) == [answers[0], answers[2]]
    alone = load_corpus(DatasetDict(validation=Dataset.from_list(records)), test_size=2)
    assert len(alone["test"]) == 2 and sorted(texts(alone)) == sorted(answers)


nothing = {
    "empty.txt": b"", "blank.txt": b"\n\n  \n\n", "empty.json": b"[]", "header.csv": b"q_id,text\n",
    "half.json": b'[{"text": "a"}, {"te',
    "corrupt.parquet": b"no parquet", "latin1.txt": "naïve".encode("latin-1"), "numbers.json": b'[{"text": 1}]',
    "ragged.csv": b"a,b\n1,2\n1,2,3,4\n", "picture.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", nothing)
def test_a_file_without_text_is_one_clear_line(name, tmp_path, cache):
    (tmp_path/name).write_bytes(nothing[name])
    with pytest.raises((ValueError, OSError)) as error: load_corpus(tmp_path/name)
    assert "\n" not in str(error.value).strip()
    assert name in str(error.value) or "Text columns: none" in str(error.value)


def test_wrong_names_and_numbers_are_one_clear_line(tmp_path):
    data = Dataset.from_list(records)
    for arguments, message in [
        (dict(name_or_path=tmp_path/"nowhere"), "nowhere doesn't exist"),
        (dict(name_or_path="nowhere.json"), "nowhere.json doesn't exist"),
        (dict(text_column="answer"), "text_column='answer' is not a text column .* Text columns: q_id, title, text"),
        (dict(text_column="score"), "text_column='score'"), (dict(test_size=12), "test_size=12"),
        (dict(test_size=1.5), "test_size=1.5"),
        (dict(test_size=0), "test_size=0"), (dict(test_size=-1), "test_size=-1"), (dict(split="test"), "split='test'"),
        (dict(name_or_path=DatasetDict(a=data, b=data)), "the splits a, b"),
        (dict(split="train[:0]"), "holds no (records|text)"),
        (dict(name_or_path=data.select_columns(["q_id", "title"])), "Text columns: q_id, title"),
    ]:
        with pytest.raises((ValueError, OSError), match=message) as error:
            load_corpus(**dict(name_or_path=data) | arguments)
        assert "\n" not in str(error.value)


blank = st.sampled_from([None, "", "  ", "\n"])
word = st.sampled_from([*"abcdefgh"]).flatmap(lambda w: st.sampled_from([w, f" {w}", f"{w}\n"]))
sometimes = lambda values: st.one_of(values, values, blank)
q_id, title = (sometimes(st.integers(0, n).map(str)) for n in (30, 40))
flat_record = st.fixed_dictionaries({"q_id": q_id, "title": title, "text": sometimes(word)})
deep_record = st.fixed_dictionaries({"q_id": sometimes(st.integers(0, 30).map(str)),
    "answers": st.fixed_dictionaries({"text": st.one_of(st.none(), st.lists(sometimes(word), max_size=3))})})
schemas = {kind: datasets.Features(f) for kind, f in dict(
    flat=dict(q_id=datasets.Value("string"), title=datasets.Value("string"), text=datasets.Value("string")),
    deep=dict(q_id=datasets.Value("string"), answers=dict(text=datasets.List(datasets.Value("string"))))).items()}
corpora = st.one_of(st.lists(flat_record, min_size=2, max_size=25).map(lambda rows: ("flat", rows)),
                    st.lists(deep_record, min_size=2, max_size=25).map(lambda rows: ("deep", rows)))


def values(row):
    "The (column, value) pairs of a record that may stand on one side only"
    found = [("text", t) for t in (row["answers"]["text"] or [])] if "answers" in row else [("text", row["text"])]
    found += [(column, row[column]) for column in ("q_id", "title") if column in row]
    return {(column, value.strip()) for column, value in found if value and value.strip()}


def groups(rows):
    "The number of the first record that each is tied to, by going over all pairs until nothing changes"
    number, changed = list(range(len(rows))), True
    while changed:
        changed = False
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                if number[j] > number[i] and values(a) & values(b): number[j], changed = number[i], True
    return number


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(corpora, st.one_of(st.integers(1, 10), st.floats(0.1, 0.9)), st.integers(0, 3))
def test_no_question_and_no_text_on_both_sides(corpus, test_size, seed):
    kind, rows = corpus
    data, wanted, expected = Dataset.from_list(rows, features=schemas[kind]), test_size, groups(rows)
    assert record_groups(data).tolist() == expected
    if isinstance(test_size, float): wanted = round(test_size*len(rows))
    try: split = split_corpus(data, test_size, seed)
    except ValueError as e:
        assert not 0 < wanted < len(rows) or min(map(expected.count, expected)) > wanted, e
        return
    train, test = split["train"].to_list(), split["test"].to_list()
    assert not set().union(*map(values, train)) & set().union(*map(values, test))
    assert 0 < len(test) <= wanted and (len(test) == wanted or max(map(expected.count, expected)) > 1)
    numbered = split_corpus(data.add_column("row", list(range(len(rows)))), test_size, seed)
    order = [part["row"][:] for part in numbered.values()]
    assert sorted(sum(order, [])) == list(range(len(rows))) and all(o == sorted(o) for o in order)
    again = split_corpus(data, test_size, seed)
    assert (again["train"].to_list(), again["test"].to_list()) == (train, test)


def test_the_seed_decides_the_split():
    data = Dataset.from_dict({"text": [f"text {i}" for i in range(200)]})
    tests = [tuple(split_corpus(data, 0.2, seed)["test"]["text"]) for seed in (1, 2, 3, 1)]
    assert tests[0] == tests[3] and len(set(tests)) == 3 and all(len(t) == 40 for t in tests)


digests = """
import hashlib, json, datasets
datasets.disable_progress_bars()
from clm_nb.data.files import is_path, local_files
from clm_nb.data.python_docs import python_docs
from clm_nb.load import load_corpus
for part in (python_docs("task"), python_docs("base"), *load_corpus("python-docs").values()):
    texts = [text for answers in part["answers"] for text in answers["text"]]
    content = hashlib.sha256(json.dumps(part.to_list()).encode()).hexdigest()
    print(json.dumps([len(part), len(texts) - len(set(texts)), part._fingerprint, content]))
"""


def test_python_docs_is_the_same_in_every_process(tmp_path, capsys):
    anew = python(digests, CLM_NB_CACHE=tmp_path, PYTHONHASHSEED=1)
    exec(digests, {})
    assert (found := answer(anew)) == capsys.readouterr().out
    records, repeats, fingerprints, _ = zip(*map(json.loads, found.splitlines()))
    task, base, train, test = records
    assert train + test == task > 50 and base > 1000 and not any(repeats) and len(set(fingerprints)) == 4


def test_no_paragraph_of_python_docs_is_on_both_sides(cache):
    corpus = load_corpus("python-docs")
    texts = [[text for answers in part["answers"] for text in answers["text"]] for part in corpus.values()]
    train, test = ({p.strip() for text in side for p in text.split("\n\n")} for side in texts)
    headings = {p for p in train | test if len(p.splitlines()) < 2 and len(p) < 80}
    assert len(train) > 500 and len(test) > 50 and not train & test - headings
    with pytest.raises(ValueError, match="part='tasks'"): python_docs("tasks")


@pytest.fixture
def hub(monkeypatch):
    "A Hub on this machine: the test sets `hub.reply = status, {headers}` and finds the requests' headers in `hub.seen`"
    import huggingface_hub.constants as constants
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if "some/corpus" in self.path: server.seen.append(self.headers)
            status, headers = server.reply
            self.send_response(status)
            for key, value in (headers | {"Content-Length": "0"}).items(): self.send_header(key, value)
            self.end_headers()
        do_HEAD = do_GET
        def log_message(self, *args): pass
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("reply,error,message", [
    ((404, {"X-Error-Code": "RepoNotFound"}), ValueError, "'some/corpus' is neither a local path nor a public dataset"),
    ((401, {"X-Error-Code": "RepoNotFound"}), ValueError, "'some/corpus' is neither .* log in"),
    ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}), OSError, "refused .*401"),
    ((403, {"X-Error-Code": "GatedRepo"}), PermissionError, "'some/corpus' is gated"),
    ((404, {"X-Error-Code": "RevisionNotFound"}), ValueError, "'some/corpus' has no revision 'v9'"),
    ((403, {}), OSError, "refused .*403"), ((503, {}), ConnectionError, "can't be reached"),
])
def test_what_the_hub_refuses_is_one_clear_line(hub, reply, error, message):
    hub.reply = reply
    with pytest.raises(error, match=message) as raised: load_corpus("some/corpus", revision="v9", token="hf_mine")
    assert "\n" not in str(raised.value) and "hf_mine" not in str(raised.value)
    assert hub.seen[0]["Authorization"] == "Bearer hf_mine"


@pytest.mark.parametrize("load", [load_corpus, load_tokenizer, load_model])
@pytest.mark.parametrize("headers", [{"X-Error-Code": "RevisionNotFound"}, {}])
def test_a_repository_without_a_branch_called_main_is_one_clear_line(load, headers, hub):
    hub.reply = 404, headers
    with pytest.raises(ValueError, match="'some/old' has no branch 'main'.*'master': revision=") as error: load("some/old")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_corpus, load_tokenizer, load_model])
def test_without_a_network_a_hub_name_is_one_clear_line(load):
    with pytest.raises(ConnectionError, match="'some/name': the Hub can't be reached .* 'python-docs'") as error:
        load("some/name")
    assert "\n" not in str(error.value)


def test_an_earlier_copy_is_used_where_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    "A model that stands in the Hub's cache as a download leaves it"
    folder, commit = tmp_path/"models--some--name", "0123456789"*4
    tiny.gpt2().save_pretrained(folder/"snapshots"/commit)
    tiny.tokenizer().save_pretrained(folder/"snapshots"/commit)
    (folder/"refs").mkdir()
    (folder/"refs"/"main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_tokenizer("some/name", cache_dir=tmp_path)("The fox") == tiny.tokenizer()("The fox")
    assert load_model("some/name", cache_dir=tmp_path).config.n_embd == 32


@pytest.mark.parametrize("name", ["data\\texts", "C:/texts", "C:texts", "c:\\texts\\one.csv", "\\\\server\\texts"])
def test_a_name_as_windows_writes_it_is_a_path(name):
    "And is never asked for on the Hub"
    assert is_path(name)
    with pytest.raises((ValueError, OSError)) as error: load_corpus(name)
    assert "Hub can't be reached" not in str(error.value) and name in str(error.value)


def test_files_come_in_one_order_everywhere(tmp_path, monkeypatch):
    "On Windows, paths are compared without their case"
    for name in ("b.txt", "A.txt", "a.txt", "C/z.txt", "c/y.txt", "a-b/x.txt"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("one text", encoding="utf-8")
    found = local_files(tmp_path)[1]
    monkeypatch.setattr(pathlib.PurePath, "__lt__", lambda self, other: str(self).lower() < str(other).lower())
    assert local_files(tmp_path)[1] == found == sorted(found, key=str)


@pytest.mark.parametrize("name", ["DATA.CSV", "Data.Tsv", "DATA.JSONL", "DATA.JSON.GZ", "DATA.CSV.BZ2", "DATA.TXT", "DATA.TXT.XZ", "DATA.MD", "Data.Parquet"])
def test_endings_in_capitals_are_the_same_kinds(name, tmp_path, cache):
    "A file, a folder of one, and a dict of files"
    frame, small = pd.DataFrame(dict(text=[f"Text {i} is here." for i in range(8)])), name.lower()
    path = tmp_path/"folder"/name
    path.parent.mkdir()
    if small.endswith(".parquet"): frame.to_parquet(path)
    else:
        written = {".csv": frame.to_csv(index=False), ".tsv": frame.to_csv(index=False, sep="\t"), ".json": frame.to_json(orient="records", lines=True)}
        content = next((text for ending, text in written.items() if ending in small), "\n\n".join(frame["text"]))
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(pathlib.Path(small).suffix, bytes)
        path.write_bytes(pack(content.encode()))
    assert read_corpus(path, sample_by="paragraph" if re.search("txt|md", small) else None)["text"][:] == frame["text"].tolist()
    assert len(read_corpus({"train": path, "test": path})["train"]) == 8
    assert len(read_corpus(path.parent)) == (1 if re.search("txt|md", small) else 8)
