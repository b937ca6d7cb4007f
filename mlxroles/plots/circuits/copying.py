"""Maps of every head: copying, and the share of positive eigenvalues of both circuits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlxroles.plots import canvas
from mlxroles.plots.heads import heat

Doc = Mapping[str, Any]

COLORS = "RdBu_r"
_MOST_FRAMES = 400
_LEAST_SHOWN = 0.005
"""Smaller numbers are written as 0."""
_ROOM = 0.75
"""Inches beside a map for its axis and bar."""
_NARROWEST = 6.4
"""Inches that the heading needs."""

Map = tuple[str, np.ndarray, np.ndarray, float | None]
"""Title, values, what is framed (not 0), end of the scale if it is not the largest value."""


def copying(doc: Doc) -> Figure | None:
    """A row of three maps per model; None without heads."""
    rows = [_row(doc, model) for model in doc["models"]]
    if not any(np.isfinite(values).any() for row in rows for _, values, *_ in row):
        return None
    about = "copying in standard deviations of pairs of other tokens; framed: beyond chance"
    return _figure(doc, rows, "What heads do with tokens", about)


def difference(doc: Doc) -> Figure | None:
    """A map of what tuning changed of copying; None without a pair."""
    found = (doc.get("difference") or {}).get("copying")
    if not found:
        return None
    values = _array(found["value"])
    row = [("copying, instruct − base", values, _array(found["clear"]), None)]
    about = "in standard deviations of pairs of other tokens; framed: beyond chance"
    return _figure(doc, [row], "What tuning changed", about)


def _figure(doc: Doc, rows: list[list[Map]], title: str, about: str) -> Figure:
    room = heat.size_of(*rows[0][0][1].shape, widest=3.4, tallest=4.6)
    wide, high = len(rows[0]) * (room[0] + _ROOM) + 0.4, len(rows) * (room[1] + 0.75) + 1.1
    figure = canvas.new_figure(max(wide, _NARROWEST), high)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, panels in zip(rows, grid, strict=True):
        for axes, one in zip(panels, line, strict=True):
            _panel(figure, axes, one, room)
        panels[0].set_ylabel("layer")
    canvas.dress(figure, doc, title, about)
    return figure


def _row(doc: Doc, model: str) -> list[Map]:
    """Of a model."""
    of = doc["models"][model]
    excess, sign = (_array(of["copying"][name]) for name in ("excess", "sign"))
    found: list[Map] = [(f"{model}: copying", excess, sign, None)]
    for circuit in ("ov", "qk"):
        values, clear = (_array(of[f"{circuit}_share"][name]) for name in ("score", "clear"))
        found.append((f"{circuit.upper()} eigenvalues, + share", values, clear, 1.0))
    return found


def _array(table: Any) -> np.ndarray:
    return np.array(table, dtype=np.float64)


def _panel(figure: Figure, axes: Axes, one: Map, room: tuple[float, float]) -> None:
    title, values, framed, end = one
    known = np.abs(values[np.isfinite(values)])
    end = end or (float(known.max()) if known.size and known.max() > 0 else 1.0)
    image = heat.draw(axes, values, Normalize(-end, end), COLORS, room)
    axes.set_title(title)
    if values.size <= _MOST_FRAMES:
        # a frame around what reads as 0 says nothing
        shown = np.nan_to_num(np.abs(values)) >= _LEAST_SHOWN
        for layer, head in np.argwhere((framed != 0) & shown):
            # inside its cell, so that beside others it is seen whose it is
            at = (head - 0.45, layer - 0.45)
            axes.add_patch(Rectangle(at, 0.9, 0.9, fill=False, linewidth=0.9, edgecolor=canvas.INK))
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
