"Tokens made in tensors that stay where they are: the texts of the usual way, from a recording that knows no Python"
import pytest, torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import GenerationConfig
import clm_nb.model.device
from clm_nb import generate as generate_room
from clm_nb.generate import generate, stream
from clm_nb.model import decoding, recorded
from clm_nb.model.decoding import Decoding, chooser, same_scores, usual_model
from clm_nb.model.sampling import left_padded
from clm_nb.probe import forget, trouble
from families import bidirectional, every, make
from short_runs import large
from tiny import Questions, everywhere, gpt2, llama, tokenizer

prompts = ["The quick", "def f(x):", "a"]
sampling = dict(do_sample=True, num_beams=1, temperature=1.0, top_k=50, top_p=0.95)


def tensors_of(job):
    "All that a step changes"
    own = [x for x in vars(job).values() if torch.is_tensor(x)]
    return own + [x for layer in job.cache.layers for x in (layer.keys, layer.values, layer.cumulative_length)]


@pytest.fixture
def recordings(asked_anew, monkeypatch):
    """In the place of a GPU: PyTorch traces the work to a list of operations on these very tensors, in which every number of
    Python is what it was, and carries that list out. What was recorded"""
    lists = []
    def recording(work):
        state = tensors_of(work.__self__)
        before, rng = [x.clone() for x in state], torch.get_rng_state()
        flat = make_fx(lambda: [work(), torch.zeros(0)][1])()
        for x, old in zip(state, before): x.copy_(old)  # a GPU that records doesn't work
        torch.set_rng_state(rng)
        lists.append(flat)
        return torch.no_grad()(flat)
    monkeypatch.setattr(decoding, "on_gpu", lambda model: True)
    monkeypatch.setattr(recorded, "aside", lambda work: work())
    monkeypatch.setattr(recorded, "recording", recording)
    return lists


def usual(*args, **options):
    "The text as it is made without a GPU"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_room, "can_decode", lambda model, options: False)
        return generate(*args, **options)


@pytest.mark.parametrize("options", [dict(do_sample=False), dict(seed=1), dict(seed=2, min_new_tokens=25, temperature=0.3, top_p=1.0),
                                     dict(do_sample=False, eos_token_id=[9, 40, 41])])
@pytest.mark.parametrize("family", [gpt2, llama])
def test_a_recorded_text_is_the_usual_one(family, options, recordings):
    model, tok = family(), tokenizer()
    for texts in (prompts[0], prompts):
        assert generate(model, tok, texts, max_new_tokens=40, **options) == usual(model, tok, texts, max_new_tokens=40, **options)
    assert len(recordings) == 3  # the probe, and each of the two; every other token is repeated


@pytest.mark.parametrize("options", [dict(do_sample=False), dict(seed=1)])
def test_a_stream_gives_the_same_text_and_asks_at_each_token(options, recordings):
    model, tok = gpt2(), tokenizer()
    pieces = list(stream(model, tok, prompts[0], max_new_tokens=40, **options))
    assert prompts[0] + "".join(pieces) == generate(model, tok, prompts[0], max_new_tokens=40, **options)
    assert len(pieces) > 10 and len(recordings) == 3
    reader = stream(model, tok, prompts[0], max_new_tokens=40, **options)
    assert next(reader) == pieces[0]
    reader.close()


def test_texts_that_ended_are_noticed_at_the_eighth_token(recordings):
    "And what is made behind an EOS is no part of the text"
    model, tok = gpt2(), tokenizer()
    def made(**options): return Decoding(model, inputs, GenerationConfig(max_new_tokens=40, **options)).run()
    text, inputs = generate(model, tok, prompts[0], max_new_tokens=40, do_sample=False), left_padded([tok(prompts[0])["input_ids"]], 0)
    third = made()[0, 2].item()
    assert torch.equal(made(eos_token_id=[third]), made()[:, :8]) and made().shape == (1, 40)
    ended = dict(max_new_tokens=40, do_sample=False, eos_token_id=third)
    assert generate(model, tok, prompts[0], **ended) == usual(model, tok, prompts[0], **ended) != text
    later = ended | dict(min_new_tokens=20)  # without, the third token ends it
    assert third not in made(eos_token_id=[third], min_new_tokens=20)[:, :20]
    assert generate(model, tok, prompts[0], **later) == usual(model, tok, prompts[0], **later) != usual(model, tok, prompts[0], **ended)


@pytest.mark.parametrize("options", [sampling, sampling | dict(do_sample=False)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "qwen3"])
def test_a_step_asks_the_device_for_nothing_and_leaves_all_tensors_where_they_are(family, options):
    model = make(family)
    job = Decoding(model, left_padded([[5, 6, 7], [8]], 0), GenerationConfig(max_new_tokens=9, min_new_tokens=3, eos_token_id=[9]), chooser(options))
    with torch.no_grad():
        job.prefill()
        places = [x.data_ptr() for x in tensors_of(job)]
        with Questions() as questions: job.step()
        job.step()
        assert not questions.asked and places == [x.data_ptr() for x in tensors_of(job)]
        with Questions() as questions: job.over(3)
    assert questions.asked  # that it is noticed


