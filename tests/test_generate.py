"Generating against plain transformers, one prompt at a time; streams that fail or are left; numpy's distribution"
import io, logging, subprocess, sys, threading, warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pytest, torch
from transformers import GenerationConfig
from clm_nb.model.sampling import NextTokens, next_tokens, own_rng, prompt_ids, sampling_probabilities
from clm_nb.generate import generate, stream
from tiny import families, gpt2, llama, tokenizer

prompts = ["The", "The quick brown fox jumps over the lazy", "def f(x):\n", "日本語 🙂"]
tokenizers = {"plain": {}, "bos": dict(bos=True), "no eos": dict(eos=False)}


def in_time(work, seconds=60):
    "What `work()` returns; fails instead of waiting for ever"
    pool = ThreadPoolExecutor(1)
    try: return pool.submit(work).result(seconds)
    finally: pool.shutdown(wait=False)


def forced(ids):
    "A logits processor that makes the model say `ids`, then go on as it would"
    step = iter(ids)
    def process(seen, scores):
        token = next(step, None)
        return scores if token is None else torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([token]), 0.0)
    return process


def plain(model, tok, prompt, bos=False, eos=True, **kwargs):
    "Plain transformers, one prompt"
    ids = [0]*bos + tok(prompt, add_special_tokens=False)["input_ids"]
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), pad_token_id=0,
                         **({} if eos else dict(eos_token_id=9999)), **kwargs)[0].tolist()
    return tok.decode(out, skip_special_tokens=True)[len(tok.decode(ids, skip_special_tokens=True)):]


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("kind", tokenizers)
def test_batched_greedy_is_one_by_one_is_plain_transformers(family, kind):
    model, tok = families[family](), tokenizer(**tokenizers[kind])
    options = dict(max_new_tokens=16, do_sample=False)
    batch = generate(model, tok, prompts, return_full_text=False, **options)
    assert len(set(batch)) > 1
    assert batch == [generate(model, tok, p, return_full_text=False, **options) for p in prompts]
    assert batch == [plain(model, tok, p, **tokenizers[kind], **options) for p in prompts]
    assert generate(model, tok, prompts, **options) == [p + text for p, text in zip(prompts, batch)]


def test_beam_search_is_plain_transformers():
    model, tok = gpt2(), tokenizer()
    options = dict(max_new_tokens=12, do_sample=False, num_beams=4)
    batch = generate(model, tok, prompts, return_full_text=False, **options)
    assert batch == [plain(model, tok, p, **options) for p in prompts]
    assert batch != generate(model, tok, prompts, return_full_text=False, max_new_tokens=12, do_sample=False)


def test_seed_repeats_the_text_and_leaves_the_random_state_alone():
    model, tok = gpt2(), tokenizer()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = generate(model, tok, "The", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert generate(model, tok, "The", seed=1) == first != generate(model, tok, "The", seed=2)


def test_with_bf16_off_a_seed_gives_what_torch_manual_seed_gives_plain_transformers():
    model, tok, options = gpt2(), tokenizer(), dict(max_new_tokens=40, seed=5, return_full_text=False)
    torch.manual_seed(5)
    theirs = plain(model, tok, "The", max_new_tokens=40, do_sample=True, top_k=50, top_p=0.95)
    assert generate(model, tok, "The", bf16=False, **options) == theirs
    assert "".join(stream(model, tok, "The", bf16=False, max_new_tokens=40, seed=5)) == theirs
    assert generate(model, tok, "The", **options) != theirs  # other random numbers


@pytest.mark.parametrize("options", [dict(top_k=0), dict(min_p=0.05), dict(typical_p=0.9)], ids=str)
def test_what_the_quick_draw_does_not_know_is_drawn_as_transformers_does(options):
    model, tok = gpt2(), tokenizer()
    torch.manual_seed(5)
    theirs = plain(model, tok, "The", max_new_tokens=40, do_sample=True, **dict(top_k=50, top_p=0.95) | options)
    assert generate(model, tok, "The", max_new_tokens=40, seed=5, return_full_text=False, **options) == theirs


def test_no_seed_draws_from_the_callers_state():
    model, tok = gpt2(), tokenizer()
    assert generate(model, tok, "The", seed=None) != generate(model, tok, "The", seed=None)
    torch.manual_seed(3)
    first = generate(model, tok, "The")
    assert first == generate(model, tok, "The", seed=3)


def test_random_state_goes_on_where_it_left_off_and_survives_an_error():
    rng, whole = own_rng(4), torch.rand(6, generator=torch.Generator().manual_seed(4))
    parts = []
    for n in (1, 3, 2):
        with rng: parts.append(torch.rand(n))
        torch.rand(1)
    assert torch.equal(torch.cat(parts), whole)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), rng: 1/0
    assert torch.equal(torch.get_rng_state(), state)


