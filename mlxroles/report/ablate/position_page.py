"""The page of a test at single positions: the sentence, the figures, the tables."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.ablate import position_rows

STYLE = "td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }"
TITLES = {
    "redundancy": "Redundancy test",
    "offsets": "Offset sweep",
    "patterns": "Pattern differences",
    "compare": "Comparison",
}
CAPTIONS = {
    "redundancy": "Left: how much of the layer's attention output at t is left, 1 is all of it. "
    "Right: what the values at t-1 still give once the heads or components are gone; grey marks "
    "are random sets of as many, of the same layers or maps.",
    "offsets": "Above: how much of the attention output at t is left when values at t-d are "
    "zero, with and without the heads; the red line is the heads alone. Below: the share of what "
    "those values give that remains without the heads; grey lines are random heads.",
    "patterns": "Where later heads look from t, with the heads and without them. In the titles: "
    "the share of attention that goes elsewhere, and p for any head to go as far without random "
    "heads of the same layers. Bands: 95 % intervals of the difference.",
    "shifts": "Change of the attention weight at each offset, mean over the heads of a layer. "
    "Grey: the range without random heads of the same layers.",
    "conditions": "Each condition against its baseline: how often another token is the "
    "likeliest, and the KL divergence at t. Grey: random sets of heads at t.",
}


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"{TITLES[doc['test']]}: {position_rows.heads(doc)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(doc["sentence"])}</p>',
        *drawn(figures),
        *(shell.table(grid) for grid in position_rows.grids(doc)),
        shell.note(position_rows.legend(doc)),
        "<h2>The run</h2>",
        shell.facts(position_rows.facts(doc)),
    ]
    return shell.page(title, parts, style=STYLE)


def drawn(figures: Mapping[str, str]) -> list[str]:
    """The figures with their captions.

    Raises:
        StoreError: a figure cannot be read.
    """
    return [
        shell.figure(Path(path), CAPTIONS.get(name, name))
        for name, path in figures.items()
        if path.endswith(".png")
    ]
