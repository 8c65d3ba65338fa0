"The command line: light help, one clear line for what is wrong, and the way from a data file to generated text"
import json, os, re, socket, subprocess, sys, time
from pathlib import Path

import pytest
from clm_nb.probe import tested
from conftest import answer, python, ranks
import tiny

sentences = ["The quick brown fox jumps over the lazy dog.", "It wasn't the first time, and won't be the last.",
             "A list of numbers."]


@pytest.fixture
def folder(tmp_path, cache, monkeypatch):
    "A working directory with a nested JSON corpus, a tokenizer, a config and a model; caches of its own"
    folder = tmp_path/"work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    answers = lambda i: {"text": [f"{s} {i}" for s in sentences], "score": [1, 2, 3]}
    records = [{"q_id": str(i), "title": f"Question {i}", "answers": answers(i)}
               for i in range(80)]
    Path("corpus.json").write_text(json.dumps(records), encoding="utf-8")
    tiny.tokenizer().save_pretrained("tokenizer")
    tiny.gpt2().config.save_pretrained("config")
    tiny.gpt2().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n", encoding="utf-8")
    Path("half.yaml").write_text("learning_rate: [1", encoding="utf-8")
    Path("list.yaml").write_text("- learning_rate", encoding="utf-8")
    Path("unknown.yaml").write_text("no_such_flag: 3", encoding="utf-8")
    return folder


@pytest.fixture
def run(folder, capfd):
    "A function that runs `clm_nb` in this process: (exit status, what it printed, its errors)"
    from clm_nb.cli import main
    def run(*argv):
        capfd.readouterr()
        try: status = main([str(a) for a in argv])
        except SystemExit as exit: status = exit.code
        return status, *capfd.readouterr()
    return run