def test_from_the_second_token_on_the_weights_are_in_bf16(recordings, monkeypatch):
    "And the scores stay near those of float32; bf16 is computed here also where it isn't fast"
    everywhere(monkeypatch, clm_nb.model.device, "has_bf16", lambda device: True)
    model, tok, kinds = large(), tokenizer(), []
    job = generate_room.Job(model, tok, prompts[:2], max_new_tokens=20, **sampling)
    job.speed_up()
    assert job.bf16 and job.in_place and not job.roomy
    text = Decoding(job.model_to_run(), left_padded(job.rows, 0), job.config)
    seen, keep = [], Decoding.keep
    monkeypatch.setattr(Decoding, "keep", lambda self, scores: seen.append(scores.clone()) or keep(self, scores))
    with torch.no_grad():
        text.prefill()
        for _ in range(5):
            text.step()
            kinds.append({layer.keys.dtype for layer in text.cache.layers})
        rows = [row + new for row, new in zip(job.rows, text.ids[:, :5].tolist())]
        exact = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
    far = ((seen[-1] - exact).norm()/exact.norm()).item()
    assert kinds == [{torch.bfloat16}]*5 and 0 < far < 0.05 and model.dtype == torch.float32
    assert len(generate(model, tok, prompts[0], max_new_tokens=20, seed=1)) > 30


def test_every_usual_family_says_the_same_of_a_row_that_it_reads_in_parts():
    models = {family: model for family in every if usual_model(model := make(family))}
    assert len(models) > 40 and {"gpt2", "llama", "mixtral", "opt", "qwen3"} <= set(models)
    wrong = {family for family, model in models.items() if trouble(lambda: same_scores(model))}
    assert wrong <= set(bidirectional)  # in old versions of transformers some can't; `decoding_works` notices


def test_what_it_does_not_serve_goes_the_usual_way(recordings, monkeypatch, caplog):
    model, tok = gpt2(), tokenizer()
    for options in (dict(num_beams=2), dict(top_k=0), dict(repetition_penalty=1.2), dict(bf16=False), dict(max_new_tokens=4),
                    dict(use_cache=False), dict(logits_processor=[lambda ids, scores: scores]), dict(do_sample=False, stop_strings="q")):
        generate(model, tok, prompts, **dict(max_new_tokens=20, seed=0) | options)
    for family in ("bloom", "mamba", "gemma2"):
        generate(make(family), tok, prompts, max_new_tokens=20)
    assert not [x for x in recordings if x] and "full length" not in caplog.text
    monkeypatch.setattr(Decoding, "step", lambda self: self.keep(torch.zeros(len(self.prompts), 400)))
    forget()
    assert generate(model, tok, prompts, max_new_tokens=20, seed=1) == usual(model, tok, prompts, max_new_tokens=20, seed=1)
    assert "GPT2LMHeadModel with tensors of full length gives other results here" in caplog.text


def test_a_step_that_cannot_be_recorded_is_done_plainly(recordings, monkeypatch, caplog):
    def refuse(work): raise RuntimeError("operation not permitted when stream is capturing")
    monkeypatch.setattr(recorded, "recording", refuse)
    model, tok = gpt2(), tokenizer()
    assert generate(model, tok, prompts, max_new_tokens=20, seed=1) == usual(model, tok, prompts, max_new_tokens=20, seed=1)
    assert "Tokens go to the GPU one operation at a time, which is slower: recording one fails here" in caplog.text


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(spoiled, recordings):
    model, tok = gpt2(), tokenizer()
    generate(model, tok, prompts[0], max_new_tokens=20)
    with torch.no_grad(): model.transformer.ln_f.bias[:] = spoiled
    for make_text in (lambda: generate(model, tok, prompts, max_new_tokens=20), lambda: list(stream(model, tok, "a", max_new_tokens=20))):
        with pytest.raises(ValueError, match="scores that aren't finite"): make_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [dict(do_sample=False), dict(seed=1)])
@pytest.mark.parametrize("family", [gpt2, llama])
def test_on_a_gpu_a_recorded_text_is_the_usual_one(family, options, monkeypatch):
    made, real = [], recorded.recording
    monkeypatch.setattr(recorded, "recording", lambda work: made.append(work) or real(work))
    model, tok = family().cuda(), tokenizer()
    assert generate(model, tok, prompts, max_new_tokens=40, **options) == usual(model, tok, prompts, max_new_tokens=40, **options)
    assert made
