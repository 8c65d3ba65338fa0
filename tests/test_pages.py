"What can be counted of pages that teach: code in sight, each name shown at work, something to look at"
import re
from pathlib import Path

import nbformat, pytest

import pages
from tree import root

notebooks = {p.relative_to(root/"nbs").with_suffix("").as_posix(): p for p in sorted((root/"nbs").rglob("*.ipynb"))}
rooms = {name: p for name, p in notebooks.items() if any(map(pages.exported, pages.cells(p)))}
stages = "00_load 01_flatten 02_tokenize 03_group 04_collate 05_train 06_perplexity 07_generate".split()
every_room = pytest.mark.parametrize("room", rooms)


def test_at_least_four_of_five_exported_lines_are_in_sight():
    counts = [pages.sight(p) for p in rooms.values()]
    seen, every = (sum(column) for column in zip(*counts))
    assert len(rooms) > 40 and seen >= 0.8*every


@every_room
def test_each_public_name_is_shown_at_work(room): assert pages.not_shown(rooms[room]) == []


@every_room
def test_there_is_something_to_look_at(room): assert pages.unbroken(rooms[room]) <= pages.longest_run


@every_room
def test_code_fits_a_projector(room): assert pages.wide(rooms[room]) == []


@pytest.mark.parametrize("stage", stages)
def test_a_stage_closes_with_an_experiment_and_exercises(stage):
    titles = [o for c in nbformat.read(notebooks[stage], as_version=4).cells if c.cell_type == "markdown"
              for o in re.findall(r"^## (.*)$", c.source, flags=re.M)]
    assert titles[-2:] == ["Predict, change, run", "Exercises"]


def page(*cells): # ("markdown" or "code", source, whether it displays something)
    made = [dict(cell_type=kind, source=source, outputs=[{}] if shown else []) for kind, source, shown in cells]
    for cell in made: cell["id"] = "x"
    return made


def test_the_counts_see_what_they_are_for(tmp_path):
    import json
    long = "#| exports\n" + "\n".join(f"def f{i}():\n    return {i}\n" for i in range(25))
    cells = page(("code", long, False), ("code", "f0()", True), ("code", "#| export\nclass A:\n    def b(self): pass", False),
                 ("code", "A().b()", False))
    path = tmp_path/"page.ipynb"
    path.write_text(json.dumps(dict(cells=cells)), encoding="utf-8")
    assert pages.unbroken(path) == 50 and pages.sight(path) == (50, 52)
    assert set(pages.not_shown(path)) == {*(f"f{i}" for i in range(1, 25)), "A", "A.b"}


@pytest.mark.parametrize("page", notebooks)
def test_plots_have_an_alternative_text(page):
    for cell in nbformat.read(notebooks[page], as_version=4).cells:
        pictures = [o for o in cell.get("outputs", []) if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
        if pictures and not cell.source.startswith("#| hide"): assert re.search(r'^#\| fig-alt: "[^"]{20,}"$', cell.source, flags=re.M), cell.source


@pytest.mark.parametrize("page", notebooks)
def test_no_progress_bar_of_a_library_is_left_in_what_a_page_shows(page):
    for cell in nbformat.read(notebooks[page], as_version=4).cells:
        for output in cell.get("outputs", []):
            shown = output.get("text", "") + "".join(map(str, output.get("data", {}).values()))
            assert "\r" not in shown and not re.search("Loading weights|Generating .* split|Tokenizing:|Grouping:", shown), cell.id


one_of_many = r"(?<![\d.,:] )(?<![\d.,:×+*/-])\b1 (?:tokens|records|documents|blocks|rows|steps|files|labels|texts|words|characters|bytes|tensors)\b"
accidents = dict(
    plural=one_of_many, folder=r"/tmp/tmp\w+|/(?:root|home/(?!me\b)\w+)/", graph=r"grad_fn=<",
    object=r"^<(?:[\w.]+ object|function|Signature|generator)\b", warning=r"\w+Warning: ")


def printed(page):
    "What the cells of a page print, with the cell's id; what is made for the eye has a text beside it, which nobody sees"
    for cell in pages.cells(notebooks[page]):
        if cell["cell_type"] != "code" or re.match(r"#\| *(hide|export\b)", cell["source"]): continue
        for output in cell["outputs"]:
            data = output.get("data", {})
            yield cell["id"], "".join(output.get("text", "") or ("" if set(data) - {"text/plain"} else data.get("text/plain", "")))


@pytest.mark.parametrize("page", notebooks)
def test_a_page_prints_nothing_by_accident(page):
    found = {(page, kind) for _, text in printed(page) for kind, wrong in accidents.items() if re.search(wrong, text, flags=re.M)}
    assert not found


@pytest.mark.parametrize("page", notebooks)
def test_nobody_scrolls_through_an_output(page):
    assert not {id: n for id, text in printed(page) if (n := text.count("\n")) > 45}


def test_the_reference_leads_to_where_each_name_is_and_says_what_it_is():
    from clm_nb._modidx import d
    there, text = {at for names in d["syms"].values() for name, (at, _) in names.items()}, notebooks["reference"].read_text(encoding="utf-8")
    listed = re.findall(r"\(https://clm-nb\.github\.io/clm_nb/([\w/]+\.html#[\w.]+)\)", text)
    assert len(listed) > 500 and set(listed) <= there
    assert not re.findall(r"\| \**`([\w.]+)`\** \|\s*\|", text)


def test_a_promise_names_a_test_that_is_there():
    promised = re.findall(r"`::(test_\w+)`", notebooks["start/what_you_can_rely_on"].read_text(encoding="utf-8"))
    there = {name for path in Path(__file__).parent.rglob("test_*.py")
             for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.M)}
    assert len(promised) > 10 and set(promised) <= there
