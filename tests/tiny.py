"Tiny random models, tokenizers and splits for the tests: no network, milliseconds to make"
import sys, traceback
from pathlib import Path
import pytest, torch, transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from datasets import Dataset, Features, List, Value
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from clm_nb.model.device import has_bf16
from clm_nb.data.tokenizer import train_tokenizer

needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="no bf16 here: this CPU has none, or CLM_NB_PRECISION=float32")
bf16_or_not = [False, pytest.param(True, marks=needs_bf16)]

patience = 600  # seconds until what never comes is given up: no test asks a busy machine to be quick

texts = ["The quick brown fox jumps over the lazy dog.\nIt wasn't the first time, and won't be the last.",
         "Naïve café: 日本語 🙂. A list of 12,345 numbers (or more).", "def f(x):\n    return x + 1\n"]*3


def tokenizer(bos=False, eos=True):
    "A byte-level tokenizer of 400 tokens that adds BOS by itself, has no EOS, or neither"
    new = train_tokenizer(texts, vocab_size=400)
    if bos: new.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", 0)])
    if not eos: new.eos_token = new.bos_token = None
    return new


def split_of(lists):
    "Documents of token ids, as `tokenize` leaves them"
    return Dataset.from_dict({"input_ids": lists}, features=Features(input_ids=List(Value("int32"))))


def gpt2(dropout=0.0, **kwargs):
    torch.manual_seed(0)
    config = dict(vocab_size=400, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                  initializer_range=0.3, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return GPT2LMHeadModel(GPT2Config(**config | kwargs)).eval()


def llama(**kwargs):
    torch.manual_seed(0)
    config = dict(vocab_size=400, max_position_embeddings=256, hidden_size=32, intermediate_size=64,
                  num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0,
                  initializer_range=0.3)
    return LlamaForCausalLM(LlamaConfig(**config | kwargs)).eval()


families = {"gpt2": gpt2, "llama": llama}
shape = dict(vocab_size=400, max_position_embeddings=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=1, head_dim=16, bos_token_id=0, eos_token_id=0, pad_token_id=0,
             initializer_range=0.3)


def auto(kind, **kwargs):
    "A model of another family, by the name of its configuration: Qwen2, Mixtral, …"
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape | kwargs)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


class Seen(TorchDispatchMode):
    "(type, shape) of every tensor that an operation makes inside"
    def __init__(self):
        super().__init__()
        self.tensors = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.tensors |= {(t.dtype, tuple(t.shape)) for t in tree_leaves(out) if torch.is_tensor(t)}
        return out


class Questions(TorchDispatchMode):
    "(operation, file) each time that the device is asked for numbers, and a GPU would be waited for; the file is that of the caller"
    asking = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::").split(".")[0]
        by = args[1] if name in ("index", "index_put_", "_index_put_impl_") else []
        if name in self.asking or any(t is not None and t.dtype == torch.bool for t in by):
            files = [Path(frame.filename) for frame in traceback.extract_stack()[:-1] if "torch" not in Path(frame.filename).parts]
            self.asked.append((name, "/".join(files[-1].parts[-2:])))
        return operation(*args, **(kwargs or {}))


def everywhere(monkeypatch, module, name: str, new):
    "Put `new` in the place of a function wherever in clm_nb it was imported"
    old = getattr(module, name)
    for other in [m for n, m in sys.modules.items() if n.split(".")[0] == "clm_nb"]:
        if vars(other).get(name) is old: monkeypatch.setattr(other, name, new)
