"What is pushed at the end is what was saved: written once, whole, and never an earlier model"
from concurrent.futures import Future
from pathlib import Path
import pytest, transformers
from short_runs import run
from tiny import gpt2


@pytest.fixture
def pushed(monkeypatch):
    "The weights that each push would send, by a client that does what `Trainer` does: save, then upload the run folder"
    sent = []
    def push(self, *args, **kwargs):
        self.save_model(_internal_call=True)
        sent.append(Path(self.args.output_dir, "model.safetensors").read_bytes())
        done = Future(); done.set_result("sent")
        return done
    monkeypatch.setattr(transformers.Trainer, "push_to_hub", push)
    return sent


def test_the_push_sends_the_files_that_were_saved_and_writes_none(pushed, tmp_path):
    trainer = run(tmp_path/"run", gpt2())
    weights = tmp_path/"run/model.safetensors"
    before = weights.stat().st_mtime_ns, weights.stat().st_ino, weights.read_bytes()
    assert trainer.saved_in == tmp_path/"run" and trainer.push_to_hub() == "sent"
    assert (weights.stat().st_mtime_ns, weights.stat().st_ino, weights.read_bytes()) == before and pushed == [before[2]]


def test_a_model_that_was_trained_on_by_hand_is_saved_before_it_is_pushed(pushed, tmp_path):
    trainer = run(tmp_path/"run", gpt2())
    saved = (tmp_path/"run/model.safetensors").read_bytes()
    trainer.train()
    assert trainer.saved_in is None and trainer.push_to_hub() == "sent" and pushed[0] != saved


def test_an_earlier_model_is_not_pushed_where_the_new_one_had_to_be_put_beside_it(pushed, monkeypatch, tmp_path):
    replace = Path.replace
    def held(path, target):
        if Path(target).name == "model.safetensors": raise PermissionError(13, "in use", str(target))
        return replace(path, target)
    run(tmp_path/"run", gpt2())
    monkeypatch.setattr(Path, "replace", held)
    trainer = run(tmp_path/"run", gpt2(), seed=1)
    with pytest.raises(OSError, match="new-model holds the trained model, and .* an earlier one") as refused: trainer.push_to_hub()
    assert pushed == [] and "hf upload" in str(refused.value) and (tmp_path/"run/new-model/model.safetensors").exists()
