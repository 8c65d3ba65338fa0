"`from clm_nb.core import *` is the whole library; `import clm_nb` is next to nothing"
from importlib import import_module

import pytest
from conftest import answer, python
from tree import root

def test_the_face_is_literal_short_and_whole():
    "Tools read `__all__` without running the module"
    import ast
    core = import_module("clm_nb.core")
    tree = ast.parse((root/"clm_nb/core.py").read_text(encoding="utf-8"))
    [literal] = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]
    assert literal == core.__all__ and len(set(literal)) == len(literal) and 40 <= len(literal) <= 65
    for name in literal: assert getattr(core, name) is not None


def test_star_import_gives_functions_and_not_modules():
    names = {}
    exec("from clm_nb.core import *", names)
    for name in ("load_corpus", "flatten", "tokenize", "group", "train", "perplexity", "generate", "finetune"):
        assert callable(names[name]), name
    assert not [name for name in names if name.startswith("_") and name != "__builtins__"]


heavy = "torch", "transformers", "datasets", "numpy", "pyarrow", "matplotlib"


def test_import_is_light():
    modules = "clm_nb, clm_nb.cli, clm_nb.arguments, clm_nb.ledger, clm_nb.data.cache"
    assert answer(python(f"import sys, {modules}\nprint([m for m in {heavy} if m in sys.modules])")).strip() == "[]"


def test_a_repeated_run_is_not_pushed_again(tmp_path):
    import json
    from clm_nb.core import run_arguments
    told = dict(push_to_hub=True, hub_model_id="me/run", hub_strategy="every_save", learning_rate=1e-3)
    run = dict(source=dict(dataset_name="python-docs"), training_arguments=told, block_size=16, data={})
    (tmp_path/"run.json").write_text(json.dumps(run), encoding="utf-8")
    assert run_arguments(tmp_path) == dict(dataset_name="python-docs", learning_rate=1e-3, block_size=16, data_digest={})


def test_the_report_of_a_sharded_model_runs_no_model_in_one_process_alone():
    from types import SimpleNamespace
    from datasets import Dataset
    from clm_nb.look.run import run_views
    from clm_nb.core import CausalCollator, load_tokenizer
    blocks = Dataset.from_dict({"input_ids": [[5, 6, 0, 7], [8, 9, 10, 0]]})
    for fsdp, deepspeed in ((True, False), (False, True)):
        trainer = SimpleNamespace(is_fsdp_enabled=fsdp, is_deepspeed_enabled=deepspeed, data_collator=CausalCollator())
        run = SimpleNamespace(tokenizer=load_tokenizer("python-docs-gpt2"), blocks={"train": blocks, "test": blocks}, model=None,
                              trainer=trainer, prompt="a")
        views = run_views(run, make_base=None)
        assert list(views) == ["Blocks", "A batch"] and not any("Not shown" in v._repr_html_() for _, v in views.values())


def test_a_base_that_cannot_be_loaded_again_costs_no_run():
    from types import SimpleNamespace
    from datasets import Dataset
    from clm_nb.look.run import run_views
    from clm_nb.core import CausalCollator, load_tokenizer
    from tiny import gpt2
    def gone(): raise OSError("the base is gone")
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, data_collator=CausalCollator())
    blocks = Dataset.from_dict({"input_ids": [[5, 6, 0, 7, 8, 9], [8, 9, 10, 0, 5, 6]]})
    run = SimpleNamespace(tokenizer=load_tokenizer("python-docs-gpt2"), blocks={"train": blocks, "test": blocks},
                          model=gpt2(vocab_size=4096), trainer=trainer, prompt="a")
    views = run_views(run, gone)
    told = [title for title, (_, view) in views.items() if "the base is gone" in view._repr_html_()]
    assert told == ["Results", "Token by token", "The next token"]
    assert not any("Not shown" in view._repr_html_() for _, view in run_views(run).values())


def test_a_prompt_that_nearly_fills_the_context_is_continued_as_far_as_it_goes(tmp_path):
    from clm_nb.core import finetune
    from tiny import gpt2, texts, tokenizer
    words, records = tokenizer(), [dict(text=f"{text} {i}") for i, text in enumerate(texts*4)]
    gpt2(n_positions=16).save_pretrained(tmp_path/"model")
    words.save_pretrained(tmp_path/"model")
    prompt = words.decode(words(texts[0]).input_ids[:12])
    assert len(words(prompt).input_ids) == 12
    from datasets import Dataset
    run = finetune(Dataset.from_list(records), str(tmp_path/"model"), output_dir=tmp_path/"run", block_size=16, prompt=prompt, max_steps=1,
                   save_strategy="no", eval_strategy="no", disable_tqdm=True)
    assert run.sample.startswith(prompt) and "[no text" not in run.sample
    assert 0 < len(words(run.sample.removeprefix(prompt)).input_ids)
