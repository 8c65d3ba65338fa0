"Both texts of the tutorial, run as they stand: each fault that the page's table names is seen, in the texts that have it"
import importlib.metadata, json, re
from pathlib import Path

import datasets, huggingface_hub.constants, nbformat, pytest, torch
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainingArguments

import tiny
from conftest import answer, python
from hub import Hub
from tree import root
from upstream import texts

datasets.disable_progress_bars()
years = pytest.mark.parametrize("year", texts)
secret = "hf_secretsecret"


# From the first line to the last, in a process of its own, with a Hub on this machine

walk = """
import json, sys
import datasets, transformers
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
pieces, stopped, names = json.load(open(sys.argv[1])), {}, {}
for name, (code, instead) in pieces.items():
    try: exec(code, names)
    except Exception as e:
        stopped[name] = f"{type(e).__name__}: {e}"
        exec(instead, names)
exec(sys.argv[2], names)
json.dump([stopped, names["facts"]], open("out.json", "w"))
"""

facts = """
import torch
rows, losses = lm_dataset["test"]["input_ids"], []
for row in rows:
    with torch.no_grad(): logits = trainer.model(torch.tensor([row], device=trainer.model.device)).logits[0, :-1]
    losses.append(torch.nn.functional.cross_entropy(logits.double().cpu(), torch.tensor(row[1:])).item())
facts = dict(reported=eval_results["eval_loss"], exact=sum(losses)/len(losses), lengths=sorted({len(row) for row in rows}))
"""


def answer_text(i: int) -> str: return f"Answer {i}: the quick brown fox jumps over {i} lazy dogs, and {i*i} more of them."


def records(n: int) -> list[dict]:
    "ELI5's shape: two answers each, long enough for a block in each of four processes"
    answers = lambda i: {"text": [" ".join(answer_text(100*i + j) for j in range(5)), f"And {i}."]}
    return [{"q_id": f"q{i}", "title": f"Question {i}?", "answers": answers(i)} for i in range(n)]


def save_model(folder: Path) -> dict:
    "A model with GPT-2's context and its tokenizer; the files as they are on the Hub"
    tiny.gpt2(n_positions=1024).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def start(year: str, here: Path, hub: Hub):
    "Begin a text in `here`; a line that stops is replaced by that of 2026, or left out"
    save_model(here/"distilgpt2")
    (here/"eli5").mkdir()
    (here/"eli5"/"eli5.py").write_text("# a data set as a program, as they were in 2023", encoding="utf-8")
    instead = {"load": texts["2026"]["load"], "arguments": texts["2026"]["arguments"]}
    (here/"pieces.json").write_text(json.dumps({k: [code, instead.get(k, "")] for k, code in texts[year].items()}), encoding="utf-8")
    return python(f"import os; os.chdir({str(here)!r})\n{walk}", "pieces.json", facts, HF_ENDPOINT=hub.url,
                  HF_HOME=here/"home", HF_DATASETS_CACHE=here/"cache", HF_TOKEN=secret, HF_HUB_DISABLE_XET=1)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    "{year: what stopped, what came out, what lies on the Hub, the folder}"
    folder, running, found = tmp_path_factory.mktemp("upstream"), {}, {}
    for year in texts:
        hub = Hub({secret: "username"})
        hub.add("model", "distilbert/distilgpt2", save_model(folder/"model"))
        hub.add("dataset", "dany0407/eli5_category", {"train.json": json.dumps(records(60)).encode()})
        running[year] = hub, start(year, folder/year, hub)
    for year, (hub, process) in running.items():
        answer(process)
        hub.close()
        assert not hub.unknown
        stopped, came_out = json.loads((folder/year/"out.json").read_bytes())
        found[year] = stopped, came_out, hub.repos["model", "username/my_awesome_eli5_clm-model"].at(), folder/year
    return found


# The pieces alone

def run(year: str, *pieces: str, change=("", ""), **names) -> dict:
    "The names after some pieces of a text"
    for piece in pieces: exec(texts[year][piece].replace(*change), names)
    return names


def corpus(*documents: str) -> DatasetDict:
    return DatasetDict(train=Dataset.from_list([{"answers": {"text": [text]}} for text in documents]))


