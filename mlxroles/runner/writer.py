"""Stores computed cells in a thread of its own, while the next ones compute."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from mlxroles.events import Cell, CellDone, CellFailed, Emit
from mlxroles.runner.protocol import Result
from mlxroles.store.folder import RunFolder

WAITING = 2
"""Computed batches that are being written or wait for it, at most."""


class Writer:
    """Stores computed cells, in the order in which they come, in a thread of its own.

    After an error nothing more is written: a disk that failed once is not asked again.
    """

    def __init__(
        self, folder: RunFolder, emit: Emit, stored: Callable[[Result], None] | None
    ) -> None:
        """Writes into ``folder``; see ``runner.run``."""
        self.folder, self.emit, self.stored = folder, emit, stored
        self.tokens = 0
        """Tokens run through a model for the cells that are stored."""
        self.cells = 0
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
            self.tokens += tokens
            self.cells += 1
            if self.stored is not None:
                self.stored(result)
            self.emit(CellDone(cell, values, seconds, tokens))

    def _fail(self, cells: Sequence[Cell], cause: str, attempt: int) -> None:
        for cell in cells:
            self.folder.fail(cell, cause, attempt=attempt)
            self.emit(CellFailed(cell, cause))
