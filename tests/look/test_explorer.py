"The explorer against plain torch and transformers, driven without a browser"
import math
import numpy as np, pytest, torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from clm_nb.look.token_text import token_label
from clm_nb.look.distribution import distribution
from clm_nb.look.likely_path import GreedyAnswer, greedy_logits
from clm_nb.look.explorer import NextTokenExplorer
from clm_nb.model.sampling import prompt_ids, sampling_probabilities
from tiny import families, gpt2, llama, tokenizer

settings = [dict(temperature=t, top_k=k, top_p=p) for t, k, p in
            [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.7, 5, 1.0), (1.0, 0, 0.6), (2.5, 40, 0.8), (0.2, 0, 1.0), (1.3, 1, 0.5)]]


@pytest.fixture
def app(): return NextTokenExplorer(gpt2(), tokenizer(), "The quick", n=50)


def last_logits(model, ids):
    with torch.no_grad(): return model(torch.tensor([ids])).logits[0, -1]


def warped(logits, temperature, top_k, top_p):
    "The scores that transformers would draw from; -inf: cut"
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k: chain.append(TopKLogitsWarper(top_k))
    if top_p < 1: chain.append(TopPLogitsWarper(top_p))
    return chain(None, logits[None])[0]


def softmax(scores):
    scores = np.asarray(scores, dtype=np.float64)
    e = np.exp(scores - scores.max())
    return e/e.sum()


def bits(p): return -sum(x*math.log2(x) for x in p if x > 0)


@pytest.mark.parametrize("options", settings, ids=str)
def test_distribution_is_that_of_transformers_and_its_figures_those_of_a_float64_loop(app, options):
    logits, shown = last_logits(app.models["model"], app.ids), app.set(**options).distribution["model"]
    scores = warped(logits, **options)
    before, tempered, after = softmax(logits), softmax(logits/options["temperature"]), softmax(scores)
    kept = np.isfinite(scores.numpy())
    assert shown.ids == np.argsort(-before, kind="stable")[:50].tolist() or sorted(before)[-51] == sorted(before)[-50]
    assert np.allclose(shown.before, before[shown.ids], atol=1e-6)
    assert np.allclose(shown.after, after[shown.ids], atol=1e-6)
    assert shown.cut == (~kept[shown.ids]).tolist() and not any(p for p, cut in zip(shown.after, shown.cut) if cut)
    assert shown.kept == kept.sum() and abs(shown.mass - tempered[kept].sum()) < 1e-5
    assert abs(shown.entropy_before - bits(before)) < 1e-4 and abs(shown.entropy - bits(after)) < 1e-4
    assert math.isclose(shown.perplexity, 2**shown.entropy) and math.isclose(shown.perplexity_before, 2**shown.entropy_before)


def test_what_is_too_improbable_for_a_float_is_not_called_cut():
    app = NextTokenExplorer(gpt2(initializer_range=2.0), tokenizer(), "The quick", n=50).set(temperature=0.05)
    shown, column = app.distribution["model"], app.columns["model"]
    assert 0.0 in shown.after and not any(shown.cut) and shown.kept == 400 and shown.mass == 1.0
    for html in (column.bars.value, app._repr_html_()):
        assert not any(sign in html for sign in ("cut", "repeating-linear-gradient", "opacity:.6", "→ 0.0 %")) and "→ <0.1 %" in html
    assert "line-through" not in {b.style.text_decoration for b in column.tokens.children}
    assert len(app.plot().axes[0].containers) == 2
    app.top_k.value = 7
    shown = app.distribution["model"]
    assert [p for p, cut in zip(shown.after, shown.cut) if not cut][-1] == 0.0 and sum(shown.cut) == 43 and shown.kept == 7
    assert column.bars.value.count("0, cut") == 43 and app.plot().axes[0].containers[2].patches[42:]


@pytest.mark.parametrize("options", settings + [dict(temperature=t, top_k=k, top_p=p) for t, k, p in
                                                [(0.05, 0, 0.9), (3.0, 100, 0.01), (1.0, 500, 0.5), (0.7, 2, 0.5)]], ids=str)
