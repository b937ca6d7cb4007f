"""Figures of where one model looks: the weight on the first keys and on the most recent ones.

Counted are the queries that can see more than these keys. Others put all their weight on them
whatever the model does, and for queries before the sixth the first three keys and the three most
recent ones overlap.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mlxroles.plots import canvas, lines
from mlxroles.plots.lines import Series
from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.layers import NULL, intervals
from mlxroles.plots.roles.subject import Numbers, Subject, category_mean, shown
from mlxroles.roles.table import NEAR, Entropies, Reading
from mlxroles.stats import Interval, percentile_interval, resample_counts, weighted_means

_PANELS, _COLUMNS = 8, 4
_RESAMPLES = 2000


def first_keys(subject: Subject) -> Figure | None:
    """Weight on the first three keys per head, at up to eight evenly spaced layers."""
    table = subject.table
    if table is None or not (counted := _queries(table, subject.reading, NEAR)).any():
        return None
    weights = _weight(table.first_keys, counted)
    rows = np.unique(np.linspace(0, len(table.layers) - 1, _PANELS).round().astype(int))
    n_columns = min(_COLUMNS, len(rows))
    n_rows = -(-len(rows) // n_columns)
    used = int(counted.any(axis=1).sum())
    made = frame(
        subject.doc,
        (f"Weight on the first {NEAR} keys", subject.about()),
        (max(2.7 * n_columns, 8.0) + 0.6, 2.1 * n_rows + 1.7),
        note=f"Mean over queries {NEAR} and later, which {used} of {len(counted)} prompts have.",
        nrows=n_rows,
        ncols=n_columns,
        sharex=True,
        sharey=True,
    )
    panels = [axes for row in made.panels for axes in row]
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    means = {
        name: category_mean(weights, subject.members(name)) for name in subject.doc["categories"]
    }
    expected = _uniform(counted)
    known = np.isfinite(expected)
    null = float(expected[known].mean())
    for axes, row in zip(panels, rows, strict=False):
        _dots(axes, subject, {name: values[row] for name, values in means.items()}, null)
        axes.set_title(f"layer {table.layers[row]}")
    for axes in panels[max(len(rows) - n_columns, 0) : len(rows)]:
        axes.set_xlabel("head")
        axes.tick_params(labelbottom=True)
    for row_of_panels in made.panels:
        row_of_panels[0].set_ylabel("weight")
    legend(made, [lines.level_handle(f"{NULL}: {null:.2f}")])
    return made.figure


def first_last(subject: Subject) -> Figure | None:
    """Focus - reference of the weight on the first and on the three most recent keys, per layer."""
    table = subject.table
    if table is None or subject.contrast is None:
        return None
    counted = _queries(table, subject.reading, 2 * NEAR - 1)
    used = counted.sum(axis=1) > 0
    groups = (subject.contrast.focus, subject.contrast.reference)
    members = [subject.members(name)[used[subject.members(name)]] for name in groups]
    if not all(found.size for found in members):
        return None
    expected = category_mean(_uniform(counted), members[0]) - category_mean(
        _uniform(counted), members[1]
    )
    counts = _counts(subject, used)
    series = []
    for name, weights, look in (
        (f"first {NEAR} keys", table.first_keys, (canvas.PURPLE, "o")),
        (f"{NEAR} most recent keys", table.recent_keys, (canvas.VERMILION, "s")),
    ):
        per_layer = _over_heads(_weight(weights, counted))
        value = category_mean(per_layer, members[0]) - category_mean(per_layer, members[1])
        bounds = _interval(per_layer, members, counts)
        series.append(Series(name, *look, value, bounds.low, bounds.high, level=None))
    if not any(np.isfinite(each.values).any() for each in series):
        return None
    return _first_last(subject, series, float(expected), [len(found) for found in members])


def _first_last(
    subject: Subject, series: Sequence[Series], expected: float, sizes: Sequence[int]
) -> Figure:
    assert subject.contrast is not None
    assert subject.table is not None
    focus, reference = shown(subject.contrast.focus), shown(subject.contrast.reference)
    made = frame(
        subject.doc,
        ("First and most recent keys", subject.about()),
        (10.0, 4.9),
        note=f"{intervals(series)} Only queries {2 * NEAR - 1} and later, where the sets do not "
        f"overlap,\nof {sizes[0]} {focus} and {sizes[1]} {reference} prompts.",
    )
    axes = made.panels[0][0]
    limits = lines.view(series, levels=[0.0, expected])
    canvas.layer_axis(axes, subject.table.layers)
    axes.axhline(0.0, color="#999999", linewidth=0.8, zorder=1)
    axes.axhline(expected, color="#555555", linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    for each in series:
        lines.curve(axes, subject.table.layers, each, limits)
    axes.set_ylim(limits)
    axes.set_ylabel("difference of weight (of 1)")
    axes.set_title(f"{focus} − {reference}")
    legend(made, [lines.level_handle(NULL)])
    return made.figure


def _queries(table: Entropies, reading: Reading, least: int) -> NDArray[np.bool_]:
    """The queries that count and stand at ``least`` or later [prompt, query]."""
    counted = table.counted(reading).copy()
    counted[:, :least] = False
    return counted


def _weight(near: np.ndarray, counted: NDArray[np.bool_]) -> Numbers:
    """Mean over the counted queries of the sum over three keys [prompt, layer, head]."""
    found = np.full(near.shape[:3], np.nan)
    for prompt, which in enumerate(counted):
        if which.any():
            chosen = near[prompt][:, :, which].astype(np.float64)
            found[prompt] = chosen.sum(axis=-1).mean(axis=-1)
    return found


def _uniform(counted: NDArray[np.bool_]) -> Numbers:
    """What uniform causal attention puts on any three keys, mean over the queries [prompt]."""
    share = NEAR / np.maximum(np.arange(counted.shape[1]) + 1.0, NEAR)
    count = counted.sum(axis=1)
    return np.where(count > 0, (counted * share).sum(axis=1), np.nan) / np.maximum(count, 1)


def _over_heads(weights: Numbers) -> Numbers:
    """Mean over the heads that a layer has [prompt, layer]."""
    return category_mean(np.moveaxis(weights, 2, 0), np.arange(weights.shape[2]))


def _counts(subject: Subject, used: NDArray[np.bool_]) -> Numbers:
    """Resamples of the prompts that are used, within each category [resample, prompt]."""
    assert subject.table is not None
    index = np.flatnonzero(used)
    labels = [subject.table.category[i] for i in index]
    rng = np.random.default_rng(int(subject.doc.get("seed") or 0))
    counts = np.zeros((_RESAMPLES, len(used)))
    counts[:, index] = resample_counts(labels, rng, n_resamples=_RESAMPLES)
    return counts


def _interval(values: Numbers, members: Sequence[NDArray[np.integer]], counts: Numbers) -> Interval:
    """The interval of the difference of two categories; none with a single prompt in either."""
    if min(len(found) for found in members) < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return Interval(nothing, nothing)
    means = [weighted_means(values, found, counts) for found in members]
    return percentile_interval(means[0] - means[1])


def _dots(axes: Axes, subject: Subject, means: dict[str, Numbers], null: float) -> None:
    """One dot per head and category, and a grey line over their span."""
    stacked = np.stack(list(means.values()))
    at = np.arange(stacked.shape[1])
    known = np.isfinite(stacked).any(axis=0)
    low = np.where(np.isfinite(stacked), stacked, np.inf).min(axis=0)[known]
    high = np.where(np.isfinite(stacked), stacked, -np.inf).max(axis=0)[known]
    axes.vlines(at[known], low, high, color="#bbbbbb", linewidth=1.2, zorder=2)
    axes.axhline(null, color="#555555", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for name, values in means.items():
        axes.plot(
            at,
            values,
            linestyle="none",
            marker=subject.looks[name].marker,
            color=subject.looks[name].color,
            markersize=6.0 if len(at) <= 16 else 3.8,
            markeredgewidth=0,
            label=shown(name),
            zorder=3,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(-0.7, len(at) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(visible=False, axis="x")
