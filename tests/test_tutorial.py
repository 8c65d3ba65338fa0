"The tutorial's own preprocessing and training, word for word, against ours: equal where asked, else as documented"
import math

import datasets, numpy as np, pytest, torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments
from clm_nb.core import finetune, flatten, group, prepare, tokenize, train, tutorial_choices
import tiny, upstream

datasets.disable_progress_bars()
block_size = 16
group_texts = upstream.function("group_texts", block_size=block_size)
steps, rate = 20, 1e-3
short = dict(max_steps=steps, logging_steps=1, learning_rate=rate, weight_decay=0.01, per_device_train_batch_size=8,
             eval_strategy="steps", eval_steps=steps, save_strategy="no", report_to="none", use_cpu=True,
             disable_tqdm=True)


def verbatim(eli5, tokenizer, model, output_dir):
    preprocess_function = upstream.function("preprocess_function", tokenizer=tokenizer)
    eli5 = eli5.flatten()
    tokenized_eli5 = eli5.map(preprocess_function, batched=True, remove_columns=eli5["train"].column_names)
    lm_dataset = tokenized_eli5.map(group_texts, batched=True)
    tokenizer.pad_token = tokenizer.eos_token
    data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
    training_args = TrainingArguments(output_dir=output_dir, **short)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=lm_dataset["train"],
        eval_dataset=lm_dataset["test"],
        data_collator=data_collator,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return lm_dataset, trainer


def logged(trainer):
    return {key: [log[key] for log in trainer.state.log_history if key in log] for key in ("loss", "eval_loss")}


@pytest.fixture(scope="module")
def eli5():
    rng = np.random.default_rng(0)
    words = "the quick brown fox Naïve 日本語 <|endoftext|> 12,345 isn't\n lazy".split(" ")
    text = lambda: " ".join(["So", *rng.choice(words, rng.integers(1, 12))])
    rows = lambda n, side: [{"q_id": f"{side}{i}", "title": f"{side}{i}?",
                             "answers": {"text": [text() for _ in range(rng.integers(1, 3))]}} for i in range(n)]
    return DatasetDict(train=Dataset.from_list(rows(1100, "a")), test=Dataset.from_list(rows(60, "b")))


@pytest.mark.parametrize("family", tiny.families)
def test_the_tutorials_choices_give_its_blocks_and_its_losses(family, eli5, cache, tmp_path):
    "More than 1,000 records, so that a remainder is dropped in the middle; texts that spell EOS"
    tokenizer, make = tiny.tokenizer(), tiny.families[family]
    theirs, trainer = verbatim(eli5, tiny.tokenizer(), make(), str(tmp_path/"theirs"))
    make().save_pretrained(tmp_path/"model"), tokenizer.save_pretrained(tmp_path/"model")
    run = finetune(eli5, str(tmp_path/"model"), output_dir=tmp_path/"ours", block_size=block_size, as_tutorial=True,
                   bf16=False, max_new_tokens=4, **{k: v for k, v in short.items() if k != "report_to"})
    for split in theirs: assert run.blocks[split]["input_ids"][:] == theirs[split]["input_ids"][:]
    assert tokenizer.eos_token_id in sum(theirs["train"]["input_ids"], [])
    expected, found = logged(trainer), logged(run.trainer)
    assert len(expected["loss"]) == steps and len(expected["eval_loss"]) == 1
    for key in expected: np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-6)


def our_way(eli5, tokenizer):
    "EOS after each document, special spellings as text, one remainder a split: in plain Python"
    plain = tiny.tokenizer().backend_tokenizer
    plain.encode_special_tokens = True
    blocks = {}
    for split, records in eli5.items():
        texts = [" ".join(answers["text"]) for answers in records["answers"]]
        tape = [i for text in texts for i in [*plain.encode(text).ids, tokenizer.eos_token_id]]
        blocks[split] = [tape[i:i + block_size] for i in range(0, len(tape) - block_size + 1, block_size)]
    return blocks


def plain_loop(model, batches):
    "The losses of a bare PyTorch loop: exact token mean, AdamW, linear decay, gradients clipped at 1"
    matrices = [p for name, p in model.named_parameters() if "ln" not in name and "norm" not in name and "bias" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.01), dict(params=others, weight_decay=0.0)], lr=rate)
    found = []
    for step, ids in enumerate(batches):
        for part in optimizer.param_groups: part["lr"] = rate*(steps - step)/steps
        log_p = model(ids).logits[:, :-1].log_softmax(-1)
        loss = -log_p.gather(2, ids[:, 1:, None]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("family", tiny.families)
def test_otherwise_the_differences_are_the_documented_ones_and_no_others(family, eli5, cache, tmp_path):
    tokenizer, make = tiny.tokenizer(), tiny.families[family]
    blocks = group(tokenize(flatten(eli5), tokenizer), block_size)
    expected = our_way(eli5, tokenizer)
    for split in blocks: assert blocks[split]["input_ids"][:] == expected[split]
    model, seen = make(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["input_ids"].clone()) if m.training else None,
                                    with_kwargs=True)
    trainer = train(model, blocks, tokenizer, tmp_path/"ours", bf16=False, **short)
    assert len(seen) == steps and all(row in expected["train"] for ids in seen for row in ids.tolist())
    np.testing.assert_allclose(logged(trainer)["loss"], plain_loop(make(), seen), rtol=0, atol=2e-6)
    with torch.no_grad():
        log_p = trainer.model.double()(ids := torch.tensor(expected["test"])).logits[:, :-1].log_softmax(-1)
    held_out = -log_p.gather(2, ids[:, 1:, None]).mean().item()
    assert math.isclose(logged(trainer)["eval_loss"][0], held_out, abs_tol=1e-6)


@pytest.mark.parametrize("change,same_blocks", [({}, True), (dict(add_eos=True), False), (dict(allow_special=False), False),
                                                (dict(remainder="drop"), False)])
def test_each_choice_is_one_of_the_tutorials(change, same_blocks, eli5, cache, tmp_path):
    "With any one of them changed the blocks are others"
    theirs = prepare(eli5, tiny.tokenizer(), block_size=block_size, **tutorial_choices)
    other = prepare(eli5, tiny.tokenizer(), block_size=block_size, **tutorial_choices | change)
    assert (theirs["train"]["input_ids"][:] == other["train"]["input_ids"][:]) == same_blocks
