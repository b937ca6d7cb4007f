"""What is shown to a model: named sets of id rows, and the places that each score reads in them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxroles.detectors import lists, names, pieces, places, prose
from mlxroles.detectors.places import Places
from mlxroles.detectors.plain import Plain
from mlxroles.detectors.recipes import available
from mlxroles.errors import PromptError
from mlxroles.prompts import Tokenizer

SEQUENCES, LENGTH = 32, 256
"""Rows of each set by default, and tokens of a row of text."""
HALF = 32
"""L of the rows [x, x] by default: what published figures of small models were found on."""
OFFSETS = 128
"""Most offsets of the positional profile; never more than half a row, where few queries are."""
SHORTEST = 16
MOST = 256
"""Most lists and most pairs of names."""


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows of ids and, for each score that is read from them, the places of every row."""

    name: str
    about: str
    """In words, for a reader."""
    ids: tuple[tuple[int, ...], ...]
    scores: Mapping[str, tuple[Places, ...]]
    """Name of a score -> its places in each row."""
    offsets: int = 0
    """Offsets of the positional profile; 0 for none."""
    start: int = 0
    """Tokens in front of every row that belong to no text, such as BOS."""

    marks: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """What a causal check reads, of every row: ``elements`` (token spans [first, end) of a list's
    elements), ``io`` and ``subject`` (first ids of the right name and of the one named twice),
    ``final`` (the last token of the prompt)."""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Material:
    """All sets, by name: ``text``, ``random``, ``repeated``, ``answers``, ``lists``, ...

    Rows of one number belong together: row n of ``repeated`` is [x, x] and that of ``random``
    [x, y]; a list and its shuffled twin; the orders of one pair of names.
    """

    sets: Mapping[str, RowSet]
    opening: tuple[int, ...]
    """The ids in front of every row."""
    ordinary: tuple[int, ...]
    """Ids from which random rows are drawn."""
    names: tuple[int, ...]
    """First ids of the names of ``names_abba``, for the OV copy score."""
    share: float
    """Share of delimiters among the tokens of the text."""
    notes: tuple[str, ...] = ()
    """What could not be made, or was put right, one line each."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Seed, rows and lengths, where the text comes from: for a document."""

    @property
    def digest(self) -> str:
        """SHA-256 of all rows and places, hexadecimal."""
        found = hashlib.sha256()
        for rows in self.sets.values():
            found.update(repr((rows.name, rows.ids, rows.offsets, rows.start)).encode())
            for name, given in rows.scores.items():
                found.update(name.encode())
                for part in (array for own in given for array in own):
                    found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors that this material serves, in their order."""
        return available(self.sets)

    def __repr__(self) -> str:
        """A line for each set."""
        rows = [f"  {s.name:<12} {len(s)} rows, {s.about}" for s in self.sets.values()]
        return "\n".join(["Material", *rows, *(f"  note: {note}" for note in self.notes)])


def material(
    tokenizer: Tokenizer | None,
    vocab: int,
    *,
    text: str | None = None,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    half: int = HALF,
    seed: int = 0,
) -> Material:
    """Makes all sets that a tokenizer allows; without one, those of random ids.

    Every row begins with what the tokenizer itself puts in front of a text (BOS for most models,
    nothing for Qwen's or GPT-2's), once and nowhere else, also rows of random ids.

    Args:
        tokenizer: Of the model, or of both models of a pair; None for a model without.
        vocab: Number of ids that the models know.
        text: The user's text instead of the package's, for the set ``text``.
        sequences: Rows of each set; lists and names have twice as many, up to 256.
        length: Tokens of each row of text and of random ids, with what stands in front.
        half: L of the rows [x, x]; no more than fits into ``length``.
        seed: Of everything that is drawn; the same seed gives the same rows.

    Raises:
        PromptError: too few sequences, too short rows, or a text too short for two rows.
    """
    if sequences < 2:
        raise PromptError(f"{sequences} sequence gives no interval; take 2 or more (--sequences)")
    if length < SHORTEST:
        raise PromptError(
            f"rows of {length} tokens are too short; take {SHORTEST} or more (--length)"
        )
    front = pieces.opening(tokenizer)
    ordinary = pieces.ordinary_ids(tokenizer, vocab, np.random.default_rng([seed, 0]))
    notes: list[str] = []
    half = min(half, (length - len(front)) // 2)
    drawn = np.random.default_rng([seed, 1]).choice(ordinary, (sequences, length - len(front)))
    sets = _random(drawn, front, half)
    known, share = [], 0.0
    if tokenizer is None:
        notes.append(
            "the model has no tokenizer: only the detectors on random ids ran"
            + (", and the text was not used" if text is not None else "")
        )
    else:
        made, found = prose.rows(
            tokenizer, text, front, sequences=sequences, length=length, seed=seed
        )
        notes += found
        written, share = _text(made, front, tokenizer, np.random.default_rng([seed, 2]))
        asked = prose.answers(tokenizer, sequences, seed)
        listed, list_notes = lists.sets(tokenizer, min(2 * sequences, MOST), seed)
        named, known, name_notes = names.sets(tokenizer, min(2 * sequences, MOST), seed)
        notes += [*list_notes, *name_notes]
        sets = [written, *sets]
        sets += [framed(name, given, front) for name, given in (asked | listed | named).items()]
    kept = {s.name: s for s in sets if len(s) > 1}
    about: dict[str, Any] = {"seed": seed, "sequences": sequences, "length": length, "half": half}
    about |= {"opening": list(front), "text": "own" if text is None else "file"}
    about |= {"random_ids": len(ordinary), "sets": {s.name: s.about for s in kept.values()}}
    return Material(kept, front, tuple(ordinary.tolist()), tuple(known), share, tuple(notes), about)


def _offsets(length: int) -> int:
    return min(OFFSETS, max(length // 2, 2))


def _sized(scores: Mapping[str, Places], rows: int) -> dict[str, tuple[Places, ...]]:
    """Places that are the same in every row."""
    return {name: (given,) * rows for name, given in scores.items()}


def _positions(length: int, start: int) -> dict[str, Places]:
    """Scores by position alone; what stands in front of a text is a key of ``first`` only."""
    inner = length - start
    return {
        "previous": places.previous(inner).moved(start),
        "neighbours": places.neighbours(inner).moved(start),
        "self": places.own(length) if not start else places.offset(inner, 0).moved(start),
        "first": places.first(length),
        "other_first": places.other_first(length),
    }


def _random(drawn: np.ndarray, front: Sequence[int], half: int) -> list[RowSet]:
    """``repeated`` [x, x] and ``random`` [x, y], of which the same places are the control."""
    n, start, whole = len(drawn), len(front), drawn.shape[1] + len(front)
    pairs = {"induction": places.repeat(half), "duplicate": places.same(half)}
    pairs = {name: given.moved(start) for name, given in pairs.items()}
    x = drawn[:, :half].tolist()
    return [
        RowSet(
            "random", f"{drawn.shape[1]} random ids",
            tuple((*front, *row) for row in drawn.tolist()),
            _sized(_positions(whole, start) | pairs, n), _offsets(whole), start,
        ),
        RowSet(
            "repeated", f"{half} random ids, twice", tuple((*front, *row, *row) for row in x),
            _sized(pairs, n), 0, start,
        ),
    ]  # fmt: skip


def _text(
    rows: Sequence[Sequence[int]],
    front: Sequence[int],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> tuple[RowSet, float]:
    """The set ``text`` and the share of delimiters in it."""
    start, scores = len(front), {}
    chosen = prose.delimiters(tokenizer)
    table = np.array(sorted(chosen), dtype=np.int64)
    marked = [np.isin(np.asarray(row), table) for row in rows]
    for row, where in zip(rows, marked, strict=True):
        inner, at = row[start:], where[start:]
        twice = places.duplicates(inner)
        rows_scores = _positions(len(row), start) | {
            "duplicate": twice.moved(start),
            "matched": places.matched(twice, inner, rng).moved(start),
            "delimiter": places.onto(at, start=0).moved(start),
            "other_keys": places.onto(places.others(at, rng), start=0).moved(start),
        }
        for name, given in rows_scores.items():
            scores.setdefault(name, []).append(given)
    length = len(rows[0])
    share = float(np.mean([where[start:].mean() for where in marked]))
    made = RowSet(
        "text", f"text of {length} tokens", tuple(tuple(row) for row in rows),
        {name: tuple(given) for name, given in scores.items()}, _offsets(length), start,
    )  # fmt: skip
    return made, share


def framed(name: str, plain: Plain, front: Sequence[int]) -> RowSet:
    """A set of rows that have not got their front yet."""
    start = len(front)
    scores = {key: tuple(p.moved(start) for p in own) for key, own in plain.scores.items()}
    rows = tuple((*front, *row) for row in plain.ids)
    return RowSet(name, plain.about, rows, scores, 0, start, plain.moved_marks(start))
