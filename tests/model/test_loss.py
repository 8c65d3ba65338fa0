"The loss without logits is that with them: types, calls and sizes, never a time"
import functools

import numpy as np, pytest, torch, transformers
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertLMHeadModel, TrainerCallback
import clm_nb.model.loss
from clm_nb.collate import CausalCollator
from clm_nb.generate import generate
from clm_nb.perplexity import perplexity
from clm_nb.model.device import matmul_rate
from clm_nb.model.loss import fused_loss, linear_cross_entropy, linear_losses, output_layer
from clm_nb.train import train
from short_runs import large, losses, make_blocks, parameters, plain_loss, run, short
from tiny import Seen, auto, bf16_or_not, families, gpt2, llama, needs_bf16, tokenizer


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
@pytest.mark.parametrize("part,rows,multiple", [(10**9, 10**9, 1), (3, 2, 1), (1, 1, 1), (3, 2, 64)])
def test_the_loss_is_that_of_the_logits_in_parts_of_any_size(tokens, width, vocabulary, part, rows, multiple, dtype, monkeypatch):
    "Also with the rows of zeros that a GPU gets"
    monkeypatch.setitem(clm_nb.model.loss.row_multiples, "cpu", multiple)
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


@needs_bf16
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("put", [False, True])
def test_a_forward_that_transformers_wrapped_is_that_of_the_class_after_a_run_in_bf16(exact, put, tmp_path):
    "BERT's is wrapped, and reads **kwargs; a caller's own stays too"
    torch.manual_seed(0)
    config = BertConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=64, is_decoder=True)
    model, ids = BertLMHeadModel(config), torch.arange(12)[None]
    if put: model.forward = type(model).forward.__get__(model)
    before = vars(model).get("forward")
    run(tmp_path, model, bf16=True, max_steps=1, exact_loss=exact)
    assert vars(model).get("forward") is before and isinstance(model(ids, return_dict=False), tuple)
    assert isinstance(generate(model, tokenizer(), "The", max_new_tokens=4, seed=0), str)


def test_a_forward_of_the_models_own_instance_is_back_after_fused_loss():
    model = gpt2()
    theirs = model.forward = type(model).forward.__get__(model)
    with pytest.raises(ZeroDivisionError), fused_loss(model) as served:
        assert served and model.forward is not theirs
        1/0
    assert model.forward is theirs


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