def listing(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


heavy = "torch", "transformers", "datasets", "numpy", "pyarrow", "huggingface_hub"
helping = f"""
import io, sys
from contextlib import redirect_stdout
from clm_nb.cli import main
out = io.StringIO()
with redirect_stdout(out):
    for argv in ([], ["demo"], ["train"], ["perplexity"], ["generate"], ["app"]):
        try: main([*argv, "--help"])
        except SystemExit as exit: assert exit.code == 0
print([m for m in {heavy} if m in sys.modules])
print(out.getvalue())
"""


def test_help_is_light_and_names_the_flags():
    loaded, text = answer(python(helping)).split("\n", 1)
    assert loaded == "[]"
    for flag in ("--dataset_name", "--text_column", "--block_size", "--config_name", "--tokenizer_name", "--output_dir",
                 "--prompt",
                 "--max_new_tokens", "--stride", "--json", "--learning_rate"): assert flag in text


def test_ten_flags_come_first_and_each_flag_once():
    "What a newcomer needs stands above all else; a training argument among them isn't lost on its way"
    from clm_nb.training_commands import train_parser
    text = train_parser().format_help()
    first, rest = text.split("What matters first:")[1].split("Which text, and how it is cut:")
    flags = re.findall(r"^  --(\w+)", first, flags=re.M)
    assert flags == ["dataset_name", "train_file", "validation_file", "text_column", "block_size", "model_name_or_path", "output_dir",
                     "num_train_epochs", "learning_rate", "per_device_train_batch_size"]
    others = re.findall(r"^  --(\w+)", rest, flags=re.M)
    assert len(others) == len(set(others)) > 15 and not set(others) & set(flags) and text.index("What matters first") < 300


script = Path(sys.executable).with_name("clm_nb")
ways = {"script": [str(script)], "package": [sys.executable, "-m", "clm_nb"], "module": [sys.executable, "-m", "clm_nb.cli"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", "clm_nb"],
        "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "clm_nb"]}


@pytest.mark.parametrize("way", ways)
def test_the_command_is_main(way, tmp_path):
    "As a script, by `python -m`, and behind what starts several processes, which hands its arguments on"
    import clm_nb
    if way == "script" and not script.exists(): pytest.skip("clm_nb is not installed here")
    env = os.environ | dict(PYTHONPATH=str(Path(clm_nb.__file__).parents[1]), HF_HOME=str(tmp_path))
    ask = lambda *argv: subprocess.run([*ways[way], *argv], capture_output=True, text=True, cwd=tmp_path, env=env)
    done = ask("--version")
    told = done.stdout.splitlines()
    assert (done.returncode, told[0]) == (0, f"clm_nb {clm_nb.__version__}") and told[-1].startswith("computes on ")
    assert [line.split()[0] for line in told[1:-1]] == ["Python", *tested]
    done = ask("train", "no_such.yaml", "--max_steps", "3")
    told = [line for line in done.stderr.splitlines() if line.startswith("clm_nb: ")]
    assert done.returncode == 1 and len(told) == 1 and told[0].startswith("clm_nb: no_such.yaml is not a file")
    if way in ("script", "package", "module"): assert done.stderr.count("\n") == 1


scratch = ["train", "--dataset_name", "corpus.json", "--tokenizer_name", "tokenizer", "--config_name", "config",
           "--block_size", "16", "--output_dir", "out"]
wrong = {
    "--dataset_name some/where/corpus.json": "some/where/corpus.json doesn't exist",
    "--dataset_name corpus.jsonl": "corpus.jsonl doesn't exist",
    "--text_column answer": "text_column='answer' .* answers.text",
    "--dataset_name some/corpus": "'some/corpus': the Hub can't be reached",
    "--tokenizer_name some/tokenizer": "'some/tokenizer': the Hub can't be reached",
    "--tokenizer_name config": "config holds no tokenizer",
    "--config_name tokenizer": "tokenizer holds no model config", "--block_size 257": "block_size=257 .* context .256",
    "--block_size 0": "block_size=0", "--block_size wide": "block_size.* 'wide'",
    "--dataset_name empty.txt": "empty.txt is empty",
    "--dataset_name blank.txt": "blank.txt holds no text", "--no_such_flag 1": "unrecognized arguments: --no_such_flag",
    "--learning_rate fast": "learning_rate.* 'fast'", "--test_size 500": "test_size=500",
    "--remainder keep": "remainder.* 'keep'",
    "--explode maybe": "explode.* '?maybe", "--eval_strategy sometimes": "eval_strategy.* 'sometimes'",
    "--split dev": "split='dev'",
    "--model_name_or_path model": "Both model_name_or_path and config_name",
    "--output_dir model": "output_dir=model holds files",
    "--output_dir corpus.json": "output_dir=corpus.json is a file",
    "--per_device_train_batch_size 0": "batch_size", "--num_train_epochs -1": "num_train_epochs",
    "--resume_from_checkpoint nowhere": "nowhere",
    "--isolate_documents --remainder batch": "not the tutorial's way", "--dataset_config_name small": "no configuration 'small'",
    "--isolate_documents --as_tutorial": "not the tutorial's way", "--as_tutorial maybe": "Write true or false",
    "--dataset_name": "expected one argument",
    "--warmup_ratio 0.1": "Use warmup_steps", "--no_cuda": "Use use_cpu", "--learning_rat 1": "Do you mean learning_rate",
    "--preprocessing_num_workers 2": "Use num_proc", "--evaluation_strategy no": "Use eval_strategy",
    "--max_grad_norm None": "use 0 for no clipping", "--optim adamw_hf": "Use adamw_torch",
    "--optim_args betas=(0.5,0.9)": "adam_beta1= and adam_beta2=",
}


def one_line(status, out, err, message):
    assert status in (1, 2) and not out, out
    assert err.count("\n") == 1 and err.endswith("\n") and re.search(message, err), err


@pytest.mark.parametrize("flags", wrong)
def test_training_with_a_wrong_argument_is_one_clear_line_and_leaves_no_trace(flags, run, folder):
    before = listing(folder)
    one_line(*run(*scratch, *flags.split()), wrong[flags])
    assert listing(folder) == before and not (folder/"out").exists()


@pytest.mark.parametrize("command,message", {
    "train half.yaml": "half.yaml", "train list.yaml": "list.yaml holds no arguments",
    "train no_such.yaml": "no_such.yaml is not a file",
    "train unknown.yaml": "no_such_flag", "tran": "invalid choice: 'tran'",
    "demo --output_dir model": "output_dir=model holds files",
    "perplexity --model_name_or_path model --dataset_name corpus.json --block_size 257": "block_size=257",
    "perplexity --model_name_or_path nowhere/near/here": "nowhere/near/here is not a folder",
    "perplexity --model_name_or_path config": "config holds no causal language model",
    "perplexity --model_name_or_path model --text word --stride 0": "stride=0",
    "perplexity --model_name_or_path model --dataset_name empty.txt": "empty.txt is empty",
    "perplexity --model_name_or_path model --nothing": "unrecognized arguments: --nothing",
    "perplexity --model_name_or_path model --text word --baselines": "--baselines needs a data set",
    "cache --clear everything": "'everything' is not a part of the cache",
    "generate --model_name_or_path some/model --prompt The": "'some/model': the Hub can't be reached",
    "generate --model_name_or_path model": "--prompt",
    "generate --model_name_or_path model --prompt The --temperature 0": "temperature=0",
    "generate --model_name_or_path model --prompt The --num_beams 0": "num_beams=0",
    "generate --model_name_or_path model --prompt The --max_new_tokens 1000": "max_new_tokens=1000",
    "generate --model_name_or_path model --prompt The --top_k many": "top_k.* 'many'",
}.items())
def test_a_wrong_command_is_one_clear_line_and_leaves_no_trace(command, message, run, folder):
    before = listing(folder)
    one_line(*run(*command.split()), message)
    assert listing(folder) == before


def test_an_earlier_run_survives_a_wrong_argument(run, folder):
    assert run(*scratch, "--max_steps", "2")[0] == 0
    before = listing(folder)
    for flags in ("--block_size 257", "--text_column answer", "--per_device_train_batch_size 0",
                  "--resume_from_checkpoint nowhere"):
        one_line(*run(*scratch, *flags.split()), wrong.get(flags, ""))
    assert listing(folder) == before


def test_a_hub_that_never_answers_is_left(run, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        one_line(*run(*scratch, "--dataset_name", "some/corpus"), "'some/corpus': the Hub can't be reached")
    assert not (folder/"out").exists()


def test_an_error_in_the_middle_of_a_line_stands_on_a_line_of_its_own(run, folder, monkeypatch):
    "Behind the bar of a run that diverges, and behind a text that is written while it is made"
    status, out, err = run(*scratch, *"--max_steps 9 --learning_rate 1e38 --optim sgd --max_grad_norm 0 --lr_scheduler_type constant".split())
    assert status == 1 and "steps" in err and err.splitlines()[-1].startswith("clm_nb: At step ") and "learning_rate" in err.splitlines()[-1]
    def broken(*args, **kwargs):
        yield " brown"
        raise ValueError("out of luck")
    monkeypatch.setattr("clm_nb.core.stream", broken)
    assert run("generate", "--model_name_or_path", "model", "--prompt", "The quick") == (1, "The quick brown\n", "clm_nb: out of luck\n")


def test_from_a_data_file_to_generated_text(run, folder, cache):
    flags = "--text_column answers.text --max_steps 6 --eval_strategy steps --eval_steps 3 --learning_rate 1e-2" \
            " --save_strategy no --bf16 false"
    status, out, err = run(*scratch, *flags.split(), "--prompt", "The quick", "--max_new_tokens", "8")
    assert status == 0 and "Traceback" not in err
    for part in ("Perplexity of the held-out blocks", "dropped remainder", "The quick", "Run folder: out"):
        assert part in out
    found = json.loads(Path("out/run.json").read_bytes())
    evals = [log["eval_loss"] for log in found["log_history"] if "eval_loss" in log]
    assert (found["status"], found["steps"], found["block_size"], len(evals)) == ("trained", 6, 16, 2)
    assert [sample["step"] for sample in found["samples_by_step"]] == [3, 6]
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert all(f">{title}</h2>" in page for title in ("Outcome", "Samples", "Blocks", "Results", "Token by token"))
    assert evals[1] < evals[0] and found["after"]["loss"] < found["before"]["loss"]
    assert found["after"]["loss"] == pytest.approx(evals[1], rel=1e-5)
    ledger = found["ledger"]
    assert sum(ledger[split]["load"]["records"] for split in ("train", "test")) == 80
    for grouped in (counts["group"] for counts in ledger.values()):
        assert grouped["tokens"] == grouped["tokens_in_blocks"] + grouped["dropped_remainder"]

    status, out, err = run("perplexity", "--model_name_or_path", "out", "--json")
    assert status == 0 and json.loads(out) == found["after"]
    named = "perplexity --model_name_or_path out --dataset_name corpus.json --text_column answers.text" \
            " --block_size 16 --json --batch_size 3"
    assert json.loads(run(*named.split())[1])["loss"] == pytest.approx(found["after"]["loss"], rel=1e-6)
    status, out, err = run("perplexity", "--model_name_or_path", "out", "--text", sentences[0], "--json")
    assert json.loads(out)["tokens"] == len(tiny.tokenizer()(sentences[0])["input_ids"])
    status, out, err = run(*named.replace("--json", "").split())
    assert status == 0 and f"perplexity {found['after']['perplexity']:.2f}" in out and not err

    ask = ["generate", "--model_name_or_path", "out", "--prompt", "The quick", "--max_new_tokens", "8"]
    status, out, err = run(*ask, "--json", "--seed", "1")
    told = json.loads(out)
    assert status == 0 and told["prompt"] == "The quick"
    assert told["text"].startswith("The quick") and len(told["text"]) > 9
    assert run(*ask, "--seed", "1")[1] == told["text"] + "\n"
    assert json.loads(run(*ask, "--json", "--seed", "2")[1]) != told
    likeliest = json.loads(run(*ask, "--greedy", "--json")[1])["text"] + "\n"
    assert run(*ask, "--greedy")[1] == run(*ask, "--greedy", "--seed", "5")[1] == likeliest
    assert run(*ask, "--num_beams", "3")[0] == 0

    before = {p: time for p, time in listing(cache).items() if p.suffix == ".arrow"}
    again = {k: found[k] for k in ("ledger", "data", "after")}
    assert run(*scratch, *flags.split(), "--prompt", "The quick", "--max_new_tokens", "8")[0] == 0
    assert {p: time for p, time in listing(cache).items() if p.suffix == ".arrow"} == before and len(before) == 4
    assert {k: v for k, v in json.loads(Path("out/run.json").read_bytes()).items() if k in again} == again


def yaml(arguments): return "\n".join(f"{name}: {json.dumps(value)}" for name, value in arguments.items())


@pytest.mark.parametrize("write,name", [(json.dumps, "run.json"), (yaml, "run.yaml")])
def test_a_file_of_arguments_and_a_flag_that_overrides_it(write, name, run, folder):
    arguments = {k.removeprefix("--"): v for k, v in zip(scratch[1::2], scratch[2::2])}
    arguments |= dict(block_size=16, max_steps=3, learning_rate=1e-3, eval_strategy="no", save_strategy="no",
                      explode=True, max_new_tokens=5,
                      prompt="The \"quick\" fox: no", seed=3, lr_scheduler_kwargs=None, bf16=False)
    Path("arguments-" + name).write_text(write(arguments), encoding="utf-8")
    assert run("train", "arguments-" + name, "--learning_rate", "5e-4", "--max_steps=2")[0] == 0
    found = json.loads(Path("out/run.json").read_bytes())
    settings = found["training_arguments"]
    assert (settings["learning_rate"], settings["max_steps"], found["steps"], found["seed"]) == (5e-4, 2, 2, 3)
    assert (settings["eval_strategy"], settings["bf16"]) == ("no", False)
    assert found["samples"]["prompt"] == 'The "quick" fox: no'
    assert found["ledger"]["train"]["flatten"]["documents"] == 3*found["ledger"]["train"]["load"]["records"]


nines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}']*9)}]" for i in range(1, 15)]
bombs = {"nested anchors": "\n".join(nines), "an anchor in itself": "&a [*a]", "keys that are merged": "a: &a {b: 1}\nc:\n  <<: *a",
         "a list in a list": "["*50_000, "a dict in a dict": "{a: "*20_000, "items": "- "*40_000, "indents": "\n".join(" "*i + "a:" for i in range(300)),
         "a corpus": '{"text": "a"}\n'*20_000, "no date": "seed: 2020-13-45"}


@pytest.mark.parametrize("kind", bombs)
def test_a_file_of_arguments_that_would_fill_the_memory_is_one_line(kind, run, folder):
    "In a process that may take a little memory more than it has, and in a fraction of the time that is waited for"
    (folder/"run.yaml").write_text(bombs[kind], encoding="utf-8")
    resource = pytest.importorskip("resource")
    code = "import resource, sys; from clm_nb.arguments import file_flags; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n" \
           "try: file_flags(sys.argv[1])\nexcept ValueError as error: print(error)"
    said = answer(python(code, folder/"run.yaml"))
    assert said.count("\n") == 1 and re.search("run.yaml (can't be read as YAML: .*(Write one `name: value` a line|too large|month))", said)


def test_what_a_file_of_arguments_may_hold_is_still_read(folder):
    from clm_nb.arguments import file_flags
    (folder/"run.yaml").write_text('fsdp_config: {a: {b: [1, 2]}}\nprompt: "2 * 3 & more"\nseed: 3', encoding="utf-8")
    assert file_flags(folder/"run.yaml") == ["--fsdp_config", '{"a": {"b": [1, 2]}}', "--prompt", "2 * 3 & more", "--seed", "3"]


def test_the_type_of_the_weights_is_a_flag(run, folder):
    tiny.gpt2().bfloat16().save_pretrained("halves")
    tiny.tokenizer().save_pretrained("halves")
    known = "train --dataset_name corpus.json --text_column answers.text --model_name_or_path halves --block_size 16 --max_steps 1".split()
    for flags, saved in {"": "float32", "--dtype auto": "bfloat16"}.items():
        assert run(*known, "--max_new_tokens", "2", *flags.split(), "--output_dir", saved)[0] == 0
        assert json.loads(Path(saved, "config.json").read_bytes())["dtype"] == saved
    assert run("train", "--from_run", "bfloat16")[0] == 0
    assert json.loads(Path("bfloat16-again/config.json").read_bytes())["dtype"] == "bfloat16"
    one_line(*run(*known, "--torch_dtype", "bfloat16"), "torch_dtype: Use dtype")
    one_line(*run(*known, "--dtype", "float16"), "dtype.*float16")


tune = "--dataset_name corpus.json --model_name_or_path model --block_size 16 --max_new_tokens 5".split()


def losses(folder):
    return [{k: v for k, v in log.items() if "loss" in k} for log in json.loads((folder/"run.json").read_bytes())["log_history"]]


def test_a_run_is_repeated_from_its_run_json_alone(run, folder, cache):
    "Another folder, the same losses, figures and samples; other flags change it; data that has changed is told"
    flags = ["--text_column", "answers.text", "--explode", "--num_train_epochs", "1", "--isolate_documents", "--seed", "7", "--learning_rate", "1e-2",
             "--per_device_train_batch_size", "2", "--logging_steps", "1", "--prompt", "The fox", "--test_size", "9"]
    first = folder/"run.v1"
    assert run("train", *tune, *flags, "--output_dir", first)[0] == 0
    again = folder/"run.v1-again"
    assert run("train", "--from_run", first)[0] == 0
    told, repeated = (json.loads((f/"run.json").read_bytes()) for f in (first, again))
    assert losses(first) == losses(again) and len(losses(first)) > 3
    for key in ("source", "training_arguments", "data", "ledger", "before", "after", "samples"): assert told[key] == repeated[key], key
    assert run("train", "--from_run", first/"run.json", "--seed", "8", "--output_dir", folder/"other")[0] == 0
    assert losses(folder/"other") != losses(first) and len(losses(folder/"other")) == len(losses(first))
    data = Path(told["source"]["dataset_name"])
    data.write_text(data.read_text(encoding="utf-8").replace("fox", "cat"), encoding="utf-8")
    status, out, err = run("train", "--from_run", first, "--output_dir", folder/"changed")
    assert status == 1 and "blocks are not those of the run to be repeated" in err and err.count("\n") == 1
    assert not (folder/"changed").exists()


def test_two_processes_make_one_run(run, folder, cache):
    "As torchrun starts them: one prints and writes, and the figures are those of one process"
    flags = [*tune, "--max_steps", "3", "--logging_steps", "1", "--use_cpu", "--bf16", "false", "--disable_tqdm", "true",
             "--save_strategy", "no"]
    assert run("train", *flags, "--per_device_train_batch_size", "8", "--output_dir", "one")[0] == 0
    code = "import sys; from clm_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    flags += ["--per_device_train_batch_size", "4", "--output_dir", "two"]
    first, second = [answer(worker) for worker in [python(code, "train", *flags, **env) for env in ranks(2)]]
    assert "Run folder: two" in first and not second
    one, two = (json.loads((folder/name/"run.json").read_bytes()) for name in ("one", "two"))
    assert two["status"] == "trained" and two["after"]["loss"] == pytest.approx(one["after"]["loss"], abs=1e-4)
    for a, b in zip(losses(folder/"one"), losses(folder/"two"), strict=True): assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("content,message", [(None, "doesn't exist"), ("{", "can't be read as JSON"), ("{}", "can't be used without")])
def test_a_run_json_that_tells_nothing_is_one_clear_line(content, message, run, folder):
    if content: (folder/"run.json").write_text(content, encoding="utf-8")
    status, out, err = run("train", "--from_run", folder/"run.json")
    assert status == 1 and message in err and err.count("\n") == 1


def test_perplexity_beside_baselines(run, folder, cache):
    assert run("train", *tune, "--output_dir", folder/"run", "--max_steps", "2")[0] == 0
    status, out, err = run("perplexity", "--model_name_or_path", folder/"run", "--baselines", "--json")
    table = json.loads(out)
    assert status == 0 and list(table) == ["uniform", "unigram", "2-gram", "3-gram", "5-gram", "before training", "this model"]
    told = json.loads((folder/"run/run.json").read_bytes())
    assert (table["before training"], table["this model"]) == (told["before"], told["after"])
    assert len({p["tokens"] for p in table.values()}) == 1 and table["uniform"]["perplexity"] == pytest.approx(len(tiny.tokenizer()))
    other = run("perplexity", "--model_name_or_path", folder/"run", "--baselines", "--block_size", "8")[1]
    assert "this model" in other and "before training" not in other


def test_a_token_is_not_written_down_or_printed(run, folder):
    status, out, err = run(*scratch, "--max_steps", "1", "--token", "hf_secret", "--hub_token", "hf_secret")
    assert status == 0 and "hf_secret" not in out + err
    assert not [p for p in folder.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]


def test_real_questions_and_the_real_gpt2_tokenizer(run, folder):
    data = os.environ.get("CLM_NB_TEST_DATA") or pytest.skip("CLM_NB_TEST_DATA names no folder of test data")
    tiny.gpt2(n_embd=16, n_layer=1).config.save_pretrained("small")
    flags = [f"--dataset_name={data}/eli5_category_sample/validation.json", "--text_column=answers.text",
             "--split=train[:200]",
             f"--tokenizer_name={data}/gpt2_tokenizer", "--config_name=small", "--block_size=64", "--max_steps=6",
             "--learning_rate=1e-2",
             "--eval_strategy=steps", "--eval_steps=3", "--output_dir=out", "--max_new_tokens=5"]
    assert run("train", *flags)[0] == 0
    history = json.loads(Path("out/run.json").read_bytes())["log_history"]
    evals = [log["eval_loss"] for log in history if "eval_loss" in log]
    assert evals[1] < evals[0] < 12


def test_a_tilde_is_the_home_folder_at_every_door(tmp_path, cache, monkeypatch):
    "And no folder called `~` is made"
    from clm_nb.arguments import file_flags
    from clm_nb.cli import main as cli
    from clm_nb.core import finetune, load_config, load_model, load_tokenizer, train, write_report
    from clm_nb.core import run_arguments
    from clm_nb.look.serve import find_models
    home, work = tmp_path/"home", tmp_path/"work"
    for folder in (home/"model", work): folder.mkdir(parents=True)
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(work)
    tiny.gpt2().save_pretrained(home/"model")
    tiny.tokenizer().save_pretrained(home/"model")
    (home/"texts.jsonl").write_text("\n".join(json.dumps({"text": f"{text} {i}"}) for i, text in enumerate(tiny.texts*4)), encoding="utf-8")
    short = dict(block_size=16, max_steps=2, save_strategy="steps", save_steps=1, max_new_tokens=2, disable_tqdm=True, eval_strategy="no")
    two = {"train": "~/texts.jsonl", "test": Path("~/texts.jsonl")}
    run = finetune(two, "~/model", tokenizer_name="~/model", output_dir="~/run", **short)
    assert Path(run.output_dir) == home/"run"
    (home/"run.yaml").write_text("seed: 3", encoding="utf-8")
    assert file_flags("~/run.yaml") == ["--seed", "3"]
    checkpoint = max((home/"run").glob("checkpoint-*")).name
    again = finetune(two, "~/model", output_dir=Path("~/run"),
                     resume_from_checkpoint=f"~/run/{checkpoint}", **short | dict(max_steps=3))
    assert again.trainer.state.global_step == 3
    finetune("~/texts.jsonl", config_name="~/model", tokenizer_name=Path("~/model"), output_dir="~/new", **short)
    train(load_model("~/run"), run.blocks, load_tokenizer(Path("~/model")), Path("~/trained"), max_steps=1, disable_tqdm=True)
    assert run_arguments("~/run")["block_size"] == 16 and write_report("~/run") == home/"run/report.html"
    assert load_config("~/model").vocab_size == 400 and find_models("~/run").model == str(home/"run")
    assert cli(["train", "~/run.yaml", "--train_file", "~/texts.jsonl", "--validation_file", "~/texts.jsonl", "--model_name_or_path", "~/model", "--output_dir", "~/by-command", "--block_size", "16", "--max_steps", "1"]) == 0
    assert "`texts.jsonl, texts.jsonl`" in (home/"by-command/README.md").read_text(encoding="utf-8")
    assert cli(["train", "--from_run", "~/by-command"]) == 0 == cli(["perplexity", "--model_name_or_path", "~/run", "--text", "some words"])
    assert {p.name for p in home.iterdir()} >= {"run", "new", "trained", "by-command", "by-command-again"} and not list(work.iterdir())


@pytest.mark.parametrize("command", [["--version"], ["cache"]])
def test_nobody_reads_what_is_printed(command, cache):
    "As with `clm_nb --version | head -1`"
    process = subprocess.Popen([sys.executable, "-m", "clm_nb", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read() and process.wait() == 0
