"""A figure with its title, a line that says how to read it, panels, and a legend below them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from mlxroles.plots import canvas
from mlxroles.plots.roles.subject import Doc

_HANDLE_INCHES, _LETTER_INCHES = 0.6, 0.072
_LEGEND_ENTRIES = 24


class Frame(NamedTuple):
    """A figure and where things are drawn in it."""

    figure: Figure
    body: SubFigure
    """All but the title and the small print."""
    panels: list[list[Axes]]
    """Panels by row and column."""


def frame(
    doc: Doc,
    what: tuple[str, str],
    size: tuple[float, float],
    *,
    note: str = "",
    **layout: Any,
) -> Frame:
    """A dressed figure with panels.

    Args:
        doc: the document the title and the small print are taken from.
        what: the title, and its second line.
        size: width and height in inches.
        note: how to read it, in one or two lines.
        layout: for ``subplots``: ``nrows``, ``ncols``, ``sharey`` ...
    """
    figure = canvas.new_figure(*size)
    body: SubFigure = figure.subfigures(squeeze=False)[0][0]
    panels = body.subplots(squeeze=False, **layout)
    if note:
        body.suptitle(note, x=0.01, ha="left", fontsize=9, color="#555555")
    canvas.dress(figure, doc, what[0], what[1])
    return Frame(figure, body, [list(row) for row in np.asarray(panels)])


def legend(found: Frame, extra: Iterable[Artist] = ()) -> None:
    """One legend below all panels: what is labelled in them, each name once, then the extra."""
    entries: dict[str, Artist] = {}
    for axes in (axes for row in found.panels for axes in row):
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    entries |= {str(handle.get_label()): handle for handle in extra}
    if not entries:
        return
    names, handles = list(entries)[:_LEGEND_ENTRIES], list(entries.values())[:_LEGEND_ENTRIES]
    found.body.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=_columns(names, found.figure.get_figwidth()),
        frameon=False,
        columnspacing=1.6,
    )


def _columns(names: list[str], width: float) -> int:
    """The most columns that fit into so many inches; entries run down the columns."""
    for columns in range(len(names), 1, -1):
        rows = -(-len(names) // columns)
        widest = [max(map(len, names[at : at + rows])) for at in range(0, len(names), rows)]
        if sum(_HANDLE_INCHES + _LETTER_INCHES * length for length in widest) <= 0.97 * width:
            return columns
    return 1
