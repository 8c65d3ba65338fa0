"The view of blocks: what it takes, and the tutorial's side"
import re

import datasets, pytest
from datasets import Dataset, DatasetDict
from clm_nb.look.blocks import show_blocks
import tiny
from tiny import split_of

datasets.disable_progress_bars()
tokenizer = tiny.tokenizer()


def test_the_tutorials_side_has_no_eos_and_drops_at_each_batch():
    lists = [[5, 6, 7, 0], [8, 9, 0], [10, 11, 12, 13, 14, 0], [15, 16, 0]]
    view = show_blocks(lists, tokenizer, block_size=3, batch_size=2)
    assert view.theirs.ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    html = view._repr_html_()
    assert "end of batch 1: 2 tokens dropped" in html and "end of batch 2: 1 token dropped" in html
    assert view.ours.seams == 0 and view.theirs.seams == 1
    assert re.search(r"documents run together +0 +1", str(view))
    without = [row[:-1] for row in lists]
    assert show_blocks(without, tokenizer, block_size=3, batch_size=2).theirs.ids.tolist() == view.theirs.ids.tolist()


def test_bad_input_is_named():
    lists = [[1, 2, 3, 0]]
    for args, message in [((["text"],), "not lists of token ids"), (([{"input_ids": [1]}],), "not lists of token ids"),
                          (([],), "no token in 0 documents"), ((Dataset.from_dict({"text": ["a"]}),), "no column 'input_ids'"),
                          ((DatasetDict(train=split_of(lists)),), "holds the splits train")]:
        with pytest.raises(ValueError, match=message): show_blocks(*args, tokenizer)
    for options, message in [(dict(zoom="x"), "zoom='x'"), (dict(n_blocks=0), "n_blocks=0"), (dict(block_size=1), "block_size=1"),
                             (dict(remainder="keep"), "remainder='keep'"), (dict(batch_size=0), "batch_size=0"),
                             (dict(block_size=8), "fewer than one block of 8")]:
        with pytest.raises(ValueError, match=message): show_blocks(lists, tokenizer, **options)
