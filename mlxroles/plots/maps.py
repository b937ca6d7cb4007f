"""Maps of layer by head: every head as a cell, or some heads as points, coloured around zero."""

from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

DIVERGING = "PuOr_r"
"""Purple below zero, orange above; read the same with every kind of colour vision."""

_MISSING = "#d9d9d9"
_NUMBERED = 12
_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 4, 5)]
_OUTLIERS = 0.995


def centred(grids: Iterable[Numbers]) -> tuple[Normalize, bool]:
    """One scale around 0 for several grids, and whether values lie beyond it.

    The scale ends at the largest absolute value, or at the 99.5 % quantile where that is less
    than half of it: one head must not make all others pale.
    """
    values = np.concatenate([np.abs(grid[np.isfinite(grid)]).ravel() for grid in grids])
    if not values.size or not values.max() > 0:
        return Normalize(-1.0, 1.0), False
    largest, usual = float(values.max()), float(np.quantile(values, _OUTLIERS))
    is_cut = 0 < usual < largest / 2
    end = usual if is_cut else largest
    return Normalize(-end, end), is_cut


def picture(axes: Axes, grid: Numbers, norm: Normalize) -> AxesImage:
    """Draws a grid, row 0 at the bottom; grey where there is no number."""
    axes.set_facecolor(_MISSING)
    axes.grid(visible=False)
    return axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=DIVERGING,
        norm=norm,
        aspect="auto",
        interpolation="nearest",
        origin="lower",
    )


def cells(axes: Axes, grid: Numbers, layers: Sequence[int], norm: Normalize) -> AxesImage:
    """Draws a grid [layer, head] with its numbers, layer 0 at the bottom."""
    image = picture(axes, grid, norm)
    number(axes, layers, grid.shape[1])
    return image


def points(
    axes: Axes, found: Sequence[tuple[int, int, float]], norm: Normalize, sizes: Sequence[float]
) -> PathCollection:
    """Draws some heads as points: (row of the layer, head, value), sizes in square points."""
    rows, heads, values = zip(*found, strict=True)
    return axes.scatter(
        heads,
        rows,
        c=values,
        s=list(sizes),
        cmap=DIVERGING,
        norm=norm,
        edgecolors="#555555",
        linewidths=0.6,
        zorder=3,
        clip_on=False,  # the first and last ones are at the edge
    )


def number(axes: Axes, layers: Sequence[int], heads: int) -> None:
    """Numbers the axes: layers from below, heads from the left, at most a dozen each."""
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(-0.5, len(layers) - 0.5)
    for setter, names in ((axes.set_xticks, range(heads)), (axes.set_yticks, layers)):
        step = next(step for step in _STEPS if len(names) <= step * _NUMBERED)
        at = range(0, len(names), step)
        setter(list(at), [str(names[each]) for each in at])
    axes.set_xlabel("head")


def shades(values: Iterable[float], norm: Normalize) -> Numbers:
    """The colours of some values on a scale [value, 4]."""
    return np.asarray(mpl.colormaps[DIVERGING](norm(list(values))))
