"What was made fast gives the results of what it stands for, and is really used: types, calls and sizes, never a time"
import functools, itertools, json, pickle, shutil, tracemalloc
from collections import Counter

import datasets, numpy as np, pyarrow as pa, pytest, torch, transformers
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets, load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainingArguments
import clm_nb.generate, clm_nb.model.device, clm_nb.model.inference, clm_nb.model.loss, clm_nb.tokenize, clm_nb.train, clm_nb.training.watch
from clm_nb.collate import BlockRows, CausalCollator
from clm_nb.model.sampling import sampling_probabilities
from clm_nb.generate import generate, stream
from clm_nb.perplexity import perplexity
from clm_nb.training.lr_finder import find_lr
from clm_nb.model.device import best_device, device_and_precision, grants_bf16, has_bf16, matmul_rate
from clm_nb.model.model import training_flops
from clm_nb.model.loss import fused_loss, linear_cross_entropy, linear_losses, output_layer
from clm_nb.model.inference import PackedLinear, bf16_pays, in_bf16, packing_pays, with_packed_layers
from clm_nb.tokenize import choose_encoder, tokenize_batch, tokenizer_json
from clm_nb.training.settings import fit_batch, training_settings
from clm_nb.train import train
from tiny import Seen, everywhere, bf16_or_not, families, gpt2, llama, needs_bf16, texts, tokenizer

datasets.disable_progress_bars()
rng = np.random.default_rng(0)


@pytest.fixture
def counted(monkeypatch):
    "Counts the calls of functions: `counted(module, name)` from then on, `counted.calls[name]`"
    def count(module, name):
        function = getattr(module, name)
        def spy(*args, **kwargs):
            count.calls[name] += 1
            return function(*args, **kwargs)
        everywhere(monkeypatch, module, name, spy)
    count.calls = Counter()
    return count


def small_parts(monkeypatch, tokens, rows=10**9):
    "The loss, so many tokens at a time, of which so many at a time become float32"
    cut = lambda n: lambda a, b, *_: zip(a.split(n), b.split(n))
    monkeypatch.setattr(clm_nb.model.loss, "token_parts", cut(tokens))
    monkeypatch.setattr(clm_nb.model.loss, "rows_at_once", cut(rows))


def layer(tokens, width, vocabulary, dtype=torch.float32):
    "(hidden, weight, targets)"
    torch.manual_seed(tokens)
    make = lambda *shape: torch.randn(*shape, dtype=dtype).requires_grad_()
    return make(tokens, width), make(vocabulary, width), torch.randint(vocabulary, (tokens,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens,width,vocabulary", [(0, 3, 5), (1, 3, 5), (7, 1, 2), (23, 8, 31), (4, 5, 1)])
@pytest.mark.parametrize("part,rows", [(10**9, 10**9), (3, 2), (1, 1)])
def test_the_loss_is_that_of_the_logits_in_parts_of_any_size(tokens, width, vocabulary, part, rows, dtype, monkeypatch):
    hidden, weight, targets = layer(tokens, width, vocabulary, dtype)
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    each = cross_entropy(h @ w.T, targets, reduction="none")
    (each.sum()*2.5).backward()
    small_parts(monkeypatch, part, rows)
    total = linear_cross_entropy(hidden, weight, targets)
    (total*2.5).backward()
    with torch.no_grad(): losses = linear_losses(hidden, weight, targets)
    close = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    close(total.detach(), each.detach().sum())
    close(losses, each.detach())
    close(hidden.grad, h.grad)
    close(weight.grad, w.grad)
    assert (total.dtype, losses.dtype, hidden.grad.dtype) == (torch.float32, torch.float32, dtype)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen):
    plain, half = layer(9, 4, 11), layer(9, 4, 11)
    half[frozen].requires_grad_(False)
    for inputs in (plain, half): linear_cross_entropy(*inputs).backward()
    assert half[frozen].grad is None and torch.equal(half[1 - frozen].grad, plain[1 - frozen].grad)


def test_a_frozen_weight_costs_no_gradient_of_it():
    hidden, weight, targets = layer(9, 4, 11)
    with Seen() as seen: linear_cross_entropy(hidden, weight.requires_grad_(False), targets).backward()
    assert (torch.float32, (9, 11)) in seen.tensors and (torch.float32, (11, 4)) not in seen.tensors


def test_backward_twice_gives_the_gradients_twice():
    hidden, weight, targets = layer(9, 4, 11)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    once = [x.grad.clone() for x in (hidden, weight)]
    (loss*3).backward()
    for x, grad in zip((hidden, weight), once): torch.testing.assert_close(x.grad, 4*grad)


def test_a_second_derivative_is_an_error_not_a_wrong_number():
    hidden, weight, targets = layer(9, 4, 11)
    grad, = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError): grad.square().sum().backward()


@needs_bf16
def test_in_autocast_the_products_are_bf16_and_the_sums_float32(monkeypatch):
    small_parts(monkeypatch, 50)
    hidden, weight, targets = layer(200, 16, 31)
    h, w = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    linear_cross_entropy(h, w, targets).backward()
    with Seen() as seen, torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        with torch.no_grad(): losses = linear_losses(hidden, weight, targets)
    loss.backward()
    assert (torch.bfloat16, (50, 31)) in seen.tensors and loss.dtype == losses.dtype == torch.float32
    assert losses.sum().item() == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in ((hidden, h), (weight, w)):
        assert mine.grad.dtype == torch.float32 and (mine.grad - theirs.grad).norm() < 1e-2*theirs.grad.norm()


