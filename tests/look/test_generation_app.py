"The generation app without a browser: against `generate` alone, stopped, refused, clicked twice, and never hanging"
import random, threading, time
from html import escape
from types import SimpleNamespace
import pytest, torch
from clm_nb.model.causal import check_causal
from clm_nb.generate import generate
from clm_nb.look.generation_app import GenerationApp
from tiny import gpt2, llama, patience, tokenizer

modes = {"sample": dict(do_sample=True, temperature=0.8, top_k=40, top_p=0.9, seed=5), "greedy": dict(do_sample=False),
         "beam": dict(do_sample=False, num_beams=3)}
both = lambda: {"base": gpt2(), "fine-tuned": llama()}


class Slow:
    "A model whose every step waits until it may go on; counts its steps"
    def __init__(self, model):
        check_causal(model) # asked once, before it is slow
        self.model, self.forward, self.steps, self.go = model, model.forward, 0, threading.Semaphore(0)
        model.forward = self.step

    def step(self, *args, **kwargs):
        assert self.go.acquire(timeout=patience)
        self.steps += 1
        return self.forward(*args, **kwargs)


def make(models=None, tok=None, prompt="The quick", **settings):
    return GenerationApp(models or both(), tok or tokenizer(), prompt, **dict(max_new_tokens=12, seed=5) | settings)


def run(app):
    app.generate()
    assert app.wait(patience)
    return app


def until(true, seconds=patience):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@pytest.mark.parametrize("mode", modes)
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_each_column_is_what_generate_gives_for_its_model_alone(mode, penalty):
    models, tok = both(), tokenizer()
    values = {name: value for name, value in modes[mode].items() if name != "do_sample"}
    app = run(make(models, tok, mode=mode, repetition_penalty=penalty, **values))
    alone = {name: generate(model, tok, "The quick", max_new_tokens=12, return_full_text=False,
                            repetition_penalty=penalty, **modes[mode]) for name, model in models.items()}
    assert app.texts == alone == app.history[0].texts and all(alone.values()) and len(set(alone.values())) == 2
    assert app.error is None and not app.history[0].stopped


@pytest.mark.parametrize("control, value", [("seed", 6), ("temperature", 2.0), ("top_k", 1), ("top_p", 0.05),
                                            ("max_new_tokens", 3), ("repetition_penalty", 2.0)])
def test_every_control_counts(control, value):
    tok, model = tokenizer(), gpt2()
    first = run(make(model, tok, top_k=0, top_p=1.0, max_new_tokens=60)).texts
    app = make(model, tok, top_k=0, top_p=1.0, max_new_tokens=60)
    getattr(app, control).value = value
    assert run(app).texts != first


def test_beams_count():
    assert run(make(mode="beam", num_beams=2)).texts != run(make(mode="beam", num_beams=8)).texts


def test_history_entries_repeat_with_generate_and_can_be_taken_back():
    models, tok = both(), tokenizer()
    app = make(models, tok)
    for mode in modes:
        app.mode.value, app.prompt.value = mode, f"{mode} \u2029 日本"
        run(app)
    assert [e.prompt.split()[0] for e in app.history] == list(modes)
    for past in app.history:
        assert past.texts == {n: generate(m, tok, past.prompt, return_full_text=False, **past.settings) for n, m in models.items()}
    app.temperature.value, app.seed.value = 1.7, 99
    app.recall(app.history[0])
    assert app.texts == app.history[0].texts and app.settings == app.history[0].settings and app.mode.value == "sample"
    assert app.prompt.value == app.history[0].prompt and len(app.history) == 3
    button = app._past.children[-1].children[0]
    app.seed.value = 98
    button.click()
    assert app.seed.value == app.history[0].settings["seed"]
    assert [f"#{n}" in row.children[1].value for n, row in zip((3, 2, 1), app._past.children)] == [True]*3
    app.clear()
    assert not app.history and not app._past.children and not any(app.texts.values()) and not app._past_title.value


