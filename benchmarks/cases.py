"""One measurement in a process of its own: `python benchmarks/cases.py CASE VARIANT '{"argument": value}'` prints one
line of JSON. `run.py` starts these; each can be started by hand."""
import itertools, json, os, random, re, statistics, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path


def main(case: str, variant: str, options: str = "{}"):
    "Run one case; what libraries print goes to stderr"
    out, sys.stdout = sys.stdout, sys.stderr
    result = globals()[f"case_{case}"](variant, **json.loads(options))
    print(json.dumps(result), file=out)


@contextmanager
def timed(result: dict, name: str = "seconds"):
    "Put the seconds that pass inside into `result`"
    start = time.perf_counter()
    yield
    synchronize()
    result[name] = time.perf_counter() - start


def synchronize():
    "Wait for the GPU, where there is one and torch is in use"
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available(): torch.cuda.synchronize()


# What is measured on

def test_data() -> Path | None:
    "Where the real sample and GPT-2's tokenizer are; None: nowhere"
    return Path(os.environ["CLM_NB_TEST_DATA"]) if os.environ.get("CLM_NB_TEST_DATA") else None


def the_tokenizer():
    "GPT-2's own where test data brings it, else the embedded one"
    from clm_nb.data.tokenizer import load_tokenizer
    return load_tokenizer(str(test_data()/"gpt2_tokenizer")) if test_data() else load_tokenizer()


def wide_tokenizer(size: int = 50_257):
    "A tokenizer of GPT-2's size: its own, or the embedded one with names for the ids that it never gives"
    from transformers import PreTrainedTokenizerFast
    from tokenizers import Tokenizer
    tokenizer = the_tokenizer()
    if len(tokenizer) >= size: return tokenizer
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"] |= {f"Ġtoken{i}": i for i in range(len(tokenizer), size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token=tokenizer.eos_token,
                                   bos_token=tokenizer.bos_token, clean_up_tokenization_spaces=False)


def eli5_sample():
    "The real records, from the test data"
    from datasets import Dataset
    rows = json.loads((test_data()/"eli5_category_sample/validation.json").read_text(encoding="utf-8"))
    keep = ("q_id", "title", "selftext", "answers")
    return Dataset.from_list([{k: row[k] for k in keep} for row in rows])


def sentences() -> list[str]:
    "What the made-up records are made of: the sentences of the real sample, or of the embedded corpus"
    from clm_nb.data.python_docs import python_docs
    records = [eli5_sample()] if test_data() else [python_docs("task"), python_docs("base")]
    texts = (text for part in records for answers in part["answers"] for text in answers["text"])
    return [s for text in texts for s in re.split(r"\n{2,}|(?<=[.?!])\s+", text) if len(s) >= 20]


def made_up_records(n: int, tokens: int = 320):
    "`n` ELI5-shaped records of 1 to 4 answers, about `tokens` tokens each, the same in every run"
    from datasets import Dataset
    pool, rng, tokenizer = sentences(), random.Random(0), the_tokenizer()
    sample = rng.choices(pool, k=2000)
    wanted = tokens*len(sample)/len(tokenizer(" ".join(sample), verbose=False)["input_ids"])  # sentences a record
    answer = lambda wanted: " ".join(rng.choices(pool, k=max(1, round(rng.uniform(0.5, 1.5)*wanted))))

    def rows():
        for i in range(n):
            k = rng.randint(1, 4)
            answers = [answer(wanted/k) for _ in range(k)]
            yield dict(q_id=f"q{i}", title=rng.choice(pool)[:80], selftext="", category="made up",
                       answers=dict(a_id=[f"q{i}-{j}" for j in range(k)], text=answers, score=[1]*k))
    return Dataset.from_list(list(rows()))


def case_corpus(variant: str, folder: str, records: int = 0):
    "Make the records that preprocessing is measured on: \"real\", or `records` that are \"made\" up"
    data = eli5_sample() if variant == "real" else made_up_records(records)
    data.train_test_split(test_size=0.2, seed=42).save_to_disk(folder)
    return dict(records=len(data))


