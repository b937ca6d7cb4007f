"""`mlxroles patch --method attribution`: the plan, the run and what is printed of it."""

from collections.abc import Sequence
from typing import Any

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.output import note, print_json, print_time
from mlxroles.cli.results import exit_status, open_report, place, say_time, show, show_files
from mlxroles.text import format_bytes, format_seconds


def run_attribution(subject: Any, prompts: Sequence[Any], given: dict[str, Any]) -> int:
    """Plans or runs what the options say; the exit status."""
    from mlxroles.engine import memory
    from mlxroles.studies.attribution.sweep import AttributionOptions, AttributionSweep

    options = AttributionOptions(
        layers=given["layers"],
        site=given["site"],
        positions=given["positions"],
        metric=given["metric"] or "log_odds",
        ig=given["ig"] or 1,
        edges=given["edges"],
        verify=given["verify"],
        strings=given["strings"],
        token_ids=given["token_ids"],
        seed=given["seed"],
        memory=memory.limit(given["memory"]),
    )
    sweep = AttributionSweep(subject, prompts, options)
    if given["dry_run"]:
        return show_plan(
            sweep, lambda plan: _plan_lines(plan, subject.notes), as_json=given["as_json"]
        )
    return _run(sweep, given)


def _plan_lines(plan: dict[str, Any], notes: Sequence[str]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"estimates     {plan['estimated_cells']} cells of {', '.join(plan['sites'])}")
    click.echo(
        f"passes        about {plan['passes']}: {plan['gradients']} gradients and the clean runs"
    )
    click.echo(
        f"layer calls   about {plan['layer_calls']}, a backward counted as two forwards (the exact "
        f"sweep of these cells: {plan['layer_calls_of_the_exact_sweep']})"
    )
    if plan["exact_runs"]:
        click.echo(
            f"verification  at most {plan['exact_runs']} exact runs, about "
            f"{plan['exact_runs_layer_calls']} layer calls"
        )
    else:
        click.echo("verification  none: first-order estimates; --verify 20 runs cells exactly")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(
        f"memory        about {format_bytes(plan['memory_bytes'])} "
        f"(--resident {plan['resident_models']})"
    )
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)
    for text in notes:
        note(text)


def _run(sweep: Any, given: dict[str, Any]) -> int:
    from mlxroles.cli.progress import progress

    with progress(plain=given["plain"]) as emit:
        doc, finished = sweep.run(emit, place(given))
    if finished.interrupted is None:
        note(f"finished: {finished.done} cells in {format_seconds(finished.seconds)}")
    if given["as_json"]:
        print_json(doc)
    else:
        from mlxroles.dashboard import paragraphs
        from mlxroles.dashboard.attribution_tables import attribution_tables
        from mlxroles.report.attribution.rows import directions

        if directions(doc):
            show(attribution_tables(doc), plain=given["plain"])
        show(paragraphs([doc["summary"]["sentence"]]), plain=given["plain"])
        show_files(doc["run"], "summary.json", "run.h5", "report.html", "figures")
    open_report(doc["run"], given)
    say_time(doc)
    return exit_status(finished, given)
