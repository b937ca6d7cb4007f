"""The look of categories, models and role metrics: the same colour and marker in every figure."""

from collections.abc import Sequence
from typing import NamedTuple

from mlxroles.plots.canvas import (
    BLUE,
    BROWN,
    CYAN,
    GREY,
    OLIVE,
    ORANGE,
    PURPLE,
    RED,
    SLATE,
    VERMILION,
)


class Look(NamedTuple):
    """How one thing is drawn."""

    color: str
    marker: str


_STUDY = {
    "self_referent": Look(RED, "o"),
    "neutral": Look(BLUE, "s"),
    "confounder": Look(ORANGE, "^"),
    "third_person": Look(PURPLE, "D"),
}
_OTHERS = (
    Look(SLATE, "v"),
    Look(VERMILION, "P"),
    Look(CYAN, "X"),
    Look(BROWN, "<"),
    Look(OLIVE, "p"),
    Look(GREY, ">"),
)
_MODELS = {"base": Look(SLATE, "o"), "instruct": Look(VERMILION, "s")}

RFC = Look(BLUE, "s")
"""The metric that compares with the reference, in the colour of the study's neutral prompts."""
RSI = Look(ORANGE, "^")
"""The metric that compares with the confounder, in the colour of the study's confounders."""


def category_looks(categories: Sequence[str]) -> dict[str, Look]:
    """A look per category: fixed for the study's four names, in order for all others.

    Beyond the ten looks they repeat in other combinations of colour and marker.
    """
    free = [*_OTHERS, *(look for name, look in _STUDY.items() if name not in categories)]
    markers = [look.marker for look in free]
    looks: dict[str, Look] = {}
    others = 0
    for name in categories:
        if name in _STUDY:
            looks[name] = _STUDY[name]
            continue
        turn, index = divmod(others, len(free))
        looks[name] = Look(free[index].color, markers[(index + turn) % len(free)])
        others += 1
    return looks


def model_look(model: str) -> Look:
    """The look of ``base``, ``instruct`` or a single model."""
    return _MODELS.get(model, _MODELS["base"])


def family_look(index: int) -> Look:
    """The look of the family with this index in a figure of several."""
    looks = (*_STUDY.values(), *_OTHERS)
    return looks[index % len(looks)]
