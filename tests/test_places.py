"Notebooks where learners open them: Colab's kernel and widgets, an environment with nothing but a kernel, Codespaces"
import importlib.metadata, json, os, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from conftest import link, needs_make
from tree import copy_tree, root

sys.path.insert(0, str(root/"tools"))
import docs  # tools/docs.py

# What a Colab kernel runs with, from pip-freeze.txt of googlecolab/backend-info, 19 August 2026
colab = """ipython==7.34.0 ipykernel==6.17.1 ipywidgets==7.7.1 widgetsnbextension==3.6.10 jupyterlab_widgets==3.0.16
    jupyter_client==7.4.9 jupyter_core==5.9.1 traitlets==5.7.1 tornado==6.5.7 pyzmq==26.2.1 matplotlib-inline==0.2.2""".split()
widget_view = "application/vnd.jupyter.widget-view+json"


# Environments

def shared(
    folder: Path, # where to make it
    *without: str, # distributions that are left out
) -> Path:
    "A folder with links to the packages of this environment, so that none of them is downloaded again."
    folder = folder/"site-packages" # the name by which dill knows a library's modules, which it doesn't copy
    folder.mkdir()
    left_out = re.compile("|".join(rf"{name}\b" for name in ("__editable__", *without)))
    for entry in Path(importlib.metadata.distribution("torch").locate_file("")).iterdir():
        if entry.suffix != ".pth" and not left_out.match(entry.name): link(folder/entry.name, entry)
    return folder


def environment(
    folder: Path, # a folder that doesn't exist yet
    packages: Path, # found after the environment's own
    *requirements: str, # the environment's own
) -> Path: # its Python
    "A new environment; `RuntimeError` where its packages can't be had."
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder/("Scripts" if os.name == "nt" else "bin")/"python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(site.strip())/"shared.pth").write_text(f"{packages}\n", encoding="utf-8")
    if requirements:
        done = subprocess.run([python, "-m", "pip", "install", "-q", *requirements], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"These tests need {', '.join(requirements)}, and pip couldn't install them. Connect to a "
                               f"package index, or set PIP_INDEX_URL.\n{done.stderr[-1000:]}")
    return python


# Kernels

def client(
    python: Path, # the kernel's interpreter
    folder: Path, # where the kernel runs
    nb, # a notebook
) -> NotebookClient:
    "What runs a notebook in another environment's kernel."
    spec = folder.parent/"kernels"/"there"
    spec.mkdir(parents=True, exist_ok=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec/"kernel.json").write_text(json.dumps(dict(argv=argv, display_name="there", language="python")), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    manager = AsyncKernelManager(kernel_name="there", kernel_spec_manager=specs)
    return NotebookClient(nb, km=manager, timeout=600, resources={"metadata": {"path": str(folder)}})


def executed(
    python: Path, # the kernel's interpreter
    folder: Path, # where the kernel runs
    *sources: str, # code cells
    **env: str, # the kernel's environment variables
) -> tuple: # the notebook with its outputs, the state of its widgets by model id
    "Cells, run in another environment's kernel."
    nb = new_notebook(cells=[new_code_cell(source) for source in sources])
    client_ = client(python, folder, nb)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "IN_TEST")}
    client_.execute(env=variables | env)
    return nb, client_.widget_state


def printed(cell):
    "What a cell printed; a busy kernel hands it over in several parts"
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def outputs(cell, kind: str = "") -> list:
    "A cell's outputs; of one MIME type, their data."
    return [o.data[kind] for o in cell.outputs if kind in o.get("data", {})] if kind else cell.outputs


# Colab's widgets

shown = {"generation app": "app = GenerationApp(gpt2(), tokenizer(), 'The quick', max_new_tokens=3)\napp",
         "explorer": "app = NextTokenExplorer(gpt2(), tokenizer(), 'The quick')\napp"}
used = {"generation app": "app.generate_button.click()\nprint(app.wait(600), not app.error, bool(app.texts['model']))",
        "explorer": "app.temperature.value = 0.5\nprint(app.settings['temperature'] == 0.5, not app.error, bool(app.text))"}
