"The same seed gives the same run, from the split to the generated text; another seed another"
import json

import datasets, pytest
from datasets import Dataset
from clm_nb.core import finetune
from conftest import answer, python
import tiny

datasets.disable_progress_bars()
fruit = "apple pear plum cherry fig date lime melon quince grape".split()


def whole_run(model_folder, output_dir, seed):
    "Everything of a run that chance has a hand in, as JSON knows it"
    rows = [{"q_id": str(i), "title": f"{i}?", "answers": {"text": [f"{a} {i}, {b} and {i*i}." for b in fruit[:3]]}}
            for i, a in enumerate(fruit*6)]
    run = finetune(Dataset.from_list(rows), str(model_folder), output_dir=output_dir, block_size=16, seed=seed, bf16=False,
                   max_steps=5, logging_steps=1, eval_steps=5, eval_strategy="steps", save_strategy="no", learning_rate=1e-2,
                   per_device_train_batch_size=4, prompt="apple", max_new_tokens=20, disable_tqdm=True)
    logs = run.trainer.state.log_history
    batches = [ids for batch in run.trainer.get_train_dataloader() for ids in batch["input_ids"].tolist()]
    return json.loads(json.dumps({
        "blocks": {split: part["input_ids"][:] for split, part in run.blocks.items()}, "batches": batches,
        "losses": [log["loss"] for log in logs if "loss" in log], "eval": [log["eval_loss"] for log in logs if "eval_loss" in log],
        "weights": [p.double().sum().item() for p in run.model.parameters()], "before": run.before.loss,
        "text": run.sample, "text before": run.sample_before}))


@pytest.fixture
def model_folder(tmp_path):
    "With dropout, which draws its own random numbers"
    tiny.gpt2(dropout=0.2).save_pretrained(tmp_path/"model")
    tiny.tokenizer().save_pretrained(tmp_path/"model")
    return tmp_path/"model"


def test_the_seed_decides_everything_and_nothing_else_does(model_folder, cache, tmp_path):
    "In another process with other caches too"
    one, again, other = (whole_run(model_folder, tmp_path/name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    code = "import json, sys, test_determinism as t; print(json.dumps(t.whole_run(sys.argv[1], sys.argv[2], 1)))"
    elsewhere = python(code, str(model_folder), str(tmp_path/"d"), CLM_NB_CACHE=tmp_path/"fresh", PYTHONHASHSEED=7)
    assert json.loads(answer(elsewhere).splitlines()[-1]) == one == again
    assert [key for key in one if one[key] == other[key]] == []
