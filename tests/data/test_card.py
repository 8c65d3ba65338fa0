"A folder whose card names configurations is read as `load_dataset(folder)` reads it, and a card that says nothing of files changes nothing"
import json, os

import datasets, pytest
from datasets import DatasetDict, load_dataset
from clm_nb.load import load_corpus, read_corpus

datasets.disable_progress_bars()
one = "- config_name: {}\n"
cards = { # what stands below `configs:` → the configuration to ask for
    "a pattern for each split": ("- config_name: default\n  data_files:\n  - {split: train, path: 'a/*.jsonl'}\n  - {split: test, path: b.jsonl}", None),
    "lists of files": ("- config_name: mine\n  data_files:\n  - {split: train, path: [a/1.jsonl, b.jsonl]}\n  - {split: test, path: [a/2.jsonl]}", None),
    "one pattern": ("- config_name: mine\n  data_files: 'a/*'", None),
    "a folder": ("- config_name: mine\n  data_dir: a", None),
    "a split of another name": ("- config_name: mine\n  data_files:\n  - {split: train, path: 'a/*'}\n  - {split: validation, path: b.jsonl}", None),
    "the second of two": ("- config_name: x\n  data_files: b.jsonl\n- config_name: y\n  data_files: a/1.jsonl", "y"),
    "the default of two": ("- config_name: x\n  data_files: b.jsonl\n- config_name: y\n  data_files: a/1.jsonl\n  default: true", None),
    "the one called default": ("- config_name: x\n  data_files: b.jsonl\n- config_name: default\n  data_files: a/1.jsonl", None),
    "an option that nobody knows": ("- config_name: x\n  data_files: b.jsonl\n  no_such_option: 3", None),
    "a separator": ("- config_name: x\n  data_files: c.csv\n  sep: ';'", None)}


def rows(name, count=12): return [{"text": f"{name} has a text of its own, number {i}."} for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path/"my data"
    (folder/"a").mkdir(parents=True)
    for name in ("a/1", "a/2", "b"): (folder/f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(name))), encoding="utf-8")
    return folder


def card(folder, configs):
    if "c.csv" in configs:
        for p in folder.rglob("*.jsonl"): p.unlink()
        (folder/"c.csv").write_text("text;n\nyes, with a comma;1\nno;2\n", encoding="utf-8")
    (folder/"README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}\n---\n# Title\n", encoding="utf-8")


def texts(data): return {split: part["text"][:] for split, part in (data if isinstance(data, DatasetDict) else {"train": data}).items()}


@pytest.mark.parametrize("kind", cards)
def test_the_splits_are_those_of_load_dataset(kind, folder, cache):
    configs, name = cards[kind]
    card(folder, configs)
    expected = load_dataset(str(folder), name)
    assert texts(read_corpus(str(folder), name)) == texts(expected)


def test_a_changed_file_is_read_anew_and_test_rows_stay_test_rows(folder, cache):
    card(folder, cards["a pattern for each split"][0])
    assert load_corpus(folder)["test"]["text"][:] == [row["text"] for row in rows("b")]
    stamp = (folder/"b.jsonl").stat()
    (folder/"b.jsonl").write_text((folder/"b.jsonl").read_text(encoding="utf-8").replace("b has", "c has"), encoding="utf-8")
    os.utime(folder/"b.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_corpus(folder)["test"]["text"][0].startswith("c has")


@pytest.mark.parametrize("configs,name,message", [
    ("- config_name: x\n  data_files: b.jsonl\n- config_name: y\n  data_files: a/1.jsonl", None, "several configurations: x, y. Name one"),
    ("- config_name: x\n  data_files: b.jsonl", "z", "no configuration 'z'. Name one of its README.md: x"),
    ("- config_name: x\n  data_files: gone.jsonl", None, "README.md: the files of configuration 'x' can't be found"),
    ("- config_name: x\n  data_files: [{split: train}]", None, "README.md"),
    ("- config_name: x\n  data_files: 7", None, "README.md"),
])
def test_a_card_that_cannot_be_followed_is_one_line(configs, name, message, folder, cache):
    card(folder, configs)
    with pytest.raises(ValueError, match=message) as error: load_corpus(str(folder), name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["# Only words", "---\nlicense: mit\n---\n", "---\nconfigs: none\n---\n", "---\nconfigs: []\n---\n",
                                  "---\nconfigs: [a, b]\n---\n", "---\na: [1\n---\n", "---\n- a\n---\n", "", "---\n"])
def test_a_card_without_configurations_changes_nothing(text, folder, cache):
    (folder/"README.md").write_text(text, encoding="utf-8")
    assert len(read_corpus(folder)) == 36
    with pytest.raises(ValueError, match="which has no configuration 'x'"): load_corpus(folder, "x")