def test_two_seeded_threads_do_not_disturb_each_other():
    model, tok = gpt2(), tokenizer()
    alone = [generate(model, tok, "The", seed=s) for s in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda s: generate(model, tok, "The", seed=s), range(4))) == alone
        streamed = list(pool.map(lambda s: "The" + "".join(stream(model, tok, "The", seed=s)), range(4)))
    assert streamed == alone


def test_nothing_of_the_callers_is_changed():
    model, tok = gpt2(dropout=0.5).train(), tokenizer()
    model.generation_config = GenerationConfig(repetition_penalty=9.0, max_length=5, min_new_tokens=3, eos_token_id=17)
    before = model.generation_config.to_dict(), tok.padding_side, tok.pad_token
    for _ in range(2):
        found = generate(model, tok, prompts, max_new_tokens=12, do_sample=False)
        assert found == generate(gpt2(), tok, prompts, max_new_tokens=12, do_sample=False)
    pieces = list(stream(model, tok, "The", seed=1, max_new_tokens=12))
    assert "".join(pieces) == generate(gpt2(), tok, "The", seed=1, max_new_tokens=12, return_full_text=False)
    assert (model.generation_config.to_dict(), tok.padding_side, tok.pad_token) == before
    assert all(m.training for m in model.modules())


def test_fields_of_the_generation_config_and_other_arguments_pass():
    model, tok = gpt2(), tokenizer()
    options = dict(max_new_tokens=20, do_sample=False)
    found = generate(model, tok, "The", repetition_penalty=1.5, **options, return_full_text=False)
    assert found == plain(model, tok, "The", repetition_penalty=1.5, **options)
    assert found != generate(model, tok, "The", **options, return_full_text=False)
    text = tok("lazy dog")["input_ids"]
    assert generate(model, tok, "The ", logits_processor=[forced([*text, 0])]) == "The lazy dog"
    with pytest.raises(ValueError, match="no_such_option"): generate(model, tok, "The", no_such_option=1)


def test_eos_ends_a_row_and_nothing_of_it_or_after_it_shows():
    model, tok = gpt2(), tokenizer()
    def end_first_row(seen, scores, start=[]):
        start.append(seen.shape[1])
        if len(start) == 3: scores[0] = torch.full_like(scores[0], -1e9).index_fill_(0, torch.tensor([0]), 0.0)
        return scores
    options = dict(max_new_tokens=10, do_sample=False, return_full_text=False)
    short, other = generate(model, tok, prompts[:2], logits_processor=[end_first_row], **options)
    whole = generate(model, tok, prompts[:2], **options)
    assert whole[0].startswith(short) and len(short) < len(whole[0]) and other == whole[1]


def test_spaces_stay_where_the_model_puts_them():
    tok = tokenizer()
    tok.clean_up_tokenization_spaces = True
    tok.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    said = tok(" , n't .")["input_ids"]
    options = dict(max_new_tokens=len(said), do_sample=False)
    assert generate(gpt2(), tok, "The", logits_processor=[forced(said)], **options) == "The , n't ."
    assert "".join(stream(gpt2(), tok, "The", logits_processor=[forced(said)], **options)) == " , n't ."


def test_special_tokens_do_not_show():
    tok = tokenizer(eos=False)
    said = dict(max_new_tokens=3, logits_processor=[forced([40, 0, 41])])
    assert generate(gpt2(), tok, "The", **said, return_full_text=False) == tok.decode([40, 41])


def test_stop_tokens_of_a_chat_model_are_kept_and_strange_ones_are_not():
    tok, text = tokenizer(), [40, 41, 42, 43]
    model = gpt2()
    model.generation_config.eos_token_id = [0, 42]
    assert generate(model, tok, "The", logits_processor=[forced(text)], return_full_text=False) == tok.decode([40, 41])
    model.generation_config.eos_token_id = 42
    found = generate(model, tok, "The", max_new_tokens=4, logits_processor=[forced(text)], return_full_text=False)
    assert found == tok.decode(text)


def test_prompts_open_like_documents_and_stay_open():
    text = tokenizer()("The fox")["input_ids"]
    assert prompt_ids(tokenizer(), "The fox") == prompt_ids(tokenizer(eos=False), "The fox") == text
    assert prompt_ids(tokenizer(bos=True), "The fox") == [0, *text]
    assert prompt_ids(tokenizer(), "") == prompt_ids(tokenizer(bos=True), "") == [0]
    with pytest.raises(ValueError, match="prompt is empty"): prompt_ids(tokenizer(eos=False), "")
    assert isinstance(generate(gpt2(), tokenizer(), "", seed=0, max_new_tokens=5), str)