def test_a_part_is_2_to_the_26_logits_and_what_is_float32_at_once_2_to_the_20():
    weight, hidden, targets = torch.empty(1, 2).expand(2**20, 2), torch.empty(150, 2), torch.empty(150)
    assert [len(h) for h, _ in clm_nb.model.loss.token_parts(hidden, targets, weight)] == [64, 64, 22]
    logits = torch.empty(1, 1).expand(10, 2**18)
    assert [len(row) for row, _ in clm_nb.model.loss.rows_at_once(logits, targets[:10])] == [4, 4, 2]
    for n, most in ((2**27, 1), (1, 150)):
        assert len(next(clm_nb.model.loss.token_parts(hidden, targets, torch.empty(1, 2).expand(n, 2)))[0]) == most


def make_blocks(kind="full", rows=24, block=16):
    "Blocks that are full, padded, or of documents kept apart, as `group` leaves them"
    columns = dict(input_ids=rng.integers(1, 400, (rows, block)))
    kinds = dict(input_ids="int32")
    lengths = rng.integers(3, block, rows)
    text = np.arange(block) < lengths[:, None]
    if kind == "padded": columns["attention_mask"], kinds["attention_mask"] = text, "int8"
    if kind == "apart":
        begins = np.where(text, 0, lengths[:, None])
        columns["position_ids"], kinds["position_ids"] = np.arange(block) - begins, "uint8"
    features = Features({name: List(Value(kind), length=block) for name, kind in kinds.items()})
    return Dataset.from_dict({name: list(column) for name, column in columns.items()}, features=features)


short = dict(max_steps=3, per_device_train_batch_size=4, logging_steps=1, eval_strategy="no", save_strategy="no",
             disable_tqdm=True, bf16=False, optim="sgd", learning_rate=0.3,
             weight_decay=0.0, lr_scheduler_type="constant")


def run(folder, model, data=None, **settings):
    data = data or make_blocks()
    data = data if isinstance(data, dict) else DatasetDict(train=data, test=data)
    return train(model, data, tokenizer(), folder, **short | settings)


def losses(trainer, key="loss"): return [log[key] for log in trainer.state.log_history if key in log]


def parameters(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loss(model, batch):
    "The summed loss of the predicted tokens, through the logits"
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), reduction="sum")


def bare_loop(model, batches, accumulation):
    "The losses of `short`'s training on these micro-batches in PyTorch alone; the model is trained"
    optimizer, found = torch.optim.SGD(model.train().parameters(), lr=short["learning_rate"]), []
    for i in range(0, short["max_steps"]*accumulation, accumulation):
        step = batches[i:i + accumulation]
        tokens = sum((b["labels"][:, 1:] != -100).sum() for b in step)
        parts = [plain_loss(model, b)/tokens for b in step]
        sum(parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(sum(parts).item())
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
@pytest.mark.parametrize("family", families)
def test_training_without_logits_is_a_bare_loop_with_them(family, kind, accumulation, tmp_path, monkeypatch, counted):
    seen, collate = [], CausalCollator.__call__
    monkeypatch.setattr(CausalCollator, "__call__", lambda self, rows: seen.append(collate(self, rows)) or seen[-1])
    counted(clm_nb.model.loss, "linear_cross_entropy")
    trainer = run(tmp_path, families[family](), make_blocks(kind), gradient_accumulation_steps=accumulation)
    assert counted.calls["linear_cross_entropy"] == 3*accumulation
    model = families[family]()
    assert losses(trainer) == pytest.approx(bare_loop(model, seen, accumulation), rel=1e-5)
    torch.testing.assert_close(parameters(trainer.model), parameters(model), rtol=1e-4, atol=1e-5)
    assert (parameters(model) - parameters(families[family]())).abs().max() > 1e-2


@needs_bf16
@pytest.mark.parametrize("family", families)
def test_neither_training_nor_its_evaluation_makes_a_float32_table_of_all_tokens(family, tmp_path):
    matmul_rate("cpu", torch.bfloat16)
    tables = lambda seen: [s for dtype, s in seen.tensors if dtype == torch.float32 and s[-1:] == (400,)]
    large = lambda seen: [s for s in tables(seen) if np.prod(s) > 2**20]
    options = dict(per_device_train_batch_size=16, per_device_eval_batch_size=16, max_steps=1, bf16=True)
    options |= dict(eval_strategy="steps", eval_steps=1)
    with Seen() as seen: trainer = run(tmp_path, families[family](), make_blocks(block=256), **options)
    assert not large(seen) and (torch.bfloat16, (16*255, 400)) in seen.tensors and losses(trainer, "eval_loss")
    with Seen() as seen: plain_loss(gpt2(), CausalCollator()(list(make_blocks(rows=16, block=256))))
    assert large(seen)


class Fails(TrainerCallback):
    def on_step_end(self, *args, **kwargs): raise RuntimeError("out of luck")


@pytest.mark.parametrize("bf16", bf16_or_not)
def test_the_model_has_its_own_forward_again_after_a_run_and_after_an_error(bf16, tmp_path):
    model, inside = gpt2(), []
    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs): inside.append("forward" in vars(model))
    run(tmp_path, model, callbacks=[Look()], bf16=bf16, max_steps=1)
    with pytest.raises(RuntimeError, match="out of luck"): run(tmp_path, model, callbacks=[Look(), Fails()], bf16=bf16)
    assert inside == [True, True] and model.forward.__func__ is type(model).forward
    assert not {"forward", "_original_forward"} & set(vars(model))


def test_a_forward_of_the_models_own_instance_is_back_after_fused_loss():
    model = gpt2()
    theirs = model.forward = type(model).forward.__get__(model)
    with pytest.raises(ZeroDivisionError), fused_loss(model) as served:
        assert served and model.forward is not theirs
        1/0
    assert model.forward is theirs


