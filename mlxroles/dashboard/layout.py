"""Fits the parts of a screen into its size: what matters most is served first.

Nothing here knows what the parts show. A part is asked for its lines when its height is known.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.text import Text

from mlxroles.dashboard.colors import Depth

_TO_CUT = 12


class Look(NamedTuple):
    """What a screen is drawn for."""

    width: int
    """Columns."""
    height: int
    """Rows."""
    colors: Depth = "true"


class Section(NamedTuple):
    """A part of a screen."""

    steps: Sequence[tuple[int, int]]
    """Turn and rows, in rising order: with which turn it may have how many rows."""
    draw: Callable[[int], list[Text]]
    """Its lines, at most as many as it is given rows."""
    is_elastic: bool = True
    """Whether it can use a part of a step; the first one is always given whole."""


def one(turn: int, text: Text | None) -> list[Section]:
    """A section of one line; none without text."""
    return [] if text is None else [Section([(turn, 1)], lambda _: [text])]


def blank(turn: int) -> Section:
    """An empty line."""
    return Section([(turn, 1)], lambda _: [Text()])


def stacked(sections: Sequence[Section], look: Look) -> list[Text]:
    """The sections below each other, no line wider and no more lines than the screen has.

    Rows are given out turn by turn, a section's first step whole or not at all. What has the turn
    0 gets what there is.
    """
    turns = sorted(
        (turn, at, rows) for at, section in enumerate(sections) for turn, rows in section.steps
    )
    given = [0] * len(sections)
    left = look.height
    for turn, at, rows in turns:
        wanted = max(rows - given[at], 0)
        needs_all = not given[at] or not sections[at].is_elastic
        if wanted > left and needs_all and turn > 0:
            continue
        more = min(wanted, left)
        given[at] += more
        left -= more
    drawn: list[Text] = []
    for section, height in zip(sections, given, strict=True):
        if height:
            drawn += section.draw(height)[:height]
    return [clipped(text, look.width) for text in drawn][: look.height]


def beside(left: Sequence[Text], right: Sequence[Text], at: int) -> list[Text]:
    """Two columns; the right one begins at this column."""
    lines: list[Text] = []
    for row in range(max(len(left), len(right))):
        text = left[row].copy() if row < len(left) else Text(no_wrap=True)
        if row < len(right) and right[row].cell_len:
            text = clipped(text, at - 1)
            text.append(" " * (at - text.cell_len))
            text.append_text(right[row])
        lines.append(text)
    return lines


def clipped(text: Text, width: int) -> Text:
    """The text cut to the width, with an ellipsis."""
    text.no_wrap = True
    text.truncate(max(width, 0), overflow="ellipsis")
    return text


def flush(left: Text, right: Text, width: int) -> Text:
    """Both on one line, the second at the right edge; without it where there is no room."""
    room = width - right.cell_len - 1
    if right.cell_len and room < min(left.cell_len, _TO_CUT):
        return clipped(left, width)
    text = clipped(left.copy(), room)
    text.append(" " * (width - right.cell_len - text.cell_len))
    text.append_text(right)
    return text


def joined(parts: Sequence[tuple[int, Text]], width: int, separator: str = "  ·  ") -> Text:
    """The parts on one line; those with the highest number are left out until it fits."""
    kept = list(parts)
    between = Text.assemble((separator, "dim"))
    while len(kept) > 1 and between.join(text for _, text in kept).cell_len > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return clipped(between.join(text for _, text in kept), width)


def wrapped(text: str, width: int, style: str = "", indent: str = "") -> list[Text]:
    """The text over several lines, broken between words, later ones indented."""
    lines: list[Text] = []
    row = ""
    for word in text.split(" "):
        if row.strip() and Text(f"{row} {word}").cell_len > width:
            lines.append(clipped(Text(row, style=style), width))
            row = indent + word
        else:
            row = f"{row} {word}" if row else word
    lines.append(clipped(Text(row, style=style), width))
    return lines
