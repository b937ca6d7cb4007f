"""Shows a queue while it runs: a screen on a terminal, sentences elsewhere.

with queue.show(console, plain=False) as show:
while ...:
show(queue_state, run_state)      # as often as one likes; run_state may be None
"""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial

from rich.console import Console

from mlxroles.dashboard import queue_view
from mlxroles.dashboard.painting import painted
from mlxroles.dashboard.spoken import SpokenQueue
from mlxroles.dashboard.state import RunState
from mlxroles.dashboard.watch import resolve, writer
from mlxroles.store.sweep_state import QueueState

Show = Callable[[QueueState, RunState | None], None]
"""Takes the latest state of a queue and of its run."""


@contextmanager
def show(
    console: Console, *, plain: bool = False, env: Mapping[str, str] = os.environ
) -> Generator[Show]:
    """Shows a queue while the block runs; yields what takes its latest state.

    Args:
        console: where to show it, on standard error.
        plain: sentences for logs and screen readers, also on a terminal.
        env: the environment that ``TERM`` and the like are taken from.
    """
    if not is_painted(console, plain=plain, env=env):
        yield SpokenQueue(writer(console))
        return
    with painted(console) as paint:

        def update(queue: QueueState, run: RunState | None) -> None:
            if run is not None and queue.ranks:
                alive = sum(bool(rank.get("alive")) for rank in queue.ranks)
                run.progress.pace.parallel = max(alive, 1)
            paint(partial(queue_view.lines, queue, run))

        yield update


def is_painted(console: Console, *, plain: bool, env: Mapping[str, str] = os.environ) -> bool:
    """Whether the console gets a screen; ``NO_COLOR`` takes its colours and nothing else."""
    others = {name: value for name, value in env.items() if name != "NO_COLOR"}
    return not plain and resolve("auto", console, others) == "live"