# Preprocessing

def case_preprocess(variant: str, corpus: str, block_size: int = 128, lazy: bool = False, **options):
    "Records on disk → `DatasetDict` of blocks on disk. `lazy`: what is imported at the first call counts too"
    import datasets, peers
    from datasets import load_from_disk
    from transformers import AutoTokenizer
    from clm_nb import flatten, group, ledger as books, tokenize
    datasets.disable_progress_bars()
    tokenizer, records, result, ledger = the_tokenizer(), load_from_disk(corpus), {}, books.Ledger()
    if variant == "trl": from trl import pack_dataset
    if not lazy and variant == "ours": import awkward, gigatoken
    def ours(records, tokenizer, block_size, add_eos=True, allow_special=False, **how):
        documents = flatten.flatten(records, ledger=ledger)
        tokens = tokenize.tokenize(documents, tokenizer, add_eos, allow_special, ledger=ledger)
        return group.group(tokens, block_size, ledger=ledger, **how)
    run = ours if variant == "ours" else getattr(peers, variant)
    with timed(result): blocks = run(records, tokenizer, block_size, **options)
    if variant == "ours": books.check_ledger(ledger)
    full = {split: part for split, part in blocks.items()}
    return result | dict(blocks=sum(map(len, full.values())), tokens=sum(map(tokenize.list_length, full.values())))


# Training

def setting(model: str, block_size: int = 128):
    "(model, tokenizer, blocks): \"distilgpt2\", its shape with random weights, or \"embedded\", the pre-trained one"
    from transformers import GPT2Config
    from clm_nb.core import load_model, prepare
    if model == "embedded":
        from clm_nb.core import load_tokenizer
        tokenizer, net = load_tokenizer(), load_model("python-docs-gpt2")
    else:
        tokenizer = wide_tokenizer()
        eos = tokenizer.eos_token_id
        net = load_model(config=GPT2Config(n_layer=6, vocab_size=len(tokenizer), bos_token_id=eos, eos_token_id=eos))
    real = test_data() and model != "embedded"
    records = eli5_sample().train_test_split(0.2, seed=42) if real else "python-docs"
    return net, tokenizer, prepare(records, tokenizer, block_size=block_size)


def make_clock(model, held_out, evaluations: list[int]):
    "A `TrainerCallback` that times every step and, outside of the time, takes the held-out loss after some"
    import copy, math, peers
    from transformers import TrainerCallback
    plain = copy.deepcopy(model).eval()  # the model that is trained may be wrapped in mixed precision

    class Clock(TrainerCallback):
        "Seconds from the end of one step to the end of the next, whatever the trainer does in between"
        seconds, losses = [], []

        def on_train_begin(self, args, state, control, **kwargs): self.start = time.perf_counter()

        def on_step_end(self, args, state, control, model=None, **kwargs):
            synchronize()
            self.seconds.append(time.perf_counter() - self.start)
            if state.global_step in evaluations: self.losses.append([state.global_step, self.loss(model)])
            self.start = time.perf_counter()

        def loss(self, model):
            weights = getattr(model, "module", model).state_dict()
            plain.load_state_dict(weights)
            plain.to(next(iter(weights.values())).device)
            return math.log(peers.float32_perplexity(plain, held_out))

    return Clock()