def prepared(year: str, *documents: str, num_proc: int = 1) -> dict:
    "The names after flatten, tokenize and group; the texts have four processes"
    names = run(year, "tokenize", change=("num_proc=4", "num_proc=1"), eli5=corpus(*documents), tokenizer=tiny.tokenizer())
    return run(year, "group", change=("num_proc=4", f"num_proc={num_proc}"), **names)


def count(lists) -> int: return sum(map(len, lists))


class Counted(list):
    "A list that knows how many elements were copied to add it to others"
    copied = 0

    def __radd__(self, others):
        Counted.copied += len(others) + len(self)
        return Counted([*others, *self])


# The faults: whether a text has it, by the line that has it

def no_torch(year, walked, **_):
    needs = {re.match(r"[\w-]+", o)[0] for name in ("transformers", "datasets", "evaluate")
             for o in importlib.metadata.requires(name) if "extra" not in o}
    return "numpy" in needs and not needs & {"torch", "accelerate"}


def data_as_a_program(year, walked, **_): return "scripts are no longer supported" in walked[year][0].get("load", "")


def old_argument(year, walked, **_): return "'evaluation_strategy'" in walked[year][0].get("arguments", "")


def no_tensorflow(year, walked, **_): return walked[year][0].get("tensorflow", "").startswith("ImportError")


def no_login_no_training(year, tmp_path, **_):
    "The port that conftest.py names as the Hub's is closed"
    rows = [{"input_ids": [1]*8}]
    names = run("2026", "collate", "arguments", tokenizer=tiny.tokenizer(), TrainingArguments=TrainingArguments)
    with pytest.raises(Exception) as stopped:
        run(year, "train", model=tiny.gpt2(), lm_dataset=dict(train=rows, test=rows), Trainer=Trainer, **names)
    return any(o.name == "init_hf_repo" for o in stopped.traceback) and not any(tmp_path.rglob("checkpoint*"))


def only_by_way_of_the_hub(year, walked, monkeypatch, **_):
    "The model lies in the folder, and without the Hub it is not found"
    monkeypatch.chdir(walked[year][3])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Path("my_awesome_eli5_clm-model/model.safetensors").exists()
    code = texts[year]["pipeline"].replace("generator(prompt)", "")
    try: exec(code, {})
    except OSError as e: return "couldn't connect" in str(e)
    return False


def another_split_each_time(year, **_):
    first, second = (run(year, "split", eli5=Dataset.from_list(records(60)))["eli5"]["test"]["q_id"] for _ in range(2))
    return sorted(first) != sorted(second)


def copies_on_both_sides(year, **_):
    "Fifty records with one text"
    halves = run(year, "split", eli5=Dataset.from_list([dict(text="The same.")]*50))["eli5"]
    return bool(set(halves["train"]["text"]) & set(halves["test"]["text"]))


def documents_without_an_end(year, **_):
    names = prepared(year, *map(answer_text, range(100)))
    return names["tokenizer"].eos_token_id not in sum(names["lm_dataset"]["train"]["input_ids"], [])


def a_text_that_spells_an_end(year, **_):
    names = prepared(year, *[f"{answer_text(i)} <|endoftext|> is spelled here." for i in range(100)])
    return names["tokenizer"].eos_token_id in sum(names["lm_dataset"]["train"]["input_ids"], [])


def quadratic(year, **_):
    group_texts, copied = prepared(year, answer_text(0))["group_texts"], []
    for n in (100, 200, 400):
        Counted.copied = 0
        group_texts({"input_ids": [Counted(range(65)) for _ in range(n)]})
        copied.append(Counted.copied)
    return all(after > 3.5*before for before, after in zip(copied, copied[1:]))


def a_remainder_for_each_process(year, **_):
    documents = [answer_text(i) for i in range(100)]
    kept = [count(prepared(year, *documents, num_proc=n)["lm_dataset"]["train"]["input_ids"]) for n in (4, 1)]
    return kept[0] < kept[1]


def a_row_that_is_too_short(year, **_):
    return prepared(year, "Yes.")["group_texts"]({"input_ids": [[1, 2, 3]]})["input_ids"] == [[1, 2, 3]]


def labels_thrown_away(year, **_):
    collate = run(year, "collate", tokenizer=tiny.tokenizer())["data_collator"]
    return collate([dict(input_ids=[5, 6, 7], labels=[-100, -100, 7])])["labels"].tolist() == [[5, 6, 7]]


