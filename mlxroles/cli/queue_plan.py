"""What the experiments of a queue would take, and what of it is done; no weights are loaded.

Every command that plans a study is called with ``--dry-run`` and hands over its plan. What cannot
be planned keeps its error beside its name, and the others are planned all the same.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mlxroles.cli.dry_run import Planned, take_plans
from mlxroles.cli.experiments import arguments, command_of
from mlxroles.cli.output import print_table
from mlxroles.cli.results import RESULTS
from mlxroles.errors import MlxrolesError, StoreError
from mlxroles.spec import Experiment, Queue
from mlxroles.text import format_bytes, format_seconds, safe_text

SCHEMA = "mlxroles/queue-plan/1"
_BOUNDS = ("likely", "low", "high")


def queue_plan(queue: Queue, *, seconds: float | None = None) -> dict[str, Any]:
    """The plan of a queue as one document, its experiments in the order of running.

    Args:
        queue: What would run.
        seconds: How long it may run; None where nothing ends it early.
    """
    from mlxroles.models.tokenizer import shared_tokenizers

    entries: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    spent = dict.fromkeys(_BOUNDS, 0.0)
    with shared_tokenizers():
        found = [_entry(experiment) for experiment in queue.ordered()]
    for number, planned in enumerate(found, start=1):
        entry: dict[str, Any] = {"number": number, **planned}
        runs = "+".join(str(run["run_id"]) for run in entry["runs"])
        entry["same_as"] = seen.setdefault(runs, number) if runs else number
        if entry["same_as"] == number:
            entry["same_as"] = None
        elif entry["seconds_left"] is not None:
            entry["seconds_left"] = dict.fromkeys(_BOUNDS, 0.0)
        left = entry["seconds_left"]
        entry["fits"] = None
        if seconds is not None and left is not None:
            begins = spent["likely"] < seconds
            spent = {bound: spent[bound] + left[bound] for bound in _BOUNDS}
            late = "partly" if begins else "not"
            likely = "likely" if spent["likely"] <= seconds else late
            entry["fits"] = "whole" if spent["high"] <= seconds else likely
        entries.append(entry)
    return {
        "schema": SCHEMA,
        "name": queue.name,
        "until": queue.until,
        "budget": queue.budget,
        "seconds": seconds,
        "experiments": entries,
        "totals": _totals(entries),
    }


def _entry(experiment: Experiment) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": experiment.name,
        "kind": experiment.kind,
        "priority": experiment.priority,
        "source": experiment.source,
        "argv": None,
        "runs": [],
        **dict.fromkeys(("cells", "done", "layer_calls", "seconds", "seconds_left")),
        **dict.fromkeys(("weights_bytes", "memory_bytes", "over_memory", "disk_bytes", "error")),
    }
    try:
        found["argv"] = arguments(experiment)
        plans = plans_of(experiment, found["argv"])
        out = experiment.options.get("out")
        found["runs"] = [_run(planned, out) for planned in plans]
    except MlxrolesError as error:
        return found | {"error": str(error)}
    except click.UsageError as error:
        return found | {"error": f"{experiment.source}: {error.message}"}
    return found | _sums(plans, found["runs"])


def plans_of(experiment: Experiment, words: Sequence[str]) -> list[Planned]:
    """The plans of an experiment: one, several of a pipeline, none of what has no ``--dry-run``.

    Args:
        experiment: What would run.
        words: Its ``arguments``.

    Raises:
        MlxrolesError, click.UsageError: it cannot run.
    """
    command = command_of(experiment)
    if not any("--dry-run" in parameter.opts for parameter in command.params):
        return []
    with command.make_context(
        experiment.kind, ["--dry-run", *words[len(experiment.kind.split()) :]]
    ) as context:
        found = take_plans(context)
        command.invoke(context)
    return found


def _run(planned: Planned, out: object) -> dict[str, Any]:
    """A run of an experiment: its id, its folder if there is one, cells in all and done."""
    run_id, cells = str(planned.plan["run_id"]), set(planned.cells)
    found: dict[str, Any] = {"run_id": run_id, "path": None, "cells": len(cells), "done": 0}
    path = _folder(run_id) if out is None else Path(str(out))
    if path is not None and path.is_file():
        from mlxroles.studies.capture import stored_run

        if stored_run(path) == run_id:
            found |= {"path": str(path), "done": len(cells)}
        return found
    if path is not None and not path.exists():
        path = path.with_name(f"{path.name}.parts")
    if path is None or not (path / "manifest.json").exists():
        return found
    from mlxroles.store.folder import RunFolder

    folder = RunFolder.read(path)
    if folder.run_id != run_id:
        raise StoreError(f"{safe_text(str(path))} holds another run; choose another out")
    done = {record.id for record in folder.records().values() if record.status == "ok"}
    return found | {"path": str(path), "done": len(done & cells)}


def _folder(run_id: str) -> Path | None:
    """The folder of a run below ``results``."""
    found = sorted(RESULTS.glob(f"*/{run_id}/manifest.json"))
    return found[0].parent.resolve() if found else None


def _sums(plans: Sequence[Planned], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the plans of one experiment come to."""
    if not plans:
        return {}
    docs = [planned.plan for planned in plans]
    times: list[Mapping[str, Any]] = [doc["seconds"] for doc in docs if doc.get("seconds")]
    seconds: dict[str, Any] | None = None
    left: dict[str, float] | None = None
    if len(times) == len(docs):
        shares = [1 - run["done"] / run["cells"] if run["cells"] else 0.0 for run in runs]
        both = list(zip(times, shares, strict=True))
        seconds = {bound: sum(time[bound] for time in times) for bound in _BOUNDS}
        left = {bound: sum(time[bound] * share for time, share in both) for bound in _BOUNDS}
        seconds["basis"] = "; ".join(dict.fromkeys(str(t.get("basis", "")) for t in times))
    calls = [doc["layer_calls"] for doc in docs if "layer_calls" in doc]
    memory = [doc["memory_bytes"] for doc in docs if "memory_bytes" in doc]
    return {
        "cells": sum(run["cells"] for run in runs),
        "done": sum(run["done"] for run in runs),
        "layer_calls": round(sum(calls), 1) if len(calls) == len(docs) else None,
        "seconds": seconds,
        "seconds_left": left,
        "weights_bytes": max(doc["weights_bytes"] for doc in docs),
        "memory_bytes": max(memory) if len(memory) == len(docs) else None,
        "over_memory": next(filter(None, (doc.get("over_memory") for doc in docs)), None),
        "disk_bytes": sum(doc["disk_bytes"] for doc in docs),
    }


