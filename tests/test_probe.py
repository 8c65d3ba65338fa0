"Each quick way that knows the inside of a library: broken on purpose, the losses and texts are the same, and one line says why"
import json

import datasets, pytest, torch
from datasets import Dataset, DatasetDict, Features, List, Value
from tokenizers import Tokenizer
from transformers import Trainer
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer

import clm_nb.collate, clm_nb.data.encoders, clm_nb.generate, clm_nb.model.activation, clm_nb.model.inference, clm_nb.model.loss, clm_nb.probe, clm_nb.tokenize
from clm_nb.collate import BlockRows
from clm_nb.data.cache import content_key
from clm_nb.generate import generate
from clm_nb.model.activation import gelu_works
from clm_nb.model.packed import can_pack
from clm_nb.perplexity import perplexity
from clm_nb.probe import forget, tested, trouble, untested, version_lines, works
from clm_nb.data.encoders import tokenizer_json
from clm_nb.tokenize import tokenize
from clm_nb.train import train
from tiny import everywhere, gpt2, llama, needs_bf16, texts, tokenizer

datasets.disable_progress_bars()


pytestmark = pytest.mark.usefixtures("asked_anew")


def said(caplog): return [record.message for record in caplog.records if record.name == "clm_nb"]


def one_line(caplog, *words):
    line, = said(caplog)
    assert "\n" not in line and all(word in line for word in words), line


def gone(*args, **kwargs): raise TypeError("update() got an unexpected keyword argument 'layer'")


# The mechanism

def test_a_way_is_asked_once_and_its_fault_is_said_once(caplog):
    asked = []
    def check(): return asked.append(1)
    for _ in range(3): assert not works("a way", check, "It is slower", "torch")
    assert len(asked) == 1
    one_line(caplog, "It is slower: a way gives other results here.")
    assert works("a way", lambda: True, "It is slower", key="another")


def test_an_untested_version_is_named(monkeypatch, caplog):
    monkeypatch.setattr(clm_nb.probe, "installed", lambda library: "99.1.2")
    assert not works("a way", gone, "It is slower", "transformers")
    one_line(caplog, "fails here (TypeError: update() got an unexpected", "transformers 99.1.2 wasn't tested; 5.17 to")
    assert sum("(not tested)" in line for line in version_lines()) == len(tested)


@pytest.mark.parametrize("found,right", [("5.16.9", False), ("5.17.0", True), ("5.24.9", True), ("5.25.0", False),
                                         ("6.0.0", False), ("5.24.0.dev0", True), (None, False)])
def test_what_counts_as_tested(found, right, monkeypatch):
    monkeypatch.setitem(tested, "transformers", ("5.17", "5.24"))
    monkeypatch.setattr(clm_nb.probe, "installed", lambda library: found)
    assert bool(untested("transformers")) is not right


# Drawing

def drawn(**options): return generate(gpt2(), tokenizer(), ["The quick brown", "def"], max_new_tokens=30, seed=1, bf16=None, **options)


@pytest.mark.parametrize("method,new", [("lazy_initialization", gone), ("get_seq_length", lambda self: 1),
                                        ("batch_select_indices", gone)])
def test_a_cache_whose_layers_have_changed_is_not_replaced(method, new, monkeypatch, caplog):
    text = drawn()
    forget()
    monkeypatch.setattr(clm_nb.model.inference.RoomyLayer, method, new)  # what it would inherit
    assert drawn() == text
    one_line(caplog, "Several prompts take longer, with the usual cache: a cache with room")


@needs_bf16
@pytest.mark.parametrize("how", ["back to float32", "an error"])
def test_a_cache_that_does_not_stay_in_bf16_is_left_in_float32(how, monkeypatch, caplog):
    model, tok = gpt2(n_embd=256), tokenizer()
    everywhere(monkeypatch, clm_nb.model.inference, "bf16_pays", lambda model: True)
    def draw(**options): return generate(model, tok, "The", max_new_tokens=12, seed=1, **options)
    update = DynamicLayer.update
    def keeps_its_type(self, keys, values, *args, **kwargs):
        if how == "an error" and self.is_initialized and self.keys.dtype != keys.dtype: raise RuntimeError("expected scalar type")
        return update(self, keys.float(), values.float(), *args, **kwargs)
    monkeypatch.setattr(clm_nb.generate, "grants_bf16", lambda device: False)
    text = draw()
    monkeypatch.undo()
    everywhere(monkeypatch, clm_nb.model.inference, "bf16_pays", lambda model: True)
    monkeypatch.setattr(DynamicLayer, "update", keeps_its_type)
    assert draw() == text
    one_line(caplog, "Texts take longer, in float32: a cache brought to bf16")


