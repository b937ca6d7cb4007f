"""Heat maps of runs over heads or positions: layer by head, layer by position."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.plots.maps import picture

_NUMBERED_CELLS = 12
_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 4, 5)]


def parts(doc: Mapping[str, Any], axis: str) -> Figure | None:
    """Recovery (or the effect, where there is none) per layer and head or position.

    Centred at 0 in a map that reads the same with every kind of colour vision. Grey cells have
    no number; a frame marks the largest one.
    """
    shown = [each for each in documents.directions(doc) if any(documents.parts(doc, each, axis))]
    grids = {name: {each: _grid(doc, each, axis, name) for each in shown} for name in _NAMES}
    name = next((name for name in _NAMES if any(_any(grid) for grid in grids[name].values())), None)
    if name is None:
        return None
    found = grids[name]
    extreme = max(float(np.nanmax(np.abs(grid))) for grid in found.values() if _any(grid))
    norm = TwoSlopeNorm(0.0, -(extreme or 1.0), extreme or 1.0)
    rows = len(documents.layers(doc))
    figure = canvas.new_figure(4.8 * len(shown) + 0.8, min(max(2.2 + 0.2 * rows, 3.4), 12.0))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    image = None
    for axes, direction in zip(panels, shown, strict=True):
        image = _panel(axes, found[direction], norm)
        _label_axes(axes, doc, direction, axis)
    panels[0].set_ylabel("layer")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label=_NAMES[name], shrink=0.85, pad=0.015)
    what = axis.removeprefix("by_")
    canvas.dress(figure, doc, f"Patching one {what} at a time")
    return figure


_NAMES = {"recovery": "recovery R", "effect": "effect on the probability"}


def _grid(doc: Mapping[str, Any], direction: str, axis: str, name: str) -> np.ndarray:
    """Values by tested layer and part; NaN where there is none."""
    layers = documents.layers(doc)
    found = list(documents.parts(doc, direction, axis))
    indices = sorted({index for _, index, _ in found})
    grid = np.full((len(layers), len(indices)), np.nan)
    for layer, index, values in found:
        grid[layers.index(layer), indices.index(index)] = documents.number(values, name)
    return grid


def _any(grid: np.ndarray) -> bool:
    return bool(np.isfinite(grid).any())


def _panel(axes: Axes, grid: np.ndarray, norm: TwoSlopeNorm) -> AxesImage:
    image = picture(axes, grid, norm)
    if _any(grid):
        row, column = np.unravel_index(np.nanargmax(np.abs(grid)), grid.shape)
        axes.plot(
            [column],
            [row],
            marker="s",
            clip_on=False,  # the last position is at the edge
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=canvas.INK,
            markeredgewidth=1.4,
        )
    return image


def _label_axes(axes: Axes, doc: Mapping[str, Any], direction: str, axis: str) -> None:
    layers = documents.layers(doc)
    indices = sorted({index for _, index, _ in documents.parts(doc, direction, axis)})
    axes.set_title(f"{documents.arrow(direction)}")
    axes.set_xlabel(axis.removeprefix("by_"))
    for setter, values in ((axes.set_xticks, indices), (axes.set_yticks, layers)):
        step = next(step for step in _STEPS if len(values) <= step * _NUMBERED_CELLS)
        at = range(0, len(values), step)
        setter(list(at), [str(values[each]) for each in at])
