"What each function says to an object of another kind: it takes it, or one line names the type and what to give"
import numpy as np, pandas as pd, pytest, torch
from datasets import Dataset, DatasetDict, IterableDataset
import clm_nb.core as c
from clm_nb.ledger import Ledger
import tiny

tokenizer, model = tiny.tokenizer(), tiny.gpt2()
texts = ["The quick brown fox jumps over the lazy dog, again and again."]*6
ids = [[1, 2, 3, 4, 5, 6, 7, 8]]*6


def both(**columns): return DatasetDict(train=Dataset.from_dict(columns), test=Dataset.from_dict(columns))


blocks = both(input_ids=ids)
objects = {
    "None": None, "a text": "words", "no text": "", "an int": 3, "a float": 1.5, "bytes": b"abc", "an object": object(), "a function": len, "a class": dict,
    "an array": np.arange(6), "a table of numbers": np.arange(12).reshape(3, 4), "a tensor": torch.arange(6), "an empty list": [], "texts": texts,
    "Nones": [None, None], "ints": [1, 2], "lists of ints": ids, "a list in a list": [[]], "a dict": {"text": texts}, "an empty dict": {}, "dicts": {"a": {"b": 1}},
    "a set": {1, 2}, "a Dataset": Dataset.from_dict({"text": texts}), "an empty Dataset": Dataset.from_dict({"text": []}), "no columns": Dataset.from_dict({}),
    "no splits": DatasetDict(), "an empty split": DatasetDict(train=blocks["train"], test=blocks["test"].select([])), "nothing to train on": DatasetDict(train=blocks["train"].select([]), test=blocks["test"]),
    "nested": both(text=[{"a": ["x"]}]*6), "lists of texts": both(text=[["a", "b"]]*6), "numbers for texts": both(text=[*range(6)]), "blocks": blocks, "one split": blocks["train"],
    "only a test split": DatasetDict(test=blocks["test"]), "ids beyond": both(input_ids=[[1, 2, 99_999]]*4), "negative ids": both(input_ids=[[-1, 2]]*4), "nested ids": both(input_ids=[ids]*3),
    "fractions": both(input_ids=[[1.5, 2.5]]*3), "missing ids": both(input_ids=[None, [1, 2]]), "texts for ids": both(input_ids=["ab"]), "empty rows": both(input_ids=[[], []]), "single ids": both(input_ids=[[1], [2]]),
    "short labels": both(input_ids=[[1, 2, 3]]*4, labels=[[1]]*4), "no labels": both(input_ids=[[1, 2, 3]]*4, labels=[None]*4), "texts for labels": both(input_ids=[[1, 2, 3]]*4, labels=["a"]*4),
    "a short mask": both(input_ids=[[1, 2, 3]]*4, attention_mask=[[1, 1]]*4), "a stream": IterableDataset.from_generator(lambda: iter([{"text": "a"}])), "a DataFrame": pd.DataFrame({"text": texts}),
    "an empty DataFrame": pd.DataFrame(), "a model": model, "a tokenizer": tokenizer, "a generator": (text for text in texts)}
