"""The report of a patch run as one HTML file."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles import documents
from mlxroles.report import rows, shell
from mlxroles.report.wording import caution, next_step, sentence

_ADDED = "; bars show what each layer adds"
_CAPTIONS = {
    "effects": "Probability of the measured string after each patch. Horizontal lines: unpatched "
    "models. Thin lines: controls.",
    "recovery": "Share of the gap in log-odds that each patch closes. The circle marks the first "
    "layer of at least one half",
    "top_tokens": "The five likeliest next tokens after each patch, between those of the unpatched "
    "recipient (top) and donor (bottom).",
    "heads": "Recovery when a single head is patched; the frame marks the largest.",
    "positions": "Recovery when a single position is patched; the frame marks the largest. Where "
    "there are many, the strongest are drawn, as the axis says.",
}
_LAYER_MARKS = "◆ largest effect · ½ first layer that restores half · "
_LEGEND = (
    "*** effect beyond .01 · R: share of the gap in log-odds that the patch closes · "
    "KL: nats, to the unpatched run"
)


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    facts = rows.facts(doc)
    title = rows.title(doc)
    has_parts = documents.part_axis(doc) is not None
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    grids = [rows.layer_grid(doc, direction) for direction in documents.directions(doc)]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(sentence(doc))}</p>',
        shell.note(caution(doc)),
        *(shell.figure(path, caption(doc, name)) for name, path in drawn.items()),
        shell.table(rows.baselines(doc)),
        *(shell.table(grid) for grid in grids),
        shell.note(_LEGEND if has_parts else _LAYER_MARKS + _LEGEND),
        shell.note(rows.how_tested(doc)),
        *(f"<p>{escape(step)}</p>" for step in next_step(doc)),
        "<h2>The run</h2>",
        shell.facts(facts),
    ]
    return shell.page(title, parts)


def caption(doc: Mapping[str, Any], name: str) -> str:
    """What stands below a figure."""
    text = _CAPTIONS.get(name, name)
    axis = documents.part_axis(doc)
    if name == "recovery":
        text += f"{_ADDED if documents.accumulates(doc) else ''}."
    if name == "top_tokens" and axis:
        text += f" Of each layer: the {axis.removeprefix('by_')} that recovers most."
    return text
