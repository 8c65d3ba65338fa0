"JSON that every reader takes"
import json, math
from pathlib import Path

import numpy as np, pytest
from clm_nb.data.valid_json import to_json
from clm_nb.model.metric import Perplexity
from clm_nb.training.runs import write_run


def strict(text):
    def refuse(word): raise ValueError(word)
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_is_no_number_is_null_however_deep(bad):
    deep = {"a": [1.5, (bad, {"b": bad})], "c": Path("x")}
    assert strict(to_json(deep)) == {"a": [1.5, [None, {"b": None}]], "c": "x"}
    assert strict(to_json(Perplexity(bad, 3, bad, bad).to_dict()))["loss"] is None


def test_run_json_is_json(tmp_path):
    write_run(tmp_path, log_history=[{"loss": math.nan}], before=Perplexity(math.inf, 2).to_dict())
    assert strict((tmp_path/"run.json").read_text(encoding="utf-8"))["log_history"] == [{"loss": None}]
