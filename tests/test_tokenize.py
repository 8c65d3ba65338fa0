"What tokenizing is made fast by gives what the tokenizer gives, or isn't used"
import json

import numpy as np, pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
import clm_nb.data.encoders, clm_nb.tokenize
from clm_nb.tokenize import choose_encoder, tokenizer_json
from tiny import texts, tokenizer


def backend(kind):
    if kind == "BPE": return tokenizer().backend_tokenizer
    words = ["<unk>", "[UNK]", *"abcdefghijklmnopqrstuvwxyz ", "the", "quick"]
    if kind == "Unigram": return Tokenizer(models.Unigram([(w, -float(i)) for i, w in enumerate(words)], unk_id=0))
    new = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    new.pre_tokenizer = pre_tokenizers.Whitespace()
    return new


@pytest.mark.parametrize("allow_special", [False, True])
@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_the_tokenizers_json_is_what_parsing_all_of_it_gives(kind, allow_special):
    tok = PreTrainedTokenizerFast(tokenizer_object=backend(kind), eos_token="<|endoftext|>")
    tok.add_tokens(['x,"model":{', ',"model":'])
    tok.add_tokens(['<,"model":>'], special_tokens=True)
    expected = json.loads(tok.backend_tokenizer.to_str())
    expected |= dict(truncation=None, padding=None, post_processor=None)
    if allow_special: expected["added_tokens"] = [t | dict(special=False) for t in expected["added_tokens"]]
    before = tokenizer_json(tok, allow_special)
    assert json.loads(before) == expected and len(expected["added_tokens"]) == 4
    tok.backend_tokenizer.enable_truncation(3)
    tok.backend_tokenizer.enable_padding(length=5)
    assert tokenizer_json(tok, allow_special) == before


@pytest.fixture
def encoders(monkeypatch):
    "Which encoders were made from a specification"
    made, make = [], clm_nb.tokenize.encode_function.__wrapped__
    monkeypatch.setattr(clm_nb.tokenize, "encode_function", lambda spec, name: made.append(name) or make(spec, name))
    return made


@pytest.mark.parametrize("how", ["plain", "padding", "truncation", "special", "no tokenizer"])
def test_the_tokenizer_itself_checks_the_encoder_where_it_can(how, encoders):
    tok = tokenizer()
    spec, sample = tokenizer_json(tok), [*texts, ""] + ["a <|endoftext|> b"]*(how == "special")
    if how == "padding": tok.backend_tokenizer.enable_padding(length=500)
    if how == "truncation": tok.backend_tokenizer.enable_truncation(2)
    assert choose_encoder(spec, sample, None if how == "no tokenizer" else tok) == "gigatoken"
    assert ("tokenizers" in encoders) is (how != "plain")


@pytest.mark.parametrize("given", [False, True])
def test_an_encoder_that_lies_is_found_out(given, monkeypatch):
    tok, make = tokenizer(), clm_nb.tokenize.encode_function
    def lies(spec, name):
        encode = make(spec, name)
        def changed(texts):
            ids, offsets = encode(texts)
            ids = np.array(ids)
            ids[-1] += name == "gigatoken"
            return ids, offsets
        return changed
    monkeypatch.setattr(clm_nb.tokenize, "encode_function", lies)
    with pytest.raises(RuntimeError, match="gigatoken and tokenizers differ"):
        choose_encoder(tokenizer_json(tok), texts, tok if given else None)


def test_the_garbage_collector_is_as_it_was():
    import gc
    for on in (True, False):
        (gc.enable if on else gc.disable)()
        try:
            with pytest.raises(ZeroDivisionError), clm_nb.data.encoders.paused_gc():
                assert not gc.isenabled()
                1/0
            assert gc.isenabled() is on
        finally: gc.enable()
