"Blocks as stripes: segments in proportion to tokens"
from clm_nb.look.blocks import show_blocks
import tiny
from drawings import rects

tokenizer = tiny.tokenizer()


def test_stripes_are_in_proportion_to_tokens():
    lists = [[5]*40 + [0], [6]*10 + [0], [7]*70 + [0], [8]*30 + [0]]
    html = show_blocks(lists, tokenizer, block_size=64, compare=False)._repr_html_()
    svg, found = rects(html)
    segments = [r for r in found if r.get("stroke") == "#555"]
    expected = [41, 11, 12, 59, 5, 26]  # blocks 1 and 2 and 26 tokens dropped
    assert [round(float(r["width"])*64/400) for r in segments] == expected
    assert [r["fill"].startswith("url(") for r in segments] == [False]*5 + [True]
    assert len([r for r in found if r["fill"] == "#111"]) == 4  # EOS
    assert svg.find(".//*[@id]").get("id") in segments[-1]["fill"]
