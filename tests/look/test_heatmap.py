"The heat map against plain transformers in double precision, a parser of HTML, and perplexity"
import math, re
from html.parser import HTMLParser
import numpy as np, pytest, torch
from transformers.convert_slow_tokenizer import bytes_to_unicode
from clm_nb.look import tints, token_table, token_text
from clm_nb.look.token_text import visible_text
from clm_nb.look.heatmap import loss_map
from clm_nb.look.tints import contrast_ratio
from clm_nb.look.token_box import share_bar
from clm_nb.model.scored_rows import windows
from clm_nb.perplexity import perplexity, token_losses
import tiny
from tiny import families, gpt2, tokenizer

tok = tokenizer()
text = "\n".join(tiny.texts[:3])*3
hostile = 'a <script>alert("x")</script> & \'q\' "> <img src=x onerror=alert(1)> 日本語 🙂 שלום\u202e\x00\u200b\r\n\t end\n\n'


class Page(HTMLParser):
    "What a browser would see: tags, titles, and the text of each token"
    def __init__(self, html):
        super().__init__()
        self.tags, self.titles, self.styles, self.text = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        assert not any(name.startswith("on") or name in ("src", "href") for name in attrs)
        if "title" in attrs: self.titles.append(attrs["title"]); self.styles.append(attrs["style"])

    def handle_data(self, data): self.text.append(data)


def reference(model, ids, block_size, stride, n=5):
    "(loss, rank, ids of the likeliest n, their probabilities) of each token but the first, a token at a time in float64"
    out, exact = {}, model.double()
    for begin, end, first in windows(len(ids), block_size, stride):
        with torch.no_grad(): log_p = exact(torch.tensor([ids[begin:end]])).logits[0].log_softmax(-1)
        for i in range(first, end):
            row = log_p[i - begin - 1]
            order = row.argsort(descending=True).tolist()
            out[i] = -row[ids[i]].item(), order.index(ids[i]) + 1, order[:n], row.exp()[order[:n]].tolist()
    return out


byte_of = {c: b for b, c in bytes_to_unicode().items()}


def named(i):
    "A token's bytes as text; the special token and numbers beyond the tokenizer by themselves"
    if i == 0 or i >= len(tok): return tok.convert_ids_to_tokens(i) if i == 0 else f"[{i}]"
    return bytes(byte_of[c] for c in tok.convert_ids_to_tokens(i)).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("family", families)
