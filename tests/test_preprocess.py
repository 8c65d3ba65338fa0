"Flatten, tokenize and group against the tutorial's own code, plain Python and numpy; their caches and their memory"
import itertools, json, os, tracemalloc, unicodedata
from pathlib import Path

import datasets, numpy as np, pyarrow as pa, pytest
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from clm_nb.flatten import flatten
from clm_nb.group import group, group_batch, stream_blocks
from clm_nb.cli import main
from clm_nb.ledger import Ledger, check_ledger, ledger_from_dict, ledger_to_dict
from clm_nb.data.cache import cache_sizes, clear_cache
from clm_nb.load import load_corpus
from clm_nb.data.tokenizer import train_tokenizer
from clm_nb.tokenize import tokenize, tokenize_batch, tokenizer_json
from conftest import answer, python
import tiny, upstream
from tiny import split_of

datasets.disable_progress_bars()
block_size = 16
encoders = ("gigatoken", "tokenizers")
group_texts = upstream.function("group_texts", block_size=block_size)


def random_corpus(n, seed):
    "ELI5-shaped records, some with special tokens spelled out in them"
    rng = np.random.default_rng(seed)
    words = ["The fox", "naïve", "日本語🙂", "list,", "12,345", "\n\n", "<|endoftext|>", "def f(x):"]
    text = lambda: " ".join(["So", *rng.choice(words, rng.integers(0, 9))])
    rows = [[text() for _ in range(rng.integers(1, 4))] for _ in range(n)]
    return Dataset.from_list([{"q_id": str(i), "answers": {"text": texts}} for i, texts in enumerate(rows)])


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("n", [2345, 7])
def test_the_tutorials_choices_give_the_tutorials_blocks(n, num_proc, cache):
    corpus, tokenizer = random_corpus(n, n), tiny.tokenizer()
    preprocess_function = upstream.function("preprocess_function", tokenizer=tokenizer)
    eli5 = corpus.flatten()
    tokenized_eli5 = eli5.map(preprocess_function, batched=True, num_proc=num_proc, remove_columns=eli5.column_names)
    theirs = tokenized_eli5.map(group_texts, batched=True, num_proc=num_proc)
    tokens = tokenize(flatten(DatasetDict(train=corpus)), tokenizer, add_eos=False, allow_special=True)
    ours = group(tokens, block_size, remainder="batch", num_proc=num_proc)["train"]
    assert ours.column_names == ["input_ids"] and ours["input_ids"][:] == theirs["input_ids"][:] == theirs["labels"][:]
    assert len(theirs) > n//10 and any(tokenizer.eos_token_id in row for row in theirs["input_ids"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=40), min_size=1, max_size=12))
def test_group_batch_is_group_texts(rows):
    theirs = group_texts({"input_ids": rows})["input_ids"]
    ours = group_batch(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), block_size)
    assert ours["input_ids"].to_pylist() == theirs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=12), st.integers(1, 20))
def test_stream_is_the_concatenation_cut(rows, block):
    pieces = list(stream_blocks([np.array(row, np.int32) for row in rows], block))
    assert np.concatenate([[], *pieces]).tolist() == list(itertools.chain(*rows))
    assert all(len(p) % block == 0 and len(p) for p in pieces[:-1]) and not (pieces and len(pieces[-1]) == 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(1, 99), max_size=30), max_size=8), min_size=1, max_size=4),
       st.integers(2, 20), st.data())
