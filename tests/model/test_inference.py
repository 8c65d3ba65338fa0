"What makes generation fast gives the results of what it stands for, and is really used: types, calls and sizes, never a time"
import math
import numpy as np, pytest, torch, transformers
from transformers import TrainerCallback
import clm_nb.model.device, clm_nb.model.inference
from clm_nb.model.sampling import sampling_probabilities
from clm_nb.generate import generate, stream
from clm_nb.model.device import has_bf16
from clm_nb.model.inference import in_bf16
from clm_nb.model.packed import PackedLinear, can_pack, packing_pays, with_packed_layers
from clm_nb.train import train
from families import make
from short_runs import large, parameters, run
from tiny import auto, everywhere, families, gpt2, llama, needs_bf16, texts, tokenizer

rng = np.random.default_rng(0)


@pytest.fixture
def fast_bf16(monkeypatch): everywhere(monkeypatch, clm_nb.model.device, "has_bf16", lambda device: True)


@needs_bf16
def test_large_models_draw_from_a_bf16_copy_and_stay_as_they_are(fast_bf16, counted):
    for module, name in ((clm_nb.model.inference, "in_bf16"), (clm_nb.model.inference, "DrawFromTop")): counted(module, name)
    model, tok = large(), tokenizer()
    before = parameters(model).clone()
    options = dict(max_new_tokens=12, seed=1)
    text = generate(model, tok, "The", **options)
    assert text == generate(model, tok, "The", **options) == "The" + "".join(stream(model, tok, "The", **options))
    assert text != generate(model, tok, "The", max_new_tokens=12, seed=2)
    assert counted.calls == dict(in_bf16=4, DrawFromTop=4)
    assert generate(model, tok, ["The"]*2, **options)[0] != "The"
    assert text == generate(model.train(), tok, "The", **options) and model.training
    assert model.dtype == torch.float32 and torch.equal(parameters(model), before)
    assert not model.lm_head._forward_pre_hooks
    counted.calls.clear()
    for one in (dict(bf16=False), dict(do_sample=False), dict(do_sample=False, num_beams=2)):
        generate(model, tok, "The", max_new_tokens=3, **one)
    assert not counted.calls
    generate(gpt2(), tok, "The", max_new_tokens=3)
    assert counted.calls == dict(DrawFromTop=1)


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
    for module, name in ((clm_nb.model.inference, "DrawFromTop"), (clm_nb.model.inference, "in_bf16")): counted(module, name)
    model, tok = gpt2(), tokenizer()
    texts = generate(model, tok, ["The", "def f(x)"], max_new_tokens=5, bf16=bf16, seed=1, **options)
    assert counted.calls == (dict(in_bf16=1) if bf16 else {}) | (dict(DrawFromTop=1) if quick else {}) and len(texts) == 2
    assert texts == generate(model, tok, ["The", "def f(x)"], max_new_tokens=5, bf16=bf16, seed=1, **options)


@pytest.mark.parametrize("options", [(1.0, 50, 0.95), (0.6, 20, 0.8), (1.4, 5, 1.0), (1.0, 400, 0.9), (1.0, 1000, 1.0),
                                     (1.0, 1, 0.5)])
def test_the_quick_draw_draws_what_sampling_probabilities_says(options):
    torch.manual_seed(0)
    logits = 2*torch.randn(400)
    expected = sampling_probabilities(logits[None], *options)[0].double()
    draw = clm_nb.model.inference.DrawFromTop(*options, stop=[], first_stop=0)
    scores = draw(torch.zeros(20_000, 3), logits.repeat(20_000, 1))
    assert scores.shape == (20_000, 400) and ((scores == math.inf).sum(1) == 1).all()
    found = (scores == math.inf).double().mean(0)
    assert ((found - expected).abs() <= 4.5*(expected*(1 - expected)/20_000).sqrt()).all()
    assert not found[expected == 0].any()


def test_the_quick_draw_is_that_of_multinomial():
    draw, scores = clm_nb.model.inference.DrawFromTop(0.8, 400, 0.9, stop=[], first_stop=0), torch.randn(500, 400, generator=torch.Generator().manual_seed(1))
    likeliest, ids = scores.topk(400)
    torch.manual_seed(3)
    theirs = ids.gather(1, torch.multinomial(sampling_probabilities(likeliest, 0.8, top_p=0.9), 1))
    torch.manual_seed(3)
    assert torch.equal(draw.drawn(scores), theirs) and len(theirs.unique()) > 50


