"""What kinds of heads are called, which letter stands for each, and what its score measures."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mlxroles.text import safe_text

Doc = Mapping[str, Any]

NONE = "none"
"""The class of a head of which nothing holds."""


class Kind(NamedTuple):
    """A kind of head, which is also the score that tells it."""

    name: str
    """As a heading: ``Previous token``."""
    letter: str
    """What stands in a map."""
    color: str
    """Of its cells in maps, always beside its letter or name."""
    measures: str
    """What the score is, in words."""
    control: str = ""
    """What the control is, in words."""
    is_signed: bool = False
    """Whether the score has a sign, around 0."""


KINDS: dict[str, Kind] = {
    "previous": Kind(
        "Previous token",
        "P",
        "#3f90da",
        "Weight on the token before, in text.",
        "the offsets 2 to 5",
    ),
    "previous_random": Kind(
        "Previous token, random ids",
        "R",
        "#92dadd",
        "Weight on the token before in random tokens, where only the position is left to go by.",
        "the offsets 2 to 5",
    ),
    "induction": Kind(
        "Induction",
        "I",
        "#ffa90e",
        "Weight on the token that followed the present one when it came before, in random tokens "
        "that repeat once.",
        "the same places of tokens that do not repeat",
    ),
    "duplicate": Kind(
        "Duplicate token",
        "D",
        "#bd1f01",
        "Weight on earlier tokens that are the same as the present one, in text.",
        "the same distances between other tokens",
    ),
    "duplicate_random": Kind(
        "Duplicate token, random ids",
        "D",
        "#bd1f01",
        "Weight on the same token where it came before, in random tokens that repeat once.",
        "the same places of tokens that do not repeat",
    ),
    "positional": Kind(
        "Fixed offset",
        "O",
        "#832db6",
        "Weight at the distance, 1 or more, where the head's mean profile is highest.",
        "the distances 2 to 4 away from it",
    ),
    "first": Kind(
        "First position",
        "F",
        "#94a4a2",
        "Weight on position 0, whatever stands there.",
        "the positions 1 to 4",
    ),
    "self": Kind("Self", "S", "#717581", "Weight on the token itself.", "the offsets 2 to 5"),
    "final": Kind(
        "Final token",
        "E",
        "#1b1b2f",
        "Weight that the tokens of an answer give to the final token of its question.",
        "the three tokens before that",
    ),
    "delimiter": Kind(
        "Delimiter",
        "L",
        "#b9ac70",
        "Weight on punctuation and line ends; it is judged by its ratio to uniform attention.",
        "as many other keys nearby",
    ),
    "successor": Kind(
        "Successor",
        "N",
        "#a96b59",
        "Weight of an element of an ordered list (Monday, Tuesday, …) on the one before it.",
        "the same lists, shuffled",
    ),
    "s_inhibition": Kind(
        "S-inhibition",
        "X",
        "#f4ec7c",
        "Weight of the last token on the second mention of the name that must not be said.",
        "a third name at the same place",
    ),
    "copying": Kind(
        "Copying",
        "C",
        "#e76300",
        "How much the head, by its weights alone, raises the token that it attends to.",
        "random pairs of tokens",
        is_signed=True,
    ),
    "anti_copying": Kind(
        "Anti-copying",
        "A",
        "#0c4668",
        "How much the head, by its weights alone, lowers the token that it attends to.",
        "random pairs of tokens",
        is_signed=True,
    ),
}
"""In the order in which they are told. The colours are the petroff10 palette (Petroff 2021) and
three more, far from all others with every kind of colour vision."""

SCORES = {"anti_copying": "copying"}
"""Kinds that are told by the score of another."""

_OTHER = ("#5f6b76", "GHJKMQTUVWYZ")


def kind(name: str) -> Kind:
    """The kind of that name; one that is not known is called by its name."""
    known = KINDS.get(name)
    if known is not None:
        return known
    color, letters = _OTHER
    shown = safe_text(name.replace("_", " "), limit=30)
    letter = letters[sum(map(ord, name)) % len(letters)]
    return Kind(shown[:1].upper() + shown[1:], letter, color, "")


INKS = ("#ffffff", "#16191d")
"""The colour of letters on a dark and on a light kind."""


def rgb(color: str) -> tuple[int, int, int]:
    """The parts of ``#rrggbb``."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def brightness(color: str) -> float:
    """Perceived brightness of ``#rrggbb``, 0 to 1 (Rec. 601)."""
    red, green, blue = rgb(color)
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def is_light(color: str) -> bool:
    """Whether dark letters are read on it."""
    return brightness(color) > 0.5


def in_order(names: Iterable[str]) -> list[str]:
    """Kinds in the order in which they are told; others last, without ``none``."""
    found = set(names) - {NONE, ""}
    return [name for name in KINDS if name in found] + sorted(found - set(KINDS))


def said(name: str) -> str:
    """The kind in the middle of a sentence: ``previous token``, ``S-inhibition``."""
    title = kind(name).name
    return title if title.startswith("S-") else title[:1].lower() + title[1:]


def title(doc: Doc) -> str:
    """What the run is about."""
    shown = safe_text(str(doc.get("display") or doc.get("pair") or ""), limit=60)
    return f"What each head does: {shown}" if shown else "What each head does"
