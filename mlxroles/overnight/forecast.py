"""What the experiments of a queue should take, asked of a process of its own."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mlxroles.overnight.child import PROGRAM
from mlxroles.store.sweep_state import QueueState

PATIENCE = 180.0
"""Seconds after which the queue goes on without."""


class Forecast:
    """Plans a queue in the background: planning reads configs and tokenizers, which takes time."""

    def __init__(self, files: Sequence[str]) -> None:
        """Begins to plan the experiments in ``files``."""
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [*PROGRAM, "plan", "--json", "--", *files],
            stdin=subprocess.DEVNULL,
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
            seconds = found.get("seconds_left") or found.get("seconds")
            if seconds and entry.estimate is None:
                entry.estimate = seconds["likely"]
                entry.estimate_low, entry.estimate_high = seconds["low"], seconds["high"]
