"""Maps of runs over heads or positions: layer by head, layer by position.

Heads stand side by side, positions below each other with their tokens on the axis. Of many
positions those that do something are drawn. Where one cell is far above all others the scale is
logarithmic but for its middle, so that the others do not vanish.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.plots.maps import picture
from mlxroles.text import format_number, show_token

_NUMBERED_CELLS = 12
_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 4, 5)]
_WIDTH = 9.0
_MOST, _LEAST = 40, 8
"""Positions that are drawn where there are more: as many as have room for their tokens."""
_VISIBLE = 0.005
"""Share of the largest value from which on a position does something."""
_STEEP, _LINEAR = 0.05, 0.01
"""Where half of the columns stay below this share of the largest value, the scale is logarithmic;
below the second share it is linear."""
_NAMES = {"recovery": "recovery R", "effect": "effect on the probability"}


def parts(doc: Mapping[str, Any], axis: str) -> Figure | None:
    """Recovery (or the effect, where there is none) per layer and head or position.

    Centred at 0 in a map that reads the same with every kind of colour vision. Grey cells have
    no number; a frame marks the largest one.
    """
    shown = [each for each in documents.directions(doc) if any(documents.parts(doc, each, axis))]
    indices = sorted({at for each in shown for _, at, _ in documents.parts(doc, each, axis)})
    grids = {
        name: {each: _grid(doc, each, axis, name, indices) for each in shown} for name in _NAMES
    }
    name = next((name for name in _NAMES if any(_any(grid) for grid in grids[name].values())), None)
    if name is None:
        return None
    found = grids[name]
    is_wide = axis == "by_position"
    columns = _columns(list(found.values())) if is_wide else list(range(len(indices)))
    cut = {each: grid[:, columns] for each, grid in found.items()}
    norm, label = _scale(list(cut.values()), _NAMES[name])
    figure, panels = _panels(len(shown), len(documents.layers(doc)), is_wide=is_wide)
    image = None
    for axes, direction in zip(panels, shown, strict=True):
        image = _panel(axes, cut[direction], norm)
        axes.set_title(documents.arrow(direction))
        _number(axes.set_yticks, documents.layers(doc))
        if is_wide or direction == shown[0]:
            axes.set_ylabel("layer")
        if not is_wide:
            _number(axes.set_xticks, indices)
            axes.set_xlabel("head")
    if is_wide:
        _name_positions(panels, doc, [indices[at] for at in columns])
        panels[-1].set_xlabel(_said(list(found.values()), columns, name))
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels), label=label, shrink=0.85, pad=0.015)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_tick))
    what = axis.removeprefix("by_")
    canvas.dress(figure, doc, f"{name.capitalize()} by layer and {what}")
    return figure


def _panels(count: int, rows: int, *, is_wide: bool) -> tuple[Figure, list[Axes]]:
    """An empty figure with a panel per direction, below each other where they are wide."""
    if is_wide:
        height = min(max(0.9 + 0.2 * rows, 1.6), 8.0)
        figure = canvas.new_figure(_WIDTH, height * count + 1.9)
        return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    figure = canvas.new_figure(4.1 * count + 0.8, min(max(2.2 + 0.2 * rows, 3.4), 12.0))
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _grid(
    doc: Mapping[str, Any], direction: str, axis: str, name: str, indices: Sequence[int]
) -> np.ndarray:
    """Values by tested layer and part; NaN where there is none."""
    rows = {layer: row for row, layer in enumerate(documents.layers(doc))}
    columns = {index: column for column, index in enumerate(indices)}
    grid = np.full((len(rows), len(indices)), np.nan)
    for layer, index, values in documents.parts(doc, direction, axis):
        grid[rows[layer], columns[index]] = documents.number(values, name)
    return grid


def _any(grid: np.ndarray) -> bool:
    return bool(np.isfinite(grid).any())


def _strength(grids: Sequence[np.ndarray]) -> np.ndarray:
    """The largest absolute value of each column, 0 where there is none."""
    return np.nan_to_num(np.abs(np.concatenate(grids))).max(axis=0)


def _columns(grids: Sequence[np.ndarray]) -> list[int]:
    """All columns, or of many those that do something, in their order."""
    strength = _strength(grids)
    if len(strength) <= _MOST:
        return list(range(len(strength)))
    count = int((strength >= _VISIBLE * strength.max()).sum())
    order = np.argsort(-strength, kind="stable")[: min(max(count, _LEAST), _MOST)]
    return sorted(int(at) for at in order)


def _said(grids: Sequence[np.ndarray], columns: Sequence[int], name: str) -> str:
    """What the axis of the positions says: how many there are, and how little the others do."""
    strength = _strength(grids)
    if len(columns) == len(strength):
        return "position"
    most = format_number(float(np.delete(strength, columns).max()), ".2g")
    what = "R" if name == "recovery" else "effect"
    kept = f"the {len(columns)} strongest of {len(strength)} positions"
    return f"{kept}; others: |{what}| up to {most}"


def _scale(grids: Sequence[np.ndarray], name: str) -> tuple[Normalize, str]:
    """Colours around 0 and what the bar says of them."""
    strength = _strength(grids)
    end = float(strength.max()) or 1.0
    if np.median(strength) >= _STEEP * end:
        return Normalize(-end, end), name
    norm = SymLogNorm(_LINEAR * end, linscale=0.5, vmin=-end, vmax=end)
    return norm, f"{name} (logarithmic beyond {format_number(_LINEAR * end, '.1g')})"


def _tick(value: float, _: int | None = None) -> str:
    """A number of the bar, also of a logarithmic one, as other axes write theirs."""
    return f"{value:g}".replace("-", "−")


def _panel(axes: Axes, grid: np.ndarray, norm: Normalize) -> AxesImage:
    image = picture(axes, grid, norm)
    if _any(grid):
        row, column = np.unravel_index(np.nanargmax(np.abs(grid)), grid.shape)
        corner = (float(column) - 0.5, float(row) - 0.5)
        style: dict[str, Any] = {"edgecolor": canvas.INK, "linewidth": 1.6, "zorder": 5}
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, clip_on=False, **style))
    return image


def _number(setter: Any, values: Sequence[int]) -> None:
    """Numbers an axis, at most a dozen places of it."""
    step = next(step for step in _STEPS if len(values) <= step * _NUMBERED_CELLS)
    at = range(0, len(values), step)
    setter(list(at), [str(values[each]) for each in at])


def _name_positions(panels: Sequence[Axes], doc: Mapping[str, Any], shown: Sequence[int]) -> None:
    """Tokens and numbers of positions at their places, and a line where some were left out."""
    tokens = doc.get("tokens") or []
    names = []
    for at in shown:
        text = tokens[at] if at < len(tokens) else None
        token = "" if text is None else canvas.label(show_token(text), 14)
        names.append(f"{token} {at}".strip())
    panels[-1].set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    for axes in panels:
        for column in range(1, len(shown)):
            if shown[column] != shown[column - 1] + 1:
                axes.axvline(column - 0.5, color="#777777", linewidth=0.7, linestyle=(0, (2, 2)))
