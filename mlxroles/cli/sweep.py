"""`mlxroles sweep`: run a queue of experiments through the night."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.experiments import command_of, options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.plan import allowed, ending
from mlxroles.cli.results import RESULTS
from mlxroles.errors import FAILED_CELLS, SIGNAL_STATUS, SpecError
from mlxroles.spec import Experiment, Queue, read_queue

if TYPE_CHECKING:
    from mlxroles.events import Event
    from mlxroles.overnight.queue import Planned
    from mlxroles.overnight.ranks import Ranks
    from mlxroles.store.sweep_state import QueueState


@click.command("sweep")
@click.argument("files", nargs=-1, required=True, metavar="FILE.toml...")
@click.option("--until", metavar="07:00", help="When to end, whatever the files say.")
@click.option("--budget", metavar="8h", help="How long to run, whatever the files say.")
@click.option(
    "--notify",
    metavar="CMD",
    help="Run this command at the end, the summary as JSON on its standard input.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, as `mlxroles plan` does.")
@plain_option
@json_option
def command(**given: Any) -> int:
    """Run a queue of experiments, one after the other, whatever happens in between.

    Each experiment runs in a process of its own. One that dies or hangs is started again and goes
    on from the last stored cell; a cell that it dies of again and again is tried alone and then
    recorded as failed; an experiment that cannot go on is left and the next one begins. The same
    command goes on after a kill or a power cut. With an end (--until, --budget) every fourth layer
    of large patch sweeps comes first, with its controls, then what lies between.

    At the end the terminal's bell rings, a Mac shows a notification, and the path of the morning
    report is printed.

    Several machines that see one results folder share the cells of patch, probe and entropy runs:
    `mlx.launch --hostfile FILE.json -- /path/to/mlxroles sweep FILE.toml`.

    \b
    Examples:
      mlxroles sweep experiments/overnight.toml
      mlxroles sweep experiments/patch_tiny.toml experiments/role_entropy_tiny.toml --budget 8h
    """  # noqa: D301
    queue = ending(read_queue(given["files"]), given["until"], given["budget"])
    if given["dry_run"]:
        return _dry_run(queue, as_json=given["as_json"])
    from mlxroles.overnight.queue import folder_of
    from mlxroles.overnight.ranks import Ranks
    from mlxroles.store.files import make_folder, plain_errors
    from mlxroles.supervision import supervision

    experiments = [_planned(experiment) for experiment in queue.ordered()]
    short, path = folder_of(RESULTS.absolute(), queue.name, experiments)
    with plain_errors(path):
        make_folder(path)
    place = supervision()
    ranks = Ranks(path, place.rank, place.size)
    try:
        lock = ranks.help_until_leading(note)
        if lock is None:
            return 0
        try:
            return _lead(queue, short, experiments, ranks, given)
        finally:
            lock.release()
    finally:
        ranks.close()


def _dry_run(queue: Queue, *, as_json: bool) -> int:
    from mlxroles.cli.queue_plan import queue_plan, show_queue_plan

    doc = queue_plan(queue, seconds=allowed(queue))
    if as_json:
        print_json(doc)
    else:
        show_queue_plan(doc)
    return 1 if doc["totals"]["errors"] else 0


def _planned(experiment: Experiment) -> "Planned":
    """The command of an experiment, with plain output where it has another."""
    from mlxroles.overnight.queue import Planned

    words = options(experiment)
    if "--shard" in words:
        raise SpecError(
            f"{experiment.source}: a divided model is no part of a queue: "
            "mlx.launch -n 2 -- mlxroles run FILE"
        )
    known = {word for parameter in command_of(experiment).params for word in parameter.opts}
    switches = ["--plain"] if "--plain" in known else []
    # in front: behind a -- everything is an argument
    argv = (*experiment.kind.split(), *switches, *words)
    return Planned(experiment.name, experiment.kind, argv, experiment.priority)


def _lead(
    queue: Queue,
    short: str,
    experiments: Sequence["Planned"],
    ranks: "Ranks",
    given: dict[str, Any],
) -> int:
    """Runs the queue as its leader; the exit status."""
    from rich.console import Console

    from mlxroles.dashboard import queue as display
    from mlxroles.machine.notify import notify
    from mlxroles.overnight.forecast import PATIENCE, Forecast
    from mlxroles.overnight.queue import begin
    from mlxroles.overnight.supervise import Supervisor
    from mlxroles.report import night

    path = ranks.sweep
    state = begin(path, queue.name, short, experiments, sys.argv[1:])
    until = _end(state, queue)
    if until is not None:
        state.until = datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds")
    forecast = Forecast(given["files"])
    try:
        if until is not None or all(entry.status == "done" for entry in state.entries):
            note("planning")
            forecast.take(state, wait=PATIENCE)
        with display.show(Console(stderr=True), plain=given["plain"]) as show:
            shown = _Shown(show, forecast)
            Supervisor(state, shown, ranks, until).lead()
    finally:
        forecast.close()
    page = night.write(path)
    _say(state, page, as_json=given["as_json"], plain=given["plain"])
    text = _sentence(state)
    for problem in notify(
        f"mlxroles {state.name}",
        text,
        given["notify"] or queue.notify,
        summary=state.to_json() | {"report": str(page)},
    ):
        note(problem)
    return _status(state)


class _Shown:
    """Hands the display the state of the queue, and that of its run as the run tells it."""

    def __init__(self, show: Any, forecast: Any) -> None:
        from mlxroles.dashboard.state import RunState

        self.show, self.forecast, self.new = show, forecast, RunState
        self.run: Any = None
        self._current: int | None = None

    def __call__(self, state: "QueueState", events: Sequence["Event"]) -> None:
        """Shows the present."""
        self.forecast.take(state)
        if state.current != self._current:
            self.run, self._current = None, state.current
        for event in events:
            if self.run is None or self.run.is_begun_by(event):
                self.run = self.new()
            self.run.fold(event)
        self.show(state, self.run)


def _end(state: "QueueState", queue: Queue) -> float | None:
    """Seconds since the epoch when the queue ends: of a killed sweep, the end that it had."""
    if state.until is not None:
        until = datetime.fromisoformat(state.until).timestamp()
        if until > time.time():
            return until
    seconds = allowed(queue)
    return None if seconds is None else time.time() + seconds


def _say(state: "QueueState", page: Path, *, as_json: bool, plain: bool) -> None:
    if as_json:
        print_json(state.to_json() | {"report": str(page)})
        return
    from mlxroles.cli.results import show
    from mlxroles.dashboard.queue_table import queue_table

    show(queue_table(state.entries, _sentence(state)), plain=plain)
    click.echo(page)


def _sentence(state: "QueueState") -> str:
    """How the queue ended, in a sentence."""
    counts = {
        "done": "done",
        "failed": "failed",
        "left": "left at the deadline",
        "stopped": "stopped",
    }
    n = {status: sum(e.status == status for e in state.entries) for status in counts}
    parts = [f"{n[status]} {words}" for status, words in counts.items() if n[status]]
    cells = sum(entry.failed for entry in state.entries)
    parts += [f"{cells} failed cells"] if cells else []
    return f"{len(state.entries)} experiments: {', '.join(parts)}"


def _status(state: "QueueState") -> int:
    """3 with failures, 128 + n after a signal, else 0: also where the deadline came first."""
    if state.interrupted in SIGNAL_STATUS:
        note(f"stopped by {state.interrupted}; the same command goes on from there")
        return SIGNAL_STATUS[state.interrupted]
    if any(entry.failed or entry.error for entry in state.entries):
        return FAILED_CELLS
    return 0
