"How others do it: the tutorial's code word for word, run_clm.py's way, TRL's"
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]/"tests"))
import upstream  # tests/upstream.py


def tutorial(eli5, tokenizer, block_size: int, num_proc: int | None = 4):
    "The tutorial's preprocessing, word for word"
    preprocess_function = upstream.function("preprocess_function", tokenizer=tokenizer)
    group_texts = upstream.function("group_texts", block_size=block_size)
    eli5 = eli5.flatten()
    tokenized_eli5 = eli5.map(
        preprocess_function,
        batched=True,
        num_proc=num_proc,
        remove_columns=eli5["train"].column_names,
    )
    return tokenized_eli5.map(group_texts, batched=True, num_proc=num_proc)


def tokenized(records, tokenizer, num_proc: int | None):
    "Flattened, joined and tokenized with `datasets.map`, as both of the next do it"
    def tokenize_function(examples):
        return tokenizer([" ".join(x) for x in examples["answers.text"]])
    records = records.flatten()
    return records.map(tokenize_function, batched=True, num_proc=num_proc, remove_columns=records["train"].column_names,
                       desc="Running tokenizer on dataset")


def run_clm(records, tokenizer, block_size: int, num_proc: int | None = 2):
    "transformers' examples/pytorch/language-modeling/run_clm.py: its `group_texts`"
    from itertools import chain

    def group_texts(examples):
        # Concatenate all texts.
        concatenated_examples = {k: list(chain(*examples[k])) for k in examples.keys()}
        total_length = len(concatenated_examples[list(examples.keys())[0]])
        # We drop the small remainder, and if the total_length < block_size  we exclude this batch and return an empty dict.
        # We could add padding if the model supported it instead of this drop, you can customize this part to your needs.
        total_length = (total_length // block_size) * block_size
        # Split by chunks of max_len.
        result = {
            k: [t[i : i + block_size] for i in range(0, total_length, block_size)]
            for k, t in concatenated_examples.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    return tokenized(records, tokenizer, num_proc).map(group_texts, batched=True, num_proc=num_proc,
                                                       desc=f"Grouping texts in chunks of {block_size}")


def trl(records, tokenizer, block_size: int, num_proc: int | None = 2):
    "TRL's packing that cuts one tape, a tape per 1,000 documents"
    from trl import pack_dataset
    return pack_dataset(tokenized(records, tokenizer, num_proc), block_size, "wrapped", dict(num_proc=num_proc))


def train_with_trainer(model, blocks, tokenizer, output_dir, callback, settings: dict):
    "`Trainer` with its defaults; labels are a copy of the tokens, as the tutorial and run_clm.py make them"
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(output_dir, report_to="none", disable_tqdm=True, **settings)
    rows = blocks["train"].map(lambda rows: dict(labels=rows["input_ids"]), batched=True)
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[callback])
    trainer.train()


def in_bf16() -> dict:
    "What tells `TrainingArguments` to multiply in bf16; without a GPU it asks that this is said"
    import torch
    return dict(bf16=True, use_cpu=not torch.cuda.is_available())


def train_with_trainer_bf16(model, blocks, tokenizer, output_dir, callback, settings: dict):
    "`Trainer` as a knowing user runs it: told to multiply in bf16"
    train_with_trainer(model, blocks, tokenizer, output_dir, callback, settings | in_bf16())


def train_with_sft(model, blocks, tokenizer, output_dir, callback, settings: dict):
    "TRL's `SFTTrainer` with its defaults and packing; without its bf16 where a CPU would have to imitate that"
    import torch
    from clm_nb.model.device import has_bf16
    from datasets import Features, List, Value
    from trl import SFTConfig, SFTTrainer
    length, rows = len(blocks["train"][0]["input_ids"]), blocks["train"].cast(Features(input_ids=List(Value("int64"))))
    no_gpu = not torch.cuda.is_available()  # its bf16 asks that this is said
    if no_gpu and not has_bf16("cpu"): settings = settings | dict(bf16=False)
    args = SFTConfig(output_dir, packing=True, max_length=length, use_cpu=no_gpu, report_to="none",
                     disable_tqdm=True, **settings)
    SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[callback]).train()


def evaluation(model, blocks, output_dir, **settings): # a function without arguments
    "The tutorial's perplexity, from `Trainer.evaluate`, ready to be called"
    import math
    from transformers import Trainer, TrainingArguments
    rows = blocks.map(lambda rows: dict(labels=rows["input_ids"]), batched=True)
    args = TrainingArguments(output_dir, report_to="none", disable_tqdm=True, **settings)
    trainer = Trainer(model, args, eval_dataset=rows)
    return lambda: math.exp(trainer.evaluate()["eval_loss"])


def float32_perplexity(model, blocks, batch_size: int = 8) -> float:
    "The same figure from plain PyTorch: every token once, in float32, summed in float64"
    import math, torch
    from torch.nn.functional import cross_entropy
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with torch.no_grad():
        for rows in blocks.with_format("numpy").iter(batch_size):
            ids = torch.as_tensor(rows["input_ids"]).long().to(device)
            logits = model(ids, use_cache=False).logits[:, :-1]
            total += cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").double().sum().item()
            count += ids[:, 1:].numel()
    return math.exp(total/count)
