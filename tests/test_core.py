"`from clm_nb.core import *` is the whole library; `import clm_nb` is next to nothing"
from importlib import import_module

import pytest
from conftest import answer, python
from tree import root

stages = sorted({p.stem for p in (root/"clm_nb").glob("*.py")} - {"__init__", "_modidx", "core", "cli"})


@pytest.mark.parametrize("stage", stages)
def test_every_public_name_is_in_core(stage):
    core, module = import_module("clm_nb.core"), import_module(f"clm_nb.{stage}")
    assert module.__all__ and set(module.__all__) <= set(core.__all__)
    for name in module.__all__: assert getattr(core, name) is getattr(module, name)


def test_no_two_stages_share_a_name():
    names = [name for stage in stages for name in import_module(f"clm_nb.{stage}").__all__]
    assert len(names) == len(set(names))
    assert {"finetune", "prepare", "Run"} <= set(import_module("clm_nb.core").__all__)


def test_star_import_gives_functions_and_not_modules():
    names = {}
    exec("from clm_nb.core import *", names)
    for name in ("load_corpus", "flatten", "tokenize", "group", "train", "perplexity", "generate", "finetune"):
        assert callable(names[name]), name
    assert not [name for name in names if name.startswith("_") and name != "__builtins__"]


heavy = "torch", "transformers", "datasets", "numpy", "pyarrow", "matplotlib"


def test_import_is_light():
    stages = "load", "flatten", "tokenize", "group", "collate", "perplexity", "baselines", "cli"
    modules = ", ".join(["clm_nb", *(f"clm_nb.{name}" for name in stages)])
    assert answer(python(f"import sys, {modules}\nprint([m for m in {heavy} if m in sys.modules])")).strip() == "[]"


def test_a_repeated_run_is_not_pushed_again(tmp_path):
    import json
    from clm_nb.core import run_arguments
    told = dict(push_to_hub=True, hub_model_id="me/run", hub_strategy="every_save", learning_rate=1e-3)
    run = dict(source=dict(dataset_name="python-docs"), training_arguments=told, block_size=16, data={})
    (tmp_path/"run.json").write_text(json.dumps(run))
    assert run_arguments(tmp_path) == dict(dataset_name="python-docs", learning_rate=1e-3, block_size=16, data_digest={})
