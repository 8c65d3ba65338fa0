"Where and in which precision is computed: the hardware decides, then who asks, and nothing else is ever computed"
import pytest, torch
from datasets import DatasetDict, concatenate_datasets
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments
import clm_nb.generate, clm_nb.model.device
from clm_nb.generate import generate, stream
from clm_nb.perplexity import perplexity
from clm_nb.probe import tell
from clm_nb.training.lr_finder import find_lr
from clm_nb.model.device import best_device, device_and_precision, grants_bf16, has_bf16, matmul_rate
from clm_nb.training.settings import fit_batch, training_settings
from clm_nb.train import train
from short_runs import large, make_blocks, run
from tiny import everywhere, needs_bf16, tokenizer


def test_the_rate_of_products_is_a_rate_and_measured_once():
    rate = matmul_rate("cpu", torch.float32)
    assert 1e8 < rate < 1e15 and matmul_rate("cpu", torch.float32) == rate


@pytest.fixture
def machine(monkeypatch, caplog, capsys):
    "A machine as it is described: `machine(bf16=…, gpu=…, fp16=…, kernels=…)`; `machine.said()` is what the user was told"
    def forget():
        for function in (tell, clm_nb.model.device.cuda_runs, clm_nb.model.device._fp16_pays): function.cache_clear()
    def be(bf16=False, gpu=None, fp16=1.0, error=None):
        "A GPU by its name; how fast fp16 is beside float32; what the first kernel raises"
        def run_a_kernel():
            if error: raise error
        everywhere(monkeypatch, clm_nb.model.device, "hardware_has_bf16", lambda device: bf16)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(clm_nb.model.device, "_run_a_kernel", run_a_kernel)
        everywhere(monkeypatch, clm_nb.model.device, "matmul_rate", lambda device, dtype: fp16 if dtype == torch.float16 else 1.0)
        forget()
    def said():
        lines = caplog.messages + capsys.readouterr().err.splitlines()
        caplog.clear()
        return lines
    be.said = said
    monkeypatch.delenv("CLM_NB_PRECISION", raising=False)
    forget()
    yield be
    forget()


def precisions(**given):
    found = training_settings(**given)
    return tuple(found[name] for name in ("use_cpu", "bf16", "fp16"))


def test_the_hardware_decides_where_and_in_which_precision(machine):
    for bf16, fp16, expected in ((True, 9, "bf16"), (False, 4.1, "fp16"), (False, 0.9, "float32")):
        machine(bf16, "Tesla T4", fp16)
        for _ in range(2): assert device_and_precision() == ("cuda", expected)
        assert precisions() == (False, expected == "bf16", expected == "fp16")
        line = f"Tesla T4 has no bf16, and its fp16 is {fp16:.1f} times as fast as its float32: training uses {expected}."
        assert machine.said() == ([] if bf16 else [line])
    for bf16 in (True, False):
        machine(bf16)
        assert device_and_precision() == ("cpu", "bf16" if bf16 else "float32") and precisions() == (True, bf16, False)
    assert not machine.said()


def test_what_is_asked_for_goes_first_where_the_hardware_has_it(machine):
    machine(False, "Tesla T4", 4.1)
    assert precisions(fp16=False) == precisions(bf16=False) == (False, False, False)
    assert precisions(fp16=True) == (False, False, True) and precisions(use_cpu=True) == (True, False, False)
    machine(True, "H200")
    assert precisions(fp16=True) == (False, False, True) and precisions(bf16=False) == (False, False, False)
    assert precisions(bf16=True) == (False, True, False)


def test_a_gpu_without_kernels_is_named_and_the_cpu_taken(machine):
    missing = RuntimeError("CUDA error: no kernel image is available for execution on the device")
    machine(False, "Tesla P100-PCIE-16GB", 2.0, missing)
    for _ in range(2): assert best_device() == "cpu" and precisions() == (True, False, False)
    (line,) = machine.said()
    assert "no kernels for this GPU (Tesla P100-PCIE-16GB): the CPU is used" in line
    machine(True, "H200", error=torch.OutOfMemoryError("CUDA out of memory"))
    assert best_device() == "cuda" and not machine.said()