@pytest.mark.parametrize("block_size, stride", [(256, None), (64, 32), (33, 7), (16, 16), (2, 1), (2, 2)])
def test_every_figure_is_that_of_plain_transformers(family, block_size, stride):
    m = loss_map(families[family](), tok, text, block_size=block_size, stride=stride)
    expected = reference(families[family](), m.ids, block_size, stride or block_size//2)
    assert "".join(m.tokens) == text and len(m) == len(m.losses) == len(m.ranks) == len(m.preferred)
    assert math.isnan(m.losses[0]) and m.ranks[0] == 0 and m.preferred[0] == []
    for i in range(1, len(m)):
        if i not in expected:
            assert math.isnan(m.losses[i]) and m.preferred[i] == []
            continue
        loss, rank, likeliest, shares = expected[i]
        assert m.losses[i] == pytest.approx(loss, rel=1e-4, abs=1e-4) and m.ranks[i] == rank
        names = [named(t) for t in likeliest]
        assert [name for name, _ in m.preferred[i]] == names
        assert [p for _, p in m.preferred[i]] == pytest.approx(shares, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("block_size, stride", [(256, None), (64, 32), (33, 7), (16, 16)])
@pytest.mark.parametrize("add_eos", [True, False])
def test_perplexity_is_the_same_to_the_last_bit(block_size, stride, add_eos):
    how = dict(block_size=block_size, stride=stride, add_eos=add_eos)
    m = loss_map(gpt2(), tok, text, base=gpt2(n_layer=1), **how)
    assert m.perplexity == perplexity(gpt2(), text, tok, bf16=False, **how)
    assert m.base.perplexity == perplexity(gpt2(n_layer=1), text, tok, bf16=False, **how)
    assert m.perplexity.loss == pytest.approx(np.nanmean(m.losses.astype(float)), rel=1e-6)


def test_losses_are_those_of_token_losses_in_one_pass():
    model, passes = gpt2(), []
    ids = tok(text)["input_ids"][:100]
    m = loss_map(model, tok, ids)
    assert m.ids == ids and np.array_equal(m.losses[1:], token_losses(model, [ids])[0].numpy())
    model.register_forward_hook(lambda *args: passes.append("logits"))
    model.transformer.register_forward_hook(lambda module, args, out: passes.append(out.last_hidden_state.shape[1]))
    loss_map(model, tok, ids)
    assert passes.count(100) == 1


def test_a_model_without_a_plain_output_layer_is_served_through_its_logits():
    model = gpt2()
    model.lm_head = torch.nn.Linear(32, 400)
    model.lm_head.bias.data.normal_()
    ids = tok(text)["input_ids"][:60]
    m = loss_map(model, tok, ids)
    expected = reference(model, ids, 60, 30)
    assert [int(r) for r in m.ranks[1:]] == [expected[i][1] for i in range(1, 60)]
    assert not model._forward_hooks and not model.base_model._forward_hooks


def test_texts_of_tokens_join_to_the_text():
    for given in (hostile, "日本語"*5, "🙂👩‍👩‍👧 café", "\ufffd", "<|endoftext|> spelled out"):
        m = loss_map(gpt2(), tok, given, base=gpt2(n_layer=1))
        assert "".join(m.tokens) == given and len(m.tokens) == len(m.names)
        assert ("\ufffd" in given) or "\ufffd" not in m.html()
    bytes_of = lambda m: b"".join(token_text.speller(tok)(i) for i in m.ids[:-1])
    assert bytes_of(m) == given.encode() and m.names[-1] == "<|endoftext|>" and m.tokens[-1] == ""


def test_broken_utf8_is_shown_as_bytes():
    half = tok("日")["input_ids"][:1]
    spelling = token_text.piece_name(token_text.speller(tok)(half[0]))
    assert spelling.startswith("\\xe6")
    assert loss_map(gpt2(), tok, [*half, *tok("a")["input_ids"], 0, *half]).tokens[0] == ""
    assert "".join(loss_map(gpt2(), tok, [*half, 0, *half]).tokens) == 2*spelling


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("compared", [False, True])
def test_text_is_escaped_on_the_page_and_in_the_boxes(numbers, compared):
    m = loss_map(gpt2(), tok, hostile, base=gpt2(n_layer=1) if compared else None)
    html = m.html(numbers=numbers)
    page, views = Page(html), 3 if compared else 1
    assert set(page.tags) <= set("style div span small b i u br wbr sub table thead tbody tr th td".split())
    assert len(page.titles) == views*len(m)
    signs = "".join(page.text)
    assert "\u202e" not in html and "\x00" not in html and "⟨U+202E⟩" in signs and "␀" in signs
    assert not re.search(r"https?://|<script|javascript:|url\(|@import", html)
    assert "\n\n" not in html
    for i, name in enumerate(m.names):
        assert page.titles[i].split("\n")[0].replace("\u2068", "").replace("\u2069", "").startswith(visible_text(name))
    for table in (m._repr_markdown_(), m.worst()._repr_markdown_()):
        assert "<script" not in table and "<img" not in table
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1


def test_a_tag_in_one_token_is_escaped():
    m = loss_map(gpt2(), tok, text)
    m.tokens[3], m.tokens[4], m.names[4] = "<script>x</script>", "", "<img src=x>"
    page = Page(m.html())
    assert not {"script", "img"} & set(page.tags) and {"<script>x</script>", "<img\u00b7src=x>"} <= set(page.text)


def test_a_box_tells_loss_probability_rank_and_favourites_of_both_models():
    m = loss_map(gpt2(), tok, text, base=gpt2(n_layer=1))
    titles = Page(m.html()).titles
    for i in (1, 7, len(m) - 1):
        for one, title in ((m.base, titles[i]), (m, titles[len(m) + i])):
            assert f"loss {one.losses[i]:.2f} nats" in title and f"rank {one.ranks[i]:,} of 400" in title
            assert f"p {token_table.short_percent(math.exp(-one.losses[i]))}" in title
            lines = title.split("\n")[-5:]
            assert all(visible_text(name) in line for (name, _), line in zip(one.preferred[i], lines))
            assert [line.endswith("◂") for line in lines] == [r == one.ranks[i] for r in range(1, 6)]
        both = titles[2*len(m) + i]
        assert both.count("%") == 2*6 and f"base: loss {m.base.losses[i]:.2f}" in both
        gain = m.base.losses[i] - m.losses[i]
        assert f"{'learnt' if gain >= 0 else 'lost'} {abs(gain):.2f} nats" in both
    assert "not predicted" in titles[0] and "nan" not in m.html()


def test_tints_can_be_read_and_mean_the_same_in_both_models():
    m = loss_map(gpt2(), tok, text, base=gpt2(n_layer=1))
    rgb = lambda digits: tuple(bytes.fromhex(digits if len(digits) == 6 else "".join(2*d for d in digits)))
    styles, luminance = Page(m.html()).styles, lambda style: contrast_ratio(rgb(re.search("#(\\w{6}|\\w{3});", style)[1]), (0, 0, 0))
    for style in styles:
        background, ink = re.fullmatch(r"background:#(\w+);color:#(\w+)", style).groups()
        assert contrast_ratio(rgb(background), rgb(ink)) >= 4.5
    losses = np.concatenate([m.base.losses[1:], m.losses[1:]])
    shades = np.array([luminance(s) for s in [*styles[1:len(m)], *styles[len(m) + 1:2*len(m)]]])
    assert (np.diff(shades[losses.argsort()]) <= 1e-9).all() and shades.max() > 1.5*shades.min()
    neutral = tints.gain_look(0.0)[0]
    assert neutral == "background:#ffffff;color:#000" and tints.gain_look(4)[0] != tints.gain_look(-4)[0]
    blue, orange = (rgb(re.search(r"#(\w{6})", tints.gain_look(gain)[0])[1]) for gain in (3, -3))
    assert blue[2] > blue[0] and orange[0] > orange[2]


def test_contrast_is_that_of_the_guidelines():
    assert contrast_ratio((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast_ratio((0x77,)*3, (255,)*3) == contrast_ratio((255,)*3, (0x77,)*3) == pytest.approx(4.48, abs=0.01)  # WebAIM's example
    assert contrast_ratio((255, 0, 0), (255,)*3) == pytest.approx(4.0, abs=0.01)


def test_colour_is_not_alone():
    kinds = [tints.loss_look(x, 8)[1] for x in (1, 3, 5, 7)], [tints.gain_look(x)[1] for x in (-4, -2, -1, 0, 1, 2, 4)]
    for some in kinds: assert len({*some}) == len(some)
    m = loss_map(gpt2(), tok, text)
    numbers = re.findall("<sub>(.*?)</sub>", m.html(numbers=True))
    assert numbers == [f"{x:.1f}" for x in m.losses[1:]] and "<sub>" not in m.html()


def test_long_texts_are_shown_in_part_and_say_so():
    m = loss_map(gpt2(), tok, text*20)
    assert len(m) > 2000 and len(Page(m.html()).titles) == 2000 and f"of {len(m):,}" in m.html()
    assert len(Page(m.html(first=len(m) - 5)).titles) == 5
    assert len(m.html().encode())/2000 < 450
    with pytest.raises(ValueError, match="first=99999"): m.html(first=99999)
    with pytest.raises(ValueError, match="n_tokens=0"): m.html(n_tokens=0)


def test_tables_are_in_order_and_leave_out_what_was_not_predicted():
    m = loss_map(gpt2(), tok, text, base=gpt2(n_layer=1))
    worst, learnt, lost = m.worst(1000), m.most_learnt(7), m.most_lost(7)
    assert len(worst) == len(m) - 1 and [r.loss for r in worst] == sorted((float(x) for x in m.losses[1:]), reverse=True)
    gains = np.sort(m.learnt[1:])
    assert [r.base_loss - r.loss for r in learnt] == pytest.approx(gains[::-1][:7].tolist(), abs=1e-5)
    assert [r.base_loss - r.loss for r in lost] == pytest.approx(gains[:7].tolist(), abs=1e-5)
    for row in worst: assert row.token == m.names[row.position] and "".join(m.tokens[:row.position]).endswith(row.before)
    assert str(m).startswith("LossMap(") and "base loss" in str(m)


def test_the_figure_has_a_bar_per_token():
    m = loss_map(gpt2(), tok, hostile, base=gpt2(n_layer=1))
    above, below = m.plot(first=2, n_tokens=9).axes
    tuned, base = above.containers
    assert [b.get_height() for b in tuned] == pytest.approx(m.losses[2:11].tolist())
    assert [b.get_height() for b in base] == pytest.approx(m.base.losses[2:11].tolist())
    assert np.add(*[[b.get_height() for b in c] for c in below.containers]) == pytest.approx(m.learnt[2:11].tolist())
    m.base.plot(n_tokens=10_000).canvas.draw()


def test_bars_are_as_long_as_their_share():
    cells = {c: i for i, c in enumerate(" ▏▎▍▌▋▊▉█")}
    for p in np.linspace(0, 1, 65): assert sum(cells[c] for c in share_bar(p)) == round(p*64)
    assert {len(share_bar(p)) for p in (0, 0.5, 0.99, 1)} == {8}


def test_percentages_keep_a_digit():
    assert [token_table.short_percent(p) for p in (1, 0.431, 0.00123, 0.00004)] == ["100.0%", "43.1%", "0.1%", "0.004%"]


@pytest.mark.parametrize("given, message", [
    (dict(base=gpt2(vocab_size=410)), "knows 400 tokens, base 410"), (dict(block_size=300), "longer than the model's context"),
    (dict(block_size=1), "nothing to predict"), (dict(stride=0), "stride=0"), (dict(block_size=8, stride=9), "stride=9"),
    (dict(n_preferred=0), "n_preferred=0"), (dict(n_preferred=401), "n_preferred=401"), (dict(text=["a", "b"]), "text is a list"),
    (dict(text=[1, 400]), "400 is not one"), (dict(text=[-1, 4]), "-1 is not one"), (dict(text="", add_eos=False), "0 tokens"),
    (dict(text=[[1, 2]]), "text is a list"), (dict(base=gpt2(n_positions=32), block_size=64), "longer than the model's context")])
def test_bad_input_is_refused_before_any_model_runs(given, message):
    model = gpt2()
    def fail(*args): raise AssertionError("the model ran")
    model.register_forward_pre_hook(fail)
    model.transformer.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=message): loss_map(model, tok, **dict(text=text) | given)


def test_the_shorter_context_of_two_models_is_the_window():
    m = loss_map(gpt2(), tok, text, base=gpt2(n_positions=64))
    assert m.perplexity == perplexity(gpt2(), text, tok, block_size=64, bf16=False)
