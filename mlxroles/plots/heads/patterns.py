"""Attention patterns of the best heads, query by key, with the lines on which they should lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlxroles.errors import MlxrolesError
from mlxroles.heads import parse_heads
from mlxroles.plots import canvas
from mlxroles.report.heads import scores
from mlxroles.report.heads.wording import NONE, said
from mlxroles.text import format_number, show_token

Doc = Mapping[str, Any]
Patterns = Mapping[str, NDArray[Any]]
"""Head name -> weights [query, key]."""

MOST_POSITIONS = 128
_MOST_HEADS = 12
_COLUMNS = 4
_INCHES = 2.45
_NAMED = 26
_GAMMA = 0.5
"""Weights are drawn by their square root, so that weak ones are seen too."""
_REPEATING = ("induction", "duplicate")


def patterns(doc: Doc, side: str, found: Patterns) -> Figure | None:
    """A panel per head of a model, the first 128 positions; None without one."""
    examples = (doc.get("examples") or {}).get(side) or {}
    shown = [name for name in examples if name in found][:_MOST_HEADS]
    if not shown:
        return None
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = canvas.new_figure(max(_INCHES * columns + 0.9, 6.6), (_INCHES + 0.1) * rows + 1.15)
    panels = figure.subplots(rows, columns, squeeze=False)
    drawn = [
        _panel(axes, doc, side, name, np.asarray(found[name], dtype=np.float64))
        for axes, name in zip(panels.ravel(), shown, strict=False)
    ]
    for axes in panels.ravel()[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("query", fontsize=8)
    bar = figure.colorbar(drawn[0], ax=panels, shrink=0.5, aspect=30, pad=0.01)
    bar.outline.set_visible(False)
    bar.set_label("attention weight", fontsize=7)
    bar.ax.tick_params(labelsize=7, length=2)
    named = f", {side}" if len(scores.sides(doc)) > 1 else ""
    about = (
        f"One example each, the first {MOST_POSITIONS} positions at most. Red: where a row repeats"
    )
    about += "; grey titles: the best head there is, not marked"
    canvas.dress(figure, doc, f"Where the highest heads look{named}", about)
    return figure


def _panel(axes: Axes, doc: Doc, side: str, name: str, weights: np.ndarray) -> Any:
    example = doc["examples"][side][name]
    size = min(weights.shape[-1], MOST_POSITIONS)
    part = weights[:size, :size]
    hidden = np.triu(np.ones(part.shape, dtype=bool), 1)
    axes.grid(visible=False)
    image = axes.imshow(
        np.ma.array(part, mask=hidden | ~np.isfinite(part)),
        cmap="Blues",
        norm=PowerNorm(_GAMMA, 0.0, 1.0),
        interpolation="nearest",
        aspect="equal",
    )
    half = _half(example, weights.shape[-1])
    if half and half < size:
        for line in (axes.axhline, axes.axvline):
            line(half - 0.5, color=canvas.RED, linewidth=0.8, alpha=0.85)
    _ticks(axes, example, size)
    text, is_marked = _told(doc, side, name, example)
    weight, color = ("bold", canvas.INK) if is_marked else ("normal", "#777777")
    axes.set_title(text, fontsize=8.5, fontweight=weight, color=color)
    return image


def _half(example: Mapping[str, Any], size: int) -> int:
    """The first position at which a row repeats; 0 for a row that does not."""
    if "repeat" not in str(example.get("set", "")):
        return 0
    start = int(example.get("start") or 0)
    return start + int(example.get("length") or (size - start) // 2)


def _told(doc: Doc, side: str, name: str, example: Mapping[str, Any]) -> tuple[str, bool]:
    """The head with what it was chosen for and its score, and whether it is marked for that."""
    shown = canvas.label(name, 12)
    try:
        [at] = parse_heads(name)
        own = scores.classes(doc, side)[at[0]][at[1]]
    except (MlxrolesError, ValueError, IndexError):
        return shown, False
    chosen = str(example.get("detector") or (own if own != NONE else ""))
    if not chosen:
        return shown, False
    value = format_number(float(scores.grid(doc, side, chosen)[at]), ".2f")
    text = f"{shown}  {canvas.label(said(chosen.removesuffix('_random')), 22)} {value}"
    return text, bool(scores.marked(doc, side, chosen)[at])


def _ticks(axes: Axes, example: Mapping[str, Any], size: int) -> None:
    """Tokens where they fit, numbers elsewhere."""
    tokens: Sequence[object] = example.get("tokens") or []
    if size <= _NAMED and len(tokens) >= size:
        names = [canvas.label(show_token(token), 9) for token in tokens[:size]]
        axes.set_xticks(range(size), names, rotation=90, fontsize=5)
        axes.set_yticks(range(size), names, fontsize=5)
    else:
        axes.locator_params(nbins=5, integer=True)
        axes.tick_params(labelsize=6.5)
    axes.tick_params(length=0, pad=2)
