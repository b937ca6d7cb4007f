"""Figure of the few heads that tell focus from reference best: their values prompt by prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.looks import Look
from mlxroles.plots.roles.subject import Doc, Numbers, Subject, numbers, shown
from mlxroles.text import format_number

_HEADS, _COLUMNS = 6, 3
_LEAST_FOR_SHAPE = 4
_SPREAD = 0.16
_GOLDEN = 0.6180339887498949


def violins(subject: Subject) -> Figure | None:
    """Length-normalised E1 of the six heads with the smallest p, in all categories.

    The study took six heads in an arbitrary order; here they are those with the smallest p of the
    permutation test of focus against reference, which makes their effects look larger than
    they are.
    """
    values = subject.per_head
    rows = _chosen(subject)
    if values is None or subject.table is None or not rows or not np.isfinite(values).any():
        return None
    n_columns = min(_COLUMNS, len(rows))
    n_rows = -(-len(rows) // n_columns)
    made = frame(
        subject.doc,
        ("Heads with the smallest p", subject.about()),
        (max(3.3 * n_columns, 6.6), 2.5 * n_rows + 1.6),
        note=_note(subject, rows),
        nrows=n_rows,
        ncols=n_columns,
        sharey=True,
    )
    panels = [axes for row in made.panels for axes in row]
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, rows, strict=False):
        at = list(subject.table.layers).index(row["layer"])
        _panel(axes, subject, values[:, at, row["head"]])
        axes.set_title(_title(row), fontsize=9, linespacing=1.3)
    for row_of_panels in made.panels:
        row_of_panels[0].set_ylabel("entropy / ln(keys seen)")
    legend(made)
    return made.figure


def _note(subject: Subject, rows: Sequence[Doc]) -> str:
    chosen = f"Chosen out of {int(subject.doc['heads']['n'])} heads"
    if not np.isfinite(numbers(row.get("d") for row in rows)).any():
        return f"{chosen}."
    return (
        f"Cohen's d of focus against reference with its 95 % interval. {chosen}:\n"
        "in new prompts their d would be nearer to 0. Bars: medians."
    )


def _chosen(subject: Subject) -> list[Doc]:
    """The document's rows of the heads that are shown, as far as the table holds them."""
    found: Any = subject.doc.get("heads") or {}
    for key in ("what", subject.model, "normalised"):
        found = found.get(key) or {}
    layers = () if subject.table is None else subject.table.layers
    return [row for row in found.get("top") or [] if row["layer"] in layers][:_HEADS]


def _title(row: Doc) -> str:
    d, low, high = numbers(row.get(name) for name in ("d", "d_low", "d_high"))
    effect = f"d = {d:+.2f}" if np.isfinite(d) else ""
    effect += f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) and np.isfinite(high) else ""
    q = f"q = {format_number(numbers([row.get('q')])[0])}"
    return f"layer {row['layer']}, head {row['head']}\n" + ", ".join(filter(None, (effect, q)))


def _panel(axes: Axes, subject: Subject, values: Numbers) -> None:
    categories = list(subject.looks)
    for at, name in enumerate(categories):
        found = values[subject.members(name)]
        _one(axes, at, found[np.isfinite(found)], subject.looks[name], shown(name))
    axes.set_xticks([])
    axes.set_xlim(-0.6, len(categories) - 0.4)
    axes.grid(visible=False, axis="x")


def _one(axes: Axes, at: int, values: Numbers, look: Look, name: str) -> None:
    """One category: its shape where there are enough different values, its points, its median."""
    if len(np.unique(values)) >= _LEAST_FOR_SHAPE and np.ptp(values) > 1e-9:
        parts: dict[str, Any] = axes.violinplot([values], [at], widths=0.85, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=look.color, alpha=0.28, linewidth=0)
    # evenly spread without chance: multiples of the golden ratio, modulo 1
    offsets = ((np.arange(len(values)) * _GOLDEN + 0.5) % 1.0 - 0.5) * 2 * _SPREAD
    axes.plot(
        at + offsets,
        values,
        linestyle="none",
        marker=look.marker,
        color=look.color,
        markersize=3.2,
        markeredgewidth=0,
        alpha=0.85,
        label=name,
    )
    if len(values) >= _LEAST_FOR_SHAPE:
        axes.hlines(float(np.median(values)), at - 0.3, at + 0.3, color="black", linewidth=1.4)
