"""The batches of one run, in their order: computed, handed to the writer, tried again, shared."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxroles.errors import MlxrolesError, StoreError
from mlxroles.events import BatchStarted, Cell, CellDone, CellFailed, Emit, Stage
from mlxroles.runner.noted import Noted
from mlxroles.runner.protocol import BatchLike, Result, Study
from mlxroles.runner.writer import Writer
from mlxroles.store.folder import RunFolder
from mlxroles.store.record import Record
from mlxroles.store.shards import Claims

SAME_CAUSE = 3
"""Cells in a row that fail of one cause, after which a run stops instead of failing on."""

PATIENCE = 30.0
"""Seconds between two words about waiting for them."""
GLANCE = 0.5
"""Seconds between two looks at what other machines have done."""


class Job:
    """The batches of one run, and the failures so far."""

    def __init__(
        self,
        study: Study,
        writer: Writer,
        emit: Emit,
        noted: Noted,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Computes with ``study``, stores through ``writer``, ends early where it is ``noted``."""
        self.study, self.writer, self.emit, self.noted = study, writer, emit, noted
        self.clock = clock
        self.failed = 0
        self._group: int | None = None
        self._causes: list[str] = []

    def all(self, batches: Sequence[BatchLike]) -> None:
        """Computes batches group by group until they are done or the run is to end."""
        for batch in batches:
            if batch.group != self._group:
                self._enter([b for b in batches if b.group == batch.group], batch.group)
            if self.noted.name is not None:
                return
            self.writer.check()
            self._batch(batch, attempt=1)
        self.writer.flush()

    def give_up(self, cell: Cell, cause: str, deaths: int) -> None:
        """Records that a cell cannot be computed: processes die of it."""
        self._failed([cell], f"the process ended each time ({cause})", deaths)

    def shared(self, batches: Sequence[BatchLike], folder: RunFolder, claims: Claims) -> None:
        """Computes those batches that no other machine has taken, until all are done by someone.

        What a machine that is gone had taken is taken over.
        """
        others, told = _Others(folder, self.emit), time.monotonic()
        while self.noted.name is None:
            others.look()
            left = [b for b in batches if others.unsettled(b.cells)]
            if not left:
                break
            # the cells of a later group may be about what an earlier one finds
            now = [b for b in left if b.group == left[0].group]
            took = [batch for batch in now if self._take(batch, others, claims)]
            if not took:
                if time.monotonic() - told > PATIENCE:
                    told = time.monotonic()
                    self.emit(Stage("waiting for the cells of other machines"))
                time.sleep(GLANCE)
        self.writer.flush()

    def _take(self, batch: BatchLike, others: "_Others", claims: Claims) -> bool:
        """Computes a batch unless another machine has or does."""
        if self.noted.name is not None or not others.unsettled(batch.cells):
            return False
        if not claims.take(getattr(batch, "rows", batch.cells)):
            return False
        self.writer.flush()
        others.look()
        for part in self.study.batches(others.unsettled(batch.cells)):
            self._enter([part], part.group)
            if self.noted.name is None:
                self.writer.check()
                self._batch(part, attempt=1)
        return True

    def _enter(self, batches: Sequence[BatchLike], group: int) -> None:
        """Prepares what batches of a group share."""
        if group != self._group:
            self.writer.flush()
            self.emit(Stage("preparing"))
        self._group = group
        try:
            for _ in self.study.prepare(batches):
                if self.noted.name is not None:
                    return
        except (RuntimeError, MemoryError, OSError) as error:
            raise StoreError(
                f"stopped before the next cells could begin ({_cause(error)}); what is stored "
                "stays, and the same command goes on from there"
            ) from error

    def _batch(self, batch: BatchLike, *, attempt: int) -> None:
        left = {cell.id: cell for cell in batch.cells}
        results: list[Result] = []
        failure: Exception | None = None
        self.emit(BatchStarted(batch.cells))
        began = self.clock()
        try:
            for result in self.study.compute(batch):
                results.append(result)  # what came before a failure counts
        except MlxrolesError:
            raise
        except Exception as error:  # noqa: BLE001  (a failed cell is recorded and the run goes on)
            failure = error
        seconds = (self.clock() - began) / max(1, len(results))
        for result in results:
            del left[result.cell.id]
        self.writer.record(results, seconds, attempt)
        if failure is None:
            self._causes.clear()
        elif attempt == 1:
            # One by one: a cell that cannot be computed must not take its neighbours along.
            for again in (b for cell in left.values() for b in self.study.batches([cell])):
                self._batch(again, attempt=2)
        else:
            is_own = isinstance(failure, FloatingPointError)
            self._failed(list(left.values()), _cause(failure), attempt, is_own=is_own)

    def _failed(
        self, left: Sequence[Cell], cause: str, attempt: int, *, is_own: bool = False
    ) -> None:
        """Records failures; ``is_own`` ones come from a cell's numbers, not from the machine."""
        self.writer.fail(left, cause, attempt)
        self.failed += len(left)
        if is_own:
            return
        self._causes.append(cause)
        if self._causes[-SAME_CAUSE:] == [cause] * SAME_CAUSE:
            raise StoreError(
                f"stopped after {SAME_CAUSE} cells in a row failed alike ({cause}); what is "
                "stored stays, and the same command goes on from there"
            )


class _Others:
    """What other machines have done since this process began."""

    def __init__(self, folder: RunFolder, emit: Emit) -> None:
        self.folder, self.emit = folder, emit
        self._before: dict[str, Record] = folder.records()

    def look(self) -> None:
        """Takes note of new cells of others and tells of them."""
        for event in _news(self.folder.refresh()):
            self.emit(event)

    def unsettled(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that are neither done nor, since this process began, failed."""
        return [cell for cell in cells if not self._is_settled(self.folder.latest(cell.id))]

    def _is_settled(self, record: Record | None) -> bool:
        return record is not None and (
            record.status == "ok" or record != self._before.get(record.id)
        )


def _news(records: Sequence[Record]) -> Iterator[CellDone | CellFailed]:
    for record in records:
        cell = Cell(record.id, record.coords)
        if record.status == "ok":
            yield CellDone(cell, record.values, record.seconds)
        else:
            yield CellFailed(cell, record.error or "")


def in_order(batches: Sequence[Any], *, hurried: bool, coarse: bool) -> list[Any]:
    """Batches in the order of their worth where time is short, else as they are.

    Args:
        batches: In computing order.
        hurried: Whether the run may end before they are done: the coarse picture comes first.
        coarse: Whether nothing but the coarse picture is wanted now.
    """
    if coarse:
        return [b for b in batches if getattr(b, "level", 0) == 0]
    return sorted(batches, key=lambda b: getattr(b, "level", 0)) if hurried else list(batches)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
