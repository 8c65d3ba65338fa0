"What is shown of a run is what happened in it, and showing it changes nothing"
import itertools, json, math, re, sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import datasets, numpy as np, pytest, torch
from transformers import TrainerCallback
import clm_nb.training.watch
from clm_nb.core import finetune
from clm_nb.training.charts import loss_curve
from clm_nb.training.watch import LiveTraining
from conftest import answer, python, ranks
from short_runs import losses, parameters
from test_train import run

datasets.disable_progress_bars()
prompt = "The quick"
often = dict(max_steps=6, eval_steps=2, logging_steps=1)


def test_samples_stand_in_run_json_and_a_resumed_run_has_them_all(tmp_path):
    settings = often | dict(sample_prompt=prompt, save_strategy="steps", save_steps=2, save_total_limit=9)
    whole = run(tmp_path/"whole", **settings)
    for name in ("checkpoint-4", "checkpoint-6"): assert (tmp_path/"whole"/name).exists()
    resumed = run(tmp_path/"whole", resume_from_checkpoint=str(tmp_path/"whole/checkpoint-4"), **settings)
    found = json.loads((tmp_path/"whole/run.json").read_bytes())
    assert resumed.live.samples == whole.live.samples == found["samples_by_step"] and len(whole.live.samples) == 3
    assert found["sample_prompt"] == prompt
    assert [log["eval_sample"] for log in found["log_history"] if "eval_sample" in log] == [s["text"] for s in whole.live.samples]
    run(tmp_path/"none", **often)
    assert "samples_by_step" not in json.loads((tmp_path/"none/run.json").read_bytes())


def test_no_text_outside_of_training(tmp_path):
    trainer = run(tmp_path, sample_prompt=prompt)
    n = len(trainer.live.samples)
    trainer.evaluate()
    assert len(trainer.live.samples) == n == 1


