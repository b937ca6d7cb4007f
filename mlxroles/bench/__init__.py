"""The bench: ten work items, each beside its plain twin and the model's own plain forward.

What is measured is what the commands do: patches and ablations on the engine, attention entropies
from one forward. The twin of a work is what a plain loop does, one whole forward per cell. Ratios
are to a plain forward of the same process, measured right before and after, so that they can be
compared between machines; what the machine and the models are stands in the document.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxroles.backend import mx, on_gpu
from mlxroles.bench.document import document, item
from mlxroles.bench.estimated import Attribution
from mlxroles.bench.ground import Ground
from mlxroles.bench.measure import measured, timed
from mlxroles.bench.reading import LONG, Entropies, LongPrompt, PlainForward, ShortPrompts, Streams
from mlxroles.bench.sweeps import EveryPosition, Heads, LastPosition, ShortSweep, WholeStream
from mlxroles.bench.work import Work
from mlxroles.errors import ModelError, SpecError
from mlxroles.models.model import Model
from mlxroles.text import did_you_mean, safe_text

__all__ = ["NAMES", "TOKENS", "Ground", "bench", "parse_works"]

STEADY = 1.15
"""Plain forwards of one run may differ by so much before the document says it."""

TOKENS = 512
"""Length of a prompt where nothing else is said."""

WORKS: dict[str, type[Work]] = {
    "W1": PlainForward,
    "W2": Streams,
    "W3": Entropies,
    "W4": WholeStream,
    "W5": LastPosition,
    "W6": EveryPosition,
    "W7": Heads,
    "W8": ShortPrompts,
    "W9": ShortSweep,
    "W10": LongPrompt,
}
NAMES = tuple(WORKS)
"""What can be asked for."""

LONG_SECONDS = 30.0
"""What W10 may take by estimate, where it was not asked for by name."""


def parse_works(text: str | None) -> tuple[str, ...]:
    """The works that ``W1,W4`` names, in their own order; all of them for None.

    Raises:
        SpecError: naming what is none of them, and the nearest one.
    """
    if text is None:
        return NAMES
    asked = [part.strip().upper() for part in text.split(",")]
    for name in asked:
        if name not in WORKS:
            shown = safe_text(name, limit=40)
            hint = did_you_mean(name, NAMES) or f"; there are {', '.join(NAMES)}"
            raise SpecError(f"no work {shown!r}{hint}")
    return tuple(name for name in NAMES if name in asked)


def bench(
    recipient: Model,
    donor: Model | None,
    *,
    works: Sequence[str] | None = None,
    tokens: int = TOKENS,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures the works and returns the document ``mlxroles/bench/1``.

    Args:
        recipient: The model that runs.
        donor: Where activations come from; None for the recipient's own runs of other prompts.
        works: Of ``NAMES``; None for all, with W10 on a shorter prompt where a whole one takes
            long.
        tokens: Length of the prompts; W6 runs a quarter of it, W10 32 times as much.
        tell: Told in words what is measured next.

    Raises:
        PairError: two models that no patch can go between.
        SpecError: no such work.
        ModelError: the model cannot be run at all.
    """
    notes = [*recipient.warnings, *(() if donor is None else donor.warnings)]
    ground = Ground(recipient, recipient if donor is None else donor, tokens)
    length = ground.fit(tokens)
    if length < tokens:
        notes.append(f"{length} tokens instead of {tokens}: {_limit(ground)}")
        ground = Ground(ground.recipient, ground.donor, length)
    if ground.alone:
        notes.append("one model: activations come from its own runs of other prompts")
    chosen = NAMES if works is None else parse_works(",".join(works))
    tell("warming up")
    PlainForward(ground).against()
    items: list[dict[str, Any]] = []
    for work in _made(ground, chosen, notes, patient=works is not None):
        tell(f"{work.name}  {work.what}")
        try:
            items.append(item(work, measured(work)))
        except ModelError as error:
            items.append(item(work, {}, refused=str(error)))
        if isinstance(work, Attribution):
            items[-1]["twin_ratio"] = items[-2]["twin_ratio"]
        mx.clear_cache()
    return document(ground, items, [*notes, *_cautions(items)])


def _cautions(items: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a reader of the ratios should know."""
    same = [i["reference_cpu_seconds"] for i in items if i["reference"] == Work.reference]
    known = [seconds for seconds in same if seconds]
    if known and max(known) > STEADY * min(known):
        yield (
            f"the plain forward itself took {min(known):.3g} to {max(known):.3g} CPU seconds while "
            "this ran: the machine was busy, and ratios are as uncertain"
        )
    if not on_gpu():
        yield (
            "on a CPU sweeps hand attention only the keys that a query can see, which a plain "
            "forward does not: a layer call then costs less than one of W1"
        )


def _made(
    ground: Ground, names: Sequence[str], notes: list[str], *, patient: bool
) -> Iterator[Work]:
    """The works one after the other, W6 in both of its ways."""
    for name in names:
        if name == "W10" and not patient:
            yield LongPrompt(ground, _long(ground, notes))
            continue
        work = WORKS[name](ground)
        yield work
        if isinstance(work, EveryPosition):
            yield Attribution(ground, work)


def _long(ground: Ground, notes: list[str]) -> int | None:
    """A length for W10 that does not take much longer than ``LONG_SECONDS``; None for its own."""
    whole = ground.fit(LONG * ground.tokens)
    probe = max(2, whole // 8)
    try:
        cost, _ = timed(lambda: LongPrompt(ground, probe).run(()))
    except ModelError:
        return None
    length = whole
    while length > probe and cost.counted * (length / probe) ** 2 > LONG_SECONDS:
        length //= 2
    if length < whole:
        notes.append(
            f"W10 ran {length} tokens: {whole} would take about "
            f"{cost.counted * (whole / probe) ** 2:.0f} s here (--work W10 runs them)"
        )
    return length


def _limit(ground: Ground) -> str:
    for model in (ground.recipient, ground.donor):
        if model.longest is not None and model.longest == ground.longest:
            return model.longest_reason
    return f"the model has a table of {ground.longest} positions"
