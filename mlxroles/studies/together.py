"""One study on several processes that hold its models together: the first leads, the others follow.

The first rank has the run folder, the pending cells, the signals and the display; the runner sees a
study like any other. Before every step it tells the others what comes, and after it all of them
say how it went, so that a result is only handed on when every rank has the same. Nothing but the
group connects them: they may share no disk.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from mlxroles import runner
from mlxroles.errors import RanksError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import run_id
from mlxroles.ranks import Ranks
from mlxroles.runner import Result, Study
from mlxroles.store.folder import RunFolder
from mlxroles.supervision import LeftToFirst, supervision

DEAF = ("SIGINT", "SIGHUP")
"""Signals that a terminal sends to all ranks, and the first one answers for all of them."""

T = TypeVar("T")


def run(
    study: Study,
    cells: Sequence[Cell],
    folder: RunFolder,
    emit: Emit,
    *,
    ranks: Ranks | None = None,
    **options: Any,
) -> RunFinished:
    """``runner.run``, the others of a group told of every step; arguments and errors are its.

    Raises:
        RanksError: another rank cannot go on.
    """
    if ranks is None:
        return runner.run(study, cells, folder, emit, **options)
    leader = _Leader(study, cells, ranks)
    with leader.leading():
        return runner.run(leader, cells, folder, emit, **options)


def begin(
    study: Study,
    identity: Mapping[str, Any],
    cells: Sequence[Cell],
    ranks: Ranks | None,
    **calls: Callable[[], object],
) -> None:
    """The first thing that every rank does in a run; only the first one goes on from here.

    Args:
        study: What computes.
        identity: Of the run, the same on all ranks.
        cells: The whole plan.
        ranks: The group; None for a process that has its models to itself.
        calls: What the first rank may ask for besides, by ``ask``.

    Raises:
        LeftToFirst: this is another rank than the first, and the run is over.
        RanksError: the ranks are not about to do the same, or one of them cannot go on.
    """
    if ranks is None:
        return
    # the launcher's machines are parts of one model here: none of them has cells of its own
    os.environ |= replace(supervision(), rank=0, size=1).variables()
    found = ranks.exchange(run_id(identity))
    strange = [rank for rank, name in enumerate(found) if name != found[0]]
    if strange:
        raise RanksError(
            f"rank {strange[0]} would run something else than the first one: its model files, "
            "prompts or versions differ"
        )
    if not ranks.leads:
        _follow(study, cells, ranks, calls)
        raise LeftToFirst(RunFinished(0, 0, 0.0))


def _follow(
    study: Study,
    cells: Sequence[Cell],
    ranks: Ranks,
    calls: Mapping[str, Callable[[], object]],
) -> None:
    """Does what the first rank says until it says that it is over."""
    preparing: Iterator[None] = iter(())
    with _deaf():
        while (order := ranks.exchange()[0])["do"] != "end":
            match order["do"]:
                case "prepare":
                    preparing = iter(study.prepare(_batches(study, cells, order["batches"])))
                    ranks.step(lambda steps=preparing: next(steps, None))
                case "go on":
                    ranks.step(lambda steps=preparing: next(steps, None))
                case "compute":
                    [batch] = _batches(study, cells, order["batches"])
                    _computed(ranks, study, batch)
                case name:
                    ranks.step(calls[name])
    ranks.over = True


def ask(ranks: Ranks | None, name: str, action: Callable[[], T]) -> T:
    """Does on this rank what the others are asked for by name, see ``begin``."""
    if ranks is None:
        return action()
    ranks.exchange({"do": name})
    return ranks.step(action)


def release(ranks: Ranks | None) -> None:
    """Lets the other ranks go where there was nothing to run."""
    if ranks is not None and not ranks.over:
        ranks.exchange({"do": "end"})
        ranks.over = True


class _Leader:
    """A study whose every step the other ranks do too."""

    def __init__(self, study: Study, cells: Sequence[Cell], ranks: Ranks) -> None:
        self.study, self.ranks = study, ranks
        self._numbers = {cell.id: n for n, cell in enumerate(cells)}
        self._lonely: list[Any] = []
        self._busy = False

    @contextmanager
    def leading(self) -> Generator[None]:
        """Lets the others go in the end, unless they are lost or in the midst of something."""
        try:
            yield
        except BaseException:
            with suppress(RanksError):
                self._let_go()
            raise
        self._let_go()

    def _let_go(self) -> None:
        if not self._busy:
            release(self.ranks)
        self.ranks.over = True

    def batches(self, pending: Sequence[Cell]) -> Sequence[Any]:
        """As the study's."""
        return self.study.batches(pending)

    def alone(self, cell: Cell) -> Any:
        """As the study's; where it has no such thing, its usual batch."""
        own = getattr(self.study, "alone", None)
        if own is None:
            return self.study.batches([cell])[0]
        self._lonely.append(own(cell))
        return self._lonely[-1]

    def prepare(self, batches: Sequence[Any]) -> Iterator[None]:
        """As the study's, step by step on all ranks."""
        steps, over = iter(self.study.prepare(batches)), object()
        order: dict[str, Any] = {"do": "prepare", "batches": self._named(batches)}
        while True:
            with self._told(order):
                if self.ranks.step(lambda: next(steps, over)) is over:
                    return
            yield
            order = {"do": "go on"}

    def compute(self, batch: Any) -> Iterator[Result]:
        """As the study's; results that all ranks have."""
        with self._told({"do": "compute", "batches": self._named([batch])}):
            results, failure = _computed(self.ranks, self.study, batch)
        yield from results
        if failure is not None:
            raise failure

    @contextmanager
    def _told(self, order: Mapping[str, Any]) -> Generator[None]:
        """Around a step; one that is interrupted leaves the others in its midst."""
        self._busy = True
        self.ranks.exchange(order)
        yield
        self._busy = False

    def _named(self, batches: Sequence[Any]) -> list[list[Any]]:
        """(numbers of the cells, whether they run alone) of each batch."""
        return [
            [[self._numbers[c.id] for c in b.cells], any(b is lonely for lonely in self._lonely)]
            for b in batches
        ]


def _batches(study: Study, cells: Sequence[Cell], named: Sequence[Any]) -> list[Any]:
    """The batches that the first rank means."""
    lonely = [cells[n] for numbers, alone in named for n in numbers if alone]
    usual = [cells[n] for numbers, alone in named for n in numbers if not alone]
    made = [study.alone(cell) for cell in lonely]  # ty: ignore[missing-attribute]
    return [*made, *(study.batches(usual) if usual else ())]


def _computed(
    ranks: Ranks, study: Study, batch: Any
) -> tuple[list[Result], FloatingPointError | None]:
    """Results of a batch up to a cell whose numbers are not finite, the same on all ranks."""
    results: list[Result] = []

    def compute() -> FloatingPointError | None:
        try:
            results.extend(study.compute(batch))
        except FloatingPointError as error:
            return error
        return None

    failure = ranks.attempt(compute)
    said = ranks.exchange([[r.cell.id for r in results], str(failure)])
    if any(other != said[0] for other in said):
        ranks.exchange(error=RanksError("the processes do not agree on which cells are finite"))
    return results, failure


@contextmanager
def _deaf() -> Generator[None]:
    """Leaves signals of the terminal to the first rank."""
    numbers = [getattr(signal, name) for name in DEAF if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
