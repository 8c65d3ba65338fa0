"""What nbdev's entries for functions and classes lack, put in after it has processed a notebook

An entry stands before the source it is about, in the order of the source. Where that source is in sight, its signature
isn't said twice; where it isn't, a class is shown as a class, with its fields. No name is of `__main__`, which is where
nbdev ran the page. And each anchor is there once. Of names that differ only in case, `leakage` keeps the one that nbdev
links to, and `Leakage` has `class-leakage`. A heading of the prose that is an entry's name gives way: `about-leakage`.
"""
import ast, importlib, inspect, re

import nbformat

title = re.compile(r"^### (\S+)$", flags=re.M)
signature = re.compile(r"^```python\n.*?^```", flags=re.S | re.M)
source = re.compile(r"/blob/[^/]+/(clm_nb/[\w/]+)\.py#L(\d+)")


# An entry: a code cell that calls `show_doc`, with Markdown as its output

def markdown(cell) -> str:
    "The Markdown of an entry; of any other cell, nothing"
    if cell.cell_type != "code" or not re.search(r"^show_doc\(", cell.source, flags=re.M): return ""
    return "".join("".join(o.data.get("text/markdown", "")) for o in cell.outputs if "data" in o)


def name(entry) -> str: return title.search(markdown(entry))[1]


def line(entry) -> int: return int(source.search(markdown(entry))[2])


def symbol(entry):
    "What the entry is about, from the exported module"
    found = importlib.import_module(source.search(markdown(entry))[1].replace("/", "."))
    for part in name(entry).split("."): found = getattr(found, part)
    return found


def say(entry, text: str):
    "Put another text in the place of an entry's"
    output, *_ = [o for o in entry.outputs if "text/markdown" in o.get("data", {})]
    output.data["text/markdown"] = text


def is_entry(cell) -> bool:
    text = markdown(cell)
    return bool(title.search(text) and source.search(text))


# The order

def defined(cell) -> set[str]:
    "The functions, classes and methods of a cell, and the classes that it patches"
    if cell.cell_type != "code" or "#| exports" not in cell.source: return set()
    found = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
    return found


def belongs(cell, names: set[str]) -> bool: return is_entry(cell) and name(cell).split(".")[-1] in names


def in_order(cells: list) -> list:
    "The same cells, the entries of each exported cell before it and as they are in it; none for private names"
    out, rest = [], list(cells)
    while rest:
        cell = rest.pop(0)
        names, own = defined(cell), []
        while out and belongs(out[-1], names): own.append(out.pop())
        while rest and belongs(rest[0], names): own.append(rest.pop(0))
        for entry in own: say(entry, signature.sub("", markdown(entry), 1))
        out += [*sorted(own, key=line), cell]
    return [c for c in out if not (is_entry(c) and re.search(r"(^|\.)_", name(c)))]


# What an entry says

def fields(cls: type) -> list[str]:
    "The lines of a class that declare its fields, with their comments; none where it has an `__init__` of its own"
    code = inspect.getsource(cls)
    body, lines = ast.parse(code).body[0].body, code.splitlines()
    if any(isinstance(node, ast.FunctionDef) and node.name == "__init__" for node in body): return []
    return [o for node in body if isinstance(node, ast.AnnAssign) for o in lines[node.lineno - 1:node.end_lineno]]


def head(cls: type) -> str:
    "How a class begins: its name, what it is made from, its fields"
    bases = [o.__name__ for o in cls.__bases__ if o is not object]
    if issubclass(cls, tuple): bases = ["NamedTuple"]
    lines = [f"class {cls.__name__}" + (f"({', '.join(bases)}):" if bases else ":"), *fields(cls)]
    return "\n".join(["```python", *lines, "```"])


def as_class(text: str, cls: type) -> str:
    "An entry's Markdown with the class's own signature"
    own = any("__init__" in vars(o) for o in cls.__mro__ if o.__module__.startswith("clm_nb"))
    if fields(cls) or not own: return signature.sub(lambda m: head(cls), text, 1)
    return text.replace("```python\ndef ", "```python\nclass ", 1)


# Anchors

def spellings(cells: list) -> dict[str, set[str]]:
    "The entries' names by what they are in small letters"
    found = {}
    for cell in filter(is_entry, cells): found.setdefault(name(cell).lower(), set()).add(name(cell))
    return found


def anchor(full: str, alike: set[str]) -> str:
    "The id of a name's heading, where others differ only in case"
    return full.lower() if len(alike) == 1 or full[0].islower() else f"class-{full.lower()}"


def own_anchors(pages: dict) -> dict[str, dict[str, str]]:
    "page.html → {name: anchor}, for names whose anchor is another than the one that nbdev links to"
    found = {}
    for page, nb in pages.items():
        for low, alike in spellings(nb.cells).items():
            moved = {full: anchor(full, alike) for full in alike if anchor(full, alike) != low}
            if moved: found.setdefault(page, {}).update(moved)
    return found


def relink(text: str, moved: dict[str, dict[str, str]]) -> str:
    "The same Markdown, its links to a moved name led to where it is now"
    for page, names in moved.items():
        for full, new in names.items():
            link = rf"(\[`(?:[\w.]+\.)?{re.escape(full)}(?:\(\))?`\]\([^)\s]*{re.escape(page)})#{re.escape(full.lower())}\)"
            text = re.sub(link, rf"\1#{new})", text)
    return text


def prose_heading(match, taken: set[str]) -> str:
    "A heading of the prose that is an entry's name: no link to itself, and another anchor"
    text = re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", match[2])
    low = text.strip("`").lower()
    return f"{match[1]} {text} {{#about-{low}}}" if low in taken else match[0]


def free(text: str, taken: set[str]) -> str:
    "A cell of prose whose headings leave the entries their anchors"
    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    heading = re.compile(r"^(#{1,6}) +(.+)$", flags=re.M)
    return "".join(o if o.startswith("```") else heading.sub(lambda m: prose_heading(m, taken), o) for o in parts)


def mended(text: str, moved: dict[str, str]) -> str:
    "An entry's Markdown: names without `__main__`, and its heading with the anchor it has"
    text = re.sub(r"\b__main__\.", "", text)
    return title.sub(lambda m: f"### {m[1]} {{#{moved[m[1]]}}}" if m[1] in moved else m[0], text, 1)


def mend(pages: dict) -> None:
    "The processed notebooks {page.html: notebook}, changed in place"
    for nb in pages.values(): nb.cells = in_order(nb.cells)
    moved = own_anchors(pages)
    for page, nb in pages.items():
        taken = set(spellings(nb.cells))
        for cell in nb.cells:
            if cell.cell_type == "markdown": cell.source = relink(free(cell.source, taken), moved)
            for output in (o for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})):
                text = "".join(output.data["text/markdown"])
                if is_entry(cell):
                    if signature.search(text) and isinstance(symbol(cell), type): text = as_class(text, symbol(cell))
                    text = mended(text, moved.get(page, {}))
                output.data["text/markdown"] = relink(text, moved)


def mend_files(paths: dict, also) -> None:
    "The same for files {page.html: path}, and what `also` does to each notebook"
    pages = {page: nbformat.read(path, as_version=4) for page, path in paths.items()}
    mend(pages)
    for page, path in paths.items():
        also(pages[page])
        nbformat.write(pages[page], path)