shared = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_watch import *
trainer = run(sys.argv[1], sample_prompt=prompt, use_cpu=True, max_steps=4, eval_steps=2, per_device_train_batch_size=2)
print(json.dumps([trainer.live.samples, parameters(trainer.model).tolist()]))
trainer.end_processes()
"""


def test_with_two_processes_the_first_one_writes_and_none_waits(tmp_path):
    workers = [python(shared, str(tmp_path/"run"), **env) for env in ranks(2)]
    (texts, weights), (none, others) = [json.loads(answer(worker).splitlines()[-1]) for worker in workers]
    assert [s["step"] for s in texts] == [2, 4] and none == [] and weights == others


def state_of(history, max_steps=0, global_step=0):
    return SimpleNamespace(log_history=history, max_steps=max_steps, global_step=global_step, epoch=None,
                           is_world_process_zero=True)


class Displays(list):
    "What a notebook shows: one list of pictures for each display"
    def display(self, picture, raw=False, display_id=None):
        self.append([picture])
        return SimpleNamespace(update=lambda new, raw=False: self[-1].append(new))


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr("clm_nb.training.watch.notebook_shell", lambda: "live")
    shown = Displays()
    monkeypatch.setattr("IPython.display.display", shown.display)
    return shown


def test_one_display_is_updated_and_what_a_model_writes_is_no_html(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("clm_nb.training.sampler.generate", lambda *args, **kwargs: "<script>alert('&')</script>")
    trainer = run(tmp_path, sample_prompt="<b>bold", disable_tqdm=False, **often)
    (pictures,) = notebook
    assert len(pictures) >= 5  # the beginning, three texts, the end
    first, last = pictures[0]["text/html"], pictures[-1]["text/html"]
    assert "waiting for the first loss" in first and "0 of 6" in first and "<script" not in last and "<b>bold" not in last
    assert last.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 3 and "&lt;b&gt;bold" in last
    assert "6 of 6" in last and "left" not in pictures[-1]["text/plain"] and str(trainer.live) in last
    assert "left" in pictures[-2]["text/plain"]
    ElementTree.fromstring(last)  # every tag is closed
    assert capsys.readouterr().out == ""


def drawn(monkeypatch, costs, steps: int) -> tuple: # (the run, seconds on the clock)
    "A run of one-second steps, each of whose pictures takes the next of these seconds"
    clock, costs = SimpleNamespace(now=0.0), iter(costs)
    monkeypatch.setattr("clm_nb.training.watch.time", SimpleNamespace(perf_counter=lambda: clock.now))
    def picture(live):
        clock.now += next(costs)
        return ""
    monkeypatch.setattr(LiveTraining, "_repr_html_", picture)
    live = LiveTraining(16)
    args = SimpleNamespace(train_batch_size=1, gradient_accumulation_steps=1, world_size=1)
    state = state_of([], max_steps=10**4)
    live.on_train_begin(args, state, None)
    for _ in range(steps):
        live.on_step_begin(args, state, None)
        clock.now += 1.0
        live.on_step_end(args, state, None)
    return live, clock.now


def test_drawing_that_takes_long_is_done_seldom(notebook, monkeypatch):
    live, now = drawn(monkeypatch, itertools.repeat(3.0), 3000)
    (pictures,) = notebook
    assert 8 <= len(pictures) - 1 <= 11 and live.drawing == 3*len(pictures)
    assert live.drawing - 3 <= 0.011*now


def test_a_first_picture_that_takes_long_delays_no_other(notebook, monkeypatch):
    live, _ = drawn(monkeypatch, itertools.chain([3.0], itertools.repeat(0.001)), 9)
    assert len(notebook[0]) == 10 and live.drawing == pytest.approx(3.009)


def test_the_curves_are_the_history(tmp_path):
    "Points and ticks of the SVG are read back: ticks that say what they say give the losses that were logged"
    history = [dict(step=10*i, loss=4 + math.cos(i), learning_rate=1e-3*i) for i in range(1, 9)]
    history += [dict(step=s, eval_loss=loss, eval_perplexity=math.exp(loss)) for s, loss in ((40, 4.2), (80, 3.9))]
    live = LiveTraining(16, show=False)
    live.on_train_begin(None, state_of(history, max_steps=100, global_step=80), None)
    svg = ElementTree.fromstring(live._repr_html_()).find(".//svg")
    texts = [(t.text, float(t.get("x")), float(t.get("y"))) for t in svg.iter("text")]
    numbers = [(float(text.replace(",", "")), x, y) for text, x, y in texts if re.fullmatch(r"[\d.,]+", text)]
    steps = np.array([(number, x) for number, x, y in numbers if y == 322])
    nats, perplexities = (np.array([(number, y - 5) for number, x, y in numbers if x == at and y < 220]) for at in (56, 658))
    assert len(steps) >= 4 and len(nats) >= 3 and len(perplexities) >= 3
    back = lambda ticks, f=lambda v: v: np.polyfit(ticks[:, 1], f(ticks[:, 0]), 1)
    lines = [np.array([p.split(",") for p in line.get("points").split()], float) for line in svg.iter("polyline")]
    panel = [line for line in lines if 25 < line[:, 1].min() and line[:, 1].max() < 220]  # without legend and learning rate
    train, held_out = panel
    for curve, key in ((train, "loss"), (held_out, "eval_loss")):
        expected = [(log["step"], log[key]) for log in history if key in log]
        np.testing.assert_allclose(np.polyval(back(steps), curve[:, 0]), [s for s, _ in expected], atol=0.5)
        np.testing.assert_allclose(np.polyval(back(nats), curve[:, 1]), [v for _, v in expected], atol=0.02)
        np.testing.assert_allclose(np.polyval(back(perplexities, np.log), curve[:, 1]), [v for _, v in expected], atol=0.02)
    assert ("49.4", "80 of 100") == (next(t for t, *_ in texts if t == "49.4"), live.figures()["step"])


def test_what_is_no_number_breaks_no_picture():
    inf = float("inf")
    history = [dict(step=1, loss=float("nan"), learning_rate=0.0), dict(step=2, eval_loss=inf, eval_perplexity=inf),
               dict(step=3, loss=800.0), dict(step=4, eval_loss=900.0, eval_perplexity=inf)]
    for some in (history[:1], history[:2], history):
        live = LiveTraining(16, show=False)
        live.on_train_begin(None, state_of(some), None)
        ElementTree.fromstring(live._repr_html_())
        loss_curve(some).canvas.draw()
    assert loss_curve([]).axes


def test_the_exponential_of_the_tutorials_loss_is_not_called_perplexity(tmp_path):
    trainer = run(tmp_path, exact_loss=False, **often)
    found = trainer.live.figures()
    assert "perplexity" not in found
    assert found["exp(loss)"] == f"{math.exp(losses(trainer, 'eval_loss')[-1]):,.1f}"
    right = lambda history: loss_curve(history).axes[0].child_axes[0].get_ylabel()
    assert right(trainer.state.log_history) == "exp(loss)" and right([dict(step=1, loss=2.0)]) == "perplexity"


def test_a_terminal_has_one_line_and_texts_above_it(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("clm_nb.training.sampler.generate", lambda *args, **kwargs: " red\x1b[31m\nnext\rline" + "long "*90)
    trainer = run(tmp_path, sample_prompt=prompt, disable_tqdm=False, **often)
    out, err = capfd.readouterr()
    texts = [line for line in err.replace("\r", "\n").split("\n") if line.startswith("step ")]
    assert [line.split(":")[0] for line in texts] == ["step 2", "step 4", "step 6"] and out == ""
    assert all(line.endswith("…") and len(line) < 180 and f"{prompt} red [31m next linelong" in line for line in texts)
    assert "\x1b[31m" not in err
    last = [line for line in re.split("[\r\n]+", err) if "6/6 steps" in line][-1]
    perplexity = losses(trainer, "eval_perplexity")[-1]
    assert f"loss {losses(trainer)[-1]:.3f}, perplexity {perplexity:,.1f}, lr " in last and "tokens/s" in last
    run(tmp_path, sample_prompt=prompt, **often)
    assert "step" not in "".join(capfd.readouterr()).replace("Writing", "")


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_the_line_stands_on_a_line_of_its_own(kind, tmp_path, capfd):
    class OutOfLuck(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2: raise kind("out of luck")
    with pytest.raises(kind, match="out of luck") as error: run(tmp_path, disable_tqdm=False, callbacks=[OutOfLuck()], **often)
    print(error.value, file=sys.stderr)
    lines = capfd.readouterr().err.splitlines()
    assert "steps" in lines[-2] and lines[-1] == "out of luck"


def test_a_static_notebook_gets_one_figure_and_text(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure
    monkeypatch.setattr("clm_nb.training.watch.notebook_shell", lambda: "static")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: shown.extend(args))
    trainer = run(tmp_path, sample_prompt=prompt, disable_tqdm=False, **often)
    assert [type(s) for s in shown] == [Figure]
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out[:-1]] == ["step 2", "step 4", "step 6"] and out[-1] == str(trainer.live)


def test_tensorboard_holds_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    trainer = run(tmp_path/"runs/mine", sample_prompt=prompt, report_to="tensorboard", hub_token="hf_secret", **often)
    (folder,) = (tmp_path/"runs/mine/runs").iterdir()
    board = EventAccumulator(str(folder)).Reload()
    tag = lambda key: f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
    expected = {}
    for log in trainer.state.log_history:
        for key in set(log) - {"step", "eval_sample"}: expected.setdefault(tag(key), []).append((log["step"], log[key]))
    written = {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert set(written) == set(expected) >= {"train/loss", "train/learning_rate", "train/tokens_per_second", "eval/loss",
                                             "eval/perplexity"}
    float32 = lambda points: [(step, np.float32(value)) for step, value in points]
    for name in expected: assert float32(written[name]) == float32(expected[name]), name
    texts = [e.tensor_proto.string_val[0].decode() for e in board.Tensors("eval/sample/text_summary")]
    assert texts == [s["text"] for s in trainer.live.samples] and len(texts) == 3
    assert b"hf_secret" not in b"".join(p.read_bytes() for p in folder.iterdir())
    json.dumps(trainer.state.log_history)


@pytest.mark.parametrize("name, message", [
    ("tensorboard", "report_to='tensorboard' needs tensorboard: pip install tensorboard"),
    ("tensorbord", "report_to='tensorbord' is no integration of the Trainer")])
def test_a_report_that_nobody_can_write_is_refused_before_data_is_read(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    for report_to in (name, [name]):
        with pytest.raises(ValueError, match=re.escape(message)):
            finetune("/no/such/data", output_dir=tmp_path/"run", report_to=report_to)
    assert not (tmp_path/"run").exists()


def test_a_run_resumed_without_a_prompt_shows_its_curve_and_not_the_texts_of_before(capsys, monkeypatch):
    import torch
    from transformers import TrainerState
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: None)
    live = LiveTraining(8)
    live.shell, live.dtype, live.state = "static", torch.float32, TrainerState(log_history=[dict(step=1, eval_sample="once")])
    assert live.samples == [dict(step=1, text="once")]
    live.conclude()
    assert "once" not in capsys.readouterr().out
