"Every stage page closes with exercises whose checks accept a right answer and nothing else."
import ast, re
from typing import NamedTuple

import nbformat, pytest

from tree import root
from wrong_answers import wrong

pages = """00_load 01_flatten 02_tokenize 03_group 04_collate 05_train 06_perplexity 07_generate look/blocks
look/explorer look/generation_app look/heatmap model/baselines model/device training/lr_finder
training/share training/watch""".split()


class Exercise(NamedTuple):
    "Three cells of a page"
    question: str
    code: str
    folded: str

    @property
    def solution(self): return re.search(r"^```python\n(.*?)^```$", self.folded, flags=re.S | re.M)[1]


def section(page):
    "The cells from `## Exercises` on, the heading's own first"
    cells = nbformat.read(root/"nbs"/f"{page}.ipynb", as_version=4).cells
    begins = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and c.source.startswith("## Exercises\n")]
    assert len(begins) == 1, f"{page}.ipynb: one section `## Exercises` at the end of each stage"
    return cells[begins[0]:]


def exercises(page):
    "{number: Exercise} of a page; none where the section is missing, which a test of its own tells"
    try: _, *cells = section(page)
    except AssertionError: return {}
    return {i//3 + 1: Exercise(*(c.source for c in cells[i:i + 3])) for i in range(0, len(cells) - 2, 3)}


every_page = pytest.mark.parametrize("page", pages)
found = {(page, n): exercise for page in pages for n, exercise in exercises(page).items()}
every_exercise = pytest.mark.parametrize("key", found, ids=lambda key: f"{key[0]}-{key[1]}")


def stub(code):
    "The function to be filled in"
    dots = lambda node: isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
    node, = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and dots(n.body[-1])]
    return node


def answered(code, answer):
    "The cell with an answer in the place of the stub"
    node, lines = stub(code), code.split("\n")
    return "\n".join([*lines[:node.lineno - 1], answer.strip("\n"), *lines[node.end_lineno:]])


def run(code):
    "What a cell displays, run as the only one of a fresh notebook"
    *body, last = ast.parse(code).body
    names = {"__name__": "exercise"}
    exec(compile(ast.Module(body, []), "exercise", "exec"), names)
    return eval(compile(ast.Expression(last.value), "exercise", "eval"), names)


# What stands on the page

@every_page
def test_page_closes_with_two_or_three_exercises(page):
    intro, *cells = section(page)
    assert "folded" in intro.source
    assert not [c.source for c in cells if c.cell_type == "markdown" and re.match("#{1,2} ", c.source)], "the last section"
    assert [c.cell_type for c in cells] == ["markdown", "code", "markdown"]*(len(cells)//3)
    assert len(cells)//3 in (2, 3)
    for c in cells:
        assert not c.metadata and not c.get("outputs") and c.get("execution_count") is None, "a reader's, not run by us"


@every_exercise
def test_question(key):
    heading, _, text = found[key].question.partition("\n\n")
    assert re.fullmatch(rf"### Exercise {key[1]}: \S.*", heading)
    assert 100 < len(text) < 700 and "\n#" not in text


@every_exercise
def test_code_cell(key):
    "It isn't run by nbdev, has one function to fill in, checks it in several cases, says what each shows, and ends with a reward"
    code = found[key].code
    assert code.split("\n")[0] == "#| eval: false"
    assert max(map(len, f"{code}\n{found[key].solution}".split("\n"))) <= 120
    node, tree = stub(code), ast.parse(code)
    assert ast.get_docstring(node) and len(node.body) == 2 and code.split("\n")[node.end_lineno - 1].endswith("...  # your answer")
    asserts = [n for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert len(asserts) >= 4
    assert isinstance(tree.body[-1], ast.Expr)


@every_exercise
def test_solution_is_folded_away(key):
    question, code, folded = found[key]
    assert folded.startswith("<details><summary>Solution</summary>\n\n```python\n") and folded.endswith("\n\n</details>")
    assert folded.count("```") == 2 and folded.count("<details") == 1
    why = folded.rpartition("```")[2].removesuffix("</details>").strip()
    assert len(why) > 60, "why it is so, in a sentence or two"
    assert "details" not in question
    function, = ast.parse(found[key].solution).body
    given = stub(code)
    assert ast.unparse(function.args) == ast.unparse(given.args) and function.name == given.name
    lines = [line.strip() for line in found[key].solution.strip().split("\n")[1:]]
    assert [line for line in lines if line in code] == [], "the check gives the answer away"


# What the checks accept

@every_exercise
def test_unsolved_cell_fails(key):
    with pytest.raises(AssertionError, match="put your answer in the place of the dots"): run(found[key].code)


@every_exercise
def test_solution_passes(key):
    assert run(answered(found[key].code, found[key].solution)).startswith("Right")


every_wrong_answer = pytest.mark.parametrize("key, label", [(key, label) for key in found for label in wrong.get(key, ())],
                                             ids=lambda o: o if isinstance(o, str) else f"{o[0]}-{o[1]}")


@every_wrong_answer
def test_wrong_answer_is_refused(key, label):
    exercise, answer = found[key], wrong[key][label]
    if isinstance(answer, tuple):
        old, new = answer
        assert old in exercise.solution
        answer = exercise.solution.replace(old, new)
    assert ast.parse(answer.strip("\n")).body[0].name == stub(exercise.code).name
    with pytest.raises(AssertionError) as refused: run(answered(exercise.code, answer))
    assert str(refused.value) and "in the place of the dots" not in str(refused.value), "told why"


@every_exercise
def test_several_wrong_answers_are_known(key): assert len(wrong.get(key, ())) >= 2


def test_wrong_answers_are_of_exercises():
    assert not [key for key in wrong if key[0] in pages and key not in found]
