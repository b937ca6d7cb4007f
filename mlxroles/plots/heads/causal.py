"""What zeroing heads does to what they are for, beside random sets of as many others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.report.heads import rows, scores
from mlxroles.report.heads.wording import kind, said

Doc = Mapping[str, Any]
Row = Mapping[str, Any]

_NULL = "#4a4f54"
_MOST = 14
"""Sets of heads that are listed per measure."""


def causal(doc: Doc) -> Figure | None:
    """A row of panels per measure, a column per model; None where nothing was zeroed."""
    sides = [side for side in scores.sides(doc) if rows.causal_rows(doc, side)]
    measures = list(
        dict.fromkeys(
            rows.short_measure(row) for side in sides for row in rows.causal_rows(doc, side)
        )
    )
    if not measures:
        return None
    listed = {(m, s): _of(doc, s, m) for m in measures for s in sides}
    longest = [max(max(len(listed[m, s]) for s in sides), 1) for m in measures]
    figure = canvas.new_figure(
        max(4.9 * len(sides) + 0.4, 6.8), sum(0.25 * n + 0.85 for n in longest) + 0.95
    )
    panels = figure.subplots(
        len(measures), len(sides), squeeze=False, height_ratios=[0.25 * n + 0.5 for n in longest]
    )
    for line, measure, count in zip(panels, measures, longest, strict=True):
        for axes, side in zip(line, sides, strict=True):
            _panel(axes, listed[measure, side], count)
            name = f"{side}: " if len(sides) > 1 else ""
            axes.set_title(f"{name}{canvas.label(measure, 60)}", fontsize=9)
            unit = next((row["unit"] for row in listed[measure, side] if row.get("unit")), "")
            axes.set_xlabel(f"change{f' [{canvas.label(unit, 20)}]' if unit else ''}", fontsize=8)
        low = min(axes.get_xlim()[0] for axes in line)
        high = max(axes.get_xlim()[1] for axes in line)
        for axes in line:
            axes.set_xlim(low, high)
    about = "Heads set to zero, 95 % intervals; grey: random sets of as many other heads"
    canvas.dress(figure, doc, "What the model loses without them", about)
    return figure


def _of(doc: Doc, side: str, measure: str) -> list[Row]:
    """Sets of heads that are held to a measure; of the loss beside it, all heads of a class."""
    own = {id(row) for row in rows.own_rows(doc, side)}
    return [
        row
        for row in rows.causal_rows(doc, side)
        if rows.short_measure(row) == measure and (id(row) in own or row.get("set") == "all")
    ][:_MOST]


def _panel(axes: Axes, own: Sequence[Row], count: int) -> None:
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=1)
    for n, row in enumerate(own):
        y = count - 1 - n
        values = rows.random_values(row)
        axes.plot(
            values,
            [y] * len(values),
            linestyle="none",
            marker="|",
            markersize=7,
            markeredgewidth=0.8,
            color=_NULL,
            zorder=2.5,
        )
        change, low, high = (rows.value_of(row, key) for key in ("change", "low", "high"))
        bars = [
            [0.0 if math.isnan(low) else max(change - low, 0.0)],
            [0.0 if math.isnan(high) else max(high - change, 0.0)],
        ]
        axes.barh(
            y, change, height=0.62, color=kind(str(row.get("class"))).color, alpha=0.85, zorder=1.5
        )
        axes.errorbar(
            [change],
            [y],
            xerr=bars,
            linestyle="none",
            color=canvas.INK,
            elinewidth=1.3,
            capsize=2.5,
            zorder=3,
        )
    names = [f"{said(str(row.get('class')))}: {rows.heads_text(row, 3)}" for row in own]
    ticks = [count - 1 - n for n in range(len(own))]
    axes.set_yticks(ticks, [canvas.label(name, 46) for name in names], fontsize=7)
    axes.set_ylim(-0.7, count - 0.3)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", labelsize=7)
