"Runs that are killed, stopped, diverge, or meet each other: what they leave, and what comes of it when they go on"
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch
from transformers import TrainerCallback
from clm_nb.data.whole import leftovers
from clm_nb.model.model import load_model
from clm_nb.training.checkpoint import checkpoint_fault, newest_whole, read_list, seal
from clm_nb.training.diverged import TrainingDiverged
from clm_nb.training.resume import RunFinished
from clm_nb.training.run_json import read_run
from clm_nb.training.stop import TrainingStopped
from clm_nb.train import train
from conftest import python
from faults import Trials, without_times
from short_runs import make_blocks, parameters
from test_train import blocks, contents, run
from tiny import gpt2, llama, patience, tokenizer

steps = dict(max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=2, eval_steps=4, seed=1)


def state(folder): return {k: without_times(v) for k, v in contents_json(folder).items()}


def contents_json(folder):
    found = json.loads((folder/"run.json").read_bytes())
    return {k: found[k] for k in ("status", "steps", "log_history", "data", "seed", "finished")}


class At(TrainerCallback):
    "Does something after a step"
    def __init__(self, step, what): self.step, self.what = step, what
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: self.what()


class Before(TrainerCallback):
    "Does something while a step is made"
    def __init__(self, step, what): self.step, self.what = step, what
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1: self.what()


def fails(): raise RuntimeError("out of luck")


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    "A run that is left alone, for others to be compared with; `finetune` from the corpus to the report"
    return Trials(tmp_path_factory.mktemp("faults"), max_steps=5, eval_steps=2)


@pytest.mark.parametrize("share", [0.15, 0.4, 0.55, 0.7, 0.9])
def test_a_killed_run_goes_on_and_ends_like_one_that_was_left_alone(share, trials):
    killed, wrong = trials.trial(f"at-{share}", event=max(1, round(share*trials.events)))
    assert killed and wrong == []


@pytest.mark.parametrize("exact_loss", [True, False])
@pytest.mark.parametrize("settings", [dict(save_steps=2, logging_steps=3), dict(save_steps=3, eval_strategy="epoch", gradient_accumulation_steps=2),
                                      dict(save_strategy="epoch", eval_strategy="epoch", eval_on_start=True)], ids=str)
def test_a_run_that_goes_on_logs_what_it_would_have_logged(exact_loss, settings, tmp_path):
    "Saves that don't coincide with logs, and the loss over the whole run; a model with dropout"
    settings = steps | dict(exact_loss=exact_loss, sample_prompt="The quick", max_steps=13) | settings
    def go(folder, **more): return run(folder, gpt2(dropout=0.2), **settings | more)
    whole = go(tmp_path/"whole")
    with pytest.raises(RuntimeError, match="out of luck"): go(tmp_path/"broken", callbacks=[At(11, fails)])
    broken = go(tmp_path/"broken", resume_from_checkpoint=True)
    assert torch.equal(parameters(whole.model), parameters(broken.model))
    assert without_times(whole.state.log_history) == without_times(broken.state.log_history)
    assert state(tmp_path/"whole") == state(tmp_path/"broken")


def test_the_newest_whole_checkpoint_is_taken_and_what_was_passed_over_is_said(tmp_path, caplog):
    run(tmp_path, **steps)
    newest = tmp_path/"checkpoint-8"
    wrong = {"model.safetensors": lambda p: p.write_bytes(p.read_bytes()[:-9]), "optimizer.pt": Path.unlink,
             "rng_state.pth": lambda p: p.write_bytes(b"x"*p.stat().st_size), "checkpoint.json": lambda p: p.write_text("{", encoding="utf-8")}
    for name, damage in wrong.items():
        kept = (newest/name).read_bytes()
        damage(newest/name)
        found, passed = newest_whole(tmp_path)
        assert found == tmp_path/"checkpoint-6" and list(passed) == ["checkpoint-8"] and name in passed["checkpoint-8"]
        with pytest.raises(ValueError, match=re.escape(name)): run(tmp_path, resume_from_checkpoint=newest, **steps | dict(max_steps=9))
        (newest/name).write_bytes(kept)
    (newest/"scheduler.pt").unlink()
    run(tmp_path, resume_from_checkpoint=True, **steps | dict(max_steps=9))
    assert "Going on from" in caplog.text and "checkpoint-6" in caplog.text and "scheduler.pt is missing" in caplog.text


