"""Figures of all heads of one model: where focus differs from the other categories, and how much.

What is shown is the mean entropy per head (E1). The study's map showed mean attention weights,
which say nothing: a row of weights sums to 1, so each of its cells was the mean of 1 / tokens.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mlxroles.plots import maps
from mlxroles.plots.roles.frame import frame
from mlxroles.plots.roles.subject import Numbers, Subject, category_mean, shown
from mlxroles.text import format_number

_SCALE = "difference, entropy / ln(keys seen)"
_EXTEND = {True: "both", False: "neither"}
_PER_LAYER = 3
_BAR_INCHES = 0.42
_LEAST_WIDTH = 8.6
"""Below that many inches the title, the note and the small print are cut."""
_LEAST_SIZE, _MOST_SIZE = 8.0, 80.0


def heads(subject: Subject) -> Figure | None:
    """Maps of E1, focus - reference and focus - confounder, length-normalised."""
    found = _differences(subject, ("reference", "confounder"))
    if not any(np.isfinite(grid).any() for grid in found.values()):
        return None
    table_layers = _layers(subject)
    norm, is_cut = maps.centred(found.values())
    size = (max(4.6 * len(found) + 1.4, _LEAST_WIDTH), _height(len(table_layers)))
    made = frame(
        subject.doc,
        ("Entropy differences per head", subject.about()),
        size,
        note=_null_note(subject, found),
        ncols=len(found),
        sharey=True,
    )
    image = None
    for axes, (other, grid) in zip(made.panels[0], found.items(), strict=True):
        image = maps.cells(axes, grid, table_layers, norm)
        axes.set_title(_title(subject, other))
    made.panels[0][0].set_ylabel("layer")
    if image is not None:
        made.body.colorbar(
            image, ax=made.panels[0], label=_SCALE, extend=_EXTEND[is_cut], pad=0.02, aspect=30
        )
    return made.figure


def top_heads(subject: Subject) -> Figure | None:
    """The three heads of every layer with the largest focus - confounder, the largest named."""
    grid = _differences(subject, ("confounder",)).get("confounder")
    if grid is None or not np.isfinite(grid).any():
        return None
    found = _largest_per_layer(grid)
    norm, is_cut = maps.centred([grid])
    table_layers = _layers(subject)
    made = frame(
        subject.doc,
        ("Heads with the largest differences", subject.about()),
        (10.0, height := min(max(_height(len(table_layers)), 4.4), 6.8)),
        note=f"The {_PER_LAYER} largest of every layer, however small; no test. "
        "Right: the largest of all.",
        ncols=2,
        width_ratios=(3, 2),
    )
    left, right = made.panels[0]
    extreme = max(abs(each.value) for each in found)
    sizes = [
        _LEAST_SIZE + (_MOST_SIZE - _LEAST_SIZE) * abs(each.value) / (extreme or 1.0)
        for each in found
    ]
    drawn = maps.points(left, found, norm, sizes)
    maps.number(left, table_layers, grid.shape[1])
    left.set_ylabel("layer")
    left.set_title(_title(subject, "confounder"))
    made.body.colorbar(drawn, ax=left, extend=_EXTEND[is_cut], pad=0.02, aspect=30)
    largest = sorted(found, key=lambda each: -abs(each.value))[: int(height / _BAR_INCHES)]
    _bars(right, largest, table_layers, norm)
    return made.figure


class _Head(NamedTuple):
    """A head that stands out: row of its layer, number, difference."""

    row: int
    head: int
    value: float


def _largest_per_layer(grid: Numbers) -> list[_Head]:
    """The heads with the largest absolute value per row, at most three, row by row."""
    size = np.where(np.isfinite(grid), np.abs(grid), -1.0)
    order = np.argsort(-size, axis=1, kind="stable")[:, :_PER_LAYER]
    return [
        _Head(row, int(head), float(grid[row, head]))
        for row, best in enumerate(order)
        for head in best
        if np.isfinite(grid[row, head])
    ]


def _bars(axes: Axes, named: list[_Head], layers: list[int], norm: Normalize) -> None:
    """Some heads as bars with their names."""
    at = range(len(named))
    values = [each.value for each in named]
    axes.barh(at, values, color=maps.shades(values, norm), edgecolor="#555555")
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    axes.set_yticks(list(at), [f"layer {layers[each.row]}, head {each.head}" for each in named])
    axes.set_ylim(max(len(named), 6) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(_SCALE)
    axes.locator_params(axis="x", nbins=5)


def _differences(subject: Subject, others: tuple[str, ...]) -> dict[str, Numbers]:
    """Mean E1 of focus - other [layer, head] by the other's part in the contrast."""
    values = subject.per_head
    if values is None or subject.contrast is None:
        return {}
    focus = category_mean(values, subject.members(subject.contrast.focus))
    return {
        other: focus - category_mean(values, subject.members(name))
        for other in others
        if (name := getattr(subject.contrast, other)) is not None
    }


def _null_note(subject: Subject, found: dict[str, Numbers]) -> str:
    """What uniform attention would give here, and in nats."""
    null = subject.doc["null"]["raw"]["category"]
    names = {other: getattr(subject.contrast, other) for other in found}
    focus = null.get(subject.contrast.focus) if subject.contrast else None
    nats = [
        format_number(focus - null[name], "+.3f")
        for name in names.values()
        if focus is not None and null.get(name) is not None
    ]
    note = "Mean entropy over prompts, length-normalised: uniform attention gives 0"
    note += f" ({' and '.join(nats)} nats unnormalised)." if nats else "."
    return f"{note}\nBelow 0: focus prompts have the lower entropy."


def _title(subject: Subject, other: str) -> str:
    assert subject.contrast is not None
    return f"{shown(subject.contrast.focus)} − {shown(getattr(subject.contrast, other))}"


def _layers(subject: Subject) -> list[int]:
    return subject.layers if subject.table is None else list(subject.table.layers)


def _height(layers: int) -> float:
    return min(max(2.6 + 0.2 * layers, 3.6), 9.0)
