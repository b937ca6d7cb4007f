"""`mlxroles report`: figures and the page of a stored run, made again."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.options import json_option, seed_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.readings import chosen_analysis, reading_options


@click.command("report")
@click.argument("run")
@click.option("--open", "opens", is_flag=True, help="Show the page in the browser.")
@reading_options
@seed_option
@json_option
def command(**given: Any) -> int:
    """Write the report of a run: one HTML page that needs no network.

    RUN is a run folder of `mlxroles entropy` or `mlxroles patch` (either method), or a family (its
    newest entropy run). An entropy run can be read otherwise than it was, with --queries, --keys or
    --contrast.

    \b
    Examples:
      mlxroles report llama --open
      mlxroles report results/entropy_tiny/RUN --queries last
    """  # noqa: D301
    from mlxroles.studies.reports import write_report

    doc, page = write_report(given["run"], chosen_analysis(given))
    if given["as_json"]:
        print_json(doc)
    else:
        click.echo(page)
    if given["opens"]:
        open_page(page)
    return 0


def open_page(page: Path) -> None:
    """Shows a page in the browser; says so where there is none."""
    if click.launch(page.resolve().as_uri()) != 0:
        note(f"no browser could be started; open {page}")
