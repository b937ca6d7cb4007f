"""What each head does: a tile per head in the colour of its kind, and the kinds by depth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from mlxroles.plots import canvas, maps
from mlxroles.report.heads import scores
from mlxroles.report.heads.wording import INKS, NONE, in_order, is_light, kind, said

Doc = Mapping[str, Any]

_EMPTY, _UNSEEN = "#eceff1", "#ffffff"
_LEAST = 0.45
"""Side of the tile of the weakest head, as a share of its cell."""
_FULL = 0.92
_DEPTH_INCHES = 1.15
_LETTER = (4.5, 11.0)
_POINTS = 72.0
_DOTTED = 16.0
"""Points of a cell from which on it has dots."""


def overview(doc: Doc) -> Figure | None:
    """A map per model; None where no head was seen."""
    sides = scores.sides(doc)
    if not any(scores.is_seen(doc, side).any() for side in sides):
        return None
    layers, heads = scores.shape(doc, sides[0])
    widest = 8.2 if len(sides) == 1 else 4.4
    wide = min(max(0.42 * heads, 2.4), widest)
    room = wide, min(max(0.36 * layers, 1.5), 8.4, max(1.25 * wide / heads * layers, 1.5))
    legend = _legend_rows(doc, len(sides) * (room[0] + _DEPTH_INCHES))
    figure = canvas.new_figure(
        max(len(sides) * (room[0] + _DEPTH_INCHES + 0.45) + 0.3, 6.6), room[1] + 1.75 + 0.2 * legend
    )
    grid = figure.add_gridspec(
        2,
        2 * len(sides),
        width_ratios=[room[0], _DEPTH_INCHES] * len(sides),
        height_ratios=[room[1], 0.25 + 0.2 * legend],
    )
    panels = [figure.add_subplot(grid[0, n]) for n in range(2 * len(sides))]
    for n, side in enumerate(sides):
        _map(panels[2 * n], doc, side, room)
        _depth(panels[2 * n + 1], doc, side)
        name = side if len(sides) > 1 else ""
        panels[2 * n].set_title(f"{name}{': ' if name else ''}{_count(doc, side)}")
    panels[0].set_ylabel("layer")
    _legend(figure.add_subplot(grid[1, :]), doc, legend)
    about = "Tile: the kind of the head, larger where its score is; dot: a second kind holds too"
    canvas.dress(figure, doc, "What each head does", about)
    return figure


def _count(doc: Doc, side: str) -> str:
    total = int(scores.is_seen(doc, side).sum())
    return f"{total - scores.counts(doc, side)[NONE]} of {total} heads have a kind"


def _map(axes: Axes, doc: Doc, side: str, room: tuple[float, float]) -> None:
    layers, heads = scores.shape(doc, side)
    known, share, seen = (
        scores.classes(doc, side),
        scores.strength(doc, side),
        scores.is_seen(doc, side),
    )
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    tiles: list[Rectangle] = []
    colors: list[str] = []
    for layer in range(layers):
        for head in range(heads):
            is_seen = bool(seen[layer, head])
            tiles.append(_tile(layer, head, _FULL))
            colors.append(_EMPTY if is_seen else _UNSEEN)
            name = known[layer][head]
            if name != NONE:
                tiles.append(_tile(layer, head, _side(float(share[layer, head]))))
                colors.append(kind(name).color)
    axes.add_collection(PatchCollection(tiles, facecolors=colors, edgecolors="none"))
    _letters(axes, doc, side, room)
    maps.number(axes, list(range(layers)), heads)
    axes.tick_params(length=0, pad=2)


def _side(share: float) -> float:
    share = 0.0 if np.isnan(share) else share
    return _LEAST + (_FULL - _LEAST) * float(np.sqrt(share))


def _tile(layer: int, head: int, side: float) -> Rectangle:
    return Rectangle((head - side / 2, layer - side / 2), side, side)


def _letters(axes: Axes, doc: Doc, side: str, room: tuple[float, float]) -> None:
    """The letter of each kind, and a dot where another one holds, if cells have room for them."""
    layers, heads = scores.shape(doc, side)
    cell = _POINTS * min(room[0] / heads, room[1] / layers)
    size = min(0.5 * cell, _LETTER[1])
    if size < _LETTER[0]:
        return
    share = scores.strength(doc, side)
    for layer, row in enumerate(scores.classes(doc, side)):
        for head, name in enumerate(row):
            if name == NONE:
                continue
            color = kind(name).color
            axes.text(
                head,
                layer,
                kind(name).letter,
                ha="center",
                va="center_baseline",
                fontsize=max(size * _side(float(share[layer, head])) / _FULL, _LETTER[0]),
                fontweight="bold",
                color=INKS[is_light(color)],
                in_layout=False,
            )
            rest = [one for one in scores.also(doc, side, (layer, head)) if one != name]
            for n, one in enumerate(rest[:3] if cell >= _DOTTED else ()):
                axes.plot(
                    [head + 0.36 - 0.2 * n],
                    [layer + 0.36],
                    marker="o",
                    markersize=max(0.13 * cell, 1.5),
                    color=kind(one).color,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    zorder=5,
                )


def _depth(axes: Axes, doc: Doc, side: str) -> None:
    """Kinds by layer: how many heads of each."""
    layers, _ = scores.shape(doc, side)
    known = np.array(scores.classes(doc, side))
    left = np.zeros(layers)
    for name in in_order(known.ravel().tolist()):
        count = (known == name).sum(axis=1)
        axes.barh(range(layers), count, left=left, height=_FULL, color=kind(name).color)
        left += count
    axes.set_ylim(-0.5, layers - 0.5)
    axes.set_xlim(0, max(float(left.max()), 1.0))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    axes.tick_params(length=0, labelsize=7)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("heads with a kind", fontsize=7)


def _entries(doc: Doc) -> list[str]:
    return in_order(one for side in scores.sides(doc) for one in scores.counts(doc, side))


def _columns(width: float) -> int:
    return max(2, int(width / 1.95))


def _legend_rows(doc: Doc, width: float) -> int:
    return -(-(len(_entries(doc)) + 1) // _columns(max(width, 6.6)))


def _legend(axes: Axes, doc: Doc, rows: int) -> None:
    """The kinds that there are, with their letters and how many heads each has."""
    axes.axis("off")
    counted = {side: scores.counts(doc, side) for side in scores.sides(doc)}
    handles = []
    for name in [*_entries(doc), NONE]:
        count = " → ".join(str(found.get(name, 0)) for found in counted.values())
        if name == NONE:
            handles.append(Patch(facecolor=_EMPTY, label=f"nothing holds: {count}"))
            continue
        known = kind(name)
        text = f"{known.letter}  {canvas.label(said(name), 30)}: {count}"
        handles.append(Patch(facecolor=known.color, label=text))
    axes.legend(
        handles=handles,
        title=f"heads of each kind, {' → '.join(counted)}" if len(counted) > 1 else None,
        title_fontsize=8,
        alignment="left",
        loc="center left",
        ncols=-(-len(handles) // rows),
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.4,
        borderpad=0.0,
        fontsize=8,
    )