@pytest.mark.skipif(not can_pack(), reason="no MKL here")
@pytest.mark.parametrize("new", [gone, lambda x, packed, weight, bias, rows: torch.zeros(rows, len(weight)),
                                 lambda x, packed, weight, bias, rows: (x @ weight.T + bias).double()])
def test_packed_layers_that_give_something_else_are_not_used(new, monkeypatch, caplog):
    monkeypatch.setattr(clm_nb.generate, "packing_pays", lambda *args: False)
    text = drawn()
    monkeypatch.setattr(clm_nb.generate, "packing_pays", lambda *args: True)
    monkeypatch.setattr(clm_nb.generate, "bf16_pays", lambda model: False)
    monkeypatch.setattr(torch.ops.mkl, "_mkl_linear", new)
    forget()
    assert drawn() == text
    one_line(caplog, "with the layers as they are: a layer in the processor's order in float32")


@pytest.mark.skipif(not can_pack(half=True), reason="no bf16 here")
@pytest.mark.parametrize("new", [gone, lambda x, packed, bias, *args: bias.expand(len(x), -1)*2,
                                 lambda x, packed, bias, *args: bias.expand(len(x), -1).double()])
def test_layers_packed_in_bf16_that_give_something_else_are_not_used(new, monkeypatch, caplog):
    monkeypatch.setattr(clm_nb.generate, "bf16_pays", lambda model: True)
    monkeypatch.setattr(clm_nb.generate, "packing_pays", lambda *args: False)
    text = drawn()
    monkeypatch.setattr(clm_nb.generate, "packing_pays", lambda *args: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", new)
    forget()
    assert drawn() == text
    one_line(caplog, "with the layers as they are: a layer in the processor's order in bf16")


# Losses

def blocks(rows=12, block=16):
    ids = torch.Generator().manual_seed(0)
    kept = Features(input_ids=List(Value("int32"), length=block))
    data = Dataset.from_dict({"input_ids": torch.randint(1, 400, (rows, block), generator=ids).tolist()}, features=kept)
    return DatasetDict(train=data, test=data)


short = dict(max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=4, logging_steps=1, eval_strategy="steps",
             eval_steps=3, save_strategy="no", bf16=False, learning_rate=1e-3, use_cpu=True, disable_tqdm=True)


def losses(folder, model=None):
    history = train(model or llama(), blocks(), tokenizer(), folder, **short).state.log_history
    return [log[name] for log in history for name in ("loss", "eval_loss") if name in log]


class TheirModel(type(llama())):
    "A base model that gives something else than before"
    change = None

    @property
    def base_model(self): return self.change or super().base_model


@pytest.mark.parametrize("change", [gone, lambda *args, **kwargs: (torch.zeros(1),)])
def test_a_model_whose_inside_has_changed_makes_logits(change, tmp_path, caplog):
    right, exact = losses(tmp_path/"right"), perplexity(llama(), blocks()["test"]).loss
    model = llama()
    model.__class__ = type(type(model).__name__, (TheirModel,), dict(change=staticmethod(change)))
    assert losses(tmp_path/"changed", model) == pytest.approx(right, rel=1e-5)
    changed = llama()
    changed.__class__ = model.__class__
    assert perplexity(changed, blocks()["test"]).loss == pytest.approx(exact, rel=1e-6)
    one_line(caplog, "Losses take more memory and time, by way of logits: LlamaForCausalLM without them")


changes = {
    "arguments of reduce": ("accelerate.Accelerator.reduce", gone),
    "what evaluation gives": ("clm_nb.training.trainer.perplexity_hooks", lambda: {}),
}


@pytest.mark.parametrize("change", changes)
def test_where_the_trial_fails_the_plain_trainer_gives_the_same_losses(change, tmp_path, monkeypatch, caplog):
    right = losses(tmp_path/"right")
    assert counting_is_ours(tmp_path/"ours")
    forget()
    monkeypatch.setattr(*changes[change])
    assert losses(tmp_path/"changed") == pytest.approx(right, rel=1e-3)
    one_line(caplog, "with the losses of Trainer itself: CausalTrainer")


def counting_is_ours(folder):
    "Whether the trainer of a run is the one that counts predictions"
    return type(train(llama(), blocks(), tokenizer(), folder, **short | dict(max_steps=1))).__name__ == "CausalTrainer"


def test_a_method_that_is_no_longer_asked_is_found_out(tmp_path, monkeypatch, caplog):
    "Then Trainer divides by one token too many: only the gradient tells"
    other = Trainer._get_num_items_in_batch
    monkeypatch.setattr(Trainer, "get_batch_samples", lambda self, rows, n, device: (
        lambda batches: (batches, other(self, batches, device)))([next(rows) for _ in range(n)]))
    assert not counting_is_ours(tmp_path)
    one_line(caplog, "gives other results here")


formula = NewGELUActivation.forward


@pytest.mark.parametrize("change", [lambda self, x: formula(self, x) + 0.01*x, gone])
def test_a_gelu_that_has_changed_stays_as_it_is(change, monkeypatch, caplog):
    model, data = gpt2(), blocks()["test"]
    monkeypatch.setattr(NewGELUActivation, "forward", change)
    if change is gone: assert not gelu_works()
    else:
        right = perplexity(model, data).loss
        monkeypatch.setattr(clm_nb.model.activation, "written_out", ())
        assert perplexity(model, data).loss == right
    one_line(caplog, "Training and perplexity take longer, with a GELU in eight: a GELU in one operation")


# Data

class WithoutFingerprint:
    "A data set as a later version may make it"
    def __init__(self, data): self.iter = data.iter


def test_data_without_a_fingerprint_is_known_by_its_rows(caplog):
    data = blocks()["train"]
    key = content_key(WithoutFingerprint(data))
    assert key == content_key(WithoutFingerprint(blocks()["train"])) != content_key(WithoutFingerprint(data.select(range(11))))
    one_line(caplog, "Finding earlier results takes longer, by reading the data: its own fingerprint fails here")
    assert content_key(data) == data._fingerprint


def test_rows_that_cannot_be_read_from_the_file_come_from_datasets(monkeypatch, caplog):
    data = blocks()["train"]
    def wrong(self, i): return {"input_ids": [0]}
    monkeypatch.setattr(BlockRows, "__getitem__", wrong)
    rows = BlockRows.of(data)
    assert isinstance(rows, Dataset) and rows[3]["input_ids"].tolist() == data[3]["input_ids"]
    one_line(caplog, "Rows are read more slowly, by datasets")


@pytest.mark.parametrize("change", ["order", "blanks"])
def test_a_tokenizer_whose_json_is_written_otherwise_is_read_whole(change, monkeypatch, caplog, cache):
    documents = DatasetDict(train=Dataset.from_dict({"text": texts}))
    right = tokenize(documents, tokenizer())["train"]["input_ids"][:]
    write = Tokenizer.to_str
    class Others:
        "What `tokenizers` writes, in another way"
        def __init__(self, *args): self.text = write(Tokenizer(*args))
        def to_str(self):
            spec = json.loads(self.text)
            if change == "order": return json.dumps({"model": spec.pop("model")} | spec, separators=(",", ":"))
            return json.dumps(spec)
    spec = json.loads(tokenizer_json(tokenizer()))
    forget()
    monkeypatch.setattr(clm_nb.data.encoders, "Tokenizer", Others)
    text = Others.to_str(type("", (), dict(text=write(tokenizer().backend_tokenizer))))
    found, model = clm_nb.data.encoders.read_json(text)
    assert {**found, "model": json.loads(model[:-1])} == json.loads(text) and json.loads(model[:-1]) == spec["model"]
    monkeypatch.undo()
    assert tokenize(documents, tokenizer())["train"]["input_ids"][:] == right
    one_line(caplog, "Reading a tokenizer takes longer: cutting its JSON")


@pytest.mark.parametrize("change", ["gone", "other ids", "other layout"])
def test_an_encoder_that_has_changed_is_not_used(change, monkeypatch, caplog, cache):
    documents, tok = DatasetDict(train=Dataset.from_dict({"text": texts})), tokenizer()
    right = tokenize(documents, tok, encoder="tokenizers")["train"]["input_ids"][:]
    make = clm_nb.tokenize.encode_function
    def changed(spec, encoder):
        encode = make(spec, encoder)
        def others(texts):
            ids, offsets = encode(texts)
            return ([i + 1 for i in ids], offsets) if change == "other ids" else (ids, None)
        if encoder == "tokenizers": return encode
        if change == "gone": raise AttributeError("module 'gigatoken' has no attribute 'Tokenizer'")
        return others
    monkeypatch.setattr(clm_nb.tokenize, "encode_function", changed)
    assert tokenize(documents, tok)["train"]["input_ids"][:] == right
    one_line(caplog, "Encoding takes longer, with tokenizers: gigatoken fails here")
