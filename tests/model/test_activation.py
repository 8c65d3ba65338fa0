"A GELU in one operation: the same numbers and gradients, in every model that writes it out, and gone afterwards"
import pytest, torch
from transformers import AutoModelForCausalLM, GPTJConfig
from transformers.activations import ACT2FN, GELUTanh

from clm_nb.generate import generate
from clm_nb.model.activation import fused_gelu, written_out
from clm_nb.perplexity import perplexity
from short_runs import losses, make_blocks, parameters, run
from tiny import gpt2, llama, tokenizer


def activations(model): return [type(module) for module in model.modules() if type(module) in (*written_out, GELUTanh)]


def gptj(): return AutoModelForCausalLM.from_config(GPTJConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=2, rotary_dim=8))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
@pytest.mark.parametrize("dtype, near", [(torch.float32, 5e-6), (torch.float64, 1e-10)])
def test_values_and_gradients_are_those_of_the_formula(name, dtype, near):
    xs = [torch.linspace(-8, 8, 4001, dtype=dtype, requires_grad=True) for _ in range(2)]
    ys = [activation(x) for activation, x in zip((ACT2FN[name], GELUTanh()), xs)]
    torch.testing.assert_close(*ys, atol=near, rtol=near)
    for y in ys: y.sum().backward()
    torch.testing.assert_close(*(x.grad for x in xs), atol=near, rtol=near)


@pytest.mark.parametrize("make", [gpt2, gptj])
def test_a_model_has_its_own_activations_again_even_after_an_error(make):
    model = make()
    before, held = activations(model), list(model.modules())
    assert set(before) <= set(written_out) and len(before) == 2
    with pytest.raises(KeyboardInterrupt), fused_gelu(model) as replaced:
        assert replaced == 2 and set(activations(model)) == {GELUTanh}
        raise KeyboardInterrupt
    assert all(a is b for a, b in zip(model.modules(), held, strict=True))


def test_one_inside_of_another_leaves_it_alone():
    model = gpt2()
    with fused_gelu(model):
        with fused_gelu(model) as replaced: assert replaced == 0
        assert set(activations(model)) == {GELUTanh}
    assert set(activations(model)) <= set(written_out)


def test_training_perplexity_and_sampling_take_it_and_keep_their_figures(tmp_path, monkeypatch):
    "Beside the formula, which is what is left when there is none written out"
    seen, blocks, tok = [], make_blocks(), tokenizer()
    monkeypatch.setattr(GELUTanh, "forward", lambda self, x: seen.append(1) or torch.nn.functional.gelu(x, approximate="tanh"))
    def figures(folder):
        model = gpt2()
        trainer = run(tmp_path/folder, model, blocks)
        text = generate(model, tok, ["The", "def"], max_new_tokens=8, seed=0, bf16=None)
        assert set(activations(model)) <= set(written_out)
        return losses(trainer), perplexity(model, blocks, bf16=False).loss, parameters(model), text
    quick = figures("quick")
    assert seen
    seen.clear()
    monkeypatch.setattr("clm_nb.model.activation.written_out", ())
    plain = figures("plain")
    assert not seen
    assert quick[0] == pytest.approx(plain[0], rel=1e-6) and quick[1] == pytest.approx(plain[1], rel=1e-6)
    torch.testing.assert_close(quick[2], plain[2], atol=1e-6, rtol=1e-5)
    assert quick[3] == plain[3]


def test_a_model_without_one_is_left_alone():
    model = llama()
    with fused_gelu(model) as replaced: assert replaced == 0


def test_generation_as_transformers_does_it_takes_none(monkeypatch):
    seen = []
    monkeypatch.setattr(GELUTanh, "forward", lambda self, x: seen.append(1) or torch.nn.functional.gelu(x, approximate="tanh"))
    generate(gpt2(), tokenizer(), "The", max_new_tokens=4, seed=0, bf16=False)
    assert not seen