def test_tokens_seconds_and_the_first_text_are_measured():
    tok, model = tokenizer(), gpt2()
    app = run(make(model, tok, mode="greedy"))
    answer = app.current.answers["model"]
    assert answer.tokens == 12 == app.history[0].tokens["model"]
    assert 0 < answer.first and 0 < answer.seconds
    assert answer.rate == 12/answer.seconds == app.history[0].tokens_per_second["model"]
    assert f"{answer.rate:,.0f} tokens/s" in app._cards["model"].value


def test_seconds_are_each_models_own(monkeypatch):
    "By a clock that only the slow model moves, a second a token"
    clock, slow, fast = [0.0], gpt2(), gpt2()
    monkeypatch.setattr("clm_nb.look.answers.time.perf_counter", lambda: clock[0])
    check_causal(slow), check_causal(fast) # asked once; it isn't drawing
    forward = slow.forward
    def late(*args, **kwargs):
        clock[0] += 1
        return forward(*args, **kwargs)
    slow.forward = late
    app = run(make({"slow": slow, "fast": fast}, mode="greedy"))
    assert app.texts["slow"] == app.texts["fast"]
    assert app.history[0].seconds == {"slow": 12.0, "fast": 0.0}


def test_models_take_turns():
    order, models = [], both()
    for name, model in models.items():
        check_causal(model)
        def step(*args, name=name, forward=model.forward, **kwargs):
            order.append(name)
            return forward(*args, **kwargs)
        model.forward = step
    run(make(models, mode="greedy", max_new_tokens=6))
    assert {"base", "fine-tuned"} == set(order[:2]) == set(order[2:4]) == set(order[4:6])


def test_generate_returns_at_once_and_stop_takes_effect_within_a_token():
    slow = Slow(gpt2())
    app = make(slow.model, mode="greedy", max_new_tokens=100)
    app.generate()
    assert app.running and not app.wait(0.01) and slow.steps == 0
    assert app.generate_button.disabled and app.clear_button.disabled and not app.stop_button.disabled
    slow.go.release(3)
    until(lambda: slow.steps == 3 and app.current.answers["model"].tokens == 3)
    app.stop()
    slow.go.release(1)
    assert app.wait(patience) and not app.running
    assert slow.steps <= 4 and app.history[0].stopped and app.history[0].error is None
    whole = run(make(gpt2(), mode="greedy", max_new_tokens=100)).texts["model"]
    assert whole.startswith(app.texts["model"]) and len(app.texts["model"]) < len(whole)
    assert not app.generate_button.disabled and not app.clear_button.disabled and app.stop_button.disabled
    assert "Stopped" in app._status.value


def test_stop_ends_a_text_of_tokens_that_can_not_be_seen():
    slow = Slow(gpt2())
    tok = tokenizer()
    tok.decode = lambda ids, **kwargs: "\ufffd"*len(ids)
    app = make(slow.model, tok, mode="greedy", max_new_tokens=100)
    app.generate()
    slow.go.release(3)
    until(lambda: app.current.answers["model"].tokens == 3)
    app.stop()
    slow.go.release(97)
    assert app.wait(patience) and slow.steps == 4 and app.history[0].stopped


def test_stopped_beam_search_gives_the_best_so_far_and_the_next_model_does_not_begin():
    slow, other = Slow(gpt2()), Slow(llama())
    app = make({"a": slow.model, "b": other.model}, mode="beam", num_beams=3, max_new_tokens=100)
    app.generate()
    assert "no text before its end" in app._status.value
    slow.go.release(4)
    until(lambda: app.current.answers["a"].tokens == 4)
    app.stop()
    slow.go.release(96)
    assert app.wait(patience) and slow.steps == 5 and other.steps == 0
    assert app.texts["a"] and app.texts["b"] == "" and app.history[0].stopped
    assert app.texts["a"] == generate(gpt2(), tokenizer(), "The quick", 5, do_sample=False, num_beams=3, return_full_text=False)


def test_a_click_while_running_is_ignored():
    slow = Slow(gpt2())
    app = make(slow.model, mode="greedy", max_new_tokens=3)
    app.generate_button.click()
    current = app.current
    app.generate()
    app.generate_button.click()
    app.clear()
    app.recall(run(make(gpt2())).history[0])
    assert app.current is current and app.running
    slow.go.release(3)
    assert app.wait(patience) and slow.steps == 3 and len(app.history) == 1


