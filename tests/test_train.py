"Training against plain loops, and the run folder: what it becomes, what it never holds, what it survives"
import json, pickle
from pathlib import Path

import datasets, numpy as np, pytest, torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, TrainerCallback, TrainingArguments, pipeline
from clm_nb.collate import CausalCollator
from clm_nb.generate import generate
from clm_nb.perplexity import perplexity
from clm_nb.data.tokenizer import load_tokenizer
from clm_nb.model.model import load_config, load_model
from clm_nb.training.runs import check_output_dir, digest, write_run
from clm_nb.training.trainer import CausalTrainer
from clm_nb.train import train
from conftest import answer, link, python, ranks
from short_runs import losses, make_blocks, parameters
from tiny import families, gpt2, llama, needs_bf16, tokenizer

datasets.disable_progress_bars()
rng = np.random.default_rng(0)
blocks = DatasetDict(train=make_blocks(), test=make_blocks(rows=10))
short = dict(max_steps=3, per_device_train_batch_size=4, logging_steps=1, eval_strategy="steps", eval_steps=3,
             disable_tqdm=True,
             bf16=False, learning_rate=1e-2)


def run(output_dir, model=None, data=blocks, **settings):
    return train(model or gpt2(), data, tokenizer(), output_dir, **short | settings)


def contents(folder):
    "Every file below a folder: {path: bytes}"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def float64_loss(model, rows):
    "The mean over all predicted tokens, one row at a time, in double precision"
    total, n = 0.0, 0
    for row in rows:
        ids = torch.tensor(row)
        with torch.no_grad(): log_p = model(ids[None]).logits[0].double().log_softmax(-1)
        total, n = total - log_p[:-1].gather(1, ids[1:, None]).sum().item(), n + len(ids) - 1
    return total/n


@pytest.mark.parametrize("family", families)
def test_run_folder_is_the_model(family, tmp_path):
    model, folder = families[family](), tmp_path/"run"
    before = parameters(model).clone()
    trainer = run(folder, model)
    assert trainer.model is model and not model.training and not torch.equal(parameters(model), before)
    files = contents(folder)
    assert {"model.safetensors", "config.json", "tokenizer.json", "run.json", "loss.png", "README.md"} <= set(files)
    assert not [name for name in files if Path(name).name.startswith("pytorch_model") or name.endswith(".new")]
    loaded, saved_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is type(model) and torch.equal(parameters(loaded), parameters(model))
    assert torch.equal(parameters(load_model(folder)), parameters(model))
    text = "Naïve café: <|endoftext|> 日本語 🙂"
    assert saved_tokenizer(text)["input_ids"] == tokenizer()(text)["input_ids"] and saved_tokenizer.eos_token_id == 0
    options = dict(max_new_tokens=8, do_sample=False)
    (said,) = pipeline("text-generation", model=str(folder), device="cpu")("The quick", **options)
    assert said["generated_text"] == generate(model, tokenizer(), "The quick", **options) != "The quick"


def test_run_json_says_what_was_done(tmp_path):
    trainer = run(tmp_path, source=dict(dataset_name="my corpus"), seed=7, weight_decay=0.5)
    found = json.loads((tmp_path/"run.json").read_bytes())
    assert (found["status"], found["steps"], found["seed"], found["block_size"]) == ("trained", 3, 7, 16)
    assert found["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert found["source"]["dataset_name"] == "my corpus" and torch.__version__.startswith(found["torch"])
    given = dict(weight_decay=0.5, max_steps=3, num_train_epochs=3)
    assert found["training_arguments"] | given == found["training_arguments"]
    assert len(losses(trainer)) == 3
    assert [log["loss"] for log in found["log_history"] if "loss" in log] == losses(trainer)
    assert found["data"] == {split: digest(part) for split, part in blocks.items()} and found["exact_loss"] is True
    card = (tmp_path/"README.md").read_text(encoding="utf-8")
    assert "my corpus" in card and "16 tokens" in card and '"weight_decay": 0.5' in card


def test_the_second_run_in_a_folder_keeps_no_figures_of_the_first(tmp_path):
    run(tmp_path)
    once = dict(loss=9.75, perplexity=1e4)
    write_run(tmp_path, before=once, after=once, samples=dict(after="once"))
    run(tmp_path, max_steps=2, eval_strategy="no")
    found = json.loads((tmp_path/"run.json").read_bytes())
    assert found["steps"] == 2 and not {"before", "after", "samples"} & set(found)
    assert "9.75" not in (tmp_path/"README.md").read_text(encoding="utf-8")


def test_no_token_is_written_down(tmp_path):
    trainer = run(tmp_path, hub_token="hf_secret", save_strategy="steps", save_steps=1)
    assert any(name.startswith("checkpoint-") for name in contents(tmp_path))
    assert not [name for name, text in contents(tmp_path).items() if b"hf_secret" in text]
    assert "hf_secret" not in json.dumps(trainer.state.log_history)


ragged = [rng.integers(1, 400, n).tolist() for n in (5, 16, 9, 3, 16, 16, 7, 12, 4, 16, 8, 2, 11, 16, 6, 10, 13, 16)]


def trainer_on(rows, tmp_path, model, batch=6, accumulation=1, **settings):
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
                             max_steps=3,
                             logging_steps=1, save_strategy="no", optim="sgd", learning_rate=0.5, disable_tqdm=True,
                             use_cpu=True,
                             report_to="none", **settings)
    data = Dataset.from_dict({"input_ids": rows})
    return CausalTrainer(model, args, data_collator=CausalCollator(), train_dataset=data, eval_dataset=data,
                         processing_class=tokenizer())


