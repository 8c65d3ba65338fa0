"""The house: which room comes after which, and what each takes from others, read from the code.

python tools/house.py [--check]  the list of rooms in CONTRIBUTING.md; --check: write nothing, fail if it is out of date
"""
import argparse, ast, re, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

# A room imports only from rooms before it.
order = """progress ledger probe
data/valid_json data/secrets data/whole data/cache data/processes data/faults data/card data/files data/hub data/python_docs data/objects data/split data/leaks data/tokenizer data/encoders
load tokenize
flatten group collate
model/device model/model model/causal model/loss model/activation model/metric model/scored_rows model/perplexity_table model/baselines model/options model/sampling model/packed model/recorded model/inference model/turns model/decoding
perplexity generate
training/waiting training/renamed training/amounts training/settings training/run_json training/runs training/share training/hold training/checkpoint training/diverged training/charts training/throughput training/sampler training/watch
training/captured training/resume training/stop training/trial training/trainer training/lr_finder training/preflight training/plan
train
training/fit
look/html look/token_text look/cutting look/block_rows look/block_stripes look/blocks look/flow look/batch look/loss_map look/token_table look/tints look/token_box
look/heatmap look/results look/distribution look/likely_path look/explorer_bars look/explorer_column look/explorer
look/answers look/app_controls look/generation_app look/web_page look/serve look/report look/run
core
arguments training_commands cli""".split()
starts_light = {"cli", "training_commands"}  # import what a command needs when it is called: `clm_nb --help` loads no torch


def rooms() -> dict[str, ast.Module]: # "look/heatmap" → its tree
    "All modules of the package that are exported from a page."
    package = root/"clm_nb"
    files = [p for p in package.rglob("*.py") if p.stem not in ("__init__", "__main__", "_modidx")]
    return {p.relative_to(package).with_suffix("").as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def imports(
    room: str, # "look/heatmap"
    tree: ast.Module, # its code
    known, # the names of all rooms
) -> list[tuple[str, str | None, bool]]: # (room, name, whether inside of a function)
    "What a room takes from others, lazily or not."
    top, found, package = set(map(id, tree.body)), [], Path("clm_nb", room).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken = [(a.name.split("."), None) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = [part for part in (*base, *(node.module or "").split(".")) if part]
            taken = [(module, a.name) for a in node.names]
        else:
            continue
        for module, name in taken:
            if module[0] != "clm_nb":
                continue
            whole, outer = "/".join([*module[1:], *([name] if name else [])]), "/".join(module[1:])
            if whole in known:
                found.append((whole, None, id(node) not in top))
            elif outer in known:
                found.append((outer, name, id(node) not in top))
    return found


def faults(
    trees: dict[str, ast.Module], # all rooms
    order: list[str], # the order they are to have
) -> list[str]:
    "Imports against the order (every circle has one), private names of others, imports inside of functions."
    found = [f"{room} is not in the list" for room in trees if room not in order]
    for room, tree in trees.items():
        for other, name, lazy in imports(room, tree, trees):
            if room in order and other in order and order.index(other) >= order.index(room):
                found.append(f"{room} imports {other}")
            if name and name.startswith("_"):
                found.append(f"{room} imports {name} of {other}")
            if lazy and room not in starts_light:
                found.append(f"{room} imports {other} inside of a function")
    return found


def listing() -> str: # Markdown
    "A line for each room: its page, what it is, how long it is, and what it takes."
    trees, lines = rooms(), ["| room | what it is | lines | takes from |", "| --- | --- | ---: | --- |"]
    for room in order:
        tree = trees[room]
        what = (ast.get_docstring(tree) or "").split("\n")[0]
        taken = sorted({other for other, _, _ in imports(room, tree, trees)}, key=order.index)
        source = (root/"clm_nb"/f"{room}.py").read_text(encoding="utf-8")
        length = sum(bool(o.strip()) and not o.startswith("#") for o in source.splitlines())
        lines.append(f"| `{room}` | {what} | {length} | {', '.join(taken)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    "Write the list, or (check) say whether it is out of date."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    path, check = root/"CONTRIBUTING.md", parser.parse_args(argv).check
    text = path.read_text(encoding="utf-8")
    new = re.sub(r"(<!-- house: [^>]*-->\n).*?(<!-- house ends -->)", lambda m: f"{m[1]}{listing()}\n{m[2]}", text, flags=re.S)
    if new != text and not check:
        path.write_text(new, encoding="utf-8", newline="\n")
    if new != text:
        print("CONTRIBUTING.md" + (": out of date. Run `make prepare`." if check else ""))
    return int(check and new != text)


if __name__ == "__main__": sys.exit(main())
