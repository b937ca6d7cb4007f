"""What figures of components share: names on the axes, scales, colours of heads and of pairs."""

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from mlxroles.plots import canvas

SIGNED, DIFFERENCE, SIZE, ACTIVE = "RdBu_r", "PiYG", "Purples", "Reds"
"""Maps for weights and scores, for differences and cosines, for norms, for activity."""
EXTEND = {True: "both", False: "neither"}
"""Ends of a scale's bar, by whether values lie beyond it."""
_CYCLE = (
    canvas.BLUE,
    canvas.ORANGE,
    canvas.RED,
    canvas.PURPLE,
    canvas.BROWN,
    canvas.VERMILION,
    canvas.OLIVE,
    canvas.SLATE,
    canvas.CYAN,
    canvas.GREY,
)
_NAMED, _HEADS = 24, 8
_LETTERS = 12
"""Letters of a title per inch."""


def wrapped(text: str, figure: Figure) -> str:
    """The second line of a title in as many lines as fit the figure's width."""
    return textwrap.fill(text, int(_LETTERS * figure.get_figwidth()))


def show(
    axes: Axes, grid: NDArray[np.floating], cmap: str, norm: Normalize, *, steps: int = 256
) -> AxesImage:
    """Draws a grid, row 0 on top, in so many steps of colour."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=mpl.colormaps[cmap].resampled(steps),
        norm=norm,
        aspect="auto",
        interpolation="nearest",
    )


def strip(
    axes: Axes,
    grids: Sequence[NDArray[np.floating]],
    cmap: str,
    norm: Normalize,
    *,
    names: Sequence[str] = (),
    steps: int = 256,
) -> tuple[AxesImage, list[float]]:
    """Draws grids of one size side by side, with their names above.

    Returns:
        The image, and where on the axis each grid begins.
    """
    rows, columns = grids[0].shape
    gap = max(columns // 14, 1)
    width = columns + gap
    whole = np.full((rows, width * len(grids) - gap), np.nan)
    starts = [n * width for n in range(len(grids))]
    for start, grid in zip(starts, grids, strict=True):
        whole[:, start : start + columns] = grid
    image = show(axes, whole, cmap, norm, steps=steps)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for start, name in zip(starts, names, strict=False):
        middle = start + (columns - 1) / 2
        axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
    return image, [start - 0.5 for start in starts]


def named(
    axes: Axes,
    rows: Sequence[int],
    columns: Sequence[int],
    starts: Sequence[float] = (-0.5,),
    *,
    size: float = 6.5,
) -> None:
    """Puts the numbers of components on both axes; of many, every second, third, ...

    Args:
        axes: With a grid, or a strip of grids.
        rows: Numbers from above.
        columns: Numbers from the left, the same in every grid.
        starts: Where the grids begin; see :func:`strip`.
        size: Of the letters.
    """
    axes.set_yticks(*_ticks(rows), fontsize=size)
    at, names = _ticks(columns)
    places = [start + 0.5 + each for start in starts for each in at]
    axes.set_xticks(places, names * len(starts), fontsize=size, rotation=90)


def headed(axes: Axes, heads: int, name: str = "head") -> None:
    """Puts the numbers of heads on the axis below."""
    axes.set_xticks(*_ticks(range(heads), _HEADS), fontsize=7)
    axes.set_xlabel(name)


def _ticks(names: Sequence[int], most: int = _NAMED) -> tuple[list[int], list[str]]:
    at = range(0, len(names), -(-len(names) // most) or 1)
    return list(at), [str(names[each]) for each in at]


def colours(count: int) -> list[str | tuple[float, ...]]:
    """So many colours that are told apart; beyond ten, from a continuous map."""
    if count <= len(_CYCLE):
        return list(_CYCLE[:count])
    return [mpl.colormaps["turbo"](0.05 + 0.9 * n / (count - 1)) for n in range(count)]
