"Each error that the package raises says what to do next: a sentence that begins with a verb, or a place where one is put in"
import ast, re
from pathlib import Path
import clm_nb

package = Path(clm_nb.__file__).parent
verbs = """Ask Begin Call Check Choose Close Convert Copy Cut Delete Do Fill Give Go Install Is Leave Load Make Mend Move Name Pad Push Put Raise
           Remove Rename Restart Restore Save Say See Start Take Train Try Type Use Wait Write""".split()
step = re.compile(rf"(^|[.:…] )({'|'.join(verbs)}|pip install|Please report|Its weights may come)\b|, (convert|raise) ")
put_in = {"advice", "remedy", "reason", "self.message", "switch_to_causal"} # hold the next step themselves
on_the_way = {"HF_HUB_OFFLINE is set", # becomes part of an error with a next step
              "it is nested too deeply, or says *name for a part of itself"}


def said(call: ast.Call) -> tuple[str, set]:
    "(the text of an error with … for what is put in, the names of what is put in)"
    text, names = "", set()
    for part in (p for argument in call.args for p in ast.walk(argument)):
        if isinstance(part, ast.Constant) and isinstance(part.value, str): text += part.value
        if isinstance(part, ast.FormattedValue):
            text += "…"
            names |= {ast.unparse(part.value)} | {ast.unparse(call.func) for call in ast.walk(part.value) if isinstance(call, ast.Call)}
    return text, names


def raised():
    "(place, text, what is put in) of each error whose text stands where it is raised"
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                kind = ast.unparse(node.exc.func)
                if (kind.endswith(("Error", "RunFinished")) or kind == "type(error)") and not isinstance(node.exc.args[0], ast.Call):
                    text, names = said(node.exc)
                    if text: yield f"{path.relative_to(package)}:{node.lineno}", text, names


def says_what_to_do(text, names): return bool(step.search(text) or names & put_in or text in on_the_way)


def test_an_error_says_what_to_do_next():
    known = list(raised())
    assert len(known) > 90
    assert [(place, text) for place, text, names in known if not says_what_to_do(text, names)] == []


def test_a_fault_alone_is_noticed():
    raised = ast.parse('raise ValueError(f"stride={stride} is no number of tokens. It was {kind}.")').body[0]
    assert not says_what_to_do(*said(raised.exc))
    raised = ast.parse('raise ValueError(f"stride={stride} is no number of tokens. Use 1 to {size}.")').body[0]
    assert says_what_to_do(*said(raised.exc))
