"What can be counted of a page that teaches: `python tests/pages.py nbs/look/heatmap.ipynb` prints it"
import ast, json, re, sys
from pathlib import Path

look_within = 4 # cells in which a public name is to be shown
longest_run = 40 # exported lines before there is something to look at


def cells(path: Path) -> list[dict]:
    "The cells of a page up to its exercises, each with `source` as one string"
    found = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    for cell in found: cell["source"] = "".join(cell["source"])
    end = next((i for i, c in enumerate(found) if c["source"].startswith("## Exercises")), len(found))
    return found[:end]


def exported(cell: dict) -> bool: return cell["cell_type"] == "code" and bool(re.match(r"#\| *exports?\b", cell["source"]))


def in_sight(cell: dict) -> bool: return bool(re.match(r"#\| *exports\b", cell["source"]))


def plumbing(cell: dict) -> bool:
    "Imports, and constants without a function"
    kinds = ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign
    return all(isinstance(node, kinds) for node in ast.parse(cell["source"]).body)


def lines(cell: dict) -> int: return sum(bool(o.strip()) and not o.startswith("#|") for o in cell["source"].splitlines())


def shows(cell: dict) -> bool:
    "Whether a reader sees something come out of it, or a picture"
    if cell["cell_type"] == "markdown": return bool(re.search(r"!\[[^\]]*\]\(|<svg|<img", cell["source"]))
    return bool(cell["outputs"]) and not re.match(r"#\| *(hide|export)", cell["source"])


def public_names(cell: dict) -> list[str]:
    "Functions, classes and methods that it defines for others; `Class.method` for a method"
    found = []
    for node in ast.parse(cell["source"]).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
        patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
        owner = f"{ast.unparse(node.args.args[0].annotation)}." if patched else ""
        found.append(f"{owner}{node.name}")
        if isinstance(node, ast.ClassDef):
            found += [f"{node.name}.{o.name}" for o in node.body if isinstance(o, ast.FunctionDef) and not o.name.startswith("_")
                      and not any(ast.unparse(d).endswith(".setter") for d in o.decorator_list)]
    return found


def mentions(cell: dict, name: str) -> bool: return bool(re.search(rf"\b{name.split('.')[-1]}\b", cell["source"]))


def not_shown(path: Path) -> list[str]:
    "Public names that no cell shows at work, with something to see, soon after they are defined"
    found, page = [], cells(path)
    for i, cell in enumerate(page):
        if not exported(cell): continue
        after = [c for c in page[i + 1:i + 1 + look_within] if c["cell_type"] == "code" and not exported(c)]
        found += [name for name in public_names(cell) if not any(shows(c) and mentions(c, name) for c in after)]
    return found


def unbroken(path: Path) -> int:
    "The longest run of exported lines with nothing to look at"
    longest = run = 0
    for cell in cells(path):
        if exported(cell) and not plumbing(cell): longest, run = max(longest, run + lines(cell)), run + lines(cell)
        elif not exported(cell) and shows(cell): run = 0
    return longest


def sight(path: Path) -> tuple[int, int]:
    "(exported lines that the site shows, all of them)"
    code = [c for c in cells(path) if exported(c)]
    return sum(lines(c) for c in code if in_sight(c)), sum(map(lines, code))


def wide(path: Path) -> list[str]:
    "Lines of code over 100 columns"
    code = [c for c in cells(path) if c["cell_type"] == "code" and c["id"] != "colab-install"]
    return [o for c in code for o in c["source"].splitlines()
            if len(o) > 100 and not o.startswith("#|")]


def prose(path: Path) -> str: return "\n".join(c["source"] for c in cells(path) if c["cell_type"] == "markdown")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        words, (seen, every) = len(prose(path).split()), sight(path)
        you = len(re.findall(r"\b(?:you|your|yours|we|us|our)\b", prose(path), re.I))
        code = [c for c in cells(path) if c["cell_type"] == "code"]
        print(f"{path}: {seen} of {every} exported lines in sight, longest run {unbroken(path)}, {len(wide(path))} lines over 100, "
              f"{words} words, you/we {10_000*you//max(words, 1)} per 10,000, for example {prose(path).lower().count('for example')}, "
              f"code cells with an output {sum(map(shows, code))} of {len(code)}")
        if hidden := not_shown(path): print("  not shown within four cells:", ", ".join(hidden))
