"""Ours and the peers side by side: `make bench`, or `python benchmarks/run.py --only generation --out runs/bench`.

Every measurement is a process of its own (`cases.py`) with caches of its own; ours and the peers take turns. RESULTS.md,
its pictures and results.json come from one run, and only from it. They lie in a folder for each kind of machine: `bf16`
and `float32` for CPUs with and without bf16, `gpu`."""
import argparse, json, os, shutil, subprocess, sys, tempfile, time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent)]
import report
from report import row
from clm_nb.data.cache import cache_dir

limit = 600  # seconds for one process, before it counts as failed
made = ("corpus",)  # the part of clm_nb's cache that the embedded corpus needs


# One measurement

def measure(case: str, variant: str, again: bool = False, memory: bool = False, corpus: Path | None = None,
            cached=made, **options) -> dict:
    """What one process answers, or {"error": reason}. again: a second process finds the caches of the first;
    memory: add the peak of the process tree; corpus: records, linked into the process's own folder; cached: parts of
    clm_nb's cache that are there already"""
    with tempfile.TemporaryDirectory(prefix="clm_nb_bench_") as tmp:
        tmp = Path(tmp)
        env = own_environment(tmp, cached)
        if corpus: options["corpus"] = str(shutil.copytree(corpus, tmp/"records", copy_function=os.link))
        command = [sys.executable, here/"cases.py", case, variant, json.dumps(options)]
        result = answer(command, env, tmp, memory)
        if again and "error" not in result: result["again"] = answer(command, env, tmp).get("seconds")
    return result