def test_a_checkpoint_that_is_sealed_again_is_whole(tmp_path):
    (tmp_path/"weights").write_bytes(b"1")
    for told in (dict(step=1), dict(step=2, of="a longer list than before")):
        seal(tmp_path, **told)
        assert checkpoint_fault(tmp_path) is None and told.items() <= read_list(tmp_path).items()
        assert list(read_list(tmp_path)["files"]) == ["weights"]


def test_nothing_to_go_on_from_begins_and_a_finished_run_says_so(tmp_path, caplog):
    run(tmp_path, resume_from_checkpoint=True, **steps)
    assert "begins at the beginning" in caplog.text
    before = contents(tmp_path)
    with pytest.raises(RunFinished, match="all 8 steps are done"): run(tmp_path, resume_from_checkpoint=True, **steps)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_an_earlier_run_is_not_taken(tmp_path, caplog):
    run(tmp_path, **steps)
    with pytest.raises(RuntimeError, match="out of luck"): run(tmp_path, callbacks=[At(1, fails)], **steps | dict(seed=2))
    run(tmp_path, resume_from_checkpoint=True, **steps | dict(seed=2))
    assert "of an earlier run" in caplog.text and "begins at the beginning" in caplog.text
    assert {read_list(p)["run"]["seed"] for p in tmp_path.glob("checkpoint-*")} == {2}


other_rows = dict(train=make_blocks(), test=blocks["test"])


@pytest.mark.parametrize("change,named", [
    (dict(per_device_train_batch_size=2), "rows per step was 4 and is 2"), (dict(optim="sgd"), "optim was"), (dict(seed=5), "seed was 1"),
    (dict(weight_decay=0.3), "weight_decay was"), (dict(model=llama()), "model was"), (dict(model=gpt2(n_layer=1)), "model was"),
    (dict(model="other weights"), "other weights"), (dict(data=type(blocks)(other_rows)), "data was"),
    (dict(optimizer=torch.optim.SGD(gpt2().parameters(), lr=1)), "optimizer was"), (dict(exact_loss=False), "exact_loss was")], ids=str)
def test_what_does_not_fit_is_refused_before_anything_is_touched(change, named, tmp_path):
    run(tmp_path, **steps | dict(max_steps=6))
    if change.get("model") == "other weights":
        change = dict(model=gpt2())
        with torch.no_grad(): change["model"].transformer.wpe.weight.add_(0.01)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=named) as error: run(tmp_path, resume_from_checkpoint=True, **steps | dict(max_steps=9) | change)
    assert "\n" not in str(error.value) and contents(tmp_path) == before


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    run(tmp_path, **steps | dict(max_steps=6))
    with pytest.raises(ValueError, match="beyond the 3 steps"): run(tmp_path, resume_from_checkpoint=tmp_path/"checkpoint-6", **steps | dict(max_steps=3))


def test_more_steps_and_another_learning_rate_are_applied_and_written_down(tmp_path):
    "On the new schedule from the next step on, as a loop over torch's own schedule has it"
    run(tmp_path, **steps | dict(max_steps=4, lr_scheduler_type="linear"))
    trainer = run(tmp_path, resume_from_checkpoint=True, **steps | dict(lr_scheduler_type="linear", learning_rate=4e-3))
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates[:4] == pytest.approx([1e-2*(1 - i/4) for i in range(4)])
    assert rates[4:] == pytest.approx([4e-3*(1 - i/8) for i in range(4, 8)])
    (change,) = read_run(tmp_path)["resumed"]
    assert change == dict(step=4, changes=dict(learning_rate=[1e-2, 4e-3], max_steps=[4, 8]))


signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", signals)
@pytest.mark.parametrize("step", [3, 6])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_nothing_had_happened(number, step, tmp_path):
    "In the middle of an epoch of six steps, and at its end"
    settings = steps | dict(eval_strategy="epoch")
    whole = run(tmp_path/"whole", gpt2(dropout=0.2), **settings)
    before, model = {n: signal.getsignal(n) for n in signals}, gpt2(dropout=0.2)
    with pytest.raises(TrainingStopped, match=f"stopped after step {step} of 8.*checkpoint-{step} holds") as stopped:
        run(tmp_path/"run", model, callbacks=[Before(step, lambda: os.kill(os.getpid(), number))], **settings)
    assert stopped.value.status == 128 + number and {n: signal.getsignal(n) for n in signals} == before
    again = run(tmp_path/"run", model, resume_from_checkpoint=True, **settings)
    assert torch.equal(parameters(whole.model), parameters(again.model)) and state(tmp_path/"whole") == state(tmp_path/"run")


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice(): os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT), time.sleep(patience)
    with pytest.raises(KeyboardInterrupt) as error: run(tmp_path, callbacks=[At(3, twice)], **steps)
    assert not isinstance(error.value, TrainingStopped)
    run(tmp_path, resume_from_checkpoint=True, **steps)


@pytest.mark.parametrize("settings", [dict(learning_rate=1e30, lr_scheduler_type="constant"), dict(learning_rate=1e38, max_grad_norm=0.0, optim="sgd"),
                                      dict(learning_rate=float("inf"))], ids=str)
@pytest.mark.parametrize("exact_loss", [True, False])
def test_a_run_that_diverges_ends_and_leaves_the_earlier_model(settings, exact_loss, tmp_path):
    run(tmp_path, **steps)
    before = (tmp_path/"model.safetensors").read_bytes()
    with pytest.raises(TrainingDiverged, match="learning rate of .*Try a lower learning_rate") as error:
        run(tmp_path, exact_loss=exact_loss, **steps | dict(save_steps=1) | settings)
    assert "\n" not in str(error.value) and (tmp_path/"model.safetensors").read_bytes() == before
    assert read_run(tmp_path)["status"] == "diverged" and not leftovers(tmp_path)
    for folder in [tmp_path, *tmp_path.glob("checkpoint-*")]: assert torch.isfinite(parameters(load_model(folder))).all()


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(tmp_path):
    model = gpt2()
    at_one = parameters(model).clone()
    model.transformer.wte.weight.register_hook(lambda gradient: gradient*float("nan"))
    with pytest.raises(TrainingDiverged, match="At step 1, .*a gradient is not"): run(tmp_path, model, **steps)
    assert torch.equal(parameters(model), at_one)


holding = "import sys, time\nfrom clm_nb.training.hold import hold\nwith hold(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"


def test_a_second_run_is_refused_while_the_first_lives_and_not_when_it_died(tmp_path):
    run(tmp_path, **steps)
    (tmp_path/"_new-run.json").write_text("half", encoding="utf-8")
    other = subprocess.Popen([sys.executable, "-c", holding, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == "held"
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=f"in use: process {other.pid} on .* is training there") as error: run(tmp_path, **steps)
        assert "\n" not in str(error.value) and contents(tmp_path) == before
    finally:
        other.kill(), other.wait()
    run(tmp_path, **steps | dict(seed=4))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("_")] and read_run(tmp_path)["seed"] == 4


class Full:
    "A disk that is full after some bytes, by a limit on the size of a file"
    def __init__(self, size): self.size = size
    def __enter__(self):
        import resource
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))
    def __exit__(self, *error):
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files there")
@pytest.mark.parametrize("size", [40_000, 200_000])
def test_a_full_disk_is_one_line_and_the_last_whole_checkpoint_stays(size, tmp_path):
    full = Full(size)
    with pytest.raises(OSError, match="checkpoint-4 couldn't be written .*checkpoint-2 is whole") as error:
        run(tmp_path, callbacks=[At(3, full.__enter__)], **steps)
    full.__exit__()
    assert "\n" not in str(error.value) and checkpoint_fault(tmp_path/"checkpoint-2") is None and not leftovers(tmp_path)
    again = run(tmp_path, resume_from_checkpoint=True, **steps)
    whole = run(tmp_path/"whole", **steps)
    assert torch.equal(parameters(whole.model), parameters(again.model))

