"README.md keeps its word: its commands exist, and those that need no network run, as does its Python"
import os, re, shlex, signal, subprocess, sys
from pathlib import Path

import pytest
from conftest import answer, needs_make, python

root = Path(__file__).resolve().parents[1]
readme = (root/"README.md").read_text(encoding="utf-8") if (root/"README.md").exists() else ""


def code(language: str) -> list[str]:
    "The code blocks of README.md in one language"
    return re.findall(rf"^```\s*{language}\s*\n(.*?)^```", readme, re.M | re.S)


lines = [line for block in code("sh") for line in block.replace("\\\n", " ").splitlines()]
commands = [line for line in lines if line.strip() and not line.startswith("#")]
of = {name: [c for c in commands if shlex.split(c)[0] == name] for name in ("git", "cd", "make", "pip", "clm_nb")}
on_hub = [c for c in of["clm_nb"] if any(re.fullmatch(r"(?!runs/)[\w-]+/[\w.-]+", word) for word in shlex.split(c))]


def test_readme_shows_the_two_commands_and_the_way_on_the_command_line():
    assert of["git"] == ["git clone https://github.com/clm-nb/clm_nb"] and of["cd"] == ["cd clm_nb"]
    assert of["make"][:2] == ["make demo", "make test"]
    shown = [shlex.split(c)[1] for c in of["clm_nb"] if c not in on_hub]
    assert shown[:3] == ["train", "perplexity", "generate"] and len(on_hub) == 1 and len(code("python")) == 1
    assert sum(map(len, of.values())) == len(commands), commands


def test_readme_says_how_to_train_on_your_own_text():
    assert "## How do I train on my own text?" in readme
    assert any("--dataset_name my_texts/" in command for command in of["clm_nb"])


@needs_make
def test_make_targets_exist():
    for command in of["make"]:
        done = subprocess.run([*shlex.split(command), "-n"], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_commands_for_the_hub_parse():
    from clm_nb.arguments import parse_training
    from clm_nb.cli import train_parser
    for command in on_hub:
        _, name, *flags = shlex.split(command)
        given, rest = train_parser().parse_known_args(flags)
        assert name == "train" and given.dataset_name and given.model_name_or_path
        assert isinstance(parse_training(rest), dict)


def is_server(command): return shlex.split(command)[1] == "app"


def stopped_early(command):
    "The command itself, but for training, which ends after two steps"
    return command + " --max_steps 2" if command.startswith("clm_nb train") else command


def test_commands_and_python_run(tmp_path):
    "They use the embedded model, which is made on first use; that takes minutes"
    (tmp_path/"my_texts").mkdir()
    for i in range(10):
        text = "\n\n".join(f"Tale {i}.{n}: once upon a time there were {i*n} foxes and {i + n} dogs." for n in range(60))
        (tmp_path/"my_texts"/f"{i}.txt").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = python(f"import os\nos.chdir({str(tmp_path)!r})\n" + code("python")[0])
    told = ""
    for command in of["clm_nb"]:
        if command in on_hub or is_server(command): continue
        words = [sys.executable, "-m", *shlex.split(stopped_early(command))]
        told += subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True, encoding="utf-8",
                               env=os.environ | dict(PYTHONUTF8="1")).stdout
    printed = answer(ours)
    assert "Run folder: runs/docs" in told and re.search(r"^perplexity \d", told, re.M)
    assert told.rstrip().splitlines()[-1] and 'The with statement' in told.split("Run folder")[1]
    assert re.search(r"^perplexity \d+\.\d", printed) and "A class definition" in printed
    assert {p.name for p in (tmp_path/"runs").iterdir()} == {"docs", "mine", "readme"}
    command, = filter(is_server, of["clm_nb"])
    server = subprocess.Popen(shlex.split(command), cwd=tmp_path, env=os.environ | dict(PATH=path), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "http://127.0.0.1:" in server.stdout.readline()
    server.send_signal(signal.SIGINT)
    answer(server)
