"""The largest edges as a flow from layer to layer: who writes what later parts read."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.plots.attribution.maps import about
from mlxroles.report.attribution.rows import signed

Ends = tuple[float, float]

_MOST = 30
"""Edges drawn; more are a tangle."""
_RAISES, _LOWERS = "#d9730d", "#6a3d9a"
"""The two ends of the maps' colours."""
_WIDEST, _THINNEST = 7.0, 0.7
_INPUT, _MLP = 0.2, 0.5
"""Where in a layer's column its inputs are, before the heads, and its MLP, after them."""


def flow(doc: Mapping[str, Any], direction: str) -> Figure | None:
    """Arcs from what a part writes to what a later part reads; None where there are no edges."""
    listed = ((doc[direction].get("edges") or {}).get("top") or [])[:_MOST]
    rows = [row for row in listed if documents.number(row, "estimate")]
    if not rows:
        return None
    lanes = _Lanes(doc, direction, rows)
    width = float(np.clip(1.15 * len(lanes.layers) + 2.5, 8.0, 22.0))
    figure = canvas.new_figure(width, float(np.clip(0.34 * lanes.heads + 2.6, 4.2, 10.0)))
    axes = figure.subplots()
    _stage(axes, lanes)
    largest = max(abs(documents.number(row, "estimate")) for row in rows)
    for row in reversed(rows):
        _arc(axes, lanes, row, largest)
    for end in {tuple(row[name]) for row in rows for name in ("source_end", "target_end")}:
        _node(axes, lanes, end)
    _legend(axes, rows, largest)
    axes.set_title(f"{documents.arrow(direction)}: the {len(rows)} largest edges")
    canvas.dress(figure, doc, "From what a part writes to what a later part reads", about(doc))
    return figure


