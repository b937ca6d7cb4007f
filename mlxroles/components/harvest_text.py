"""The text of a harvest: the user's or generated English, cut into rows for one model."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlxroles.detectors import pieces, prose
from mlxroles.errors import PromptError
from mlxroles.models.model import Model
from mlxroles.store.files import plain_errors, shown
from mlxroles.text import safe_text

LENGTH = 256
"""Tokens of a row."""
OTHER = 1 << 20
"""Added to a seed: other documents than detectors read; the command that harvests adds it once
more, for others than components are trained on by default."""
LEAST = 16
"""Tokens of a text below which nothing is harvested."""


class Text(NamedTuple):
    """Rows of ids, each with what the tokenizer puts in front of a text."""

    rows: list[list[int]]
    about: dict[str, Any]
    """Name, digest and number of tokens."""
    notes: list[str]


def text_rows(model: Model, path: Path | None, *, tokens: int, seed: int) -> Text:
    """About so many tokens of a file, or of generated English; random ids without a tokenizer.

    A longer file is read at places that are spread over it, a shorter one whole.

    Raises:
        PromptError: a text without a tokenizer, or one of hardly any tokens.
        StoreError: the file cannot be read.
    """
    limits = (LENGTH, max(tokens, LEAST) // 2, model.longest, model.table_length)
    length, tokenizer = min(n for n in limits if n is not None), model.tokenizer
    if tokenizer is None:
        if path is not None:
            raise PromptError(
                f"{model.name} has no tokenizer to read a text with; leave --text out for "
                "random ids"
            )
        rng = np.random.default_rng([seed, 11])
        ids = pieces.ordinary_ids(None, model.n_ids, rng)
        rows = rng.choice(ids, (max(2, tokens // length), length)).tolist()
        return _named(rows, "random ids", ["the model has no tokenizer: the text is random ids"])
    front, given = pieces.opening(tokenizer), None
    if path is not None:
        given = _read(path)
        special = pieces.special_ids(tokenizer)
        own = sum(i not in special for i in pieces.encode(tokenizer, given))
        length = min(length, _half(own, path) + len(front))
    count = max(2, tokens // length)
    rows, notes = prose.rows(
        tokenizer, given, front, sequences=count, length=length, seed=seed + OTHER
    )
    notes = [note for note in notes if "is enough for" not in note]
    if path is not None and len(rows) < count:
        notes.append(f"the text has {sum(map(len, rows)):,} tokens, less than {tokens:,}")
    return _named(rows, "generated English" if path is None else safe_text(path.name), notes)


def _read(path: Path) -> str:
    with plain_errors(path, verb="read"):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise PromptError(f"{shown(path)} is no text in UTF-8; save it as such") from None


def _half(n: int, path: Path) -> int:
    """Half of a text's tokens, so that even a short one makes two rows."""
    if n < LEAST:
        raise PromptError(f"{shown(path)} has {n} tokens; {LEAST} are needed at least")
    return n // 2


def _named(rows: list[list[int]], name: str, notes: list[str]) -> Text:
    digest = hashlib.sha256(json.dumps([list(map(int, row)) for row in rows]).encode()).hexdigest()
    about = {"name": name, "tokens": sum(map(len, rows)), "sha256": digest}
    return Text(rows, about, notes)
