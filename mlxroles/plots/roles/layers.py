"""Figures of one model over its layers: entropies, their differences, RFC and RSI.

Each has a panel in nats and one that is normalised for length, and the level that uniform causal
attention reaches on prompts of the same lengths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mlxroles.plots import canvas, lines
from mlxroles.plots.lines import Mark, Series
from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.looks import RFC, RSI
from mlxroles.plots.roles.subject import Doc, Subject, estimate, level, shown
from mlxroles.roles.metrics import DEFAULT_FORM
from mlxroles.roles.scales import SCALES
from mlxroles.text import format_number

_SIZE = (10.0, 4.9)
_MANY = 6
_FAR = 0.5
NULL = "uniform attention, same lengths"
_TESTED = {
    Mark.NONE: "not significant",
    Mark.FOUND: "q < .05 over layers",
    Mark.CONFIRMED: "holds at equal prompt length",
    Mark.REVERSED: "reverses at equal prompt length",
}


def entropy(subject: Subject) -> Figure | None:
    """Mean entropy (E2) per layer, one curve per category.

    With more than six categories only those of the contrast have intervals and a level.
    """
    categories = list(subject.looks)
    full = categories if len(categories) <= _MANY else subject.compared
    panels = {
        scale: [_category(subject, scale, name, is_full=name in full) for name in categories]
        for scale in SCALES
    }
    axis = ["entropy (nats)", "entropy / ln(keys seen); uniform: 1"]
    return _both_scales(subject, "Attention entropy", panels, axis, with_zero=False)


def _category(subject: Subject, scale: str, name: str, *, is_full: bool) -> Series:
    found = estimate(subject.scale(scale)["category"][name])
    if not is_full:
        return Series(shown(name), *subject.looks[name], found.values)
    expected = subject.doc["null"]["raw"]["category"].get(name) if scale == "raw" else None
    return Series(shown(name), *subject.looks[name], *found, level=level(expected))


def contrasts(subject: Subject) -> Figure | None:
    """Focus - reference and focus - confounder of the mean entropy per layer."""
    if subject.contrast is None:
        return None
    panels = {
        scale: [
            each
            for name in ("reference_minus_focus", "confounder_minus_focus")
            if (each := _contrast(subject, scale, name)) is not None
        ]
        for scale in SCALES
    }
    return _both_scales(subject, "Entropy differences between categories", panels, _DIFFERENCE)


def confounder(subject: Subject) -> Figure | None:
    """Focus - confounder per layer, with what the permutation tests say of each layer."""
    name = "confounder_minus_focus"
    marked = {scale: marks(subject.scale(scale).get("rsi_test")) for scale in SCALES}
    panels = {
        scale: [each]
        for scale in SCALES
        if (each := _contrast(subject, scale, name, marked[scale])) is not None
    }
    if not panels:
        return None
    return _both_scales(subject, "Focus less confounder", panels, _DIFFERENCE)


def roles(subject: Subject) -> Figure | None:
    """RFC and RSI per layer, with what the permutation tests say of each layer."""
    panels: dict[str, list[Series]] = {}
    for scale in SCALES:
        found, expected = subject.scale(scale), subject.doc["null"][scale]
        panels[scale] = [
            Series(
                metric.upper(),
                *look,
                *estimate(found[metric][DEFAULT_FORM]),
                level=level(expected.get(metric)),
                marks=marks(found.get(f"{metric}_test")),
            )
            for metric, look in (("rfc", RFC), ("rsi", RSI))
            if found.get(metric)
        ]
    names = ", ".join(dict.fromkeys(each.name for found in panels.values() for each in found))
    axis = [f"{names} (raw)", f"{names} (length-normalised)"]
    return _both_scales(subject, "Role metrics", panels, axis)


_DIFFERENCE = [
    "difference (nats); below 0: focus lower",
    "difference, entropy / ln(keys seen)",
]


def _contrast(
    subject: Subject, scale: str, name: str, marked: Sequence[Mark] | None = None
) -> Series | None:
    found = subject.scale(scale).get("contrast") or {}
    if subject.contrast is None or not found.get(name):
        return None
    minuend = getattr(subject.contrast, name.split("_")[0])
    expected = subject.doc["null"][scale].get("contrast") or {}
    at = level(expected.get(name, 0.0 if scale == "normalised" else None))
    values, low, high = estimate(found[name])
    return Series(
        f"{shown(subject.contrast.focus)} − {shown(minuend)}",
        *subject.looks[minuend],
        -values,
        -high,
        -low,
        level=None if at is None else -at,
        marks=marked,
    )


def _both_scales(
    subject: Subject,
    what: str,
    panels: dict[str, list[Series]],
    axis: Sequence[str],
    *,
    with_zero: bool = True,
) -> Figure | None:
    """Nats on the left, length-normalised on the right; ``None`` without a single number."""
    if not any(np.isfinite(each.values).any() for found in panels.values() for each in found):
        return None
    drawn = [each for found in panels.values() for each in found]
    made = frame(subject.doc, (what, subject.about()), _SIZE, note=intervals(drawn), ncols=2)
    has_level = False
    for axes, found, name in zip(made.panels[0], panels.values(), axis, strict=True):
        series, far = (found, "") if with_zero else _without_far_levels(found)
        has_level = has_level or any(each.level is not None for each in series)
        limits = lines.view(series, levels=[0.0] if with_zero else [])
        canvas.layer_axis(axes, subject.layers)
        if with_zero:
            axes.axhline(0.0, color="#999999", linewidth=0.8, zorder=1)
        for each in series:
            lines.curve(axes, subject.layers, each, limits)
        axes.set_ylim(limits)
        axes.set_ylabel(name)
        axes.set_title(far, fontsize=8.5, fontweight="normal", loc="right")
    extra = [lines.level_handle(NULL)] if has_level else []
    legend(made, [*extra, *mark_legend(drawn)])
    return made.figure


def _without_far_levels(series: list[Series]) -> tuple[list[Series], str]:
    """Curves without levels that would squeeze them, and what these levels are.

    Far is a level that is more than half the curves' own range away from them.
    """
    levels = [each.level for each in series if each.level is not None]
    known = np.concatenate([each.values[np.isfinite(each.values)] for each in series])
    if not levels or not known.size:
        return series, ""
    low, high = float(known.min()), float(known.max())
    room = _FAR * (high - low)
    if low - room <= min(levels) and max(levels) <= high + room:
        return series, ""
    ends = [format_number(end, ".2f") for end in (min(levels), max(levels))]
    text = " to ".join(dict.fromkeys(ends))
    return [replace(each, level=None) for each in series], f"uniform attention: {text}, not shown"


def intervals(series: Iterable[Series]) -> str:
    """What the bands are, or that there are none."""
    if any(each.low is not None and np.isfinite(each.low).any() for each in series):
        return "Bands: 95 % bootstrap intervals over prompts."
    return "No intervals: a category has too few prompts."


def marks(test: Doc | None) -> list[Mark] | None:
    """What the tests of a document say per layer, as they stand there."""
    if not test:
        return None
    names = ("significant", "holds_at_equal_length", "reverses_at_equal_length")
    return [_mark(*flags) for flags in zip(*(test[name] for name in names), strict=True)]


def mark_legend(series: Iterable[Series]) -> list[Line2D]:
    """The entries that explain the marks: those that are there, and always the first two."""
    found = {mark for each in series for mark in each.marks or ()}
    if not found:
        return []
    kept = found | {Mark.NONE, Mark.FOUND}
    texts = {mark: text for mark, text in _TESTED.items() if mark in kept}
    return lines.mark_handles(canvas.SLATE, "o", texts)


def _mark(is_found: object, holds: object, reverses: object) -> Mark:
    if not is_found:
        return Mark.NONE
    return Mark.REVERSED if reverses else Mark.CONFIRMED if holds else Mark.FOUND
