"""`mlxroles watch`: the view of a run or sweep that another process, or machine, is at work on."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json

if TYPE_CHECKING:
    from mlxroles.dashboard.sources import Condition, RunSource, SweepSource

INTERRUPTED = 130
STOPPED = 1
INTERVAL = 0.5
"""Seconds between two looks at the files."""

_LEAVE = (b"q", b"Q", b"\x03", b"")


@click.command("watch")
@click.argument("run", required=False)
@click.option("--plain", is_flag=True, help="Sentences instead of a screen: logs, screen readers.")
@json_option
def command(run: str | None, *, plain: bool, as_json: bool) -> int:
    """Show a run or a sweep while another process works on it.

    RUN is a run folder, the id of a run or the beginning of one, or the folder of a sweep; without
    it, what is running below results/, or else what was written last. Only reads, also on a disk
    that another machine writes. q leaves; the run goes on.

    Ends with 0 when the run has ended, with 1 when no process works on it and it is not done.

    \b
    Examples:
      mlxroles watch
      mlxroles watch 838a58 --plain
      mlxroles watch /Volumes/shared/results/sweep_overnight/41aa02 --json
    """  # noqa: D301
    source = _source(run)
    condition = source.poll()
    if as_json:
        print_json(_document(source, condition))
        return 0
    return _watch(source, condition, plain=plain)


def _source(run: str | None) -> "RunSource | SweepSource":
    """What is to be watched.

    Raises:
        MlxrolesError: there is no such run, or none at all.
    """
    from mlxroles.dashboard.sources import RunSource, SweepSource
    from mlxroles.errors import SpecError
    from mlxroles.runs.find import find, is_capture, is_sweep

    path = _newest() if run is None else find(run)
    if is_capture(path):
        raise SpecError(f"{path.name} is a finished capture; watch a run folder")
    return SweepSource(path) if is_sweep(path) else RunSource(path)


def _newest() -> Path:
    """What is running now, a sweep before its runs, or else what was written last.

    Raises:
        SpecError: there is nothing below results/.
    """
    from mlxroles.errors import SpecError
    from mlxroles.runs.find import NOTHING, last_written, runs_below, sweeps_below
    from mlxroles.store.folder import LOCK
    from mlxroles.store.follow import is_held
    from mlxroles.store.sweep_state import STATE

    sweeps = [path for path in sweeps_below() if (path / STATE).is_file()]
    runs = runs_below()
    for path in sweeps:
        if is_held(path / LOCK):
            return path
    for path in runs:
        if is_held(path / LOCK):
            return path
    found = [*sweeps, *runs]
    if not found:
        raise SpecError(f"nothing to watch: {NOTHING}")
    return max(found, key=last_written)


def _watch(source: "RunSource | SweepSource", condition: "Condition", *, plain: bool) -> int:
    """Shows what there is until it is over or the user leaves."""
    from rich.console import Console

    with _shown(source, Console(stderr=True), plain=plain) as show, _keys() as wait:
        try:
            show()
            while condition == "running":
                if wait(INTERVAL):
                    return INTERRUPTED
                condition = source.poll()
                show()
        except KeyboardInterrupt:
            return INTERRUPTED
    if condition == "stopped":
        note(f"stopped: no process writes this run; resume with: mlxroles resume {source.path}")
        return STOPPED
    return 0


@contextmanager
def _shown(
    source: "RunSource | SweepSource", console: Any, *, plain: bool
) -> Generator[Callable[[], None]]:
    """Yields what shows the present state."""
    from mlxroles.dashboard import queue, run_view
    from mlxroles.dashboard.painting import painted
    from mlxroles.dashboard.sources import SweepSource
    from mlxroles.dashboard.spoken import SpokenRun
    from mlxroles.dashboard.watch import writer

    if isinstance(source, SweepSource):
        with queue.show(console, plain=plain) as show:
            yield lambda: show(source.queue, source.run)
    elif queue.is_painted(console, plain=plain):
        with painted(console) as paint:
            yield lambda: paint(partial(run_view.lines, source.state))
    else:
        spoken = SpokenRun(writer(console))
        yield lambda: spoken(source.state)


@contextmanager
def _keys() -> Generator[Callable[[float], bool]]:
    """Yields what waits for some seconds and tells whether the user wants to leave."""
    import select
    import sys
    import termios
    import tty

    def asleep(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def listening(seconds: float) -> bool:
        ready, _, _ = select.select([handle], [], [], seconds)
        return bool(ready) and os.read(handle, 1) in _LEAVE

    try:
        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (OSError, ValueError, AttributeError, termios.error):
        yield asleep
        return
    try:
        tty.setcbreak(handle)
        yield listening
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _document(source: "RunSource | SweepSource", condition: "Condition") -> dict[str, Any]:
    """The state as it is now, for programs."""
    from mlxroles.dashboard.snapshot import SCHEMA, queue_snapshot, run_snapshot
    from mlxroles.dashboard.sources import SweepSource

    head = {"schema": SCHEMA, "path": str(source.path), "state": condition}
    if isinstance(source, SweepSource):
        queue = {"queue": source.queue.to_json()}
        return head | {"what": "sweep"} | queue | queue_snapshot(source.queue, source.run)
    return head | {"what": "run"} | run_snapshot(source.state)
