"What the contributor's page says of places that depend on the inside of a library: all are there, and no other"
import ast, importlib, re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
page = (root/"CONTRIBUTING.md").read_text(encoding="utf-8")
rows = re.findall(r"^\| (`.*)", page.split("## What depends on the inside of a library")[-1].split("## ")[0], re.M)
documented = {"_repr_html_", "_repr_markdown_", "_repr_mimebundle_"}  # of IPython


def own_names(trees):
    "Private names that the package defines itself, as functions, classes or attributes"
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store): yield node.attr


def foreign_names():
    "(module, name) of each private attribute that is read, and not the package's own"
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root/"clm_nb").rglob("*.py"))}
    own = set(own_names(trees.values()))
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                above = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
                if above or node.attr not in own: yield path.relative_to(root/"clm_nb").with_suffix("").as_posix(), node.attr


@pytest.mark.parametrize("row", [row for row in rows if not row.startswith(("`tools", "`look/*`"))])
def test_each_place_is_where_the_table_says(row):
    place = row.split(" | ")[0]
    room, *names = re.findall("`([^`]+)`", place)
    module = importlib.import_module("clm_nb." + room.replace("/", "."))
    assert not [name for name in names if not hasattr(module, name)]


def test_the_table_names_every_private_name_of_a_library():
    found = {(room, name) for room, name in foreign_names() if name not in documented}
    assert len(rows) > 20 and len(found) > 5
    missing = {(room, name) for room, name in found if not any(name in row for row in rows)}
    assert not missing


def test_the_table_names_every_probe():
    "Whoever calls `works` is in the column of probes"
    probes = {name.split(".")[-1] for row in rows for name in re.findall("`([^`]+)`", row)}
    for path in sorted((root/"clm_nb").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "works"]
            if calls: assert node.name in probes, path.name
