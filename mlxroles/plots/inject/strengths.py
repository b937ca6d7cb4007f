"""Layer by strength: the map of every spot, and the dose curve of the strongest layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlxroles import documents
from mlxroles.plots import canvas, maps
from mlxroles.report.inject.rows import families, rows_of
from mlxroles.report.inject.wording import ALL, ALPHA, headline_tests, number, share, where

Doc = Mapping[str, Any]
Family = tuple[str, str, tuple[str, str] | None]

NARROWEST = 6.8
"""Inches in which the title and the small print have room."""
_MAIN = {"battery": "score", "prompts": "shift", "localise": "right"}
_MOST_PANELS, _NUMBERED = 8, 120


def about(doc: Doc) -> str:
    """The second line of a title: what was injected where."""
    names = ", ".join(canvas.label(name, 24) for name in doc["vectors"][:3])
    more = f" and {len(doc['vectors']) - 3} more" if len(doc["vectors"]) > 3 else ""
    count = canvas.counted(len(doc["prompts"]), "prompt")
    return f"{names}{more} at {canvas.label(where(doc), 50)}, {count}"


def unit(doc: Doc) -> str:
    """What is mapped."""
    return {
        "battery": "2x2 score, nats",
        "prompts": f"shift of the {canvas.label(doc['headline'], 40)}, nats",
        "localise": "share right",
    }[doc["mode"]]


def grids(doc: Doc) -> Figure | None:
    """Layer by strength, one panel per model, vector and kind of prompt."""
    shown = _shown(doc)
    if not shown:
        return None
    key = _MAIN[doc["mode"]]
    tables = [_table(doc, family, key) for family in shown]
    values = [table[0] for table in tables]
    if key == "right":
        chance = max(documents.number(row, "chance") for row in doc["rows"])
        norm: Normalize = Normalize(2 * chance - 1, 1.0)
    else:
        norm, _ = maps.centred(values)
    rows = max(len(grid) for grid in values)
    columns = min(len(shown), 2)
    lines = -(-len(shown) // columns)
    height = min(max(1.3 + 0.3 * rows, 2.2), 8.0)
    figure = canvas.new_figure(max(4.6 * columns + 0.8, NARROWEST), height * lines + 1.2)
    widths = [max(grid.shape[1] for grid in values[at::columns]) + 0.5 for at in range(columns)]
    widths = [max(width, 2.0) for width in widths]
    panels = figure.subplots(lines, columns, squeeze=False, width_ratios=widths)
    image = None
    for at, (family, (grid, found)) in enumerate(zip(shown, tables, strict=True)):
        axes = panels.flat[at]
        image = maps.picture(axes, grid, norm)
        _dress(axes, doc, family, grid, found)
    for axes in list(panels.flat)[len(shown) :]:
        axes.set_visible(False)
    if image is not None:
        where = list(panels.flat)
        bar = figure.colorbar(image, ax=where, label=unit(doc), shrink=0.85, pad=0.015)
        if key == "right":
            bar.ax.set_ylim(0, 1)  # colours are centred on chance, shares begin at none
    canvas.dress(figure, doc, "What an injection does, by layer and scale", about(doc))
    return figure


def _shown(doc: Doc) -> list[Family]:
    """The mean over vectors and the strongest ones, as many as there is room for."""
    found = families(doc)
    strongest = [test["vector"] for model in doc["models"] for test in headline_tests(doc, model)]
    order = {ALL: 0} | {name: 1 for name in strongest if name != ALL}
    keep = sorted(found, key=lambda family: order.get(family[1], 2))[:_MOST_PANELS]
    return [family for family in found if family in keep]


def _table(
    doc: Doc, family: Family, key: str
) -> tuple[np.ndarray, list[list[Mapping[str, Any] | None]]]:
    rows = rows_of(doc, *family)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    at = {(row["layer"], row["scale"]): row for row in rows}
    cells = [[at.get((layer, scale)) for scale in scales] for layer in layers]
    grid = [[_value(cell, key) for cell in line] for line in cells]
    return np.array(grid, dtype=np.float64), cells


def _value(cell: Mapping[str, Any] | None, key: str) -> float:
    """The number of a cell; none where the controls are no longer answered."""
    is_tested = cell is not None and cell.get("answers") is not False
    return documents.number(cell, key) if is_tested else np.nan


def _dress(
    axes: Axes,
    doc: Doc,
    family: Family,
    grid: np.ndarray,
    cells: Sequence[Sequence[Mapping[str, Any] | None]],
) -> None:
    model, name, kind = family
    what = "mean of all vectors" if name == ALL and ALL not in doc["vectors"] else name
    title = f"{model}: {canvas.label(what, 28)}"
    if kind is not None:
        added = f"{title}, added ({kind[0]})"
        title = added if kind[1] == "add" else f"{model}: out ({kind[0]})"
    axes.set_title(title)
    known = [[cell for cell in line if cell is not None] for line in cells]
    step = max(1, len(known) // 12)
    axes.set_yticks(range(0, len(known), step), [str(row[0]["layer"]) for row in known[::step]])
    scales = [cell["scale"] for cell in known[0]]
    axes.set_xticks(range(len(scales)), [s if isinstance(s, str) else f"{s:g}" for s in scales])
    axes.set_xlabel("scale")
    axes.set_ylabel("layer")
    is_small = grid.size <= _NUMBERED
    best = _best(cells)
    for r, line in enumerate(cells):
        for c, cell in enumerate(line):
            if cell is None:
                continue
            is_tested = cell.get("answers") is not False
            marked = is_tested and documents.number(cell, "p") <= ALPHA
            if not is_tested:
                axes.plot(c, r, "x", markersize=7, color="#777777", markeredgewidth=1)
            elif is_small:
                text = share(grid[r, c]) if doc["mode"] == "localise" else number(grid[r, c])
                ink: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 7,
                    "color": canvas.INK,
                }
                axes.text(c, r, text, **ink, bbox=_PLATE)
            if marked:
                axes.plot(c + 0.38, r + 0.32, "o", markersize=3, color=canvas.INK)
    if best is not None:
        corner = (best[1] - 0.5, best[0] - 0.5)
        look: dict[str, Any] = {"edgecolor": canvas.INK, "linewidth": 1.6, "zorder": 5}
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, clip_on=False, **look))


_PLATE = {"facecolor": "white", "alpha": 0.65, "edgecolor": "none", "pad": 0.8}


def _best(cells: Sequence[Sequence[Mapping[str, Any] | None]]) -> tuple[int, int] | None:
    """The place that a test is about: the smallest p over all spots, then the largest value."""
    ranked = []
    for r, line in enumerate(cells):
        for c, cell in enumerate(line):
            p = np.nan if cell is None else documents.number(cell, "p_max")
            if cell is None or np.isnan(p):
                continue
            key = next(k for k in ("score", "shift", "right") if k in cell)
            ranked.append((-p, abs(documents.number(cell, key)), (r, c)))
    return max(ranked)[2] if ranked else None


def dose(doc: Doc) -> Figure | None:
    """The strongest layer of each model at every strength, beside the random vectors' range."""
    tests = [
        (model, test)
        for model in doc["models"]
        for test in headline_tests(doc, model)
        if test["scale"] != "out" and not np.isnan(documents.number(test, "p_any"))
    ]
    curves = [(model, test, _curve(doc, test)) for model, test in tests]
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves:
        return None
    key = _MAIN[doc["mode"]]
    is_prompts = doc["mode"] == "prompts"
    width = 2 if is_prompts else 1
    figure = canvas.new_figure(max(3.4 * width + 3.0, NARROWEST), 3.9)
    panels = figure.subplots(1, width, squeeze=False)[0]
    for model, test, rows in curves:
        color = canvas.MODEL_COLORS.get(model, canvas.GREY)
        name = f"{model}, layer {test['layer']}"
        name += f" ({test['role']})" if "role" in test else ""
        _band(panels[0], rows, (key, "random_low", "random_high"), color, name)
        if is_prompts:
            _band(panels[1], rows, ("probability", "random_least", "random_most"), color, name)
    panels[0].set_ylabel(unit(doc))
    panels[0].legend()
    if doc["mode"] == "localise":
        panels[0].axhline(curves[0][1]["chance"], color="#777777", linestyle=":")
    if is_prompts:
        panels[1].set_ylabel("probability")
        panels[1].set_ylim(-0.03, 1.03)
    for axes in panels:
        axes.set_xlabel("scale")
    canvas.dress(figure, doc, "How strong it has to be", about(doc))
    return figure


def _curve(doc: Doc, test: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    family = (test["role"], test["test"]) if "role" in test else None
    rows = rows_of(doc, test["model"], test["vector"], family)
    chosen = [row for row in rows if row["layer"] == test["layer"] and row["scale"] != "out"]
    return sorted(chosen, key=lambda row: row["scale"])


def _band(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    keys: tuple[str, str, str],
    color: str,
    name: str,
) -> None:
    """A line with its interval as whiskers over the range of the random vectors."""
    x = [row["scale"] for row in rows]
    y, low, high = ([documents.number(row, key) for row in rows] for key in keys)
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(x, y, "o-", color=color, label=name)
    bounds = [row.get(f"{keys[0]}_ci") for row in rows]
    for at, value in enumerate(bounds):
        if value and None not in value:
            axes.vlines(x[at], value[0], value[1], color=color, linewidth=1)
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
