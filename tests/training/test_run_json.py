"A `run.json` that was edited, cut off or written by something else is one line wherever it is read, and harms nothing"
import json
import pytest
from clm_nb.core import Perplexity, run_arguments, write_report
from clm_nb.cli import main
from clm_nb.look.serve import find_base
from clm_nb.training.run_json import fault_in, read_run, run_shape, saved_run
from clm_nb.training.runs import write_card, write_run
from short_runs import run
from tiny import gpt2

others = [None, "x", 5, -1.5, True, [], ["x"], [None], {}, {"x": {}}, [[]]]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    run(folder := tmp_path_factory.mktemp("good")/"run", gpt2())
    write_run(folder, source=dict(dataset_name={"train": "a.json", "test": "b.json"}, model_name_or_path="m", config_name=None, data={}),
              before=dict(loss=1.0, perplexity=2.7, tokens=9, interval=[1.0, None]), samples=dict(prompt="a", before="ab"))
    return json.loads((folder/"run.json").read_bytes())


def test_what_a_run_on_a_single_held_out_block_wrote_is_read():
    "One block has no spread, so there is no interval: null, in the place of a list"
    figures = Perplexity(loss=1.0, tokens=7).to_dict()
    assert figures["interval"] is None and not fault_in(dict(before=figures, after=figures), run_shape)
    assert fault_in(dict(after=dict(interval="4")), run_shape)


def places(run, at=()):
    "The way to each part, down to the third level"
    for name, value in run.items() if isinstance(run, dict) else enumerate(run[:1]) if isinstance(run, list) else ():
        yield (*at, name)
        if len(at) < 2: yield from places(value, (*at, name))


def changed(run, place, value):
    run = json.loads(json.dumps(run))
    *way, last = place
    part = run
    for name in way: part = part[name]
    part[last] = value
    return run


def one_line(call, *args):
    "Nothing, or one clear line; anything else is raised"
    try: call(*args)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and (str(args[0]) in str(error) or "ledger" in str(error)), error


def test_a_part_of_another_kind_is_named_wherever_it_is_read(good, tmp_path):
    tried = refused = 0
    for place in places(good):
        for value in others:
            edited = changed(good, place, value)
            (tmp_path/"run.json").write_text(json.dumps(edited), encoding="utf-8")
            for call in (write_report, write_card): one_line(call, tmp_path)
            find_base(tmp_path)
            tried, refused = tried + 1, refused + bool(fault_in(edited, run_shape))
    assert tried > 500 and refused > tried//4


def test_a_part_that_is_missing_is_named_where_it_is_needed(good, tmp_path):
    for name in good:
        (tmp_path/"run.json").write_text(json.dumps({key: value for key, value in good.items() if key != name}), encoding="utf-8")
        for call in (write_report, write_card, run_arguments): one_line(call, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '"x"', "["*100_000, "\x00"*9, '{"steps": 1e400}', '{"before": 3.77}'])
def test_what_no_run_wrote_is_refused_and_read_as_nothing_where_a_run_begins(text, tmp_path, capsys):
    (tmp_path/"run.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="run.json (is damaged|can't be read as JSON|can't be used)") as error: saved_run(tmp_path, "steps", "seed")
    assert "\n" not in str(error.value) and read_run(tmp_path) == {}
    assert main(["train", "--from_run", str(tmp_path), "--output_dir", str(tmp_path/"again")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run.json" in said and not (tmp_path/"again").exists()


def test_what_is_added_to_a_damaged_file_destroys_nothing(tmp_path):
    (tmp_path/"run.json").write_text('{"before": 3.77}', encoding="utf-8")
    with pytest.raises(ValueError, match="before is 3.77"): write_run(tmp_path, steps=1)
    assert (tmp_path/"run.json").read_text(encoding="utf-8") == '{"before": 3.77}'
    write_run(tmp_path, new_run=True, steps=1, utilisation=None)
    write_run(tmp_path, seed=2)
    assert saved_run(tmp_path) == {"steps": 1, "seed": 2}
    assert saved_run(tmp_path, nulls=True) == {"steps": 1, "utilisation": None, "seed": 2}
