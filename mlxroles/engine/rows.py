"""Rows of a sweep: where each joins the recipient's run, and which of them run together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxroles.edits import LINEAR, Edit

ORDER = (
    "resid_pre",
    LINEAR,
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "mlp_out",
    "resid_post",
)
"""Sites of a block as a run passes them; an edit is known not to touch what comes before it.

A linear leaf may lie anywhere in its block.
"""

LATE = ("q", "pattern", "z", "attn_out", "mlp_out", "resid_post")
"""Sites whose position p reaches, within the block, only what leaves the block at p."""


@dataclass(frozen=True, eq=False)
class Row:
    """One cell of a sweep: the recipient's run of one prompt under edits."""

    edits: tuple[Edit, ...]
    prompt: int = 0
    """Which of the clean run's prompts."""


@dataclass(frozen=True)
class Shape:
    """What rows of one clean run have in common."""

    n_layers: int
    length: int
    read: tuple[int, ...]
    """Positions of which logits are wanted."""
    late: bool
    """Runs may start at any position and read the last layer at the read positions only."""
    shortest: int = 1
    """Positions that a run has at least: 2 where a single one is attended to in another form."""

    @property
    def first_read(self) -> int:
        """The first position that the last layer has to compute."""
        return max(0, min(*self.read, self.length - self.shortest)) if self.late else 0


@dataclass(frozen=True)
class Spot:
    """Where a row joins: before layer ``layer``, or inside it at the site ``inside``."""

    layer: int
    inside: str | None
    start: int
    """First position that has to be computed."""
    prompt: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Rows join in this order."""
        return self.layer, 0 if self.inside is None else ORDER.index(self.inside)


def first_edits(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Those edits that come first in the run: all at one site of one layer."""
    point = min((e.layer, ORDER.index(e.site)) for e in edits)
    return tuple(e for e in edits if (e.layer, ORDER.index(e.site)) == point)


def spot(row: Row, shape: Shape) -> Spot | None:
    """Where a row joins the run; None where no edit can reach a position that is read."""
    last = shape.n_layers - 1
    firsts = []
    for edit in row.edits:
        first = edit.first_position
        if edit.layer == last and edit.site in LATE:
            touched = shape.read if edit.positions is None else set(edit.positions) & {*shape.read}
            if not touched:
                continue
            first = max(first, shape.first_read)
        if first <= max(shape.read):
            firsts.append(first)
    if not firsts:
        return None
    start = min(*firsts, shape.first_read) if shape.late else 0
    first = first_edits(row.edits)[0]
    if first.site == "resid_post":
        return Spot(first.layer + 1, None, start, row.prompt)
    inside = None if first.site == "resid_pre" else first.site
    return Spot(first.layer, inside, start, row.prompt)


def least_calls(spot: Spot, shape: Shape) -> float:
    """Row-layers that a row needs at least: one layer over one whole prompt counts as 1.

    Layers after the join from its first position on; the last one from the first position read on.
    """
    last = shape.n_layers - 1
    share = (shape.length - spot.start) / shape.length
    whole = max(0, last - spot.layer) * share
    read = (shape.length - shape.first_read) / shape.length
    return whole + (read if spot.layer <= last else 0.0)


def clean_calls(shape: Shape) -> float:
    """Row-layers of a clean run whose last layer is read late."""
    return shape.n_layers - 1 + (shape.length - shape.first_read) / shape.length


SHORT = 64
"""Tokens up to which the copies of prefixes of several prompts weigh less than smaller batches."""


def batches(
    spots: Sequence[Spot], shape: Shape, *, tokens: int, fits: Callable[[int], int]
) -> list[list[int]]:
    """Cuts rows into batches that run together, as lists of indices in joining order.

    Rows of one batch share their first position, so that none computes positions that it need
    not; neighbouring ones are joined only while a batch is too small to be worth its own run.

    Args:
        spots: Where the rows join.
        shape: What they have in common.
        tokens: Positions per layer call that are worth computing at once.
        fits: Most rows of a batch that begins at a position, by memory.
    """
    apart = shape.late and shape.length > SHORT
    groups: dict[tuple[int, int], list[int]] = {}
    for n, s in enumerate(spots):
        groups.setdefault((s.prompt if apart and s.start else 0, s.start), []).append(n)
    made: list[list[int]] = []
    opened: tuple[int, int] | None = None
    for key in sorted(groups):
        members = groups[key]
        if opened is not None and opened[0] == key[0]:
            span = shape.length - opened[1]
            near = key[1] - opened[1] <= max(1, span // 8)
            if near and span * (len(made[-1]) + len(members)) <= tokens:
                made[-1] += members
                continue
        opened = key
        made.append(list(members))
    cut = []
    for members in made:
        ordered = sorted(members, key=lambda n: (spots[n].order, spots[n].prompt))
        begin = min(spots[n].start for n in members)
        size = max(1, min(fits(begin), tokens // (shape.length - begin)))
        cut += [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return cut
