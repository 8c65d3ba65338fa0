"The picture of the heat map, for nbs/images: `heatmap(page, path)` with a playwright page"
import io, re
from pathlib import Path


def heatmap_map():
    "The map that nbs/06c_heatmap.ipynb shows"
    from clm_nb.flatten import flatten
    from clm_nb.heatmap import loss_map
    from clm_nb.load import load_corpus
    from clm_nb.tokenize import load_tokenizer
    from clm_nb.train import embedded_run, load_model
    texts = flatten(load_corpus("python-docs"))["test"]["text"]
    text = next(t for t in texts if t.startswith('The "return" statement'))
    base, model = load_model("python-docs-gpt2"), load_model(embedded_run())
    return loss_map(model, load_tokenizer("python-docs-gpt2"), text, base=base)


def heatmap(
    page, # of playwright, about 900 CSS pixels wide, with device_scale_factor=2
    path: Path, # where the PNG goes
    dark: bool = False, # on a dark background
):
    "The three views of the first 126 tokens, the box of ` clause` open in the last"
    from PIL import Image
    m = heatmap_map()
    colours = "background:#111;color:#ddd" if dark else "background:#fff;color:#111"
    fragment = re.sub(r"<p>Tokens .*?</p>", "", m.html(n_tokens=126, n_worst=3))
    page.set_content(f'<meta charset="utf-8"><body style="margin:8px;font-family:system-ui,sans-serif;{colours}">{fragment}')
    page.locator(".t").nth(2*126 + m.names.index("m", 5)).hover()
    shot = Image.open(io.BytesIO(page.locator(".clm-losses").screenshot()))
    shot.convert("RGB").quantize(128).save(path, optimize=True)
