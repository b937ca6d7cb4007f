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
_ROOM = 0.75
"""Inches beside a map for its axis and bar."""


def copying(doc: Doc) -> Figure | None:
    """A row of three maps per model, and a map of the difference of a pair; None without heads."""
    rows = [_row(doc, model) for model in doc["models"]]
    rows += [[("copying, instruct − base", *_difference(doc))]] if doc.get("difference") else []
    known = [one for row in rows for one in row if np.isfinite(one[1]).any()]
    if not known:
        return None
    layers, heads = known[0][1].shape
    room = heat.size_of(layers, heads, widest=3.4, tallest=4.6)
    figure = canvas.new_figure(3 * (room[0] + _ROOM) + 0.4, len(rows) * (room[1] + 0.75) + 1.1)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, panels in zip(rows, grid, strict=True):
        for n, axes in enumerate(panels):
            if n < len(line):
                _panel(figure, axes, line[n], room)
            else:
                axes.set_axis_off()
        panels[0].set_ylabel("layer")
    about = "copying in standard deviations of pairs of other tokens; framed: beyond chance"
    canvas.dress(figure, doc, "What heads do with tokens", about)
    return figure


def _row(doc: Doc, model: str) -> list[tuple[str, np.ndarray, np.ndarray, float | None]]:
    """(title, values, framed, end of the scale) of a model's maps."""
    of = doc["models"][model]
    found = [(f"{model}: copying", _array(of["copying"]["excess"]), _array(of["copying"]["sign"]))]
    for circuit in ("ov", "qk"):
        share = of[f"{circuit}_share"]
        values, low, high = (_array(share[k]) for k in ("score", "random_low", "random_high"))
        beyond = (values < low[:, None]) | (values > high[:, None])
        found.append((f"{circuit.upper()} eigenvalues, + share", values, beyond.astype(float)))
    return [(*one, None if n == 0 else 1.0) for n, one in enumerate(found)]


def _difference(doc: Doc) -> tuple[np.ndarray, np.ndarray, None]:
    found = doc["difference"]["copying"]
    return _array(found["value"]), _array(found["clear"]), None


def _array(table: Any) -> np.ndarray:
    return np.array(table, dtype=np.float64)


def _panel(
    figure: Figure,
    axes: Axes,
    one: tuple[str, np.ndarray, np.ndarray, float | None],
    room: tuple[float, float],
) -> None:
    title, values, framed, end = one
    known = np.abs(values[np.isfinite(values)])
    end = end or (float(known.max()) if known.size and known.max() > 0 else 1.0)
    image = heat.draw(axes, values, Normalize(-end, end), COLORS, room)
    axes.set_title(title)
    frames = [tuple(at) for at in np.argwhere((np.nan_to_num(framed) != 0) & np.isfinite(values))]
    for layer, head in frames if values.size <= _MOST_FRAMES else ():
        axes.add_patch(
            Rectangle(
                (head - 0.45, layer - 0.45),
                0.9,
                0.9,
                fill=False,
                linewidth=0.9,
                edgecolor=canvas.INK,
            )
        )
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