def case_train(variant: str, model: str, steps: int, held_out: int = 64, points: int = 6, block_size: int = 128,
               batch_size: int = 8, learning_rate: float = 5e-5):
    "Tokens per second of a training step, and the loss of `held_out` blocks, taken `points` times on the way"
    import peers, torch
    net, tokenizer, blocks = setting(model, block_size)
    held_out = blocks["test"].select(range(min(held_out, len(blocks["test"]))))
    clock = make_clock(net, held_out, sorted({1, *(round(steps*i/points) for i in range(1, points + 1))}))
    settings = dict(max_steps=steps, learning_rate=learning_rate, weight_decay=0.01, seed=42,
                    per_device_train_batch_size=batch_size, save_strategy="no", eval_strategy="no")
    with tempfile.TemporaryDirectory() as folder:
        if variant == "ours":
            from clm_nb.core import train
            train(net, blocks, tokenizer, folder, callbacks=(clock,), disable_tqdm=True, **settings)
        else: getattr(peers, f"train_with_{variant}")(net, blocks, tokenizer, folder, clock, settings)
    return dict(losses=clock.losses, loss=clock.losses[-1][1]) | speed(net, clock.seconds[2:], batch_size, block_size)


def case_fit(variant: str, model: str, steps: int, held_out: int = 16, block_size: int = 128, batch_size: int = 8,
             learning_rate: float = 5e-5):
    "Tokens per second of a step of `fit`, and the loss of `held_out` blocks after all of them"
    import math, peers, torch
    from itertools import chain, islice
    from clm_nb.collate import BlockRows
    from clm_nb.model.device import device_and_precision
    from clm_nb.model.model import name_loss
    from clm_nb.training.fit import adamw, epoch_batches, learning, quickest_step
    from transformers import get_scheduler
    net, tokenizer, blocks = setting(model, block_size)
    net, rows = name_loss(net).to(device_and_precision()[0]), BlockRows.of(blocks["train"])
    optimizer, seconds = adamw(net, learning_rate), []
    step, rates = quickest_step(net, optimizer, batch_size), get_scheduler("linear", optimizer, 0, steps)
    torch.manual_seed(42)
    epochs = (epoch_batches(rows, batch_size, seed) for seed in range(steps))
    with learning(net):
        for batch in islice(chain.from_iterable(epochs), steps):
            with timed(lap := {}):
                step(batch)
                rates.step()
            seconds.append(lap["seconds"])
    part = blocks["test"].select(range(min(held_out, len(blocks["test"]))))
    return dict(loss=math.log(peers.float32_perplexity(net, part))) | speed(net, seconds[5:], batch_size, block_size)


def speed(net, seconds: list[float], batch_size: int, block_size: int) -> dict:
    "What some steps of training reached; leave out the first ones, which allocate, compile or record"
    rate, peak = batch_size*block_size/statistics.median(seconds), peak_flops()
    result = dict(tokens_per_second=rate, device=net.device.type)
    if peak: result["mfu"] = rate*flops_per_token(net, block_size)/peak
    return result


def flops_per_token(model, block_size: int) -> float:
    "6 N for the weights, 12 layers width block for attention: forward and backward"
    return 6*model.num_parameters() + 12*model.config.n_layer*model.config.n_embd*block_size


def peak_flops() -> float | None:
    "What the maker says that this GPU does in dense bf16; None where it isn't known here"
    import torch
    if not torch.cuda.is_available(): return None
    name = torch.cuda.get_device_name()
    return next((flops for gpu, flops in {"H200": 989e12, "H100": 989e12, "A100": 312e12}.items() if gpu in name), None)


# Perplexity

def case_perplexity(variant: str, model: str, blocks: int):
    "The perplexity of a split"
    import peers, torch
    from clm_nb.core import perplexity
    net, tokenizer, data = setting(model)
    if torch.cuda.is_available(): net.cuda()
    data, result = data["test"].select(range(min(blocks, len(data["test"])))), {}
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(ours=lambda data: lambda: perplexity(net, data).perplexity,
                    trainer=lambda data: peers.evaluation(net, data, folder),
                    trainer_bf16=lambda data: peers.evaluation(net, data, folder, **peers.in_bf16()),
                    float32=lambda data: lambda: peers.float32_perplexity(net, data))
        runs[variant](data.select(range(8)))()
        run = runs[variant](data)
        with timed(result): result["perplexity"] = run()
    return result | dict(blocks=len(data))


