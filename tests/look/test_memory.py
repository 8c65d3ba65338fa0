"Who drops a view drops the models in it"
import gc, json, weakref

import pytest
from clm_nb.look.explorer import NextTokenExplorer
from clm_nb.look.generation_app import GenerationApp
from tiny import gpt2, tokenizer


@pytest.mark.parametrize("kind", [NextTokenExplorer, GenerationApp])
def test_dropped_views_let_go_of_their_models(kind):
    words, alive = tokenizer(), []
    for _ in range(3):
        model = gpt2()
        view = kind(model, words, "The quick")
        assert view._repr_html_() and view.ui
        alive.append(weakref.ref(model))
        del model, view
    gc.collect()
    assert [ref() is None for ref in alive] == [True]*3


def test_finetune_keeps_no_model_that_nobody_holds(tmp_path):
    "The report shows base and tuned model in an explorer"
    from clm_nb.core import finetune
    from transformers import GPT2LMHeadModel
    def alive(): return sum(isinstance(o, GPT2LMHeadModel) for o in gc.get_objects()) # nothing is left that can't be asked
    (tmp_path/"corpus.jsonl").write_text("".join(json.dumps(dict(text=f"The {n}th line of a small corpus.")) + "\n" for n in range(60)), encoding="utf-8")
    gpt2().save_pretrained(tmp_path/"model"), tokenizer().save_pretrained(tmp_path/"model")
    counts = []
    for n in range(2):
        run = finetune(str(tmp_path/"corpus.jsonl"), str(tmp_path/"model"), output_dir=tmp_path/f"run{n}", block_size=16, max_new_tokens=3,
                       max_steps=1, disable_tqdm=True, save_strategy="no")
        del run
        gc.collect()
        counts.append(alive())
    assert counts[1] <= counts[0]
