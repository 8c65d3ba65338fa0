"A table of perplexities shows every figure once, and compares only what can be compared"
import math, re

import pytest

from clm_nb.model.metric import Perplexity
from clm_nb.model.perplexity_table import PerplexityTable

figures = PerplexityTable({"a": Perplexity(math.log(10), 100, 0.1, 2.5), "b": Perplexity(math.log(40), 100)})


def test_table_shows_every_figure_once():
    cells = [re.split(r"\s{2,}", line.strip()) for line in repr(figures).splitlines()]
    assert cells[1] == ["a", "10.00", "8.22 – 12.17", "1.00", "2.3026", "2.500", "100"]
    assert cells[2] == ["b", "40.00", "–", "4.00", "3.6889", "–", "100"]
    assert figures._repr_markdown_().splitlines()[2:] == [f"| {' | '.join(row)} |" for row in cells[1:]]
    assert len({line.count("|") for line in figures._repr_markdown_().splitlines()}) == 1


def test_ratios_only_between_figures_of_the_same_tokens():
    mixed = PerplexityTable(figures | {"c": Perplexity(3.0, 99)})
    assert [line.split("|")[4].strip() for line in mixed._repr_markdown_().splitlines()[2:]] == ["–"]*3


def test_ranked_and_plotted():
    assert list(figures.ranked()) == ["b", "a"] and list(figures) == ["a", "b"]
    ax = figures.plot().axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([math.log(10), math.log(40)])
    assert [text.get_text() for text in ax.texts] == ["10.0", "40.0"]
