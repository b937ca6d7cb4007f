"""A table as a figure: the five likeliest next tokens after each patch, shaded by probability."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.text import show_token

_MAP = "cividis"
_COLUMNS = 5
_TOKEN_LIMIT = 14
_ROW_INCHES, _PANEL_INCHES = 0.235, 0.75
_WIDTH = 9.0
"""Inches, as other figures have: on a page their texts are of one size."""


def top_tokens(doc: Mapping[str, Any]) -> Figure | None:
    """Per direction: rows are the unpatched recipient, each patched layer, and the donor."""
    shown = [
        direction
        for direction in documents.directions(doc)
        if any(values.get("top5") for values in documents.cells(doc, direction).values())
    ]
    if not shown:
        return None
    rows = len(documents.layers(doc)) + 2
    height = 0.8 + (_PANEL_INCHES + _ROW_INCHES * rows) * len(shown)
    figure = canvas.new_figure(_WIDTH, height)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, direction in zip(panels, shown, strict=True):
        _table(axes, doc, direction)
    scale = ScalarMappable(Normalize(0, 1), mpl.colormaps[_MAP])
    shrink = min(1.0, 4 / height)
    figure.colorbar(scale, ax=list(panels), label="probability", shrink=shrink, aspect=18, pad=0.01)
    canvas.dress(figure, doc, "Likeliest next tokens after patching")
    return figure


def _table(axes: Axes, doc: Mapping[str, Any], direction: str) -> None:
    target, giver = documents.recipient(direction), documents.donor(direction)
    rows = [(target, documents.baseline(doc, target))]
    cells = documents.cells(doc, direction)
    rows += [(f"{layer}{_strongest(values)}", values) for layer, values in cells.items()]
    rows.append((giver, documents.baseline(doc, giver)))
    for at, (_, values) in enumerate(rows):
        _row(axes, at, values.get("top5") or [])
    for edge in (1, len(rows) - 1):
        axes.axhline(edge, color=canvas.INK, linewidth=1.2)
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([at + 0.5 for at in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks([at + 0.5 for at in range(_COLUMNS)], [f"{at + 1}." for at in range(_COLUMNS)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axis = documents.part_axis(doc)
    axes.set_ylabel(f"layer, {axis.removeprefix('by_')} patched" if axis else "layer patched")
    axes.set_title(documents.arrow(direction), pad=8)


def _strongest(values: Mapping[str, Any]) -> str:
    """The head or position that stands for its layer; nothing where the layer is patched whole."""
    part = values.get("strongest")
    return "" if part is None else f", {part}"


def _row(axes: Axes, at: int, top: Sequence[Mapping[str, Any]]) -> None:
    colors = mpl.colormaps[_MAP]
    for column, entry in enumerate(top[:_COLUMNS]):
        prob = documents.number(entry, "prob")
        known = not math.isnan(prob)
        shade = colors(min(max(prob, 0.0), 1.0)) if known else "#d9d9d9"
        axes.add_patch(
            Rectangle((column, at), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.8)
        )
        ink = "white" if known and prob < 0.55 else "black"
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": ink, "clip_on": True}
        token = canvas.label(show_token(entry.get("token", "")), _TOKEN_LIMIT)
        axes.text(column + 0.04, at + 0.5, token, ha="left", **style)
        if known:
            axes.text(column + 0.96, at + 0.5, _short(prob), ha="right", **style)


def _short(prob: float) -> str:
    """Two digits, as in ``.93``; below one percent ``<.01``."""
    if prob < 0.01:
        return "<.01"
    return "1.0" if prob >= 0.995 else f"{prob:.2f}".lstrip("0")
