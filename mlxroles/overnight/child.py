"""The process of one experiment: started, followed through the files of its run, ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mlxroles.errors import StoreError
from mlxroles.events import (
    BatchStarted,
    CellDone,
    CellFailed,
    Died,
    Event,
    RunStarted,
    Vitals,
)
from mlxroles.store.files import make_folder, plain_errors
from mlxroles.store.follow import Follow
from mlxroles.store.history import History
from mlxroles.supervision import Supervision
from mlxroles.text import safe_text

PROGRAM = (sys.executable, "-m", "mlxroles.cli")

LEAST_HANG = 600.0
"""Seconds without any progress after which a process hangs, at least."""
MANY_TIMES = 10
"""And at least this many times the longest silence before."""
GRACE = 15.0
"""Seconds between asking a process to end and ending it."""
_TAIL = 4096


class Child:
    """A command that runs as a process of its own."""

    def __init__(
        self, argv: Sequence[str], log: Path, wishes: Supervision, rank: int | None = None
    ) -> None:
        """Starts ``mlxroles ARGV``, its output going to the end of ``log``.

        Args:
            argv: The command, after ``mlxroles``.
            log: Where standard output and error go.
            wishes: What the process is to know.
            rank: Of another machine than the first: what it has done is told in its name.
        """
        self.log, self.rank = log, rank or 0
        self.tell = log.with_suffix(".runs")
        self.tell.unlink(missing_ok=True)
        self.follow: Follow | None = None
        self.open_cells: dict[str, None] = {}
        """Cells that are being computed, as far as the history says."""
        self.progress = 0
        """Cells that were stored since this process began."""
        self.is_hung = False
        self._run: Path | None = None
        self._moved = time.monotonic()
        self._longest = 0.0
        self._work = (0.0, 0)
        self.stored = 0
        """Cells that this machine has stored; ``progress`` counts those of all."""
        env: Mapping[str, str] = {**os.environ, **wishes.variables()}
        with plain_errors(log):
            make_folder(log.parent)  # somebody may have removed it in the night
            output = log.open("ab")
        with output:
            self._from = output.tell()
            # Of a session of its own: a Ctrl-C is the supervisor's to pass on, once.
            self.process = subprocess.Popen(
                [*PROGRAM, *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(env),
                start_new_session=True,
            )

    @property
    def run(self) -> Path | None:
        """The run folder that the process has opened last."""
        with suppress(OSError, ValueError, IndexError):
            self._run = Path(json.loads(self.tell.read_text(encoding="utf-8").splitlines()[-1]))
        return self._run

    def events(self) -> list[Event]:
        """What the run has told since the last call; another run begins with its start."""
        path = self.run
        if path is None:
            return []
        if self.follow is None or self.follow.path != path:
            try:
                self.follow = Follow(path, self.rank)
            except StoreError:
                return []
        found = self.follow.poll()
        for event in found:
            self._note(event)
        return found

    def _note(self, event: Event) -> None:
        if isinstance(event, Vitals):
            self.stored = event.cells
            work = event.layer_calls, event.tokens
            if work == self._work:
                return
            self._work = work
        now = time.monotonic()
        self._longest, self._moved = max(self._longest, now - self._moved), now
        if isinstance(event, RunStarted):
            self.open_cells.clear()
        elif isinstance(event, BatchStarted):
            self.open_cells = dict.fromkeys(cell.id for cell in event.cells)
        elif isinstance(event, CellDone | CellFailed) and not getattr(event, "restored", False):
            self.open_cells.pop(event.cell.id, None)
            self.progress += 1

    def hangs(self, least: float = LEAST_HANG) -> bool:
        """Whether a run has told nothing for far longer than ever before.

        Before it begins weights are hashed and read, which takes as long as it takes.
        """
        if self.follow is None:
            return False
        silence = time.monotonic() - self._moved
        return silence > max(least, MANY_TIMES * self._longest)

    def end_if_it_hangs(self, least: float = LEAST_HANG) -> None:
        """Ends the process where it hangs."""
        if not self.is_hung and self.hangs(least):
            self.is_hung = True
            self.process.kill()

    def ask_to_end(self, name: str = "SIGTERM") -> None:
        """Asks the process, by a signal, to store its running batch and end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.Signals[name])

    def end(self) -> None:
        """Ends the process, after asking it first."""
        self.ask_to_end()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Lets go of the process, which then ends by itself if it still runs."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        self.tell.unlink(missing_ok=True)

    def record_death(self) -> str:
        """Writes into the run's history that the process died; returns the cause."""
        cause = self.cause()
        path = self.run
        if path is not None:
            History(path, self.rank).append(Died(list(self.open_cells), cause))
        return cause

    def cause(self) -> str:
        """How the process ended, in words."""
        if self.is_hung:
            return "it hung"
        code = self.process.returncode
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
        return f"exit status {code}"

    def last_error(self) -> str:
        """The last line that says what is wrong, from the end of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._from, self.log.stat().st_size - _TAIL))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return self.cause()
        said = [line for line in lines if line.strip()]
        wrong = [line for line in said if line.startswith(("error: ", "Error: "))]
        text = (wrong or said or [self.cause()])[-1]
        return safe_text(text.removeprefix("error: ").removeprefix("Error: "), limit=500)
