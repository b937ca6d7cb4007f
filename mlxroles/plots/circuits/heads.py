"""Panels of single heads: eigenvalues in the plane, scores by distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles.heads import head_name, parse_heads
from mlxroles.plots import canvas
from mlxroles.text import format_number

Doc = Mapping[str, Any]

_MOST, _COLUMNS = 8, 4
_PANEL = 2.3
"""Inches of a panel."""


def spectra(doc: Doc, model: str, eigenvalues: Mapping[int, np.ndarray]) -> Figure | None:
    """OV eigenvalues of the heads that copy most and least, and of those named; None without."""
    chosen = [at for at in _extremes(doc, model) if at[0] in eigenvalues]
    if not chosen:
        return None
    figure, panels = _panels(len(chosen), _PANEL)
    share = doc["models"][model]["ov_share"]["score"]
    for axes, (layer, head) in zip(panels, chosen, strict=False):
        values = eigenvalues[layer][head]
        largest = np.abs(values).max() or 1.0
        shown = values / largest
        axes.axhline(0, color="#bbbbbb", linewidth=0.7, zorder=1)
        axes.axvline(0, color="#bbbbbb", linewidth=0.7, zorder=1)
        colors = np.where(shown.real >= 0, canvas.BLUE, canvas.ORANGE)
        axes.scatter(
            shown.real, shown.imag, s=14, c=list(colors), alpha=0.8, linewidths=0, zorder=3
        )
        axes.set_xlim(-1.12, 1.12)
        axes.set_ylim(-1.12, 1.12)
        axes.set_aspect("equal")
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([-1, 0, 1])
        axes.set_title(f"{head_name(layer, head)}  {format_number(share[layer][head], '+.2f')}")
    _ends(panels, len(chosen), "real part", "imaginary part")
    about = "each over the largest of its head; in the title real parts over absolute values"
    name = f", {model}" if len(doc["models"]) > 1 else ""
    canvas.dress(figure, doc, f"Eigenvalues of OV circuits between tokens{name}", about)
    return figure


def _extremes(doc: Doc, model: str) -> list[tuple[int, int]]:
    """Heads named, else half of those furthest above 0 and half of those furthest below."""
    named = doc["settings"]["heads"]
    if isinstance(named, list):
        return parse_heads(",".join(named[:_MOST])) if named else []
    table = doc["models"][model]["copying"]["excess"]
    flat = [(v, i, h) for i, row in enumerate(table) for h, v in enumerate(row) if v is not None]
    flat.sort(key=lambda one: (-one[0], one[1:]))
    half = _MOST // 2
    ends = flat if len(flat) <= _MOST else [*flat[:half], *flat[-half:]]
    return [(i, h) for _, i, h in ends]


def curves(doc: Doc, model: str) -> Figure | None:
    """Score by distance of the heads that prefer one most, and of those named; None without."""
    found = doc["models"][model]["curves"]
    shown = found["shown"][:_MOST]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 1.9)
    offsets = np.array(found["offsets"])
    for axes, one in zip(panels, shown, strict=False):
        low, high, mean = (np.array(one[k], dtype=np.float64) for k in ("low", "high", "mean"))
        axes.fill_between(offsets, low, high, color=canvas.BLUE, alpha=0.2, linewidth=0)
        axes.plot(offsets, mean, color=canvas.BLUE, linewidth=1.4)
        same = np.array(one["same"], dtype=np.float64)
        axes.plot(offsets, same, color=canvas.ORANGE, linewidth=1.1, linestyle=(0, (1, 1.5)))
        best = int(mean.argmax())
        axes.plot([offsets[best]], [mean[best]], "o", color=canvas.INK, markersize=3.5)
        axes.set_title(f"{one['head']}  best at {offsets[best]}")
    _ends(panels, len(shown), "positions before the query", "score")
    about = "line and 95 % band of the curve: pairs of other tokens; dotted: a token with itself"
    name = f", {model}" if len(doc["models"]) > 1 else ""
    canvas.dress(figure, doc, f"Scores by distance{name}", about)
    return figure


def _panels(count: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels in rows of four; those that are not used are empty."""
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    figure = canvas.new_figure(max(_PANEL * columns + 0.4, 5.2), height * lines + 1.2)
    panels: list[Axes] = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def _ends(panels: Sequence[Axes], count: int, below: str, beside: str) -> None:
    """Names the axes at the left and at the lower edge."""
    columns = min(count, _COLUMNS)
    for n, axes in enumerate(panels[:count]):
        if n % columns == 0:
            axes.set_ylabel(beside)
        if n + columns >= count:
            axes.set_xlabel(below)
