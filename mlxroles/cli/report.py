"""`mlxroles report`: figures and the page of a stored run, made again."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.options import json_option, seed_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.readings import chosen_analysis, reading_options
from mlxroles.errors import MlxrolesError
from mlxroles.store.summary import read_summary


@click.command("report")
@click.argument("run")
@click.option("--open", "opens", is_flag=True, help="Show the page in the browser.")
@reading_options
@seed_option
@json_option
def command(**given: Any) -> int:
    """Write the report of a run: one HTML page that needs no network.

    RUN is a run of `mlxroles entropy` or `mlxroles patch` (either method), by its folder, its id or
    the beginning of one, or a family (its newest entropy run). An entropy run can be read otherwise
    than it was, with --queries, --keys or --contrast. Of a sweep it is the morning report, from
    whatever there is: also while the sweep goes on, or after it was killed.

    \b
    Examples:
      mlxroles report llama --open
      mlxroles report results/entropy_tiny/RUN --queries last
    """  # noqa: D301
    sweep = _sweep(given["run"])
    if sweep is None:
        from mlxroles.studies.reports import write_report

        doc, page = write_report(_chosen(given["run"]), chosen_analysis(given))
    else:
        from mlxroles.report import night

        page = night.write(sweep)
        doc = read_summary(sweep)
    if given["as_json"]:
        print_json(doc)
    else:
        click.echo(page)
    if given["opens"]:
        open_page(page)
    return 0


def _sweep(text: str) -> Path | None:
    """The folder of a sweep, where that is what the text stands for."""
    from mlxroles.runs.find import find, is_run, is_sweep

    try:
        path = find(text)
    except MlxrolesError:
        return None
    return path if is_sweep(path) and not is_run(path) else None


def _chosen(text: str) -> str:
    """The run that a path, a run id or a family stands for, as :func:`write_report` takes it."""
    from mlxroles.pairs import catalogue
    from mlxroles.roles import sources
    from mlxroles.runs.find import find_run

    try:
        return str(find_run(text))
    except MlxrolesError:
        try:
            return str(sources.find(text))
        except MlxrolesError:
            if text in catalogue():
                raise
        raise


def open_page(page: Path) -> None:
    """Shows a page in the browser; says so where there is none."""
    if click.launch(page.resolve().as_uri()) != 0:
        note(f"no browser could be started; open {page}")