def test_group_is_the_concatenation_cut_however_the_data_lie(tmp_path_factory, chunks, block, data):
    rows = list(itertools.chain(*chunks))
    stream = np.concatenate([[], *rows]).astype(int)
    tokens = concatenate_datasets([split_of(rows) for rows in chunks])
    if len(tokens) and data.draw(st.booleans()):
        order = data.draw(st.permutations(range(len(tokens))))
        tokens, stream = tokens.select(order), np.concatenate([[], *(rows[i] for i in order)]).astype(int)
    whole, ledger = len(stream)//block*block, Ledger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLM_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        for remainder, kept in (("drop", whole), ("pad", len(stream))):
            if not kept:
                with pytest.raises(ValueError, match="fewer than one block"):
                    group(DatasetDict(train=tokens), block, remainder)
                continue
            blocks = group(DatasetDict(train=tokens), block, remainder, pad_token_id=7, ledger=ledger)["train"]
            ids = np.array(blocks["input_ids"][:])
            assert ids.shape[1] == block and ids.ravel().tolist() == stream[:kept].tolist() + [7]*(ids.size - kept)
            if remainder == "pad":
                assert np.array(blocks["attention_mask"][:]).ravel().tolist() == [1]*kept + [0]*(ids.size - kept)
            counts = ledger["group", "train"]
            assert counts["tokens"] == len(stream) == counts["tokens_in_blocks"] + counts["dropped_remainder"]
            found = counts["tokens_in_blocks"], counts["blocks"], counts["padding"]
            assert found == (kept, len(blocks), ids.size - kept)
            assert blocks.features["input_ids"] == List(Value("int32"), length=block)


