"What a person sees and clicks, in a real browser: the apps in JupyterLab and Notebook, and the page of `clm_nb app`"
import re, signal, subprocess, sys
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil, pytest
from browser import Jupyter, chromium, open_page, shot, shots
import tiny

setup = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import tiny
tokenizer = tiny.tokenizer()
def slow():  # so that the text can be seen to grow
    model = tiny.gpt2()
    model.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    return model
"""
generation = """
from clm_nb.look.generation_app import GenerationApp
app = GenerationApp({"base": slow(), "fine-tuned": slow()}, tokenizer, "The quick", max_new_tokens=200)
app
"""
explorer = """
from clm_nb.look.explorer import NextTokenExplorer
NextTokenExplorer({"base": tiny.gpt2(), "fine-tuned": tiny.gpt2(n_head=4)}, tokenizer, "The quick brown fox")
"""
heat_map = """
from clm_nb.look.heatmap import loss_map
loss_map(tiny.gpt2(), tokenizer, "The quick brown fox jumps over the lazy dog.", base=tiny.gpt2(n_head=4))
"""
training = """
import tempfile
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback
from clm_nb.train import train
class Slow(TrainerCallback):
    def on_step_end(self, *args, **kwargs): time.sleep(0.25)
rows = Dataset.from_dict({"input_ids": [[i % 400 for i in range(n, n + 32)] for n in range(64)]})
train(tiny.gpt2(), DatasetDict(train=rows, test=rows), tokenizer, tempfile.mkdtemp(), callbacks=(Slow(),), max_steps=24,
      per_device_train_batch_size=4, logging_steps=5, eval_strategy="no", save_strategy="no", report_to="none")