@pytest.mark.parametrize("family", families)
def test_accumulated_steps_are_the_steps_of_the_whole_batch(family, tmp_path):
    "Rows of unequal lengths, so that a mean over batches of means would be another number"
    models = [families[family]() for _ in range(3)]
    trainers = [trainer_on(ragged, tmp_path, model, 6//k, k) for k, model in zip((1, 2, 6), models)]
    for trainer in trainers: trainer.train()
    whole, *parts = [losses(trainer) for trainer in trainers]
    assert len(set(whole)) == 3
    for part, model in zip(parts, models[1:]):
        assert part == pytest.approx(whole, rel=1e-5)
        assert torch.allclose(parameters(model), parameters(models[0]), atol=1e-5)


two = """
import json, sys
from test_train import *
ragged = Dataset.from_dict({"input_ids": [rng.integers(1, 400, n).tolist() for n in rng.integers(2, 30, 26)]})
trainer = run(sys.argv[1], families[sys.argv[2]](), DatasetDict(train=ragged.select(range(24)), test=ragged), use_cpu=True,
              max_steps=4, optim="sgd", per_device_train_batch_size=int(sys.argv[3]), per_device_eval_batch_size=4)
if trainer.is_world_process_zero():
    logs = [{k: v for k, v in log.items() if "loss" in k or k == "eval_tokens"} for log in trainer.state.log_history]
    print(json.dumps([logs, parameters(trainer.model).tolist()]))
trainer.end_processes()
print(sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm")))  # its threads would abort us
"""


def in_processes(n, folder, family):
    "What a run with `n` processes logs, and its parameters: the same rows a step, shared out"
    workers = [python(two, str(folder), family, str(8//n), **env) for env in (ranks(n) if n > 1 else [{}])]
    told = [answer(worker).splitlines() for worker in workers]
    assert all(lines[-1] == "0" for lines in told)
    return json.loads(told[0][-2])


@pytest.mark.parametrize("family", families)
def test_two_processes_with_half_the_rows_each_are_one_with_all(family, tmp_path):
    "Rows of all lengths, so that the processes' tokens differ; 26 to evaluate on, so that the last batch is short"
    (one, weights), (both, others) = (in_processes(n, tmp_path/str(n), family) for n in (1, 2))
    assert len(one) == len(both) > 4 and [sorted(log) for log in one] == [sorted(log) for log in both]
    for a, b in zip(one, both, strict=True):
        for key in a: assert abs(a[key] - b[key]) < 2e-5*max(1, abs(a[key])), key
    np.testing.assert_allclose(others, weights, rtol=0, atol=1e-6)
    assert json.loads((tmp_path/"2/run.json").read_bytes())["status"] == "trained"


@pytest.mark.parametrize("family", families)
def test_training_loss_is_the_mean_over_the_predicted_tokens(family, tmp_path):
    trainer = trainer_on(ragged, tmp_path, families[family](), batch=3, accumulation=6)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(float64_loss(families[family](), ragged), rel=1e-5)


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("rows", [blocks["test"]["input_ids"][:], ragged], ids=["blocks", "ragged"])
def test_eval_loss_is_the_mean_over_the_predicted_tokens(family, rows, tmp_path):
    model = families[family]()
    trainers = [trainer_on(rows, tmp_path, model, per_device_eval_batch_size=size) for size in (1, 4, 64)]
    found = [trainer.evaluate()["eval_loss"] for trainer in trainers]
    assert found == pytest.approx([float64_loss(model, rows)]*3, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("family", families)
def test_a_loss_logged_over_several_steps_is_the_mean_over_their_tokens(family, accumulate, tmp_path):
    "Rows of all lengths: the steps' means, weighted by the tokens that a float64 loop counts, and `train_loss` over all"
    rows = [rng.integers(1, 400, n).tolist() for n in rng.integers(2, 40, 24)]
    data = DatasetDict(train=Dataset.from_dict({"input_ids": rows}), test=blocks["test"])
    seen = []
    def look(model, args, kwargs):
        if model.training: seen.append((kwargs["labels"][:, 1:] != -100).sum().item())
    logs = {}
    for every in (1, 3):
        model = families[family]()
        if every == 1: model.register_forward_pre_hook(look, with_kwargs=True)
        trainer = run(tmp_path/str(every), model, data, max_steps=6, logging_steps=every, per_device_train_batch_size=4//accumulate,
                      gradient_accumulation_steps=accumulate, eval_strategy="no", save_strategy="no")
        logs[every] = losses(trainer), losses(trainer, "train_loss")[0]
    tokens, means = np.reshape(seen, (6, accumulate)).sum(1), np.array(logs[1][0])
    expected = [means[i:i + 3]@tokens[i:i + 3]/tokens[i:i + 3].sum() for i in (0, 3)]
    assert logs[3][0] == pytest.approx(expected, rel=1e-6)
    assert logs[1][1] == logs[3][1] == pytest.approx(means@tokens/tokens.sum(), rel=1e-6)
    assert abs(logs[3][0][0] - means[:3].mean()) > 1e-4


class NoKeywords(GPT2LMHeadModel):
    "A model that `Trainer` can't tell how many tokens its loss is to be divided by"
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return super().forward(input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [GPT2LMHeadModel, NoKeywords])
def test_the_loss_of_an_epoch_is_the_float64_mean_over_its_tokens(kind, accumulate, tmp_path):
    rows = [rng.integers(1, 400, n).tolist() for n in rng.integers(2, 40, 24)]
    data, model = DatasetDict(train=Dataset.from_dict({"input_ids": rows})), kind(gpt2().config)
    expected = float64_loss(model.eval(), rows)
    trainer = run(tmp_path, model, data, learning_rate=0.0, max_steps=6, per_device_train_batch_size=4//accumulate,
                  gradient_accumulation_steps=accumulate, logging_steps=6, eval_strategy="no", save_strategy="no")
    assert losses(trainer) == losses(trainer, "train_loss") == pytest.approx([expected], rel=1e-6)


def test_evaluation_reports_perplexity_and_tokens_through_the_metric(tmp_path):
    trainer = run(tmp_path)
    logs = trainer.state.log_history
    (found,) = [log for log in logs if "eval_loss" in log]
    assert found["eval_perplexity"] == pytest.approx(np.exp(found["eval_loss"])) and found["eval_tokens"] == 10*15
    assert trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation").predictions is None  # nothing is kept


@needs_bf16
def test_a_model_trained_in_bf16_computes_in_its_own_precision_again(tmp_path):
    "What is measured on it is what is measured on the saved one, to the last digit; and it may be evaluated again"
    trainer = run(tmp_path/"run", bf16=True)
    assert perplexity(trainer.model, blocks["test"]) == perplexity(load_model(tmp_path/"run"), blocks["test"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses(trainer, "eval_loss")[0], rel=1e-2)


def test_the_seed_decides_the_losses(tmp_path):
    found = {i: run(tmp_path/str(i), gpt2(dropout=0.2), seed=seed) for i, seed in enumerate([1, 1, 2])}
    assert losses(found[0]) == losses(found[1]) != losses(found[2])
    assert losses(found[0], "eval_loss") == losses(found[1], "eval_loss")
    assert torch.equal(parameters(found[0].model), parameters(found[1].model))


def saved(folder, model=None):
    (model or gpt2()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_what_would_be_overwritten_is_refused_and_left_alone(tmp_path):
    own, other, file = saved(tmp_path/"own"), tmp_path/"other", tmp_path/"file"
    other.mkdir()
    (other/"thesis.tex").write_text("years of work", encoding="utf-8")
    file.write_text("a file", encoding="utf-8")
    link(tmp_path/"link", own)
    before = contents(tmp_path)
    for folder, message in [(own, "is the folder of the model to be trained"),
                            (tmp_path/"link", "is the folder of the model"),
                            (other, "holds files that are not of an earlier run"), (file, "is a file")]:
        with pytest.raises(ValueError, match=message) as error: run(folder, load_model(own))
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert contents(tmp_path) == before
    (tmp_path/"empty").mkdir()
    for fine in ("empty", "new/below"): assert check_output_dir(tmp_path/fine) == tmp_path/fine
    assert not (tmp_path/"new").exists()


def test_a_trained_folder_may_be_trained_again_but_not_from_itself(tmp_path):
    run(tmp_path/"run")
    with pytest.raises(ValueError, match="is the folder of the model"): run(tmp_path/"run", load_model(tmp_path/"run"))
    run(tmp_path/"further", load_model(tmp_path/"run"))
    run(tmp_path/"run", llama())
    assert type(load_model(tmp_path/"run")) is type(llama())


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2: raise RuntimeError("out of luck")


def test_an_error_leaves_the_earlier_model(tmp_path):
    run(tmp_path)
    before = {name: text for name, text in contents(tmp_path).items() if "/" not in name and name != "run.json"}
    with pytest.raises(RuntimeError, match="out of luck"): run(tmp_path, llama(), callbacks=[Fails()], seed=9)
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert json.loads(after["run.json"])["status"] != "trained"
    assert isinstance(load_model(tmp_path), type(gpt2()))


def test_an_error_while_saving_leaves_the_earlier_model(tmp_path, monkeypatch):
    run(tmp_path)
    kept = ".safetensors", "config.json", "tokenizer.json"
    before = {name: text for name, text in contents(tmp_path).items() if name.endswith(kept)}
    def half(self, folder, **kwargs):
        Path(folder, "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(CausalTrainer, "save_model", half)
        run(tmp_path, llama(), save_strategy="no")
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before and b"half" not in after.values()


@pytest.mark.parametrize("arguments,message", [
    (dict(data=DatasetDict(train=make_blocks(rows=4, block=257), test=make_blocks(rows=4, block=257))),
     "block_size=257 is longer than the model's context .256"),
    (dict(model=gpt2(vocab_size=300)), f"The tokenizer has {len(tokenizer())} tokens, the model knows 300"),
    (dict(data=DatasetDict(train=blocks["train"])), "no 'test' split"),
    (dict(eval_strategy="sometimes"), "sometimes"), (dict(no_such_setting=1), "no_such_setting"),
])
def test_wrong_settings_are_one_clear_line_before_any_work(arguments, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message) as error: run(tmp_path/"run", **arguments)
    assert "\n" not in str(error.value) and not (tmp_path/"run").exists()


class Payload:
    "A pickle that does something when it is read"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def test_pickled_weights_are_refused_unread(tmp_path):
    folder = saved(tmp_path/"model")
    (folder/"model.safetensors").unlink()
    torch.save(gpt2().state_dict(), folder/"pytorch_model.bin")
    with pytest.raises(ValueError, match="holds its weights as a pickle") as error: load_model(folder)
    assert "\n" not in str(error.value) and "safetensors" in str(error.value)
    (folder/"pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path/"opened")))
    with pytest.raises(ValueError): load_model(folder)
    assert not (tmp_path/"opened").exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: "y")  # transformers would ask, and take yes for an answer
    folder = saved(tmp_path/"model")
    config = json.loads((folder/"config.json").read_bytes())
    own = dict(AutoConfig="own.Config", AutoModelForCausalLM="own.Model")
    (folder/"config.json").write_text(json.dumps(config | dict(model_type="own", auto_map=own)), encoding="utf-8")
    (folder/"own.py").write_text(f"open({str(tmp_path/'opened')!r}, 'w')\nraise LookupError('own code')\n", encoding="utf-8")
    (folder/"tokenizer_config.json").write_text(json.dumps(dict(auto_map=dict(AutoTokenizer=["own.Model", None]))), encoding="utf-8")
    for load in load_config, load_model, load_tokenizer, lambda name: load_model(config_name=name):
        with pytest.raises(ValueError, match="custom code|trust_remote_code"): load(folder)
    assert not (tmp_path/"opened").exists()
    with pytest.raises(LookupError, match="own code"): load_model(config_name=folder, trust_remote_code=True)
    assert (tmp_path/"opened").exists()  # the argument reaches the config of a new model too


def test_folders_that_hold_no_model_are_one_clear_line(tmp_path):
    (tmp_path/"empty").mkdir()
    broken = saved(tmp_path/"broken")
    (broken/"model.safetensors").write_bytes(b"no weights")
    for folder, error in [(tmp_path/"nowhere", FileNotFoundError), (tmp_path/"empty", ValueError), (broken, Exception)]:
        with pytest.raises(error) as raised: load_model(folder)
        assert folder.name in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_from_a_config_takes_over_the_vocabulary_and_the_seed(tmp_path):
    gpt2(vocab_size=50).config.save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path/"config.json"):
        first, again, other = (load_model(config_name=name, tokenizer=tokenizer(), seed=seed) for seed in (1, 1, 2))
        config = first.config
        assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (len(tokenizer()), 0, None)
        assert torch.equal(parameters(first), parameters(again))
        assert not torch.equal(parameters(first), parameters(other))