def nothing_is_shifted(year, **_):
    collate = run(year, "collate", tokenizer=tiny.tokenizer())["data_collator"]
    return collate([dict(input_ids=[5, 6, 7])])["labels"].tolist() == [[5, 6, 7]]


def no_end_to_learn(year, **_):
    names = run(year, "collate", tokenizer=tiny.tokenizer())
    eos = names["tokenizer"].eos_token_id
    return names["data_collator"]([dict(input_ids=[5, 6, eos, 7])])["labels"].tolist() == [[5, 6, -100, 7]]


def documents_see_each_other(year, **_):
    "The second document's predictions change with the first"
    rows = [prepared(year, first, *map(answer_text, range(100)))["lm_dataset"]["train"][0] for first in ("A cat.", "A hut.")]
    assert set(rows[0]) == {"input_ids", "attention_mask", "labels"} and len(rows[0]["input_ids"]) == 128
    same = [a == b for a, b in zip(*(row["input_ids"] for row in rows))]
    last = max(i for i, equal in enumerate(same) if not equal)
    with torch.no_grad(): one, other = (tiny.gpt2()(torch.tensor([row["input_ids"]])).logits[0, last + 5:] for row in rows)
    return last < 20 and not torch.allclose(one, other, atol=1e-4)


def loss_by_one_token_too_many(year, walked, **_):
    _, came_out, _, _ = walked[year]
    assert came_out["lengths"] == [128]
    return came_out["reported"]/came_out["exact"] == pytest.approx(127/128, abs=1e-3)


def a_pickle_is_shared(year, walked, **_):
    return walked[year][2]["training_args.bin"][:2] == b"PK" and b"data.pkl" in walked[year][2]["training_args.bin"]


faults = {
    "pip install transformers datasets evaluate": no_torch,
    'load_dataset("eli5", split="train_asks[:5000]")': data_as_a_program,
    'evaluation_strategy="epoch"': old_argument,
    "push_to_hub=True": no_login_no_training,
    "TFAutoModelForCausalLM": no_tensorflow,
    'model="username/my_awesome_eli5_clm-model"': only_by_way_of_the_hub,
    "eli5.train_test_split(test_size=0.2)": another_split_each_time,
    "train_test_split(test_size=0.2)": copies_on_both_sides,
    'tokenizer([" ".join(x) for x in examples["answers.text"]])': documents_without_an_end,
    "tokenizer([": a_text_that_spells_an_end,
    "sum(examples[k], [])": quadratic,
    "map(group_texts, batched=True, num_proc=4)": a_remainder_for_each_process,
    "if total_length >= block_size:": a_row_that_is_too_short,
    "k: [t[i : i + block_size] for i in range(0, total_length, block_size)]": documents_see_each_other,
    'result["labels"] = result["input_ids"].copy()': labels_thrown_away,
    "This will use the inputs as labels shifted to the right by one element": nothing_is_shifted,
    "tokenizer.pad_token = tokenizer.eos_token": no_end_to_learn,
    "trainer.evaluate()": loss_by_one_token_too_many,
    "trainer.push_to_hub()": a_pickle_is_shared,
}


def table() -> dict[str, dict[str, bool]]:
    "The page's tables: {line: {year: whether the text has the fault}}"
    found = {}
    for cell in nbformat.read(root/"nbs/start/line_by_line.ipynb", as_version=4).cells:
        for line in (o for o in cell.source.splitlines() if o.startswith("| `")):
            first, *marks, _ = [o.strip() for o in line.strip("|").split(" | ")]
            if not marks and "Both texts have all of these lines." in cell.source:
                marks = ["yes"]*len(texts)
            assert set(marks) <= {"yes", "no"} and len(marks) == len(texts), line
            found[first.partition("<br>")[0].strip("`")] = {year: mark == "yes" for year, mark in zip(texts, marks)}
    return found


def test_the_table_names_the_faults_that_are_tested(): assert list(table()) == list(faults)


@years
@pytest.mark.parametrize("line", faults)
def test_a_text_has_the_faults_that_the_table_says(line, year, walked, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    code = "".join(texts[year].values())
    said = table()[line][year]
    assert not said or line in code
    seen = line in code and faults[line](year=year, walked=walked, tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert bool(seen) == said


@years
def test_nothing_else_stops(year, walked):
    assert set(walked[year][0]) <= ({"load", "arguments", "tensorflow"} if year == "2023" else set())