def test_groups_of_a_short_split_and_wrong_options_are_one_clear_line(cache):
    tokens = DatasetDict(train=split_of([[1, 2, 3]]))
    for arguments, message in [(dict(block_size=4), "'train' holds 3 tokens, fewer than one block of 4"),
                               (dict(block_size=1), "block_size=1"),
                               (dict(block_size=0), "block_size=0"), (dict(remainder="keep"), "remainder='keep'")]:
        with pytest.raises(ValueError, match=message): group(tokens, **arguments)
    (padded,) = group(tokens, 4, "pad", pad_token_id=9)["train"]
    assert padded == dict(input_ids=[1, 2, 3, 9], attention_mask=[1, 1, 1, 0])
    assert group(tokens, 3)["train"][:] == {"input_ids": [[1, 2, 3]]}


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
text = st.one_of(st.none(), st.sampled_from(["", "  ", "\n"]), anything)
some_records = st.lists(st.one_of(st.none(), st.lists(text, max_size=3)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(some_records, some_records, st.booleans(), st.booleans(), st.sampled_from(["drop", "pad", "batch"]),
       st.booleans(), st.booleans(), st.sampled_from(["auto", "tokenizers"]), st.integers(1, 5), st.integers(2, 9))
def test_documents_are_the_texts_and_the_ledger_balances(tmp_path_factory, train, test, explode, bos, remainder,
                                                         add_eos, isolate, encoder, batch_size, block_size):
    features = Features(q_id=Value("string"), answers=dict(text=List(Value("string"))))
    def records(rows, side):
        return Dataset.from_list([{"q_id": f"{side}{i}", "answers": {"text": r}} for i, r in enumerate(rows)], features)
    corpus = DatasetDict(train=records(train, "a"), test=records(test, "b"))
    tokenizer, ledger = tiny.tokenizer(bos=bos), Ledger()
    expected = {}
    for split, rows in dict(train=train, test=test).items():
        joined = (r if r is None else " ".join(t or "" for t in r) for r in rows)
        if explode: joined = itertools.chain(*(r or [] for r in rows))
        expected[split] = [t for t in joined if t and t.strip("\x1c\x1d\x1e\x1f") and not t.isspace()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLM_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        try: documents = flatten(load_corpus(corpus, ledger=ledger), explode=explode, ledger=ledger)
        except ValueError as e:
            assert "holds no text" in str(e) and not all(expected.values())
            return
        assert {split: part["text"][:] for split, part in documents.items()} == expected
        tokens = tokenize(documents, tokenizer, add_eos, encoder=encoder, batch_size=batch_size, ledger=ledger)
        isolate = isolate and remainder != "batch"
        try: blocks = group(tokens, block_size, remainder, batch_size=batch_size, isolate_documents=isolate, ledger=ledger)
        except ValueError as e: assert "fewer than one block" in str(e)
        else:
            for split, part in blocks.items():
                ids = sum(map(sum, part["attention_mask"])) if remainder == "pad" else sum(map(len, part["input_ids"]))
                assert ids == ledger["group", split]["tokens_in_blocks"]
    assert check_ledger(ledger) is ledger and ledger_from_dict(json.loads(json.dumps(ledger_to_dict(ledger)))) == ledger
    for split, texts in expected.items():
        plain = tokenizer.backend_tokenizer
        plain.encode_special_tokens = True
        in_texts = sum(len(plain.encode(t, add_special_tokens=False).ids) for t in texts)
        counts = ledger["tokenize", split]
        assert counts["text_tokens"] == in_texts and counts["special_tokens"] == len(texts)*(bos + add_eos)
        assert counts["tokens"] == sum(map(len, tokens[split]["input_ids"]))


@pytest.mark.parametrize("entries,message", [
    ({("load", "test"): dict(read=5, records=3, dropped_duplicates=1)}, "load of 'test' took 5"),
    ({("flatten", "train"): dict(texts=5, documents=3, dropped_empty=1)}, "flatten of 'train' took 5"),
    ({("group", "test"): dict(tokens=9, tokens_in_blocks=8)}, "group of 'test' took 9"),
    ({("tokenize", "test"): dict(documents=1, tokens=9, text_tokens=8, special_tokens=1),
      ("group", "test"): dict(tokens=8, tokens_in_blocks=8)}, "gave 9"),
])
def test_a_ledger_that_does_not_balance_is_noticed(entries, message):
    with pytest.raises(ValueError, match=message): check_ledger(Ledger(entries))


def sentencepiece_like():
    "LLaMA's kind: spaces as ▁, bytes for what it doesn't know, BOS added by itself"
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special[:3], initial_alphabet=[], show_progress=False)
    backend.train_from_iterator(tiny.texts, trainer)
    vocab = json.loads(backend.to_str())
    words = [w for w in vocab["model"]["vocab"] if w not in special]
    vocab["model"]["vocab"] = {w: i for i, w in enumerate([*special, *words])}
    backend = Tokenizer.from_str(json.dumps(vocab))
    begin = dict(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    backend.post_processor = processors.TemplateProcessing(**begin)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_cls_and_sep():
    "RoBERTa's kind: both ends of a text are marked by the tokenizer itself"
    new = tiny.tokenizer(eos=False)
    new.add_special_tokens(dict(cls_token="<s>", sep_token="</s>"))
    ids = [("<s>", new.cls_token_id), ("</s>", new.sep_token_id)]
    both_ends = dict(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids)
    new.backend_tokenizer.post_processor = processors.TemplateProcessing(**both_ends)
    return new


kinds = {"gpt2": tiny.tokenizer, "bos": lambda: tiny.tokenizer(bos=True), "llama": sentencepiece_like,
         "cls": with_cls_and_sep,
         "none": lambda: tiny.tokenizer(eos=False)}
one_of_each = {}
for code in itertools.chain(range(0x3000), range(0xA000, 0xD7FF, 31), range(0xE000, 0x110000, 997)):
    one_of_each.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
one_of_each.pop("Cs", None)
odd_texts = ["<|endoftext|>", "a<|endoftext|> b <|endoftext|><|endoftext|>", "<s>x</s>", "<unk>", "<0x41>", "▁The▁fox",
             "The fox", " The  fox \n\n\t", "",
             " ", "\n", "\x00", "\r\n", "\ufeffThe", "e\u0301é", "👩‍👩‍👧‍👦🇯🇵🏳️‍🌈", "\u200bfo\u200dx", "a"*3000, "日本語"*50,
             "I'll we've IT'S", "١٢٣ 123,456.78", "ǅ ﬁ ẞ",
             *("".join(characters[:60]) for characters in one_of_each.values()),
             *(" ".join(characters[-20:]) for characters in one_of_each.values())]


def encoded(texts, spec, encoder, prefix=(), suffix=()):
    table = pa.table({"text": pa.array(texts, pa.string())})
    return tokenize_batch(table, spec, tuple(prefix), tuple(suffix), encoder)["input_ids"].to_pylist()


def test_every_unicode_category_is_tried(): assert len(one_of_each) == 29


@pytest.mark.parametrize("allow_special", [False, True])
@pytest.mark.parametrize("kind", kinds)
def test_tokens_are_those_of_the_tokenizer(kind, allow_special, cache):
    tokenizer = kinds[kind]()
    documents = DatasetDict(train=Dataset.from_dict({"text": odd_texts}))
    ours = tokenize(documents, tokenizer, allow_special=allow_special, add_eos=False)["train"]["input_ids"][:]
    tokenizer.backend_tokenizer.encode_special_tokens = not allow_special
    assert ours == [e.ids for e in tokenizer.backend_tokenizer.encode_batch(odd_texts)]
    end = {"gpt2": 0, "bos": 0, "llama": 2, "cls": tokenizer.sep_token_id}.get(kind)
    closed = tokenize(documents, tokenizer, allow_special=allow_special)["train"]["input_ids"][:]
    assert closed == (ours if kind in ("cls", "none") else [row + [end] for row in ours])
    inside = [row[kind == "bos":-1] for row in closed]
    if not allow_special and end is not None: assert not any(end in row for row in inside)


def test_a_tokenizer_without_an_end_says_so_once_and_pads_nothing(cache, caplog):
    documents = DatasetDict(train=Dataset.from_dict({"text": ["The fox", "lazy dog"]}))
    tokenize(documents, kinds["none"]())
    said = [r.message for r in caplog.records if r.name == "clm_nb"]
    assert said == ["This tokenizer has no EOS, separator or BOS token: documents run together."]


def both(tokenizer, texts):
    spec = tokenizer_json(tokenizer)
    return [encoded(texts, spec, encoder) for encoder in encoders]


@pytest.mark.parametrize("kind", ["gpt2", "bos", "none"])
def test_gigatoken_is_tokenizers_and_nothing_is_lost(kind):
    tokenizer = kinds[kind]()
    giga, plain = both(tokenizer, odd_texts)
    assert giga == plain
    assert tokenizer.batch_decode(giga, clean_up_tokenization_spaces=False) == odd_texts


bpe = tiny.tokenizer()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(anything, st.lists(st.sampled_from(odd_texts)).map("".join)), min_size=1, max_size=8))
def test_gigatoken_is_tokenizers_on_any_text(texts):
    giga, plain = both(bpe, texts)
    assert giga == plain and bpe.batch_decode(giga, clean_up_tokenization_spaces=False) == texts


@settings(max_examples=50, deadline=None)
@given(st.lists(anything, max_size=6), *[st.lists(st.integers(0, 300), max_size=2)]*2, st.integers(0, 3))
def test_affixes_stand_around_every_document(texts, prefix, suffix, start):
    spec = tokenizer_json(bpe)
    table = pa.table({"text": pa.array(["before"]*start + texts + ["after"], pa.string())}).slice(start, len(texts))
    for encoder in encoders:
        ours = tokenize_batch(table, spec, tuple(prefix), tuple(suffix), encoder)["input_ids"].to_pylist()
        assert ours == [prefix + row + suffix for row in encoded(texts, spec, "tokenizers")]


def test_real_text_and_the_real_gpt2_tokenizer(cache):
    folder = os.environ.get("CLM_NB_TEST_DATA") or pytest.skip("CLM_NB_TEST_DATA names no folder of test data")
    from clm_nb.data.tokenizer import load_tokenizer
    tokenizer = load_tokenizer(Path(folder)/"gpt2_tokenizer")
    corpus = load_corpus(Path(folder)/"eli5_category_sample/validation.json")
    documents = flatten(corpus, "answers.text")["test"]["text"][:200]
    giga, plain = both(tokenizer, documents + odd_texts)
    assert giga == plain == tokenizer(documents + odd_texts, split_special_tokens=True)["input_ids"]
    assert tokenizer.batch_decode(giga, clean_up_tokenization_spaces=False) == documents + odd_texts


def files(folder): return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*.arrow")}


grouping = "block_size", "remainder", "isolate_documents"


def blocks_of(rows, tokenizer=tiny.tokenizer, **options):
    "Tokens and blocks of a small corpus: the whole of preprocessing"
    corpus = DatasetDict(train=Dataset.from_dict({"text": rows}))
    tokenizer = tokenizer()
    tokens = tokenize(flatten(corpus), tokenizer, **{k: v for k, v in options.items() if k not in grouping})
    blocks = group(tokens, **{"block_size": 8} | {k: v for k, v in options.items() if k in grouping})
    return tokens["train"], blocks["train"]


some_texts = [f"The {n}th text of a small corpus, <|endoftext|> and all." for n in range(40)]


def test_another_process_finds_the_tokens_and_blocks(cache):
    tokens, blocks = blocks_of(some_texts)
    before = files(cache)
    assert len(before) == 2
    code = """
import datasets, clm_nb.tokenize, clm_nb.group
datasets.disable_progress_bars()
def never(*args, **kwargs): raise AssertionError("made again")
clm_nb.tokenize.tokenize_batch, checking = never, clm_nb.tokenize.tokenize_batch
clm_nb.tokenize.choose_encoder = lambda *args: "gigatoken"
clm_nb.group.stream_blocks = never
from test_preprocess import blocks_of, some_texts
tokens, blocks = blocks_of(some_texts)
print(tokens._fingerprint, blocks._fingerprint, blocks["input_ids"][:])
"""
    found = answer(python(code, PYTHONHASHSEED=5)).strip()
    assert found == f"{tokens._fingerprint} {blocks._fingerprint} {blocks['input_ids'][:]}"
    assert files(cache) == before


def other_vocabulary(): return train_tokenizer(some_texts, vocab_size=300)


def one_more_token():
    (new := tiny.tokenizer()).add_tokens("small corpus")
    return new


def lower_case():
    (new := tiny.tokenizer()).backend_tokenizer.normalizer = normalizers.Lowercase()
    return new


def used():
    new = tiny.tokenizer()
    new.pad_token = new.eos_token
    new(tiny.texts, padding="max_length", truncation=True, max_length=5)
    return new


@pytest.mark.parametrize("change,made", [
    (dict(), 0), (dict(block_size=9), 1), (dict(remainder="pad"), 1), (dict(remainder="batch"), 1),
    (dict(isolate_documents=True), 1), (dict(tokenizer=other_vocabulary), 2), (dict(tokenizer=one_more_token), 2),
    (dict(tokenizer=lower_case), 2), (dict(tokenizer=lambda: tiny.tokenizer(bos=True)), 2),
    (dict(tokenizer=lambda: tiny.tokenizer(eos=False)), 2), (dict(tokenizer=used), 0),
    (dict(add_eos=False), 2),
    (dict(allow_special=True), 2), (dict(encoder="tokenizers"), 2), (dict(num_proc=2), 0), (dict(batch_size=7), 0),
    (dict(rows=some_texts + ["one more"]), 2), (dict(rows=["one other", *some_texts[1:]]), 2),
])
def test_what_changes_the_result_is_made_anew_and_nothing_else(change, made, cache, monkeypatch):
    blocks_of(some_texts)
    before = files(cache)
    options = {"rows": some_texts} | change
    blocks = blocks_of(**options)[1]["input_ids"][:]
    after = files(cache)
    assert len(after) == len(before) + made and before.items() <= after.items()
    monkeypatch.setenv("CLM_NB_CACHE", str(cache.with_name("fresh")))
    assert blocks_of(**options)[1]["input_ids"][:] == blocks


@pytest.mark.parametrize("library,made", {"datasets": 2, "pyarrow": 2, "tokenizers": 2, "gigatoken": 2, "evaluate": 0}.items())
def test_another_version_of_a_library_that_made_it_is_another_result(library, made, cache, monkeypatch):
    import importlib.metadata
    blocks_of(some_texts)
    before, version = files(cache), importlib.metadata.version
    monkeypatch.setattr("clm_nb.data.cache.version", lambda name: "0.0.1" if name == library else version(name))
    blocks_of(some_texts)
    assert len(files(cache)) == len(before) + made


def test_each_stage_names_the_versions_that_made_its_result(cache, monkeypatch):
    "Also where what came in has the same name as before"
    import importlib.metadata
    texts, version = Dataset.from_dict({"text": some_texts}), importlib.metadata.version
    ids = split_of([[1, 2, 3]]*9)
    made = lambda: [flatten(DatasetDict(train=texts))["train"]._fingerprint, group(DatasetDict(train=ids), 4)["train"]._fingerprint]
    before = made()
    monkeypatch.setattr("clm_nb.data.cache.version", lambda name: "0.0.1" if name == "pyarrow" else version(name))
    assert not set(made()) & set(before)


def test_another_version_of_clm_nb_is_another_result(cache, monkeypatch):
    blocks_of(some_texts)
    monkeypatch.setattr("clm_nb.data.cache.__version__", "99.0")
    blocks_of(some_texts)
    assert len(files(cache)) == 4


def test_the_first_run_and_the_second_have_one_fingerprint(cache):
    assert len({part._fingerprint for _ in range(2) for part in blocks_of(some_texts)}) == 2


def test_the_cache_takes_a_few_bytes_a_token_and_can_be_shown_and_cleared(cache, capsys):
    tokens, blocks = blocks_of(some_texts*500)
    n, sizes, rows = sum(map(len, tokens["input_ids"])), cache_sizes(), blocks["input_ids"][:]
    assert set(sizes) == {"tokens", "blocks"} and 8*n < sum(sizes.values()) < 9*n
    del tokens, blocks  # Windows deletes nothing that is mapped
    assert main(["cache"]) == 0 and main(["cache", "--clear", "blocks"]) == 0
    shown = capsys.readouterr().out
    assert str(cache) in shown and "tokens" in shown and f"{sizes['blocks']/1e6:.1f} MB deleted" in shown
    assert cache_sizes() == {"tokens": sizes["tokens"]}
    assert main(["cache", "--clear"]) == 0 and cache_sizes() == {}
    assert blocks_of(some_texts*500)[1]["input_ids"][:] == rows


def test_nothing_is_deleted_that_is_no_cache(cache, capsys):
    "A folder of the user's, taken for the cache by mistake"
    (cache/"models").mkdir(parents=True)
    (cache/"models"/"mine.bin").write_text("precious", encoding="utf-8")
    blocks_of(some_texts)
    assert main(["cache", "--clear"]) == 1 and "has no CACHEDIR.TAG" in capsys.readouterr().err
    assert main(["cache", "--clear", "everything"]) == 1 and "name some of corpus" in capsys.readouterr().err.lower()
    assert (cache/"models"/"mine.bin").read_text(encoding="utf-8") == "precious" and len(files(cache)) == 2


@pytest.mark.parametrize("options", [dict(num_proc=2), dict(num_proc=2, encoder="tokenizers"), dict(batch_size=3),
                                     dict(batch_size=1, encoder="tokenizers")])
def test_processes_and_batches_change_nothing(options, tmp_path, monkeypatch):
    found = []
    for name, how in (("plain", {}), ("other", options)):
        monkeypatch.setenv("CLM_NB_CACHE", str(tmp_path/name))
        found.append([part["input_ids"][:] for part in blocks_of(some_texts, **how)])
    assert found[0] == found[1]


def test_a_write_that_fails_leaves_no_blocks(cache, monkeypatch):
    import clm_nb.group
    expected = blocks_of(some_texts)[1]["input_ids"][:]
    clear_cache("blocks")
    with monkeypatch.context() as patch:
        def fails(pieces, block_size, whole=stream_blocks):
            yield from itertools.islice(whole(pieces, block_size), 1)
            raise OSError("disk full")
        patch.setattr(clm_nb.group, "stream_blocks", fails)
        with pytest.raises(OSError, match="disk full"): blocks_of(some_texts)
    assert not list((cache/"blocks").iterdir())
    assert blocks_of(some_texts)[1]["input_ids"][:] == expected


def peak(work):
    "The most memory that Python objects and numpy arrays took at once, bytes"
    tracemalloc.start()
    try: work(); return tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()


def test_tokens_never_become_python_numbers(cache):
    "A list of a million Python numbers takes more than 30 MB, an array of int32 takes 4"
    spec, document = tokenizer_json(bpe), "The quick brown fox jumps over the lazy dog. "*100
    batch = pa.table({"text": pa.array([document]*1000)})
    encoded(["warm"], spec, "gigatoken")
    out = []
    memory = peak(lambda: out.append(tokenize_batch(batch, spec, (), (0,), "gigatoken")))
    n = len(out[0]["input_ids"].combine_chunks().values)
    assert n > 1_000_000 and memory < 20*n
    tokens = DatasetDict(train=Dataset(datasets.table.InMemoryTable(out[0]), fingerprint="many"))
    whole = concatenate_datasets([tokens["train"]]*4)
    group(tokens, 64)
    small, large = (peak(lambda: group(DatasetDict(train=data), 128)) for data in (tokens["train"], whole))
    assert small < 4*n and large < 4*n
