"""Maps of layers by heads: sequential scores with their values, marked heads in a frame.

Not here: maps around zero, which :mod:`mlxroles.plots.maps` draws for other studies in its own
colours. Values are written where cells are large enough to read them.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mlxroles.plots import canvas, maps
from mlxroles.report.heads.scores import end_of, short

Numbers = NDArray[np.float64]

_MISSING = "#d9d9d9"
_INK_CHANGES = 0.55
_LARGEST, _SMALLEST = 8.0, 4.6
"""Points of the values in cells; below the second they are left out."""
_POINTS = 72.0
_CHARACTER = 0.64
"""Width of a digit in units of the font's size."""


def size_of(layers: int, heads: int, *, widest: float = 3.6, tallest: float = 7.2) -> tuple:
    """Inches that a map takes: cells of one size, smaller where there are many."""
    width = min(max(0.36 * heads, 1.7), widest)
    return width, min(max(0.27 * layers, 1.2), tallest, max(1.5 * width / heads * layers, 1.2))


def scale(grids: Sequence[Numbers], look: str, least: float | None = None) -> Normalize:
    """One scale for several maps: from 0, or the same on both sides of 0."""
    end = end_of(grids, least)
    return Normalize(-end, end) if look == "signed" else Normalize(0.0, end)


def color_map(name: str, look: str) -> str:
    """The colours of a score: those that are usual for it."""
    if look == "signed":
        return "RdBu_r"
    return "Blues" if name.startswith("previous") else "viridis"


def draw(
    axes: Axes,
    grid: Numbers,
    norm: Normalize,
    colors: str,
    room: tuple[float, float],
    *,
    told: NDArray[np.bool_] | None = None,
) -> AxesImage:
    """Draws a map, layer 0 at the bottom, with its values where there is room.

    Args:
        axes: Where.
        grid: [layer, head]; grey where there is no number.
        norm: The scale.
        colors: Name of the colour map.
        room: Inches that the map has.
        told: Cells that have their value [layer, head]; all without it.
    """
    axes.set_facecolor(_MISSING)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=colors,
        norm=norm,
        aspect="auto",
        interpolation="nearest",
        origin="lower",
    )
    maps.number(axes, list(range(grid.shape[0])), grid.shape[1])
    axes.tick_params(length=0, pad=3)
    _lines(axes, grid.shape)
    shown = grid if told is None else np.where(told, grid, np.nan)
    _values(axes, shown, norm, colors, room)
    return image


def _lines(axes: Axes, shape: tuple[int, ...]) -> None:
    """Thin white lines between cells that are large."""
    if max(shape) > 40:
        return
    width = 0.8 if max(shape) <= 16 else 0.35
    inner = [np.arange(1, n) - 0.5 for n in shape]
    axes.hlines(inner[0], -0.5, shape[1] - 0.5, colors="white", linewidths=width)
    axes.vlines(inner[1], -0.5, shape[0] - 0.5, colors="white", linewidths=width)


def _values(
    axes: Axes, grid: Numbers, norm: Normalize, colors: str, room: tuple[float, float]
) -> None:
    known = grid[np.isfinite(grid)]
    if not known.size:
        return
    texts = {at: short(float(grid[at])) for at in map(tuple, np.argwhere(np.isfinite(grid)))}
    longest = max(map(len, texts.values()))
    width, height = (_POINTS * side / n for side, n in zip(room, grid.shape[::-1], strict=True))
    size = min(_LARGEST, 0.86 * width / (_CHARACTER * longest), 0.72 * height)
    if size < _SMALLEST:
        return
    shades = mpl.colormaps[colors]
    for (layer, head), text in texts.items():
        light = canvas.brightness(shades(norm(grid[layer, head])))
        axes.text(
            head,
            layer,
            text,
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=canvas.INK if light > _INK_CHANGES else "white",
            in_layout=False,
        )


def frames(axes: Axes, chosen: NDArray[np.bool_], room: tuple[float, float]) -> None:
    """Frames some cells, dark in a light edge, so that they are seen on any colour."""
    rows, columns = chosen.shape
    cell = _POINTS * min(room[0] / columns, room[1] / rows)
    wide = float(np.clip(cell / 7, 0.8, 3.2))
    cells = [Rectangle((head - 0.5, layer - 0.5), 1, 1) for layer, head in np.argwhere(chosen)]
    for color, width in (("white", wide), (canvas.INK, wide / 2)) if cells else ():
        made = PatchCollection(
            cells,
            facecolors="none",
            edgecolors=color,
            linewidths=width,
            joinstyle="miter",
            clip_on=False,
            zorder=4,
        )
        axes.add_collection(made, autolim=False)
