"The base model that comes with the package: what it is, what it has not read, how it was made"
import hashlib, json, sys

import numpy as np, pyarrow.parquet as pq, pytest, torch

from conftest import answer, python
from clm_nb.flatten import flatten
from clm_nb.data.python_docs import python_docs
from clm_nb.data.leaks import near_duplicates
from clm_nb.load import load_corpus
from clm_nb.perplexity import perplexity
from clm_nb.model.device import has_bf16
from clm_nb.data.hub import base_model_folder
from clm_nb.data.tokenizer import load_tokenizer
from clm_nb.model.model import load_config, load_model
from tiny import Seen, gpt2
from tree import root

sys.path.insert(0, str(root/"tools"/"base"))
import model as recipe

folder = base_model_folder()
figures = json.loads((folder/"figures.json").read_text(encoding="utf-8"))


def sha256(path): return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def texts(): return pq.read_table(root/"tools"/"base"/"texts.parquet")["text"].to_pylist()


def test_the_files_are_those_that_the_figures_are_about():
    assert sha256(folder/"model.safetensors") == figures["weights_sha256"]
    assert sha256(root/"tools"/"base"/"texts.parquet") == figures["texts_sha256"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10*2**20
    assert {"README.md", "config.json", "figures.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    card = (folder/"README.md").read_text(encoding="utf-8")
    for source in figures["sources"]: assert source["release"] in card and source["licence"] in card


def test_it_is_there_without_network_cache_or_wait(tmp_path):
    "no file is made, no lock taken, and nothing trained: a cache folder that can't be made isn't missed"
    code = "from clm_nb.core import load_model, load_tokenizer; m = load_model('python-docs-gpt2'); " \
           "print(m.num_parameters(), m.dtype, len(load_tokenizer('python-docs-gpt2')))"
    (tmp_path/"file").write_text("", encoding="utf-8")
    printed = answer(python(code, CLM_NB_CACHE=tmp_path/"file"/"cache", HF_HUB_OFFLINE="1"))
    assert printed.split() == [str(figures["parameters"]), "torch.float32", str(figures["shape"]["vocab_size"])]


def test_its_name_and_its_folder_are_one_model():
    by_name, by_folder = load_model("python-docs-gpt2"), load_model(folder)
    for one, other in zip(by_name.parameters(), by_folder.parameters(), strict=True): assert torch.equal(one, other)
    assert load_config("python-docs-gpt2").n_positions == by_name.config.n_positions == figures["shape"]["n_positions"]
    assert load_tokenizer("python-docs-gpt2").get_vocab() == load_tokenizer(folder).get_vocab()


def test_it_has_read_no_near_copy_of_the_embedded_corpus(texts):
    corpus = [text for answers in python_docs("task")["answers"] for text in answers["text"]]
    documents = [text for split in flatten(load_corpus("python-docs")).values() for text in split["text"]]
    assert near_duplicates(corpus + documents, texts) == []


def test_a_near_copy_would_be_found(texts):
    copy = max(python_docs("task")["answers"][0]["text"], key=len)
    assert near_duplicates([copy], [*texts[:100], copy.replace("the", "a", 1)])[0][:2] == (0, 100)


def test_the_first_twenty_steps_of_the_recipe_give_the_losses_that_were_seen():
    "on any machine, in bf16 and in float32: to a hundredth of a nat"
    assert recipe.shape == figures["shape"] and recipe.recipe == figures["recipe"]
    table, tokenizer = recipe.read_texts(), load_tokenizer("python-docs-gpt2")
    stream = recipe.token_stream(table[len(table)//100:], tokenizer)
    data = recipe.batches(stream, recipe.recipe["rows"], recipe.recipe["epochs"], recipe.recipe["seed"])
    losses = recipe.pretrain(recipe.new_model(tokenizer), data, figures["steps"], **recipe.how)
    found = [next(losses) for _ in range(20)]
    assert np.allclose(found, figures["first_losses"], atol=0.03), np.abs(np.subtract(found, figures["first_losses"])).max()
    assert found[-1] < found[0] - 1


def muon_step(has: bool, monkeypatch) -> tuple:
    "(what three steps change in a matrix, the dtypes of the last one)"
    monkeypatch.setattr(recipe, "has_bf16", lambda device: has)
    net, ids = gpt2(), torch.arange(200).reshape(2, 100)
    weight = net.transformer.h[0].mlp.c_fc.weight
    start = weight.detach().clone()
    parts = recipe.optimizers(net, 1e-2, 1e-3, 0.1)
    for _ in range(3):
        net.zero_grad()
        net(ids, labels=ids).loss.backward()
        with Seen() as used:
            for part in parts: part.step()
    return weight.detach() - start, {dtype for dtype, _ in used.tensors}


def test_muon_computes_in_bf16_only_where_the_hardware_does(monkeypatch):
    step, dtypes = muon_step(False, monkeypatch)
    assert torch.bfloat16 not in dtypes
    if has_bf16("cpu"):
        rough, dtypes = muon_step(True, monkeypatch)
        assert torch.bfloat16 in dtypes and (step - rough).norm() < 0.05*step.norm()


@pytest.mark.skipif(not has_bf16("cpu"), reason="PyTorch's Muon computes in bf16, which this CPU has not")
def test_muon_is_pytorchs():
    "one step on the same gradient as `torch.optim.Muon`, whose products are in bf16"
    torch.manual_seed(0)
    for shape in ((8, 24), (24, 8)):
        start, gradient = torch.randn(shape), torch.randn(shape)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        for weight, optimizer in ((ours, recipe.Muon([ours], 1e-2, 0.1)), (theirs, torch.optim.Muon(
                [theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))):
            for _ in range(2):
                weight.grad = gradient.clone()
                optimizer.step()
        assert torch.allclose(ours, theirs, atol=0.05*(theirs - start).abs().max().item())


def test_fine_tuning_leaves_base_and_fivegram_behind():
    "on the corpus of this Python, by margins that hold in float32 and bf16"
    from clm_nb.model.baselines import baselines
    from clm_nb.core import prepare
    from clm_nb.train import embedded_run
    tokenizer = load_tokenizer("python-docs-gpt2")
    blocks = prepare("python-docs", tokenizer)
    counted = baselines(blocks, len(tokenizer), orders=(5,))["5-gram"].perplexity
    before, after = (perplexity(load_model(name), blocks["test"]) for name in ("python-docs-gpt2", embedded_run()))
    assert after.interval[1] < before.interval[0], "what chance may do to either figure doesn't explain the difference"
    assert after.perplexity < counted/2
