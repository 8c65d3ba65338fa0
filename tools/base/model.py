"""The shipped base model, made from texts.parquet: python tools/base/model.py (`make base`)

Writes clm_nb/base/: tokenizer, weights in float16, config, card, and figures.json, which says what came out and how.
"""
import argparse, hashlib, json, math, sys, time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clm_nb.model.device import device_and_precision, has_bf16, keep_freed_memory
from clm_nb.model.loss import fused_loss
from clm_nb.data.tokenizer import load_tokenizer, train_tokenizer
from clm_nb.tokenize import tokenize_batch, tokenizer_json
from clm_nb.training.fit import TrainingStep, learning

here = Path(__file__).resolve().parent
base = here.parents[1]/"clm_nb"/"base"
shape = dict(vocab_size=4096, n_positions=128, n_embd=256, n_layer=4, n_head=4, activation_function="gelu_pytorch_tanh")
no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
recipe = dict(epochs=4, rows=32, muon_lr=3e-3, adamw_lr=5e-3, weight_decay=0.1, warmup=0.02, seed=42)
how = {name: recipe[name] for name in ("muon_lr", "adamw_lr", "weight_decay", "warmup")}


# Data

def read_texts() -> pa.Table: # columns "release", "name", "text"
    "What there is to read, in an order of its own"
    texts = pq.read_table(here/"texts.parquet")
    return texts.take(np.random.default_rng(42).permutation(len(texts)))


def token_stream(
    texts: pa.Table,
    tokenizer, # from `train_tokenizer`
) -> np.ndarray: # (tokens,) int32, EOS after each text
    "All texts laid end to end"
    spec = tokenizer_json(tokenizer)
    suffix = (tokenizer.eos_token_id,)
    batch = tokenize_batch(texts, spec, suffix=suffix, encoder="gigatoken")
    return batch["input_ids"].combine_chunks().flatten().to_numpy()


def batches(
    stream: np.ndarray, # (tokens,)
    rows: int, # blocks in a batch
    epochs: float,
    seed: int,
    block: int = shape["n_positions"], # tokens in a block
) -> Iterator[torch.Tensor]: # (rows, block) int64
    "The stream cut into blocks in another place each epoch, in random order"
    rng = np.random.default_rng(seed)
    steps = total_steps(stream, rows, epochs, block)
    while True:
        cut = stream[rng.integers(block):]
        blocks = cut[:len(cut)//block*block].reshape(-1, block)
        order = rng.permutation(len(blocks))
        for i in range(0, len(order) - rows + 1, rows):
            if not steps:
                return
            steps -= 1
            yield torch.from_numpy(blocks[order[i:i + rows]].astype(np.int64))


def total_steps(stream: np.ndarray, rows: int, epochs: float, block: int = shape["n_positions"]) -> int:
    "How many batches there are in so many epochs"
    return int(epochs*len(stream)/(rows*block))


# The optimiser

def orthogonal(
    update: torch.Tensor, # a matrix
    dtype: torch.dtype, # of the products
    steps: int = 5,
) -> torch.Tensor: # of the same shape, its singular values near 1
    "Newton and Schulz's iteration with the coefficients of Keller Jordan's Muon"
    x = update.to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x/x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    "Momentum, orthogonalised (Keller Jordan); PyTorch's own computes in bf16 also where the CPU has none, 50 times slower"
    def __init__(self, params, lr: float, weight_decay: float):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                dtype = torch.bfloat16 if has_bf16(p.device.type) else torch.float32
                mean = self.state[p].setdefault("mean", torch.zeros_like(p.grad))
                mean.lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(mean, 0.95), dtype)
                p.mul_(1 - group["lr"]*group["weight_decay"])
                p.add_(update, alpha=-0.2*group["lr"]*max(p.shape)**0.5)  # steps as large as AdamW's


