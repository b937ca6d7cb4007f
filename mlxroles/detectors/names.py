"""Sentences in which one of two people acts: does the end look at the one who is named twice?

Wang et al. 2022 (indirect object identification): after "Mary and John went to the shop, and John
gave a book to" the answer is Mary; S-inhibition heads attend from the end to the second John, and
keep the heads that write a name from writing that one. Each pair of names comes in both orders
(ABBA: the subject is named second, BABA: first), since a head that goes by position passes one of
them, and once with a third person who acts, where no name is repeated.
"""

import numpy as np

from mlxroles.detectors import pieces, places
from mlxroles.detectors.plain import Plain
from mlxroles.detectors.prose import deal, fill, words
from mlxroles.prompts import Tokenizer

ORDERS = {"names_abba": "ABBA", "names_baba": "BABA", "names_third": "no name repeated"}
_FEWEST = 6


def sets(tokenizer: Tokenizer, n: int, seed: int) -> tuple[dict[str, Plain], list[int], list[str]]:
    """The three sets, row for row of the same names and template; ids of the names; and notes.

    The score ``second`` of a row is the weight that its last token gives to the name that acts.
    """
    known = _told_apart(
        tokenizer, pieces.single(tokenizer, words()["words"]["name"], least=_FEWEST)
    )
    found = {order: Plain(f"sentences about two people, {told}") for order, told in ORDERS.items()}
    first_ids: set[int] = set()
    templates = words()["subjects"]["templates"]
    for row in range(n):
        rng = np.random.default_rng([seed, 6, row])
        drawn = rng.choice(len(known), 3, replace=False).tolist()
        other, subject, third = (known[i] for i in drawn)
        template = fill_all(templates[row % len(templates)], deal(rng))
        orders = ((other, subject, subject), (subject, other, subject), (other, subject, third))
        made = [_sentence(tokenizer, template, *given) for given in orders]
        if any(given is None for given in made):
            continue
        right, wrong = (name_ids(tokenizer, name) for name in (other, subject))
        for into, given in zip(found.values(), made, strict=True):
            assert given is not None
            ids, (first, end) = given
            second = places.spans([len(ids) - 1], [(first, end)])
            into.add(ids, {"second": second}, io=right[0], subject=wrong[0])
        first_ids |= {i for i in (right[0], wrong[0]) if tokenizer.decode([i]).strip()}
    notes = []
    if not found["names_abba"].ids:
        notes.append("s_inhibition: the tokenizer joins names with what follows them")
    elif len(pieces.single(tokenizer, known, least=0)) < len(known):
        notes.append("names are several tokens; the weights on all tokens of a name are added up")
    return found, sorted(first_ids), notes


def _told_apart(tokenizer: Tokenizer, known: list[str]) -> list[str]:
    """Names of which no two begin with the same token, where there are enough."""
    first: dict[int, str] = {}
    for name in known:
        first.setdefault(name_ids(tokenizer, name)[0], name)
    return list(first.values()) if len(first) >= _FEWEST else known


def name_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    """Ids of a name inside a sentence."""
    return pieces.encode(tokenizer, f"and {name}")[len(pieces.encode(tokenizer, "and")) :]


def fill_all(template: str, dealt: dict[str, str]) -> str:
    """A template filled but for its names {1}, {2} and {S}."""
    return fill(template, dealt | {"1": "{1}", "2": "{2}", "S": "{S}"})


def _sentence(
    tokenizer: Tokenizer, template: str, first: str, second: str, subject: str
) -> tuple[list[int], tuple[int, int]] | None:
    """Ids, and where the name that acts lies; None where the tokenizer joins it."""
    before, after = template.split(" {S}")
    before = before.replace("{1}", first).replace("{2}", second)
    made = pieces.with_spans(tokenizer, [(before, False), (f" {subject}", True), (after, False)])
    return None if made is None else (made[0], made[1][0])
