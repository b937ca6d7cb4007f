"""The state of a run or a queue as plain data, for programs that look at it once."""

from typing import Any

from mlxroles.dashboard import facts
from mlxroles.dashboard.forecast import forecast
from mlxroles.dashboard.pace import Eta
from mlxroles.dashboard.state import RunState
from mlxroles.store.sweep_state import QueueState

SCHEMA = "mlxroles/watch/1"
_EVENTS = 20


def run_snapshot(state: RunState) -> dict[str, Any]:
    """What is known of a run: cells, time, speed, memory, what was said and found."""
    progress, memory = state.progress, facts.memory_of(state)
    finished = progress.finished
    return {
        "title": progress.title,
        "kind": state.kind or None,
        "stage": progress.stage or None,
        "total": progress.total,
        "done": progress.done,
        "failed": progress.failed,
        "stored_earlier": progress.restored,
        "under_way": list(state.under_way),
        "seconds": progress.elapsed,
        "seconds_left": None if finished else _eta(state.remaining),
        "tokens_per_second": state.tokens_per_second,
        "layer_calls_per_second": state.meter.layer_calls,
        "memory": None if memory is None else memory._asdict(),
        "deaths": state.deaths,
        "slept": state.slept,
        "last_failure": progress.last_failure or None,
        "interrupted": finished.interrupted if finished else None,
        "half_of_effect": {
            direction: {"layer": layer, "is_certain": is_whole}
            for direction, layer, is_whole in facts.crossings(state)
        },
        "events": [said._asdict() for said in list(state.log)[-_EVENTS:]],
    }


def queue_snapshot(queue: QueueState, run: RunState | None) -> dict[str, Any]:
    """How long a queue still takes, and what is known of its run."""
    guess = forecast(queue, run)
    return {
        "share": guess.share,
        "seconds": guess.elapsed,
        "seconds_left": _eta(guess.left),
        "seconds_until": guess.until,
        "run": None if run is None else run_snapshot(run),
    }


def _eta(eta: Eta | None) -> dict[str, float] | None:
    return None if eta is None else eta._asdict()
