"""What a tokenizer makes of texts: what it puts in front, where words lie, which ids are learned.

Nothing is assumed about how it marks spaces, and no token that frames a text is ever added but
in front of a whole row.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlxroles.prompts import Tokenizer

EDGE = 100
"""Ids at either end of a vocabulary where special tokens stand, for a model without tokenizer."""
POOL = 4096
"""Random ids are drawn from at most so many different ones."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNUSED = re.compile(
    r"[<\[|]+(unused|reserved|extra_id|pad|special|dummy)\w*[>\]|]+", re.IGNORECASE
)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text alone, without any token that frames a sequence."""
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]


def opening(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text, such as BOS; none where it puts none."""
    if tokenizer is None:
        return ()
    plain = encode(tokenizer, "word")
    framed = [int(i) for i in tokenizer.encode("word", add_special_tokens=True)]
    for n in range(len(framed) - len(plain) + 1):
        if framed[n : n + len(plain)] == plain:
            return tuple(framed[:n])
    return ()


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand for no text: special tokens and whatever was added to the vocabulary."""
    added = getattr(tokenizer, "get_added_vocab", dict)()
    found = {int(i) for i in added.values()} | {
        int(i) for i in getattr(tokenizer, "all_special_ids", [])
    }
    return found | set(opening(tokenizer))


def ordinary_ids(
    tokenizer: Tokenizer | None, vocab: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Ids from which random rows are drawn, ascending: those of ordinary pieces of text.

    Special and added tokens, ids beyond the tokenizer's, single bytes that stand for no
    character and pieces of nothing but space are left out: what a model has never seen in
    training looks all alike to it, and a head that attends by position then scores like one
    that finds repetitions. Of a large vocabulary a random part is used.

    Without a tokenizer, or with one that does not list its pieces, all ids count but the first
    and last 100 (or a tenth of a small vocabulary).
    """
    edge = min(EDGE, vocab // 10)
    middle = np.arange(edge, max(vocab - edge, edge + 1))
    if tokenizer is None:
        return middle
    known = getattr(tokenizer, "get_vocab", dict)()
    left_out = special_ids(tokenizer)
    candidates = sorted(
        int(i)
        for piece, i in known.items()
        if int(i) < vocab and int(i) not in left_out and not _odd(str(piece))
    )
    drawn = rng.permutation(np.array(candidates, dtype=np.int64))
    found: list[int] = []
    for token in drawn.tolist():
        text = tokenizer.decode([token])
        if text.strip() and "\N{REPLACEMENT CHARACTER}" not in text and text.isprintable():
            found.append(token)
        if len(found) == POOL:
            break
    return np.sort(np.array(found or np.setdiff1d(middle, [*left_out]), dtype=np.int64))


def _odd(piece: str) -> bool:
    return bool(_BYTE.fullmatch(piece) or _UNUSED.fullmatch(piece))


def with_spans(
    tokenizer: Tokenizer, parts: Sequence[tuple[str, bool]]
) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Ids of the parts one after the other, and where the marked ones lie [first, end).

    Parts begin with the space before them. None where the tokenizer joins a marked part with
    what stands beside it, so that no token belongs to it alone.
    """
    ids = encode(tokenizer, "".join(text for text, _ in parts))
    found, before = [], ""
    for text, marked in parts:
        if marked:
            first, end = encode(tokenizer, before), encode(tokenizer, before + text)
            if ids[: len(end)] != end or end[: len(first)] != first or len(end) == len(first):
                return None
            found.append((len(first), len(end)))
        before += text
    return ids, found


def single(tokenizer: Tokenizer, words: Sequence[str], *, least: int) -> list[str]:
    """Those words that are one token after a space and a word; all where too few are.

    The test is made inside a text, so that neither a token in front of every text nor a way to
    mark the space at its beginning counts as a part of the word.
    """
    before = len(encode(tokenizer, "and"))
    alone = [w for w in words if len(encode(tokenizer, f"and {w}")) == before + 1]
    return alone if len(alone) >= least else list(words)
