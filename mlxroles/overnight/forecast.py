"""What the experiments of a queue should take, asked of a process of its own."""

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxroles.overnight.child import PROGRAM
from mlxroles.overnight.queue import take_findings
from mlxroles.store.folder import JOURNAL
from mlxroles.store.summary import SUMMARY
from mlxroles.store.sweep_state import Entry, QueueState
from mlxroles.supervision import Supervision

PATIENCE = 180.0
"""Seconds after which the queue goes on without."""


class Forecast:
    """Plans a queue in the background: planning reads configs and tokenizers, which takes time."""

    def __init__(self, files: Sequence[str]) -> None:
        """Begins to plan the experiments in ``files``."""
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [*PROGRAM, "plan", "--json", "--", *files],
            stdin=subprocess.PIPE,  # its end is ours: it leaves with us
            env=os.environ | Supervision(attended=True).variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def take(self, state: QueueState, *, wait: float = 0.0) -> None:
        """Writes the estimates into the entries, if they are known after ``wait`` seconds."""
        if self._process is None:
            return
        try:
            out, _ = self._process.communicate(timeout=wait or 0.01)
        except subprocess.TimeoutExpired:
            return
        self._process = None
        with suppress(ValueError, KeyError, TypeError):
            for found in json.loads(out)["experiments"]:
                _into(state, found)

    def close(self) -> None:
        """Gives up planning."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _into(state: QueueState, found: dict[str, Any]) -> None:
    for entry in state.entries:
        if entry.name == found["name"]:
            entry.cells = entry.cells or found.get("cells")
            if found.get("error") and entry.status == "waiting":
                entry.status, entry.error = "failed", str(found["error"])
            elif entry.status == "done" and _is_another(entry, found):
                entry.status = "waiting"
            elif entry.status == "waiting" and (run := _whole(found)) is not None:
                entry.status, entry.run = "done", run
                entry.done = entry.restored = found["done"]
                take_findings(entry)
            seconds = found.get("seconds_left") or found.get("seconds")
            if seconds and entry.status == "waiting":
                entry.estimate = seconds["likely"]
                entry.estimate_low, entry.estimate_high = seconds["low"], seconds["high"]


def _whole(found: dict[str, Any]) -> str | None:
    """The folder of an experiment's only run, where it is whole and its results are written."""
    if len(found["runs"]) != 1 or not found["cells"] or found["done"] < found["cells"]:
        return None
    path = found["runs"][0].get("path")
    try:
        is_written = path and (
            (Path(path) / SUMMARY).stat().st_mtime_ns >= (Path(path) / JOURNAL).stat().st_mtime_ns
        )
    except OSError:
        return None
    return str(path) if is_written else None


def _is_another(entry: Entry, found: dict[str, Any]) -> bool:
    """Whether an experiment that was done would now be another run, or one with cells missing."""
    ids = {str(run["run_id"]) for run in found["runs"]}
    if not ids or entry.run is None:
        return False
    return Path(entry.run).name not in ids or found["done"] < found["cells"]
