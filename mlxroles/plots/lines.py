"""Curves over the layers with intervals, levels and marks: the form of one number per layer.

An interval is a band, or a bar where the neighbours have no number. A level, what would be
expected if nothing were there, is dashed in the colour of its curve. A view leaves far outliers
out; they are drawn on its edge as triangles, with their number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mlxroles.plots import canvas

Numbers = NDArray[np.float64]

_MANY = 24
_FAR, _ROOM = 1.5, 4.0
_LEAST_FOR_OUTLIERS = 8
_MARGIN = 0.07


class Mark(IntEnum):
    """What a test says of a point."""

    NONE = 0
    FOUND = 1
    CONFIRMED = 2
    REVERSED = 3


@dataclass(frozen=True, eq=False)
class Series:
    """One curve; NaN leaves a gap."""

    name: str
    """What the legend says, already drawable."""
    color: str
    marker: str
    values: Numbers
    """[position]"""
    low: Numbers | None = None
    high: Numbers | None = None
    level: float | None = None
    """What is expected if nothing is there; drawn dashed."""
    marks: Sequence[Mark] | None = field(default=None)
    """One per position: hollow, filled, with an edge, or half filled; ``None`` fills all."""


def view(series: Iterable[Series], *, levels: Iterable[float | None] = ()) -> tuple[float, float]:
    """The range of y that shows the curves but for far outliers, all levels, and these.

    Far is more than 1.5 times the range of the middle 90 % beyond it. Intervals are shown in
    full, unless they reach more than four times their median width beyond the curves.
    """
    shown = list(series)
    known = [level for level in (*levels, *(each.level for each in shown)) if level is not None]
    points = _finite(np.concatenate([np.empty(0), *(each.values for each in shown)]))
    if not points.size:
        return -1.0, 1.0
    low, high = float(points.min()), float(points.max())
    if points.size >= _LEAST_FOR_OUTLIERS:
        inner = np.quantile(points, (0.05, 0.95))
        reach = _FAR * max(float(inner[1] - inner[0]), 1e-12)
        low, high = max(low, float(inner[0]) - reach), min(high, float(inner[1]) + reach)
    bounds = np.concatenate([np.empty((2, 0)), *(_bounds(each, low, high) for each in shown)], 1)
    low, high = min(low, *known, high), max(low, *known, high)
    if bounds.size:
        lows, highs = bounds
        room = _ROOM * float(np.median(highs - lows))
        low = min(low, max(float(lows.min()), low - room))
        high = max(high, min(float(highs.max()), high + room))
    span = (high - low) or 0.2 * abs(high) or 0.02
    return low - _MARGIN * span, high + _MARGIN * span


def _bounds(series: Series, low: float, high: float) -> Numbers:
    """The intervals of the points between low and high [2, point]."""
    if series.low is None or series.high is None:
        return np.empty((2, 0))
    found = np.stack([series.low, series.high])
    inside = (np.nan_to_num(series.values) >= low) & (np.nan_to_num(series.values) <= high)
    return found[:, inside & np.isfinite(found).all(axis=0)]


def curve(axes: Axes, at: Sequence[float], series: Series, limits: tuple[float, float]) -> None:
    """Draws one curve at these positions, in a view."""
    x = np.asarray(at, dtype=np.float64)
    if series.low is not None and series.high is not None:
        _band(axes, x, series.low, series.high, series.color)
    if series.level is not None:
        axes.axhline(series.level, color=series.color, linewidth=1.2, linestyle=(0, (4, 3)))
    size, width = (5.0, 1.8) if len(x) <= _MANY else (3.2, 1.2)
    line: dict[str, Any] = {"color": series.color, "marker": series.marker, "markersize": size}
    if series.marks is None:
        axes.plot(x, series.values, label=series.name, linewidth=width, zorder=4, **line)
    else:
        axes.plot([], [], label=series.name, linewidth=width, **line)
        axes.plot(x, series.values, linewidth=1.0, color=series.color, zorder=4)
        _marked(axes, x, series, size + 1.5)
    _outside(axes, x, series, limits)


def mark_handles(color: str, marker: str, texts: Mapping[Mark, str]) -> list[Line2D]:
    """Entries of a legend that explains marks, one per text."""
    return [
        Line2D([], [], linestyle="none", marker=marker, label=text, **_look(color, mark))
        for mark, text in texts.items()
    ]


def level_handle(text: str) -> Line2D:
    """The entry of a legend that explains dashed levels."""
    return Line2D([], [], color="#555555", linewidth=1.2, linestyle=(0, (4, 3)), label=text)


def _band(axes: Axes, x: Numbers, low: Numbers, high: Numbers, color: str) -> None:
    known = np.isfinite(low) & np.isfinite(high)
    axes.fill_between(x, low, high, where=known.tolist(), color=color, alpha=0.16, linewidth=0)
    for side in (low, high):
        axes.plot(x, np.where(known, side, np.nan), color=color, alpha=0.45, linewidth=0.7)
    padded = np.pad(known, 1)
    alone = known & ~padded[:-2] & ~padded[2:]
    if alone.any():
        axes.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.35, linewidth=5)


def _look(color: str, mark: Mark) -> dict[str, Any]:
    return {
        "fillstyle": "left" if mark is Mark.REVERSED else "full",
        "markerfacecolor": "white" if mark is Mark.NONE else color,
        "markerfacecoloralt": "white",
        "markeredgecolor": canvas.INK if mark >= Mark.CONFIRMED else color,
        "markeredgewidth": 1.1,
    }


def _marked(axes: Axes, x: Numbers, series: Series, size: float) -> None:
    marks = np.array(series.marks)
    for mark in Mark:
        chosen = marks == mark
        axes.plot(
            x[chosen],
            series.values[chosen],
            linestyle="none",
            marker=series.marker,
            markersize=size,
            zorder=5 + mark,
            **_look(series.color, mark),
        )


def _outside(axes: Axes, x: Numbers, series: Series, limits: tuple[float, float]) -> None:
    low, high = limits
    known = np.isfinite(series.values)
    far = known & ((np.nan_to_num(series.values) < low) | (np.nan_to_num(series.values) > high))
    middle = (axes.get_xlim()[0] + axes.get_xlim()[1]) / 2 if far.any() else 0.0
    for position, value in zip(x[far], series.values[far], strict=True):
        above = value > high
        edge = high if above else low
        axes.plot(
            [position],
            [edge],
            marker="^" if above else "v",
            color=series.color,
            markersize=9,
            clip_on=False,
            zorder=8,
        )
        axes.annotate(
            f"{value:.3g}",
            (position, edge),
            xytext=(7 if position <= middle else -7, -3 if above else 3),
            textcoords="offset points",
            ha="left" if position <= middle else "right",
            va="top" if above else "bottom",
            fontsize=8,
            color=canvas.INK,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
            zorder=9,
        )


def _finite(values: Numbers) -> Numbers:
    return values[np.isfinite(values)]
