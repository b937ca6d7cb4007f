"""Colours of maps: which ones a terminal can show, and which one stands for a value.

Diverging maps are orange above and violet below a dark middle (PuOr, turned so that a strong value
is bright on the panel that the map paints itself); the sequential one is cividis. Both keep their
order in every kind of colour vision. Where there are too few colours, characters carry the value.
"""

import math
from functools import lru_cache
from typing import Literal

from rich.console import Console
from rich.style import Style

Depth = Literal["none", "16", "256", "true"]
"""How many colours there are."""

_UP = ("#2b2a30", "#6b431b", "#b5701a", "#ec9f34", "#ffdba6")
_DOWN = ("#2b2a30", "#463f7d", "#7166b4", "#a79fe0", "#dcd8ff")
_CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
_STRONG, _WEAK = 0.66, 0.15
_STEPS = "123456789"
_FALLS = "abcdefghi"
_INK_CHANGES = 0.45
_SHADES = 40
_NO_NUMBER = "#d02020"


def depth(console: Console) -> Depth:
    """What the console can show; nothing where the user has set ``NO_COLOR``."""
    if console.no_color or console.color_system is None:
        return "none"
    systems: dict[str, Depth] = {"256": "256", "truecolor": "true"}
    return systems.get(console.color_system, "16")


def diverging(share: float, colors: Depth) -> Style:
    """The style of a cell whose value is this share, -1 to 1, of the end of the scale."""
    return _diverging(_shade(share), colors)


def pair(upper: float | None, lower: float | None) -> Style:
    """Two values in one cell, as ink and as paper; None leaves out the paper, NaN is red."""
    ink, paper = (None if share is None else _shade(share) for share in (upper, lower))
    return _pair(ink, paper)


def hue(share: float) -> str:
    """The colour of a share between -1 and 1, as ``#rrggbb``; red for NaN."""
    if math.isnan(share):
        return _NO_NUMBER
    return _between(_UP if share >= 0 else _DOWN, min(abs(share), 1.0))


def _shade(share: float) -> float:
    """The share in steps that the eye can tell apart, so that styles are made once."""
    return share if math.isnan(share) else round(share * _SHADES) / _SHADES


@lru_cache(maxsize=4096)
def _pair(upper: float | None, lower: float | None) -> Style:
    ink, paper = (None if share is None else hue(share) for share in (upper, lower))
    return Style(color=ink, bgcolor=paper)


@lru_cache(maxsize=1024)
def _diverging(share: float, colors: Depth) -> Style:
    if math.isnan(share) or colors == "none":
        return Style()
    strength = min(abs(share), 1.0)
    if colors == "16":
        if strength < _WEAK:
            return Style()
        name = "yellow" if share > 0 else "magenta"
        bright = "bright_" if strength > _STRONG else ""
        return Style(color="black", bgcolor=f"{bright}{name}")
    ink = "#101014" if strength > _INK_CHANGES else "#d8d8de"
    return Style(color=ink, bgcolor=hue(share))


def sequential(share: float, colors: Depth) -> Style:
    """The style of a cell whose value is this share, 0 to 1, of the scale."""
    if math.isnan(share) or colors == "none":
        return Style()
    share = min(max(share, 0.0), 1.0)
    if colors == "16":
        names = ("blue", "cyan", "bright_yellow")
        return Style(color="black", bgcolor=names[min(int(share * 3), 2)])
    ink = "#101014" if share > _INK_CHANGES else "#d8d8de"
    return Style(color=ink, bgcolor=_between(_CIVIDIS, share))


def letter(share: float) -> str:
    """The share as a character: 1 to 9 above, a to i below, a dot near the middle."""
    step = min(round(abs(share) * 9), 9)
    if not step:
        return "."
    return (_STEPS if share > 0 else _FALLS)[step - 1]


def _between(ramp: tuple[str, ...], share: float) -> str:
    place = share * (len(ramp) - 1)
    at = min(int(place), len(ramp) - 2)
    low, high = _rgb(ramp[at]), _rgb(ramp[at + 1])
    mixed = (round(a + (b - a) * (place - at)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
