"The house: imports run one way, and no room reaches into another's cupboards"
import ast, sys

import pytest
from tree import root

sys.path.insert(0, str(root/"tools"))
from house import faults, order, rooms  # tools/house.py


def test_imports_run_one_way():
    trees = rooms()
    assert len(trees) > 40 and faults(trees, order) == [] and set(order) == set(trees)


@pytest.mark.parametrize("source", ["from clm_nb.b import x", "def f():\n    from .b import x", "import clm_nb.b",
                                    "from . import b", "from clm_nb import b", "class A:\n    from clm_nb.b import x"])
def test_an_arrow_against_the_order_is_seen(source):
    assert "a imports b" in faults(dict(a=ast.parse(source), b=ast.parse("")), ["a", "b"])


def test_a_circle_is_seen():
    trees = dict(a=ast.parse("from clm_nb.b import x"), b=ast.parse("from clm_nb.a import y"))
    assert all(len(faults(trees, order)) == 1 for order in (["a", "b"], ["b", "a"]))


def test_a_private_name_and_a_lazy_import_are_seen():
    tree = ast.parse("from clm_nb.a import _x\ndef f():\n    from clm_nb.a import y")
    assert faults(dict(a=ast.parse(""), b=tree), ["a", "b"]) == ["b imports _x of a", "b imports a inside of a function"]


def test_each_room_has_its_page_under_its_name():
    pages = {p.relative_to(root/"nbs").with_suffix("").as_posix() for p in (root/"nbs").rglob("*.ipynb")}
    numbered = {page[3:] for page in pages if page[:2].isdigit()}
    assert set(rooms()) <= pages | numbered


def test_a_room_is_small():
    "Lines of code, without the blank ones and nbdev's comments; core is long by what it says of its parameters"
    def lines(room): return sum(bool(o.strip()) and not o.startswith("#") for o in (root/f"clm_nb/{room}.py").read_text(encoding="utf-8").splitlines())
    lengths = {room: lines(room) for room in order}
    assert sorted(lengths.values())[len(order)//2] <= 150
    assert {room for room, length in lengths.items() if length > 250} <= {"core"} and lengths["core"] <= 320