def test_many_clicks_at_once_start_one_run():
    slow = Slow(gpt2())
    app = make(slow.model, mode="greedy", max_new_tokens=3)
    clicks = [threading.Thread(target=app.generate) for _ in range(16)]
    for click in clicks: click.start()
    for click in clicks: click.join()
    slow.go.release(30)
    assert app.wait(patience) and slow.steps == 3 and len(app.history) == 1


def test_errors_are_shown_and_the_app_goes_on():
    app = make(gpt2())
    app.prompt.value = "The quick brown fox "*60
    run(app)
    assert "model's context of 256" in app.error and "context of 256" in app._cards["model"].value
    assert app.history[0].error == app.error and "context of 256" in app._past.children[0].children[1].value
    assert not app.generate_button.disabled and "Change the prompt" in app._status.value
    app.prompt.value = "The quick"
    assert run(app).error is None and app.texts["model"] and "Done" in app._status.value
    app.seed.value = 2**64
    assert f"seed={2**64}" in run(app).error
    app.seed.value = -1
    assert run(app).error is None


def test_empty_prompt():
    assert "Give some text" in run(make(gpt2(), tokenizer(eos=False), prompt="")).error
    assert run(make(gpt2(), tokenizer(), prompt="")).error is None


@pytest.mark.parametrize("error, shown", [(RuntimeError("out of <memory>"), "RuntimeError: out of &lt;memory&gt;"),
                                          (MemoryError(), "MemoryError"), (ValueError(), "ValueError")])