@pytest.mark.parametrize("kind", ["plain", "ties", "all the same", "cut"])
def test_the_path_s_shares_are_those_of_sampling_probabilities(options, kind):
    torch.manual_seed(3)
    logits = torch.randn(12, 400)*3
    if kind == "ties": logits = logits.round()
    if kind == "all the same": logits = torch.zeros(12, 400)
    if kind == "cut": logits[:, 5:] = -math.inf
    for ids in (logits.argmax(-1).tolist(), [(row == row.max()).nonzero()[-1].item() for row in logits]):
        expected = sampling_probabilities(logits, **options)[range(12), ids].tolist()
        assert GreedyAnswer(ids, logits).shares(**options) == pytest.approx(expected, abs=1e-6, rel=1e-5)


def test_a_slider_s_move_sorts_no_path(app, monkeypatch):
    sorted_rows, sort = [], torch.sort
    monkeypatch.setattr(torch, "sort", lambda x, **kwargs: sorted_rows.append(x.numel()) or sort(x, **kwargs))
    monkeypatch.setattr(torch.Tensor, "sort", lambda x, *args, **kwargs: sorted_rows.append(x.numel()) or sort(x))
    app.set(top_p=0.9)
    assert sorted(sorted_rows) == [400, 400*12]  # once for the path, and it stays
    sorted_rows.clear()
    for value in (0.8, 0.7): app.top_p.value = value
    app.temperature.value = 0.5
    assert sorted_rows == [400]*3  # for the bars
    app.append(9)
    assert 400*12 in sorted_rows


def test_greedy_decoding_may_take_a_token_that_top_p_cuts_where_two_are_the_likeliest():
    logits = torch.full((1, 400), -30.0)
    logits[0, [3, 8]] = 5.0
    shares = [GreedyAnswer([i], logits).path(tokenizer(), temperature=1.0, top_k=0, top_p=0.4) for i in (3, 8)]
    assert sorted(path.probability for path in shares) == [0.0, 1.0]
    assert sorted(path.summary().split("→ ")[1] for path in shares) == ["100 % with these settings", "never with these settings"]
    assert distribution(logits[0], tokenizer(), top_p=0.4, n=2).kept == 1


