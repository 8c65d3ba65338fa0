"The real clients of the Hub against one on this machine: revisions, refusals, pushes, and a Hub that goes away"
import json, os, re, subprocess, sys, threading, time
from pathlib import Path

import pytest
from clm_nb.model.model import load_model
from clm_nb.training.share import HubTrainer
from hub import Hub
from huggingface_hub import HfApi
from transformers import TrainingArguments
import tiny

secret, stranger = "hf_secretsecret", "hf_strangerstranger"

child = """
import json, os, sys, time, traceback
from pathlib import Path
answers, outputs = os.fdopen(os.dup(1), "w"), [Path(sys.argv[1], name) for name in ("out", "err")]
from clm_nb.cli import main
import clm_nb.core
for line in sys.stdin:
    for fd, path in enumerate(outputs, 1): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    start = time.monotonic()
    try: status = main(json.loads(line))
    except SystemExit as e: status = e.code
    except BaseException: status = traceback.print_exc()
    sys.stdout.flush()
    seconds = time.monotonic() - start
    print(json.dumps([status, *(path.read_text() for path in outputs), seconds]), file=answers, flush=True)
"""


def files(model, folder) -> dict:
    "What a model and its tokenizer look like on the Hub"
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def records(n) -> bytes:
    texts = lambda i: [f"Answer {i}: the quick brown fox jumps over {i} lazy dogs.", f"And {i*i} more of them."]
    record = lambda i: {"q_id": f"q{i}", "title": f"Question {i}?", "answers": {"text": texts(i)}}
    return json.dumps([record(i) for i in range(n)]).encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder, hub = tmp_path_factory.mktemp("hub"), Hub({secret: "me", stranger: "stranger"})
    hub.old, hub.new = files(tiny.gpt2(initializer_range=0.1), folder/"old"), files(tiny.gpt2(), folder/"new")
    card = b"---\nlicense: mit\n---\n# Answers\n"
    data = [{"README.md": card, "answers.json": records(n)} for n in (40, 60)]
    hub.models = hub.add("model", "owner/tiny-gpt2", hub.old, hub.new)
    hub.data = hub.add("dataset", "owner/answers", *data)
    for kind, content in (("model", hub.new), ("dataset", data[1])):
        hub.add(kind, "owner/gated", content, readers=("me",), gated=True)
        hub.add(kind, "owner/private", content, readers=("me",))
    (folder/"answers.json").write_bytes(records(40))
    hub.folder = folder
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def clm_nb(hub, tmp_path_factory):
    "A function that runs `clm_nb` in one other process that knows this Hub: (exit status, stdout, stderr, seconds)"
    folder = tmp_path_factory.mktemp("child")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_DATASETS_CACHE")}
    env |= dict(HF_ENDPOINT=hub.url, HF_HOME=str(folder/"home"), CLM_NB_CACHE=str(folder/"cache"), PYTHONPATH=path)
    process = subprocess.Popen([sys.executable, "-c", child, str(folder)], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(*argv):
        late = threading.Timer(tiny.patience, process.kill)
        late.start()
        print(json.dumps([str(a) for a in argv]), file=process.stdin, flush=True)
        try: return json.loads(process.stdout.readline() or '["killed: it never ended", "", "", 0]')
        finally: late.cancel()

    def end():
        process.stdin.close()
        assert process.wait(tiny.patience) == 0
    run.end = end
    yield run
    process.stdin.close()
    process.wait(tiny.patience)


def one_line(done, message, status=1):
    "The run ended in one line on stderr, which says what is wrong and no secret"
    assert done[0] == status and not done[1] and done[2].count("\n") == 1, done
    assert re.search(message, done[2]) and "hf_" not in done[2].replace("hf_hub", ""), done


train = "train --block_size 16 --max_steps 4 --disable_tqdm true --max_new_tokens 5 --dataset_name".split()
model = ["--model_name_or_path", "owner/tiny-gpt2"]
to = lambda name: ["--push_to_hub", "--hub_model_id", name, "--hub_token", secret]
saving = "--save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 2 --hub_strategy every_save".split()
unsaved = ["--save_strategy", "no", "--eval_strategy", "no"]


def content(folder) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def complete(run, hub, clm_nb, name):
    "The run folder holds the trained model and all that is to be known about it; the loss that the model has"
    told = json.loads((run/"run.json").read_bytes())
    assert told["status"] == "trained" and told["after"]["loss"] < told["before"]["loss"]
    assert (run/"loss.png").exists()
    status, out, err, _ = clm_nb("perplexity", "--model_name_or_path", name, "--dataset_name", "owner/answers",
                                 "--block_size", "16", "--json")
    assert (status, err) == (0, "") and json.loads(out) == told["after"]
    return told


def test_a_run_is_pushed_while_it_trains_and_when_it_is_done(hub, clm_nb, tmp_path):
    "Weights, tokenizer, card and figures go to the Hub; the token, the pickle it would be in, and checkpoints don't"
    run = tmp_path/"run"
    status, out, err, _ = clm_nb(*train, "owner/answers", *model, *saving, *to("me/tuned"), "--output_dir", run)
    assert (status, err) == (0, "") and str(run) in out
    repo = hub.repos["model", "me/tuned"]
    assert repo.messages[0].startswith("Training in progress, step") and repo.messages.count("End of training") == 1
    assert repo.messages[-1] == "End of training" and len(repo.messages) < 4
    final = {name for name in content(run) if "/" not in name}
    assert final >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "run.json", "loss.png"}
    assert set(repo.at()) == final and all(repo.at()[name] == (run/name).read_bytes() for name in final)
    for files in (*repo.commits.values(), content(run)):
        assert not [name for name in files if "training_args" in name]
        assert not [name for name, data in files.items() if secret.encode() in data]
    assert not [name for files in repo.commits.values() for name in files if "/" in name or "optimizer" in name]
    assert secret not in out + err
    card = repo.at()["README.md"].decode()
    assert "\nbase_model: owner/tiny-gpt2\n" in card and "\ndatasets: owner/answers\n" in card
    complete(run, hub, clm_nb, "me/tuned")
    first = list(repo.commits.values())[0]
    assert first["model.safetensors"] not in (hub.new["model.safetensors"], repo.at()["model.safetensors"])


