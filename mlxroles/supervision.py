"""What whoever started this process wants of its runs: a deadline, a share of the work, a report.

A supervisor passes it on in the environment, so that it reaches every command alike. Under
``mlx.launch`` the launcher's own variables say which of several machines this is.
"""

import json
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mlxroles.events import RunFinished

VARIABLE = "MLXROLES_SUPERVISION"


class LeftToFirst(Exception):
    """This machine has done its share of a run; what is derived from it is the first one's."""

    def __init__(self, finished: RunFinished) -> None:
        """Ends a study in the middle, with how its run ended."""
        super().__init__(finished)
        self.finished = finished


@dataclass(frozen=True)
class Supervision:
    """The wishes of a supervisor; the defaults are those of a process that has none."""

    until: float | None = None
    """Seconds since the epoch after which no batch is begun."""
    coarse: bool = False
    """Only the cells that show the shape of the result: a first pass over a whole queue."""
    tell: str | None = None
    """File to which the path of every run folder is added as it is opened."""
    attended: bool = False
    """Standard input is a pipe from the supervisor: its end is the supervisor's."""
    rank: int = 0
    """Number of this machine; the first one owns the run folders."""
    size: int = 1
    """Machines that work on the same runs."""

    def variables(self) -> dict[str, str]:
        """What a process is to find in its environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    def announce(self, folder: Path) -> None:
        """Tells the supervisor which run folder this process has opened."""
        if self.tell is not None:
            with suppress(OSError), Path(self.tell).open("a", encoding="utf-8") as file:
                file.write(json.dumps(str(folder)) + "\n")


def supervision(environ: Mapping[str, str] = os.environ) -> Supervision:
    """The wishes that stand in the environment."""
    rank, size = _launched(environ)
    found = environ.get(VARIABLE)
    if found is None:
        return Supervision(rank=rank, size=size)
    return Supervision(**json.loads(found))


def _launched(environ: Mapping[str, str]) -> tuple[int, int]:
    """Rank and number of machines under ``mlx.launch``; 0 of 1 elsewhere."""
    rank = environ.get("MLX_RANK", "")
    if not rank.isdecimal():
        return 0, 1
    for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES"):
        with suppress(OSError, ValueError, KeyError):
            return int(rank), len(json.loads(Path(environ[name]).read_text(encoding="utf-8")))
    return int(rank), int(rank) + 1


def leave_unattended() -> None:
    """Ends this process as SIGTERM does when a supervisor that reads its events is gone."""
    if not supervision().attended:
        return

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="mlxroles-attended", daemon=True).start()
