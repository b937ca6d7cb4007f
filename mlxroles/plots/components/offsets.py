"""What query and key components add to a head's score, by the distance between query and key.

Sums over heads are drawn because the original study did; heads have softmaxes of their own, so a
sum is a summary and no score. Where there are many heads the strongest are drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlxroles.plots import canvas
from mlxroles.plots.components.frame import (
    DIFFERENCE,
    EXTEND,
    SIGNED,
    colours,
    named,
    strip,
    wrapped,
)
from mlxroles.plots.maps import centred
from mlxroles.report.components.views import QK

Doc = Mapping[str, Any]
Numbers = NDArray[np.floating]

_SHOWN = (0, 1, 2, 3, 4, 6, 8, 12, 16)
_FEW = (0, 1, 2, 4, 8, 16)
_MOST_HEADS, _MOST_COMPONENTS = 6, 16
_PAIRS, _SINGLE = 10, 9
_DISTANCE = "query position - key position"


def heatmaps(doc: Doc, layer: int, qk: QK) -> Figure:
    """The head sum for all pairs, a panel per distance."""
    look = (_SHOWN[:-2] + _SHOWN[-1:], SIGNED, "W(D)")
    return _by_distance(doc, f"Scores by distance, layer {layer}", qk, _summed(qk), look)


def diffs(doc: Doc, layer: int, qk: QK) -> Figure:
    """What distance changes, W(D) - W(0) of the head sum, a panel per distance."""
    grids = _summed(qk)
    look = (_SHOWN[1:], DIFFERENCE, "W(D) - W(0)")
    return _by_distance(doc, f"What distance changes, layer {layer}", qk, grids - grids[:1], look)


def heads(doc: Doc, layer: int, qk: QK) -> Figure:
    """A row per head, a column per distance; every head with a scale of its own."""
    chosen = _strongest(qk)
    at = _present(qk, _FEW)
    figure = canvas.new_figure(1.5 * len(at) + 1.6, 1.45 * len(chosen) + 1.5)
    panels = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    for axes, head in zip(panels, chosen, strict=True):
        norm, is_cut = centred(list(_cut(qk.values[:, head]).astype(np.float64)))
        names = [f"D = {qk.offsets[place]}" for place in at]
        grids = [_cut(qk.values[place, head]) for place in at]
        image, _ = strip(axes, grids, SIGNED, norm, names=names if head == chosen[0] else ())
        axes.set_ylabel(f"H{head}", fontsize=9)
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12, extend=EXTEND[is_cut])
        bar.ax.tick_params(labelsize=6.5)
    second = f"query components down, key components across, as in the sums; {_which(qk, chosen)}"
    canvas.dress(
        figure, doc, f"Scores by head and distance, layer {layer}", wrapped(second, figure)
    )
    return figure


def scatter(doc: Doc, layer: int, qk: QK) -> Figure:
    """Each head's part of the sum over heads, for every pair at the distance of its peak."""
    chosen = _strongest(qk)
    total = _summed(qk)
    at = np.abs(total).argmax(axis=0)
    peak = np.take_along_axis(total, at[None], axis=0)[0].ravel()
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = canvas.new_figure(max(2.6 * columns + 0.6, 7.0), 2.4 * rows + 1.2)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    end = 1.05 * max(float(np.abs(peak).max(initial=0.0)), 1e-9)
    for axes, head in zip(grid, chosen, strict=False):
        one = np.take_along_axis(qk.values[:, head], at[None], axis=0)[0].ravel()
        axes.axline((0, 0), slope=1, color=canvas.GREY, linewidth=0.8)
        axes.scatter(peak, one, s=6, color=canvas.BLUE, alpha=0.5, linewidths=0)
        axes.set_title(f"H{head}, {qk.chance.above[head]:.0%} of pairs beyond chance", fontsize=8.5)
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    for axes in grid[: len(chosen)]:
        axes.set_xlim(-end, end)
    figure.supylabel("W of the head", fontsize=9)
    for axes in grid[max(len(chosen) - columns, 0) : len(chosen)]:
        axes.set_xlabel("W of the sum over heads")
    second = f"a point per pair at its peak; on the line: all from one head; {_which(qk, chosen)}"
    canvas.dress(figure, doc, f"Heads against their sum, layer {layer}", wrapped(second, figure))
    return figure


def lines(doc: Doc, layer: int, qk: QK) -> Figure:
    """The ten pairs whose head sum peaks highest in size, over distance."""
    figure = canvas.new_figure(7.5, 4.2)
    axes = figure.subplots()
    total = _summed(qk)
    pairs = _pairs(total, _PAIRS)
    for (q, k), color in zip(pairs, colours(len(pairs)), strict=True):
        axes.plot(qk.offsets, total[:, q, k], color=color, label=_pair(qk, q, k), marker="o")
    _zero(axes)
    axes.set_xlabel(_DISTANCE)
    axes.set_ylabel("W, summed over heads")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="query → key", fontsize=8)
    second = f"the {len(pairs)} of {total[0].size:,} pairs with the largest peak in size"
    canvas.dress(
        figure, doc, f"Pairs of components over distance, layer {layer}", wrapped(second, figure)
    )
    return figure


