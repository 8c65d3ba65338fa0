"Hostile input: what stands in texts, names, paths and folders becomes no command, no Markdown, no code; secrets stand nowhere"
import io, json, logging, os, pickle, re, shutil, tarfile, zipfile
from pathlib import Path

import pytest, torch
from clm_nb.cli import main
from clm_nb.core import finetune, load_corpus, load_model, load_tokenizer
from clm_nb.data.secrets import without_secrets
from clm_nb.training.checkpoint import list_name, newest_whole
from clm_nb.training.runs import write_card, write_run
from faults import prepare
from test_train import Payload, run
from tiny import gpt2, texts, tokenizer

secret = "hf_AbCdEfGhIjKlMnOpQrStUvWx"
quick = dict(block_size=16, max_steps=1, eval_strategy="no", save_strategy="no", max_new_tokens=3, use_cpu=True, bf16=False,
             per_device_train_batch_size=2, disable_tqdm=True)
flags = [str(part) for name, value in quick.items() if name not in ("bf16",) for part in (f"--{name}", value)]


@pytest.fixture
def place(tmp_path, monkeypatch, cache):
    "A folder with a corpus, a tokenizer and a model, and a token in the environment"
    prepare(tmp_path/"here")
    monkeypatch.chdir(tmp_path/"here")
    tokenizer().save_pretrained("model")
    monkeypatch.setenv("HF_TOKEN", "another-secret-of-mine")
    yield tmp_path/"here"
    logging.getLogger("clm_nb").filters.clear()


def command(capfd, *argv):
    "(status, all that was printed)"
    try: status = main([str(part) for part in argv])
    except SystemExit as end: status = end.code
    return status, "".join(capfd.readouterr())


def everything(folder) -> bytes: return b"".join(p.read_bytes() for p in Path(folder).rglob("*") if p.is_file())


@pytest.mark.parametrize("argv", [
    ["train", "--dataset_name", f"https://me:{secret}@huggingface.co/x.jsonl"], ["train", "--dataset_name", f"https://huggingface.co/x.jsonl?token={secret[3:]}"],
    ["train", "--model_name_or_path", f"https://me:pass{secret[3:]}@host/model"], ["generate", "--prompt", "a", "--model_name_or_path", f"hf://{secret}@a/b"],
    ["perplexity", "--text", "a b", "--tokenizer_name", f"s3://key:{secret}@bucket/x"], ["app", "--model", f"https://{secret}@huggingface.co/a/b"],
    ["train", "--dataset_name", "corpus.json", "--model_name_or_path", f"{secret}/model"], ["train", "--token", secret, "--nonsense"],
    ["train", "--tokn", secret], ["train", "--learning_rate", secret], [f"--{secret}"], [secret], ["train", f"{secret}.yaml"],
    ["train", "--dataset_name", "nobody/nothing", "--token", secret], ["train", "--dataset_name", "corpus.json", "--push_to_hub", "--hub_token", secret],
    ["train", "--from_run", f"{secret}/run.json"], ["generate", "--prompt", "a", "--model_name_or_path", "./another-secret-of-mine"]], ids=lambda argv: argv[0])
def test_a_token_stands_in_no_error(argv, place, capfd):
    status, said = command(capfd, *argv)
    assert status in (1, 2) and said.count("\n") == 1 and "Traceback" not in said
    assert not re.search("AbCdEf|another-secret", said), said


def test_a_token_stands_in_nothing_that_a_run_leaves(place, capfd, monkeypatch):
    "Tokens in the arguments, the environment and a file of settings; run.json, card, report, event files"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(place/"run/logs"))
    Path("run.json").write_text(json.dumps(dict(run_name="mine", token=secret)), encoding="utf-8")
    status, said = command(capfd, "train", "run.json", *flags, "--dataset_name", "corpus.json", "--model_name_or_path", "model", "--output_dir", "run",
                           "--hub_token", secret, "--report_to", "tensorboard")
    left = everything("run")
    assert status == 0 and list(Path("run").rglob("*tfevents*"))
    for word in (b"AbCdEf", b"another-secret"): assert word not in left and word.decode() not in said
    assert json.loads(Path("run/run.json").read_bytes())["training_arguments"]["run_name"] == "mine"
    for name in ("run_name", "hub_model_id", "project"): # TensorBoard writes all of them down
        status, said = command(capfd, "train", *flags, "--dataset_name", "corpus.json", "--output_dir", "other", f"--{name}", f"https://me:{secret}@host")
        assert status == 1 and "holds a secret" in said and secret not in said and said.count("\n") == 1 and not Path("other").exists()


