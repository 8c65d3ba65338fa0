"""The pictures of the pages on blocks, batches and results, from their live views, in a headless Chromium.

Each function takes a Playwright `page` (device_scale_factor=2, 940 px wide) and the path of the picture.
"""
import datasets
from datasets import Dataset, DatasetDict
from PIL import Image
from clm_nb.flatten import flatten
from clm_nb.group import group
from clm_nb.load import Ledger, load_corpus
from clm_nb.tokenize import load_tokenizer, tokenize

datasets.disable_progress_bars()
poem = ["The sky is blue.", "Roses are red, violets are blue.", "Yes.", "A list is a sequence of values.\nIt can grow.",
        "An end is an end."]


def shoot(page, html: str, path, background: str = "#fff", color: str = "#111"):
    "Write the picture of a fragment, no larger than it is, in 256 colours"
    page.set_content(f'<meta charset=utf8><body style="margin:0;background:{background};color:{color}">'
                     f'<div id="view" style="width:900px;padding:14px 20px;box-sizing:border-box">{html}</div>')
    page.locator("#view").screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def block_viewer(page, path, **look):
    from clm_nb.blocks_view import show_blocks
    tokenizer = load_tokenizer("python-docs-gpt2")
    short = tokenize(DatasetDict(train=Dataset.from_dict({"text": poem})), tokenizer)["train"]
    shoot(page, show_blocks(short, tokenizer, block_size=12, batch_size=3)._repr_html_(), path, **look)


def ledger_picture(page, path, **look):
    from clm_nb.blocks_view import ledger_flow
    ledger = Ledger()
    documents = flatten(load_corpus("python-docs", ledger=ledger), explode=True, ledger=ledger)
    tokens = tokenize(documents, load_tokenizer("python-docs-gpt2"), ledger=ledger)
    group(tokens, block_size=1024, remainder="batch", batch_size=10, ledger=ledger)
    shoot(page, ledger_flow(ledger)._repr_html_(), path, **look)


def batch_picture(page, path, **look):
    from transformers import DataCollatorForLanguageModeling
    from clm_nb.batch_view import show_batch
    from clm_nb.collate import CausalCollator
    tokenizer = load_tokenizer("python-docs-gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": tokenizer(text).input_ids + [tokenizer.eos_token_id]} for text in ["The sky is blue.", "Yes."]]
    ours = show_batch(CausalCollator(tokenizer.eos_token_id)(rows), tokenizer)
    theirs = show_batch(DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)(rows), tokenizer)
    title = '<p style="font:bold 17px sans-serif;margin:{}">{}</p>'.format
    shoot(page, title("0 0 4px", "CausalCollator") + ours._repr_html_() +
          title("18px 0 4px", "DataCollatorForLanguageModeling, padding = EOS") + theirs._repr_html_(), path, **look)


def results_picture(page, path, **look):
    from clm_nb.results import show_results
    from clm_nb.train import embedded_run, load_model
    documents = flatten(load_corpus("python-docs"), explode=True)["test"]
    model, base = load_model(embedded_run()), load_model("python-docs-gpt2")
    shoot(page, show_results(model, documents, load_tokenizer("python-docs-gpt2"), base)._repr_html_(), path, **look)


pictures = {"blocks": block_viewer, "ledger_flow": ledger_picture, "batch": batch_picture, "results": results_picture}


if __name__ == "__main__":
    import sys
    from playwright.sync_api import sync_playwright
    flags = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=flags.split())
        page = browser.new_page(viewport=dict(width=940, height=600), device_scale_factor=2)
        for name in sys.argv[1:] or pictures: pictures[name](page, f"nbs/images/{name}.png")
