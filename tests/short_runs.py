"Runs of three steps on random blocks, for the tests: no network, no text, a second each"
import datasets, numpy as np, torch
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from torch.nn.functional import cross_entropy
from clm_nb.train import train
from tiny import gpt2, tokenizer

datasets.disable_progress_bars()
rng = np.random.default_rng(0)


def make_blocks(kind="full", rows=24, block=16):
    "Blocks that are full, padded, or of documents kept apart, as `group` leaves them"
    columns = dict(input_ids=rng.integers(1, 400, (rows, block)))
    kinds = dict(input_ids="int32")
    lengths = rng.integers(3, block, rows)
    text = np.arange(block) < lengths[:, None]
    if kind == "padded": columns["attention_mask"], kinds["attention_mask"] = text, "int8"
    if kind == "apart":
        begins = np.where(text, 0, lengths[:, None])
        columns["position_ids"], kinds["position_ids"] = np.arange(block) - begins, "uint8"
    features = Features({name: List(Value(kind), length=block) for name, kind in kinds.items()})
    return Dataset.from_dict({name: list(column) for name, column in columns.items()}, features=features)


short = dict(max_steps=3, per_device_train_batch_size=4, logging_steps=1, eval_strategy="no", save_strategy="no",
             disable_tqdm=True, bf16=False, optim="sgd", learning_rate=0.3,
             weight_decay=0.0, lr_scheduler_type="constant")


def run(folder, model, data=None, **settings):
    data = data or make_blocks()
    data = data if isinstance(data, dict) else DatasetDict(train=data, test=data)
    return train(model, data, tokenizer(), folder, **short | settings)


def losses(trainer, key="loss"): return [log[key] for log in trainer.state.log_history if key in log]


def parameters(model): return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def plain_loss(model, batch):
    "The summed loss of the predicted tokens, through the logits"
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), reduction="sum")


def large(): return gpt2(n_embd=256)


def on_disk(folder, rows=4000, block=128, **kwargs):
    make_blocks(rows=rows, block=block, **kwargs).save_to_disk(folder)
    return load_from_disk(folder)
