"""Lists in their order, and the same lists shuffled: does a head look back to the predecessor?

The control of a list holds the same elements, so that neither vocabulary nor length tells the
two apart; no two neighbours in it follow each other in the order.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mlxroles.detectors import pieces, places
from mlxroles.detectors.plain import Plain
from mlxroles.detectors.prose import words
from mlxroles.prompts import Tokenizer

KINDS = ("numerals", "letters", "words", "weekdays", "months")
SHORTEST, LONGEST = 4, 12
"""Elements of a list."""


def sets(tokenizer: Tokenizer, n: int, seed: int) -> tuple[dict[str, Plain], list[str]]:
    """The sets ``lists`` and ``shuffled``, row for row of the same elements, and notes.

    The score ``back`` of a row is the mean over its elements but the first of the weight that
    an element's last token gives to the element before it, all of whose tokens count. No list
    comes twice, so that there may be fewer than ``n``.
    """
    found = {"lists": Plain("lists in their order"), "shuffled": Plain("the same, shuffled")}
    elements = {kind: stretch(tokenizer, words()["lists"][kind]) for kind in KINDS}
    seen: set[tuple[int, ...]] = set()
    for row in range(n):
        rng = np.random.default_rng([seed, 5, row])
        kind = elements[KINDS[row % len(KINDS)]]
        size = int(rng.integers(SHORTEST, min(LONGEST, len(kind)) + 1))
        first = int(rng.integers(0, len(kind) - size + 1))
        order = list(range(first, first + size))
        lead = words()["lists"]["leads"][int(rng.integers(4))]
        orders = (order, shuffled(order, rng))
        made = [_list(tokenizer, lead, [kind[i] for i in own]) for own in orders]
        kept = [given for given in made if given is not None and _told_apart(*given)]
        if len(kept) < len(made) or tuple(kept[0][0]) in seen:
            continue
        seen.add(tuple(kept[0][0]))
        for into, (ids, spans) in zip(found.values(), kept, strict=True):
            back = places.spans([end - 1 for _, end in spans[1:]], spans[:-1])
            into.add(ids, {"back": back}, elements=tuple(spans))
    notes = []
    split = [kind for kind in KINDS if _split(tokenizer, elements[kind])]
    if not found["lists"].ids:
        notes.append("successor: the tokenizer joins the elements of lists with what follows them")
    elif split:
        notes.append(f"lists of {', '.join(split)} have elements of several tokens")
    return found, notes


def stretch(tokenizer: Tokenizer, listed: Sequence[str]) -> list[str]:
    """The longest stretch of elements that are one token each; all where it is too short."""
    alone = set(pieces.single(tokenizer, listed, least=0))
    runs: list[list[str]] = [[]]
    for element in listed:
        if element in alone:
            runs[-1].append(element)
        else:
            runs.append([])
    longest = max(runs, key=len)
    return longest if len(longest) > SHORTEST else list(listed)


def shuffled(order: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The numbers in an order in which none is followed by its successor.

    Four numbers or more always have one.
    """
    while True:
        found = rng.permutation(np.asarray(order)).tolist()
        if all(b != a + 1 for a, b in pairwise(found)):
            return found


def _list(
    tokenizer: Tokenizer, lead: str, elements: Sequence[str]
) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Ids of a list and where its elements lie."""
    parts = [(lead, False)]
    for n, element in enumerate(elements):
        parts += [(",", False)] * (n > 0) + [(f" {element}", True)]
    return pieces.with_spans(tokenizer, parts)


def _told_apart(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether no two elements of a list are the same tokens, as unknown ones are."""
    return len({tuple(ids[a:b]) for a, b in spans}) == len(spans)


def _split(tokenizer: Tokenizer, elements: Sequence[str]) -> bool:
    return pieces.single(tokenizer, elements, least=0) != list(elements)
