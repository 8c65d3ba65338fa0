"A run's report: one file, nothing from outside, nothing unescaped, the run's own figures."
import json, re
from html.parser import HTMLParser

import pytest

from clm_nb.look.report import report_html, write_report

evil = '<script>alert(1)</script> & "quoted"'


class View:
    def _repr_html_(self): return "<p>a view</p>"


def run_json(text: str = "text") -> dict:
    "A `run.json` in which whatever comes from data or a model is `text`"
    def stage(**counts): return counts
    ledger = {"load": stage(read=3, dropped_duplicates=1, records=2), "flatten": stage(records=2, texts=2, documents=2,
              dropped_empty=0, dropped_missing=0), "tokenize": stage(documents=2, tokens=30, text_tokens=28, special_tokens=2),
              "group": stage(tokens=30, blocks=3, tokens_in_blocks=24, dropped_remainder=6)}
    figures = lambda loss, perplexity: dict(loss=loss, perplexity=perplexity, tokens=21, interval=[perplexity - 1, perplexity + 1],
                                            standard_error=0.1, bits_per_byte=None)
    history = [dict(step=1, epoch=0.5, loss=5.25, learning_rate=1e-3),
               dict(step=2, epoch=1.0, eval_loss=4.125, eval_perplexity=61.87)]
    return dict(status="trained", source=dict(model_name_or_path=text, dataset_name=text), steps=2, tokens_per_second=1234,
                utilisation=0.5, train_seconds=9.75, log_history=history, ledger={"train": ledger}, before=figures(5.0, 148.41),
                after=figures(4.0, 54.6), samples=dict(prompt=text, before=text, after=text),
                samples_by_step=[dict(step=2, text=text)], training_arguments=dict(run_name=text), seed=42)


class Tags(HTMLParser):
    "The open elements at the end, every (tag, attributes), and the text"
    empty = {"meta", "br", "img", "hr", "link", "input"}

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.empty: self.open.append(tag)

    def handle_startendtag(self, tag, attributes): self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.words.append(data)


def test_the_page_is_whole_and_asks_nothing_of_a_network():
    tags = Tags(report_html(run_json(), {"A view": ("About it.", View())}))
    assert not tags.open
    assert "script" not in {tag for tag, _ in tags.seen}
    for tag, attributes in tags.seen:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"@import|url\((?!#|[\"']?data:)", report_html(run_json()))


def test_texts_of_data_and_models_are_escaped():
    page = report_html(run_json(evil), {evil: (evil, View())})
    assert "<script" not in page
    tags = Tags(page)
    assert not tags.open
    assert "".join(tags.words).count(evil) >= 8  # title, heading, prompt, three samples, the view's title and sentence


def test_figures_are_those_of_the_run():
    words = "".join(Tags(report_html(run_json())).words)
    for figure in ("148.41", "54.60", "5.0000", "4.0000", "1,234 tokens/s", "50%", "4.1250", "61.87", "9.8 s"): assert figure in words


@pytest.mark.parametrize("missing, heading", [("log_history", "Training"), ("samples", "Samples"), ("ledger", "Where the tokens went")])
def test_what_a_run_lacks_has_no_section(missing, heading):
    run = run_json()
    assert f">{heading}</h2>" in report_html(run)
    if missing == "samples": del run["samples_by_step"]
    del run[missing]
    assert f">{heading}</h2>" not in report_html(run)


def test_a_run_that_only_began_has_a_report():
    assert not Tags(report_html({"status": "training", "source": {}})).open


def test_an_older_report_stays_until_the_new_one_is_whole(tmp_path):
    (tmp_path/"run.json").write_text(json.dumps(run_json("first")), encoding="utf-8")
    assert "first" in write_report(tmp_path).read_text(encoding="utf-8")
    (tmp_path/"run.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError): write_report(tmp_path)
    assert "first" in (tmp_path/"report.html").read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "report.html"}


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run.json doesn.t exist"): write_report(tmp_path)


def test_a_view_that_fails_in_the_making_or_the_drawing_is_replaced_by_its_reason():
    from clm_nb.look.run import _Shown
    class Broken:
        def _repr_html_(self): raise RuntimeError(f"drawing {evil}")
    def unmade(): raise ValueError(f"making {evil}")
    for make, reason in ((Broken, "drawing"), (unmade, "making")):
        page = report_html(run_json(), {"A view": ("About it.", _Shown(make))})
        assert f"Not shown: {reason} {evil}" in "".join(Tags(page).words) and "<script" not in page
    assert _Shown(View)._repr_html_() == "<p>a view</p>"


def test_a_perplexity_that_is_infinite_is_a_dash():
    "`run.json` has null for it"
    from clm_nb.look.report import measured_row
    row = measured_row("after", dict(perplexity=None, loss=None, interval=[1.0, None], tokens=3))
    assert row == ["after training", "–", "–", "–", "3"]
