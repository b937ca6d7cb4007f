"""What a run tells while nothing is finished: its vital signs, sleep, and signals that came."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mlxroles.events import Emit, Note, Slept, Vitals
from mlxroles.machine.clock import SleepWatch
from mlxroles.runner.noted import Noted
from mlxroles.text import format_seconds

INTERVAL = 5.0
"""Seconds between vital signs."""

NAP = 30.0
"""Seconds of sleep that are worth a word."""

VitalSigns = Callable[[], Vitals]


@contextmanager
def heartbeat(emit: Emit, noted: Noted, signs: VitalSigns | None) -> Generator[None]:
    """Tells of vital signs, sleep and signals from a thread while the block runs."""
    thread = threading.Thread(
        target=_beat, args=(emit, noted, signs), name="mlxroles-pulse", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        noted.arrived.put("")
        thread.join()


def _beat(emit: Emit, noted: Noted, signs: VitalSigns | None) -> None:
    sleep = SleepWatch()
    while True:
        try:
            name = noted.arrived.get(timeout=INTERVAL)
        except queue.Empty:
            name = None
        if name == "":
            return
        if name is not None:
            emit(Note(f"{name}: the running cells are finished and stored first; again stops now"))
            continue
        slept = sleep.slept()
        if slept > NAP:
            emit(Slept(slept))
            emit(Note(f"the machine slept for {format_seconds(slept)}"))
        if signs is not None:
            emit(signs())