@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
def test_evaluation_during_training_is_perplexity_with_bf16_off(kind, tmp_path, counted):
    counted(clm_nb.model.loss, "linear_losses")
    options = dict(eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5)
    trainer = run(tmp_path, llama(), make_blocks(kind), **options)
    assert counted.calls["linear_losses"] == 5 + 1  # and once to look at the model
    exact = perplexity(trainer.model, trainer.eval_dataset.blocks, bf16=False)
    assert losses(trainer, "eval_loss") == pytest.approx([exact.loss], rel=1e-6)
    assert losses(trainer, "eval_tokens") == [exact.tokens]


@pytest.mark.parametrize("bf16", bf16_or_not)
def test_a_callback_may_measure_and_generate_in_the_middle_of_training(bf16, tmp_path):
    found, data, tok = [], make_blocks(), tokenizer()
    def measured(model):
        text = generate(model, tok, "The", max_new_tokens=4, seed=1)
        return perplexity(model, data, bf16=bf16).loss, text
    class Measures(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs): found.append(measured(model))
    trainer = run(tmp_path, gpt2(), data, callbacks=[Measures()], bf16=bf16)
    after = measured(trainer.model)
    assert len(found) == 3 and found[-1][0] == pytest.approx(after[0], rel=1e-2 if bf16 else 1e-6)
    if not bf16: assert found[-1][1] == after[1]


shape = dict(vocab_size=400, max_position_embeddings=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=1, head_dim=16, bos_token_id=0, eos_token_id=0, pad_token_id=0,
             initializer_range=0.3)


def auto(kind, **kwargs):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape | kwargs)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


served = {"GPT-2": gpt2, "GPT-2 untied": lambda: gpt2(tie_word_embeddings=False), "LLaMA": llama,
          "LLaMA tied": lambda: llama(tie_word_embeddings=True), "in bf16": lambda: llama().bfloat16(),
          "with dropout": lambda: gpt2(dropout=0.5), "in training": lambda: gpt2(dropout=0.5).train()} | \
    {kind: lambda kind=kind: auto(kind) for kind in ("Qwen2", "Qwen3", "Mistral")}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_bf16) if k == "in bf16" else k for k in served])
def test_models_that_are_served_give_the_same_loss_and_gradients(kind):
    model = served[kind]()
    modes = [module.training for module in model.modules()]
    assert output_layer(model) is model.lm_head and [module.training for module in model.modules()] == modes
    ids = torch.randint(400, (3, 20))
    labels, tol = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100), 2e-2 if kind == "in bf16" else 1e-4
    model.eval()
    for options in ({}, dict(num_items_in_batch=17)):
        found = []
        for inside in (False, True):
            model.zero_grad()
            if inside:
                with fused_loss(model) as fused: out = model(ids, labels=labels, **options)
                assert fused and out.logits is None
            else: out = model(ids, labels=labels, **options)
            out.loss.backward()
            found.append((out.loss.item(), torch.cat([p.grad.flatten().float() for p in model.parameters()])))
        (a, grads), (b, others) = found
        assert b == pytest.approx(a, rel=tol) and (others - grads).norm() < tol*grads.norm()


def aux_mixtral(): return auto("Mixtral", num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.001)


def sure_mixtral():
    "Its loss is so large that the part for the router is lost among the digits"
    model = aux_mixtral()
    model.lm_head.weight.data *= 30
    return model


class OwnLoss(transformers.GPT2LMHeadModel):
    "The logits are the layer's, the loss is more"
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(gpt2().config)

    @functools.wraps(transformers.GPT2LMHeadModel.forward)
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        if out.loss is not None: out.loss = out.loss*1.01
        return out


refused = {"scaled": lambda: auto("Cohere", logit_scale=0.3), "divided": lambda: auto("Granite", logits_scaling=3.0),
           "capped": lambda: auto("Gemma2", final_logit_softcapping=3.0, query_pre_attn_scalar=16, sliding_window=64),
           "bias": lambda: auto("Phi"), "bias of zeros": lambda: auto("Phi"), "own loss": OwnLoss,
           "router": aux_mixtral, "router, large loss": sure_mixtral}


@pytest.mark.parametrize("kind", refused)
def test_models_that_are_not_served_are_trained_and_measured_by_their_logits(kind, tmp_path, counted):
    for name in ("linear_cross_entropy", "loss_forward"): counted(clm_nb.model.loss, name)
    model, rows = refused[kind](), make_blocks(rows=4)
    if kind == "bias": model.lm_head.bias.data.normal_()
    assert output_layer(model) is None
    with torch.no_grad():
        batch = CausalCollator()(list(rows))
        mean = plain_loss(model, batch).item()/(batch["labels"][:, 1:] != -100).sum().item()
        whole = mean*(1.01 if kind == "own loss" else 1)
        if "router" in kind: whole += 0.001*model(batch["input_ids"]).aux_loss.item()
    assert perplexity(model, rows, bf16=False).loss == pytest.approx(mean, rel=1e-5)
    trainer = run(tmp_path, model, rows, learning_rate=0.0, max_steps=1)
    assert losses(trainer) == pytest.approx([whole], rel=1e-6) and not counted.calls["linear_cross_entropy"]


def test_a_model_is_looked_at_once_for_all_batches(counted):
    counted(clm_nb.model.loss, "loss_forward")
    perplexity(gpt2(), make_blocks(), batch_size=2)
    assert counted.calls["loss_forward"] == 1