@pytest.mark.parametrize("family", families)
def test_the_path_is_greedy_generate_and_its_probabilities_those_of_one_forward(family):
    model, tok = families[family](), tokenizer()
    app = NextTokenExplorer(model, tok, "The quick brown")
    options = dict(temperature=0.6, top_k=20, top_p=0.9)
    path = app.set(**options).path["model"]
    out = model.generate(torch.tensor([app.ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)[0].tolist()
    assert app.ids + path.ids == out and path.ids
    with torch.no_grad(): logits = model(torch.tensor([out])).logits[0, len(app.ids) - 1:-1]
    before = [softmax(row)[i] for row, i in zip(logits, path.ids)]
    after = [softmax(warped(row, **options))[i] for row, i in zip(logits, path.ids)]
    assert np.allclose(path.before, before, atol=1e-5) and np.allclose(path.after, after, atol=1e-5)
    assert math.isclose(path.probability_before, math.prod(before), rel_tol=1e-3)
    assert math.isclose(path.probability, math.prod(after), rel_tol=1e-3)


def test_a_model_s_own_generation_config_changes_nothing():
    model, tok = gpt2(), tokenizer()
    plain = greedy_logits(model, tok, [5, 6, 7])
    model.generation_config.update(repetition_penalty=8.0, max_length=5, suppress_tokens=plain[0][:1])
    ids, logits = greedy_logits(model, tok, [5, 6, 7])
    assert ids == plain[0] and torch.equal(logits, plain[1]) and model.generation_config.repetition_penalty == 8.0


def test_what_is_appended_stays_the_id_that_it_was(app):
    tok, start = app.tokenizer, app.ids
    parts = tok(" l")["input_ids"] + tok("azy")["input_ids"]
    for i in parts: app.append(i)
    assert parts != tok(" lazy")["input_ids"] and app.ids == start + parts and app.text == "The quick lazy"
    assert app.distribution["model"].before == pytest.approx(softmax(last_logits(app.models["model"], app.ids))[app.distribution["model"].ids], abs=1e-6)


def test_models_run_when_the_ids_change_and_not_for_a_slider(app):
    calls = []
    app.models["model"].register_forward_hook(lambda *_: calls.append(1))
    for control, values in [("temperature", (0.5, 2.0)), ("top_k", (3, 0)), ("top_p", (0.4, 1.0)), ("n", (5, 20))]:
        for value in values: app.controls[control].value = value
    app.set(temperature=0.7, top_k=4)
    assert not calls and app.distribution["model"].kept == 4
    app.append(9)
    assert calls


def test_a_click_appends_the_token_of_its_row_and_undo_and_reset_take_it_back(app):
    start, column = app.ids, app.columns["model"]
    first = app.distribution["model"].ids
    column.buttons[3].click()
    assert app.ids == start + [first[3]] and [b.token_id for b in column.tokens.children] == app.distribution["model"].ids
    column.buttons[1].click()
    assert len(app.ids) == len(start) + 2 and not app.undo_button.disabled
    app.undo_button.click()
    assert app.ids == start + [first[3]]
    app.set(temperature=0.3, top_k=2, top_p=0.5).reset_button.click()
    assert app.ids == start and app.settings == dict(temperature=1.0, top_k=0, top_p=1.0) and app.undo_button.disabled
    assert app.undo().ids == start


def test_editing_the_prompt_takes_back_what_was_appended_and_says_so(app):
    app.append(7).append(8)
    app.prompt.value = "def f(x)"
    assert app.ids == prompt_ids(app.tokenizer, "def f(x)") and app.text == "def f(x)"
    assert "2 appended tokens were taken back" in app.message and "2 appended tokens" in app.line.value
    assert app.append(7).message == ""


def test_the_cut_tokens_stay_struck_out_hatched_and_named(app):
    app.set(top_k=2, n=4)
    assert [b.style.text_decoration for b in app.columns["model"].tokens.children] == ["none"]*2 + ["line-through"]*2
    for html in (app.columns["model"].bars.value, app._repr_html_()):
        assert html.count("0, cut") == html.count("repeating-linear-gradient") == html.count("opacity:.6") == 2
    assert app._repr_html_().count("text-decoration:line-through") == 2
    app.top_k.value = 0
    assert "cut" not in app._repr_html_() and app.columns["model"].buttons[3].style.text_decoration == "none"


def test_a_full_context_is_said_and_nothing_breaks():
    app = NextTokenExplorer(gpt2(n_positions=8), tokenizer(), "T", n=3)
    while len(app.ids) < 8: app.append(app.distribution["model"].ids[0])
    assert "The context is full: 8 tokens" in app.message and "context is full" in app._repr_html_()
    assert app.path["model"].ids == [] and len(app.distribution["model"].ids) == 3
    assert all(b.disabled for b in app.columns["model"].tokens.children) and len(app.append(1).ids) == len(app.draw().ids) == 8
    app.undo()
    assert app.message == "" and len(app.path["model"].ids) == 1 and not app.columns["model"].buttons[0].disabled
    app.prompt.value = "日本語 🙂"*4
    assert "don't fit into the model's context of 8" in app.line.value.replace("&#x27;", "'")
    assert app.distribution == app.path == {} and app.append(1).text == app.prompt.value and "context of 8" in app._repr_html_()
    with pytest.raises(ValueError, match="nothing to plot"): app.plot()
    app.prompt.value = "T"
    assert app.message == "" and app.distribution


def test_an_error_of_the_model_is_text_in_the_view(app):
    def broken(*_): raise RuntimeError("<b>out of luck")
    hook = app.models["model"].register_forward_hook(broken)
    app.prompt.value = "again"
    assert app.message == "RuntimeError: <b>out of luck" and "<b>out of luck" not in app._repr_html_() + app.line.value
    hook.remove()
    app.prompt.value = "once more"
    assert app.message == "" and app.distribution


def test_an_empty_prompt_opens_a_document_or_says_what_is_missing():
    assert NextTokenExplorer(gpt2(), tokenizer()).ids == [0]
    app = NextTokenExplorer(gpt2(), tokenizer(eos=False))
    assert app.ids == [] and "The prompt is empty" in app.message and app.append(3).ids == []
    app.prompt.value = "The"
    assert app.distribution and app.message == ""


def test_two_models_side_by_side_share_ids_and_settings():
    models = {"a<b": gpt2(), "llama": llama()}
    app = NextTokenExplorer(models, tokenizer(), "The", n=6).set(top_k=3)
    assert [d.kept for d in app.distribution.values()] == [3, 3] and app.distribution["a<b"].ids != app.distribution["llama"].ids
    app.columns["llama"].buttons[0].click()
    for name, model in models.items():
        assert app.distribution[name].before[0] == pytest.approx(softmax(last_logits(model, app.ids)).max(), abs=1e-6)
    assert "a&lt;b" in app._repr_html_() and "a<b" not in app._repr_html_() and len(app.plot().axes) == 2
    assert [column.draw.description for column in app.columns.values()] == ["Draw one: a<b", "Draw one: llama"]
    assert NextTokenExplorer(gpt2(), tokenizer(), "The").columns["model"].draw.description == "Draw one"
    app.reset().set(temperature=0.05, top_k=1)
    for name in models:
        app.columns[name].draw.click()
        assert app.ids[-1] == app.undo().distribution[name].ids[0]
    mixed = NextTokenExplorer({"long": gpt2(), "short": gpt2(n_positions=8)}, tokenizer(), "T")
    while len(mixed.ids) < 8: mixed.append(9)
    assert "context is full" in mixed.message and mixed.append(9).message == mixed.message


def test_draws_follow_the_settings(app):
    app.set(temperature=1.5, top_k=3)
    allowed = {i for i, p in zip(app.distribution["model"].ids, app.distribution["model"].after) if p}
    state, seen = torch.get_rng_state(), set()
    for seed in range(25):
        seen.add(app.draw(seed=seed).ids[-1])
        app.undo()
    assert seen <= allowed and len(seen) > 1 and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="no model"): app.draw("other")


def test_labels_show_spaces_newlines_bytes_and_nothing_that_hides():
    tok = tokenizer()
    label = lambda text: [token_label(tok, i) for i in tok(text, add_special_tokens=False)["input_ids"]]
    assert "".join(label(" a\n\tb")) == "·a⏎⇥b"
    assert "".join(label("\u6f22")) == r"\xe6\xbc\xa2" and token_label(tok, 0) == "<|endoftext|>"
    assert not any("\ufffd" in token_label(tok, i) or token_label(tok, i).strip() == "" for i in range(400))
    assert "\\u202e" in "".join(label("a\u202eb")) or "\\xe2" in "".join(label("a\u202eb"))
    assert token_label(tok, 399_999) == "<unused 399999>"


def test_text_of_the_tokens_is_escaped():
    tok = tokenizer()
    app = NextTokenExplorer(gpt2(), tok, "<script>x</script>", n=50)
    for i in tok("<img>")["input_ids"]: app.append(i)
    html = app._repr_html_() + app.line.value + app.columns["model"].path.value
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html


def test_half_a_character_waits_in_the_text_and_shows_its_bytes(app):
    ids = app.tokenizer("\u6f22")["input_ids"]
    assert len(ids) > 1
    app.append(ids[0])
    assert app.text == "The quick" and "\\xe6" in app.line.value and "\ufffd" not in app._repr_html_()
    for i in ids[1:]: app.append(i)
    assert app.text == "The quick\u6f22"


@pytest.mark.parametrize("values,message", [
    (dict(temperature=0), "temperature=0 can't be used. Use 0.05 to 3.0"), (dict(top_k=-1), "top_k=-1"),
    (dict(top_p=1.5), "top_p=1.5"), (dict(n=0), "n=0"), (dict(prompt=3), "prompt= is of the type int"), (dict(beams=2), "beams can't be set"),
    (dict(temperature=math.nan), "temperature=nan"), (dict(temperature="hot"), "temperature='hot'")])
def test_set_refuses_and_changes_nothing(app, values, message):
    before = app.settings, app.ids
    with pytest.raises(ValueError, match=message.replace(".", r"\.")): app.set(**{"top_k": 5} | values)
    assert (app.settings, app.ids) == before


def test_bad_input_is_refused_before_any_work(app):
    for bad in (-1, 400, "3", True, None):
        with pytest.raises(ValueError, match="is no token"): app.append(bad)
    with pytest.raises(ValueError, match="is empty"): NextTokenExplorer({}, tokenizer())
    with pytest.raises(ValueError, match="n=51"): NextTokenExplorer(gpt2(), tokenizer(), n=51)
    with pytest.raises(ValueError, match="the model knows"): NextTokenExplorer(gpt2(vocab_size=100), tokenizer())


def test_the_view_is_static_html_outside_of_a_kernel(app):
    bundle = app._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and bundle["text/html"] == app._repr_html_() and bundle["text/plain"] == repr(app)
    assert "<script" not in bundle["text/html"] and "http" not in bundle["text/html"]
    figure = app.set(top_k=3, n=5).plot()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == app.distribution["model"].tokens
    assert [b.get_width() for b in figure.axes[0].containers[1]] == app.distribution["model"].after and len(figure.axes[0].containers[2]) == 2
