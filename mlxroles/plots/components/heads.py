"""In which heads a layer's components live: norms, spread, and activity where it was harvested."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.plots.components.frame import ACTIVE, SIZE, headed, show, wrapped
from mlxroles.report.components.views import LayerView, MapView

MOST = 20
"""Components of a map that are drawn."""


def heads(doc: Mapping[str, Any], view: LayerView) -> Figure | None:
    """Per map: norm by component and head, beside the spread; below it, activity by head.

    None without a map that has heads.
    """
    shown = [m for m in view.maps if m.head_norms is not None and len(m.top(1))]
    if not shown:
        return None
    rows = 2 if any(m.activity is not None for m in shown) else 1
    tall = max(0.16 * max(len(m.top(MOST)) for m in shown) + 1.0, 2.6)
    figure = canvas.new_figure(max(2.75 * len(shown), 7.5), tall * rows + 1.1)
    ratios = [ratio for _ in shown for ratio in (1.7, 1.0)]
    grid = figure.subplots(rows, 2 * len(shown), squeeze=False, width_ratios=ratios)
    most = max(each.n_heads for each in shown)
    for n, each in enumerate(shown):
        name = "key-value head" if each.n_heads < most else "head"
        _norms(grid[0, 2 * n], each, name)
        _spread(grid[0, 2 * n + 1], each)
        for row in range(1, rows):
            _activity(grid[row, 2 * n], each, name)
            grid[row, 2 * n + 1].set_axis_off()
    second = (
        "norm of each component's part in each head, by importance from the top; bars: spread over "
        "heads in nats, dashed ln(heads)"
    )
    if rows > 1:
        second += "; below: mean size of what it writes to each head while it fires"
    canvas.dress(figure, doc, f"Components and heads, layer {view.layer}", wrapped(second, figure))
    return figure


def _norms(axes: Axes, each: MapView, name: str) -> None:
    assert each.head_norms is not None
    top = each.top(MOST)
    show(axes, each.head_norms[top], SIZE, Normalize(0, float(each.head_norms[top].max())))
    _rows(axes, each)
    axes.set_title(each.kind)
    headed(axes, each.n_heads, name)


def _rows(axes: Axes, each: MapView) -> None:
    top = each.top(MOST)
    axes.set_yticks(range(len(top)), [f"{each.kind}:{c}" for c in top], fontsize=6)


def _spread(axes: Axes, each: MapView) -> None:
    assert each.spread is not None
    top = each.top(MOST)
    norms = each.norms[top]
    norm = Normalize(0, float(norms.max()))
    colors = mpl.colormaps[SIZE](0.25 + 0.75 * norm(norms))
    axes.barh(range(len(top)), np.nan_to_num(each.spread[top]), color=colors, height=0.8)
    axes.set_ylim(len(top) - 0.5, -0.5)
    axes.set_yticks([])
    limit = math.log(each.n_heads) if each.n_heads > 1 else 1.0
    if each.n_heads > 1:
        axes.axvline(limit, color=canvas.SLATE, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.06 * limit)
    axes.set_xlabel("nats")
    axes.tick_params(labelsize=7)


def _activity(axes: Axes, each: MapView, name: str) -> None:
    if each.activity is None:
        axes.set_axis_off()
        return
    top = each.top(MOST)
    found = each.activity[top]
    known = found[np.isfinite(found)]
    show(axes, found, ACTIVE, Normalize(0, float(known.max(initial=0.0)) or 1.0))
    _rows(axes, each)
    axes.set_title(f"{each.kind}: written", fontsize=9)
    headed(axes, each.n_heads, name)