class _Lanes:
    """Where everything stands: layers from left to right, heads from above, MLPs at the foot."""

    def __init__(
        self, doc: Mapping[str, Any], direction: str, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self.layers = list(doc["layers_tested"])
        ends = [row[name] for row in rows for name in ("source_end", "target_end")]
        self.parts = {end[1] for end in ends}
        sites = doc[direction]["sites"]
        widths = {s: len(sites[s]["grid"]["estimate"][0]) for s in ("z", "k", "v") if s in sites}
        named = [end[2] for end in ends if end[1] in ("head", "q", "k", "v")]
        self.heads = widths.get("z", max(named, default=0) + 1)
        self.kv_heads = widths.get("v", widths.get("k", self.heads))

    def x(self, layer: int) -> float:
        """The column of a layer."""
        return float(self.layers.index(layer))

    def y(self, head: float) -> float:
        """The row of a head."""
        return self.heads - 1 - head

    @property
    def foot(self) -> float:
        """The row of the MLPs."""
        return -1.5

    def at(self, end: Sequence[Any]) -> Ends:
        """Where an end stands."""
        layer, part, head = end
        if part == "embed":
            return -1.0, self.foot
        if part == "resid":
            return len(self.layers) - 1 + 1.1, (self.heads - 1) / 2
        if part == "mlp":
            return self.x(layer) + _MLP, self.foot
        if part == "head":
            return self.x(layer) + _INPUT, self.y(head)
        if part == "q":
            return self.x(layer) - _INPUT, self.y(head)
        group = self.heads / max(self.kv_heads, 1)
        shift = 0.14 if part == "k" else -0.14
        return self.x(layer) - _INPUT, self.y((head + 0.5) * group - 0.5) + shift


def _stage(axes: Axes, lanes: _Lanes) -> None:
    """All heads and MLPs as faint marks, every other layer shaded."""
    for column in range(0, len(lanes.layers), 2):
        axes.axvspan(column - 0.4, column + 0.6, color="#f4f4f4", linewidth=0, zorder=0)
    columns = np.arange(len(lanes.layers))
    for head in range(lanes.heads):
        at = np.full(len(columns), lanes.y(head))
        axes.plot(columns + _INPUT, at, ".", color="#cfcfcf", markersize=3, zorder=1)
    foot = np.full(len(columns), lanes.foot)
    axes.plot(columns + _MLP, foot, "s", color="#cfcfcf", markersize=3, zorder=1)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    step = max(1, -(-len(columns) // 24))
    axes.set_xticks(list(columns[::step]), [str(layer) for layer in lanes.layers[::step]])
    every = max(1, -(-lanes.heads // 16))
    rows = [*range(0, lanes.heads, every)]
    axes.set_yticks([*map(lanes.y, rows), lanes.foot], [*(f"head {h}" for h in rows), "MLP"])
    axes.tick_params(length=0, labelsize=7)
    axes.set_xlabel("layer")
    left = -1.4 if "embed" in lanes.parts else -0.5
    axes.set_xlim(left, len(columns) + (0.5 if "resid" in lanes.parts else -0.2))
    axes.set_ylim(lanes.foot - 0.9, lanes.heads - 0.3)


def _arc(axes: Axes, lanes: _Lanes, row: Mapping[str, Any], largest: float) -> None:
    (x0, y0), (x1, y1) = lanes.at(row["source_end"]), lanes.at(row["target_end"])
    value = documents.number(row, "estimate")
    span = x1 - x0
    reach = 0.5 * span
    # what runs along one row would hide the heads between: it bows
    bow = 0.045 * lanes.heads * min(span, 3.0) if abs(y1 - y0) < 0.3 and span > 1 else 0.0
    path = Path(
        [(x0, y0), (x0 + reach, y0 + bow), (x1 - reach, y1 + bow), (x1, y1)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    width = _THINNEST + (_WIDEST - _THINNEST) * abs(value) / largest
    color = _RAISES if value > 0 else _LOWERS
    axes.add_patch(
        PathPatch(
            path,
            facecolor="none",
            edgecolor=color,
            linewidth=width,
            alpha=0.35 + 0.5 * abs(value) / largest,
            capstyle="round",
            zorder=2 + abs(value) / largest,
        )
    )


def _node(axes: Axes, lanes: _Lanes, end: Sequence[Any]) -> None:
    """An end that edges are drawn to: a head or MLP with its name, an input with its letter."""
    layer, part, head = end
    x, y = lanes.at(end)
    if part in ("q", "k", "v"):
        group = lanes.heads // max(lanes.kv_heads, 1)
        served = [head] if part == "q" else range(head * group, (head + 1) * group)
        for other in served:
            line = [x, lanes.x(layer) + _INPUT], [y, lanes.y(other)]
            axes.plot(*line, color="#9a9a9a", linewidth=0.7, zorder=1.5)
            _mark(axes, line[0][1], line[1][1], "o", 4)
        _mark(axes, x, y, "o", 9)
        axes.text(x, y, part, ha="center", va="center", fontsize=6.5, zorder=8)
        if part == "q":
            _name(axes, lanes.x(layer) + _INPUT, y, f"L{layer}H{head}")
        return
    names = {"head": f"L{layer}H{head}", "mlp": f"MLP {layer}", "embed": "embed", "resid": "output"}
    _mark(axes, x, y, "o" if part == "head" else "s", 5.5)
    _name(axes, x, y, names[part])


def _mark(axes: Axes, x: float, y: float, marker: str, size: float) -> None:
    axes.plot(
        [x],
        [y],
        marker=marker,
        markersize=size,
        markerfacecolor="white",
        markeredgecolor=canvas.INK,
        markeredgewidth=0.9,
        zorder=7,
    )


def _name(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=6.5,
        color=canvas.INK,
        path_effects=[effects.withStroke(linewidth=2.2, foreground="white")],
        zorder=9,
    )


def _legend(axes: Axes, rows: Sequence[Mapping[str, Any]], largest: float) -> None:
    """The largest edge of either sign that is drawn, and the thinnest."""
    values = [documents.number(row, "estimate") for row in rows]
    ends = [max(values), min(values), min(values, key=abs)]
    shown = [ends[0]] * (ends[0] > 0) + [ends[1]] * (ends[1] < 0) + [ends[2]]
    handles = [
        Line2D(
            [],
            [],
            color=_RAISES if value > 0 else _LOWERS,
            linewidth=_THINNEST + (_WIDEST - _THINNEST) * abs(value) / largest,
            label=f"{'raises' if value > 0 else 'lowers'} by {signed(value)[1:]}",
        )
        for value in dict.fromkeys(shown)
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.09), ncols=3)
