"""Figures over the layers, one panel per direction: the probability, and how much is recovered.

A layer without a number leaves a gap in the line and a red mark on the axis. Recoveries beyond
the view are drawn on its edge as a triangle, with their number in the text beside it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.text import format_number

Doc = Mapping[str, Any]
Cells = Mapping[int, documents.Values]

_HEADLINE = "tool_call_prob"
_LOWEST, _HIGHEST = -1.0, 2.0
_MANY_LAYERS = 40
_LEGEND_INCHES = 0.42
_PANEL_WIDTH, _LEAST_WIDTH = 4.5, 6.0


def effects(doc: Doc) -> Figure | None:
    """The headline probability per patched layer, with both baselines and the controls."""
    shown = documents.directions(doc)
    top = _largest_probability(doc)
    if top is None:
        return None
    figure = canvas.new_figure(max(_PANEL_WIDTH * len(shown), _LEAST_WIDTH), 4.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, direction in zip(panels, shown, strict=True):
        color = canvas.DIRECTION_COLORS[direction]
        _levels(axes, doc, direction)
        _control_lines(axes, doc, direction, _HEADLINE)
        found = documents.cells(doc, direction)
        _line(axes, found, _HEADLINE, color, f"patched with {documents.donor(direction)}")
        _gaps(axes, found, _HEADLINE)
        axes.set_title(documents.arrow(direction), color=_darker(color))
        canvas.layer_axis(axes, documents.layers(doc))
        _legend_below(figure, axes, axes)
    panels[0].set_ylim(*((-0.02, 1.04) if top > 0.4 else (-0.05 * top, 1.2 * top or 1.0)))
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylabel(f"P({canvas.label(doc.get('headline', ''), 24)})")
    canvas.dress(figure, doc, "Probability after patching")
    return figure


def recovery(doc: Doc) -> Figure | None:
    """Recovery R per layer with the first one of at least a half, and the controls.

    In the stream, below them, the increments: what each layer adds.
    """
    shown = documents.directions(doc)
    found = {direction: documents.cells(doc, direction) for direction in shown}
    if not any(_known(cells, "recovery") for cells in found.values()):
        return None
    ratios = (3, 1) if documents.accumulates(doc) else (1,)
    height = 5.6 if len(ratios) > 1 else 4.6
    figure = canvas.new_figure(max(_PANEL_WIDTH * len(shown), _LEAST_WIDTH), height)
    panels = figure.subplots(
        len(ratios), len(shown), sharex=True, sharey="row", squeeze=False, height_ratios=ratios
    )
    bottom, top = _view(doc, found)
    for column, direction in enumerate(shown):
        upper, lower = panels[0][column], panels[-1][column]
        upper.set_ylim(bottom, top)
        _recovery_panel(upper, doc, direction)
        if lower is not upper:
            _increments(lower, found[direction], canvas.DIRECTION_COLORS[direction])
        canvas.layer_axis(lower, documents.layers(doc))
        _legend_below(figure, lower, upper)
    panels[0][0].set_ylabel(f"recovery R ({canvas.label(_metric(doc))})")
    if len(ratios) > 1:
        panels[1][0].set_ylabel("increment")
    canvas.dress(figure, doc, "Recovery after patching")
    return figure


def _recovery_panel(axes: Axes, doc: Doc, direction: str) -> None:
    color = canvas.DIRECTION_COLORS[direction]
    cells = documents.cells(doc, direction)
    for level, width in ((0.0, 0.8), (documents.HALF, 1.0), (1.0, 0.8)):
        dash = (0, (4, 3)) if level == documents.HALF else "-"
        axes.axhline(level, color="#888888", linewidth=width, linestyle=dash, zorder=1)
    _control_lines(axes, doc, direction, "recovery")
    _line(axes, cells, "recovery", color, f"{documents.donor(direction)} patched in")
    _gaps(axes, cells, "recovery")
    _beyond(axes, cells, color)
    axes.set_title(documents.arrow(direction), color=_darker(color))
    result = documents.finding(doc, direction)
    if result.nothing_to_recover:
        note = "the models hardly differ:\nR says little here"
        axes.text(0.03, 0.96, note, transform=axes.transAxes, va="top", color=canvas.RED)
    elif result.half_layer is not None:
        _annotate_half(axes, doc, result.half_layer, cells)


def _legend_below(figure: Figure, axes: Axes, explained: Axes) -> None:
    """The legend of the explained panel under these axes, where it can hide nothing."""
    handles, names = explained.get_legend_handles_labels()
    below = ScaledTranslation(0, -_LEGEND_INCHES, figure.dpi_scale_trans)
    axes.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + below,
        ncols=2,
    )


def _annotate_half(axes: Axes, doc: Doc, layer: int, cells: Cells) -> None:
    share = documents.number(cells[layer], "recovery")
    bounds = documents.interval(cells[layer], "recovery")
    text = f"layer {layer}: R = {share:.2f}"
    if bounds is not None:
        text += f"\n[{bounds[0]:.2f}, {bounds[1]:.2f}]"
    tested = documents.layers(doc)
    on_right = layer <= tested[0] + 0.7 * (tested[-1] - tested[0])  # a rising curve leaves it free
    axes.annotate(
        text,
        (layer, min(max(share, _LOWEST), _HIGHEST)),
        xytext=(14, -16) if on_right else (-14, 14),
        textcoords="offset points",
        ha="left" if on_right else "right",
        va="top" if on_right else "bottom",
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": canvas.INK, "linewidth": 0.8},
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
        zorder=6,
    )
    axes.plot(
        [layer],
        [min(max(share, _LOWEST), _HIGHEST)],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor=canvas.INK,
        zorder=5,
    )


def _levels(axes: Axes, doc: Doc, direction: str) -> None:
    """Horizontal lines for the unpatched models, named where they stand."""
    for model, dash in (
        (documents.donor(direction), (0, (5, 2))),
        (documents.recipient(direction), "-"),
    ):
        level = documents.number(documents.baseline(doc, model), _HEADLINE)
        if math.isnan(level):
            continue
        text = f"{model}, unpatched: {format_number(level)}"
        axes.axhline(level, color="#555555", linewidth=1.0, linestyle=dash, label=text, zorder=2)


def _control_lines(axes: Axes, doc: Doc, direction: str, name: str) -> None:
    for index, control in enumerate(documents.controls(doc)):
        cells = documents.cells(doc, direction, control)
        if not _known(cells, name):
            continue
        axes.plot(
            list(cells),
            _clipped(_numbers(cells, name), name),
            linestyle="--",
            linewidth=0.9,
            color=canvas.CONTROL_COLORS[index % len(canvas.CONTROL_COLORS)],
            marker=canvas.CONTROL_MARKERS[index % len(canvas.CONTROL_MARKERS)],
            markersize=4,
            label=f"control: {canvas.label(control).replace('_', ' ')}",
            zorder=3,
        )


def _line(axes: Axes, cells: Cells, name: str, color: str, text: str) -> None:
    bounds = {layer: documents.interval(values, name) for layer, values in cells.items()}
    band = [(layer, *each) for layer, each in bounds.items() if each is not None]
    if band:
        layers, low, high = zip(*band, strict=True)
        if len(band) == 1:
            axes.vlines(layers, low, high, color=color, alpha=0.35, linewidth=5)
        else:
            low, high = _clipped(low, name), _clipped(high, name)
            axes.fill_between(layers, low, high, color=color, alpha=0.22, linewidth=0)
    axes.plot(
        list(cells),
        _clipped(_numbers(cells, name), name),
        color=color,
        marker="o",
        markersize=5 if len(cells) <= _MANY_LAYERS else 2.5,
        label=text,
        zorder=4,
    )


def _gaps(axes: Axes, cells: Cells, name: str) -> None:
    missing = [
        layer for layer, values in cells.items() if math.isnan(documents.number(values, name))
    ]
    if missing:
        axes.plot(
            missing,
            [0.015] * len(missing),
            linestyle="none",
            marker="x",
            color=canvas.RED,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="no number",
            zorder=7,
        )


def _beyond(axes: Axes, cells: Cells, color: str) -> None:
    """Triangles at the edge for recoveries outside the view, with their number."""
    for layer, values in cells.items():
        share = documents.number(values, "recovery")
        if math.isnan(share) or _LOWEST <= share <= _HIGHEST:
            continue
        above = share > _HIGHEST
        edge = _HIGHEST if above else _LOWEST
        axes.plot(
            [layer], [edge], marker="^" if above else "v", color=color, markersize=11, zorder=6
        )
        if len(cells) <= 12:
            axes.annotate(
                f"{share:.3g}",
                (layer, edge),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )


def _increments(axes: Axes, cells: Cells, color: str) -> None:
    steps = {layer: documents.number(values, "increment") for layer, values in cells.items()}
    known = {layer: step for layer, step in steps.items() if not math.isnan(step)}
    heights = [min(max(step, _LOWEST), _HIGHEST) for step in known.values()]
    axes.bar(list(known), heights, width=0.6, color=color, linewidth=0)
    axes.axhline(0, color="#888888", linewidth=0.8)


def _view(doc: Doc, found: Mapping[str, Cells]) -> tuple[float, float]:
    shares: list[float] = []
    for direction, cells in found.items():
        for source in (
            cells,
            *(documents.cells(doc, direction, c) for c in documents.controls(doc)),
        ):
            shares += _known(source, "recovery")
            intervals = (documents.interval(values, "recovery") for values in source.values())
            shares += [bound for bounds in intervals if bounds for bound in bounds]
    low, high = max(min(shares), _LOWEST), min(max(shares), _HIGHEST)
    return min(-0.08, low - 0.08), max(1.08, high + 0.08)


def _largest_probability(doc: Doc) -> float | None:
    values = [
        documents.number(documents.baseline(doc, model), _HEADLINE)
        for model in ("instruct", "base")
    ]
    landed: list[float] = []
    for direction in documents.directions(doc):
        landed += _known(documents.cells(doc, direction), _HEADLINE)
        for control in documents.controls(doc):
            values += _known(documents.cells(doc, direction, control), _HEADLINE)
    if not landed:
        return None
    return max(value for value in [*values, *landed] if not math.isnan(value))


def _numbers(cells: Cells, name: str) -> list[float]:
    return [documents.number(values, name) for values in cells.values()]


def _known(cells: Cells, name: str) -> list[float]:
    return [value for value in _numbers(cells, name) if not math.isnan(value)]


def _clipped(values: Sequence[float], name: str) -> list[float]:
    if name != "recovery":
        return list(values)
    return [value if math.isnan(value) else min(max(value, _LOWEST), _HIGHEST) for value in values]


def _metric(doc: Doc) -> str:
    return str(doc.get("recovery_metric") or "log_odds").replace("_", "-")


def _darker(color: str) -> str:
    """The colour dark enough to be read as text on white."""
    channels = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(channel * 0.72):02x}" for channel in channels)
