"""Does anything grow in a long run? python tests/flat.py [--share 1.0]

2,000 training steps, 200 evaluations and 500 generations with a tiny model, each kind in a process of its own. After the first
tenth and at the end it counts: resident memory, open files, threads, and what lies in the temporary folder.
"""
import argparse, gc, json, os, subprocess, sys, tempfile, threading
from pathlib import Path

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["OMP_NUM_THREADS"] = "1"

kinds = dict(training=2000, evaluation=200, perplexity=200, generation=500, stream=500)


def state(temporary: Path) -> dict:
    "What a process holds by now"
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return dict(MiB=round(pages*os.sysconf("SC_PAGESIZE")/2**20, 1), files=len(os.listdir("/proc/self/fd")),
                threads=threading.active_count(), folders=len(list(temporary.iterdir())))


def training(folder: Path, steps: int, look) -> None:
    "A run of so many steps, with logs, and a few evaluations, samples and checkpoints, as runs have them"
    from transformers import TrainerCallback
    from short_runs import make_blocks, run
    from tiny import gpt2
    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (steps//10, steps): look()
    often = max(1, steps//20) # all of it happens before the first look
    run(folder/"run", gpt2(), make_blocks(rows=64), callbacks=[Looks()], max_steps=steps, logging_steps=max(1, steps//50),
        eval_strategy="steps", eval_steps=often, save_strategy="steps", save_steps=often, save_total_limit=2, learning_rate=1e-3,
        sample_prompt="The quick")


def repeated(make):
    "A kind that does the same thing again and again"
    def work(folder, times, look):
        again = make(folder)
        for n in range(1, times + 1):
            again(n)
            if n in (times//10, times): look()
    return work


def evaluation(folder):
    from short_runs import make_blocks, run
    from tiny import gpt2
    trainer = run(folder/"run", gpt2(), make_blocks(), max_steps=1)
    return lambda n: trainer.evaluate()


def perplexities(folder):
    from clm_nb.perplexity import perplexity
    from short_runs import make_blocks
    from tiny import gpt2
    model, blocks = gpt2(), make_blocks()
    return lambda n: perplexity(model, blocks)


def generations(folder):
    from clm_nb.generate import generate
    from tiny import gpt2, tokenizer
    model, words = gpt2(), tokenizer()
    prompts = "The", ["The", "def f"], ["The quick brown"]*4
    return lambda n: generate(model, words, prompts[n % 3], max_new_tokens=8, seed=n)


def streams(folder):
    "Every third is left after its first piece"
    from clm_nb.generate import stream
    from tiny import gpt2, tokenizer
    model, words = gpt2(), tokenizer()
    def again(n):
        pieces = stream(model, words, "The quick", max_new_tokens=8, seed=n)
        next(pieces, None)
        if n % 3: list(pieces)
        pieces.close()
    return again


work = dict(training=training, evaluation=repeated(evaluation), perplexity=repeated(perplexities),
            generation=repeated(generations), stream=repeated(streams))


def measured(kind: str, times: int) -> tuple:
    "(after the first tenth, at the end) of a new process"
    done = subprocess.run([sys.executable, __file__, "--only", kind, "--times", str(times)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def grown(first: dict, last: dict, share: float = 0.05) -> list[str]:
    "What is more at the end than after the first tenth: memory by over a share of it, or anything else at all"
    more = [name for name in ("files", "threads", "folders") if last[name] > first[name]]
    return more + ["MiB"]*(last["MiB"] > (1 + share)*first["MiB"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the repetitions")
    parser.add_argument("--only", choices=kinds)
    parser.add_argument("--times", type=int)
    args = parser.parse_args()
    if args.times:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
            tempfile.tempdir = temporary
            seen = []
            work[args.only](Path(folder), args.times, lambda: seen.append(state(Path(temporary))))
            print(json.dumps(seen))
        return
    bad = 0
    for kind, times in kinds.items():
        first, last = measured(kind, max(10, int(times*args.share)))
        bad += bool(grown(first, last))
        print(f"{kind}, {times*args.share:.0f} times: {first} -> {last}", *grown(first, last), flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