few = dict(max_steps=1, disable_tqdm=True, use_cpu=True, save_strategy="no", bf16=False)
doors = {
    "load_corpus": c.load_corpus, "flatten": c.flatten, "tokenize": lambda x: c.tokenize(x, tokenizer), "tokenize, its tokenizer": lambda x: c.tokenize(texts, x), "group": lambda x: c.group(x, 4),
    "group, its size": lambda x: c.group(blocks, x), "train": lambda x: c.train(model, x, tokenizer, "run", **few), "train, its model": lambda x: c.train(x, both(input_ids=[[1]]), tokenizer, "run", **few),
    "train, its tokenizer": lambda x: c.train(model, both(input_ids=[[1]]), x, "run", **few), "fit": lambda x: c.fit(model, x, 1), "fit, its model": lambda x: c.fit(x, both(input_ids=[[1]]), 1), "training_arguments": lambda x: c.train(model, blocks, tokenizer, x, max_steps=0, num_train_epochs=0),
    "perplexity": lambda x: c.perplexity(model, x, tokenizer), "perplexity, its model": lambda x: c.perplexity(x, blocks["test"]), "perplexity, its tokenizer": lambda x: c.perplexity(model, "words", x),
    "document_perplexities": lambda x: c.document_perplexities(model, x, tokenizer), "generate": lambda x: c.generate(model, tokenizer, x, max_new_tokens=1), "generate, its model": lambda x: c.generate(x, tokenizer, "A"),
    "generate, its tokenizer": lambda x: c.generate(model, x, "A", max_new_tokens=1), "stream": lambda x: [*c.stream(model, tokenizer, x, max_new_tokens=1)], "next_tokens": lambda x: c.next_tokens(model, tokenizer, x),
    "explorer": lambda x: c.NextTokenExplorer(model, tokenizer, x), "explorer, its model": lambda x: c.NextTokenExplorer(x, tokenizer), "app": lambda x: c.GenerationApp(model, tokenizer, x), "app, its model": lambda x: c.GenerationApp(x, tokenizer),
    "ledger_flow": c.ledger_flow, "check_ledger": c.check_ledger, "baselines": lambda x: c.baselines(x, 400), "kneser_ney": lambda x: c.kneser_ney(x, 400), "load_tokenizer": c.load_tokenizer, "load_config": c.load_config,
    "load_model": lambda x: x is None or c.load_model(x), "split_corpus": c.split_corpus, "leakage": c.leakage, "remove_leaks": c.remove_leaks, "collator": lambda x: c.CausalCollator()(x), "BlockRows": c.BlockRows.of, "write_report": c.write_report}
slow = {"find_lr": lambda x: c.find_lr(model, x, tokenizer, steps=20, use_cpu=True)}
trained_on = [kind for kind, x in objects.items() if isinstance(x, (Dataset, DatasetDict))]


def answers(door, kind):
    "None where it is taken; else the line"
    try: door(objects[kind])
    except (ValueError, TypeError, OSError) as error: return error


@pytest.mark.parametrize("name", doors)
def test_an_object_of_another_kind_is_taken_or_answered_in_one_line(name, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in objects:
        error = answers(doors[name], kind)
        said = str(error or "")
        assert "\n" not in said, (kind, said)
        assert error is None or len(said) > 20 and "/clm_nb/" in raised_in(error).replace("\\", "/"), (kind, raised_in(error), said)
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "datasets_cache", "run"}


def raised_in(error) -> str:
    "The file whose line says it: ours, where the words are ours"
    last = error.__traceback__
    while last.tb_next: last = last.tb_next
    return last.tb_frame.f_code.co_filename


@pytest.mark.parametrize("kind", trained_on)
def test_a_sweep_refuses_what_training_refuses(kind, monkeypatch):
    from clm_nb.training import lr_finder
    class Begun(Exception): pass
    def begin(*args): raise Begun
    monkeypatch.setattr(lr_finder, "_sweep", begin)
    try: error = answers(slow["find_lr"], kind)
    except Begun: error = None
    good = kind in ("blocks", "one split", "an empty split")
    assert (error is None) == (kind in ("blocks", "one split")) or good and "nothing to predict" in str(error), error


def test_what_is_missing_is_named():
    for x, words in [(both(input_ids=[[1, 2, 99_999]]), "the id 99,999, and the model knows 400"), (objects["an empty split"], "'test' has no row of two tokens"),
                     (objects["only a test split"], "no 'train' split"), (objects["short labels"], "'labels' are more or fewer"), (objects["no labels"], "'labels'")]:
        with pytest.raises(ValueError, match=words): c.train(model, x, tokenizer, "run", **few)
    with pytest.raises(TypeError, match="model= is of the type str. Give a causal model"): c.train("gpt2", blocks, tokenizer, "run")
    with pytest.raises(TypeError, match="tokenizer= is of the type str"): c.train(model, blocks, "gpt2", "run")
    with pytest.raises(TypeError, match="ledger= is of the type dict"): c.ledger_flow({})
    assert c.check_ledger(Ledger()).entries == {}


def test_what_is_trained_on_is_looked_at_once(tmp_path, monkeypatch):
    "A corpus of a billion tokens isn't gone through twice before the first step"
    from clm_nb.data import objects
    looked, check_ids = [], objects.check_ids
    monkeypatch.setattr(objects, "check_ids", lambda splits, known: looked.append(known) or check_ids(splits, known))
    c.train(tiny.gpt2(), blocks, tokenizer, tmp_path/"run", **few)
    assert looked == [400]
