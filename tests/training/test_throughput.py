"The speed of a run: by a clock of the test, and as a share of what the machine reaches"
import json
from types import SimpleNamespace

import pytest, torch
import clm_nb.training.throughput
from clm_nb.model.model import training_flops
from clm_nb.training.throughput import Throughput
from clm_nb.look.report import report_training
from short_runs import run
from tiny import gpt2, needs_bf16


@needs_bf16
def test_the_run_says_how_fast_it_was(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(clm_nb.training.throughput, "matmul_rate", lambda device, dtype: rates.append((device, dtype)) or 1e12)
    rates = []
    trainer = run(tmp_path, gpt2(), disable_tqdm=False, gradient_accumulation_steps=2, bf16=True)
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if "of what matrix products" in line]
    run_json, live = json.loads((tmp_path/"run.json").read_bytes()), trainer.live
    assert line == str(live) and "in bfloat16 reach here" in line and "tokens/s" in line and "tokens/s" not in out
    assert rates == [("cpu", torch.bfloat16)] and live.steps == 3
    assert live.rate == pytest.approx(2*8*16/(live.seconds - live.first))  # the first step, which sets up, isn't counted
    assert live.utilisation == pytest.approx(live.rate*training_flops(trainer.model, 16)/1e12)
    assert run_json["tokens_per_second"] == round(live.rate) > 0 and run_json["train_seconds"] == round(live.seconds, 1)
    quiet = run(tmp_path, gpt2())
    assert "matrix products" not in "".join(capfd.readouterr())
    assert quiet.live.rate > 0 and rates[-1] == ("cpu", torch.float32)


def test_the_speed_that_is_logged_is_that_since_the_last_log(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("clm_nb.training.throughput.time", SimpleNamespace(perf_counter=lambda: clock.now))
    speed = Throughput(tokens_per_row=100)
    args = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=3, world_size=1)
    for n, seconds, expected in ((1, 10.0, 60.0), (3, 1.0, 600.0), (2, 2.0, 300.0)):
        for _ in range(n):
            speed.on_step_begin(args, None, None)
            clock.now += seconds
            speed.on_step_end(args, None, None)
            clock.now += 50.0  # evaluation is no training
        assert speed.recent(args) == pytest.approx(expected)
    assert speed.rate == speed.recent(args) == pytest.approx(5*600/7)


@pytest.mark.parametrize("possible", [1.0, 0.5])
def test_a_share_that_can_not_be_is_left_out(possible, tmp_path, monkeypatch):
    "Where another program kept the machine busy while the products were measured"
    monkeypatch.setattr(clm_nb.training.throughput, "matmul_rate", lambda device, dtype: possible)
    live, told = run(tmp_path, gpt2()).live, json.loads((tmp_path/"run.json").read_bytes())
    assert live.utilisation is None and str(live) == f"{live.rate:,.0f} tokens/s" and told["utilisation"] is None
    page = report_training(told)
    assert f"{told['tokens_per_second']:,} tokens/s." in page and "matrix products" not in page
