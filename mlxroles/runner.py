"""Runs the pending cells of a study into its run folder and tells events about it.

The runner knows nothing of models: a study cuts pending cells into batches and computes a batch;
the runner stores what was computed while the next batch computes, records what fails, and leaves
at the first signal with the running batch stored. Between the two passes only plain data, so that
the computing half can move into a process of its own.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlxroles.errors import MlxrolesError, StoreError
from mlxroles.events import (
    Cell,
    CellDone,
    CellFailed,
    Emit,
    Event,
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

WAITING = 2
"""Computed batches that are being written or wait for it, at most."""

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
        self.interrupts = True
        """Whether a second signal interrupts whatever is going on."""

    def handle(self, number: int, _frame: object) -> None:
        if self.name is None:
            self.name = signal.Signals(number).name
        elif self.interrupts:
            raise KeyboardInterrupt


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
    stored: "Callable[[Result], None] | None" = None,
    clock: Callable[[], float] = time.monotonic,
) -> RunFinished:
    """Computes and stores every cell that is not stored yet.

    One thread writes while this one computes; it is gone when this function returns or raises,
    and what was computed by then is stored.

    Args:
        study: What computes.
        cells: The whole plan.
        folder: Where results go, open for writing.
        emit: Told of everything that happens; of cells by the thread that writes, as soon as
            they are safe on the disk.
        title: One line that names the run.
        notes: What whoever watches should know, beside what the folder has to say.
        stored: What else is done with a result that is safe, by the thread that writes and
            before ``emit`` is told of it.
        clock: Seconds, monotonic.

    Returns:
        The closing event: cells done and failed, and the signal that ended the run early, if any.

    Raises:
        StoreError: nothing more can be stored. What was stored is safe.
        MlxrolesError: what the study needs cannot be prepared, or three cells in a row failed
            alike.

    Whatever ``stored`` or ``emit`` raise ends the run as it is.
    """
    begun, emit = clock(), _one_at_a_time(emit)
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
        writer = _Writer(folder, emit, stored)
        job = _Job(study, writer, emit, clock)
        try:
            job.all(study.batches(pending), noted)
        except KeyboardInterrupt:
            noted.name = noted.name or "SIGINT"
        finally:
            noted.interrupts = False  # what is computed will be stored, which takes moments
            writer.close()
    writer.check()
    n_done = len([cell for cell in cells if cell.id in folder.done()])
    # a signal that came with the last batch has ended nothing early
    interrupted = noted.name if n_done < len(cells) else None
    finished = RunFinished(n_done, job.failed, clock() - begun, interrupted)
    emit(finished)
    return finished


def _one_at_a_time(emit: Emit) -> Emit:
    """For the two threads of a run, whose events must not meet."""
    lock = threading.RLock()

    def locked(event: Event) -> None:
        with lock:
            emit(event)

    return locked


class _Writer:
    """Stores computed cells, in the order in which they come, in a thread of its own.

    After an error nothing more is written: a disk that failed once is not asked again.
    """

    def __init__(
        self, folder: RunFolder, emit: Emit, stored: Callable[[Result], None] | None
    ) -> None:
        self.folder, self.emit, self.stored = folder, emit, stored
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlxroles-writer")
        self._waiting: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def record(self, results: Sequence[Result], seconds: float, attempt: int) -> None:
        """Has the cells of a batch stored; see ``_hand``."""
        if results:
            self._hand(partial(self._record, results, seconds, attempt))

    def fail(self, cells: Sequence[Cell], cause: str, attempt: int) -> None:
        """Has it stored that the cells cannot be computed; see ``_hand``."""
        self._hand(partial(self._fail, cells, cause, attempt))

    def flush(self) -> None:
        """Returns when everything is stored.

        Raises:
            BaseException: what the writing of it raised.
        """
        while self._waiting:
            self._waiting[0].result()
            self._waiting.popleft()
        self.check()

    def check(self) -> None:
        """Raises what ended the writing, if anything did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Returns when everything is stored, or nothing more can be, and the thread is gone."""
        self._thread.shutdown()

    def _hand(self, write: Callable[[], None]) -> None:
        """Leaves the writing to the thread; waits first where too much is waiting already.

        Raises:
            BaseException: what earlier writing raised.
        """
        while len(self._waiting) >= WAITING:
            self._waiting[0].result()
            self._waiting.popleft()
        self.check()
        self._waiting.append(self._thread.submit(self._unless_broken, write))

    def _unless_broken(self, write: Callable[[], None]) -> None:
        if self._error is None:
            try:
                write()
            except BaseException as error:
                self._error = error
                raise

    def _record(self, results: Sequence[Result], seconds: float, attempt: int) -> None:
        for result in results:
            cell, values, arrays, tokens = result
            self.folder.record(cell, values, arrays, seconds=seconds, attempt=attempt)
            if self.stored is not None:
                self.stored(result)
            self.emit(CellDone(cell, values, seconds, tokens))

    def _fail(self, cells: Sequence[Cell], cause: str, attempt: int) -> None:
        for cell in cells:
            self.folder.fail(cell, cause, attempt=attempt)
            self.emit(CellFailed(cell, cause))


class _Job:
    """The batches of one run, and the failures so far."""

    def __init__(
        self, study: Study, writer: _Writer, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self.study, self.writer, self.emit, self.clock = study, writer, emit, clock
        self.failed = 0
        self.causes: list[str] = []

    def all(self, batches: Sequence[BatchLike], noted: _Signals) -> None:
        """Computes the batches group by group until they are done or a signal is noted."""
        group: int | None = None
        for batch in batches:
            if batch.group != group:
                group = batch.group
                self.writer.flush()
                self.emit(Stage("preparing"))
                self._prepare([b for b in batches if b.group == group], noted)
            if noted.name is not None:
                return
            self.writer.check()
            self._batch(batch, attempt=1)
        self.writer.flush()

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
        for result in results:
            del left[result.cell.id]
        self.writer.record(results, seconds, attempt)
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
        self.writer.fail(left, text, attempt)
        self.failed += len(left)
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
