"""Windows' rules for files, which tests/winlike keeps on Linux: that they are kept, and that the main paths bear them

`make test-winlike` runs this under the rules, and the tests of the main paths too.
"""
import os, subprocess, sys
from pathlib import Path

import pytest
from tree import root

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the rules are kept on Linux only")
ruled = pytest.mark.skipif(os.environ.get("WINDOWS_RULES") != "1", reason="make test-winlike runs this")

refused = r"""
import mmap, multiprocessing, os, shutil, sys
from pathlib import Path
there = Path("there")
there.mkdir()
file, other = there/"file.txt", Path("other.txt")
other.write_text("x", encoding="utf-8")
def is_refused(call):
    try: call()
    except OSError as error: return type(error).__name__
    return "done"
def tried():
    calls = file.unlink, lambda: file.rename("new.txt"), lambda: other.replace(file), lambda: there.rename("gone"), lambda: shutil.rmtree(there)
    return [is_refused(call) for call in calls]
with open(file, "w", encoding="utf-8") as stream:
    stream.write("one\n")
    print(tried())
with open(file, "r+b") as stream: held = mmap.mmap(stream.fileno(), 0)
print(tried(), is_refused(lambda: file.write_text("", encoding="utf-8")))
held.close()
print(is_refused(lambda: file.rename(other)), is_refused(lambda: other.replace(there)))
print([is_refused(lambda: Path(name).write_text("", encoding="utf-8")) for name in ("con", "a:b", "dot.", "nul.txt", "fine.txt")])
print(is_refused(lambda: Path("link").symlink_to(other)), multiprocessing.get_start_method())
print(os.name == "posix" and Path("text").write_text("Größe\n") and Path("text").read_bytes())
print(is_refused(lambda: other.replace(file)), is_refused(lambda: shutil.rmtree(there)))
"""


@linux
def test_the_rules_are_kept(tmp_path):
    env = os.environ | dict(WINDOWS_RULES="1", PYTHONPATH=str(root/"tests/winlike"), PYTHONWARNDEFAULTENCODING="")
    done = subprocess.run([sys.executable, "-c", refused], cwd=tmp_path, env=env, capture_output=True, text=True)
    denied = ["PermissionError"]*5
    assert done.stdout.splitlines() == [
        str(denied), f"{denied} OSError", "FileExistsError PermissionError", str(["OSError"]*4 + ["done"]),
        "PermissionError spawn", r"b'Gr\xf6\xdfe\r\n'", "done done"], done.stderr


@linux
def test_without_the_switch_nothing_is_refused(tmp_path):
    env = os.environ | dict(WINDOWS_RULES="0", PYTHONPATH=str(root/"tests/winlike"))
    done = subprocess.run([sys.executable, "-c", refused], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "PermissionError" not in done.stdout.splitlines()[0], done.stdout


# Under the rules

two_texts = """
import sys
import tiny
from datasets import Dataset, DatasetDict
from clm_nb.group import group
from clm_nb.tokenize import tokenize
print("ready", flush=True)
for number in map(int, sys.stdin):
    texts = Dataset.from_dict({"text": [f"{text} {number}" for text in tiny.texts]*200})
    blocks = [group(tokenize(DatasetDict(train=texts), tiny.tokenizer()), 8, remainder)["train"] for remainder in ("drop", "batch")]
    print([sum(map(sum, part["input_ids"])) for part in blocks], flush=True)
"""


@ruled
def test_two_processes_prepare_the_same_data(cache):
    "At the same moment, each time anew, and each holds what it has made"
    both = [subprocess.Popen([sys.executable, "-c", two_texts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(root/"tests"), os.environ["PYTHONPATH"]])))
            for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"]*2
    for number in range(12):
        for process in both: print(number, file=process.stdin, flush=True)
        one, other = (process.stdout.readline() for process in both)
        assert one == other and one.startswith("["), number
    for process in both: assert process.communicate()[1] is None and process.returncode == 0


@ruled
def test_a_model_that_is_loaded_may_be_trained_over(tmp_path):
    "By ours nothing stays mapped; what plain transformers has mapped stays, and the new model is beside it"
    from clm_nb.model.model import load_model
    from test_train import run
    from transformers import AutoModelForCausalLM
    run(tmp_path/"run")
    loaded = load_model(tmp_path/"run")
    first = (tmp_path/"run/model.safetensors").read_bytes()
    run(tmp_path/"run", seed=1)
    assert (tmp_path/"run/model.safetensors").read_bytes() != first and loaded.num_parameters()
    second = (tmp_path/"run/model.safetensors").read_bytes()
    mapped = AutoModelForCausalLM.from_pretrained(tmp_path/"run")
    run(tmp_path/"run", seed=2)
    assert (tmp_path/"run/model.safetensors").read_bytes() == second and mapped.num_parameters()
    assert load_model(tmp_path/"run/new-model").num_parameters() == mapped.num_parameters()


@ruled
def test_a_folder_that_was_held_is_free_again(tmp_path):
    "who holds it stands in a file of its own: Windows lets nobody write to one that is locked, nor delete it"
    from clm_nb.training.hold import check_free, hold
    from clm_nb.training.runs import check_output_dir, holder_name
    for _ in range(2):
        with hold(tmp_path/"run"):
            assert str(os.getpid()) in (tmp_path/"run"/holder_name).read_text(encoding="utf-8")
        check_free(tmp_path/"run")
        assert check_output_dir(tmp_path/"run") and not (tmp_path/"run"/holder_name).exists()



@ruled
def test_the_cache_is_cleared_past_what_is_in_use(cache, caplog):
    from clm_nb.data.cache import cache_sizes, clear_cache, from_cache
    from test_preprocess import blocks_of, some_texts
    tokens, blocks = blocks_of(some_texts)
    sizes = cache_sizes()
    del blocks
    freed = clear_cache()
    assert cache_sizes() == {"tokens": sizes["tokens"]} and freed == sum(sizes.values()) - sizes["tokens"]
    assert "are in use and stay" in caplog.text and "tokens/" in caplog.text and "\n" not in caplog.messages[0]
    del tokens
    assert clear_cache() == sizes["tokens"] and not cache_sizes()


script = """
import multiprocess, sys
import tiny
multiprocess.set_start_method("spawn", force=True)  # as on Windows and macOS
from datasets import Dataset, DatasetDict
from clm_nb.tokenize import tokenize
def main():
    texts = DatasetDict(train=Dataset.from_dict({"text": tiny.texts*10}))
    print(len(tokenize(texts, tiny.tokenizer(), encoder="tokenizers", num_proc=2)["train"]))
"""


@pytest.mark.parametrize("end, says", [('if __name__ == "__main__":\n    main()', "80\n"), ("main()", ""), ("main()  # __main__", "")])
def test_a_script_with_processes(end, says, cache, tmp_path):
    "One that doesn't guard its own work is told so, at once where that can be seen"
    (tmp_path/"work.py").write_text(script + end, encoding="utf-8")
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root/"tests"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, tmp_path/"work.py"], env=env, capture_output=True, text=True, timeout=300)
    if says: assert done.returncode == 0 and done.stdout.strip().isdigit(), done.stderr
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("RuntimeError: num_proc=2 starts new processes") and '`if __name__ == "__main__":`' in last
