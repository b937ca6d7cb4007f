"""Grids of a layer: weights and their components, what components read, what fires together."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlxroles.plots import canvas
from mlxroles.plots.components.frame import DIFFERENCE, EXTEND, SIGNED, named, show, strip, wrapped
from mlxroles.plots.maps import centred
from mlxroles.report.components.views import LayerView, Likeness, Matrices, Together

_MOST_MAPS = 8
_STEPS = 45
"""Of colour in pictures of weights, which are mostly noise and would make large files."""


def matrices(doc: Mapping[str, Any], view: LayerView) -> Figure | None:
    """A row per map: the model's own weight where it is known, VU, and single components.

    Every row has one scale around 0 for the whole matrices and one for the components.
    """
    shown = view.matrices[:_MOST_MAPS]
    if not shown:
        return None
    wholes = max(len(each.grids) - each.components for each in shown)
    singles = max(each.components for each in shown)
    figure = canvas.new_figure(max(1.32 * (wholes + singles) + 1.1, 7.5), 1.5 * len(shown) + 1.2)
    grid = figure.subplots(
        len(shown), 2, squeeze=False, width_ratios=(max(wholes, 1), max(singles, 1))
    )
    for axes, each in zip(grid, shown, strict=True):
        _row(axes, each)
    left = len(view.matrices) - len(shown)
    second = (
        "outputs down, inputs across, lines end heads; blue below 0. In each row the "
        f"{singles} most important components share a scale of their own"
    )
    if any(max(each.shape) > max(each.grids[0].shape) for each in shown):
        second += "; large maps: of each block the entry largest in size"
    second += f"; {canvas.counted(left, 'more map')} not drawn" if left else ""
    canvas.dress(
        figure, doc, f"Weights and their components, layer {view.layer}", wrapped(second, figure)
    )
    return figure


def _row(axes: Any, each: Matrices) -> None:
    """The whole matrices, and beside them the components on a scale of their own."""
    cut = len(each.grids) - each.components
    for one, part in zip(axes, (slice(cut), slice(cut, None)), strict=True):
        grids = each.grids[part]
        if not grids:
            one.set_axis_off()
            continue
        names = [canvas.label(name, 22) for name in each.names[part]]
        norm, _ = centred(grids)
        _, starts = strip(one, grids, SIGNED, norm, names=names, steps=_STEPS)
        for start in starts:
            _head_ends(one, each, start)
    name = canvas.label(each.key.split(".", 1)[-1], 16)
    axes[0].set_ylabel(f"{name}\n{each.shape[0]} × {each.shape[1]}", fontsize=8)


def _head_ends(axes: Any, each: Matrices, start: float) -> None:
    """Lines where heads end, in the grid that begins here."""
    rows, columns = each.grids[0].shape
    look = {"colors": "#555555", "linewidth": 0.5, "linestyles": (0, (3, 3))}
    if each.is_by_column:
        axes.vlines([start + 0.5 + end for end in each.lines], -0.5, rows - 0.5, **look)
    else:
        axes.hlines(each.lines, start, start + columns, **look)


def likeness(doc: Mapping[str, Any], view: LayerView) -> Figure | None:
    """Cosines of what components of two maps read, a panel per two maps."""
    shown = [each for each in view.likeness if each.cosine.size]
    if not shown:
        return None
    figure = canvas.new_figure(max(3.1 * len(shown) + 0.9, 7.5), 4.3)
    grid = figure.subplots(1, len(shown), squeeze=False)[0]
    norm, is_cut = centred([each.cosine for each in shown])
    images = []
    for axes, each in zip(grid, shown, strict=True):
        images.append(show(axes, each.cosine, DIFFERENCE, norm))
        _pair(axes, each)
        _dots(axes, each.cosine, each.chance)
    figure.colorbar(
        images[0], ax=list(grid), label="cosine", pad=0.02, shrink=0.8, extend=EXTEND[is_cut]
    )
    second = (
        "cosine of the directions in the layer's input; dots: beyond the largest of as many random "
        "directions (95 %)"
    )
    canvas.dress(
        figure, doc, f"Components that read alike, layer {view.layer}", wrapped(second, figure)
    )
    return figure


def _dots(axes: Any, found: NDArray[np.float64], limit: float) -> None:
    """A dot where a number is larger in size."""
    rows, columns = np.nonzero(np.abs(found) > limit)
    axes.scatter(columns, rows, s=3, color=canvas.INK, linewidths=0)


def _pair(axes: Any, each: Likeness | Together) -> None:
    named(axes, each.rows.tolist(), each.columns.tolist())
    axes.set_ylabel(f"{each.one.split('.', 1)[-1]} component")
    axes.set_xlabel(f"{each.other.split('.', 1)[-1]} component")


def together(doc: Mapping[str, Any], view: LayerView) -> Figure | None:
    """phi, Jaccard and both conditionals, a row per two maps; None without a harvest."""
    shown = [each for each in view.together if each.measures.phi.size]
    if not shown:
        return None
    figure = canvas.new_figure(11.4, 2.9 * len(shown) + 1.2)
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1, 3))
    for axes, each in zip(grid, shown, strict=True):
        first, second = (name.split(".", 1)[-1] for name in (each.one, each.other))
        found = each.measures
        shares = (found.jaccard, found.of_first, found.of_second)
        names = ("Jaccard", f"P({second} | {first})", f"P({first} | {second})")
        panels = (
            ((found.phi,), ("phi",), SIGNED, centred([found.phi])[0]),
            (shares, names, "viridis", Normalize(0, 1)),
        )
        for one, (values, titles, cmap, norm) in zip(axes, panels, strict=True):
            image, starts = strip(one, values, cmap, norm, names=titles)
            named(one, each.rows.tolist(), each.columns.tolist(), starts, size=6.0)
            one.set_xlabel(f"{second} component", fontsize=8)
            figure.colorbar(image, ax=one, pad=0.02, aspect=25).ax.tick_params(labelsize=6.5)
        axes[0].set_ylabel(f"{first} component", fontsize=8)
        _dots(axes[0], found.phi, each.chance)
    second = (
        f"{shown[0].tokens:,} tokens; a component fires above {doc['threshold']:g}; dots: beyond "
        "the largest phi of as many unrelated ones (95 %, if tokens were independent)"
    )
    canvas.dress(
        figure, doc, f"Components that fire together, layer {view.layer}", wrapped(second, figure)
    )
    return figure