def test_a_revision_is_the_one_that_is_loaded(hub, clm_nb, tmp_path):
    "Branch, commit, and the newest where none is named: the data's records, the model's weights"
    loss = lambda *flags: json.loads(clm_nb("perplexity", "--text", "The quick brown fox", "--json", *flags)[1])["loss"]
    expected = {name: loss("--model_name_or_path", hub.folder/name) for name in ("old", "new")}
    for revision, name in ((hub.models[0], "old"), (hub.models[1], "new"), ("main", "new")):
        assert loss(*model, "--revision", revision) == expected[name]
    assert loss(*model) == expected["new"] != expected["old"]
    run = tmp_path/"run"
    for revision, name, n in ((hub.data[0], "old", 40), (hub.data[1], "new", 60)):
        flags = ["--dataset_revision", revision, "--revision", hub.models[name == "new"], *unsaved]
        assert clm_nb(*train, "owner/answers", *model, *flags, "--output_dir", run)[0] == 0
        told = json.loads((run/"run.json").read_bytes())
        assert sum(told["ledger"][split]["load"]["records"] for split in ("train", "test")) == n
        assert told["source"]["revision"] == hub.models[name == "new"]
    for flags, message in ((["--revision", "v9"], "'owner/tiny-gpt2' has no revision 'v9'"),
                           (["--dataset_revision", "0"*40], "'owner/answers' has no revision '0000")):
        one_line(clm_nb(*train, "owner/answers", *model, *flags, "--output_dir", tmp_path/"new"), message)
    assert not (tmp_path/"new").exists()


