"""What you can do in a clone of clm_nb, wherever there is Python: `python tools/do.py` lists it

It needs no package and no shell, and an older Python still reads it, to say which one is needed.
A target is a function under `@target`: `def test_newest` makes `python tools/do.py test-newest`,
and one word in the Makefile makes `make test-newest`. `NAME=value` beside the target sets PYTHON,
SCALE, ONLY, NAMES or TORCH, as it does with make.
"""
import configparser
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
metadata = ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt")
settings = ("PYTHON", "SCALE", "ONLY", "NAMES", "TORCH")
targets = {}


def target(do):
    "List a function as a target, under its own name."
    targets[do.__name__.replace("_", "-")] = do
    return do


def setting(name, default=""):
    "What was given as NAME=value, to this program, to make, or in the environment."
    return os.environ.get(name) or default


def say(text):
    "Print a line ahead of what the programs started next print."
    print("==", text, flush=True)


def run(*command, **variables):
    "Run a program in the clone to its end; end with it where it fails."
    command, env = list(map(str, command)), {**os.environ, **variables}
    with subprocess.Popen(command, cwd=str(root), env=env) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = None
        while status is None:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                pass  # the program had it too, and ends in its own way
    if status:
        sys.exit(status if status > 0 else 128 - status)


# Environments

def interpreter():
    "The Python that a new environment is made with."
    python = setting("PYTHON", sys.executable)
    if not shutil.which(python):
        sys.exit(f"PYTHON={python} isn't found. Give the name or the path of a Python, "
                 "e.g. PYTHON=python3.13.")
    return python


def version_of(python):
    "The version of an interpreter, e.g. (3, 11, 7)."
    code = "import sys; print(*sys.version_info[:3])"
    return tuple(map(int, subprocess.check_output([python, "-c", code], text=True).split()))


def check_python(version):
    "End where a Python is too old for the packages in constraints.txt."
    ini = configparser.ConfigParser(delimiters="=")
    ini.read(str(root/"settings.ini"), encoding="utf-8")
    needed = ini["DEFAULT"]["min_python"]
    if version < tuple(map(int, needed.split("."))):
        found = ".".join(map(str, version))
        sys.exit(f"clm_nb needs Python {needed} or newer, and this one is {found}. "
                 "Install a newer one, and name it: PYTHON=python3.13.")


def check_machine(system, machine, release=""):
    "End where no build of torch exists for a kind of machine."
    kind = None
    if system == "Darwin" and machine == "x86_64":
        kind = "Macs with a processor from Intel"
    elif system == "Darwin" and release and int(release.split(".")[0]) < 14:
        kind = f"macOS {release}: it needs macOS 14 or newer"
    elif system == "Windows" and machine.upper() == "ARM64":
        kind = "Windows on ARM. Take an x64 Python, which Windows runs there too"
    elif sys.maxsize < 2**32:
        kind = "a 32-bit Python. Take the 64-bit one"
    if kind:
        sys.exit(f"There is no torch for {kind}. "
                 "nbs/start/where_to_run.ipynb names machines in the cloud.")


class Environment:
    "A virtual environment in the clone, made when missing, renewed when a requirement changes."
    def __init__(self, folder=".venv", options=("--constraint", "constraints.txt")):
        self.folder = root/folder
        self.options = options  # of `pip install`
        self.bin = self.folder/("Scripts" if os.name == "nt" else "bin")

    def program(self, name):
        "The path of a program in it."
        return shutil.which(name, path=str(self.bin)) or self.bin/name

    def run(self, name, *arguments, **variables):
        "Run one of its programs, with the others on the PATH."
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", "")])
        run(self.program(name), *arguments, **{"PATH": path, **variables})

    def make(self):
        "Make it where it is missing."
        if shutil.which("python", path=str(self.bin)):
            return
        python = interpreter()
        version = version_of(python)
        check_python(version)
        check_machine(platform.system(), platform.machine(), platform.mac_ver()[0])
        say(f"{self.folder.name}: a new environment with Python {'.'.join(map(str, version))}")
        run(python, "-m", "venv", self.folder)

    def pip(self, *arguments):
        "Call its pip."
        self.run("python", "-m", "pip", *arguments, PIP_DISABLE_PIP_VERSION_CHECK="1")

    def install(self, extra=None):
        "Install clm_nb, with an extra, where that wasn't done since the requirements changed."
        self.make()
        done = self.folder/f"{extra or 'runtime'}.stamp"
        changed = max((root/name).stat().st_mtime for name in metadata)
        if done.exists() and done.stat().st_mtime >= changed:
            return self
        what = {None: "what running it needs", "dev": "what developing it needs",
                "bench": "the peers it is measured against"}[extra]
        say(f"{self.folder.name}: installing clm_nb and {what} (a few minutes the first time)")
        self.pip("install", "--quiet", *self.options, "--editable", f".[{extra}]" if extra else ".")
        for name in ("runtime.stamp", done.name):
            (self.folder/name).touch()
        return self


