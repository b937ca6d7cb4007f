"""Figures of several families: their curves over depth, and every two of them as points."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from mlxroles.plots import canvas, lines
from mlxroles.plots.lines import Series, view
from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.looks import family_look
from mlxroles.plots.roles.subject import Doc, numbers
from mlxroles.roles import correlate
from mlxroles.roles.correlate import Profile
from mlxroles.text import format_number

_DEPTH_MAP = "cividis"
_PANELS, _COLUMNS = 9, 3
_NAME_LIMIT = 28


def families(correlations: Doc, named: Mapping[str, Profile]) -> Figure | None:
    """The curve of every family over relative depth, with its interval."""
    series = [_series(index, name, profile) for index, (name, profile) in enumerate(named.items())]
    if not any(np.isfinite(each.values).any() for each in series):
        return None
    metric = _metric(correlations)
    made = frame(
        correlations,
        (f"{metric}, instruct − base", canvas.counted(len(series), "family", "families")),
        (8.6, 4.9),
        note="Bands: 95 % intervals. Triangles: layers far outside the view.",
    )
    axes = made.panels[0][0]
    limits = lines.view(series, levels=[0.0])
    axes.set_xlim(-0.02, 1.02)
    axes.axhline(0.0, color="#999999", linewidth=0.8, zorder=1)
    for each, profile in zip(series, named.values(), strict=True):
        lines.curve(axes, list(correlate.relative_depth(profile.layers)), each, limits)
    axes.set_ylim(limits)
    axes.set_xlabel("relative depth (last layer: 1)")
    axes.set_ylabel(f"{metric}, instruct − base")
    legend(made)
    return made.figure


def family_pairs(correlations: Doc, named: Mapping[str, Profile]) -> Figure | None:
    """Every two families, layer by layer: r, effective sample size, r without the depth trend."""
    pairs = [
        each for each in correlations.get("pairs") or [] if {each["a"], each["b"]} <= set(named)
    ]
    if not pairs:
        return None
    kept = pairs[:_PANELS]
    n_columns = min(_COLUMNS, len(kept))
    n_rows = -(-len(kept) // n_columns)
    which = (
        canvas.counted(len(pairs), "pair")
        if len(kept) == len(pairs)
        else f"{len(kept)} of {len(pairs)} pairs"
    )
    made = frame(
        correlations,
        (f"{_metric(correlations)}, instruct − base, layer by layer", which),
        (max(3.7 * n_columns + 0.9, 6.4), 3.7 * n_rows + 1.2),
        note="Ring: the layer that r depends on most. Detrended: without a quadratic in depth.\n"
        "With its numbers, on the edge: a layer far outside.",
        nrows=n_rows,
        ncols=n_columns,
    )
    panels = [axes for row in made.panels for axes in row]
    for axes in panels[len(kept) :]:
        axes.set_visible(False)
    images = [_scatter(axes, pair, named) for axes, pair in zip(panels, kept, strict=False)]
    made.body.colorbar(
        images[0],
        ax=panels,
        label="relative depth",
        pad=0.02,
        aspect=30,
        shrink=min(1.0, 1.6 / n_rows),
    )
    return made.figure


def _series(index: int, name: str, profile: Profile) -> Series:
    low, high = (
        (numbers(side) for side in zip(*profile.ci, strict=True)) if profile.ci else (None, None)
    )
    look = family_look(index)
    return Series(canvas.label(name, _NAME_LIMIT), *look, numbers(profile.values), low, high)


def _scatter(axes: Axes, pair: Doc, named: Mapping[str, Profile]) -> PathCollection:
    _, layers, first, second = correlate.aligned(named[pair["a"]], named[pair["b"]])
    for line in (axes.axhline, axes.axvline):
        line(0.0, color="#999999", linewidth=0.8, zorder=1)
    axes.set_xlim(view([Series("", "", "", first)], levels=[0.0]))
    axes.set_ylim(view([Series("", "", "", second)], levels=[0.0]))
    x, y = np.clip(first, *axes.get_xlim()), np.clip(second, *axes.get_ylim())
    image = axes.scatter(
        x,
        y,
        c=correlate.relative_depth(layers),
        cmap=_DEPTH_MAP,
        vmin=0.0,
        vmax=1.0,
        s=22,
        edgecolors="white",
        linewidths=0.4,
        clip_on=False,
        zorder=3,
    )
    for at in np.flatnonzero((np.abs(x - first) > 0) | (np.abs(y - second) > 0)):
        _name_outlier(
            axes, (x[at], y[at]), f"layer {layers[at]}: {first[at]:.2g}, {second[at]:.2g}"
        )
    if pair.get("most_influential_layer") in layers:
        ringed = list(layers).index(pair["most_influential_layer"])
        axes.plot(
            x[ringed],
            y[ringed],
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=canvas.INK,
            clip_on=False,
            zorder=4,
        )
    axes.set_xlabel(canvas.label(pair["a"], _NAME_LIMIT))
    axes.set_ylabel(canvas.label(pair["b"], _NAME_LIMIT))
    axes.set_title("\n".join(_figures(pair)), fontsize=8.5, fontweight="normal", linespacing=1.35)
    axes.locator_params(nbins=5)
    return image


def _name_outlier(axes: Axes, at: tuple[float, float], text: str) -> None:
    """Says where a point really is that is drawn on the edge."""
    middle = [sum(limits) / 2 for limits in (axes.get_xlim(), axes.get_ylim())]
    is_left, is_low = at[0] <= middle[0], at[1] <= middle[1]
    axes.annotate(
        text,
        at,
        xytext=(6 if is_left else -6, 6 if is_low else -6),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="bottom" if is_low else "top",
        fontsize=8,
    )


def _figures(pair: Doc) -> Sequence[str]:
    """What stands above a panel."""
    name = {
        key: format_number(float("nan") if pair.get(key) is None else pair[key], form)
        for key, form in (
            ("pearson_r", "+.2f"),
            ("pearson_low", "+.2f"),
            ("pearson_high", "+.2f"),
            ("n_eff", ".1f"),
            ("n_eff_p", ".3f"),
            ("detrended_r", "+.2f"),
            ("detrended_p", ".3f"),
            ("r_without_it", "+.2f"),
        )
    }
    return (
        f"r = {name['pearson_r']} [{name['pearson_low']}, {name['pearson_high']}], "
        f"without the ring {name['r_without_it']}",
        f"n = {pair['n_layers']}, effective {name['n_eff']}, p = {name['n_eff_p']}",
        f"detrended r = {name['detrended_r']}, p = {name['detrended_p']}",
    )


def _metric(correlations: Doc) -> str:
    return canvas.label(correlations.get("metric") or "difference", 12).upper()