@pytest.mark.parametrize("text", [f"see https://me:pw@host/x, {secret}", "--hub_token pw --x", "a?api_key=pw&b=1", "--wandb_api_key=pw"])
def test_what_is_no_secret_is_left_as_it_was(text):
    said = without_secrets(text)
    assert "pw" not in said and secret not in said and "…" in said
    for kept in ("see https://", "@host/x", "--x", "&b=1"): assert (kept in said) == (kept in text)
    plain = "hf_transfer --tokenizer_name gpt2, --max_new_tokens: 'x', https://host/x?b=1, a@b.c"
    assert without_secrets(plain) == plain


red, bell = "\x1b[31m\x1b]0;title\x07", "\x9b31m"


def test_escape_sequences_reach_no_terminal(place, capfd, caplog):
    "From names, paths, flags, prompts, texts of models, warnings"
    Path(f"a{red}").mkdir()
    Path(f"{red}.jsonl").write_text('{"text"', encoding="utf-8")
    rows = [dict(text=f"{red}{text} {i}") for i, text in enumerate(texts*6)]
    Path("red.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrong = [["train", "--dataset_name", f"{red}.jsonl"], ["train", "--dataset_name", f"./{bell}"], ["train", f"--{red}"], [red], ["train", red],
             ["generate", "--prompt", "a", "--model_name_or_path", f"a{red}"], ["perplexity", "--text", "a b", "--model_name_or_path", f"b{bell}"],
             ["train", "--learning_rate", red], ["train", "--resume_from_checkpoint", red, "--dataset_name", "corpus.json"], ["cache", "--clear", red]]
    good = [["generate", "--model_name_or_path", "model", "--prompt", f"The{red}{bell}", "--max_new_tokens", "3"],
            ["train", *flags, "--dataset_name", "red.jsonl", "--model_name_or_path", "model", "--output_dir", f"run{red}", "--prompt", f"{red}The{bell}"],
            ["train", *flags, "--dataset_name", "red.jsonl", "--model_name_or_path", "model", "--output_dir", f"run{red}", "--resume"]]
    for argv in wrong + good:
        status, said = command(capfd, *argv)
        assert bool(status) == (argv in wrong) and not re.search("[\x1b\x07\x9b]", said), (argv, said)
        if argv in wrong: assert said.count("\n") == 1 and "Traceback" not in said


def test_what_a_model_writes_is_shown_with_its_signs(place):
    out = finetune(str(place/"corpus.json"), str(place/"model"), output_dir="run", prompt=f"The{red}", **quick)
    assert "\x1b" not in repr(out) and "\\x1b" in repr(out) and "\x1b" not in repr(out.trainer.live)


def test_names_become_no_markdown_and_no_folder_of_this_machine_stands_in_the_card(place):
    "A newline, a backtick, a tag; two files; settings that name a path"
    name = "a`\n# <img src=x> [b](c)"
    Path(name).mkdir()
    os.rename("corpus.json", Path(name, "corpus.json"))
    data = {split: str(place/name/"corpus.json") for split in ("train", "test")}
    finetune(data, str(place/"model"), output_dir=place/f"{name} run", run_name=str(place/"secret place"), **quick)
    card = (place/f"{name} run"/"README.md").read_text(encoding="utf-8")
    assert str(place) not in card and str(Path.home()) + "/" not in card and "secret place" in card
    lines = card.split("---", 2)[2].splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# `a' # <img src=x> [b](c) run`", "## Settings"]
    assert "`model`, trained on `corpus.json, corpus.json` with clm_nb" in card
    told = json.loads((place/f"{name} run"/"run.json").read_bytes())
    for hostile in ("x`y\n# z", "C:\\Users\\me\\my`data", "/home/me/```/b", "~/a\x1b[31m", "</code><script>"):
        told["source"] |= dict(dataset_name=hostile, model_name_or_path=hostile)
        write_run("other", new_run=True, **told)
        write_card("other")
        body = Path("other/README.md").read_text(encoding="utf-8").split("---", 2)[2]
        assert body.count("\n# ") == 1 and body.count("`") % 2 == 0 and "\x1b" not in body and "/home/me" not in body and "Users" not in body
        assert all(part.count("<") == 0 for part in re.split("`[^`\n]*`", body))