def test_a_model_that_breaks_leaves_its_neighbour_alone(error, shown):
    models = both()
    forward, calls = models["base"].forward, []
    def breaking(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3: raise error
        return forward(*args, **kwargs)
    models["base"].forward = breaking
    app = run(make(models, mode="greedy"))
    alone = generate(models["fine-tuned"], tokenizer(), "The quick", 12, do_sample=False, return_full_text=False)
    assert app.texts["fine-tuned"] == alone and app.texts["base"] and shown in app._cards["base"].value
    assert app.error.startswith("base: ") and shown not in app._cards["fine-tuned"].value
    assert not run(app).error and app.texts["base"].startswith(app.history[0].texts["base"])


def test_text_is_escaped_everywhere():
    bad = '<script>alert("x")</script>'
    tok = tokenizer()
    decode = tok.decode
    tok.decode = lambda ids, **kwargs: decode(ids, **kwargs) + bad*(len(ids) > 50)
    app = run(make({bad: gpt2()}, tok, prompt=bad, max_new_tokens=60))
    assert bad in app.texts[bad]
    app.prompt.value = bad
    pages = [app._repr_html_(), app._cards[bad].value, app._past.children[0].children[1].value, app._status.value]
    app.seed.value = 2**64
    run(app)
    assert all("<script" not in page for page in [*pages, app._repr_html_(), app._cards[bad].value])
    assert all("&lt;script&gt;alert(&quot;x&quot;)" in page for page in pages[:3])


def test_the_prompt_and_what_the_model_adds_can_be_told_apart():
    app = run(make(gpt2(), mode="greedy"))
    card, text = app._cards["model"].value, app.texts["model"]
    assert "white-space:pre-wrap" in card and ">prompt</span>" in card and ">generated</span>" in card
    before, after = card.split(">The quick</span>")
    assert after.startswith("<span") and "font-weight:600" in after.split(">")[0]


def test_controls_that_a_mode_does_not_use_are_off():
    app = make()
    used = dict(sample={"temperature", "top_k", "top_p", "seed"}, greedy=set(), beam={"num_beams"})
    for mode in ("beam", "greedy", "sample"):
        app.mode.value = mode
        for name in set().union(*used.values()): assert getattr(app, name).disabled == (name not in used[mode])
        assert app.new_seed_button.disabled == (mode != "sample")
        assert not app.max_new_tokens.disabled and not app.repetition_penalty.disabled
        assert set(app.settings) == {"do_sample", "max_new_tokens", "repetition_penalty"} | used[mode]


def test_the_callers_random_state_is_not_touched():
    models, tok = both(), tokenizer()
    torch.manual_seed(3)
    random.seed(3)
    state, ours = torch.get_rng_state(), random.getstate()
    app = run(make(models, tok))
    app.new_seed()
    run(app)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == ours
    assert app.history[1].settings["seed"] != 5


def test_the_modes_of_the_models_are_not_touched():
    models = both()
    models["base"].train()
    run(make(models))
    assert models["base"].training and not models["fine-tuned"].training


def test_cards_are_not_sent_for_every_token_but_the_last_always_is(monkeypatch):
    "By a clock on which a token takes a hundredth of a second, so that 200 tokens take two"
    clock, model = [100.0], gpt2()
    monkeypatch.setattr("clm_nb.look.generation_app.time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))
    forward = model.forward
    def tick(*args, **kwargs):
        clock[0] += 0.01
        return forward(*args, **kwargs)
    model.forward = tick
    app, sent = make(model, mode="greedy", max_new_tokens=200), []
    app._cards["model"].observe(lambda change: sent.append(change["new"]), "value")
    run(app)
    assert 20 <= len(sent) <= 4 + 20*2
    assert sent[-1] == app._card("model") and "200 tokens" in sent[-1]


def test_text_can_be_seen_while_it_is_made():
    slow = Slow(gpt2())
    app = make(slow.model, mode="greedy", max_new_tokens=12)
    app.generate()
    for step in range(1, 13):
        slow.go.release(1)
        until(lambda: app.current.answers["model"].tokens == step)
        if app.texts["model"]: break
        time.sleep(0.1)
    text = app.texts["model"]
    assert text and step < 12 and slow.steps == step
    until(lambda: escape(text) in app._cards["model"].value)
    assert app.running and slow.steps == step
    slow.go.release(20)
    assert app.wait(patience)


def test_a_tokenizer_per_model_and_the_room_of_the_shorter_context():
    models = {"a": gpt2(), "b": gpt2(n_positions=64)}
    app = make(models, {"a": tokenizer(), "b": tokenizer(bos=True)}, mode="greedy")
    assert app.max_new_tokens.max == 63
    run(app)
    for name, bos in dict(a=False, b=True).items():
        assert app.texts[name] == generate(models[name], tokenizer(bos=bos), "The quick", 12, do_sample=False, return_full_text=False)


@pytest.mark.parametrize("settings, message", [
    (dict(creativity=1), "creativity is no setting"), (dict(top_p=3.0), "top_p=3.0"), (dict(temperature=0.0), "temperature=0.0"),
    (dict(max_new_tokens=4096), "max_new_tokens=4096 can't be used here. Use 1 to 255"), (dict(mode="best"), "sample, greedy, beam"),
    (dict(seed="x"), "seed='x'"), (dict(models={}), "models is empty"), (dict(tok={"base": 1}), "no tokenizer for model")])
def test_bad_arguments_are_refused_before_anything_is_shown(settings, message):
    models, tok = settings.pop("models", None), settings.pop("tok", None)
    with pytest.raises(ValueError, match=message):
        GenerationApp(gpt2() if models is None else models, tok or tokenizer(), **settings)


def test_static_view_holds_all_that_can_be_seen():
    app = make(prompt="The quick")
    bundle = app._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and "base, fine-tuned; 0" in bundle["text/plain"]
    html = run(app)._repr_html_()
    for part in ("base", "fine-tuned", "The quick", "sample · max new tokens 12", "seed 5", "#1", "tokens/s"): assert part in html
    assert "<script" not in html and "http" not in html


def test_live_view_names_the_model_of_its_widgets(monkeypatch):
    "And asks ipywidgets 8 for nothing that ipywidgets 7 lacks: tests/test_places.py shows it in a kernel with 7.7.1"
    monkeypatch.setattr("clm_nb.look.html.notebook_shell", lambda: "live")
    app = make()
    monkeypatch.delattr("ipywidgets.Widget._repr_mimebundle_")
    bundle = app._repr_mimebundle_()
    view = bundle.pop("application/vnd.jupyter.widget-view+json")
    assert view == {"model_id": app.ui.model_id, "version_major": 2, "version_minor": 0} and app.ui.model_id
    assert set(bundle) == {"text/plain"}
