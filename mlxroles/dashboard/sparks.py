"""One row of characters per metric and model: values over layers on a common scale."""

import math
from collections.abc import Iterator, Sequence

from rich.text import Text

from mlxroles.dashboard.adapt import Screen
from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import Finding
from mlxroles.report.roles.wording import LABELS, signed, who_is

_LABEL, _NUMBERS = 22, 17


def sparks(found: Sequence[Finding], metric: str, screen: Screen) -> Iterator[Text]:
    """The head, a row per model and scale, and what the characters stand for.

    Args:
        found: the findings of a document; those of other metrics are left out.
        metric: ``rfc`` or ``rsi``.
        screen: where the rows are shown.
    """
    own = [each for each in found if each.metric == metric]
    values = [v for each in own for t in (each.raw, each.normalised) for v in t.value]
    levels = [each.null for each in own]
    known = [value for value in (*values, *levels, 0.0) if not math.isnan(value)]
    low, high = min(known), max(known)
    room = max(screen.width - _LABEL - _NUMBERS - 2, 8)
    step = max(math.ceil(len(own[0].raw.layers) / room), 1) if own else 1
    columns = math.ceil(len(own[0].raw.layers) / step) if own else 0
    head = f"{LABELS[metric]} over layers".ljust(_LABEL) + " " * max(columns - 0, 0)
    yield screen.text(f"{head}  {'mean':>6}  {'above/below'}", "bold")
    for scale in tracks.SCALES:
        for each in own:
            track = each.raw if scale == "raw" else each.normalised
            row = "".join(
                screen.level(_share(tracks.mean(track.value[at : at + step]), low, high))
                for at in range(0, len(track.value), step)
            )
            label = f"{who_is(each.who)}, {'raw' if scale == 'raw' else 'norm'}"
            counts = f"{len(track.up)}/{len(track.down)}"
            yield screen.text(f"{label:<{_LABEL}}{row}  {signed(track.mean)}  {counts}")
    yield screen.text(_legend(own, (low, high), step, screen), "dim")


def _legend(own: Sequence[Finding], ends: tuple[float, float], step: int, screen: Screen) -> str:
    low, high = ends
    parts = [f"{screen.level(0.0)} {signed(low)} to {screen.level(1.0)} {signed(high)}"]
    parts.append(f"0 is {screen.level(_share(0.0, low, high))}")
    level = next((each.null for each in own if each.who != tracks.DIFFERENCE), math.nan)
    if not math.isnan(level):
        shown = screen.level(_share(level, low, high))
        parts.append(f"uniform attention {signed(level)} raw is {shown}")
    if step > 1:
        parts.append(f"each mark: {step} layers")
    return " · ".join(parts)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5 + 0.0 * value
