"""All layers at once: how important the components are, and how far they spread over heads."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mlxroles.plots import canvas
from mlxroles.plots.components.frame import wrapped
from mlxroles.report.components.views import MapView
from mlxroles.text import ranges

_COLUMNS = 4
_LAYERS = "viridis"
_MOST = 24


def importance(doc: Mapping[str, Any], maps: Sequence[MapView]) -> Figure:
    """Importance of all components, sorted, linear and logarithmic: a panel per kind of map."""
    kinds = list(dict.fromkeys(each.kind for each in maps))
    columns = min(len(kinds), _COLUMNS)
    blocks = math.ceil(len(kinds) / columns)
    figure = canvas.new_figure(max(2.5 * columns + 1.2, 7.5), 3.9 * blocks + 1.0)
    grid = figure.subplots(2 * blocks, columns, squeeze=False)
    layers, color = _shades(maps)
    for n, kind in enumerate(kinds):
        for is_log in (False, True):
            axes = grid[2 * (n // columns) + is_log, n % columns]
            for each in (m for m in maps if m.kind == kind):
                values = np.sort(each.importance)[::-1]
                marks = {"marker": "x", "markersize": 3} if len(values) <= 128 else {}
                axes.plot(values, color=color(each.layer), linewidth=1.0, **marks)
            if is_log:
                if any(line.get_ydata().max(initial=0.0) > 0 for line in axes.lines):
                    axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
                axes.set_xlabel("rank")
                _floor(axes, [m.importance for m in maps if m.kind == kind])
            else:
                axes.set_title(canvas.label(kind, 28))
                axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if n % columns == 0:
                axes.set_ylabel(doc["measure"], fontsize=8)
    for spare in range(len(kinds), blocks * columns):
        for is_log in (0, 1):
            grid[2 * (spare // columns) + is_log, spare % columns].set_axis_off()
    _layer_bar(figure, grid, layers)
    canvas.dress(figure, doc, "Components by importance", f"{doc['about']}, sorted in each map")
    return figure


def spreads(doc: Mapping[str, Any], maps: Sequence[MapView]) -> Figure | None:
    """The largest share of one head, of the components that count, by layer; None without heads."""
    headed = [m for m in maps if m.head_norms is not None and m.n_heads > 1]
    kinds = list(dict.fromkeys(each.kind for each in headed))
    if not kinds:
        return None
    figure = canvas.new_figure(max(2.6 * len(kinds) + 0.8, 7.5), 3.7)
    grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    rng = np.random.default_rng(0)
    for axes, kind in zip(grid, kinds, strict=True):
        chosen = [m for m in headed if m.kind == kind]
        for each in chosen:
            top = each.top(_MOST)
            assert each.head_norms is not None
            share = each.head_norms[top].max(axis=1) / each.head_norms[top].sum(axis=1)
            jitter = rng.uniform(-0.22, 0.22, len(top))
            axes.scatter(
                each.layer + jitter,
                share,
                s=10,
                color=canvas.PURPLE,
                alpha=0.65,
                linewidths=0,
            )
        layers = [each.layer for each in chosen]
        for found, style in (
            ([each.chance_share for each in chosen], (0, (4, 3))),
            ([1 / each.n_heads for each in chosen], ":"),
        ):
            low, high = np.subtract(layers, 0.5), np.add(layers, 0.5)
            axes.hlines(found, low, high, color=canvas.SLATE, linewidth=1.1, linestyle=style)
        counts = sorted({each.n_heads for each in chosen})
        told = canvas.counted(counts[-1], "head") if len(counts) < 2 else f"{ranges(counts)} heads"
        axes.set_title(f"{kind}, {told}")
        canvas.layer_axis(axes, sorted({each.layer for each in chosen}))
    grid[0].set_ylim(0, 1.02)
    grid[0].set_ylabel("largest share of one head")
    second = (
        f"the {_MOST} most important of each map. Dashed: 95 % of random directions are below; "
        "dotted: all heads alike"
    )
    canvas.dress(figure, doc, "Components that belong to one head", wrapped(second, figure))
    return figure


def _floor(axes: Any, found: Sequence[np.ndarray]) -> None:
    """Keeps a logarithmic axis to six decades: numbers that are 0 but for rounding say nothing."""
    top = max((float(values.max(initial=0.0)) for values in found), default=0.0)
    if top > 0:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], top * 1e-6))


def _shades(maps: Sequence[MapView]) -> tuple[list[int], Any]:
    layers = sorted({each.layer for each in maps})
    colors = mpl.colormaps[_LAYERS]
    norm = Normalize(min(layers), max(max(layers), min(layers) + 1))
    return layers, lambda layer: colors(0.9 * norm(layer))


def _layer_bar(figure: Figure, grid: Any, layers: Sequence[int]) -> None:
    if len(layers) < 2:
        return
    colors = mpl.colormaps[_LAYERS].resampled(256)
    kept = mpl.colors.ListedColormap(colors(np.linspace(0, 0.9, 256)))
    scale = ScalarMappable(Normalize(min(layers), max(layers)), kept)
    bar = figure.colorbar(scale, ax=list(grid.ravel()), label="layer", pad=0.015, aspect=40)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
