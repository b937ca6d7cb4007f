"""Figures of a direct attribution: the largest parts, heads and MLPs by layer, by position."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mlxroles.plots import canvas, maps
from mlxroles.report import direct
from mlxroles.report.attribution.rows import signed
from mlxroles.text import show_token

Doc = Mapping[str, Any]

COLORS = {
    "embedding": canvas.SLATE,
    "head": canvas.BLUE,
    "attention": canvas.BLUE,
    "mlp": canvas.ORANGE,
    "bias": canvas.GREY,
    "edit": canvas.RED,
    "other": canvas.BROWN,
    "rounding": canvas.GREY,
}
_ABOUT = "each part's share of the logit itself, the final norm's scale held"
_SHOWN = 14
_UNIT = "writes to the logit"
_ALL_TOKENS = 48
_ROOM = 0.05
"""Share of the widest bars that is left free beside them for their numbers."""


def parts(doc: Doc, docs: Mapping[str, Doc]) -> Figure:
    """Per document: bars of the largest parts, and a map of heads and MLPs.

    Args:
        doc: the run's document, for the title and the small print.
        docs: name (of a model, of a prompt) -> document of ``direct.Parts``.
    """
    tallest = max(len(direct.head_grid(d)[1]) for d in docs.values())
    height = float(np.clip(0.2 * tallest + 1.4, 3.4, 8.0))
    figure = canvas.new_figure(10.0, height * len(docs) + 0.9)
    panels = figure.subplots(len(docs), 2, squeeze=False, width_ratios=[1.0, 1.3])
    grids = {name: _grid(found) for name, found in docs.items()}
    norm, is_cut = maps.centred([grid.values for grid in grids.values()])
    for (left, right), (name, found) in zip(panels, docs.items(), strict=True):
        _bars(left, found)
        at = f"{canvas.label(name, 40)}, {direct.where(found)}"
        left.set_title(f"{at}\n{canvas.label(direct.sums(found), 60)}")
        image = _map(right, grids[name], norm)
        extend = "both" if is_cut else "neither"
        figure.colorbar(image, ax=right, label=_UNIT, extend=extend, pad=0.01)
    limits = [axes.get_xlim() for axes in panels[:, 0]]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for axes in panels[:, 0]:
        axes.set_xlim(low - _ROOM * (high - low), high + _ROOM * (high - low))
    what = " and ".join(dict.fromkeys(canvas.label(direct.logit(d), 60) for d in docs.values()))
    canvas.dress(figure, doc, f"Direct attribution, {canvas.label(what, 80)}", _ABOUT)
    return figure


def _bars(axes: Axes, doc: Doc) -> None:
    """The largest parts from the top, then the sum of all others."""
    values, shown = direct.means(doc), direct.ranked(doc, _SHOWN)
    rest = [i for i in range(len(values)) if i not in shown]
    names = [canvas.label(doc["names"][i], 24) for i in shown]
    lengths = [float(values[i]) for i in shown]
    colors = [COLORS[doc["kinds"][i]] for i in shown]
    if rest:
        names.append(f"{len(rest)} others")
        lengths.append(float(values[rest].sum()))
        colors.append("#dddddd")
    rows = np.arange(len(names))
    axes.barh(rows, lengths, color=colors, height=0.75)
    axes.set_yticks(rows, names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0.0, color="#888888", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(_UNIT)
    axes.margins(x=0.16)
    for row, length in zip(rows, lengths, strict=True):
        axes.annotate(
            signed(length),
            (length, float(row)),
            xytext=(3 if length >= 0 else -3, 0),
            textcoords="offset points",
            ha="left" if length >= 0 else "right",
            va="center",
            fontsize=6,
        )


class _Grid(NamedTuple):
    """What a map shows: heads, then the parts of a layer that are no heads."""

    values: direct.Numbers
    """[layer, column], NaN where there is no such part."""
    layers: list[int]
    heads: int
    names: list[str]
    """Names of the last columns."""


def _grid(doc: Doc) -> _Grid:
    heads, layers = direct.head_grid(doc)
    found = direct.by_layer(doc).values
    told = np.isfinite(heads).any(axis=1)
    columns = {name: found[:, direct.COLUMNS.index(name)] for name in ("MLP", "other")}
    columns["all heads"] = np.where(told, np.nan, found[:, direct.COLUMNS.index("heads")])
    shown = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    grid = np.column_stack([heads, *shown.values()])
    return _Grid(grid, layers, heads.shape[1], list(shown))


def _map(axes: Axes, grid: _Grid, norm: Normalize) -> AxesImage:
    """Heads by layer, and columns of their own for what is no head, behind a line."""
    image = maps.cells(axes, grid.values, grid.layers, norm)
    step = max(1, -(-grid.heads // 12))
    at = [*range(0, grid.heads, step)]
    named = [grid.heads + n for n in range(len(grid.names))]
    axes.set_xticks([*at, *named], [*(str(h) for h in at), *grid.names])
    if grid.heads:
        for column in named:
            axes.axvline(column - 0.5, color="white", linewidth=3.0)
    axes.set_xlabel("head" if grid.heads else "")
    axes.set_ylabel("layer")
    return image


def positions(doc: Doc, found: Doc, tokens: Sequence[str] = ()) -> Figure | None:
    """What heads and MLP of every layer write, by position; None for a single position.

    Args:
        doc: the run's document, for the title and the small print.
        found: a document of ``direct.Parts`` with several positions.
        tokens: texts of the whole prompt's tokens.
    """
    at = list(found["positions"])
    values = np.asarray(found["values"], dtype=np.float64)
    if len(at) < 2 or values.ndim != 2:
        return None
    names, rows = _rows(found, values)
    grid = np.array(rows)
    height = float(np.clip(0.16 * len(names) + 1.8, 3.0, 10.0))
    figure = canvas.new_figure(float(np.clip(0.2 * len(at) + 3.0, 7.0, 16.0)), height)
    axes = figure.subplots()
    norm, is_cut = maps.centred([grid])
    image = maps.picture(axes, grid, norm)
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names, fontsize=7)
    step = max(1, -(-len(at) // _ALL_TOKENS))
    ticks = list(range(0, len(at), step))
    axes.set_xticks(ticks, [_token(tokens, at[t]) for t in ticks], rotation=90, fontsize=7)
    axes.set_xlabel("position")
    figure.colorbar(image, ax=axes, label=_UNIT, extend="both" if is_cut else "neither", pad=0.01)
    what = canvas.label(direct.logit(found), 60)
    canvas.dress(figure, doc, f"Direct attribution by position, {what}", _ABOUT)
    return figure


def _rows(found: Doc, values: direct.Numbers) -> tuple[list[str], list[direct.Numbers]]:
    """Sums by layer and kind [position] with their names, the sum of all of them first."""
    groups: dict[str, direct.Numbers] = {"all parts": values.sum(axis=0)}
    for name, kind, layer, row in zip(
        found["names"], found["kinds"], found["layers"], values, strict=True
    ):
        key = f"L{layer} heads" if kind == "head" else canvas.label(name, 24)
        groups[key] = groups.get(key, np.zeros(values.shape[1])) + row
    return list(groups), list(groups.values())


def _token(tokens: Sequence[str], at: int) -> str:
    shown = canvas.label(show_token(tokens[at]), 12) if at < len(tokens) else ""
    return f"{shown} {at}".strip()