class Resolved(Environment):
    "One whose versions uv chooses within the bounds of settings.ini, with the CPU build of torch."
    def __init__(self, resolution):
        super().__init__(f".venv-{resolution}")
        self.resolution = resolution

    def install(self):
        "Install clm_nb and what developing it needs; what was there before is chosen anew."
        self.make()
        say(f"{self.folder.name}: installing what uv --resolution {self.resolution} chooses")
        self.pip("install", "--quiet", "--upgrade", "uv")
        torch = setting("TORCH", "--torch-backend=cpu").split()
        self.run("uv", "pip", "install", "--quiet", "--upgrade", "--resolution", self.resolution,
                 "--python", self.program("python"), *torch, "--editable", ".[dev,app]")
        self.run("clm_nb", "--version")
        return self


# constraints.txt holds the versions that were tested; without it, pip may take a much larger torch.
venv = Environment()


def run_tests(environment):
    "All that `test` does, in an environment."
    say("test 1/3: modules, notebooks and README.md are up to date with each other")
    environment.run("python", "-m", "pytest", "-q", "tests/test_uptodate.py")
    say("test 2/3: every notebook, top to bottom")
    environment.run("nbdev-test", "--n-workers", "2", "--do-print", "--timing", OMP_NUM_THREADS="1")
    say("test 3/3: what crosses stages or processes")
    environment.run("python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder",
                    "--ignore", "tests/test_uptodate.py", "tests")


# What crosses stages, files and processes; tests/test_winlike.py says what the rules are.
winlike = [f"tests/test_{name}.py" for name in
           "winlike load preprocess train generate perplexity core cli encodings".split()]


# Targets

@target
def demo():
    "fine-tune a small model on this machine: no account or GPU, no network beyond the installation"
    venv.install()
    say("demo: the whole path, from the standard library's own documentation to generated text")
    venv.run("clm_nb", "demo")


@target
def test():
    "execute every notebook and run the tests"
    run_tests(venv.install("dev"))


@target
def test_newest():
    "the same with the newest versions that settings.ini allows, in .venv-highest"
    run_tests(Resolved("highest").install())


@target
def test_lowest():
    "the same with the lowest ones, in .venv-lowest-direct (TORCH='torch==2.13.0': another torch)"
    run_tests(Resolved("lowest-direct").install())


