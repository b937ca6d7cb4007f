"""One bar of the dashboard: a value in [0, 1] as block characters, with marks laid over it."""

import math
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from rich.style import Style
from rich.text import Text

COLORS = {"instruct_to_base": "#3f90da", "base_to_instruct": "#ffa90e"}
"""A colour per direction (petroff10), told apart with every kind of colour vision."""

BASELINE = "┃"
CONTROLS = {"other_prompt": "×", "random": "+"}
OTHER_CONTROL = "◦"

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MARKED = Style(color="#000000", bold=True)


class Mark(NamedTuple):
    """A character at a value on the scale of the bar."""

    value: float
    char: str
    style: str


def bar(value: float, width: int, color: str, marks: list[Mark]) -> Text:
    """The bar from 0 to the value, ``width`` cells for 0..1, later marks over earlier ones."""
    value = min(max(value, 0.0), 1.0) if not math.isnan(value) else 0.0
    eighths = round(value * width * 8)
    if value > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    cells = ["█"] * full + [_EIGHTHS[rest]] * (rest > 0)
    cells += [" "] * (width - len(cells))
    styles = [Style(color=color)] * width
    for mark in marks:
        if math.isnan(mark.value):
            continue
        at = min(int(min(max(mark.value, 0.0), 1.0) * width), width - 1)
        on_bar = at < full
        cells[at] = mark.char
        styles[at] = _MARKED + Style(bgcolor=color) if on_bar else Style.parse(mark.style)
    text = Text(no_wrap=True)
    for style, run in groupby(zip(cells, styles, strict=True), key=itemgetter(1)):
        text.append("".join(char for char, _ in run), style)
    return text


def control_marks(values: Mapping[str, float]) -> list[Mark]:
    """The marks of the controls: small and dim, so that the bar stays the message."""
    return [Mark(value, CONTROLS.get(name, OTHER_CONTROL), "dim") for name, value in values.items()]


def gauge(share: float, width: int) -> Text:
    """A memory gauge: green, yellow from 70 % and red from 90 %, the number stands beside it."""
    color = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    filled = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("■" * filled, color), ("■" * (width - filled), "bright_black"))
