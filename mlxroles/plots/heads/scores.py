"""One figure per score: maps of every head, and the highest heads beside what chance gives."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from mlxroles.heads import head_name
from mlxroles.plots import canvas
from mlxroles.plots.heads import heat
from mlxroles.report.heads import scores
from mlxroles.report.heads.scores import Head, Panel
from mlxroles.report.heads.wording import kind

Doc = Mapping[str, Any]

_LISTED, _LINE_INCHES = 10, 0.3
_CHARACTERS = 13.2
"""Of the title in an inch."""
_LIST_INCHES = 3.1
_BAR_INCHES = 0.55
_WIDEST = {1: 4.6, 2: 3.5, 3: 3.2}
"""Inches of a map by how many stand in a row."""
_MARKS = {"uniform": ("|", "uniform attention"), "control": ("x", "control")}


class _Cell(NamedTuple):
    """A map at its place in the figure."""

    panel: Panel
    side: str
    is_difference: bool
    marked: NDArray[np.bool_]


def figure_of(doc: Doc, name: str) -> Figure | None:
    """The maps of a score, a row per model where it takes several; None without a number."""
    rows = _rows(doc, name)
    if not any(scores.any_of([cell.panel.values]) for row in rows for cell in row):
        return None
    columns = max(map(len, rows))
    layers, heads = scores.shape(doc, scores.sides(doc)[0])
    widest = _WIDEST.get(columns, 2.9)
    room = heat.size_of(layers, heads, widest=widest, tallest=7.2 if len(rows) == 1 else 4.6)
    listed = _listed(doc, name, max(_LISTED, int(room[1] * len(rows) / _LINE_INCHES)))
    height = max(room[1], 0.19 * len(listed) + 0.3 if len(rows) == 1 else 0.0)
    figure = canvas.new_figure(
        columns * (room[0] + _BAR_INCHES) + _LIST_INCHES + 0.7, len(rows) * (height + 0.55) + 1.1
    )
    grid = figure.add_gridspec(
        len(rows), columns + 1, width_ratios=[*[room[0] + _BAR_INCHES] * columns, _LIST_INCHES]
    )
    _maps(figure, grid, doc, name, (rows, room))
    _list(figure.add_subplot(grid[:, columns]), doc, name, listed, len(rows) * height)
    canvas.dress(figure, doc, _heading(name), _about(doc, name, figure.get_figwidth()))
    return figure


def _heading(name: str) -> str:
    title = kind(name).name
    return f"{title} heads" if name in ("previous", "induction", "duplicate") else title


def _about(doc: Doc, name: str, inches: float) -> str:
    """What is measured, as the title's second line, broken where it is too long."""
    text = scores.told(doc, name, "what", kind(name).measures).rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}. Frames: marked heads"
    return "\n".join(textwrap.wrap(text, max(int(_CHARACTERS * inches), 30)))


def _rows(doc: Doc, name: str) -> list[list[_Cell]]:
    """A row of maps for all models, or one per model where a score is made of several."""
    sides = scores.sides(doc)
    by_side = [
        [_Cell(panel, side, False, scores.marked(doc, side, name)) for panel in panels]
        for side in sides
        if (panels := scores.maps(doc, side, name))
    ]
    if any(len(row) > 1 for row in by_side):
        return by_side
    change = scores.difference(doc, name)
    row = [cell for cells in by_side for cell in cells]
    if change is not None and len(sides) > 1:
        clear = scores.difference(doc, name, "clear")
        holds = np.zeros(change.shape, dtype=bool) if clear is None else clear > 0
        title = f"{sides[1]} − {sides[0]}"
        row.append(_Cell(Panel(title, change, "signed"), "", True, holds))
    return [row]