imports = """from tiny import gpt2, tokenizer
from clm_nb.look.generation_app import GenerationApp
from clm_nb.look.explorer import NextTokenExplorer"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "The Python of Colab's kernel, and this one."
    tmp = tmp_path_factory.mktemp("places")
    return {"Colab's": environment(tmp/"colab", shared(tmp), *colab), "these": Path(sys.executable)}


@pytest.mark.parametrize("packages", ["Colab's", "these"])
@pytest.mark.parametrize("name", shown)
def test_an_app_is_shown_and_works(name, packages, places, tmp_path):
    nb, widgets = executed(places[packages], tmp_path, imports, shown[name], used[name],
                           "import ipywidgets\nprint(ipywidgets.__version__)",
                           PYTHONPATH=os.pathsep.join([str(root), str(root/"tests")]))
    _, view, use, version = nb.cells
    shown_, = outputs(view, widget_view)
    assert shown_["model_id"] in widgets and widgets[shown_["model_id"]]["_model_name"] == "VBoxModel"
    assert [o.output_type for o in view.outputs] == ["execute_result"]
    assert printed(use).split() == ["True"]*3
    assert printed(version).startswith("7.7.1" if packages == "Colab's" else "8.")


# The install cell

def install(
    url: str = "", # of an archive, in the place of GitHub's
) -> str: # a code cell's source
    "The install cell as it stands in the notebooks."
    source = docs.install_cell()
    github = re.search(r"https://[^\"]*", source)[0]
    return source.replace(github, url or github)


def page(
    path: Path, # a notebook
) -> list[str]: # code cells
    "What a reader runs after the install cell: all but the exercises."
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return [source for source in code if "#| eval: false" not in source]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A clone that nothing has been installed from."
    return copy_tree(tmp_path_factory.mktemp("clone")/"clm_nb")


@pytest.fixture
def bare(tmp_path):
    "The Python of an environment that knows neither clm_nb nor fastcore."
    return environment(tmp_path/"env", shared(tmp_path, "fastcore", "clm_nb"))


def test_in_a_clone_the_cell_installs_the_clone(clone, bare, tmp_path):
    "As VS Code opens it, with an environment of conda's: no clm_nb, no fastcore"
    page_ = page(clone/"nbs/01_flatten.ipynb")
    nb, _ = executed(bare, clone/"nbs", install(), *page_, "import clm_nb.flatten\nprint(clm_nb.flatten.__file__)",
                     CLM_NB_CACHE=str(tmp_path/"cache"))
    assert printed(nb.cells[-1]).strip() == str(clone/"clm_nb/flatten.py")
    again, _ = executed(bare, clone/"nbs", install(), "import clm_nb\nprint(clm_nb.__file__)")
    assert outputs(again.cells[0]) == [] # the next kernel has all it needs
    assert printed(again.cells[1]).strip() == str(clone/"clm_nb/__init__.py")


def test_without_a_clone_the_cell_installs_the_archive(clone, bare, tmp_path):
    "As Colab opens it, or somebody who has the notebook's file only"
    archive = shutil.make_archive(tmp_path/"main", "zip", clone.parent, "clm_nb")
    (work := tmp_path/"work").mkdir()
    ask = "import clm_nb, fastcore, sys\nprint(clm_nb.__file__.startswith(sys.prefix), fastcore.__file__.startswith(sys.prefix))"
    nb, _ = executed(bare, work, install(Path(archive).as_uri()), ask)
    assert printed(nb.cells[-1]).split() == ["True", "True"]


def test_the_cell_says_when_the_kernel_must_restart(clone, tmp_path):
    "datasketch 1 is loaded, and clm_nb needs 2"
    packages = shared(tmp_path, "fastcore", "clm_nb")
    python = environment(tmp_path/"env", packages, "--no-deps", "datasketch<2")
    with pytest.raises(CellExecutionError, match="then run all cells: it still has the old datasketch[.]"):
        executed(python, clone/"nbs", "import datasketch", install())
    nb, _ = executed(python, clone/"nbs", install(), "import datasketch\nprint(datasketch.__version__)")
    assert outputs(nb.cells[0]) == [] and int(printed(nb.cells[1]).split(".")[0]) >= 2


def test_where_all_is_there_the_cell_does_nothing(tmp_path):
    watched = "import subprocess, os\nos.system = subprocess.Popen = None"
    (work := tmp_path/"work").mkdir()
    nb, _ = executed(Path(sys.executable), work, watched, install())
    assert outputs(nb.cells[1]) == []


def test_packages_that_need_what_we_would_replace_are_named_to_pip(tmp_path):
    "So that Colab's gradio and diffusers keep a huggingface_hub they can use"
    (work := tmp_path/"work").mkdir()
    there = ("import importlib.metadata\nimportlib.metadata.packages_distributions = lambda: {'gradio': ['gradio']}\n"
             "from IPython.core.magic import register_line_magic\n@register_line_magic\ndef pip(line): print(line)")
    nb, _ = executed(Path(sys.executable), work, there, install())
    url = f"{docs.get_config(root).git_url}/archive/{docs.get_config(root).branch}.zip"
    assert printed(nb.cells[1]).strip() == f'install -q "clm_nb[nb] @ {url}" gradio'


@pytest.mark.parametrize("path", docs.notebooks(root/"nbs"), ids=lambda p: p.stem)
def test_every_notebook_has_the_cell_and_asks_for_a_gpu_where_it_trains(path):
    nb = nbformat.read(path, as_version=4)
    assert install() in [c.source for c in nb.cells[:4]], "run `make prepare`"
    asked = {key: nb.metadata[key] for key in ("accelerator", "colab") if key in nb.metadata}
    trains = any(re.search(r"^(\w+ = )?(train|finetune)\(", source, flags=re.M) for source in page(path))
    on_gpu = path.relative_to(root/"nbs").as_posix() in docs.on_gpu
    assert asked == ({"accelerator": "GPU", "colab": {"gpuType": "T4"}} if on_gpu else {})
    assert trains or not on_gpu


def test_every_page_that_gets_a_gpu_exists(): assert all((root/"nbs"/name).is_file() for name in docs.on_gpu)


# Codespaces

@pytest.fixture
def codespace(): return json.loads((root/".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


@needs_make
def test_a_codespace_is_made_by_a_target_that_exists(codespace):
    made, kernel = codespace["postCreateCommand"].split(" && ")
    done = subprocess.run([*made.split(), "--dry-run"], cwd=root, capture_output=True, text=True)
    assert made.split()[0] == "make" and done.returncode == 0, done.stderr
    environment_ = ".venv"  # what tools/do.py makes
    assert kernel.split()[:4] == [f"{environment_}/bin/python", "-m", "ipykernel", "install"]
    code = codespace["customizations"]["vscode"]
    assert code["settings"]["python.defaultInterpreterPath"].endswith(f"/{environment_}/bin/python")
    assert f"/{environment_}/bin:" in codespace["remoteEnv"]["PATH"]
    assert {"ms-python.python", "ms-toolsai.jupyter"} <= set(code["extensions"])


def test_a_codespace_has_the_oldest_python_and_opens_a_page(codespace):
    oldest = docs.get_config(root).min_python.rpartition(".")[0]
    assert re.fullmatch(rf"mcr\.microsoft\.com/devcontainers/python:{oldest}-\w+", codespace["image"])
    opened = codespace["customizations"]["codespaces"]["openFiles"]
    assert opened and all((root/name).is_file() for name in opened)


def test_a_codespace_gets_the_same_torch_as_ci(codespace):
    flow = (root/".github/workflows/test.yml").read_text(encoding="utf-8")
    assert f"PIP_EXTRA_INDEX_URL: {codespace['containerEnv']['PIP_EXTRA_INDEX_URL']}" in flow


def test_a_codespaces_kernel_is_the_one_the_notebooks_name(codespace):
    name = codespace["postCreateCommand"].split("--name ")[1]
    for path in docs.notebooks(root/"nbs"):
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == name, path