@target
def test_winlike():
    "run the main paths on Linux under Windows' rules for files"
    venv.install("dev")
    places = os.pathsep.join(str(root/folder) for folder in ("tests/winlike", "."))
    rules = dict(WINDOWS_RULES="1", PYTHONPATH=places)
    with tempfile.TemporaryDirectory() as folder:
        rules["CLM_NB_CACHE"] = str(Path(folder)/"cache")
        demo_run = str(Path(folder)/"demo")
        named = ("--model_name_or_path", demo_run)
        say("test-winlike 1/2: the demo twice into one folder, a perplexity, a text, a clear cache")
        venv.run("clm_nb", "demo", "--output_dir", demo_run, **rules)
        venv.run("clm_nb", "demo", "--output_dir", demo_run, **rules)
        venv.run("clm_nb", "perplexity", *named, **rules)
        venv.run("clm_nb", "generate", *named, "--prompt", "The with statement", **rules)
        venv.run("clm_nb", "cache", "--clear", **rules)
        say("test-winlike 2/2: the tests of the main paths")
        venv.run("python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *winlike, **rules)


@target
def install():
    "make .venv and install what developing needs, and nothing else"
    venv.install("dev")


@target
def lab():
    "open the notebooks in JupyterLab"
    venv.install("dev")
    say("lab: JupyterLab on nbs/ (stop it with Ctrl-C)")
    venv.run("jupyter", "lab", "nbs/index.ipynb")


@target
def docs():
    "build the docs site into _docs (with Quarto; without it, a plain preview)"
    venv.install("dev")
    say("docs: the site, into _docs/")
    venv.run("python", "tools/docs.py", "site")


@target
def test_faults():
    "kill a run at 60 moments, let it go on, and compare its end with one that was left alone (half an hour)"
    venv.install("dev")
    say("test-faults: 60 kills, and what comes of them")
    venv.run("python", "tests/faults.py")


@target
def test_flat():
    "count memory, files and threads in 2,000 steps, 200 evaluations and 500 texts (some minutes)"
    venv.install("dev")
    say("test-flat: what a process holds after the first tenth, and at the end")
    venv.run("python", "tests/flat.py")


@target
def bench():
    "measure clm_nb and its peers into benchmarks/ (SCALE=2: more; ONLY=generation: one group)"
    venv.install("bench")
    say("bench: ours and the peers in turns, 10 to 15 minutes on two cores")
    scale, only = setting("SCALE", "1"), setting("ONLY")
    venv.run("python", "benchmarks/run.py", "--scale", scale, "--only", only)


@target
def prepare():
    "after editing notebooks: export the modules, clean the notebooks, write README.md"
    venv.install("dev")
    say("prepare: Colab links, exported modules, cleaned notebooks, README.md, llms.txt")
    venv.run("python", "tools/docs.py", "colab")
    venv.run("nbdev-export")
    venv.run("nbdev-clean")
    venv.run("python", "tools/docs.py", "readme")
    venv.run("python", "tools/docs.py", "llms")
    venv.run("python", "tools/house.py")


@target
def pictures():
    "take the pictures of the pages anew, in headless Chromium (NAMES='report explorer': these)"
    venv.install("dev")
    say("pictures: into nbs/images/, a few minutes")
    venv.run("python", "tools/pictures.py", *setting("NAMES").split())


@target
def lock():
    "write constraints.txt from the newest versions that settings.ini allows"
    say("lock: installing '.[dev,app,bench]' into a new environment and writing constraints.txt")
    newest, constraints = Environment(".venv-lock", options=()), root/"constraints.txt"
    shutil.rmtree(newest.folder, ignore_errors=True)
    newest.make()
    newest.pip("install", "--quiet", "--editable", ".[dev,app,bench]")
    freeze = "-m pip freeze --all --exclude clm_nb --exclude pip".split()
    frozen = subprocess.check_output([newest.program("python"), *freeze], text=True, cwd=root)
    before = constraints.read_text(encoding="utf-8").splitlines()
    lines = [line for line in before if line.startswith("#")]
    lines += [line.partition("+")[0] for line in frozen.splitlines() if "==" in line]  # no "+cpu"
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    shutil.rmtree(newest.folder)


@target
def base():
    "make the shipped base model again, into clm_nb/base (about an hour)"
    venv.install("dev")
    say("base: the base model, from tools/base/texts.parquet into clm_nb/base")
    venv.run("python", "tools/base/model.py")


@target
def base_texts():
    "make again what it reads, tools/base/texts.parquet, from the releases of five projects"
    venv.install("dev")
    say("base-texts: from the releases into tools/base/texts.parquet, a few minutes")
    venv.run("python", "tools/base/texts.py")


@target
def help():
    "this list"
    width = max(map(len, targets))
    for name, do in targets.items():
        print(f"{name:{width}}  {do.__doc__}")
    print("Call one with `python tools/do.py NAME`, or with `make NAME` where there is make.\n"
          "Each makes .venv when it is missing; remove .venv to change its Python. "
          f"PYTHON={setting('PYTHON', sys.executable)}")


def main(given):
    "Set what is given as NAME=value, and run the targets."
    names = []
    for word in given or ["help"]:
        name, equals, value = word.partition("=")
        if equals and name in settings:
            os.environ[name] = value
        elif word in targets:
            names.append(word)
        else:
            print(f"{word!r} is no target and no setting. Targets: {', '.join(targets)}. "
                  f"Settings, as NAME=value: {', '.join(settings)}.", file=sys.stderr)
            return 2
    for name in names:
        targets[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
