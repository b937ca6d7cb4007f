"""Draws the state of a run for a given size: pure, so that every screen can be tested.

Layers of a patch run are bars, or a map where each layer has a cell per head or position; a run
without layers shows which prompts are done. What does not fit is left out, the least first: the
log, what marks stand for, half-way layers, speed; the bar and the body stay to the end.
"""

from collections.abc import Callable, Sequence
from functools import partial

from rich.text import Text

from mlxroles.dashboard import facts, heat
from mlxroles.dashboard import seats as grid
from mlxroles.dashboard.curves import curves, heights, legend
from mlxroles.dashboard.facts import Memory, memory_of
from mlxroles.dashboard.layout import Look, Section, beside, blank, clipped, flush, one, stacked
from mlxroles.dashboard.state import RunState
from mlxroles.text import safe_text

WIDE = 130
"""From this width on the log stands beside the layers."""

_SIDE = 46
_LOG = 6
_LEAST = 4


def lines(
    state: RunState, look: Look, memory: Memory | None = None, *, has_log: bool = True
) -> list[Text]:
    """The whole screen of a run, no line wider and no more lines than the look has.

    Args:
        state: what is shown.
        look: width, height and colours.
        memory: of this process; None for what the run itself has said.
        has_log: whether notes and failures are shown, which others may print already.
    """
    return stacked([*top(state, look, memory), *body(state, look, has_log=has_log)], look)


def top(state: RunState, look: Look, memory: Memory | None = None) -> list[Section]:
    """What the run is, how far it is, how fast."""
    width = look.width
    found = facts.status(state, width, memory or memory_of(state))
    return [
        *one(1, title(state, width)),
        *one(0, facts.overall(state, width)),
        *one(2, found),
    ]


def body(state: RunState, look: Look, *, good: int = 0, has_log: bool = True) -> list[Section]:
    """The layers or prompts, what was found, what failed, what was said.

    Args:
        state: what is shown.
        look: width, height and colours of the whole screen.
        good: rows that the layers have before anything of less weight is shown.
        has_log: whether notes and failures are shown.
    """
    width = look.width
    has_log = has_log and bool(state.log)
    is_wide = width >= WIDE and has_log
    if is_wide:
        width -= _SIDE + 3
    draw, sizes = _middle(state, Look(width, look.height, look.colors))
    good = good or max(look.height - 8, 3)
    steps = _steps(sizes, good)
    middle = Section(steps, draw, is_elastic=False)
    notes = [
        *one(8, legend(state.progress, width) if _has_bars(state) else None),
        *one(4, facts.halves(state, width)),
        *one(5, facts.failure(state, width)),
    ]
    if is_wide:
        inner = [middle, blank(10), *notes]
        rows = max(steps[-1][1] + len(notes) + 1, 4)
        return [blank(10), Section([*steps, (9, rows)], partial(_both, state, look, inner))]
    said = min(len(state.log), _LOG) if has_log else 0
    to_log = [(6, min(said, 2)), (8, said)] if said else []
    return [
        blank(10),
        middle,
        blank(10),
        *notes,
        Section(to_log, partial(facts.log, state, width)),
    ]


def _both(state: RunState, look: Look, inner: Sequence[Section], height: int) -> list[Text]:
    at = look.width - _SIDE
    left = stacked(inner, Look(at - 3, height, look.colors))
    right = [Text("events", style="bold")]
    for each in list(state.log)[-height:]:
        right += facts.said(each.kind, each.time, each.text, _SIDE, rows=2)
    if len(right) > height:
        right = [right[0], *right[len(right) - height + 1 :]]
    return beside(left, right, at)


def _steps(sizes: Sequence[int], good: int) -> list[tuple[int, int]]:
    """The sizes with their turns: a few rows first, a good size before others, more after them."""
    least = next((size for size in sizes if size >= _LEAST), max(sizes, default=0))
    kept = [size for size in sizes if size >= least] or [least]
    turns = [(1 if size == least else 3 if size <= good else 7, size) for size in kept]
    smaller = [(1, size) for size in sizes if 1 < size < least]
    return [*smaller, *turns]


def _middle(state: RunState, look: Look) -> tuple[Callable[[int], list[Text]], list[int]]:
    """What draws the part that matters most, and the rows that it can fill."""
    progress, width = state.progress, look.width
    if progress.part_axis is not None:
        sizes = heat.heights(progress, width, look.colors)
        return lambda rows: heat.maps(progress, width, rows, look.colors), sizes
    if progress.layers:
        return lambda rows: curves(progress, width, rows), heights(progress)
    sizes = list(range(1, grid.rows_wanted(state) + 1))
    return lambda rows: grid.seats(state, width, rows), sizes


def _has_bars(state: RunState) -> bool:
    return bool(state.progress.layers) and state.progress.part_axis is None


def title(state: RunState, width: int) -> Text:
    """The name of the run; how many layers, where not all; restarts."""
    progress = state.progress
    named = safe_text(progress.title, limit=200) or ("patching" if progress.layers else "preparing")
    text = Text.assemble((named, "bold"))
    if progress.layers and len(progress.layers) < progress.n_layers:
        text.append(f"  {len(progress.layers)} of {progress.n_layers} layers", "dim")
    if not state.deaths:
        return clipped(text, width)
    count = f"{state.deaths} restart{'s' * (state.deaths > 1)}"
    return flush(text, Text(f"† {count}", style="red"), width)
