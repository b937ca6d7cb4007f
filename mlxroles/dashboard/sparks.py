"""One row of characters per model: values over layers, raw and length-normalised, on one scale."""

import math
from collections.abc import Iterator, Sequence

from rich.text import Text

from mlxroles.dashboard.adapt import Screen
from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import Finding
from mlxroles.report.roles.tracks import Track
from mlxroles.report.roles.wording import LABELS, signed, who_is

_LABEL, _NUMBERS, _GAP = 17, 15, 3
_NAMES = {"raw": "raw", "normalised": "length-normalised"}


def sparks(found: Sequence[Finding], metric: str, screen: Screen) -> Iterator[Text]:
    """The head, a row per model, and what the characters stand for.

    Both scales share a row where all layers fit; otherwise each has rows of its own.

    Args:
        found: the findings of a document; those of other metrics are left out.
        metric: ``rfc`` or ``rsi``.
        screen: where the rows are shown.
    """
    own = [each for each in found if each.metric == metric]
    if not own:
        return
    ends = _ends(own)
    layers = len(own[0].raw.layers)
    room = max(screen.width - _LABEL - _NUMBERS, 8)
    side_by_side = layers <= (room - _NUMBERS - _GAP) // 2
    step = max(math.ceil(layers / room), 1)
    columns = math.ceil(layers / step)
    for scales in (("raw", "normalised"),) if side_by_side else (("raw",), ("normalised",)):
        head = (" " * _GAP).join(_head(scale, columns) for scale in scales)
        yield screen.text(f"{LABELS[metric] + ' over layers':<{_LABEL}}{head}".rstrip(), "bold")
        for each in own:
            parts = (_row(getattr(each, scale), ends, step, screen) for scale in scales)
            text = f"{who_is(each.who):<{_LABEL - 1}} {(' ' * _GAP).join(parts)}"
            yield screen.text(text.rstrip())
    yield screen.text(_legend(own, ends, step, screen), "dim")


def _ends(own: Sequence[Finding]) -> tuple[float, float]:
    values = [v for each in own for t in (each.raw, each.normalised) for v in t.value]
    known = [v for v in (*values, *(each.null for each in own), 0.0) if not math.isnan(v)]
    return min(known), max(known)


def _head(scale: str, columns: int) -> str:
    return _NAMES[scale].ljust(columns + _NUMBERS)


def _row(track: Track, ends: tuple[float, float], step: int, screen: Screen) -> str:
    """The characters, the mean, and how many layers are above and below 0 after correction."""
    levels = (
        screen.level(_share(tracks.mean(track.value[at : at + step]), ends))
        for at in range(0, len(track.value), step)
    )
    counts = f"{len(track.up)}/{len(track.down)}"
    return f"{''.join(levels)} {signed(track.mean)}  {counts}".ljust(
        math.ceil(len(track.value) / step) + _NUMBERS
    )


def _legend(own: Sequence[Finding], ends: tuple[float, float], step: int, screen: Screen) -> str:
    low, high = ends
    parts = [f"{screen.level(0.0)} {signed(low)} to {screen.level(1.0)} {signed(high)}"]
    parts.append(f"0 is {screen.level(_share(0.0, ends))}")
    level = next((each.null for each in own if not each.is_difference), math.nan)
    if not math.isnan(level):
        shown = screen.level(_share(level, ends))
        parts.append(f"uniform attention {signed(level)} raw is {shown}")
    if step > 1:
        parts.append(f"each mark: {step} layers")
    return " · ".join(parts)


def _share(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return (value - low) / (high - low) if high > low else 0.5 + 0.0 * value
