"Text is read and written as UTF-8 on every machine: nothing is left to the machine's own code page"
import ast, io, json, re, subprocess, sys

import nbformat, pytest
from tree import root
from clm_nb.arguments import file_flags
from clm_nb.cli import main


def text_calls(
    source: str, # Python code
) -> list[ast.Call]:
    "The calls that open, read or write text, and don't say in which encoding."
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call): continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text"): text = True
        elif name == "open" and (not method or ast.unparse(node.func.value) in ("io", "builtins") or "mode" in given):
            modes = [o.value for o in node.args[1:2] if isinstance(o, ast.Constant)]
            modes += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
            text = not any("b" in mode for mode in modes)
        else: continue
        if text and "encoding" not in given and None not in given: found.append(node)
    return found


def sources(path):
    "(place, code) of a Python file, or of each code cell of a notebook."
    name = path.relative_to(root).as_posix()
    if path.suffix == ".py": return [(name, path.read_text(encoding="utf-8"))]
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return [(f"{name}, cell {c.id}", re.sub(r"^(\s*)[%!].*$", r"\1pass", c.source, flags=re.M)) for c in cells]


def files():
    folders = ("clm_nb", "nbs", "tests", "tools", "benchmarks")
    found = [p for folder in folders for kind in ("*.py", "*.ipynb") for p in (root/folder).rglob(kind)]
    return [root/"setup.py", *(p for p in found if ".ipynb_checkpoints" not in p.parts and "_proc" not in p.parts)]


def test_every_text_file_is_opened_with_an_encoding():
    wrong = [f"{place}:{call.lineno} {ast.unparse(call)[:80]}" for path in files() for place, code in sources(path)
             for call in text_calls(code)]
    assert not wrong, "\n".join(wrong)


def test_what_names_no_encoding_is_found():
    wrong = ["open('a')", "open('a', 'w')", "p.read_text()", "p.write_text('x')", "io.open('a')", "p.open(mode='w')"]
    right = ["open('a', 'rb')", "open('a', encoding='utf-8')", "p.read_bytes()", "p.read_text(encoding='utf-8')",
             "webbrowser.open(address)", "p.open('rb')", "open('a', **options)"]
    assert [len(text_calls(code)) for code in wrong + right] == [1]*len(wrong) + [0]*len(right)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("written", ['prompt: "Größe"\nseed: 3\n', json.dumps(dict(prompt="Größe", seed=3), ensure_ascii=False)])
def test_a_file_of_arguments_is_read_as_it_was_saved(written, encoding, tmp_path):
    (tmp_path/"run.yaml").write_bytes(written.encode(encoding))
    assert file_flags(tmp_path/"run.yaml") == ["--prompt", "Größe", "--seed", "3"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-32"])
def test_a_file_of_arguments_that_is_no_utf_is_one_line(encoding, tmp_path, capsys):
    (tmp_path/"run.yaml").write_bytes("prompt: Größe".encode(encoding))
    assert main(["train", str(tmp_path/"run.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run.yaml can't be read as YAML" in said and "Save it as UTF-8." in said


@pytest.mark.parametrize("code_page", ["cp437", "cp1252", "ascii"])
@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["generate", "--help"], ["cache", "--help"]])
def test_help_is_shown_in_every_code_page(argv, code_page, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=code_page)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as ended: main(argv)
    terminal.flush()
    shown = terminal.buffer.getvalue().decode(code_page)
    assert not ended.value.code and "usage: clm_nb" in shown
    assert ("--resume_from_checkpoint, ..." in " ".join(shown.split())) == (argv[0] == "train" and code_page != "cp1252")


def test_a_letter_that_is_lacking_is_written_by_its_number_and_no_other_is_touched():
    assert "ü 3.7 – 3.9 大".encode("cp437", "plain").decode("cp437") == r"ü 3.7 - 3.9 \u5927"
