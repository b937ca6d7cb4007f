"""Text for detectors: the package's own, written from seeded templates, or the user's.

The same people, places and things come back within a document, as in any text, so that tokens
repeat; rows of the package's text come from documents of their own and are independent.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from mlxroles.detectors import pieces, places
from mlxroles.detectors.plain import Plain
from mlxroles.errors import PromptError
from mlxroles.prompts import Tokenizer

_DEALT = re.compile(r"\{(\w+)\}")
_LIKE = {"A": "name", "B": "name", "other": "place", "thing2": "thing", "food2": "food"}
_LIKE |= {"quality2": "quality", "C": "name"}
_SENTENCES = 12
"""Sentences of one document between its opening and its end."""
_BEFORE = 3
"""Tokens before the last one of a question that its score is compared with."""


@cache
def words() -> Mapping[str, Any]:
    """The packaged lists and templates."""
    return tomllib.loads(files("mlxroles.data.words").joinpath("heads.toml").read_text("utf-8"))


def deal(rng: np.random.Generator) -> dict[str, str]:
    """A word for every brace, different ones where two are of a kind."""
    found: dict[str, str] = {}
    for kind, listed in words()["words"].items():
        keys = [kind, *(key for key, like in _LIKE.items() if like == kind)]
        drawn = rng.choice(len(listed), len(keys), replace=False)
        found |= {key: listed[int(n)] for key, n in zip(keys, drawn, strict=True)}
    return found


def fill(template: str, dealt: Mapping[str, str]) -> str:
    """A template with its braces filled."""
    return _DEALT.sub(lambda match: dealt[match[1]], template)


def document(rng: np.random.Generator) -> str:
    """One document of a few paragraphs."""
    given, dealt = words()["documents"], deal(rng)
    chosen = [given["openings"][int(rng.integers(len(given["openings"])))]]
    order = rng.permutation(len(given["sentences"]))[:_SENTENCES]
    chosen += [given["sentences"][int(n)] for n in order]
    chosen.append(given["endings"][int(rng.integers(len(given["endings"])))])
    text = ""
    for template in chosen:
        text += ("" if not text or text.endswith("\n") else " ") + fill(template, dealt)
    return text


def rows(
    tokenizer: Tokenizer,
    text: str | None,
    front: Sequence[int],
    *,
    sequences: int,
    length: int,
    seed: int,
) -> tuple[list[list[int]], list[str]]:
    """Rows of ``length`` ids with what stands in front, and notes.

    Raises:
        PromptError: the user's text has not enough tokens for two rows.
    """
    inner = length - len(front)
    if text is None:
        return [[*front, *own_row(tokenizer, inner, seed, n)] for n in range(sequences)], []
    notes = []
    special = pieces.special_ids(tokenizer)
    given = pieces.encode(tokenizer, text)
    ids = [i for i in given if i not in special]
    if len(ids) < len(given):
        notes.append(f"{len(given) - len(ids)} special tokens inside the text were left out")
    count = len(ids) // inner
    if count < 2:
        raise PromptError(
            f"the text has {len(ids)} tokens; two rows of {length} need {2 * inner}; give a longer "
            "text or shorter rows (--length)"
        )
    if count < sequences:
        notes.append(f"the text is enough for {count} rows of {length} tokens, not {sequences}")
    at = np.linspace(0, count - 1, min(count, sequences)).astype(int)
    return [[*front, *ids[n * inner : (n + 1) * inner]] for n in at.tolist()], notes


def own_row(tokenizer: Tokenizer, inner: int, seed: int, n: int) -> list[int]:
    """So many ids of documents of row ``n`` alone, from the beginning of the first."""
    rng = np.random.default_rng([seed, 3, n])
    special, text, ids = pieces.special_ids(tokenizer), "", []
    while len(ids) < inner:
        text += document(rng)
        ids = [i for i in pieces.encode(tokenizer, text) if i not in special]
    return ids[:inner]


def delimiters(tokenizer: Tokenizer) -> set[int]:
    """Ids of delimiters that are one token after a word, without what stands in front of a text."""
    before = pieces.encode(tokenizer, "word")
    found = set()
    for text in words()["delimiters"]["texts"]:
        ids = pieces.encode(tokenizer, f"word{text}")
        if len(ids) == len(before) + 1 and ids[:-1] == before:
            found.add(ids[-1])
    return found


def answers(tokenizer: Tokenizer, n: int, seed: int) -> dict[str, Plain]:
    """The set ``answers``: questions with answers.

    ``final`` is the weight that the tokens of the answer give to the last token of the prompt,
    where a model has read all that it is asked (activations of that token are what most work on
    prompts looks at); ``before`` that on the three tokens before it.
    """
    given, found = words()["answers"]["questions"], Plain("questions with answers")
    for row in range(n):
        rng = np.random.default_rng([seed, 4, row])
        dealt = deal(rng)
        question, answer = (fill(part, dealt) for part in given[row % len(given)])
        asked = pieces.encode(tokenizer, question)
        whole = pieces.encode(tokenizer, question + answer)
        ids = whole if whole[: len(asked)] == asked else asked + pieces.encode(tokenizer, answer)
        queries = np.arange(len(asked), len(ids))
        keys = range(len(asked) - 1 - _BEFORE, len(asked))
        on = [places.places(queries, np.full(len(queries), key)) for key in keys]
        scores = {"final": on[-1], "before": places.mean_of(on[:-1])}
        found.add(ids, scores, final=len(asked) - 1)
    return {"answers": found}
