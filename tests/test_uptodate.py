"What is generated from the notebooks is what the notebooks say: modules, README.md; and the notebooks are clean."
import pytest

from tree import copy_tree, run

remedy = "Run `make prepare` and commit what it changes."


@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path/"tree")


def contents(folder):
    "Every file below a folder, as {path: bytes}."
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    # Windows ends lines in its own way, and git ends them in one way
    return {p.relative_to(folder).as_posix(): p.read_bytes().replace(b"\r\n", b"\n") for p in files}


def changed_by(folder, *command):
    "The files that a command changes, adds or removes in a folder."
    before, done = contents(folder), run(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    after = contents(folder)
    return sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))


def test_modules_are_exported(copy):
    assert not (files := changed_by(copy, "nbdev-export")), f"{files}: not what the notebooks export. {remedy}"


def test_notebooks_are_clean(copy):
    assert not (files := changed_by(copy, "nbdev-clean")), f"{files}: not cleaned. {remedy}"


def test_notebooks_open_in_colab(copy):
    assert not (files := changed_by(copy, "tools/docs.py", "colab")), f"{files}: no right link to Colab. {remedy}"


def test_readme_is_written_from_the_index(copy):
    assert not (files := changed_by(copy, "tools/docs.py", "readme")), f"{files}: not what index.ipynb says. {remedy}"


def test_the_list_of_rooms_and_the_list_of_pages_are_those_of_the_code(copy):
    changed = changed_by(copy, "tools/house.py") + changed_by(copy, "tools/docs.py", "llms")
    assert not changed, f"{changed}: out of date. {remedy}"


def test_a_stale_module_is_noticed(copy):
    module = copy/"clm_nb/load.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n# edited by hand\n", encoding="utf-8")
    assert changed_by(copy, "nbdev-export") == ["clm_nb/load.py"]


def test_a_stale_readme_is_noticed(copy):
    (copy/"README.md").write_text("# something else\n", encoding="utf-8")
    done = run(copy, "tools/docs.py", "readme", "--check")
    assert done.returncode == 1 and "README.md: out of date" in done.stdout