on_a_small_disk = """
import subprocess, sys
from pathlib import Path
disk, rest = Path(sys.argv[1]), Path(sys.argv[2])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode: sys.exit(77)
from test_checkpoint import *
small = dict(max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=1, seed=1, eval_strategy="no")
from clm_nb.training.plan import check_disk
import clm_nb.training.plan as plan
plan.check_disk = lambda *given: None # it would say before that there is no room
def fill():
    other = os.open(disk/"other", os.O_WRONLY | os.O_CREAT)
    try:
        while True: os.write(other, b"x"*4096)
    except OSError as error: print("errno", error.errno)
    os.close(other)
try: run(disk/"run", callbacks=[At(3, fill)], **small)
except OSError as error: print("said", str(error))
print("whole", checkpoint_fault(disk/"run/checkpoint-2"), "left", leftovers(disk/"run"))
(disk/"other").unlink()
again = run(disk/"run", resume_from_checkpoint=True, **small)
print("same", torch.equal(parameters(run(rest/"whole", **small).model), parameters(again.model)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("unshare"), reason="a small disk is mounted in a namespace of Linux")
def test_a_disk_that_is_really_full_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    "A tmpfs of three megabytes, which another program fills: ENOSPC, in a namespace of its own"
    (tmp_path/"disk").mkdir()
    argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", on_a_small_disk, str(tmp_path/"disk"), str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=path))
    if done.returncode == 77 or "unshare" in done.stderr: pytest.skip("no disk may be mounted here")
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert said["errno"] == "28" and re.search(r"checkpoint-4 couldn't be written .no space is left on the disk.\..*checkpoint-2 is whole: make room", said["said"])
    assert said["whole"] == "None left []" and said["same"] == "True"


def test_rotation_never_deletes_the_last_whole_one(tmp_path):
    with pytest.raises(RuntimeError): run(tmp_path, callbacks=[At(7, fails)], **steps | dict(save_total_limit=1))
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    (tmp_path/"checkpoint-6/model.safetensors").write_bytes(b"")
    run(tmp_path, resume_from_checkpoint=True, **steps | dict(save_total_limit=1))
    assert checkpoint_fault(tmp_path/"checkpoint-8") is None and len(list(tmp_path.glob("checkpoint-*"))) == 1


def test_the_best_checkpoint_is_found_and_kept(tmp_path):
    best = dict(load_best_model_at_end=True, metric_for_best_model="loss", save_total_limit=1, save_steps=4, eval_steps=4)
    trainer = run(tmp_path, **steps | best | dict(learning_rate=3.0))
    kept = Path(trainer.state.best_model_checkpoint)
    assert kept.parent == tmp_path and checkpoint_fault(kept) is None
    assert torch.equal(parameters(load_model(kept)), parameters(trainer.model))


little_memory = """
import resource, sys
from test_train import *
model, data = gpt2(n_positions=256, n_embd=64), DatasetDict(train=make_blocks(rows=256, block=256), test=make_blocks(rows=4, block=256))
def allocate(layer, args, given):
    if len(given["input_ids"] if "input_ids" in given else args[0]) > 64:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
                           "you tried to allocate 99999999999 bytes. Error code 12 (Cannot allocate memory)")
