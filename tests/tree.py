"The tree under test: where it is, a copy of it to change, a command of this environment run in one."
import os, shutil, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def copy_tree(
    to: Path, # a folder that doesn't exist yet
) -> Path:
    "A copy of the sources: no environment, no caches, nothing that was built."
    skip = shutil.ignore_patterns(".*", "_proc", "_docs", "runs", "build", "dist", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(root, to, ignore=skip, symlinks=True))


def run(
    tree: Path, # where to run, and what clm_nb is imported from
    *command, # a script in the tree (x.py …) or a program of this environment (nbdev-export …)
) -> subprocess.CompletedProcess:
    "The finished command, with its output as text."
    program = [sys.executable, command[0]] if command[0].endswith(".py") else [Path(sys.executable).parent/command[0]]
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(tree)}
    return subprocess.run([*program, *command[1:]], cwd=tree, env=env, capture_output=True, text=True)