@pytest.mark.parametrize("options", [{}, dict(repetition_penalty=1.3), dict(min_new_tokens=70)])
@pytest.mark.parametrize("kind", kept)
def test_a_cache_with_room_to_spare_changes_no_token_whatever_a_model_keeps(kind, options, monkeypatch):
    model, tok, prompts = kept[kind](), tokenizer(), ["The quick brown fox jumps", "def"]
    def draw(): return generate(model, tok, prompts, max_new_tokens=80, seed=1, **options)
    assert bool(clm_nb.model.inference.roomy_cache(model)) is (kind in ("keys and values", "grouped"))
    text = draw()
    everywhere(monkeypatch, clm_nb.model.inference, "roomy_cache", lambda model: {})
    assert draw() == text


@pytest.mark.parametrize("kind", [gpt2, lambda: make("mpt")])
def test_a_cache_with_room_is_used_by_a_model_that_is_configured_to_keep_nothing(kind):
    model, ids = kind(), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    model.config.use_cache = model.generation_config.use_cache = False
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
    usual, roomy = (model.generate(ids, **how, **cache) for cache in ({}, clm_nb.model.inference.roomy_cache(model)))
    torch.testing.assert_close(torch.stack(roomy.logits), torch.stack(usual.logits))


def test_a_roomy_layer_keeps_what_it_is_given_through_every_change():
    from transformers.cache_utils import DynamicLayer
    plain, roomy, rng = DynamicLayer(), clm_nb.model.inference.RoomyLayer(), torch.Generator().manual_seed(0)
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


needs_mkl = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no MKL")
packed_types = [pytest.param(dtype, marks=pytest.mark.skipif(not can_pack(dtype == torch.bfloat16), reason="not to be had here"))
                for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("dtype", packed_types)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", families)
def test_packed_layers_multiply_as_the_layers_do_and_share_their_weights(family, bias, dtype):
    model, ids = families[family](), torch.arange(20).view(4, 5)
    if bias: model.lm_head.bias = torch.nn.Parameter(torch.randn(400))
    model.to(dtype)
    layer, before, with_hooks = model.lm_head, parameters(model).clone(), dict(logits_to_keep=1)
    packed = with_packed_layers(model, 4)
    with torch.no_grad():
        for rows in (4, 2):  # as many as it is packed for, and others
            found, expected = (m(ids[:rows], **with_hooks).logits for m in (packed, model))
            torch.testing.assert_close(found, expected, **{} if dtype == torch.float32 else dict(rtol=0.05, atol=0.02))
        assert packed(ids).logits.shape == (4, 5, 400)
    assert model.lm_head is layer and type(packed.lm_head) is PackedLinear and torch.equal(parameters(model), before)
    assert [id(p) for p in packed.parameters()] == [id(p) for p in model.parameters()]


def wide(**kwargs): return gpt2(vocab_size=2**18, n_embd=64, n_layer=1, **kwargs)  # an output layer of 2**24 weights


def test_packing_pays_for_several_prompts_a_large_layer_and_many_tokens():
    class Scaled(torch.nn.Linear): pass
    large, odd = wide(), wide()
    odd.lm_head.__class__ = Scaled  # its forward may be another
    assert packing_pays(large, 16, 100) is can_pack()
    for model, rows, tokens in ((large, 1, 100), (large, 16, 23), (gpt2(), 16, 100), (odd, 16, 100)):
        assert not packing_pays(model, rows, tokens)
    assert packing_pays(large, 1, 32, half=True) is can_pack(half=True) and not packing_pays(large, 1, 31, half=True)
    assert not packing_pays(large.bfloat16(), 16, 100) and not packing_pays(large, 16, 100, half=True)


@needs_mkl
def test_several_prompts_are_drawn_with_packed_layers(monkeypatch, counted):
    monkeypatch.setenv("CLM_NB_PRECISION", "float32")
    counted(clm_nb.model.packed, "with_packed_layers")
    model, tok, options = wide(), tokenizer(), dict(max_new_tokens=64, seed=1)
    def draw(how): return generate(model, tok, ["The", "def f(x)"], **options | how)
    assert draw({}) == draw({}) and counted.calls == dict(with_packed_layers=2)
    for how in (dict(bf16=False), dict(do_sample=False), dict(top_k=0), dict(max_new_tokens=8)): draw(how)
    generate(model, tok, "The", **options)
    assert counted.calls == dict(with_packed_layers=2) and type(model.lm_head) is torch.nn.Linear


@pytest.mark.skipif(not can_pack(half=True), reason="no bf16 here")
def test_a_prompt_and_several_are_drawn_with_layers_packed_in_bf16(counted):
    counted(clm_nb.model.packed, "with_packed_layers")
    model, tok, options = wide(), tokenizer(), dict(max_new_tokens=32, seed=1)
    for prompt in ("The", ["The", "def f(x)"]): assert generate(model, tok, prompt, **options) == generate(model, tok, prompt, **options)
    assert counted.calls == dict(with_packed_layers=4)
    assert type(model.lm_head) is torch.nn.Linear and model.dtype == torch.float32