def _totals(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the experiments that have plans, each run counted once."""
    planned = [e for e in entries if e["cells"] is not None and e["same_as"] is None]
    timed = [e["seconds_left"] for e in planned if e["seconds_left"] is not None]
    return {
        "experiments": len(entries),
        "planned": sum(e["cells"] is not None for e in entries),
        "errors": sum(e["error"] is not None for e in entries),
        "cells": sum(e["cells"] for e in planned),
        "done": sum(e["done"] for e in planned),
        "layer_calls": round(sum(e["layer_calls"] or 0 for e in planned), 1),
        "timed": len(timed),
        "seconds_left": {b: sum(t[b] for t in timed) for b in _BOUNDS} if timed else None,
        "memory_bytes": max((_memory(e) for e in planned), default=0),
        "disk_bytes": sum(e["disk_bytes"] for e in planned),
    }


def _memory(entry: Mapping[str, Any]) -> int:
    """Bytes at the peak, at least those of the weights."""
    return entry["memory_bytes"] or entry["weights_bytes"]


# --- display --------------------------------------------------------------------------------------


def show_queue_plan(doc: Mapping[str, Any]) -> None:
    """Prints the plan of a queue: a table, then what it comes to."""
    columns = ["experiment", "#cells", "#done", "#layer calls", "#time", "#memory", "#disk"]
    rows = [_row(entry) for entry in doc["experiments"]]
    remarks = [_remark(entry) for entry in doc["experiments"]]
    if any(remarks):
        columns.append("remark")
        rows = [[*row, remark] for row, remark in zip(rows, remarks, strict=True)]
    print_table(f"Plan of {doc['name']}", columns, rows)
    for line in _lines(doc):
        click.echo(safe_text(line))


def _row(entry: Mapping[str, Any]) -> list[str]:
    if entry["cells"] is None:
        return [entry["name"], *["–"] * 6]
    calls, least = entry["layer_calls"], "" if entry["memory_bytes"] else ">"
    return [
        entry["name"],
        str(entry["cells"]),
        str(entry["done"]),
        "–" if calls is None else f"{calls:.0f}",
        _time(entry),
        least + format_bytes(_memory(entry)),
        format_bytes(entry["disk_bytes"]),
    ]


def _time(entry: Mapping[str, Any]) -> str:
    left = entry["seconds_left"]
    if left is None or entry["same_as"] is not None:
        return "–"
    return format_seconds(left["likely"]) if left["likely"] else "done"


def _remark(entry: Mapping[str, Any]) -> str:
    """What is special about an experiment, in two words: tables must fit narrow terminals."""
    if entry["error"] is not None:
        return "cannot run"
    if entry["cells"] is None:
        return "no plan"
    if entry["same_as"] is not None:
        return "same run"
    return {"likely": "may be late", "partly": "in part", "not": "too late"}.get(entry["fits"], "")


def _lines(doc: Mapping[str, Any]) -> list[str]:
    totals, entries = doc["totals"], doc["experiments"]
    found = [f"cells         {totals['cells']}, {totals['done']} of them done"]
    left = totals["seconds_left"]
    if left is not None:
        rest = totals["planned"] - sum(e["seconds_left"] is not None for e in entries)
        bases = [e["seconds"]["basis"] for e in entries if e["seconds"]]
        basis = dict.fromkeys(re.sub(r" on \d+ runs?.*", "", text) for text in bases)
        found.append(
            "time          nothing is left to do"
            if not left["likely"] and not rest
            else f"time          about {format_seconds(left['likely'])} "
            f"({format_seconds(left['low'])} to {format_seconds(left['high'])})"
            + (f", without {rest} that cannot be estimated" if rest else "")
            + "".join(f"; {text}" for text in basis if text)
        )
    found.append(f"memory        about {format_bytes(totals['memory_bytes'])} at the peak")
    found.append(f"disk          about {format_bytes(totals['disk_bytes'])}")
    if doc["seconds"] is not None:
        found.append(f"end           {_end(doc)}")
    for entry in entries:
        if entry["over_memory"] is not None:
            found.append(f"over memory   {entry['name']}: {entry['over_memory']}")
    for entry in entries:
        if entry["error"] is not None:
            found.append(f"cannot run    {entry['name']}: {entry['error']}")
    return found


def _end(doc: Mapping[str, Any]) -> str:
    """When the queue ends, and what fits before."""
    entries = doc["experiments"]
    end = f"until {doc['until']}, in" if doc["until"] else "within"
    late = sum(entry["fits"] in ("partly", "not") for entry in entries)
    unknown = sum(entry["fits"] is None for entry in entries)
    fits = f"{late} of {len(entries)} would not be done" if late else "all that is estimated fits"
    if not late and not unknown:
        is_sure = all(entry["fits"] == "whole" for entry in entries)
        fits = "everything fits" if is_sure else "everything fits if nothing is slower than thought"
    return f"{end} {format_seconds(doc['seconds'])}: {fits}"
