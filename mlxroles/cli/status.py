"""The exit status of a run and the line that says how to go on."""

from collections.abc import Callable

from mlxroles.events import RunFinished

FAILED_CELLS = 3
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def exit_status(finished: RunFinished, note: Callable[[str], None]) -> int:
    """0 for a whole run, 3 with failed cells, 128 + n after a signal; ``note`` gets the advice."""
    if finished.interrupted is not None:
        note(
            f"stopped by {finished.interrupted}; {finished.done} cells are stored, "
            "and the same command goes on from there"
        )
        return SIGNALS.get(finished.interrupted, 130)
    if finished.failed:
        note(f"{finished.failed} cells failed; the same command tries them again")
        return FAILED_CELLS
    return 0
