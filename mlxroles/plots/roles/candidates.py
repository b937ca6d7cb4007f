"""Figure of the heads that the study's score picks, each against its own shuffled labels."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.looks import model_look
from mlxroles.plots.roles.subject import Doc, about, contrast, level, numbers, shown
from mlxroles.roles.sampling import ALPHA
from mlxroles.text import format_number

_ROW = 0.27
_MOST = 40
_SCORES = 0.14
"""Share of the panel that is kept for the numbers."""


def candidates(doc: Doc) -> Figure | None:
    """The score's z under shuffled labels per head, and the difference in differences."""
    found = doc.get("candidates")
    rows = (found or {}).get("rows") or []
    if not found or not rows:
        return None
    rows = sorted(rows, key=lambda row: row["rank"])[:_MOST]
    made = frame(
        doc,
        ("Patching candidates", about(doc, "instruct − base")),
        (9.6, 2.7 + _ROW * max(len(rows), 4)),
        note=_note(doc, len(rows)),
        ncols=2,
        sharey=True,
    )
    left, right = made.panels[0]
    _scores(left, rows, level((found.get("null") or {}).get("max_z_95")))
    _effects(right, rows, doc)
    names = [f"layer {row['layer']}, head {row['head']}" for row in rows]
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(len(rows) - 0.4, -0.6)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    legend(made)
    return made.figure


def _note(doc: Doc, shown_rows: int) -> str:
    found = doc["candidates"]
    of = (
        f"The {shown_rows} highest composite scores of {found['n_heads']} heads, the highest first."
    )
    null = found.get("null") or {}
    if level(null.get("max_z_95")) is None:
        return of
    return (
        f"{of}\nDashed: what the largest z of all heads reaches in 5 % of {null['n']} shuffles of "
        "the labels."
    )


def _scores(axes: Axes, rows: list[Doc], limit: float | None) -> None:
    z = numbers(row.get("z_null") for row in rows)
    p = numbers(row.get("p_max") for row in rows)
    beyond = p < ALPHA
    look = model_look("instruct")
    for chosen, color, name in (
        (beyond, look.color, "beyond chance (p max < .05)"),
        (~beyond, "#c4c9ca", "within chance" if np.isfinite(p).any() else "z"),
    ):
        if chosen.any():
            axes.barh(np.flatnonzero(chosen), z[chosen], height=0.7, color=color, label=name)
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    if limit is not None:
        axes.axvline(limit, color=canvas.INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.margins(x=0.04)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + _SCORES * (high - low))
    for at, row in enumerate(rows):
        _right(axes, at, format_number(numbers([row.get("composite_score")])[0], ".2f"))
    _right(axes, -0.75, "score")
    axes.set_xlabel("z of the score against the head's own shuffled labels")


def _right(axes: Axes, at: float, text: str) -> None:
    """Writes at the right edge of a row."""
    place = axes.get_yaxis_transform()
    axes.text(0.99, at, text, transform=place, ha="right", va="center", fontsize=8)


def _effects(axes: Axes, rows: list[Doc], doc: Doc) -> None:
    values, low, high = (
        numbers(row.get(f"did_{name}") for row in rows) for name in ("median", "low", "high")
    )
    at = np.arange(len(rows))
    known = np.isfinite(low) & np.isfinite(high)
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    axes.hlines(at[known], low[known], high[known], color=canvas.SLATE, linewidth=2.4, alpha=0.55)
    axes.plot(values, at, linestyle="none", marker="D", color=canvas.INK, markersize=4.5)
    compared = contrast(doc)
    names = f"{shown(compared.focus)} − {shown(compared.reference)}" if compared else ""
    names += ", with 95 % interval" if known.any() else ""
    axes.set_xlabel(f"difference in differences (nats)\n{names}")