def optimizers(model, muon_lr: float | None, adamw_lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    "Muon for the matrices of the layers; AdamW for embeddings, norms and biases, or for all without a rate for Muon"
    if muon_lr is None:
        groups = [dict(params=[p for p in model.parameters() if (p.ndim > 1) == decays], weight_decay=weight_decay*decays)
                  for decays in (True, False)]
        return [torch.optim.AdamW(groups, lr=adamw_lr, betas=(0.9, 0.95), fused=True)]
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." not in name]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [dict(params=embeddings, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
    return [Muon(hidden, muon_lr, weight_decay), torch.optim.AdamW(groups, lr=adamw_lr, betas=(0.9, 0.95), fused=True)]


# Training

def schedule(step: int, steps: int, warmup: float) -> float:
    "The share of the peak learning rate: up in a straight line, then down along a cosine to nothing"
    up = max(1, int(warmup*steps))
    if step < up:
        return (step + 1)/up
    return 0.5*(1 + math.cos(math.pi*(step - up)/(steps - up)))


def new_model(tokenizer, **changes) -> GPT2LMHeadModel:
    "The model with its first, random weights"
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(recipe["seed"])
    config = GPT2Config(**shape | changes, **no_dropout, **ids, attn_implementation="eager")
    return GPT2LMHeadModel(config)


def pretrain(
    model: GPT2LMHeadModel,
    data: Iterator[torch.Tensor], # from `batches`
    steps: int, # of the schedule
    muon_lr: float, # peak learning rates
    adamw_lr: float,
    weight_decay: float,
    warmup: float, # share of the steps
) -> Iterator[float]: # the loss of each step, nats per token
    "Train a model, a step for each item that is taken"
    model.to(device_and_precision()[0])
    parts = optimizers(model, muon_lr, adamw_lr, weight_decay)
    peaks = [(group, group["lr"]) for part in parts for group in part.param_groups]
    learn = TrainingStep(model, *parts)
    with learning(model):
        for step, ids in enumerate(data):
            for group, peak in peaks:
                group["lr"] = peak*schedule(step, steps, warmup)
            yield learn(dict(input_ids=ids, labels=ids)).item()


# What is kept

licences = {"Python-3.11.2": "PSF-2.0", "django-5.2.19": "BSD-3-Clause", "pytest-9.2.0": "MIT", "sphinx-9.0.4": "BSD-2-Clause",
            "sqlalchemy-2.1.9": "MIT"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources(texts: pa.Table, tokenizer) -> list[dict]:
    "What was read of each release"
    found = []
    for release, licence in licences.items():
        part = texts.filter(pa.compute.equal(texts["release"].cast("string"), release))
        found.append(dict(release=release, licence=licence, texts=len(part), characters=sum(map(len, part["text"].to_pylist())),
                          tokens=len(token_stream(part, tokenizer))))
    return found


def card(figures: dict) -> str:
    "The model card, in Markdown"
    rows = [f"| {s['release']} | {s['licence']} | {s['texts']:,} | {s['tokens']:,} |" for s in figures["sources"]]
    return "\n".join([
        "---", "license: other", "license_name: psf-2.0-bsd-3-clause-bsd-2-clause-mit", "library_name: transformers",
        "pipeline_tag: text-generation", "language: en", "---", "", "# python-docs-gpt2", "",
        f"A GPT-2 of {figures['parameters']:,} parameters with a byte-level BPE tokenizer of {shape['vocab_size']:,} tokens and "
        f"a context of {shape['n_positions']} tokens. It is the base model of clm_nb: small enough to ship with the package and "
        "to be fine-tuned on a laptop in under a minute. Its texts look like documentation and mean nothing.", "",
        "## What it has read", "", "| release | licence | texts | tokens |", "| --- | --- | ---: | ---: |", *rows, "",
        f"{figures['tokens_read']:,} tokens in {figures['steps']:,} steps. Of Python it has read docstrings only. Left out is every "
        "paragraph that shares thirteen words in a row with the topics of `pydoc`, from which clm_nb's corpus `python-docs` "
        "is made.", "",
        "## How it was made", "", "`make base` in clm_nb's repository; settings, losses and digests are in `figures.json`, "
        "and the page *How the base model was made* tells the rest.", ""])


def save(model, tokenizer, folder: Path):
    "Tokenizer, weights in float16, config"
    model.config.update(dict(resid_pdrop=0.1, embd_pdrop=0.1))  # for fine-tuning; this model was trained without
    model.cpu().to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def held_out_loss(model, ids: np.ndarray) -> float: # nats per token
    "The mean loss over rows of 128 tokens"
    block = shape["n_positions"]
    rows = torch.from_numpy(ids[:len(ids)//block*block].astype(np.int64)).reshape(-1, block)
    model.eval()
    with torch.inference_mode(), fused_loss(model):
        losses = [model(part, labels=part).loss.item()*len(part) for part in rows.split(16)]
    return sum(losses)/len(rows)


def note(folder: Path, **figures):
    "Add to figures.json"
    path = folder/"figures.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | figures, indent=1) + "\n", encoding="utf-8")


# The three parts of the work

def train(folder: Path, train_texts: pa.Table, test_texts: pa.Table):
    "Tokenizer and weights, with the losses on the way"
    tokenizer = train_tokenizer(train_texts["text"].to_pylist(), shape["vocab_size"])
    stream, test = token_stream(train_texts, tokenizer), token_stream(test_texts, tokenizer)
    steps = total_steps(stream, recipe["rows"], recipe["epochs"])
    model = new_model(tokenizer)
    losses, start = [], time.perf_counter()
    for loss in pretrain(model, batches(stream, recipe["rows"], recipe["epochs"], recipe["seed"]), steps, **how):
        losses.append(loss)
        if len(losses) % 50 == 0:
            rate = len(losses)/(time.perf_counter() - start)
            print(f"step {len(losses):>5,} of {steps:,}  loss {np.mean(losses[-50:]):.3f}  "
                  f"{(steps - len(losses))/rate/60:.0f} min to go", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    save(model, tokenizer, folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    note(folder, texts_sha256=sha256(here/"texts.parquet"), weights_sha256=sha256(folder/"model.safetensors"),
         sources=sources(train_texts, tokenizer), shape=shape, recipe=recipe, parameters=model.num_parameters(),
         steps=len(losses), tokens_read=len(losses)*recipe["rows"]*shape["n_positions"], seconds=round(seconds),
         precision="bf16" if has_bf16("cpu") else "float32", threads=torch.get_num_threads(), torch=torch.__version__,
         first_losses=[round(loss, 4) for loss in losses[:20]],
         curve=[[i + 50, round(float(np.mean(losses[i:i + 50])), 4)] for i in range(0, len(losses), 50)],
         held_out_loss=round(held_out_loss(model, test), 4))
    figures = json.loads((folder/"figures.json").read_text(encoding="utf-8"))
    (folder/"README.md").write_text(card(figures), encoding="utf-8")


def try_others(folder: Path, train_texts: pa.Table, test_texts: pa.Table, steps: int = 100):
    "Other shapes and optimisers over the first steps of the same data, each with a schedule of its own"
    tokenizer = load_tokenizer(folder)
    stream, test = token_stream(train_texts, tokenizer), token_stream(test_texts, tokenizer)
    rates = "Muon {muon_lr:g}, AdamW {adamw_lr:g}".format(**recipe)
    candidates = [({}, {}, rates), (dict(n_layer=2), {}, rates), (dict(n_layer=6, n_embd=192, n_head=3), {}, rates),
                  ({}, dict(muon_lr=6e-3), "Muon 0.006, AdamW 0.005"), ({}, dict(muon_lr=None, adamw_lr=1e-3), "AdamW 0.001"),
                  ({}, dict(muon_lr=None, adamw_lr=2e-3), "AdamW 0.002"), ({}, dict(muon_lr=None, adamw_lr=4e-3), "AdamW 0.004")]
    tried = []
    for changes, other, called in candidates:
        model, start = new_model(tokenizer, **changes), time.perf_counter()
        for _ in islice(pretrain(model, batches(stream, recipe["rows"], 1, recipe["seed"]), steps, **how | other), steps):
            pass
        size = shape | changes
        tried.append({"model": f"{size['n_layer']} × {size['n_embd']}, {called}", "parameters": model.num_parameters(),
                      "tokens": steps*recipe["rows"]*shape["n_positions"], "held-out loss": round(held_out_loss(model, test), 3)})
        print(tried[-1], f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        note(folder, tried=tried)


def measure(folder: Path, train_texts: pa.Table):
    "Perplexities on the embedded corpus, beside n-grams that have counted as much"
    import platform
    from datasets import concatenate_datasets, Dataset
    from clm_nb.model.baselines import kneser_ney
    from clm_nb.core import load_model, perplexity, prepare
    from clm_nb.train import embedded_run
    tokenizer = load_tokenizer(folder)
    blocks = prepare("python-docs", tokenizer)
    block = shape["n_positions"]
    stream = token_stream(train_texts, tokenizer)
    read = Dataset.from_dict({"input_ids": stream[:len(stream)//block*block].reshape(-1, block)}, features=blocks["train"].features)
    both = concatenate_datasets([read, blocks["train"]])
    models = {"base model": load_model(folder), "fine-tuned": load_model(embedded_run()),
              "5-gram of the part to fine-tune on": kneser_ney(blocks["train"], len(tokenizer), 5),
              "5-gram of that, and of what the base model has read": kneser_ney(both, len(tokenizer), 5)}
    found = []
    for name, model in models.items():
        p = perplexity(model, blocks["test"]) if hasattr(model, "parameters") else model.perplexity(blocks["test"])
        low, high = p.interval
        found.append({"model": name, "perplexity": round(p.perplexity, 1), "95 %": f"{low:.1f} – {high:.1f}"})
    note(folder, embedded=dict(python=platform.python_version(), tokens=p.tokens, perplexities=found))
    print(*found, sep="\n")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--output", type=Path, default=base)
    args.add_argument("--only", choices=("train", "try", "measure"), help="one of the three parts; default: all")
    args = args.parse_args()
    keep_freed_memory()
    texts = read_texts()
    test, rest = texts[:len(texts)//100], texts[len(texts)//100:]
    if args.only in (None, "train"): train(args.output, rest, test)
    if args.only in (None, "try"): try_others(args.output, rest, test)
    if args.only in (None, "measure"): measure(args.output, rest)


if __name__ == "__main__": main()
