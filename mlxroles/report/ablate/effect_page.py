"""The page of the effects of ablations: the sentence, the figures, the tables."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.ablate import effect_rows as rows

CAPTIONS = {
    "circuit": "What is left of the repetition gain when heads go pair by pair, those with the "
    "highest scores first; on the right all heads of a kind. Grey: random sets of as many heads "
    "in the same layers, which hold heads of the circuit where there are not enough others.",
    "heads": "Effect of each head by itself. Frames: the largest three. Circles: heads with an "
    "induction score above .3; squares: with a previous-token score above .3.",
    "effects": "Effect of each ablation with its 95 % interval over prompts; grey marks are the "
    "random sets.",
    "graded": "Effect as the parts are scaled down.",
    "joint": "What heads do together, beside the sum of what each does by itself: apart where "
    "they stand in for each other. Grey: random sets of as many heads in the same layers.",
    "entropies": "What the attention entropy of each layer's heads gained, mean over heads that "
    "are not ablated themselves; grey: nothing to measure.",
}
_MOST = 200


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    scores = [rows.score_grid(doc, model) for model in rows.models(doc)]
    parts = [
        f"<h1>{escape(rows.title(doc))}</h1>",
        f'<p class="finding">{escape(doc["sentence"])}</p>',
        *(shell.figure(path, CAPTIONS.get(name, name)) for name, path in drawn.items()),
        *(shell.table(rows.grid(doc, model, most=_MOST)) for model in rows.models(doc)),
        shell.note(rows.legend(doc)),
        *(shell.table(grid, is_folded=True) for grid in scores if grid is not None),
        *(shell.note(text) for text in doc.get("notes") or ()),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(rows.title(doc), parts)
