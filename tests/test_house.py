"The house: imports run one way, and no room reaches into another's cupboards"
import ast
from pathlib import Path

import pytest
from tree import root

# left of an arrow: imported by what is right of it; inside a wing, in the order of the list
hall = """ledger
data/cache data/files data/hub data/python_docs data/split data/leaks data/tokenizer
load tokenize
flatten group collate
model/device model/model model/loss model/metric model/baselines model/sampling model/inference
perplexity generate
training/waiting training/settings training/runs training/share training/charts training/watch training/trainer training/lr_finder
train
look/html look/token_text look/cutting look/blocks look/flow look/batch look/loss_map look/heatmap look/results look/distribution
look/explorer_bars look/explorer look/answers look/generation_app look/web_page look/serve look/report look/run
core
arguments cli""".split()
starts_light = {"cli"}  # imports what a command needs when the command is called: `clm_nb --help` loads no torch


def rooms() -> dict[str, ast.Module]: # "look/heatmap" → its tree
    files = [p for p in (root/"clm_nb").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")]
    return {p.relative_to(root/"clm_nb").with_suffix("").as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def imports(room: str, tree: ast.Module, known) -> list[tuple[str, str, bool]]: # (room, name, inside of a function)
    "What a room takes from others, lazily or not"
    top, found = set(map(id, tree.body)), []
    package = Path("clm_nb", room).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(a.name.split("."), None) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = [*base, *(node.module or "").split(".")]
            names = [([part for part in module if part], a.name) for a in node.names]
        else: continue
        for module, name in names:
            if module[0] != "clm_nb": continue
            whole = "/".join(module[1:] + [name] if name else module[1:])
            other = whole if whole in known else "/".join(module[1:])
            if other in known: found.append((other, name if whole != other else None, id(node) not in top))
    return found


def faults(trees: dict[str, ast.Module], order: list[str]) -> list[str]:
    "Arrows against the order (a circle has one), private names of others, imports inside of functions"
    found = [f"{room} is not in the list" for room in trees if room not in order]
    for room, tree in trees.items():
        for other, name, lazy in imports(room, tree, trees):
            if room in order and other in order and order.index(other) >= order.index(room): found.append(f"{room} imports {other}")
            if name and name.startswith("_") and name != "__version__": found.append(f"{room} imports {name} of {other}")
            if lazy and room not in starts_light: found.append(f"{room} imports {other} inside of a function")
    return found


def test_imports_run_one_way():
    trees = rooms()
    assert len(trees) > 40 and faults(trees, hall) == [] and set(hall) == set(trees)


@pytest.mark.parametrize("source,fault", [
    ("from clm_nb.b import x", "a imports b"), ("def f():\n    from .b import x", "a imports b"),
    ("import clm_nb.b", "a imports b"), ("from . import b", "a imports b"), ("from clm_nb import b", "a imports b")])
def test_an_arrow_against_the_order_is_seen(source, fault):
    assert fault in faults(dict(a=ast.parse(source), b=ast.parse("")), ["a", "b"])


def test_a_private_name_and_a_lazy_import_are_seen():
    tree = ast.parse("from clm_nb.a import _x\ndef f():\n    from clm_nb.a import y")
    assert faults(dict(a=ast.parse(""), b=tree), ["a", "b"]) == ["b imports _x of a", "b imports a inside of a function"]


def test_each_room_has_its_page_under_its_name():
    pages = {p.relative_to(root/"nbs").with_suffix("").as_posix() for p in (root/"nbs").rglob("*.ipynb")}
    numbered = {f"{p[3:]}" for p in pages if p[:2].isdigit()}
    assert {room for room in rooms() if room not in pages | numbered} == set()