def test_a_run_is_repeated_on_the_commits_it_was_made_from(hub, clm_nb, tmp_path):
    "Though data set and model have moved on since, and no revision was named"
    repos = [hub.repos[kind, name] for kind, name in (("dataset", "owner/answers"), ("model", "owner/tiny-gpt2"))]
    run, again = tmp_path/"run", tmp_path/"again"
    assert clm_nb(*train, "owner/answers", *model, *unsaved, "--logging_steps", "1", "--output_dir", run)[0] == 0
    told = json.loads((run/"run.json").read_bytes())
    assert (told["source"]["data"]["dataset_revision"], told["source"]["revision"]) == (hub.data[1], hub.models[1])
    newest = [repo.branches["main"] for repo in repos]
    try:
        for repo, files in zip(repos, ({"answers.json": records(20)}, hub.old)): repo.commit(files)
        assert clm_nb("train", "--from_run", run, "--output_dir", again)[0] == 0
    finally:
        for repo, commit in zip(repos, newest): repo.branches["main"] = commit
    repeated = json.loads((again/"run.json").read_bytes())
    losses = lambda run: [log["loss"] for log in run["log_history"] if "loss" in log]
    assert losses(told) == losses(repeated) and len(losses(told)) == 4 and told["after"] == repeated["after"]


refusals = [("gated", [], "is gated. Ask for access"), ("gated", ["--token", stranger], "is gated. Ask for access"),
            ("private", [], "neither .* public"), ("private", ["--token", stranger], "neither .* public"),
            ("missing", [], "neither .* public"), ("missing", ["--token", secret], "neither .* public"),
            ("missing", ["--token", "hf_wrong"], "refused .401"), ("private", ["--token", "hf_wrong"], "refused .401")]


@pytest.mark.parametrize("name,token,message", refusals)
def test_what_may_not_be_read_is_one_clear_line(name, token, message, hub, clm_nb, tmp_path):
    for data, model in ((hub.folder/"answers.json", f"owner/{name}"), (f"owner/{name}", hub.folder/"new")):
        done = clm_nb(*train, data, "--model_name_or_path", model, *token, "--output_dir", tmp_path/"run")
        one_line(done, f"owner/{name}.*{message}")
    assert not (tmp_path/"run").exists()


def test_what_the_token_opens_is_read(hub, clm_nb, tmp_path):
    for name in ("gated", "private"):
        flags = [f"owner/{name}", "--model_name_or_path", f"owner/{name}", "--token", secret, *unsaved]
        assert clm_nb(*train, *flags, "--output_dir", tmp_path/name)[0] == 0


@pytest.mark.parametrize("mode", ["closed", "drop", "silent"])
def test_a_hub_out_of_reach_is_one_clear_line(mode, hub, clm_nb, tmp_path):
    here, local = [hub.folder/"answers.json"], ["--model_name_or_path", hub.folder/"new"]
    run = ["--output_dir", tmp_path/"run"]
    with hub.failing(mode):
        one_line(clm_nb(*train, "owner/absent", *local, *run), "'owner/absent': the Hub can't be reached")
        one_line(clm_nb(*train, *here, "--model_name_or_path", "owner/absent", *run), "'owner/absent': the Hub can't")
        one_line(clm_nb(*train, *here, *local, *to("me/early"), *run), "push_to_hub: the Hub can't be reached")
    assert not (tmp_path/"run").exists() and ("model", "me/early") not in hub.repos


def test_a_push_that_would_be_refused_is_told_before_training(hub, clm_nb, tmp_path):
    run = ["--output_dir", tmp_path/"run"]
    for token in ([], ["--hub_token", "hf_wrong"]):
        flags = ["--push_to_hub", "--hub_model_id", "me/early", *token]
        one_line(clm_nb(*train, "owner/answers", *model, *flags, *run), "push_to_hub: the Hub refused .401.* log in")
    one_line(clm_nb(*train, "owner/answers", *model, *to("owner/early"), *run), "'owner/early': the Hub refused .403")
    with hub.failing("refuse"):
        one_line(clm_nb(*train, "owner/answers", *model, *to("me/early"), *run), "'me/early': the Hub refused .403")
    assert not (tmp_path/"run/run.json").exists() and not [name for _, name in hub.repos if "early" in name]


