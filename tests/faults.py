"""Kills of a run, and what comes of it when it goes on: python tests/faults.py [--kills 60] [--seed 0]

One run is left alone. Each of the others is killed (SIGKILL) before a chosen file operation, or after a random time, and
goes on in a new process with `resume_from_checkpoint=True`, until it ends. Then all that the two left is compared:
weights, optimiser, random state, logs, samples, run.json; only times may differ.
"""
import argparse, json, os, random, signal, sys, tempfile, time
from pathlib import Path

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["OMP_NUM_THREADS"] = "1"

import datasets, torch, transformers
from clm_nb.core import finetune
from tiny import gpt2, texts, tokenizer

times = ("seconds", "started", "train_seconds", "tokens_per_second", "utilisation")
timed = ("runtime", "per_second", "train_runtime")
settings = dict(max_steps=10, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=3, eval_strategy="steps",
                eval_steps=4, save_strategy="steps", save_steps=2, save_total_limit=2, disable_tqdm=True, bf16=False, use_cpu=True)


def prepare(folder: Path) -> None:
    "What a run begins with: a corpus, a tokenizer, and a model with dropout"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dict(text=f"{text} {i}") for i, text in enumerate(texts*6)]
    (folder/"corpus.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokenizer().save_pretrained(folder/"tokenizer")
    gpt2(dropout=0.1).save_pretrained(folder/"model")


def tuned(base: Path, out: Path, **changes):
    "The run, from the beginning or from where it was interrupted"
    return finetune(str(base/"corpus.json"), str(base/"model"), tokenizer_name=str(base/"tokenizer"), output_dir=str(out),
                    block_size=16, prompt="The quick", max_new_tokens=5, seed=3, **settings | changes)


def without_times(value):
    "A part of `run.json` or of a log without its times"
    if isinstance(value, list): return [without_times(part) for part in value]
    if not isinstance(value, dict): return value
    return {k: without_times(v) for k, v in value.items() if k not in times and not any(o in k for o in timed)}


def outcome(out: Path) -> dict:
    "Everything that a run left, by name, without times"
    found = {"run.json": without_times(json.loads((out/"run.json").read_bytes()))}
    found["run.json"]["source"] = found["run.json"]["training_arguments"] = None # which name the folder
    found["files"] = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    for path in sorted(out.rglob("*")):
        if path.suffix in (".safetensors", ".pt", ".pth"): found[path.relative_to(out).as_posix()] = path.read_bytes()
        if path.name == "trainer_state.json": found[path.relative_to(out).as_posix()] = without_times(json.loads(path.read_bytes()))
    return found


def differences(one: dict, other: dict) -> list[str]: return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


file_events = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


def die_before(event: int, folders: tuple[str, ...], count: Path | None = None) -> None:
    "Kill this process before its n-th file operation in some folders; `count`: a file that gets how many there were"
    seen = [0]
    def hook(name, args):
        if name not in file_events or not args: return
        path = args[0].decode() if isinstance(args[0], bytes) else args[0]
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(folders): return
        seen[0] += 1
        if count: os.write(counter, b"x")
        if seen[0] == event: os.kill(os.getpid(), signal.SIGKILL)
    if count: counter = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(hook)


def in_child(work, log: Path) -> int:
    "Do something in a process of its own; its exit status, negative for a signal"
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Trials:
    "Runs in a folder: one that is left alone, and others that are killed"
    def __init__(self, folder: Path, **changes):
        self.folder, self.changes, self.base = folder, changes, folder/"base"
        prepare(self.base)
        count, begin = folder/"count", time.perf_counter()
        status = in_child(lambda: self.run("whole", 0, count=count), folder/"whole.log")
        assert status == 0, (folder/"whole.log").read_text(encoding="utf-8")
        self.seconds, self.events = time.perf_counter() - begin, count.stat().st_size
        self.expected = outcome(folder/"whole/run")

    def run(self, name: str, event: int = 0, after: float = 0, count=None, **changes):
        "One run with a cache of its own; it dies before a file operation, or after some seconds"
        place = self.folder/name
        os.environ["CLM_NB_CACHE"] = str(place/"cache")
        (place/"cache").mkdir(parents=True, exist_ok=True)
        if event or count: die_before(event, (str(place/"run"), str(place/"cache")), count)
        if after: signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.setitimer(signal.ITIMER_REAL, after)
        tuned(self.base, place/"run", resume_from_checkpoint=True, **self.changes | changes)

    def trial(self, name: str, event: int = 0, after: float = 0) -> tuple[bool, list[str]]:
        "(whether it was killed, what differs from the run that was left alone)"
        log = self.folder/f"{name}.log"
        killed = in_child(lambda: self.run(name, event, after), log) < 0
        status = in_child(lambda: self.run(name), log)
        out = self.folder/name/"run"
        if status and "RunFinished" not in log.read_text(encoding="utf-8"): return killed, [f"exit status {status}: {log.read_text(encoding='utf-8')[-1500:]}"]
        litter = [p.name for p in [*out.rglob("*"), *(self.folder/name/"cache").rglob("*")] if p.name.startswith(("_new-", "tmp"))]
        return killed, differences(self.expected, outcome(out)) + litter


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given, rng = parser.parse_args(argv), random.Random(parser.parse_args(argv).seed)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    tried = identical = 0
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        chosen = [round(1 + i*(trials.events - 1)/(given.kills*2//3)) for i in range(given.kills*2//3)]
        plans = [dict(event=event) for event in chosen]
        while tried < given.kills:
            plan = plans.pop() if plans else dict(after=rng.uniform(0, trials.seconds))
            name = f"trial{tried}-{rng.random()}"
            killed, wrong = trials.trial(name, **plan)
            if not killed: continue # it was done before
            tried, identical = tried + 1, identical + (not wrong)
            print(f"{tried:>3} {plan}: {'identical' if not wrong else wrong}", flush=True)
    print(f"{tried} kills, {identical} identical ends")
    return int(identical < tried)


if __name__ == "__main__": sys.exit(main())