def own_environment(tmp: Path, cached) -> dict:
    "Caches below `tmp`, empty but for what is named; no network"
    for kind in cached:
        (tmp/"clm_nb").mkdir(exist_ok=True)
        (cache_dir()/kind).mkdir(parents=True, exist_ok=True)
        try: (tmp/"clm_nb"/kind).symlink_to(cache_dir()/kind)
        except OSError: shutil.copytree(cache_dir()/kind, tmp/"clm_nb"/kind)  # Windows allows no links by default
    (tmp/"tmp").mkdir()
    paths = os.pathsep.join(filter(None, [str(here.parent), os.environ.get("PYTHONPATH")]))
    folders = dict(CLM_NB_CACHE=tmp/"clm_nb", HF_DATASETS_CACHE=tmp/"datasets", TMPDIR=tmp/"tmp", PYTHONPATH=paths)
    offline = dict(PYTHONUTF8="1", HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    return os.environ | {name: str(folder) for name, folder in folders.items()} | offline


def answer(command: list, env: dict, cwd: Path, memory: bool = False) -> dict:
    "The last line of what a process prints, as JSON, with the seconds it lived; a failure is an answer too"
    with open(cwd/"stderr", "w+", encoding="utf-8") as stderr, open(cwd/"stdout", "w+", encoding="utf-8") as stdout:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            peak = peak_memory(process) if memory else {}
            process.wait(limit)
        except subprocess.TimeoutExpired: return dict(error=f"it took more than {limit} s")
        finally:
            if process.poll() is None: end(process)
        wall = time.perf_counter() - start
        stderr.seek(0), stdout.seek(0)
        if process.returncode: return dict(error=reason(stderr.read(), process.returncode))
        return json.loads(stdout.read().splitlines()[-1]) | dict(process_seconds=wall) | peak


def end(process) -> None:
    "End a process, and all that it has started"
    import psutil
    for one in (*psutil.Process(process.pid).children(recursive=True), process): one.kill()


def reason(stderr: str, code: int) -> str:
    "Why a process failed, in one line"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {code}")[:200]


def peak_memory(process, interval: float = 0.02) -> dict:
    "The highest sum of the proportional set sizes of a process and its children, looked at every `interval` seconds"
    if sys.platform != "linux": return {}
    import psutil
    root, peak = psutil.Process(process.pid), 0
    start = time.perf_counter()
    while process.poll() is None and time.perf_counter() - start < limit:
        total = 0
        try:
            for p in [root, *root.children(recursive=True)]:
                try: total += p.memory_full_info().pss
                except psutil.Error: pass  # it has just ended
        except psutil.Error: pass
        peak = max(peak, total)
        time.sleep(interval)
    return dict(megabytes=peak/2**20)


def side_by_side(case: str, variants: dict, each: dict | None = None, **options) -> dict:
    "{variant: answers}, taking turns; `variants` says how often each, `each` has options of single variants"
    runs = {variant: [] for variant in variants}
    for turn in range(max(variants.values())):
        for variant, times in variants.items():
            failed = any("error" in run for run in runs[variant])
            if turn >= times or failed: continue
            runs[variant].append(run := measure(case, variant, **options | (each or {}).get(variant, {})))
            numbers = {k: round(v, 3) for k, v in run.items() if isinstance(v, float)}
            print(f"  {case} {variant} {turn + 1}/{times}: {run.get('error') or numbers}", flush=True)
    return runs


# What is compared: each group gives rows for the table

def goal(bf16: float | None, float32: float | None) -> float | None:
    "The target on this kind of machine"
    from clm_nb.model.device import device_and_precision
    return float32 if device_and_precision()[1] == "float32" else bf16


def some(number: int) -> int: # of runs, steps or blocks: half of them without bf16, where each takes three times as long
    return number if kind("") == "bf16" else -(-number//2)


def memory_and_second_run(peers: dict, records: Path, n: int):
    "Runs of their own: what is sampled takes time"
    runs = side_by_side("preprocess", dict.fromkeys(["ours", *peers], 1), corpus=records, memory=True, again=True)
    for peer, (name, _) in peers.items():
        yield row(f"{n:,} records, peak memory", name, runs["ours"], runs[peer], "megabytes", unit="MiB", target=1)
    for peer, (name, _) in peers.items():
        yield row(f"{n:,} records, a second run", name, runs["ours"], runs[peer], "again")


def preprocessing(scale: float, work: Path):
    "Records → flatten → tokenize → group → blocks on disk"
    peers = {"tutorial": ("the tutorial's code, num_proc=4", 40), "run_clm": ("run_clm.py's way, 2 processes", 20),
             "trl": ("TRL pack_dataset(strategy=\"wrapped\"), 2 processes", None)}
    few, many, cost = max(20, round(5_000*scale)), max(200, round(50_000*scale)), {}
    for n, times in ((few, some(2)), (many, 1)):
        records = work/f"{n}"
        if error := measure("corpus", "made", folder=str(records), records=n).get("error"):
            yield report.note(f"{n:,} records", f"they can't be made: {error}")
            return
        runs = side_by_side("preprocess", dict(ours=3) | dict.fromkeys(peers, times), corpus=records)
        what = f"{n:,} records, {report.median(runs['ours'], 'tokens')/1e6:.1f} M tokens"
        for peer, (name, target) in peers.items():
            yield row(what, name, runs["ours"], runs[peer], target=target if n == many else None)
        cost[n] = [dict(seconds=1e6*run["seconds"]/run["tokens"]) for run in runs["ours"] if "error" not in run]
    if kind("") == "bf16":
        yield from memory_and_second_run(peers, records, many)
    else:
        yield report.note(f"{many:,} records, peak memory and a second run", "they don't depend on bf16, and are "
                          "measured where there is time: on a machine that has it")
    yield row(f"the cost of a million tokens, {many:,} records", f"ours, {few:,} records", cost[many], cost[few],
              better="not above")
    if not os.environ.get("CLM_NB_TEST_DATA"):
        yield report.note("the real ELI5 sample, GPT-2's tokenizer", "CLM_NB_TEST_DATA isn't set")
        return
    if error := measure("corpus", "real", folder=str(work/"real")).get("error"):
        yield report.note("the real ELI5 sample, GPT-2's tokenizer", f"it can't be read: {error}")
        return
    runs = side_by_side("preprocess", dict.fromkeys(["ours", "tutorial", "run_clm"], some(3)), corpus=work/"real", lazy=True)
    for peer, target in (("tutorial", 10), ("run_clm", None)):
        what = "the real ELI5 sample, GPT-2's tokenizer"
        yield row(f"{what}, first pass", peers[peer][0], runs["ours"], runs[peer], target=target)
        yield row(f"{what}, the whole process", peers[peer][0], runs["ours"], runs[peer], "process_seconds")


trainers = {"trainer": "Trainer, its defaults", "trainer_bf16": "Trainer(bf16=True)",
            "sft": "TRL SFTTrainer, its defaults, packing"}


def with_knowing(names: dict) -> dict: # variant → name
    "The peers that can be measured here: those that are told to use bf16 only where the hardware has it"
    return {variant: name for variant, name in names.items() if not variant.endswith("_bf16") or kind("") == "bf16"}


def training(scale: float, work: Path):
    "Tokens per second at equal loss"
    for model, name, target, times, steps, options in (
            ("distilgpt2", "distilgpt2's shape, 8 x 128", goal(2.7, 1), 1, 6, dict(held_out=16, points=2)),
            ("embedded", "the embedded model, 8 x 128", goal(1.7, 1), 2, 40, dict(learning_rate=3e-4))):
        compared = with_knowing(trainers)
        runs = side_by_side("train", dict(ours=2) | dict.fromkeys(compared, 1) | dict(trainer=times), model=model,
                            steps=max(4, round(some(steps)*scale)), **options)
        for peer, called in compared.items():
            aim = dict(trainer=target, trainer_bf16=2).get(peer)
            yield row(name, called, runs["ours"], runs[peer], "tokens_per_second", "tokens/s", "higher", aim)
        for peer, called in compared.items():
            yield row(f"{name}: held-out loss", called, runs["ours"], runs[peer], "loss", "nats", "equal",
                      0.01 if peer == "trainer" else None)
        yield report.curves(name, dict(ours="clm_nb") | trainers, runs)


def on_a_gpu(scale: float, work: Path):
    "distilgpt2's shape in the tutorial's batches and in large ones at its full context, `train` and `fit`"
    for rows, block, steps in ((8, 128, 150), (32, 1024, 40)):
        what, steps = f"distilgpt2's shape, {rows} x {block:,}", max(8, round(steps*scale))
        options = dict(model="distilgpt2", steps=steps, block_size=block, batch_size=rows, held_out=16)
        runs = side_by_side("train", dict(ours=2) | dict.fromkeys(trainers, 1), points=1, **options)
        fit = side_by_side("fit", dict(ours=2), **options)["ours"]
        for ours, name in ((runs["ours"], what), (fit, f"{what}: fit")):
            for peer, called in trainers.items():
                yield row(name, called, ours, runs[peer], "tokens_per_second", "tokens/s", "higher")
                yield row(f"{name}: share of the GPU's peak", called, ours, runs[peer], "mfu", "", "higher")


def perplexities(scale: float, work: Path):
    "The perplexity of a split"
    for model, name, blocks in (("distilgpt2", "distilgpt2's shape", 64), ("embedded", "the embedded model", 200)):
        compared = with_knowing({"trainer": "Trainer.evaluate, its defaults", "trainer_bf16": "Trainer.evaluate(bf16=True)"})
        variants, blocks = dict(ours=2) | dict.fromkeys(compared, some(2)) | dict(float32=1), max(8, round(some(blocks)*scale))
        runs = side_by_side("perplexity", variants, model=model, blocks=blocks)
        what = f"{name}, {report.median(runs['ours'], 'blocks'):.0f} blocks of 128"
        for peer, called in compared.items():
            yield row(what, called, runs["ours"], runs[peer], target=goal(2, 1) if peer == "trainer" else 1.5)
        for peer, called, target in (("float32", "plain float32 PyTorch", 0.001), ("trainer", "Trainer.evaluate", None)):
            yield row(f"{what}: the figure", called, runs["ours"], runs[peer], "perplexity", "", "equal", target)


def generation(scale: float, work: Path):
    "100 new tokens a prompt, sampled, distilgpt2's shape"
    names = with_knowing({"pipeline": "pipeline, one prompt after the other", "pipeline_batched": "pipeline, batch_size=16",
                          "pipeline_batched_bf16": "pipeline, batch_size=16, weights in bf16",
                          "generate": "model.generate, one batch"})
    new = max(8, round(100*scale))
    times = dict(ours=2) | dict.fromkeys(names, 1) | dict(pipeline_batched=2)
    runs = side_by_side("generate", times, new=new, each=dict.fromkeys(times, dict(repeats=2)) | dict(pipeline={}))
    for peer, called in names.items():
        aims = {"pipeline": goal(8, None), "pipeline_batched": goal(None, 2), "pipeline_batched_bf16": 3}
        yield row(f"16 prompts, {new} tokens each", called, runs["ours"], runs[peer], target=aims.get(peer))
    names = with_knowing({"pipeline": "pipeline", "pipeline_bf16": "pipeline, weights in bf16", "generate": "model.generate"})
    runs = side_by_side("generate", dict(ours=2) | dict.fromkeys(names, some(2)), prompts=1, new=new, repeats=2)
    for peer, called in names.items():
        yield row(f"one prompt, {new} tokens", called, runs["ours"], runs[peer], target=goal(1.7, 1))
    what, called = "the first token of one prompt", "model.generate(max_new_tokens=1)"
    yield row(what, called, runs["ours"], runs["generate"], "first", target=1)


def startup(scale: float, work: Path):
    "Whole new processes"
    ten = dict(repeats=10)
    runs = side_by_side("startup", dict(help=1, package=1, core=some(3), classes=some(3)), each=dict(help=ten, package=ten))
    yield row("clm_nb --help", "", runs["help"], [], better="below", target=0.5)
    yield row("import clm_nb", "", runs["package"], [], better="below", target=0.2)
    yield row("from clm_nb.core import *", "importing the classes it needs", runs["core"], runs["classes"],
              better="not above", target=0.1)


def demo(scale: float, work: Path):
    "Where the seconds of `clm_nb demo` go"
    runs = side_by_side("demo", dict(ours=1))
    yield row("the demo", "", runs["ours"], [], better="below", target=goal(25, 60))
    yield report.stages("the demo", runs["ours"])


groups = dict(preprocessing=preprocessing, training=training, perplexity=perplexities, generation=generation,
              startup=startup, demo=demo)


# The whole run

def machine() -> dict:
    "What the numbers were taken on, and with"
    import platform
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    cpu = next(models, platform.processor())
    said = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if shutil.which("nvidia-smi") else ""
    memory = round(os.sysconf("SC_PAGE_SIZE")*os.sysconf("SC_PHYS_PAGES")/2**30) if hasattr(os, "sysconf") else None
    commit = said("git", "-C", here, "rev-parse", "--short", "HEAD") if shutil.which("git") else ""
    return dict(cpu=cpu, cores=cores, memory=memory, gpu=gpu.strip() or None, kind=kind(gpu), limits=limits(),
                system=platform.platform(terse=True),
                python=platform.python_version(), commit=commit.strip() or None, versions=versions())


def kind(gpu: str) -> str: # "gpu", "bf16" or "float32"
    "The kind of machine, which is the name of the folder for its results"
    from clm_nb.model.device import has_bf16
    if gpu:
        return "gpu"
    return "bf16" if has_bf16("cpu") else "float32"


def limits() -> dict:
    "What was set to keep a CPU from what it has"
    names = ("CLM_NB_PRECISION", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return {name: os.environ[name] for name in names if name in os.environ}


def versions() -> dict:
    "The versions of everything that is compared; None: not installed"
    def found(name):
        try: return version(name)
        except PackageNotFoundError: return None
    return {name: found(name) for name in ("clm_nb", "torch", "transformers", "datasets", "tokenizers", "gigatoken",
                                            "pyarrow", "accelerate", "trl")}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure clm_nb and its peers side by side")
    parser.add_argument("--only", default="", help=f"groups, comma-separated: {', '.join(groups)}, gpu")
    parser.add_argument("--scale", type=float, default=1, help="multiplies records, steps, blocks and tokens")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/KIND, for --only runs/bench")
    args = parser.parse_args(argv)
    facts, start = machine(), time.perf_counter()
    known = groups | dict(gpu=on_a_gpu)
    chosen = args.only.split(",") if args.only else [*groups] + ["gpu"]*bool(facts["gpu"])
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown group {sorted(unknown)[0]!r}. Groups: {', '.join(known)}")
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    results = dict(date=date, command=report.command(args.only, args.scale),
                   real_data=bool(os.environ.get("CLM_NB_TEST_DATA")), machine=facts, groups={})
    for name in chosen:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="clm_nb_bench_") as work:
            rows = list(known[name](args.scale, Path(work)))
        results["groups"][name] = dict(title=known[name].__doc__, rows=rows, minutes=(time.perf_counter() - began)/60)
    results["minutes"] = (time.perf_counter() - start)/60
    folder = args.out or (here.parent/"runs/bench" if args.only else here/facts["kind"])
    if args.only: results = report.beside_earlier(results, folder)
    report.write(results, folder)
    print(f"\n{report.markdown(results)}\nWritten to {folder}")


if __name__ == "__main__": main()
