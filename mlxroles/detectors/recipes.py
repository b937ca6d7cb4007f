"""Which scores of which sets make a detector, and which its control."""

from collections.abc import Collection
from typing import NamedTuple

from mlxroles.detectors.catalogue import DETECTORS

Part = tuple[str, str]
"""A set of the material and a score of it."""


class Recipe(NamedTuple):
    """What a detector's score and control are the means of, and the set that shows it."""

    score: tuple[Part, ...]
    control: tuple[Part, ...]


def _pair(rows: str, score: str, control: str, other: str | None = None) -> Recipe:
    return Recipe(((rows, score),), ((other or rows, control),))


RECIPES = {
    "previous": _pair("text", "previous", "neighbours"),
    "previous_random": _pair("random", "previous", "neighbours"),
    "induction": _pair("repeated", "induction", "induction", "random"),
    "duplicate": _pair("text", "duplicate", "matched"),
    "duplicate_random": _pair("repeated", "duplicate", "duplicate", "random"),
    "first": _pair("text", "first", "other_first"),
    "self": _pair("text", "self", "neighbours"),
    "final": _pair("answers", "final", "before"),
    "delimiter": _pair("text", "delimiter", "other_keys"),
    "successor": _pair("lists", "back", "back", "shuffled"),
    "s_inhibition": Recipe(
        (("names_abba", "second"), ("names_baba", "second")), (("names_third", "second"),)
    ),
}
"""Detectors that read patterns; ``positional`` comes from the profile, ``copying`` from weights."""

ANYWHERE = ("first", "self", "positional")
"""Detectors that read the random ids where there is no text."""


def recipes_of(sets: Collection[str]) -> dict[str, Recipe]:
    """Recipes for which there are all sets; those of ``ANYWHERE`` on random ids without text."""
    known = dict(RECIPES)
    if "text" not in sets:
        for name in ANYWHERE:
            if name in known:
                parts = [tuple(("random", score) for _, score in part) for part in known[name]]
                known[name] = Recipe(*parts)
    return {
        name: recipe
        for name, recipe in known.items()
        if all(rows in sets for rows, _ in (*recipe.score, *recipe.control))
    }


def available(sets: Collection[str]) -> tuple[str, ...]:
    """Names of the detectors that the sets serve, ``copying`` among them, in their order."""
    there = {*recipes_of(sets), "positional", "copying"}
    return tuple(name for name in DETECTORS if name in there)
