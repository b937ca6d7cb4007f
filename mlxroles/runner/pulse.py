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
def heartbeat(
    emit: Emit, noted: Noted, signs: VitalSigns, beat: Callable[[], None]
) -> Generator[None]:
    """Tells of vital signs, sleep and signals from a thread while the block runs.

    Args:
        emit: Told of them.
        noted: Where signals are noted.
        signs: Asked for vital signs.
        beat: Called as often, for whoever can only see that files change.
    """
    args = emit, noted, signs, beat
    thread = threading.Thread(target=_beat, args=args, name="mlxroles-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        noted.arrived.put("")
        thread.join()


def _beat(emit: Emit, noted: Noted, signs: VitalSigns, beat: Callable[[], None]) -> None:
    sleep = SleepWatch()
    while True:
        try:
            name = noted.arrived.get(timeout=INTERVAL)
        except queue.Empty:
            name = None
        if name == "":
            emit(signs())
            return
        if name is not None:
            emit(Note(f"{name}: the running cells are finished and stored first; again stops now"))
            continue
        beat()
        slept = sleep.slept()
        if slept > NAP:
            emit(Slept(slept))
            emit(Note(f"the machine slept for {format_seconds(slept)}"))
        emit(signs())