def test_a_list_for_a_list():
    model, tok = gpt2(), tokenizer()
    assert generate(model, tok, []) == []
    assert generate(model, tok, ["The"], seed=0) == [generate(model, tok, "The", seed=0)]


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("kind", tokenizers)
@pytest.mark.parametrize("options", [dict(do_sample=False), dict(seed=3)])
def test_stream_is_generate(family, kind, options):
    model, tok = families[family](), tokenizer(**tokenizers[kind])
    seen = 0
    for prompt in prompts:
        pieces = in_time(lambda: list(stream(model, tok, prompt, max_new_tokens=30, **options)))
        assert "".join(pieces) == generate(model, tok, prompt, max_new_tokens=30, return_full_text=False, **options)
        assert all(pieces)
        seen += len(pieces)
    assert seen > 3*len(prompts)


def test_stream_with_a_tokenizer_that_marks_words_instead_of_bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = ["<unk>", "</s>", "▁The", "▁fox", "\n", "▁jumps", ","] + [f"<0x{b:02X}>" for b in range(256)]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence(list(steps))
    tok, model = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), llama()
    said = [2, 3, 4, 2, 6, 5, 4, 4, 3]
    options = dict(max_new_tokens=len(said), do_sample=False)
    pieces = list(stream(model, tok, "The", logits_processor=[forced(said)], **options))
    whole = generate(model, tok, "The", logits_processor=[forced(said)], return_full_text=False, **options)
    assert "".join(pieces) == whole and whole.endswith(" The fox\n The, jumps\n\n fox")


def test_stream_never_shows_half_a_character():
    model, tok = gpt2(), tokenizer()
    said = [i for c in "é語🙂🙃ß" for b in c.encode() for i in [tok.convert_tokens_to_ids(byte_token(b))]]
    pieces = list(stream(model, tok, "The ", logits_processor=[forced([*said, 0])]))
    assert pieces == list("é語🙂🙃ß")
    cut = list(stream(model, tok, "The ", logits_processor=[forced([*said[:-1], 0])]))
    assert "".join(cut) == "é語🙂🙃\ufffd" and "\ufffd" not in "".join(cut[:-1])


def byte_token(byte):
    "How a byte-level vocabulary spells a single byte"
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    return bytes_to_unicode()[byte]


def test_a_reader_who_draws_gets_the_same_text_and_the_same_draws():
    model, tok = gpt2(), tokenizer()
    whole = generate(model, tok, "The", seed=1, return_full_text=False)
    torch.manual_seed(9)
    expected = torch.rand(5)
    torch.manual_seed(9)
    pieces, draws = [], []
    for piece in stream(model, tok, "The", seed=1):
        pieces.append(piece)
        if len(draws) < 5: draws.append(torch.rand(1))
    assert "".join(pieces) == whole and torch.equal(torch.cat(draws), expected)


@pytest.mark.parametrize("when", [0, 1, 5])
def test_an_error_in_the_model_reaches_the_reader(when):
    model, tok, calls = gpt2(), tokenizer(), []
    def fail(seen, scores):
        calls.append(1)
        if len(calls) > when: raise RuntimeError("out of luck")
        return scores
    threads = threading.active_count()
    def read():
        with pytest.raises(RuntimeError, match="out of luck"):
            for piece in stream(model, tok, "The", logits_processor=[fail], do_sample=False): pass
    in_time(read)
    assert len(calls) == when + 1
    assert torch.is_grad_enabled() and threading.active_count() <= threads + 1


def test_leaving_a_stream_stops_the_model():
    model, tok, calls = gpt2().train(), tokenizer(), []
    def count(seen, scores): calls.append(1); return scores
    threads = threading.active_count()
    pieces = stream(model, tok, "The", logits_processor=[count], seed=0)
    assert threading.active_count() == threads and not calls
    next(pieces), next(pieces)
    made = len(calls)
    assert made < 10 and model.training
    in_time(pieces.close)
    assert len(calls) == made and threading.active_count() <= threads + 1
    with pytest.raises(StopIteration): next(pieces)


def test_the_model_waits_for_the_reader():
    import time
    calls = []
    def count(seen, scores): calls.append(1); return scores
    pieces = stream(gpt2(), tokenizer(), "The", logits_processor=[count], seed=0)
    next(pieces)
    made = len(calls)
    time.sleep(0.3)
    assert len(calls) == made
    pieces.close()


bad = [
    (dict(max_new_tokens=0), "max_new_tokens=0"), (dict(temperature=0), "temperature=0"),
    (dict(temperature=-1), "temperature=-1"), (dict(top_p=0), "top_p=0"), (dict(top_p=1.1), "top_p=1.1"),
    (dict(top_k=-1), "top_k=-1"), (dict(num_beams=0), "num_beams=0"), (dict(num_return_sequences=2), "several times"),
    (dict(max_new_tokens=256), "Use max_new_tokens<=255 or a shorter prompt"),
    (dict(prompt="The fox. "*200), "into the model's context of 256. Use a shorter"),
]