None
"""


parts = dict(generation=generation, explorer=explorer, heat_map=heat_map, training=training)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser: yield browser


@contextmanager
def seen(page, name):
    "Keep a picture of the page where something fails"
    try: yield page
    except Exception:
        shot(page, f"failed-{name}")
        raise


@contextmanager
def notebook(folder, browser, kind, cells):
    "`open_part(name)` runs one of these cells, as a person would, in a notebook that all of them share, and gives its place"
    with Jupyter(folder, kind) as jupyter, closing(open_page(browser, width=1360, height=1700)) as page:
        jupyter.write("parts.ipynb", setup, *cells.values())
        jupyter.open(page, "parts.ipynb")
        jupyter.run(page, 0)
        @contextmanager
        def open_part(name):
            with seen(page, name):
                cell = jupyter.run(page, [*cells].index(name) + 1)
                yield cell
                pictures(jupyter, cell.locator(".jp-OutputArea").first, name)
            assert page.hosts == {"127.0.0.1"}, "something was loaded from elsewhere"
        yield open_part


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    with notebook(tmp_path_factory.mktemp("lab"), browser, "lab", parts) as open_part: yield open_part


@pytest.fixture(scope="module")
def notebook_7(tmp_path_factory, browser):
    assert find_spec("notebook"), "the dev extra has Notebook: pip install -e '.[dev]'"
    folder, cells = tmp_path_factory.mktemp("notebook"), dict(generation=generation)
    with notebook(folder, browser, "notebook", cells) as open_part: yield open_part


def pictures(jupyter, part, name):
    "Pictures of a part of the page, light and dark, where they are asked for"
    if not shots(): return
    for theme in ("dark", "light"):
        jupyter.theme(part.page, theme)
        part.scroll_into_view_if_needed()
        shot(part, f"{name}-{jupyter.kind}-{theme}")


def tokens(place) -> int:
    "How many tokens the first answer has"
    found = re.search(r"([\d,]+) tokens? ·", place.locator("section").first.inner_text())
    return int(found[1].replace(",", "")) if found else 0


def number_above(place, pattern: str, n: int, part: str = ".jp-OutputArea") -> int:
    "Wait until the number that a pattern finds in the first such part of a place is larger than `n`"
    found = place.page.wait_for_function("""([place, part, pattern, n]) => {
        const found = place.querySelector(part)?.innerText.match(new RegExp(pattern));
        const number = found && Number(found[1].replace(',', ''));
        return number > n && number }""", arg=[place.element_handle(), part, pattern, n])
    return found.json_value()


def more_tokens(place, than: int) -> int:
    "Wait until the first answer has grown"
    return number_above(place, r"([\d,]+) tokens? ·", than, "section")


def button(place, name): return place.get_by_role("button", name=re.compile(f"{name}$"))  # an icon may stand before it


def generates_and_stops(place):
    "Generate, see the text grow in at least two steps, stop it, and see it stand still"
    button(place, "Generate").click()
    first = more_tokens(place, 0)
    second = more_tokens(place, first)
    assert 0 < first < second < 200
    button(place, "Stop").click()
    place.get_by_role("status").filter(has_text="Stopped").wait_for()
    stopped = tokens(place)
    assert stopped < 200
    button(place, "Stop").and_(place.locator(":disabled")).wait_for()
    assert tokens(place) == stopped


def recovers_from_an_error(place):
    "A prompt that is too long is told in the app; the next one works"
    place.get_by_label("Prompt", exact=True).fill("word "*400)
    button(place, "Generate").click()
    place.get_by_role("alert").first.wait_for()
    assert "context" in place.get_by_role("alert").first.inner_text()
    place.get_by_label("Prompt", exact=True).fill("The lazy dog")
    button(place, "Generate").click()
    more_tokens(place, 2)
    assert not place.locator("section").first.get_by_role("alert").count()
    button(place, "Stop").click()
    place.get_by_role("status").filter(has_text="Stopped").wait_for()


@pytest.mark.parametrize("kind", ["lab", "notebook_7"])
def test_generation_app(kind, request):
    with request.getfixturevalue(kind)("generation") as cell:
        button(cell, "Generate").wait_for()
        generates_and_stops(cell)
        recovers_from_an_error(cell)


def test_explorer(lab):
    "The temperature moves by keyboard, and the bars with it; a token that is clicked is appended"
    with lab("explorer") as cell:
        slider = cell.locator(".widget-slider").filter(has_text="temperature").get_by_role("slider")
        slider.wait_for()
        shares = cell.get_by_text(re.compile(r"^[\d.]+\s*% → [\d.]+\s*%$"))
        first = shares.first.inner_text()
        slider.focus()
        for _ in range(10): cell.page.keyboard.press("ArrowLeft")
        cell.get_by_text(first, exact=True).wait_for(state="detached")
        after = lambda text: float(re.search(r"→ ([\d.]+)", text)[1])
        assert after(shares.first.inner_text()) > after(first)  # colder: the likeliest gains
        appended = lambda n: cell.get_by_text(re.compile(rf"\+ {n} tokens$"))
        appended(0).first.wait_for()
        cell.get_by_title(re.compile("^append token")).first.click()
        appended(1).first.wait_for()
        button(cell, "Undo").click()
        appended(0).first.wait_for()


def test_heat_map_tells_on_hover(lab):
    with lab("heat_map") as cell:
        token = cell.locator(".clm-losses .t").nth(3)
        token.wait_for()
        shown = "e => getComputedStyle(e.querySelector('span'), '::after').content"
        assert token.evaluate(shown) in ("none", "normal")
        token.hover()
        cell.page.wait_for_function("e => getComputedStyle(e.querySelector('span'), '::after').content.length > 20",
                                    arg=token.element_handle())


def test_training_is_shown_in_one_place(lab):
    with lab("training") as cell:
        steps = r"(\d+) of 24"
        output = cell.locator(".jp-Cell-outputWrapper")
        first = number_above(output, steps, 0)
        second = number_above(output, steps, first)
        assert 0 < first < second < 24
        displays = cell.locator(".jp-RenderedHTMLCommon.jp-OutputArea-output")
        assert displays.count() == 1
        number_above(output, steps, 23)
        assert displays.count() == 1


def descendants(process) -> list: return psutil.Process(process.pid).children(recursive=True)


@contextmanager
def served(folder, *flags):
    "`clm_nb app` in a process of its own, with the address that it prints"
    code = "import sys; from clm_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "app", "--model", str(folder), *flags]
    with open(Path(folder).parent/"app.err", "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)
        line = process.stdout.readline()
        process.address = next(iter(re.findall(r"http://127\.0\.0\.1:\d+/\S*", line)), None)
        assert process.address, Path(errors.name).read_text(encoding="utf-8")
        try: yield process
        finally:
            left = descendants(process) if process.poll() is None else []
            for p in [process, *left]: p.kill()


@pytest.fixture
def run_folder(tmp_path):
    "A run of a tiny model, with its base beside it"
    import json
    for name in ("base", "run"):
        tiny.gpt2(n_head=4 if name == "base" else 2).save_pretrained(tmp_path/name)
        tiny.tokenizer().save_pretrained(tmp_path/name)
    source = dict(source=dict(model_name_or_path=str(tmp_path/"base")))
    (tmp_path/"run"/"run.json").write_text(json.dumps(source), encoding="utf-8")
    return tmp_path/"run"


def test_app_page(run_folder, browser):
    "The page works, loads nothing from elsewhere, and neither a closed tab nor Ctrl-C leaves a kernel behind"
    with served(run_folder, "--prompt", "The quick") as process, seen(open_page(browser), "app-page") as page, closing(page):
        page.goto(process.address)
        button(page, "Generate").wait_for()
        assert page.get_by_label("Prompt", exact=True).input_value() == "The quick"
        assert page.locator("section").count() == 2  # base and fine-tuned
        button(page, "Generate").click()
        assert more_tokens(page.locator("body"), 1) > 1
        page.get_by_role("status").filter(has_text="Done").wait_for()
        assert_light_and_dark(page)
        assert page.hosts == {"127.0.0.1"} and not page.errors
        assert len(kernels := descendants(process)) == 1 and kernels[0].cmdline()[0] == sys.executable
        page.goto("about:blank")
        assert not psutil.wait_procs(kernels, timeout=600)[1], "the kernel of a closed tab lives on"
        page.goto(process.address)
        button(page, "Generate").wait_for()
        assert len(kernels := descendants(process)) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 0 and "stopped" in process.stdout.read()
        assert not psutil.wait_procs(kernels, timeout=600)[1], "a kernel outlives the server"


def assert_light_and_dark(page):
    "The page follows the browser's setting"
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shot(page, f"app-page-{scheme}", full_page=True)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours["light"] == "rgb(255, 255, 255)" != colours["dark"]