def told_how_to_push(done, run, name, reason):
    "One line that names the run folder, the reason and the command that pushes it; less the command's own `hf`"
    status, out, err, _ = done
    command = f"hf upload {name} {run} . --exclude 'checkpoint-*/*'"
    assert command in err
    one_line((status, out, err.replace(command, ""), 0), f"{run} holds the trained model, but .* '{name}': {reason}")


@pytest.mark.parametrize("mode,reason", {"refuse": "the Hub refused .403", "drop": "the Hub can't be reached",
                                         "silent": "the Hub can't be reached"}.items())
def test_a_push_that_fails_at_the_end_leaves_the_model_and_says_how_to_push_it(mode, reason, hub, clm_nb, tmp_path):
    run, name = tmp_path/"run", f"me/{mode}"
    with hub.failing(mode, at=f"{name}/commit"):
        done = clm_nb(*train, "owner/answers", *model, *to(name), *unsaved, "--output_dir", run)
    told_how_to_push(done, run, name, reason)
    complete(run, hub, clm_nb, str(run))


def test_a_push_that_fails_at_a_save_does_not_end_the_training(hub, clm_nb, tmp_path):
    run, name = tmp_path/"run", "me/later"
    with hub.failing("refuse", at=f"{name}/commit", times=1):
        status, out, err, _ = clm_nb(*train, "owner/answers", *model, *saving, *to(name), "--output_dir", run)
    assert status == 0 and err.count("\n") == 1 and secret not in err
    assert re.search(f"push to '{name}' failed: the Hub refused .403.*Training goes on", err)
    assert hub.repos["model", name].messages[-1] == "End of training"
    assert complete(run, hub, clm_nb, name)["steps"] == 4


def test_a_checkpoint_that_is_deleted_while_its_folder_is_listed_costs_no_push(hub, monkeypatch, tmp_path):
    "As rotation does it, in the middle of the client's walk through the run folder"
    glob, gone = Path.glob, []

    def walk(folder, pattern, **kwargs):
        yield from glob(folder, pattern, **kwargs)
        if folder == tmp_path and len(gone) < 3:
            gone.append(folder/"checkpoint-2")
            raise FileNotFoundError(2, "No such file or directory", str(gone[-1]))

    api = HfApi(endpoint=hub.url, token=secret)
    api.create_repo("me/listed")
    (tmp_path/"config.json").write_text("{}", encoding="utf-8")
    trainer = HubTrainer(tiny.gpt2(), TrainingArguments(str(tmp_path/"run"), use_cpu=True))
    monkeypatch.setattr(Path, "glob", walk)
    with trainer._background():
        job = api.upload_folder(repo_id="me/listed", folder_path=tmp_path, run_as_future=True)
    job.result(tiny.patience)
    assert len(gone) == 3 and api.file_exists("me/listed", "config.json")


def test_a_hub_gone_silent_at_a_save_holds_up_neither_the_training_nor_the_end_of_the_process(hub, clm_nb, tmp_path):
    run, name = tmp_path/"run", "me/never"
    with hub.failing("silent", at=f"{name}/commit"):
        done = clm_nb(*train, "owner/answers", *model, *saving, *to(name), "--output_dir", run)
        clm_nb.end()  # the Hub stays silent until here
    told_how_to_push(done, run, name, "the Hub can't be reached")
    told = json.loads((run/"run.json").read_bytes())
    assert (told["status"], told["steps"]) == ("trained", 4) and told["after"]["loss"] < told["before"]["loss"]
    assert load_model(run).num_parameters() == tiny.gpt2().num_parameters()


def test_the_hub_knew_every_question(hub): assert hub.requests and not hub.unknown
