"Every id is the tokenizer's own: every family, with tokens added in any order, of any kind"
import random

import datasets, pytest
from datasets import Dataset, DatasetDict
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from clm_nb.data.tokenizer import document_affixes, template_affixes
from clm_nb.look.loss_map import loss_map
from clm_nb.perplexity import perplexity
from clm_nb.data.encoders import check_added_ids, tokenizer_json
from clm_nb.tokenize import tokenize
import tiny

datasets.disable_progress_bars()


def byte_level():
    return tiny.tokenizer().backend_tokenizer


def trained(model, trainer, normalizer, pre_tokenizer):
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.train_from_iterator(tiny.texts, trainer)
    return backend


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, normalizers.BertNormalizer(lowercase=True),
                   pre_tokenizers.BertPreTokenizer())


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), trainer, normalizers.NFKC(), pre_tokenizers.Metaspace())


def bpe():
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    return trained(models.BPE(unk_token="<unk>"), trainer, normalizers.Lowercase(), pre_tokenizers.Whitespace())


families = dict(byte_level=byte_level, word_piece=word_piece, unigram=unigram, bpe=bpe)
added = [AddedToken("<|im_start|>", special=True, normalized=False), AddedToken("<|im_end|>", special=True, normalized=False),
         AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=True), AddedToken("THINGS", lstrip=True),
         AddedToken("<r>", rstrip=True, normalized=False), AddedToken("fox", single_word=True), AddedToken("was")]
texts = ["<think> a fox, foxes </think>  <r>  b THINGS  things <|im_end|> it was Was", "<think><|im_start|><think>fox<r>fox",
         "<|endoftext|> </s> [SEP] <unk>", *tiny.texts[:3]]


def with_added(family, order):
    "A tokenizer to which tokens were added one after the other"
    backend = families[family]()
    for i in order:
        (backend.add_special_tokens if added[i].special else backend.add_tokens)([added[i]])
    end = next(t for t in ("<|endoftext|>", "</s>", "[SEP]") if backend.token_to_id(t) is not None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


def orders(count):
    rng = random.Random(0)
    return [list(range(len(added))), *(rng.sample(range(len(added)), len(added)) for _ in range(count - 1))]


@pytest.mark.parametrize("allow_special", [False, True])
@pytest.mark.parametrize("family", families)
def test_ids_are_the_tokenizers_own_whatever_was_added(family, allow_special, cache):
    documents = DatasetDict(train=Dataset.from_dict({"text": texts}))
    for order in orders(4):
        tokenizer = with_added(family, order)
        own = tokenizer(texts, add_special_tokens=False, split_special_tokens=not allow_special).input_ids
        for encoder in ("tokenizers", "auto"):
            tokens = tokenize(documents, tokenizer, add_eos=False, allow_special=allow_special, encoder=encoder)
            assert tokens["train"]["input_ids"][:] == own, (order, encoder)


def test_an_added_token_that_no_text_has_yet_decides_too(cache, caplog):
    "gigatoken reads a whole-word token inside of words: so it isn't used, though the first texts don't show it"
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken("fox", single_word=True)])
    rows = ["nothing of it"]*400 + ["foxes"]
    documents = DatasetDict(train=Dataset.from_dict({"text": rows}))
    tokens = tokenize(documents, tokenizer, add_eos=False)["train"]["input_ids"][-1]
    assert tokens == tokenizer("foxes").input_ids
    assert [r.message for r in caplog.records] == ["Encoding with tokenizers: gigatoken reads an added token in its own way."]
    with pytest.raises(ValueError, match="encoder='gigatoken' doesn't serve"):
        tokenize(documents, tokenizer, encoder="gigatoken")


def test_the_encoder_is_chosen_once_for_all_splits(cache, caplog):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken("fox", single_word=True)])
    documents = DatasetDict({name: Dataset.from_dict({"text": [name, "foxes"]}) for name in ("train", "validation", "test")})
    tokenize(documents, tokenizer)
    assert len(caplog.records) == 1
    tokenize(documents, tokenizer)
    assert len(caplog.records) == 1


def test_perplexity_and_the_map_read_the_same_ids():
    "A model of its own for each: an id beyond its place would have another loss"
    tokenizer = with_added("byte_level", [0, 2, 1, 3])
    model = tiny.gpt2(vocab_size=len(tokenizer))
    text = "a <think>fox</think> b"
    ids = tokenizer(text).input_ids + [tokenizer.eos_token_id]
    blocks = Dataset.from_dict({"input_ids": [ids]})
    expected = perplexity(model, blocks, bf16=False)
    found = perplexity(model, text, tokenizer)
    assert found.tokens == expected.tokens == len(ids) - 1 and abs(found.loss - expected.loss) < 1e-5
    assert loss_map(model, tokenizer, text).ids == ids


def test_a_reader_that_gives_out_other_numbers_is_noticed():
    tokenizer = with_added("byte_level", [0, 2])
    spec = tokenizer_json(tokenizer)
    shorter = Tokenizer.from_str(spec.replace('"content": "<|im_start|>"', '"content": "fox"'))
    with pytest.raises(ValueError, match="'<|im_start|>' has the id"): check_added_ids(shorter, spec)


templates = {"[A] [B] $A": (["[A]", "[B]"], []), "[A] $A [C]": (["[A]"], ["[C]"]), "[A] [B] $A [C] [C]": (["[A]", "[B]"], ["[C]", "[C]"]),
             "$A [B] [C]": ([], ["[B]", "[C]"]), "$A": ([], [])}


@pytest.mark.parametrize("template", templates)
@pytest.mark.parametrize("padded", [False, True])
def test_what_a_template_puts_around_a_text(template, padded):
    tokenizer = tiny.tokenizer(eos=False)
    tokenizer.add_tokens(["[A]", "[B]", "[C]"], special_tokens=True)
    backend = tokenizer.backend_tokenizer
    ids = [(t, backend.token_to_id(t)) for t in ("[A]", "[B]", "[C]")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    if padded: backend.enable_padding(length=9)
    before, after = template_affixes(tokenizer)
    assert (tokenizer.convert_ids_to_tokens(before), tokenizer.convert_ids_to_tokens(after)) == templates[template]
    tokenizer.eos_token = "[C]"
    before, after = document_affixes(tokenizer)
    assert after[-1] == tokenizer.eos_token_id and after.count(after[-1]) <= 2
