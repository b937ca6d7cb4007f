"""Estimates against exact effects of the same cells, a panel per site."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.plots.attribution.maps import about
from mlxroles.report.attribution import rows

_ONE_ROW = 4
_SPREAD = 12.0
"""Axes are logarithmic away from zero where the largest value is so many times the median."""
_NAMED = 2
_APART = 5
"""Points by which the names of neighbouring cells are moved away from each other."""
_KINDS = {"largest": (canvas.BLUE, canvas.BLUE), "random": ("white", canvas.VERMILION)}


def scatter(doc: Mapping[str, Any], direction: str) -> Figure | None:
    """Exact effect over estimate; None where nothing was run exactly."""
    found = [(site, entry) for site, entry in rows.verified(doc, direction) if entry["rows"]]
    if not found:
        return None
    columns = len(found) if len(found) <= _ONE_ROW else -(-len(found) // 2)
    n_rows = -(-len(found) // columns)
    figure = canvas.new_figure(max(2.9 * columns + 0.4, 5.0), 2.9 * n_rows + 1.1)
    panels = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for axes, (site, entry) in zip(panels, found, strict=False):
        _panel(axes, site, entry)
    for axes in panels[len(found) :]:
        axes.axis("off")
    for at, axes in enumerate(panels[: len(found)]):
        if at % columns == 0:
            axes.set_ylabel("exact")
        if at + columns >= len(found):
            axes.set_xlabel("estimate")
    handles = [
        Line2D([], [], linestyle="none", marker="o", label=name, **_look(name)) for name in _KINDS
    ]
    panels[0].legend(handles=handles, loc="upper left", handletextpad=0.1)
    title = f"{documents.arrow(direction)}, estimates against exact effects"
    canvas.dress(figure, doc, title, about(doc))
    return figure


def _look(kind: str) -> dict[str, Any]:
    face, edge = _KINDS[kind]
    return {"markerfacecolor": face, "markeredgecolor": edge, "markersize": 4.5}


def _panel(axes: Axes, site: str, entry: Mapping[str, Any]) -> None:
    known = [r for r in entry["rows"] if not math.isnan(documents.number(r, "exact"))]
    x, y = (np.array([documents.number(r, n) for r in known]) for n in ("estimate", "exact"))
    end = 1.12 * max(float(np.abs(np.concatenate([x, y])).max(initial=0.0)), 1e-9)
    axes.plot([-2 * end, 2 * end], [-2 * end, 2 * end], color="#999999", linewidth=0.9, zorder=1)
    for kind in ("random", "largest"):
        ours = np.array([r["kind"] == kind for r in known], dtype=bool)
        axes.plot(x[ours], y[ours], linestyle="none", marker="o", zorder=3, **_look(kind))
    _scales(axes, np.abs(np.concatenate([x, y])), end)
    axes.set_box_aspect(1)
    axes.tick_params(labelsize=7)
    complete = bool(entry.get("complete"))
    ranks = documents.number(entry if complete else entry["random"], "spearman")
    cells = "all cells" if complete else "random"
    shown = "" if math.isnan(ranks) else f"   ρ {ranks:.2f} ({cells})"
    axes.set_title(f"{site}{shown}")
    named = np.argsort(-np.abs(x - y), kind="stable")[:_NAMED]
    for order, at in enumerate(sorted(named, key=lambda at: y[at])):
        name = rows.edge(known[at]) if site == "edges" else rows.place(site, known[at])
        on_left = x[at] > 0
        axes.annotate(
            canvas.label(name, 22),
            (x[at], y[at]),
            xytext=(-5 if on_left else 5, _APART * (2 * order - len(named) + 1)),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            fontsize=6,
            color="#555555",
        )


def _scales(axes: Axes, sizes: np.ndarray, end: float) -> None:
    """The same scale along both axes, around zero, logarithmic where few values dwarf the rest."""
    usual = float(np.median(sizes)) if len(sizes) else 0.0
    if not 0 < usual < end / _SPREAD:
        axes.set_xlim(-end, end)
        axes.set_ylim(-end, end)
        axes.locator_params(nbins=5)
        return
    near = max(usual, end / 1000)
    axes.text(
        0.97,
        0.03,
        f"logarithmic beyond ±{near:.1g}",
        transform=axes.transAxes,
        ha="right",
        fontsize=6,
        color="#555555",
    )
    decades = [10.0**n for n in range(math.ceil(math.log10(near)), math.ceil(math.log10(end)))][-2:]
    ticks = [*(-d for d in reversed(decades)), 0.0, *decades]
    for axis, limit, scale in (
        (axes.xaxis, axes.set_xlim, axes.set_xscale),
        (axes.yaxis, axes.set_ylim, axes.set_yscale),
    ):
        scale("symlog", linthresh=near)
        limit(-2 * end, 2 * end)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")
