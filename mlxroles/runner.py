"""Runs the pending cells of a study into its run folder and tells events about it.

The runner knows nothing of models: a study cuts pending cells into batches and computes a batch;
the runner stores each result as it comes, records what fails, and leaves at the first signal with
the running batch stored. Between the two passes only plain data, so that the computing half can
move into a process of its own.
"""

import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlxroles.errors import MlxrolesError, StoreError
from mlxroles.events import (
    Cell,
    CellDone,
    CellFailed,
    Emit,
    Note,
    RunFinished,
    RunStarted,
    Stage,
)
from mlxroles.store.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np

SAME_CAUSE = 3
"""Cells in a row that fail of one cause, after which a run stops instead of failing on."""

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""What ends a run early, its running batch stored."""


class BatchLike(Protocol):
    """Cells that are computed together."""

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells, in the order in which their results come."""
        ...

    @property
    def group(self) -> int:
        """Batches of one group share prepared states and stand together."""
        ...


class Result(NamedTuple):
    """A computed cell."""

    cell: Cell
    values: Mapping[str, Any]
    """Its numbers, for the journal."""
    arrays: "Mapping[str, np.ndarray] | None" = None
    tokens: int = 0
    """Tokens run through a model for it."""


class Study(Protocol):
    """The computing half of a study."""

    def batches(self, pending: Sequence[Cell]) -> Sequence[Any]:
        """Pending cells in computing order; also asked for a single cell that failed."""
        ...

    def prepare(self, batches: Sequence[Any]) -> Iterator[None]:
        """Computes what the batches of one group share; yields where a signal may end the run."""
        ...

    def compute(self, batch: Any) -> Iterable[Result]:
        """The cells of a batch, one after the other.

        Raises:
            FloatingPointError: the numbers of a cell are not finite; only that cell fails.
        """
        ...


class _Signals:
    """Notes the first signal, so that a run ends after the batch that is being computed."""

    def __init__(self) -> None:
        self.name: str | None = None

    def handle(self, number: int, _frame: object) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextmanager
def _noted_signals() -> Generator[_Signals]:
    """SIGINT, SIGTERM and SIGHUP are noted while the block runs; a second one interrupts it."""
    noted = _Signals()
    before: dict[int, Any] = {}
    try:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                before[number] = signal.signal(number, noted.handle)
    except ValueError:  # not the main thread: signals stay with whoever owns it
        pass
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    study: Study,
    cells: Sequence[Cell],
    folder: RunFolder,
    emit: Emit,
    *,
    title: str,
    notes: Iterable[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> RunFinished:
    """Computes and stores every cell that is not stored yet.

    Args:
        study: What computes.
        cells: The whole plan.
        folder: Where results go, open for writing.
        emit: Told of everything that happens.
        title: One line that names the run.
        notes: What whoever watches should know, beside what the folder has to say.
        clock: Seconds, monotonic.

    Returns:
        The closing event: cells done and failed, and the signal that ended the run early, if any.

    Raises:
        StoreError: nothing more can be stored. What was stored is safe.
        MlxrolesError: what the study needs cannot be prepared, or three cells in a row failed
            alike.
    """
    begun = clock()
    done = folder.done()
    emit(RunStarted(title, str(folder.path), cells, sum(c.id in done for c in cells)))
    for text in (*folder.notes, *notes):
        emit(Note(text))
    if folder.torn_lines:
        emit(Note(f"{folder.torn_lines} damaged journal lines are passed over and run again"))
    records = folder.records()
    for cell in cells:
        if cell.id in done:
            emit(CellDone(cell, records[cell.id].values, records[cell.id].seconds, restored=True))
    pending = [cell for cell in cells if cell.id not in done]
    with _noted_signals() as noted:
        job = _Job(study, folder, emit, clock)
        try:
            job.all(study.batches(pending), noted)
        except KeyboardInterrupt:
            noted.name = noted.name or "SIGINT"
    n_done = len([cell for cell in cells if cell.id in folder.done()])
    # a signal that came with the last batch has ended nothing early
    interrupted = noted.name if n_done < len(cells) else None
    finished = RunFinished(n_done, job.failed, clock() - begun, interrupted)
    emit(finished)
    return finished


class _Job:
    """The batches of one run, and the failures so far."""

    def __init__(
        self, study: Study, folder: RunFolder, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self.study, self.folder, self.emit, self.clock = study, folder, emit, clock
        self.failed = 0
        self.causes: list[str] = []

    def all(self, batches: Sequence[BatchLike], noted: _Signals) -> None:
        """Computes the batches group by group until they are done or a signal is noted."""
        group: int | None = None
        for batch in batches:
            if batch.group != group:
                group = batch.group
                self.emit(Stage("preparing"))
                self._prepare([b for b in batches if b.group == group], noted)
            if noted.name is not None:
                return
            self._batch(batch, attempt=1)

    def _prepare(self, batches: Sequence[BatchLike], noted: _Signals) -> None:
        try:
            for _ in self.study.prepare(batches):
                if noted.name is not None:
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
        began = self.clock()
        try:
            for result in self.study.compute(batch):
                results.append(result)  # what came before a failure counts
        except MlxrolesError:
            raise
        except Exception as error:  # noqa: BLE001  (a failed cell is recorded and the run goes on)
            failure = error
        seconds = (self.clock() - began) / max(1, len(results))
        for cell, values, arrays, tokens in results:
            self.folder.record(cell, values, arrays, seconds=seconds, attempt=attempt)
            self.emit(CellDone(cell, values, seconds, tokens))
            del left[cell.id]
        if failure is None:
            self.causes.clear()
        elif attempt == 1:
            # One by one: a cell that cannot be computed must not take its neighbours along.
            for again in (b for cell in left.values() for b in self.study.batches([cell])):
                self._batch(again, attempt=2)
        else:
            self._failed(list(left.values()), failure, attempt)

    def _failed(self, left: Sequence[Cell], error: Exception, attempt: int) -> None:
        text = _cause(error)
        for cell in left:
            self.folder.fail(cell, text, attempt=attempt)
            self.emit(CellFailed(cell, text))
            self.failed += 1
        if isinstance(error, FloatingPointError):
            return  # the numbers of this cell, not the state of the machine
        self.causes.append(text)
        if self.causes[-SAME_CAUSE:] == [text] * SAME_CAUSE:
            raise StoreError(
                f"stopped after {SAME_CAUSE} cells in a row failed alike ({text}); what is "
                "stored stays, and the same command goes on from there"
            )


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