# Generation

def case_generate(variant: str, prompts: int = 16, new: int = 100, repeats: int = 1):
    "Seconds for `new` tokens of each of `prompts` prompts; of a single one, also until its first token is there"
    import torch
    from transformers import pipeline
    from clm_nb.core import generate, stream
    net, tokenizer, data = setting("distilgpt2")
    if torch.cuda.is_available(): net.cuda()
    if variant.endswith("_bf16"): net.to(torch.bfloat16)
    ids = (data["test"][i]["input_ids"][:6 + i % 6] for i in range(prompts))
    texts = [tokenizer.decode(row, skip_special_tokens=True) or "The" for row in ids]
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    sampling = dict(do_sample=True, top_k=50, top_p=0.95)
    length = lambda new: dict(max_new_tokens=new, min_new_tokens=new)
    pipe = pipeline("text-generation", model=net, tokenizer=tokenizer) if variant.startswith("pipeline") else None

    def model_generate(texts, new):
        inputs = tokenizer(texts, return_tensors="pt", padding=True).to(net.device)
        out = net.generate(**inputs, **sampling, **length(new), pad_token_id=tokenizer.pad_token_id)
        return tokenizer.batch_decode(out, skip_special_tokens=True)

    run = dict(
        ours=lambda texts, new: generate(net, tokenizer, texts, **sampling, **length(new)),
        pipeline=lambda texts, new: [pipe(text, **sampling, **length(new)) for text in texts],
        pipeline_batched=lambda texts, new: pipe(texts, batch_size=len(texts), **sampling, **length(new)),
        generate=model_generate)[variant.removesuffix("_bf16")]
    result = dict(seconds=often(lambda: run(texts, new), repeats, warm_up=lambda: run(texts, 4)))
    if prompts > 1 or variant not in ("ours", "generate"): return result
    from contextlib import closing

    def first():
        if variant == "generate": return model_generate(texts, 1)
        with closing(stream(net, tokenizer, texts[0], **sampling)) as pieces: return next(pieces)
    return result | dict(first=often(first, 10, warm_up=first))


def often(run, repeats: int, warm_up) -> float:
    "The median seconds of a call; two calls before set things up"
    for _ in range(2): warm_up()
    results = [{} for _ in range(repeats)]
    for result in results:
        with timed(result): run()
    return statistics.median(result["seconds"] for result in results)


# Start-up

needed = """from transformers import (AutoModelForCausalLM, AutoTokenizer, AutoConfig, Trainer, TrainingArguments,
    TrainerCallback, PrinterCallback, DataCollatorForLanguageModeling, GPT2Config)
from datasets import Dataset, DatasetDict"""


def case_startup(variant: str, repeats: int = 1):
    "Seconds of a whole new process"
    import shutil, subprocess
    script = shutil.which("clm_nb", path=Path(sys.executable).parent)
    python = lambda code: [sys.executable, "-c", code]
    commands = dict(help=[script, "--help"] if script else [sys.executable, "-m", "clm_nb.cli", "--help"],
                    package=python("import clm_nb"), core=python("from clm_nb.core import *"), classes=python(needed))
    run = lambda: subprocess.run(commands[variant], check=True, capture_output=True)
    return dict(seconds=often(run, repeats, warm_up=run if variant in ("help", "package") else lambda: None))


# The demo

def case_demo(variant: str):
    "Where the seconds of `finetune()` go"
    stages, start = {}, time.perf_counter()
    with timed(stages, "import"): from clm_nb import core
    with tempfile.TemporaryDirectory() as folder:
        run = core.finetune(output_dir=f"{folder}/run", disable_tqdm=True)
    total = time.perf_counter() - start
    stages |= run.seconds
    return dict(seconds=total, stages=stages | {"everything else": total - sum(stages.values())},
                before=run.before.perplexity, after=run.after.perplexity)


if __name__ == "__main__": main(*sys.argv[1:])