def test_resuming_opens_no_pickle_that_the_run_did_not_write(tmp_path):
    "A file of the newest checkpoint is replaced by a pickle that does something, or such a file is added"
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=3, eval_strategy="no")
    run(tmp_path/"run", **settings)
    opened = tmp_path/"opened"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "training_args.bin", "pytorch_model.bin"):
        shutil.copytree(tmp_path/"run", tmp_path/name)
        newest = tmp_path/name/"checkpoint-4"
        listed = (newest/name).exists()
        (newest/name).write_bytes(pickle.dumps(Payload(opened)))
        assert newest_whole(tmp_path/name)[0].name == ("checkpoint-2" if listed else "checkpoint-4")
        run(tmp_path/name, resume_from_checkpoint=True, **settings | dict(max_steps=5))
        assert not opened.exists(), name
        shutil.rmtree(tmp_path/name)


def test_a_forged_list_opens_no_pickle_either(tmp_path):
    "Somebody may change the list too: torch loads weights and numbers only"
    from clm_nb.training.checkpoint import read_list, seal
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="no")
    run(tmp_path/"run", **settings)
    newest, opened = tmp_path/"run/checkpoint-4", tmp_path/"opened"
    told = read_list(newest)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        before = (newest/name).read_bytes() if (newest/name).exists() else None
        for forged in (pickle.dumps(Payload(opened)), saved(Payload(opened))):
            (newest/name).write_bytes(forged)
            seal(newest, **{k: v for k, v in told.items() if k != "files"})
            if before is None: run(tmp_path/"run", resume_from_checkpoint=newest, **settings)
            else:
                with pytest.raises(ValueError, match="holds a pickle that could run code, and wasn't opened") as error:
                    run(tmp_path/"run", resume_from_checkpoint=newest, **settings | dict(max_steps=5))
                assert "\n" not in str(error.value)
            assert not opened.exists(), name
        (newest/name).unlink() if before is None else (newest/name).write_bytes(before)


def saved(thing) -> bytes:
    "As torch.save writes it"
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def test_pickles_are_refused_with_the_way_to_convert_them(place, capfd):
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        folder = place/f"pickle{suffix}"
        gpt2().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        (folder/"model.safetensors").unlink()
        (folder/f"pytorch_model{suffix}").write_bytes(pickle.dumps(Payload(place/"opened")))
        for argv in (["generate", "--prompt", "a"], ["perplexity", "--text", "a b c"], ["train", "--dataset_name", "corpus.json", *flags]):
            status, said = command(capfd, *argv, "--model_name_or_path", folder)
            assert status == 1 and "pickle" in said and "save_pretrained" in said and said.count("\n") == 1
    assert not (place/"opened").exists() and not (place/"runs").exists()


def test_archives_and_paths_stay_in_their_folder(place, tmp_path):
    "Members that climb out, links that lead out, names on the Hub that climb"
    with zipfile.ZipFile("evil.zip", "w") as file: file.writestr("../../climbed.jsonl", '{"text": "a b c"}\n'*9)
    with tarfile.open("evil.tar.gz", "w:gz") as file:
        member = tarfile.TarInfo("../../climbed.jsonl")
        member.size = 3
        file.addfile(member, io.BytesIO(b"abc"))
    for name in ("evil.zip", "evil.tar.gz", "../../../etc/shadow-not-there", "..", "a/../../b", "owner/..", "../owner"):
        with pytest.raises((ValueError, OSError)): load_corpus(name)
    for name in ("../../x", "owner/../..", "..", "models--a--b/../c"):
        with pytest.raises((ValueError, OSError)): load_model(name)
        with pytest.raises((ValueError, OSError)): load_tokenizer(name)
    assert not list(tmp_path.parent.rglob("climbed.jsonl"))


def test_a_list_of_files_leads_out_of_no_folder(tmp_path):
    "A checkpoint whose list names files elsewhere: nothing but the checkpoint's own folder is deleted or changed"
    kept = tmp_path/"kept"
    kept.write_text("mine", encoding="utf-8")
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1, eval_strategy="no")
    run(tmp_path/"run", **settings)
    newest = tmp_path/"run/checkpoint-4"
    told = json.loads((newest/list_name).read_bytes())
    outside = {name: [4, "0"*32] for name in ("../../kept", str(kept))}
    (newest/list_name).write_text(json.dumps(told | dict(files=told["files"] | outside)), encoding="utf-8")
    run(tmp_path/"run", resume_from_checkpoint=True, **settings | dict(max_steps=5))
    assert kept.read_text(encoding="utf-8") == "mine"