@pytest.mark.parametrize("options,message", bad)
@pytest.mark.parametrize("function", [generate, stream])
def test_one_clear_line_before_any_work(function, options, message):
    model = gpt2()
    model.forward = lambda *args, **kwargs: pytest.fail("worked before checking")
    with pytest.raises(ValueError, match=message) as error: function(model, tokenizer(), **dict(prompt="a") | options)
    assert "\n" not in str(error.value)


def test_only_one_text_is_streamed():
    with pytest.raises(ValueError, match="Beam search has no text before its end"): stream(gpt2(), tokenizer(), "a", num_beams=3)
    with pytest.raises(ValueError, match="Give one text"): stream(gpt2(), tokenizer(), prompts)


def by_hand(p, temperature, top_k, top_p):
    "Temperature, top-k, top-p on a distribution, in float64"
    p = p.astype(np.float64)**(1/temperature)
    order = np.argsort(-p, kind="stable")[:top_k or None]
    kept, total = {}, 0
    for i in order:
        if total >= top_p and top_p < 1: break
        kept[i], total = p[i], total + p[i]/p[order].sum()
    out = np.zeros_like(p)
    for i, value in kept.items(): out[i] = value/sum(kept.values())
    return out


@pytest.mark.parametrize("options", [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 7, 1.0), (1.0, 0, 0.6), (0.8, 20, 0.9),
                                     (1.0, 1, 1.0), (1.3, 9999, 0.3)])
def test_sampling_probabilities_against_numpy(options):
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))*2
    p = logits.double().softmax(-1)[0].numpy()
    assert np.allclose(sampling_probabilities(logits, *options)[0], by_hand(p, *options), atol=1e-6)


@pytest.mark.parametrize("family", families)
def test_next_tokens_is_what_generate_draws_from(family):
    model, tok = families[family](), tokenizer(bos=True)
    options = dict(temperature=1.4, top_k=12, top_p=0.9)
    found = next_tokens(model, tok, "The", n=400, **options)
    assert sum(found.before) == pytest.approx(1, abs=1e-5) and sum(found.after) == pytest.approx(1, abs=1e-5)
    assert found.before == sorted(found.before, reverse=True) and sum(a > 0 for a in found.after) == found.kept <= 12
    ids = [0, *tok("The", add_special_tokens=False)["input_ids"]]
    with torch.no_grad(): logits = model(torch.tensor([ids])).logits[0, -1]
    assert np.allclose(found.before, logits.double().softmax(-1).numpy()[found.ids], atol=1e-6)
    n = 3000
    drawn = Counter(generate(model, tok, ["The"]*n, max_new_tokens=1, seed=0, return_full_text=False, **options))
    for text, p in zip(found.tokens, found.after, strict=True):
        if text and "\ufffd" not in text: assert abs(drawn[text]/n - p) < 5*np.sqrt(p*(1 - p)/n) + 1e-9


def test_next_tokens_of_a_training_model_has_no_dropout():
    assert next_tokens(gpt2(dropout=0.5).train(), tokenizer(), "The") == next_tokens(gpt2(), tokenizer(), "The")
    assert len(next_tokens(gpt2(), tokenizer(), "The", n=9999).tokens) == 400
    with pytest.raises(ValueError, match="n=0"): next_tokens(gpt2(), tokenizer(), "The", n=0)
    with pytest.raises(ValueError, match="don't fit"): next_tokens(gpt2(), tokenizer(), "The fox. "*200)
    with pytest.raises(ValueError, match="top_p=2"): next_tokens(gpt2(), tokenizer(), "The", top_p=2)


def test_tokens_cannot_become_html_or_formulas():
    from matplotlib.figure import Figure
    table = NextTokens(["<script>alert(1)</script>", "$x^$", "a|b"], [1, 2, 3], [0.5, 0.3, 0.1], [0.6, 0.4, 0.0], 2)
    assert "<script" not in table._repr_html_() and "&lt;script&gt;" in table._repr_html_()
    assert "10.0%" in str(table) and len(str(table).splitlines()) == 5
    fig = Figure()
    ax = table.plot(fig.subplots())
    fig.savefig(io.BytesIO())
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "'$x^$'"


@pytest.mark.parametrize("options", [{}, dict(do_sample=False), dict(num_beams=2), dict(min_new_tokens=4), dict(use_cache=False)])
@pytest.mark.parametrize("prompt", ["The", ["The", "def f"]])
def test_transformers_has_nothing_to_remark(prompt, options, caplog, monkeypatch):
    "Every way, for one prompt and for several"
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(gpt2(), tokenizer(), prompt, max_new_tokens=8, seed=0, **options)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
