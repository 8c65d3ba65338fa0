"Every option of generation does what it says, or is refused in one line; prompts of any kind; scores that are no numbers"
import math

import pytest, torch
from transformers import GenerationConfig

from clm_nb.generate import generate, stream
from clm_nb.model.options import check_finite, cut_behind, other_options
from clm_nb.model.sampling import next_tokens
from tiny import gpt2, tokenizer

tok = tokenizer()
values = dict(  # one for each field of `GenerationConfig` that asks for something
    bad_words_ids=[[5]], begin_suppress_tokens=[3], bos_token_id=0, cache_implementation="dynamic", diversity_penalty=0.5,
    early_stopping=True, encoder_no_repeat_ngram_size=2, encoder_repetition_penalty=1.2, eos_token_id=7, epsilon_cutoff=3e-4,
    eta_cutoff=3e-4, exponential_decay_length_penalty=(3, 1.1), forced_bos_token_id=3, forced_eos_token_id=0,
    guidance_scale=1.5, length_penalty=2.0, max_length=10, max_time=5.0, min_length=5, min_new_tokens=3, min_p=0.1,
    no_repeat_ngram_size=2, num_return_sequences=2, output_attentions=True, output_hidden_states=True, output_logits=True,
    output_scores=True, pad_token_id=3, prefill_chunk_size=2, prompt_lookup_num_tokens=2, remove_invalid_values=True,
    renormalize_logits=True, repetition_penalty=1.2, return_dict_in_generate=True, sequence_bias=[[[5], 2.0]],
    stop_strings=["e"], suppress_tokens=[4], top_h=0.5, typical_p=0.9, use_cache=False, assistant_early_exit=1,
    watermarking_config=dict(greenlist_ratio=0.3))


def text(how, **options):
    pieces = how(gpt2(), tok, "The quick", **{"max_new_tokens": 8, "seed": 0} | options)
    return pieces if isinstance(pieces, str) else "The quick" + "".join(pieces)


@pytest.mark.parametrize("how", [generate, stream])
@pytest.mark.parametrize("name", values)
def test_an_option_is_honoured_or_named_in_one_line(name, how):
    assert hasattr(GenerationConfig(), name)
    try: assert isinstance(text(how, **{name: values[name]}), str)
    except ValueError as error: assert name in str(error) and "\n" not in str(error) and len(str(error)) < 250


@pytest.mark.parametrize("options", [dict(top_k=None), dict(top_p=None), dict(temperature=None), dict(max_new_tokens=None),
    dict(max_new_tokens=2.5), dict(top_k=1.5), dict(top_k="50"), dict(top_p=math.nan), dict(temperature=math.inf),
    dict(num_beams=0), dict(num_beams=None), dict(eos_token_id="x"), dict(eos_token_id=[1.5])], ids=str)
def test_what_is_no_number_is_named(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}=.* can't be used"): text(generate, **options)


@pytest.mark.parametrize("options", [dict(min_p=None), dict(max_length=None), dict(num_return_sequences=1),
                                     dict(return_dict_in_generate=False), dict(stop_strings=None)], ids=str)
def test_what_asks_for_nothing_changes_nothing(options):
    for how in (generate, stream): assert text(how, **options) == text(generate)


def test_an_eos_of_ones_own_ends_the_text():
    model = gpt2()
    whole = generate(model, tok, "The quick", do_sample=False, max_new_tokens=8, return_full_text=False)
    ids = model.generate(**tok("The quick", return_tensors="pt"), do_sample=False, max_new_tokens=8)[0].tolist()[-8:]
    second = next(i for i in ids[1:] if i != ids[0])
    short = generate(model, tok, "The quick", do_sample=False, max_new_tokens=8, return_full_text=False, eos_token_id=second)
    assert whole.startswith(short) and len(short) < len(whole)


def test_stop_strings_end_each_text_of_a_batch_and_a_stream():
    model, how = gpt2(), dict(max_new_tokens=30, do_sample=False, return_full_text=False)
    prompts = ["The quick brown", "def f(x):\n"]
    for whole, prompt in zip(generate(model, tok, prompts, **how), prompts):
        stop = whole[2:4]
        expected = whole[:whole.index(stop) + 2]
        assert generate(model, tok, prompts, **how, stop_strings=stop)[prompts.index(prompt)] == expected
        options = {name: value for name, value in how.items() if name != "return_full_text"}
        assert "".join(stream(model, tok, prompt, **options, stop_strings=[stop])) == expected
    assert cut_behind("abc", []) == "abc" and "tokenizer" in other_options(tok, token_healing=True)


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "x"}], [[{"role": "user", "content": "x"}]],
                                    {"role": "user", "content": "x"}, None, 5, b"x", "a\ud83d", ["a", None]], ids=repr)
def test_a_prompt_that_is_no_text_is_told_in_one_line(prompt):
    for how in (generate, stream, lambda *args: next_tokens(*args)):
        with pytest.raises(ValueError) as told: how(gpt2(), tok, prompt)
        assert "\n" not in str(told.value)
        if "role" in str(prompt): assert "apply_chat_template" in str(told.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_told(bad):
    model = gpt2(tie_word_embeddings=False)
    model.lm_head.register_forward_hook(lambda layer, args, out: torch.full_like(out, bad))
    ways = [dict(do_sample=False), dict(), dict(top_k=0), dict(num_beams=2, do_sample=False)]
    runs = [lambda way=way: generate(model, tok, ["The", "The quick"], **way) for way in ways]
    runs += [lambda: list(stream(model, tok, "The")), lambda: next_tokens(model, tok, "The")]
    for run in runs:
        with pytest.raises(ValueError, match="scores that aren't finite"): run()
    check_finite(torch.tensor([[0.0, -math.inf]]))