@needs_bf16
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bf16_in_perplexity_is_asked_for_or_pays(name, monkeypatch):
    kinds = lambda model, **options: {d for d, s in see(model, **options) if s[-1:] == (400,)}
    short = make_blocks()
    long = concatenate_datasets([short]*(4096//clm_nb.tokenize.list_length(short) + 1))
    def see(model, blocks=long, **options):
        with Seen() as seen: perplexity(model, blocks, **options)
        return seen.tensors
    small, large = families[name](), families[name](**{"n_embd" if name == "gpt2" else "hidden_size": 512})
    has = {True: {torch.float32, torch.bfloat16}, False: {torch.float32}}
    for fast in (True, False):
        everywhere(monkeypatch, clm_nb.model.device, "has_bf16", lambda device: fast)
        assert [bf16_pays(m) for m in (small, large)] == [False, fast] and not bf16_pays(in_bf16(large))
        assert [bool(torch.bfloat16 in kinds(m)) for m in (small, large)] == [False, fast]
        assert torch.bfloat16 not in kinds(large, blocks=short)
        for bf16 in (True, False): assert kinds(small, bf16=bf16) == kinds(large, bf16=bf16) == has[bf16 and fast]


def test_evaluation_outside_training_takes_the_labels_away(tmp_path):
    model, labelled = gpt2(), []
    trainer = run(tmp_path, model, max_steps=1)
    exact = perplexity(model, trainer.eval_dataset.blocks, bf16=False)
    model.register_forward_pre_hook(lambda m, args, kwargs: labelled.append(kwargs.get("labels")), with_kwargs=True)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact.loss, rel=1e-6)
    assert labelled[0] is None and not trainer.fused


def on_disk(folder, rows=4000, block=128, **kwargs):
    make_blocks(rows=rows, block=block, **kwargs).save_to_disk(folder)
    return load_from_disk(folder)


def as_lists(rows): return [{name: value.tolist() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("kind", ["full", "padded", "apart"])
def test_rows_are_views_of_the_file_however_it_is_cut(kind, tmp_path):
    data, other = on_disk(tmp_path/"a", 60, 16, kind=kind), on_disk(tmp_path/"b", 9, 16, kind=kind)
    joined = concatenate_datasets([data, other, data.select(range(3, 4))])
    for blocks in (data, data.select(range(5, 50)), joined, data.select([])):
        rows = BlockRows.of(blocks)
        assert isinstance(rows, BlockRows) and len(rows) == len(blocks) and as_lists(rows) == list(blocks)
        for beyond in (len(blocks), len(blocks) + 99, -1, -len(blocks) - 1):
            with pytest.raises(IndexError): rows[beyond]
        for row in itertools.islice(rows, 3):
            for v in row.values(): assert isinstance(v, np.ndarray) and not v.flags.owndata and not v.flags.writeable


def test_a_mask_of_bools_will_do():
    features = Features(input_ids=List(Value("int32"), length=3), attention_mask=List(Value("bool"), length=3))
    columns = dict(input_ids=[[1, 2, 3], [4, 5, 6]], attention_mask=[[True]*3, [True, False, False]])
    blocks = Dataset.from_dict(columns, features=features)
    rows = BlockRows.of(blocks)
    batch = CausalCollator()([rows[i] for i in range(2)])
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_rows_go_to_other_processes_as_the_name_of_their_file(tmp_path):
    data = on_disk(tmp_path/"a")
    rows = BlockRows.of(data)
    first = rows[0]["input_ids"].tolist()
    again = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 20_000 < 4000*128*4
    assert again[0]["input_ids"].tolist() == first and len(again) == 4000
    loader = torch.utils.data.DataLoader(rows, 500, collate_fn=CausalCollator(), num_workers=2)
    assert torch.cat([b["input_ids"] for b in loader]).equal(torch.tensor(data["input_ids"][:]))


def test_only_what_the_model_takes_is_in_a_row_and_odd_rows_stay_a_dataset():
    data = make_blocks("padded").add_column("source", ["a"]*24)
    assert set(BlockRows.of(data)[0]) == {"input_ids", "attention_mask"}
    ragged = Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    for odd in (ragged, data.shuffle(seed=1)):
        rows = BlockRows.of(odd)
        assert isinstance(rows, Dataset) and isinstance(rows[0]["input_ids"], np.ndarray)
        assert "source" not in rows.column_names


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_gets_views_and_workers_change_nothing(workers, tmp_path):
    data = on_disk(tmp_path/"data", 24, 16)
    trainer = run(tmp_path/"run", gpt2(), data, dataloader_num_workers=workers)
    assert type(trainer.train_dataset) is type(trainer.eval_dataset) is BlockRows
    assert losses(trainer) == losses(run(tmp_path/"other", gpt2(), data))
    tutorial = run(tmp_path/"tutorial", gpt2(), data, exact_loss=False, max_steps=1)
    assert not isinstance(tutorial.train_dataset, BlockRows)


def test_a_token_is_never_a_python_number_on_its_way_to_the_model(tmp_path):
    documents, tok = pa.table({"text": ["".join(rng.choice(texts, 20)) for _ in range(400)]}), tokenizer()
    spec = tokenizer_json(tok)
    work = lambda: tokenize_batch(documents, spec, suffix=(0,), encoder="gigatoken")
    tokens = len(work()["input_ids"].combine_chunks().flatten())
    rows = BlockRows.of(on_disk(tmp_path/"a", 1000))
    rows[0]
    take = lambda: CausalCollator()([rows[i] for i in range(1000)])
    for what, n, most in ((work, tokens, 12), (take, 128_000, 45)):  # a list has 8 for each and 32 for the number
        tracemalloc.start()
        try: kept, peak = what(), tracemalloc.get_traced_memory()[1]
        finally: tracemalloc.stop()
        assert tokens > 50_000 and peak < most*n


def backend(kind):
    if kind == "BPE": return tokenizer().backend_tokenizer
    words = ["<unk>", "[UNK]", *"abcdefghijklmnopqrstuvwxyz ", "the", "quick"]
    if kind == "Unigram": return Tokenizer(models.Unigram([(w, -float(i)) for i, w in enumerate(words)], unk_id=0))
    new = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    new.pre_tokenizer = pre_tokenizers.Whitespace()
    return new


@pytest.mark.parametrize("allow_special", [False, True])
@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_the_tokenizers_json_is_what_parsing_all_of_it_gives(kind, allow_special):
    tok = PreTrainedTokenizerFast(tokenizer_object=backend(kind), eos_token="<|endoftext|>")
    tok.add_tokens(['x,"model":{', ',"model":'])
    tok.add_tokens(['<,"model":>'], special_tokens=True)
    expected = json.loads(tok.backend_tokenizer.to_str())
    expected |= dict(truncation=None, padding=None, post_processor=None)
    if allow_special: expected["added_tokens"] = [t | dict(special=False) for t in expected["added_tokens"]]
    before = tokenizer_json(tok, allow_special)
    assert json.loads(before) == expected and len(expected["added_tokens"]) == 4
    tok.backend_tokenizer.enable_truncation(3)
    tok.backend_tokenizer.enable_padding(length=5)
    assert tokenizer_json(tok, allow_special) == before


@pytest.fixture
def encoders(monkeypatch):
    "Which encoders were made from a specification"
    made, make = [], clm_nb.tokenize.encode_function.__wrapped__
    monkeypatch.setattr(clm_nb.tokenize, "encode_function", lambda spec, name: made.append(name) or make(spec, name))
    return made


@pytest.mark.parametrize("how", ["plain", "padding", "truncation", "special", "no tokenizer"])
def test_the_tokenizer_itself_checks_the_encoder_where_it_can(how, encoders):
    tok = tokenizer()
    spec, sample = tokenizer_json(tok), [*texts, ""] + ["a <|endoftext|> b"]*(how == "special")
    if how == "padding": tok.backend_tokenizer.enable_padding(length=500)
    if how == "truncation": tok.backend_tokenizer.enable_truncation(2)
    assert choose_encoder(spec, sample, None if how == "no tokenizer" else tok) == "gigatoken"
    assert ("tokenizers" in encoders) is (how != "plain")


@pytest.mark.parametrize("given", [False, True])
def test_an_encoder_that_lies_is_found_out(given, monkeypatch):
    tok, make = tokenizer(), clm_nb.tokenize.encode_function
    def lies(spec, name):
        encode = make(spec, name)
        def changed(texts):
            ids, offsets = encode(texts)
            ids = np.array(ids)
            ids[-1] += name == "gigatoken"
            return ids, offsets
        return changed
    monkeypatch.setattr(clm_nb.tokenize, "encode_function", lies)
    with pytest.raises(RuntimeError, match="gigatoken and tokenizers differ"):
        choose_encoder(tokenizer_json(tok), texts, tok if given else None)


def test_the_garbage_collector_is_as_it_was():
    import gc
    for on in (True, False):
        (gc.enable if on else gc.disable)()
        try:
            with pytest.raises(ZeroDivisionError), clm_nb.tokenize.paused_gc():
                assert not gc.isenabled()
                1/0
            assert gc.isenabled() is on
        finally: gc.enable()


@pytest.fixture
def fast_bf16(monkeypatch): everywhere(monkeypatch, clm_nb.model.device, "has_bf16", lambda device: True)


def large(): return gpt2(n_embd=256)


@needs_bf16
def test_large_models_draw_from_a_bf16_copy_and_stay_as_they_are(fast_bf16, counted):
    for module, name in ((clm_nb.model.inference, "in_bf16"), (clm_nb.model.inference, "draw_from_top")): counted(module, name)
    model, tok = large(), tokenizer()
    before = parameters(model).clone()
    options = dict(max_new_tokens=12, seed=1)
    text = generate(model, tok, "The", **options)
    assert text == generate(model, tok, "The", **options) == "The" + "".join(stream(model, tok, "The", **options))
    assert text != generate(model, tok, "The", max_new_tokens=12, seed=2)
    assert counted.calls == dict(in_bf16=4, draw_from_top=4)
    assert generate(model, tok, ["The"]*2, **options)[0] != "The"
    assert text == generate(model.train(), tok, "The", **options) and model.training
    assert model.dtype == torch.float32 and torch.equal(parameters(model), before)
    assert not model.lm_head._forward_pre_hooks
    counted.calls.clear()
    for one in (dict(bf16=False), dict(do_sample=False), dict(do_sample=False, num_beams=2)):
        generate(model, tok, "The", max_new_tokens=3, **one)
    assert not counted.calls
    generate(gpt2(), tok, "The", max_new_tokens=3)
    assert counted.calls == dict(draw_from_top=1)


@needs_bf16
def test_in_training_a_large_model_draws_from_itself(tmp_path, fast_bf16, counted):
    "A copy would go on calling the forward of the original"
    counted(clm_nb.model.inference, "in_bf16")
    class Draws(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            counted.calls["drawn"] += len(generate(model, tokenizer(), ["The"]*2, max_new_tokens=3))
    trainer = run(tmp_path, large(), callbacks=[Draws()], max_steps=1)
    assert counted.calls == dict(drawn=2)
    generate(trainer.model, tokenizer(), "The", max_new_tokens=3)
    assert counted.calls == dict(drawn=2, in_bf16=1)


kept = {"keys and values": gpt2, "grouped": llama, "in a window": lambda: auto("Gemma3Text", sliding_window=4),
        "a state": lambda: auto("Mamba", state_size=4),
        "both": lambda: auto("Bamba", mamba_n_heads=4, mamba_d_head=16, mamba_d_state=4, attn_layer_indices=[1])}


@needs_bf16
@pytest.mark.parametrize("kind", kept)
def test_the_copy_goes_on_from_what_was_read_whatever_a_model_keeps(kind):
    model, tok, said = kept[kind](), tokenizer(), torch.randint(1, 400, (12,), generator=torch.Generator().manual_seed(0))
    def scores(bf16):
        seen = []
        def force(ids, logits):
            seen.append(logits.clone().float())
            return torch.full_like(logits, -1e9).index_fill_(1, said[len(seen) - 1:len(seen)], 0.0)
        generate(model, tok, ["The quick brown fox jumps", "def"], max_new_tokens=len(said), bf16=bf16, do_sample=False,
                 logits_processor=[force])
        return seen
    exact, found = scores(False), scores(True)
    far = [((a - b).norm()/b.norm()).item() for a, b in zip(found, exact)]
    assert len(far) == len(said) and 0 < max(far) < 0.2  # without what was read, 1
    assert (far[0] == 0) is (kind not in ("a state", "both")) and all(far[1:])


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beams_of_a_large_model_are_those_of_transformers(beams, fast_bf16):
    model, tok = large(), tokenizer()
    ids, options = tok("The quick", return_tensors="pt"), dict(max_new_tokens=12, do_sample=False, num_beams=beams)
    theirs = model.generate(**ids, pad_token_id=0, **options)[0]
    assert generate(model, tok, "The quick", **options) == tok.decode(theirs, skip_special_tokens=True)


@pytest.mark.parametrize("bf16", [None, pytest.param(True, marks=needs_bf16)])
@pytest.mark.parametrize("options,quick", [
    ({}, True), (dict(top_p=1.0, temperature=0.3), True), (dict(repetition_penalty=1.5), True),
    (dict(min_new_tokens=2), True), (dict(bad_words_ids=[[5]]), True), (dict(no_repeat_ngram_size=2), True),
    (dict(logits_processor=[]), True), (dict(logits_processor=None), True), (dict(top_k=10**6), True),
    (dict(top_k=0), False), (dict(min_p=0.1), False), (dict(typical_p=0.5), False), (dict(num_beams=2), False),
    (dict(do_sample=False), False), (dict(eta_cutoff=1e-3), False), (dict(renormalize_logits=True), False)])
def test_only_what_the_quick_draw_knows_goes_that_way(options, quick, bf16, counted):
    for module, name in ((clm_nb.model.inference, "draw_from_top"), (clm_nb.model.inference, "in_bf16")): counted(module, name)
    model, tok = gpt2(), tokenizer()
    texts = generate(model, tok, ["The", "def f(x)"], max_new_tokens=5, bf16=bf16, seed=1, **options)
    assert counted.calls == (dict(in_bf16=1) if bf16 else {}) | (dict(draw_from_top=1) if quick else {}) and len(texts) == 2
    assert texts == generate(model, tok, ["The", "def f(x)"], max_new_tokens=5, bf16=bf16, seed=1, **options)


@pytest.mark.parametrize("options", [(1.0, 50, 0.95), (0.6, 20, 0.8), (1.4, 5, 1.0), (1.0, 400, 0.9), (1.0, 1000, 1.0),
                                     (1.0, 1, 0.5)])
def test_the_quick_draw_draws_what_sampling_probabilities_says(options):
    torch.manual_seed(0)
    logits = 2*torch.randn(400)
    expected = sampling_probabilities(logits[None], *options)[0].double()
    draw = clm_nb.model.inference.draw_from_top(*options, stop=[], first_stop=0)
    scores = draw(torch.zeros(20_000, 3), logits.expand(20_000, 400))
    assert scores.shape == (20_000, 400) and (scores.isfinite().sum(1) == 1).all()
    found = scores.isfinite().double().mean(0)
    assert ((found - expected).abs() <= 4.5*(expected*(1 - expected)/20_000).sqrt()).all()
    assert not found[expected == 0].any()


@pytest.mark.parametrize("options", [{}, dict(repetition_penalty=1.3), dict(min_new_tokens=70)])
@pytest.mark.parametrize("kind", kept)
def test_a_cache_with_room_to_spare_changes_no_token_whatever_a_model_keeps(kind, options, monkeypatch):
    model, tok, prompts = kept[kind](), tokenizer(), ["The quick brown fox jumps", "def"]
    def draw(): return generate(model, tok, prompts, max_new_tokens=80, seed=1, **options)
    assert bool(clm_nb.model.inference.roomy_cache(model)) is (kind in ("keys and values", "grouped"))
    text = draw()
    everywhere(monkeypatch, clm_nb.model.inference, "roomy_cache", lambda model: {})
    assert draw() == text


def test_a_roomy_layer_keeps_what_it_is_given_through_every_change():
    from transformers.cache_utils import DynamicLayer
    plain, roomy, rng = DynamicLayer(), clm_nb.model.inference.roomy_layer()(), torch.Generator().manual_seed(0)
    changes = [lambda layer: layer.crop(-2), lambda layer: layer.batch_select_indices(torch.tensor([1, 1, 0])),
               lambda layer: layer.batch_repeat_interleave(2), lambda layer: layer.reset(), lambda layer: None]
    rows = [3, 3, 3, 6, 6, 6]
    for length, batch, change in zip((5, 1, 70, 1, 200, 1), rows, [*changes, changes[-1]]):
        keys, values = torch.randn(2, batch, 2, length, 4, generator=rng)
        for theirs, ours in zip(plain.update(keys, values), roomy.update(keys, values)): assert torch.equal(theirs, ours)
        assert roomy.get_seq_length() == plain.get_seq_length()
        for layer in (plain, roomy): change(layer)


def ends_at_once():
    "A model that says EOS, whatever came before"
    model = gpt2()
    model.transformer.ln_f.weight.data.zero_()
    model.transformer.ln_f.bias.data.copy_(20*model.lm_head.weight[0])
    return model


@pytest.mark.parametrize("bf16", [None, pytest.param(True, marks=needs_bf16)])
def test_what_comes_before_drawing_still_does(bf16):
    tok, options = tokenizer(), dict(bf16=bf16, max_new_tokens=6, seed=1, return_full_text=False)
    model = ends_at_once()
    likeliest = (model.lm_head.weight @ model.transformer.ln_f.bias).topk(3).indices.tolist()
    assert likeliest[0] == 0 and generate(model, tok, "The", **options) == ""
    second, third = (tok.decode([i]) for i in likeliest[1:])
    few = dict(top_k=1)
    assert generate(model, tok, "The", min_new_tokens=3, **options | few) == second*3
    assert generate(model, tok, "The", min_new_tokens=2, bad_words_ids=[[likeliest[1]]], **options | few) == third*2
    seen = []
    def mine(ids, scores):
        seen.append(scores.isfinite().all().item())
        return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor(likeliest[1:2]), 0.0)
    assert generate(model, tok, "The", logits_processor=[mine], **options) == second*6 and seen == [True]*6
    fox = tok.encode(" fox")[0]
    flat = gpt2()
    flat.transformer.ln_f.weight.data.zero_()
    flat.transformer.ln_f.bias.data.copy_(20*flat.lm_head.weight[fox])
    assert generate(flat, tok, "The", **options | few) == tok.decode([fox])*6
    assert generate(flat, tok, "The", repetition_penalty=50.0, **options | few) != tok.decode([fox])*6


@needs_bf16
@pytest.mark.parametrize("family", families)
def test_a_copy_in_bf16_is_near_keeps_ties_and_needs_no_gradient(family):
    for tied in (False, True):
        model = families[family](tie_word_embeddings=tied)
        model.lm_head.weight.requires_grad_(False)
        half, ids = in_bf16(model), torch.arange(9)[None]
        assert (half.lm_head.weight is half.get_input_embeddings().weight) is tied
        assert not any(p.requires_grad for p in half.parameters())
        types = [{p.dtype for p in m.parameters()} for m in (half, model)]
        assert types == [{torch.bfloat16}, {torch.float32}]
        assert [b.dtype for b in half.buffers()] == [b.dtype for b in model.buffers()]
        a, b = half(ids).logits.float(), model(ids).logits
        assert (a - b).norm() < 0.05*b.norm() and model.lm_head.weight.requires_grad is False


needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", families)
def test_packed_layers_multiply_as_the_layers_do_and_share_their_weights(family, bias):
    model, ids = families[family](), torch.arange(20).view(4, 5)
    if bias: model.lm_head.bias = torch.nn.Parameter(torch.randn(400))
    layer, before, with_hooks = model.lm_head, parameters(model).clone(), dict(logits_to_keep=1)
    packed = with_packed_layers(model, 4)
    with torch.no_grad():
        for rows in (4, 2):  # as many as it is packed for, and others
            torch.testing.assert_close(packed(ids[:rows], **with_hooks).logits, model(ids[:rows], **with_hooks).logits)
        assert packed(ids).logits.shape == (4, 5, 400)
    assert model.lm_head is layer and type(packed.lm_head) is PackedLinear and torch.equal(parameters(model), before)
    assert [id(p) for p in packed.parameters()] == [id(p) for p in model.parameters()]


def wide(**kwargs): return gpt2(vocab_size=2**18, n_embd=64, n_layer=1, **kwargs)  # an output layer of 2**24 weights


def test_packing_pays_for_several_prompts_a_large_layer_and_many_tokens():
    class Scaled(torch.nn.Linear): pass
    large, odd = wide(), wide()
    odd.lm_head.__class__ = Scaled  # its forward may be another
    assert packing_pays(large, 16, 100) is torch.backends.mkl.is_available()
    for model, rows, tokens in ((large, 1, 100), (large, 16, 63), (gpt2(), 16, 100), (odd, 16, 100), (large.bfloat16(), 16, 100)):
        assert not packing_pays(model, rows, tokens)


@needs_mkl
def test_several_prompts_are_drawn_with_packed_layers(monkeypatch, counted):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    counted(clm_nb.model.inference, "with_packed_layers")
    model, tok, options = wide(), tokenizer(), dict(max_new_tokens=64, seed=1)
    def draw(how): return generate(model, tok, ["The", "def f(x)"], **options | how)
    assert draw({}) == draw({}) and counted.calls == dict(with_packed_layers=2)
    for how in (dict(bf16=False), dict(do_sample=False), dict(top_k=0), dict(max_new_tokens=8)): draw(how)
    generate(model, tok, "The", **options)
    assert counted.calls == dict(with_packed_layers=2) and type(model.lm_head) is torch.nn.Linear


def test_operations_of_a_training_step_are_counted_right_for_grouped_queries():
    width, mlp, block, vocabulary = 32, 64, 48, 400
    for heads in (1, 2):
        model = llama(num_key_value_heads=heads).train()
        per_token = 2*(2*(2*width**2 + 2*width*16*heads + 3*width*mlp) + vocabulary*width) + 2*4*block*width
        assert training_flops(model, block) == pytest.approx(3*per_token, rel=1e-3) and model.training
        with torch.autocast("cpu", torch.bfloat16, has_bf16("cpu")): found = training_flops(model, block)
        assert found == pytest.approx(3*per_token, rel=1e-3)
    width = 64
    by_hand = 2*(3*12*width**2 + vocabulary*width) + 3*4*block*width
    model = gpt2(dropout=0.5, n_embd=width, n_layer=3).train()
    state = torch.get_rng_state()
    assert training_flops(model, block) == 3*by_hand and torch.equal(torch.get_rng_state(), state)


@needs_bf16
def test_the_run_says_how_fast_it_was(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(clm_nb.training.watch, "matmul_rate", lambda device, dtype: rates.append((device, dtype)) or 1e12)
    rates = []
    trainer = run(tmp_path, gpt2(), disable_tqdm=False, gradient_accumulation_steps=2, bf16=True)
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if "of what matrix products" in line]
    run_json, live = json.loads((tmp_path/"run.json").read_text()), trainer.live
    assert line == str(live) and "in bfloat16 reach here" in line and "tokens/s" in line and "tokens/s" not in out
    assert rates == [("cpu", torch.bfloat16)] and live.steps == 3
    assert live.rate == pytest.approx(2*8*16/(live.seconds - live.first))  # the first step, which sets up, isn't counted
    assert live.utilisation == pytest.approx(live.rate*training_flops(trainer.model, 16)/1e12)
    assert run_json["tokens_per_second"] == round(live.rate) > 0 and run_json["train_seconds"] == round(live.seconds, 1)
    quiet = run(tmp_path, gpt2())
    assert "matrix products" not in "".join(capfd.readouterr())
    assert quiet.live.rate > 0 and rates[-1] == ("cpu", torch.float32)


def test_the_rate_of_products_is_a_rate_and_measured_once():
    rate = matmul_rate("cpu", torch.float32)
    assert 1e8 < rate < 1e15 and matmul_rate("cpu", torch.float32) == rate


def arguments(tmp_path, batch=12, accumulation=1, **kwargs):
    return TrainingArguments(str(tmp_path), per_device_train_batch_size=batch, use_cpu=True, report_to="none",
                             gradient_accumulation_steps=accumulation, **kwargs)


class Memory:
    "A model's forward that fits `most` rows"
    def __init__(self, model, most):
        self.asked, forward = [], type(model).forward
        def limited(this, input_ids=None, *args, **kwargs):
            if input_ids.shape[-1] == 8: self.asked.append(len(input_ids))
            if len(input_ids) > max(most, 2*(input_ids.shape[-1] == 4)): raise torch.OutOfMemoryError
            return forward(this, input_ids, *args, **kwargs)
        model.__class__ = type("Limited", (type(model),), dict(forward=limited))


@pytest.mark.parametrize("batch,accumulation,most,expected", [
    (12, 1, 12, (12, 1)), (12, 1, 7, (6, 2)), (3, 4, 5, (4, 3)), (7, 1, 6, (1, 7)),
    (2, 6, 99, (12, 1)), (1, 1, 1, (1, 1))])
def test_fit_batch_keeps_the_rows_of_a_step_and_all_else_as_it_was(batch, accumulation, most, expected, tmp_path):
    model, args = gpt2(dropout=0.5).train(), arguments(tmp_path, batch, accumulation)
    model.transformer.h[0].eval()
    memory, before = Memory(model.transformer, most), parameters(model).clone()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fit_batch(model, args, 8)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected
    assert memory.asked[-1] == expected[0] and memory.asked == sorted(memory.asked, reverse=True)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(parameters(model), before)
    assert all(p.grad is None for p in model.parameters()) and "forward" not in vars(model)
    assert [m.training for m in model.modules()] == modes


def test_the_batch_is_fitted_with_the_loss_that_will_be_used(tmp_path, counted):
    counted(clm_nb.model.loss, "linear_cross_entropy")
    fit_batch(gpt2(), arguments(tmp_path), 8)
    assert counted.calls["linear_cross_entropy"] == 1


def test_where_not_one_row_fits_it_says_so(tmp_path):
    model, args = gpt2(), arguments(tmp_path)
    Memory(model.transformer, 0)
    with pytest.raises(ValueError, match="one row of 8 tokens"): fit_batch(model, args, 8)
    assert not model.training and args.per_device_train_batch_size == 12
    assert all(p.grad is None for p in model.parameters())


def test_on_a_cpu_the_batch_is_the_one_asked_for(tmp_path, counted):
    counted(clm_nb.train, "fit_batch")
    run(tmp_path, gpt2(), max_steps=1)
    assert not counted.calls


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_compiled_model_has_the_losses_of_the_other(tmp_path, monkeypatch):
    # torch's own cache of kernels doesn't ask which vector instructions they were written for
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path/"kernels"))
    data = make_blocks()
    plain, compiled = (losses(run(tmp_path/str(on), gpt2(n_layer=1), data, torch_compile=on)) for on in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.fixture
def machine(monkeypatch, capsys):
    "A machine as it is described: `machine(bf16=…, gpu=…, fp16=…, kernels=…)`; `machine.said()` is what the user was told"
    def forget():
        for function in (clm_nb.model.device._say, clm_nb.model.device.cuda_runs, clm_nb.model.device._fp16_pays): function.cache_clear()
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
    be.said = lambda: capsys.readouterr().err.splitlines()
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
    work = clm_nb.generate.Turns.work
    def watched(self, run):
        with mode: work(self, run)
    monkeypatch.setattr(clm_nb.generate.Turns, "work", watched)


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


def test_no_loss_is_summed_in_fp16(tmp_path):
    "Where a thousand tokens could overflow"
    for fp16 in (False, True):
        args = arguments(tmp_path)
        args.fp16 = fp16
        with clm_nb.training.settings.step_loss(gpt2(), args) as fused: assert fused is not fp16