@pytest.mark.parametrize("gpu", [None, "Tesla T4"])
def test_bf16_by_name_is_given_or_told_in_one_line(gpu, machine):
    device, kind = ("cuda", "GPU") if gpu else ("cpu", "CPU")
    machine(True, gpu)
    assert grants_bf16(device) and precisions(bf16=True, bf16_full_eval=True) == (not gpu, True, False)
    assert not machine.said()
    machine(False, gpu, 4.1)
    for _ in range(2):
        settings = training_settings(bf16=True, bf16_full_eval=True)
        assert not any(settings[name] for name in ("bf16", "bf16_full_eval", "fp16"))
    assert f"bf16 was asked for, but this {kind} has none: float32 is used." in machine.said()
    assert grants_bf16("mps")


@pytest.mark.parametrize("name", ["fp16", "fp16_full_eval"])
def test_fp16_on_a_cpu_is_refused_before_any_work(name, machine):
    machine(True)
    with pytest.raises(ValueError, match=f"{name}=True takes minutes") as error: training_settings(**{name: True})
    assert "\n" not in str(error.value)
    machine(True, "H200")
    assert training_settings(**{name: True})[name] is True
    with pytest.raises(ValueError, match=f"{name}=True takes minutes"): training_settings(use_cpu=True, **{name: True})


@pytest.mark.parametrize("gpu", [None, "Tesla T4"])
def test_the_environment_decides(gpu, machine, monkeypatch):
    device = "cuda" if gpu else "cpu"
    for asked, bf16, expected in (("float32", True, "float32"), ("float32", False, "float32"), ("bf16", True, "bf16"),
                                  ("bf16", False, "float32"), ("", True, "bf16")):
        monkeypatch.setenv("CLM_NB_PRECISION", asked)
        machine(bf16, gpu, 4.1)
        for _ in range(2): assert device_and_precision() == (device, expected) and has_bf16(device) is (expected == "bf16")
        said = machine.said()
        assert len(said) == (asked == "bf16" and not bf16) and all("CLM_NB_PRECISION=bf16, but" in line for line in said)
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    machine(True, gpu)
    assert not grants_bf16(device) and machine.said() == ["bf16 was asked for, but CLM_NB_PRECISION=float32: float32 is used."]
    monkeypatch.setenv("CLM_NB_PRECISION", "fp8")
    for ask in (device_and_precision, training_settings, lambda: grants_bf16(device)):
        with pytest.raises(ValueError, match="CLM_NB_PRECISION=fp8 .* Use float32 or bf16"): ask()


class Halves(TorchDispatchMode):
    "Counts operations that take or make numbers of 16 bits"
    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        kinds = {t.dtype for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t)}
        self.count += bool(kinds & {torch.bfloat16, torch.float16})
        return out


def in_sight(monkeypatch, mode):
    "What `stream` does in its thread counts, too"
    work = clm_nb.model.turns.Turns.work
    def watched(self, run):
        with mode: work(self, run)
    monkeypatch.setattr(clm_nb.model.turns.Turns, "work", watched)


everything = {
    "train": lambda path, **how: train(large(), DatasetDict(train=make_blocks(), test=make_blocks()), tokenizer(), path,
                                       max_steps=1, eval_strategy="steps", eval_steps=1, use_cpu=True, **how),
    "perplexity": lambda path, **how: perplexity(large(), concatenate_datasets([make_blocks()]*12), **how),
    "generate": lambda path, **how: generate(large(), tokenizer(), ["The", "def f(x)"], max_new_tokens=4, seed=0, **how),
    "stream": lambda path, **how: list(stream(large(), tokenizer(), "The", max_new_tokens=4, seed=0, **how)),
    "fit_batch": lambda path, **how: fit_batch(large(), TrainingArguments(str(path), **training_settings(use_cpu=True, **how)), 8),
    "find_lr": lambda path, **how: find_lr(large(), DatasetDict(train=make_blocks()), tokenizer(), 1e-5, 1e-3, 20, use_cpu=True, **how),
    "matmul_rate": lambda path, **how: matmul_rate.__wrapped__("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("what", everything)
def test_what_is_not_to_be_had_is_never_computed(what, tmp_path, monkeypatch):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    asked = [{}] if what == "matmul_rate" else [{}, dict(bf16=True)]
    for how in asked:
        with Halves() as seen:
            in_sight(monkeypatch, seen)
            everything[what](tmp_path/str(how), **how)
        assert seen.count == 0


@needs_bf16
@pytest.mark.parametrize("what", everything)
def test_and_otherwise_it_is(what, tmp_path, monkeypatch):
    with Halves() as seen:
        in_sight(monkeypatch, seen)
        everything[what](tmp_path)
    assert seen.count > 0
