"""What heads of each class are for, as something that a model says better with them than without.

Every task is a set of prompts and one number per prompt that its logits give; it is measured on
the model as it is and with heads at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.backend import mx
from mlxroles.detectors import Material, RowSet
from mlxroles.prompts import digest
from mlxroles.studies.ablate import effects
from mlxroles.studies.ablate.effects import Numbers
from mlxroles.studies.ablate.runs import Own
from mlxroles.studies.encoded import Encoded

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Behaviour:
    """What a class of heads is for, and how it shows."""

    measure: str
    words: str
    """The measure, as in "zeroing them lowers ..."."""
    unit: str
    way: int
    """Where the measure goes without such heads: 1 up, -1 down."""
    is_lead: bool = False
    """Whether it is a lead that a model need not have: nothing can be taken from one of 0."""


GAIN = Behaviour("gain", "the repetition gain", "nats", -1, is_lead=True)
LOSS = Behaviour("text_loss", "the loss on text", "nats", 1)
NEXT = Behaviour("next_element", "the log-probability of the next element of a list", "nats", -1)
NAME = Behaviour(
    "name_difference",
    "the lead of the right name over the repeated one",
    "logits",
    -1,
    is_lead=True,
)
SEEN = Behaviour(
    "seen", "the lead of tokens that came before over others", "logits", -1, is_lead=True
)
UNSEEN = Behaviour("seen", SEEN.words, SEEN.unit, 1)

BEHAVIOURS = {
    "previous": GAIN,
    "induction": GAIN,
    "duplicate": GAIN,
    "positional": LOSS,
    "first": LOSS,
    "self": LOSS,
    "final": LOSS,
    "delimiter": LOSS,
    "successor": NEXT,
    "s_inhibition": NAME,
    "copying": SEEN,
    "anti_copying": UNSEEN,
}
"""Class -> what its heads are for; any other class is held to the loss on text."""


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts on which a measure is taken."""

    prompts: tuple[Encoded, ...]
    own: Own | None = None
    """Gives the measure; None where every run has it by itself."""


def named(rows: Rows, name: str) -> tuple[Encoded, ...]:
    """Rows of ids as prompts ``name00``, ``name01``, ..."""
    return tuple(
        Encoded(f"{name}{n:02d}", tuple(map(int, row)), digest(tuple(map(int, row))))
        for n, row in enumerate(rows)
    )


def tasks(material: Material) -> dict[str, Task]:
    """Measure -> its task, for every measure that the material has rows for."""
    sets, start = material.sets, len(material.opening)
    found = {}
    if "repeated" in sets:
        found[GAIN.measure] = on_repeats(sets["repeated"].ids, start)
        found[SEEN.measure] = on_seen(sets["random"].ids, start)
    if "text" in sets:
        found[LOSS.measure] = on_text(sets["text"].ids)
    if "lists" in sets:
        found[NEXT.measure] = on_elements(sets["lists"].ids, sets["lists"].marks["elements"])
    rows = [
        (ids, io, subject)
        for order in ("names_abba", "names_baba")
        if order in sets
        for ids, io, subject in zip(sets[order].ids, *_sides(sets[order]), strict=True)
        if io != subject
    ]
    if rows:
        found[NAME.measure] = on_two(*zip(*rows, strict=True))
    return found


def _sides(rows: RowSet) -> tuple[Sequence[int], Sequence[int]]:
    """First ids of the right name and of the one that is named twice, of every row."""
    return rows.marks["io"], rows.marks["subject"]


def on_repeats(rows: Rows, start: int) -> Task:
    """On [x, x] behind ``start`` ids: how much less the loss on x is the second time."""
    prompts = named(rows, "repeat")

    def own(log_probs: mx.array, which: Sequence[int]) -> dict[str, Numbers]:
        tokens = mx.array([prompts[n].ids for n in which])[:, start:]
        half = tokens.shape[1] // 2
        gain = effects.repetition(log_probs[:, start:], tokens, half)[GAIN.measure]
        return {GAIN.measure: gain}

    return Task(prompts, own)


def on_text(rows: Rows) -> Task:
    """The mean of -ln P of every token but the first."""
    prompts = named(rows, "text")

    def own(log_probs: mx.array, which: Sequence[int]) -> dict[str, Numbers]:
        tokens = mx.array([prompts[n].ids for n in which])
        return {LOSS.measure: _numbers(effects.losses(log_probs, tokens).mean(axis=-1))}

    return Task(prompts, own)


def on_elements(rows: Rows, elements: Sequence[Sequence[tuple[int, int]]]) -> Task:
    """The mean over a list's elements, from the third on, of ln P of all tokens of each.

    Args:
        rows: Lists.
        elements: Where the elements of each lie, [first, end).
    """
    prompts = named(rows, "list")

    def own(log_probs: mx.array, which: Sequence[int]) -> dict[str, Numbers]:
        found = []
        for row, n in enumerate(which):
            spans = elements[n][2:]
            places = [p for first, end in spans for p in range(first, end)]
            ids = mx.array([prompts[n].ids[p] for p in places])[:, None]
            said = log_probs[row][mx.array([p - 1 for p in places])]
            found.append(mx.take_along_axis(said, ids, axis=-1).sum() / len(spans))
        return {NEXT.measure: _numbers(mx.stack(found))}

    return Task(prompts, own)


def on_two(rows: Rows, right: Sequence[int], wrong: Sequence[int]) -> Task:
    """After the last token of each row: the logit of one id less that of another."""
    prompts = named(rows, "names")

    def own(log_probs: mx.array, which: Sequence[int]) -> dict[str, Numbers]:
        last = log_probs[:, -1]
        ids = [mx.array([side[n] for n in which])[:, None] for side in (right, wrong)]
        first, second = (mx.take_along_axis(last, one, axis=-1)[:, 0] for one in ids)
        return {NAME.measure: _numbers(first - second)}

    return Task(prompts, own)


def on_seen(rows: Rows, start: int) -> Task:
    """How far the logits of tokens that came before lie above those of tokens that did not.

    At every position the mean logit of the row's own tokens up to there, less that of the next
    row's tokens at the same places; the mean over positions. Rows are random ids of one length, the
    first ``start`` of them the same in all, so that without any copying the two are the same but
    for chance.
    """
    prompts = named(rows, "random")

    def own(log_probs: mx.array, which: Sequence[int]) -> dict[str, Numbers]:
        length = len(prompts[0].ids) - start
        count = np.arange(1, length + 1)
        weight = np.tril(np.ones((length, length), np.float32)) / (count[:, None] * length)
        found = []
        for shift in (0, 1):
            ids = [prompts[(n + shift) % len(prompts)].ids[start:] for n in which]
            keys = mx.broadcast_to(mx.array(ids)[:, None], (len(which), length, length))
            found.append(mx.take_along_axis(log_probs[:, start:], keys, axis=-1))
        return {SEEN.measure: _numbers(((found[0] - found[1]) * mx.array(weight)).sum(axis=(1, 2)))}

    return Task(prompts, own)


def _numbers(values: mx.array) -> Numbers:
    return np.array(values.astype(mx.float32)).astype(np.float64)
