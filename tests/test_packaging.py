"The package: one set of metadata wherever it is read, an sdist and a wheel that work without the checkout."
import ast, builtins, configparser, email, importlib, importlib.metadata, os, re
import subprocess, symtable, sys, tarfile, tomllib, zipfile

import nbformat, pytest, yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from clm_nb.probe import tested
from conftest import needs_make
from tree import copy_tree, root


@pytest.fixture(scope="module")
def ini():
    "settings.ini, the single source."
    cfg = configparser.ConfigParser(delimiters="=")
    cfg.read(root/"settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def lines(value): return [o.strip() for o in value.splitlines() if o.strip()]


def pins():
    "constraints.txt as {canonical name: requirement}."
    found = [o for o in lines((root/"constraints.txt").read_text(encoding="utf-8")) if not o.startswith("#")]
    return {canonicalize_name(Requirement(o).name): Requirement(o) for o in found}


# One set of metadata

def test_pyproject_repeats_settings(ini):
    project = tomllib.loads((root/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == ini["lib_name"]
    assert project["description"] == ini["description"]
    assert project["requires-python"] == f">={ini['min_python']}"
    assert project["authors"] == [{"name": ini["author"], "email": ini["author_email"]}]
    assert project["urls"] == {"Repository": ini["git_url"], "Documentation": ini["doc_url"]}


def test_nbdev_reads_what_settings_say(ini):
    from nbdev.config import get_config
    cfg = get_config(root)
    same = "lib_name version description git_url doc_url user repo branch min_python".split()
    assert {k: getattr(cfg, k) for k in same} == {k: ini[k] for k in same}
    folders = ["lib_path", "nbs_path", "doc_path"]
    assert [getattr(cfg, k) for k in folders] == [root/ini[k] for k in folders]


def test_one_version(ini):
    source = (root/"clm_nb/__init__.py").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "(.*)"$', source, flags=re.M)[1] == ini["version"]


def test_constraints_pin_every_requirement(ini):
    pinned, kinds = pins(), [key for key in ini if key == "requirements" or key.endswith("_requirements")]
    assert len(kinds) == 5
    for req in (Requirement(o) for key in kinds for o in lines(ini[key])):
        pin = pinned[canonicalize_name(req.name)]
        spec, = pin.specifier
        assert req.specifier.contains(spec.version, prereleases=True), f"constraints.txt: {pin} is outside of {req}"


def all_requirements(ini):
    "Those of the package and of every extra."
    keys = [key for key in ini if key == "requirements" or key.endswith("_requirements")]
    return [Requirement(o) for key in keys for o in lines(ini[key])]


def bounds(requirement):
    "(lowest, first that is excluded) as versions."
    found = {spec.operator: Version(spec.version) for spec in requirement.specifier}
    assert set(found) == {">=", "<"}, requirement
    return found[">="], found["<"]


def test_bounds_are_what_was_tested_and_the_next_major_version_is_excluded(ini):
    for req in all_requirements(ini):
        lowest, excluded = bounds(req)
        pin, = pins()[canonicalize_name(req.name)].specifier
        newest = Version(pin.version)
        assert lowest <= newest < excluded, req
        assert excluded.release == (newest.major + 1,), f"{req}: exclude the major version after {newest}"


def test_what_the_program_calls_tested_is_what_settings_allow(ini):
    lowest = {r.name: bounds(r)[0] for r in map(Requirement, lines(ini["requirements"]))}
    for library, (oldest, newest) in tested.items():
        assert lowest[library].release[:2] == Version(oldest).release, library
        pin, = pins()[canonicalize_name(library)].specifier
        assert Version(pin.version).release[:2] <= Version(newest).release, f"{library}: test {pin}, then enter it"


def test_constraints_are_exact_and_portable():
    for pin in pins().values():
        spec, = pin.specifier
        assert spec.operator == "==" and "+" not in spec.version and pin.url is None, pin


# sdist and wheel

@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "A folder with an sdist of the tree and the wheel built from that sdist, without the network."
    tmp = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp, copy_tree(tmp/"src")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp


@pytest.fixture(scope="module")
def wheel(dist):
    "The unpacked wheel."
    path, = dist.glob("*.whl")
    zipfile.ZipFile(path).extractall(dist/"wheel")
    return dist/"wheel"


def test_sdist_holds_what_building_needs(dist):
    path, = dist.glob("*.tar.gz")
    names = {n.partition("/")[2] for n in tarfile.open(path).getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= names


def test_wheel_metadata(ini, wheel):
    info, = wheel.glob("*.dist-info")
    meta = email.message_from_string((info/"METADATA").read_text(encoding="utf-8"))
    assert (meta["Name"], meta["Version"], meta["Summary"]) == (ini["lib_name"], ini["version"], ini["description"])
    assert meta["Requires-Python"] == f">={ini['min_python']}"
    assert "Apache-2.0" in (meta["License"], meta["License-Expression"])
    reqs = list(map(Requirement, meta.get_all("Requires-Dist")))
    expected = lambda key: {str(Requirement(o)) for o in lines(ini[key])}
    assert {str(r) for r in reqs if not r.marker} == expected("requirements")
    extras = ("nb", "dev", "app", "bench")
    for extra in extras:
        found = {str(r).partition(";")[0].strip() for r in reqs if str(r.marker) == f'extra == "{extra}"'}
        opened = expected("nb_requirements") if extra == "dev" else set() # whoever develops opens the notebooks
        assert found == expected(f"{extra}_requirements") | opened
    assert {str(r.marker) for r in reqs if r.marker} == {f'extra == "{extra}"' for extra in extras}
    entry = configparser.ConfigParser()
    entry.read(info/"entry_points.txt")
    assert dict(entry["console_scripts"]) == {"clm_nb": "clm_nb.cli:main"}
    assert dict(entry["nbdev"]) == {"clm_nb": "clm_nb._modidx:d"}
    assert (info/"licenses/LICENSE").read_text(encoding="utf-8").count("Apache License") >= 1


def test_readme_on_a_package_index_has_no_relative_link(wheel):
    info, = wheel.glob("*.dist-info")
    text = email.message_from_string((info/"METADATA").read_text(encoding="utf-8")).get_payload()
    assert not (found := re.findall(r"\]\((?![a-z]+:|#)[^)]*\)", text)), found


def test_wheel_holds_every_module(wheel):
    modules = lambda folder: {p.relative_to(folder).as_posix() for p in (folder/"clm_nb").rglob("*.py")}
    assert modules(wheel) == modules(root)


def test_wheel_imports_outside_the_checkout(ini, wheel, tmp_path):
    code = """if True:
        import importlib, pathlib, pkgutil, sys, clm_nb
        home = pathlib.Path(clm_nb.__file__).parent
        for m in pkgutil.walk_packages(clm_nb.__path__, "clm_nb."): importlib.import_module(m.name)
        assert all(home in pathlib.Path(m.__file__).parents for n, m in sys.modules.items() if n.startswith("clm_nb."))
        model = clm_nb.model.model.load_model("python-docs-gpt2")
        assert pathlib.Path(model.name_or_path).parent == home and clm_nb.data.tokenizer.load_tokenizer()
        print(home, clm_nb.__version__)"""
    env = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(wheel/"clm_nb"), ini["version"]]


def test_import_is_light(tmp_path):
    "`import clm_nb` alone brings in none of the heavy libraries."
    heavy = ["torch", "transformers", "datasets", "matplotlib", "numpy"]
    code = f"import sys, clm_nb; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def closure(reqs):
    "The distributions that installing some requirements brings, by canonical name."
    done, todo = set(), [Requirement(o).name for o in reqs]
    while todo:
        if (name := canonicalize_name(todo.pop())) in done: continue
        done.add(name)
        deps = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [r.name for r in deps if not r.marker or r.marker.evaluate({"extra": ""})]
    return done


def test_modules_import_only_what_running_installs(ini):
    "No module needs a package that only the dev extra brings, and only the app's needs the app extra."
    trees = {p.name: ast.parse(p.read_text(encoding="utf-8")) for p in (root/"clm_nb").rglob("*.py")}
    nodes = [(o, p) for p, tree in trees.items() for o in ast.walk(tree)]
    found = {(a.name, p) for o, p in nodes if isinstance(o, ast.Import) for a in o.names}
    found |= {(o.module, p) for o, p in nodes if isinstance(o, ast.ImportFrom) and not o.level}
    runtime, dists = closure(lines(ini["requirements"])), importlib.metadata.packages_distributions()
    with_app = runtime | closure(lines(ini["app_requirements"]))
    for name, path in found:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == ini["lib_name"]: continue
        there = with_app if path in ("web_page.py", "serve.py") else runtime
        assert {canonicalize_name(o) for o in dists[top]} & there, f"{path}: {name} is no requirement in settings.ini"


def imported(source):
    "The top-level names of the packages that a code cell imports, but for the standard library's."
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
    names = [a.name for o in ast.walk(tree) if isinstance(o, ast.Import) for a in o.names]
    names += [o.module for o in ast.walk(tree) if isinstance(o, ast.ImportFrom) and not o.level]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def test_notebooks_import_only_what_the_nb_extra_installs(ini):
    "What a reader runs, the exercises too; cells that are exported are the modules', and tested above."
    there = closure(lines(ini["requirements"]) + lines(ini["nb_requirements"]))
    dists = importlib.metadata.packages_distributions() | {ini["lib_name"]: [], "report": []}  # benchmarks/report.py
    for path in (root/"nbs").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or cell.id == "colab-install" or cell.source.startswith("#| export"): continue
            for name in imported(cell.source):
                found = {canonicalize_name(o) for o in dists[name]}
                assert not found or found & there, f"{path.name}: {name} is not in nb_requirements"


def global_names(table):
    "The global names that a symbol table's code, and the code inside it, refers to."
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
    return found.union(*map(global_names, table.get_children()))


def in_comprehensions(source):
    "The variables of comprehensions, which Python 3.13 counts to the names of what is around them."
    loops = [node.target for node in ast.walk(ast.parse(source)) if isinstance(node, ast.comprehension)]
    return {node.id for target in loops for node in ast.walk(target) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("path", sorted((root/"clm_nb").rglob("[!_]*.py")), ids=lambda p: p.stem)
def test_modules_define_every_name_they_use(path):
    "A name may be there in the notebook, from a cell that isn't exported, and not in the module."
    module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    source = path.read_text(encoding="utf-8")
    used = global_names(symtable.symtable(source, path.name, "exec")) - in_comprehensions(source)
    assert not (missing := sorted(n for n in used if not hasattr(module, n) and not hasattr(builtins, n))), missing


# The commands

def do(*arguments, **variables):
    "The finished `python tools/do.py`, as text."
    return subprocess.run([sys.executable, root/"tools/do.py", *arguments], env=os.environ | variables,
                          capture_output=True, text=True, encoding="utf-8")


@pytest.fixture
def targets(monkeypatch):
    "tools/do.py as a module."
    monkeypatch.syspath_prepend(root/"tools")
    return importlib.import_module("do")


def test_every_target_is_explained_and_is_makes_too(targets):
    shown = do("help").stdout
    for name, function in targets.targets.items():
        assert re.search(rf"^{name} +\S", shown, flags=re.M) and function.__doc__ in shown, name
    makefile = (root/"Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1].split()
    rule = re.search(r"^(.*):\n\t@\$\(PYTHON\) tools/do.py \$@$", makefile, flags=re.M)[1].split()
    assert set(phony) == set(rule) == set(targets.targets)


@needs_make
def test_make_hands_on_what_its_command_line_sets(tmp_path):
    "And not more than that: without PYTHON=, do.py takes the Python that runs it."
    copy_tree(tmp_path/"tree")
    (tmp_path/"tree/tools/do.py").write_text(
        "import os, sys\nprint(sys.argv[1:], *map(os.environ.get, ['PYTHON', 'SCALE', 'NAMES']))\n", encoding="utf-8")
    make = ["make", "--no-print-directory", "-C", tmp_path/"tree"]
    printed = lambda *words: subprocess.check_output([*make, *words], text=True).strip()
    python = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "SCALE", "NAMES")}
    assert subprocess.check_output([*make, "bench"], text=True, env=python).split()[0] == "['bench']"
    assert printed("bench", "SCALE=2", "NAMES=a b", f"PYTHON={sys.executable}") == f"['bench'] {sys.executable} 2 a b"


def test_do_reads_settings_and_refuses_what_it_does_not_know():
    assert f"PYTHON={sys.executable}" in do("PYTHON=" + sys.executable, "help").stdout
    for wrong in ("demos", "SCALES=2"):
        done = do(wrong)
        assert done.returncode == 2 and repr(wrong) in done.stderr and "Targets: demo, test" in done.stderr


def test_do_ends_as_its_programs_end(targets, tmp_path):
    with pytest.raises(SystemExit) as ended:
        targets.run(sys.executable, "-c", "raise SystemExit(7)")
    assert ended.value.code == 7
    targets.run(sys.executable, "-c", "import os; raise SystemExit(os.environ['KEPT'] != 'x')", KEPT="x")


def test_an_environment_is_made_only_where_it_can_be(targets, ini):
    oldest = tuple(map(int, ini["min_python"].split(".")))
    targets.check_python(oldest)
    for machine in [("Linux", "x86_64"), ("Darwin", "arm64", "14.4"), ("Windows", "AMD64")]:
        targets.check_machine(*machine)
    refused = [(targets.check_python, (oldest[:2] + (oldest[2] - 1,),), "Python 3.11.5 or newer")]
    machines = {("Darwin", "x86_64", "15.1"): "Intel", ("Darwin", "arm64", "13.6"): "macOS 14",
                ("Windows", "ARM64"): "Windows on ARM"}
    refused += [(targets.check_machine, machine, words) for machine, words in machines.items()]
    for check, given, words in refused:
        with pytest.raises(SystemExit, match=words): check(*given)


def test_an_environment_is_renewed_when_a_requirement_changes(targets, tmp_path, monkeypatch):
    "And only then: the stamps of its extras are compared with the files that hold the requirements."
    called, env = [], targets.Environment(tmp_path)
    monkeypatch.setattr(targets.Environment, "make", lambda self: None)
    monkeypatch.setattr(targets.Environment, "pip", lambda self, *given: called.append(given[-1]))
    for extra in (None, None, "dev", "dev", None): env.install(extra)
    assert called == [".", ".[dev]"]
    os.utime(tmp_path/"dev.stamp", (0, 0))
    env.install("dev")
    assert called[2:] == [".[dev]"]


def test_ci_runs_make_test(ini):
    run = root/".ci/run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text(encoding="utf-8")
    flow = yaml.safe_load((root/".github/workflows/test.yml").read_text(encoding="utf-8"))
    job = flow["jobs"]["test"]
    assert [s["run"] for s in job["steps"] if "run" in s] == [".ci/run"]
    assert job["strategy"]["matrix"]["python"][0] == ini["min_python"].rpartition(".")[0]
    commands = lambda name: [step["run"] for step in flow["jobs"][name]["steps"] if "run" in step]
    assert set(flow["jobs"]["elsewhere"]["strategy"]["matrix"]["os"]) == {"windows-latest", "macos-latest"}
    assert commands("elsewhere") == ["python tools/do.py demo", "python tools/do.py test"]
    assert commands("winlike") == ["make test-winlike"]
    docs = yaml.safe_load((root/".github/workflows/docs.yml").read_text(encoding="utf-8"))
    assert [s["run"] for s in docs["jobs"]["docs"]["steps"] if "run" in s] == ["make docs"]


def test_ci_tries_the_newest_versions_weekly_and_when_bounds_change(ini, targets):
    flow = yaml.safe_load((root/".github/workflows/versions.yml").read_text(encoding="utf-8"))
    when = flow[True]  # YAML reads `on` as a truth value
    assert when["schedule"] and all("settings.ini" in when[event]["paths"] for event in ("push", "pull_request"))
    matrix = flow["jobs"]["versions"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"] and ini["min_python"].startswith(matrix["python"][0])
    chosen = {*matrix["target"], *(row["target"] for row in matrix["include"])}
    assert chosen == {"test-newest", "test-lowest"} <= set(targets.targets)


@pytest.mark.parametrize("name,how", [("test-newest", "highest"), ("test-lowest", "lowest-direct")])
def test_an_environment_of_its_own_for_the_newest_and_the_lowest(name, how, targets, monkeypatch):
    "uv chooses, torch is the CPU build unless another is named, and all tests run there."
    called = []
    monkeypatch.setattr(targets.Environment, "make", lambda self: called.append(self.folder.name))
    monkeypatch.setattr(targets.Environment, "run", lambda self, *words, **env: called.append(words))
    monkeypatch.setattr(targets, "run_tests", lambda environment: called.append(environment.folder.name))
    monkeypatch.delenv("TORCH", raising=False)
    targets.targets[name]()
    folder, _, uv, version, tests = called
    assert folder == tests == f".venv-{how}" and version == ("clm_nb", "--version")
    assert uv[:3] == ("uv", "pip", "install") and uv[-2:] == ("--editable", ".[dev,app]")
    assert uv[uv.index("--resolution") + 1] == how and "--torch-backend=cpu" in uv
    monkeypatch.setenv("TORCH", "--find-links /wheels torch==2.13.0")
    targets.targets[name]()
    uv = called[7]
    assert uv[-5:-2] == ("--find-links", "/wheels", "torch==2.13.0") and "--torch-backend=cpu" not in uv
