"""Weight by distance: the profile of every head, the steepest with their intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mlxroles.heads import head_name
from mlxroles.plots import canvas
from mlxroles.report.heads import scores

Doc = Mapping[str, Any]

_OFFSETS = 64
_NAMED = 6
_FAINT = 400
"""Heads that are drawn without a name, at most."""
_COLORS = (
    canvas.BLUE,
    canvas.VERMILION,
    canvas.PURPLE,
    canvas.BROWN,
    canvas.ORANGE,
    canvas.SLATE,
)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_TICKS = (0, 1, 2, 4, 8, 16, 32, 63)


def profile(doc: Doc) -> Figure | None:
    """A panel per model; None where no profile is known."""
    sides = [s for s in scores.sides(doc) if np.isfinite(scores.profile(doc, s)[1]).any()]
    if not sides:
        return None
    figure = canvas.new_figure(max(5.2 * len(sides) + 0.4, 6.8), 4.3)
    panels = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for side, axes in zip(sides, panels, strict=True):
        _panel(axes, doc, side)
        if len(sides) > 1:
            axes.set_title(side)
    panels[0].set_ylabel("mean attention weight")
    about = "Text; named: the heads with the highest peak beyond offset 0, with 95 % intervals"
    canvas.dress(figure, doc, "Attention by distance", about)
    return figure


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))


def _panel(axes: Axes, doc: Doc, side: str) -> None:
    offsets, mean, low, high = scores.profile(doc, side)
    x = np.asarray(offsets[:_OFFSETS], dtype=np.float64)
    mean, low, high = (cube[..., :_OFFSETS] for cube in (mean, low, high))
    layers, heads, _ = mean.shape
    flat = mean.reshape(layers * heads, -1)
    with np.errstate(invalid="ignore"):
        peaks = np.nan_to_num(flat[:, 1:] if flat.shape[1] > 1 else flat, nan=-1.0).max(axis=1)
    order = [int(n) for n in np.argsort(-peaks, kind="stable") if peaks[n] >= 0]
    rest = [np.column_stack([x, flat[n]]) for n in order[_NAMED : _NAMED + _FAINT]]
    axes.set_xscale("function", functions=(_root, np.square))
    axes.add_collection(LineCollection(rest, colors="#9aa3aa", linewidths=0.6, alpha=0.45))
    for n, at in reversed(list(enumerate(order[:_NAMED]))):
        layer, head = divmod(at, heads)
        top = int(np.argmax(np.nan_to_num(flat[at, 1:], nan=-1.0))) + 1 if len(x) > 1 else 0
        ends = (low[layer, head], high[layer, head])
        known = np.isfinite(ends[0]) & np.isfinite(ends[1])
        axes.fill_between(x, *ends, where=known.tolist(), color=_COLORS[n], alpha=0.22, linewidth=0)
        axes.plot(
            x,
            flat[at],
            color=_COLORS[n],
            marker=_MARKERS[n],
            markersize=3.4,
            linewidth=1.4,
            zorder=4 + _NAMED - n,
            label=f"{head_name(layer, head)}: {flat[at, top]:.2f} at offset {offsets[top]}",
        )
    last = float(x.max()) if x.size else 1.0
    axes.set_xticks([t for t in _TICKS if t <= last])
    axes.set_xlim(0.0, last)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("offset: positions back, root scale")
    handles, labels = axes.get_legend_handles_labels()
    if rest:
        handles = [axes.plot([], [], color="#9aa3aa", linewidth=0.8)[0], *handles]
        labels = [f"the other {len(order) - _NAMED} heads", *labels]
    axes.legend(handles[::-1], labels[::-1], loc="upper right")
