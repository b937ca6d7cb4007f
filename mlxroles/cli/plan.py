"""`mlxroles plan`: what experiment files would take, and what of it is done already."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import print_json
from mlxroles.errors import SpecError
from mlxroles.spec import Queue, parse_budget, parse_until, read_queue


@click.command("plan")
@click.argument("files", nargs=-1, required=True, metavar="FILE.toml...")
@click.option("--until", metavar="07:00", help="When it has to end, whatever the files say.")
@click.option("--budget", metavar="8h", help="How long it may run, whatever the files say.")
@click.option("--out", metavar="DIR", help="Of a single experiment: the folder of its run.")
@json_option
def command(**given: Any) -> int:
    """Show what experiments would take: cells, layer calls, time, memory and disk.

    Takes files of single experiments and of queues, loads no model, and looks up in results/ what
    is done already. An experiment that cannot run is listed with the reason; the exit status is 1
    then.

    \b
    Examples:
      mlxroles plan experiments/overnight.toml
      mlxroles plan experiments/*.toml --budget 8h --json
    """  # noqa: D301
    queue = read_queue(given["files"])
    if given["out"] is not None:
        queue = _placed(queue, given["out"])
    queue = ending(queue, given["until"], given["budget"])
    from mlxroles.cli.queue_plan import queue_plan, show_queue_plan

    doc = queue_plan(queue, seconds=allowed(queue))
    if given["as_json"]:
        print_json(doc)
    else:
        show_queue_plan(doc)
    return 1 if doc["totals"]["errors"] else 0


def _placed(queue: Queue, out: str) -> Queue:
    """The queue of one experiment with its run in this folder."""
    if len(queue.experiments) > 1:
        raise SpecError("--out is the folder of one run; these files hold several experiments")
    (only,) = queue.experiments
    return replace(queue, experiments=(replace(only, options={**only.options, "out": out}),))


def ending(queue: Queue, until: str | None, budget: str | None) -> Queue:
    """The queue with the end that the command line says, or with its own.

    Raises:
        SpecError: both are given, or cannot be read.
    """
    if until is not None and budget is not None:
        raise SpecError("--until and --budget exclude each other")
    chosen = (
        queue if until is None and budget is None else replace(queue, until=until, budget=budget)
    )
    allowed(chosen)
    return chosen


def allowed(queue: Queue) -> float | None:
    """Seconds from now that a queue may run; None where nothing ends it.

    Raises:
        SpecError: its end is over.
    """
    if queue.budget is not None:
        return parse_budget(queue.budget)
    if queue.until is not None:
        now = datetime.now().astimezone()
        return (parse_until(queue.until, now) - now).total_seconds()
    return None
