"The learning-rate finder against a plain loop, on curves whose answer is known, and the trace it doesn't leave"
import base64, copy, math, random, tempfile
from pathlib import Path

import datasets, numpy as np, pytest, torch
from datasets import DatasetDict
from clm_nb.training.lr_finder import LRFinder, find_lr, suggest_lr
from short_runs import make_blocks
from tiny import families, gpt2, needs_bf16, tokenizer

datasets.disable_progress_bars()
blocks = DatasetDict(train=make_blocks(rows=8))
quick = dict(per_device_train_batch_size=8, bf16=False, use_cpu=True, steps=20)


@pytest.mark.parametrize("family", families)
def test_the_losses_are_those_of_a_plain_loop(family):
    "Every step takes all rows, so that their order doesn't matter"
    found = find_lr(families[family](), blocks, tokenizer(), start=1e-3, end=0.5, optim="sgd", weight_decay=0.0, **quick)
    model, ids, losses = families[family](), torch.tensor(blocks["train"]["input_ids"]), []
    for lr in found.lrs:
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for p in model.parameters(): p -= lr*p.grad
    assert found.raw == pytest.approx(losses, rel=1e-4) and losses[-1] < losses[0] - 0.2
    assert found.untrained == pytest.approx([losses[0]]*len(losses), rel=1e-6)
    np.testing.assert_allclose(found.lrs, np.geomspace(1e-3, 0.5, 20))


def test_batches_and_dropout_are_the_same_without_learning():
    data = DatasetDict(train=make_blocks(rows=100))
    still = find_lr(gpt2(dropout=0.2), data, tokenizer(), 1e-30, 1e-29, **quick | dict(per_device_train_batch_size=2))
    assert still.raw == still.untrained and len(set(still.raw)) == 20 and not still.diverged
    with pytest.raises(ValueError, match="No learning rate from 1.0e-30 to 1.0e-29 lowered the loss"): still.suggestion


def everything(model):
    "What a sweep could change: (weights, gradients, modes, attributes, configs, generators)"
    return ({k: t.clone() for k, t in model.state_dict().items()}, [p.grad for p in model.parameters()],
            [m.training for m in model.modules()], sorted(vars(model)), copy.deepcopy(vars(model.config)),
            copy.deepcopy(vars(model.generation_config)), random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())