def _maps(
    figure: Figure,
    grid: GridSpec,
    doc: Doc,
    name: str,
    drawn: tuple[Sequence[Sequence[_Cell]], tuple[float, float]],
) -> None:
    rows, room = drawn
    several = len(scores.sides(doc)) > 1
    for n, row in enumerate(rows):
        for m, cell in enumerate(row):
            alike = [
                other.panel.values
                for line in rows
                for other in line
                if (other.is_difference, other.panel.look) == (cell.is_difference, cell.panel.look)
                and (len(rows) == 1 or other.panel.title == cell.panel.title)
            ]
            end = scores.least(doc, name) if cell.is_difference else cell.panel.threshold
            norm = heat.scale(alike, cell.panel.look, end)
            axes = figure.add_subplot(grid[n, m])
            colors = heat.color_map(name, cell.panel.look)
            told = cell.marked if cell.is_difference else None
            image = heat.draw(axes, cell.panel.values, norm, colors, room, told=told)
            if not cell.is_difference and cell.panel.threshold is not None:
                heat.frames(axes, cell.marked, room)
            axes.set_title(_title(cell, several=several, is_alone=len(row) == 1))
            if m == 0:
                axes.set_ylabel("layer")
            bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.06, aspect=28)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6.5, length=2)
            if cell.panel.threshold and norm.vmin == 0:
                bar.ax.axhline(cell.panel.threshold, color=canvas.RED, linewidth=1.4)


def _title(cell: _Cell, *, several: bool, is_alone: bool) -> str:
    if cell.is_difference:
        return cell.panel.title
    if cell.panel.title == "score":
        return cell.side if several else "score"
    return f"{cell.side}: {cell.panel.title}" if several else cell.panel.title


# --- the highest heads ------------------------------------------------------------------------


def _listed(doc: Doc, name: str, most: int) -> list[tuple[str, Head]]:
    """The highest heads of all models by name and place, each once, at most so many."""
    sides = scores.sides(doc)
    found: dict[Head, float] = {}
    for side in sides:
        score = np.abs(scores.grid(doc, side, name))
        for at in scores.ranked(doc, side, name)[:most]:
            found[at] = max(found.get(at, 0.0), float(score[at]))
    order = sorted(found, key=lambda at: (-found[at], at))
    return [(head_name(*at), at) for at in order[:most]]


def _list(
    axes: Axes, doc: Doc, name: str, listed: Sequence[tuple[str, Head]], inches: float
) -> None:
    """Scores with intervals, a line per head, beside uniform attention and the control."""
    sides = scores.sides(doc)
    least = scores.threshold(doc, sides[0], name)
    is_other = name in ("delimiter", "successor")  # judged by their ratio or difference
    if least is not None and not is_other:
        for end in (least, -least) if kind(name).is_signed else (least,):
            axes.axvline(end, color=canvas.RED, linewidth=1.1, zorder=1)
    at = tuple(np.array([place for _, place in listed], dtype=int).reshape(-1, 2).T)
    y = np.arange(len(listed))[::-1]
    for n, side in enumerate(sides):
        rows = y + (0.0 if len(sides) == 1 else (0.16, -0.16)[min(n, 1)])
        color = canvas.MODEL_COLORS.get(side, canvas.BLUE)
        value, low, high = (scores.grid(doc, side, name, k)[at] for k in ("score", "low", "high"))
        wide = [scores.grid(doc, side, name, k)[at] for k in ("low_all", "high_all")]
        wide = wide if kind(name).is_signed else [np.maximum(end, 0.0) for end in wide]
        axes.hlines(rows, *wide, color=color, linewidth=0.9, alpha=0.8, zorder=3)
        axes.hlines(rows, low, high, color=color, linewidth=2.4, alpha=0.55, zorder=3)
        text = side if len(sides) > 1 else "score"
        axes.plot(value, rows, "o", markersize=5, color=color, label=text, zorder=4)
        for key, (marker, said) in _MARKS.items():
            null = scores.grid(doc, side, name, key)[at]
            look: dict[str, Any] = {"markersize": 6, "markeredgewidth": 1.3, "color": "#8a8f94"}
            label = said if n == 0 and np.isfinite(null).any() else None
            axes.plot(null, rows, marker, label=label, zorder=2, **look)
    axes.set_yticks(range(len(listed)), [text for text, _ in listed][::-1], fontsize=8)
    axes.set_ylim(-0.6, max(len(listed), 4) - 0.4)
    axes.grid(visible=False, axis="y")
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, 0.0) if not kind(name).is_signed else left, right)
    if kind(name).is_signed:
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=1)
    axes.set_title("highest heads, 95 % intervals")
    found = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if least is not None and not is_other:
        found[f"threshold {least:g}"] = axes.plot([], [], color=canvas.RED, linewidth=1.1)[0]
    order = [text for text in sides if text in found]
    order += [text for text in found if text not in order]
    axes.legend(
        [found[text] for text in order],
        order,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.4 / inches),
        ncols=3,
        fontsize=7,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.0,
    )