model.base_model.register_forward_pre_hook(allocate, with_kwargs=True)
resource.setrlimit(resource.RLIMIT_AS, (2**46, 2**46)) # a limit, so that memory is asked about; the hook is what refuses
trainer = run(sys.argv[1], model, data, per_device_train_batch_size=256, max_steps=1, eval_strategy="no", use_cpu=True)
print(trainer.args.per_device_train_batch_size*trainer.args.gradient_accumulation_steps, trainer.args.per_device_train_batch_size)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no `ulimit -v`")
def test_too_large_a_batch_is_taken_in_parts_where_memory_is_limited(tmp_path):
    process = python(little_memory, str(tmp_path/"run"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.split() == ["256", "64"] and err.count("don't fit into memory") == 1


def test_a_run_that_needs_more_disk_than_there_is_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("clm_nb.training.preflight.free_bytes", lambda folder: 100_000)
    with pytest.raises(OSError, match="The run needs .* MB on the disk, and .* Make room, lower save_total_limit") as error: run(tmp_path/"run")
    assert "\n" not in str(error.value) and not (tmp_path/"run").exists()


def test_preflight_says_what_then_happens_and_changes_nothing(tmp_path):
    from clm_nb.training.preflight import preflight
    from clm_nb.training.settings import training_settings
    model, settings = gpt2(dropout=0.1), training_settings(**steps | dict(per_device_train_batch_size=4, use_cpu=True, save_total_limit=1))
    before, random_state = parameters(model).clone(), torch.get_rng_state()
    said = preflight(model, blocks, tokenizer(), tmp_path/"run", settings)
    assert torch.equal(parameters(model), before) and torch.equal(torch.get_rng_state(), random_state) and not (tmp_path/"run").exists()
    trainer = run(tmp_path/"run", model, **steps | dict(save_total_limit=1))
    written = sum(p.stat().st_size for p in (tmp_path/"run").rglob("*") if p.suffix in (".safetensors", ".pt"))
    assert said.steps == trainer.state.global_step and said.parameters == before.numel() - model.lm_head.weight.numel()
    assert written < said.disk < 4*written and said.tokens == 8*4*16


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_a_run_takes_the_disk_that_was_said(limit, tmp_path, monkeypatch):
    "Looked at before each renaming and each deletion, in a new folder and in one with an earlier run"
    from clm_nb.training.preflight import disk_bytes
    sizes, folder = [], tmp_path/"run"
    def room(): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    def watched(call):
        def wrapped(*args, **kwargs):
            sizes.append(room())
            return call(*args, **kwargs)
        return wrapped
    for module, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (shutil, "rmtree")): monkeypatch.setattr(module, name, watched(getattr(module, name)))
    settings = steps | dict(save_total_limit=limit, optim="adamw_torch")
    for _ in range(2):
        before, model = room() if folder.exists() else 0, gpt2(n_embd=256)
        trainer = run(folder, model, **settings)
        said = disk_bytes(model, trainer.args, len(blocks["train"]))
        assert said/1.25 < max(sizes) - before < 1.02*said
        for path in folder.glob("checkpoint-*"): shutil.rmtree(path)
        sizes.clear()


@pytest.mark.parametrize("every", [3, 0.4, 0.07])
def test_preflight_counts_what_a_run_then_does(every, tmp_path):
    "Also where a share of the steps is no whole number of them, and with the one at the end"
    from clm_nb.training.preflight import times_done
    trainer = run(tmp_path, gpt2(n_layer=1), **steps | dict(save_steps=every, eval_steps=every, save_total_limit=None))
    done = times_done("steps", every, 8, 6)
    assert len(list(tmp_path.glob("checkpoint-*"))) == done
    assert sum("eval_loss" in log for log in trainer.state.log_history) == done


def test_the_command_line_says_the_newest_in_every_way():
    from clm_nb.arguments import parse_training
    from clm_nb.training.resume import resume_choice
    from clm_nb.training_commands import train_parser
    assert vars(train_parser().parse_args(["--resume"]))["resume_from_checkpoint"] is True
    for flags in (["--resume_from_checkpoint"], ["--resume_from_checkpoint", "true"], ["--resume_from_checkpoint", "True"]):
        assert resume_choice(parse_training(flags)["resume_from_checkpoint"]) is True
    assert resume_choice(parse_training(["--resume_from_checkpoint", "runs/a/checkpoint-4"])["resume_from_checkpoint"]) == Path("runs/a/checkpoint-4")
    assert resume_choice(None) is resume_choice(False) is resume_choice("false") is None


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_a_command_that_is_terminated_ends_with_143_and_says_how_to_go_on(tmp_path):
    from faults import prepare
    prepare(tmp_path)
    command = [sys.executable, "-m", "clm_nb", "train", "--dataset_name", "corpus.json", "--model_name_or_path", "model", "--tokenizer_name",
               "tokenizer", "--block_size", "16", "--output_dir", "run", "--max_steps", "1000000", "--eval_strategy", "no", "--save_strategy",
               "steps", "--save_steps", "2", "--use_cpu", "--resume"]
    with open(tmp_path/"log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | dict(CLM_NB_CACHE=str(tmp_path/"cache")))
    end = time.monotonic() + patience
    while not list(tmp_path.glob("run/checkpoint-*")) and process.poll() is None and time.monotonic() < end: time.sleep(0.1)
    process.terminate()
    said = (process.wait(patience), (tmp_path/"log").read_text(encoding="utf-8"))
    assert said[0] == 143 and "SIGTERM: stopped after step" in said[1] and "--resume" in said[1] and "Traceback" not in said[1], said
    found, passed = newest_whole(tmp_path/"run")
    assert found and not passed and not leftovers(tmp_path/"run") and not (tmp_path/"run/_running.lock").exists()
