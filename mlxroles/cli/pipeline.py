"""`mlxroles pipeline`: the whole role study of one or several families, one command."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.entropy import family_subject, planned, prompt_set_options, run_study
from mlxroles.cli.inputs import model_options, two_model_options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.readings import chosen_analysis, reading_options, seed_of_resamples
from mlxroles.cli.results import RESULTS, show, show_files

SKIPPED = 3


@click.command("pipeline")
@click.option(
    "--family",
    "families",
    metavar="NAME",
    multiple=True,
    help="A name of `mlxroles models list`. May be given several times.",
)
@click.option(
    "--all", "every", is_flag=True, help="All families of the catalogue that are on this machine."
)
@prompt_set_options
@reading_options
@two_model_options
@model_options
@seed_of_resamples
@click.option("--fresh", is_flag=True, help="Start anew instead of skipping what is already done.")
@click.option("--open", "opens", is_flag=True, help="Show the reports in the browser.")
@plain_option
@json_option
def command(**given: Any) -> int:
    """Run the role study: capture base and instruct, compare, rank heads, draw, report.

    What is done is skipped. With two families or more their changes are correlated as well.

    \b
    Examples:
      mlxroles pipeline --family tiny --open
      mlxroles pipeline --all
    """  # noqa: D301
    from mlxroles.pairs import catalogue, find, pair

    if bool(given["families"]) == given["every"]:
        raise click.UsageError("name families with --family, or take all with --all")
    named = dict.fromkeys(given["families"])
    chosen = [pair(name) for name in named]
    skipped = []
    if given["every"]:
        for entry in catalogue().values():
            if entry.kind != "family":
                continue
            here = all(find(entry.ref(side)) for side in ("base", "instruct"))
            (chosen if here else skipped).append(entry)
        for entry in skipped:
            note(f"{entry.name}: not on this machine; run `mlxroles models pull {entry.name}`")
        if not chosen:
            raise click.ClickException("no family of the catalogue is on this machine")
    docs, status = [], SKIPPED if skipped else 0
    for entry in chosen:
        doc, ended = run_study(planned(family_subject(entry, given), given), _settings(given))
        docs.append(doc)
        if ended:
            return ended
    correlation = _correlation(docs, given) if len(docs) > 1 else None
    if given["as_json"]:
        print_json({"schema": "mlxroles/pipeline/1", "families": docs, "correlation": correlation})
    if given["opens"]:
        from mlxroles.cli.report import open_page

        for doc in docs:
            open_page(Path(doc["run"], "report.html"))
    return status


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The options of one family's run."""
    return given | {"out": None, "allow_drift": ()}


def _correlation(docs: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    from mlxroles.studies.reports import write_correlation
    from mlxroles.studies.role_reading import correlation
    from mlxroles.text import slug

    doc, profiles = correlation(
        [one["run"] for one in docs], chosen_analysis(given), is_compat=False
    )
    folder = RESULTS / slug("correlation_" + "-".join(str(one["family"]) for one in docs))
    write_correlation(folder, doc, profiles)
    if not given["as_json"]:
        from mlxroles.dashboard import correlation_table

        show(correlation_table(doc), plain=given["plain"])
        show_files(str(folder), "correlation.json", "figures")
    return doc