def lines_by_head(doc: Doc, layer: int, qk: QK) -> Figure:
    """A panel per head: its own ten largest pairs, three of them named."""
    chosen = _strongest(qk)
    figure, grid = _panels(len(chosen), 3)
    for axes, head in zip(grid, chosen, strict=False):
        values = qk.values[:, head]
        pairs = _pairs(values, _PAIRS)
        for n, (q, k) in reversed(list(enumerate(pairs))):
            color = colours(3)[n] if n < 3 else "#c9ced3"
            name = _pair(qk, q, k) if n < 3 else None
            axes.plot(qk.offsets, values[:, q, k], color=color, linewidth=1.4, label=name)
        _zero(axes)
        axes.set_title(f"H{head}", fontsize=9)
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], fontsize=6.5, loc="best")
    second = f"the ten largest pairs of each head, the first three named; {_which(qk, chosen)}"
    canvas.dress(
        figure, doc, f"Pairs of components in each head, layer {layer}", wrapped(second, figure)
    )
    return figure


def single(doc: Doc, layer: int, qk: QK) -> Figure:
    """A panel per pair: a line per head, and their sum in black."""
    total = _summed(qk)
    pairs = _pairs(total, _SINGLE)
    chosen = _strongest(qk)
    figure, grid = _panels(len(pairs), 3)
    shades = colours(len(chosen))
    for axes, (q, k) in zip(grid, pairs, strict=False):
        for head, color in zip(chosen, shades, strict=True):
            curve = qk.values[:, head, q, k]
            axes.plot(qk.offsets, curve, color=color, linewidth=1.3, label=f"H{head}")
        axes.plot(qk.offsets, total[:, q, k], color="black", linewidth=1.8, label="sum")
        _zero(axes)
        axes.set_title(_pair(qk, q, k), fontsize=9)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    second = f"a line per head, black: the sum over all; {_which(qk, chosen)}"
    canvas.dress(
        figure,
        doc,
        f"Heads in which pairs of components act, layer {layer}",
        wrapped(second, figure),
    )
    return figure


def _by_distance(
    doc: Doc, title: str, qk: QK, grids: Numbers, look: tuple[Sequence[int], str, str]
) -> Figure:
    """A panel per distance of grids [offset, q, k] on one scale; distances, map, scale's name."""
    wanted, cmap, scale = look
    at = _present(qk, wanted)
    columns = min(4, len(at))
    rows = -(-len(at) // columns)
    figure = canvas.new_figure(2.15 * columns + 1.0, 2.2 * rows + 1.3)
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    norm, is_cut = centred(list(_cut(grids[at])))
    images = []
    for n, axes in enumerate(panels):
        here = at[n * columns : (n + 1) * columns]
        names = [f"D = {qk.offsets[place]}" for place in here]
        image, starts = strip(axes, [_cut(grids[p]) for p in here], cmap, norm, names=names)
        images.append(image)
        rows, across = (each[:_MOST_COMPONENTS].tolist() for each in (qk.q, qk.k))
        is_last = n == len(panels) - 1
        named(axes, rows, across if is_last else (), starts, size=5.5)
        axes.set_ylabel("query component", fontsize=8)
    panels[-1].set_xlabel("key component", fontsize=8)
    label = f"{scale}, summed over heads"
    ends = EXTEND[is_cut]
    figure.colorbar(images[0], ax=list(panels), label=label, shrink=0.85, extend=ends)
    shown = [min(len(each), _MOST_COMPONENTS) for each in (qk.q, qk.k)]
    second = f"D: {_DISTANCE}; the {shown[0]} and {shown[1]} most important components"
    canvas.dress(figure, doc, title, wrapped(second, figure))
    return figure


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = canvas.new_figure(max(2.5 * columns + 0.9, 7.0), 1.75 * rows + 1.3)
    grid = list(figure.subplots(rows, columns, sharex=True, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[max(count - columns, 0) : count]:
        axes.set_xlabel(_DISTANCE, fontsize=8)
        axes.tick_params(labelbottom=True)
    for axes in grid[::columns]:
        axes.set_ylabel("W", fontsize=8)
    for axes in grid:
        axes.tick_params(labelsize=7)
    return figure, grid


def _summed(qk: QK) -> NDArray[np.float64]:
    """Over heads [offset, q, k]."""
    return qk.values.sum(axis=1, dtype=np.float64)


def _cut(grid: Numbers) -> Numbers:
    return grid[..., :_MOST_COMPONENTS, :_MOST_COMPONENTS]


def _strongest(qk: QK) -> list[int]:
    """The heads with the largest entries in size, in their order."""
    peak = np.abs(qk.values).max(axis=(0, 2, 3))
    return sorted(int(h) for h in np.argsort(-peak, kind="stable")[:_MOST_HEADS])


def _which(qk: QK, chosen: Sequence[int]) -> str:
    total = qk.values.shape[1]
    return "all heads" if len(chosen) == total else f"the {len(chosen)} strongest of {total} heads"


def _present(qk: QK, wanted: Sequence[int]) -> list[int]:
    return [n for n, offset in enumerate(qk.offsets.tolist()) if offset in wanted]


def _pairs(values: Numbers, most: int) -> list[tuple[int, int]]:
    """Places (q, k) of the pairs whose size peaks highest over distance."""
    peak = np.abs(values).max(axis=0)
    order = np.argsort(-peak, axis=None, kind="stable")[:most]
    return [(int(q), int(k)) for q, k in zip(*np.unravel_index(order, peak.shape), strict=True)]


def _pair(qk: QK, q: int, k: int) -> str:
    return f"q:{qk.q[q]} → k:{qk.k[k]}"


def _zero(axes: Axes) -> None:
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=1)
