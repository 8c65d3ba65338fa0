"The picture of a batch, against the loss of transformers, which does the shifting"
import re

import pytest, torch
from hypothesis import given, settings, strategies as st
from transformers import DataCollatorForLanguageModeling
from clm_nb.look.batch import show_batch, shifted_labels, shown_columns
from clm_nb.look.token_text import token_texts
from clm_nb.collate import CausalCollator
import tiny

tokenizer = tiny.tokenizer()
tokenizer.pad_token = tokenizer.eos_token
quick = settings(max_examples=40, deadline=None)
lists = st.lists(st.lists(st.integers(0, 399), min_size=1, max_size=12), min_size=1, max_size=4)
lists = lists.filter(lambda rows: max(map(len, rows)) > 1)


def collated(rows): return CausalCollator()([{"input_ids": row, "attention_mask": [1]*len(row)} for row in rows])


@quick
@given(lists)
def test_targets_are_what_the_models_loss_asks_for(rows):
    batch, model = collated(rows), tiny.gpt2()
    with torch.no_grad(): out = model(**batch)
    asked = shifted_labels(batch["labels"])
    losses = -out.logits.double().log_softmax(-1).gather(-1, asked.clamp(0)[..., None])[..., 0]
    assert losses[asked != -100].mean().item() == pytest.approx(out.loss.item(), abs=1e-4)
    for i, row in enumerate(rows): assert asked[i].tolist() == row[1:] + [-100]*(asked.shape[1] - len(row) + 1)


@quick
@given(lists, st.integers(1, 14), st.integers(1, 5))
def test_what_is_shown_is_what_stands_in_the_batch(rows, n_tokens, n_rows):
    batch = collated(rows)
    shown = show_batch(batch, tokenizer, n_rows, n_tokens).rows()
    assert len(shown) == min(n_rows, len(rows))
    for i, row in enumerate(shown):
        at = row["position"]
        assert len(at) == min(n_tokens, batch["input_ids"].shape[1]) and at == sorted(set(at))
        for name in ("input_ids", "attention_mask", "labels"): assert row[name] == [batch[name][i][p].item() for p in at]
        assert row["asked"] == [(rows[i][1:] + [-100]*20)[p] for p in at]
        assert row["token"] == token_texts(tokenizer, row["input_ids"])


@quick
@given(st.integers(1, 200), st.data())
def test_the_place_where_tokens_end_is_shown(length, data):
    used, n = data.draw(st.integers(1, length)), data.draw(st.integers(4, 20))
    at = shown_columns(length, used, n)
    assert len(at) == min(n, length) and at == sorted(set(at)) and 0 in at and 0 <= at[-1] < length
    assert used - 1 in at and (used == length or used in at)


def cells(html, name):
    "The texts of the lines of this name, one list a row"
    lines = re.findall(rf">{name}</th>(.*?)</tr>", html)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", line)] for line in lines]


def test_labels_tokens_and_targets_stand_under_each_other():
    batch = CausalCollator(0)([{"input_ids": [65, 66, 0]}, {"input_ids": [67, 0]}])
    html = show_batch(batch, tokenizer)._repr_html_()
    a, b, c = token_texts(tokenizer, [65, 66, 67])
    assert cells(html, "token") == [[a, b, "EOS"], [c, "EOS", "padding"]]
    assert cells(html, "labels") == [["65", "66", "0"], ["67", "0", "-100"]]
    assert cells(html, "attention_mask") == [["1", "1", "1"], ["1", "1", "0"]]
    assert cells(html, "asked for next") == [[f"→ {b}", "→ EOS", "row ends"], ["→ EOS", "ignored", "row ends"]]
    assert "2 × 3 tokens, 5 labels, 2 of them EOS" in html and html.count("repeating-linear-gradient") == 6
    lines = str(show_batch(batch, tokenizer)).splitlines()
    assert lines[5].split() == ["asked", "→", b, "→", "EOS", "–"]


def test_the_stock_collator_is_never_asked_for_eos():
    rows = [{"input_ids": [65, 66, 0]}, {"input_ids": [67, 0]}]
    ours = show_batch(CausalCollator(0)([dict(row) for row in rows]), tokenizer)._repr_html_()
    theirs = show_batch(DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)(rows), tokenizer)._repr_html_()
    assert sum(cells(ours, "asked for next"), []).count("→ EOS") == 2
    assert sum(cells(theirs, "asked for next"), []).count("→ EOS") == 0
    assert cells(ours, "token") == cells(theirs, "token")


def test_documents_kept_apart_show_positions_and_no_mask():
    batch = CausalCollator()([{"input_ids": [65, 0, 66, 0], "position_ids": [0, 1, 0, 1]}])
    html = show_batch(batch, tokenizer)._repr_html_()
    assert cells(html, "position_ids") == [["0", "1", "0", "1"]] and cells(html, "attention_mask") == []
    assert cells(html, "asked for next") == [["→ EOS", "ignored", "→ EOS", "row ends"]]


def test_what_is_left_out_is_counted_and_text_is_escaped():
    ids = tokenizer("<b>&")["input_ids"]*20
    html = show_batch(collated([ids]*3), tokenizer, n_rows=1, n_tokens=8)._repr_html_()
    assert f"… {len(ids) - 8} more" in html and "2 more rows" in html
    assert "<b>&" not in html and "><<" not in html and "&lt;" in html
    padded = show_batch(collated([ids, ids[:9]]), tokenizer, n_tokens=8)
    assert padded.rows()[1]["position"] == [0, 1, 2, 3, 7, 8, 9, 10]
    assert f"… {len(ids) - 11} more" in padded._repr_html_()


def test_bad_input_is_named():
    batch = collated([[1, 2, 3]])
    for args, message in [((batch["input_ids"],), "only Tensor"), (({"input_ids": [[1]]},), r"only \['input_ids'\]"),
                          ((batch, tokenizer, 0), "n_rows=0"), ((batch, tokenizer, 1, 0), "n_tokens=0"),
                          ((batch | {"labels": batch["labels"][:, :1]},), "shapes"),
                          (({k: v[0] for k, v in batch.items()},), "shapes")]:
        with pytest.raises(ValueError, match=message): show_batch(*(args if len(args) > 1 else (*args, tokenizer)))
