"Blocks token by token: every token readable, documents numbered, cuts marked, and the rest counted"
import re
from html.parser import HTMLParser

from hypothesis import given, settings, strategies as st
from clm_nb.look.token_text import token_texts
from clm_nb.look.blocks import show_blocks
import tiny

eos, tokenizer = 0, tiny.tokenizer()
quick = settings(max_examples=40, deadline=None)


class Texts(HTMLParser):
    "The tags of a fragment, and the texts in them"
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.texts.append(data)


def tokenized(texts): return [tokenizer(t)["input_ids"] + [eos] for t in texts]


def test_every_token_of_every_document_can_be_read():
    lists = tokenized(tiny.texts[:3] + ["<script>alert(1)</script> a & b"])
    view = show_blocks(lists, tokenizer, block_size=16, n_blocks=1000, compare=False)
    html = view._repr_html_()
    shown = "".join(t for t in Texts(html).texts if t not in ("1 document", "2 the next"))
    for row in lists: assert all(text in shown for text in token_texts(tokenizer, row[:-1]))
    assert ">&lt;<" in html and "&amp;<" in html and "<<" not in html and "http" not in html and html.count(">EOS<") == len(lists) + 1  # one in the legend
    dropped = view.ours.lines[-1].serials
    assert f"{len(dropped)} token" in html and "hatched" in html
    assert view.theirs is None and "tutorial" not in html


def numbered_labels(html): return re.findall(r'vertical-align:.35em;padding:0 3px;white-space:nowrap;">(…?\d+)', html)


def test_documents_are_numbered_and_cuts_marked():
    lists = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0]]
    html = show_blocks(lists, tokenizer, block_size=5, compare=False)._repr_html_()
    assert numbered_labels(html) == ["1", "2", "…2", "3", "…3"]
    assert re.findall(r'title="cut">✂ (\d)…', html) == ["2", "3"]
    assert "end of the split: 3 tokens dropped" in html
    padded = show_blocks(lists, tokenizer, block_size=5, remainder="pad", compare=False)._repr_html_()
    assert "padding × 2" in padded and "nothing dropped" in padded
    apart = show_blocks(lists, tokenizer, block_size=5, compare=False, isolate_documents=True)._repr_html_()
    assert re.findall(r"position (\d–\d)", apart) == ["0–3", "0–0", "0–1", "0–2"]


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_an_excerpt_draws_no_more_than_asked_and_counts_the_rest(lengths, n_blocks, batch_size):
    lists = [[5]*n for n in lengths] + [[5]*4]
    view = show_blocks(lists, tokenizer, block_size=3, batch_size=batch_size, n_blocks=n_blocks, remainder="batch", compare=False)
    html = view._repr_html_()
    shown, left = len(re.findall(r">block \d+<", html)), sum(map(int, re.findall(r"(\d+) more block", html)))
    assert shown <= n_blocks and shown + left == view.ours.counts["blocks"]
    ends = re.findall(r"end of batch \d+: (\d+|nothing)", html)
    lost = sum(int(n) for n in ends if n != "nothing") + sum(map(int, re.findall(r"with (\d+) tokens? dropped", html)))
    assert lost == view.ours.counts["dropped_remainder"] and "nothing" in ends or lost or not ends
    assert len(ends) + sum(map(int, re.findall(r"(\d+) more ends? of a batch", html))) == -(-len(lists)//batch_size)