def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray): return np.array_equal(a, b)
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("settings", [{}, pytest.param(dict(bf16=True), marks=needs_bf16), dict(gradient_checkpointing=True)], ids=str)
def test_a_sweep_leaves_no_trace(error, settings, tmp_path, monkeypatch):
    model, n = gpt2(dropout=0.1), 0
    model.train()
    model.transformer.h[1].eval()
    model.config.pad_token_id = 7  # the trainer takes over the tokenizer's
    for p in model.parameters(): p.grad = torch.ones_like(p)
    if error:
        from clm_nb.training.lr_finder import _Losses
        own = _Losses.on_log
        def broken(self, *args, logs=None, **kwargs):
            own(self, *args, logs=logs, **kwargs)
            if len(self.losses) == 5: raise error
        monkeypatch.setattr(_Losses, "on_log", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = everything(model)
    asked = lambda: find_lr(model, blocks, tokenizer(), 1e-4, 1e-1, **quick | settings)
    if error:
        with pytest.raises(error): asked()
    else: assert min(asked().gains) < -0.1
    after = everything(model)
    for name, a, b in zip("weights grads modes attributes config generation random numpy torch".split(), before, after):
        assert same(a, b), name
    assert all(bool((g == 1).all()) for g in after[1]) and not list(Path(tmp_path).iterdir())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


def test_it_stops_where_it_diverges():
    found = find_lr(gpt2(), blocks, tokenizer(), 1e-3, 1e12, optim="sgd", **quick | dict(steps=60))
    assert found.diverged and 5 < len(found.raw) < 55 and np.isfinite(found.raw).all()
    means = [np.mean(found.raw[max(0, i - 2):i + 1]) for i in range(len(found.raw))]
    ratio = [math.exp(mean - min(means[:i + 1])) for i, mean in enumerate(means)]
    assert max(ratio[:-1]) <= 4  # in perplexity
    assert f"diverged at {found.lrs[-1]:.1e}" in str(found)
    calm = find_lr(gpt2(), blocks, tokenizer(), 1e-3, 1e-1, optim="sgd", **quick)
    assert not calm.diverged and len(calm.raw) == 20 and "no divergence up to 1.0e-01" in str(calm)


@pytest.mark.parametrize("steepest", [1e-5, 5e-4, 2e-2])
def test_the_suggestion_is_where_a_known_curve_falls_fastest(steepest):
    lrs = np.geomspace(1e-7, 1.0, 140)
    x = np.log10(lrs) - math.log10(steepest)
    gains = -1/(1 + np.exp(-6*x)) + 3*np.maximum(0, x - 1.2)**2
    step = lrs[1]/lrs[0]
    assert steepest/step**2 < suggest_lr(lrs, gains) < steepest*step**2
    noise = np.random.default_rng(0).normal(0, 0.02, len(lrs))
    assert steepest/3 < suggest_lr(lrs, gains + noise) < steepest*3
    assert lrs[gains.argmin()] > 3*steepest  # what is lowest is another question


def test_harder_batches_move_no_suggestion():
    lrs = np.geomspace(1e-6, 1e-1, 100)
    gains = -1/(1 + np.exp(-6*(np.log10(lrs) + 3)))
    found = []
    for seed in range(5):
        untrained = 5 + np.random.default_rng(seed).normal(0, 0.5, 100)
        found.append(LRFinder(lrs.tolist(), (untrained + gains).tolist(), untrained.tolist(), 4.0, False))
    assert len({f.suggestion for f in found}) == 1
    np.testing.assert_allclose(np.array(found[0].losses)[[0, -1]], np.mean(found[0].untrained) + [0, -1], atol=0.02)


def test_the_plot_marks_the_suggestion():
    lrs = np.geomspace(1e-6, 1e-1, 100)
    gains = -1/(1 + np.exp(-6*(np.log10(lrs) + 3)))
    found = LRFinder(lrs.tolist(), (5 + gains).tolist(), [5.0]*100, 4.0, False)
    (ax,) = found.plot().axes
    assert ax.get_xscale() == "log"
    (mark,) = [line for line in ax.lines if line.get_marker() == "D"]
    assert mark.get_xdata()[0] == found.suggestion and 4 < mark.get_ydata()[0] < 5
    html = found._repr_html_()
    assert str(found) in html and base64.b64decode(html.split("base64,")[1].split('"')[0]).startswith(b"\x89PNG")


def test_what_can_not_be_swept_is_refused_before_a_step():
    ask = lambda **kwargs: find_lr(gpt2(), blocks, tokenizer(), **quick | kwargs)
    for kwargs, message in [(dict(start=0.0), "start=0.0, end=1.0 is no range"), (dict(start=1.0, end=0.1), "is no range"),
                            (dict(steps=3), "steps=3 is too few")]:
        with pytest.raises(ValueError, match=message): ask(**kwargs)
    with pytest.raises(ValueError, match="longer than the model's context"):
        find_lr(gpt2(n_positions=8), blocks, tokenizer())


def test_settings_of_a_training_that_a_sweep_has_no_use_for_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = find_lr(gpt2(), blocks, tokenizer(), 1e-4, 1e-1, **quick)
    given = find_lr(gpt2(), blocks, tokenizer(), 1e-4, 1e-1, **quick, learning_rate=5e-5, lr_scheduler_type="cosine",
                    warmup_steps=5, num_train_epochs=9, eval_strategy="epoch", save_strategy="epoch", logging_steps=7,
                    max_steps=3, report_to="tensorboard")
    assert given == plain and not list(tmp_path.iterdir())
