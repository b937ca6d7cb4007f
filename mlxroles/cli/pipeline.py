"""`mlxroles pipeline`: the whole role study of one or several families, one command."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.dry_run import taken
from mlxroles.cli.entropy import (
    family_subject,
    plan_lines,
    planned,
    prompt_set_options,
    run_study,
)
from mlxroles.cli.inputs import model_options, two_model_options
from mlxroles.cli.options import json_option, no_arguments, plain_option, seed_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.readings import chosen_analysis, reading_options
from mlxroles.cli.results import RESULTS, show, show_files
from mlxroles.errors import FAILED_CELLS, MlxrolesError, ModelError
from mlxroles.pairs import Pair, catalogue, find, pair


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
@seed_option
@click.option("--dry-run", is_flag=True, help="Show plan, cost, memory and disk; load no weights.")
@click.option("--fresh", is_flag=True, help="Start anew instead of skipping what is already done.")
@click.option("--open", "opens", is_flag=True, help="Show the reports in the browser.")
@plain_option
@json_option
@no_arguments
def command(**given: Any) -> int:
    """Run the role study: capture base and instruct, compare, rank heads, draw, report.

    What is done is skipped; a family that cannot run does not stop the others. The changes of two
    families or more are correlated as well.

    \b
    Examples:
      mlxroles pipeline --family tiny --open
      mlxroles pipeline --all
    """  # noqa: D301
    if bool(given["families"]) == given["every"]:
        raise click.UsageError("name families with --family, or take all with --all")
    studies = [planned(family_subject(entry, given), given) for entry in _families(given)]
    if given["dry_run"]:
        return _show_plans(studies, as_json=given["as_json"])
    docs, failed = [], False
    for study in studies:
        try:
            doc, status = run_study(study, _settings(given))
        except MlxrolesError as error:
            note(f"{study.subject.pair}: {error}")
            failed = True
            continue
        docs.append(doc)
        if status not in (0, FAILED_CELLS):
            return _ended(docs, None, status, given)
        failed |= status != 0
    whole = [doc for doc in docs if not doc["missing_cells"]]
    correlation = _correlation(whole, given) if len(whole) > 1 else None
    return _ended(docs, correlation, FAILED_CELLS if failed else 0, given)


def _show_plans(studies: list[Any], *, as_json: bool) -> int:
    if [study for study in studies if taken(study)]:
        return 0
    plans = [study.plan() for study in studies]
    if as_json:
        print_json({"schema": "mlxroles/plans/1", "families": plans})
    else:
        for plan in plans:
            plan_lines(plan)
    return 0


def _families(given: dict[str, Any]) -> list[Pair]:
    """The families to run; of ``--all`` those that are on this machine."""
    if not given["every"]:
        return [pair(name) for name in dict.fromkeys(given["families"])]
    entries = [entry for entry in catalogue().values() if entry.kind == "family"]
    here = [e for e in entries if all(find(e.ref(side)) for side in ("base", "instruct"))]
    for entry in entries:
        if entry in here:
            continue
        note(f"{entry.name}: not on this machine; run `mlxroles models pull {entry.name}`")
    if not here:
        raise ModelError(
            "no family of the catalogue is on this machine; the embedded pair is --family tiny"
        )
    return here


def _ended(
    docs: list[dict[str, Any]],
    correlation: dict[str, Any] | None,
    status: int,
    given: dict[str, Any],
) -> int:
    """Prints what ``--json`` asks for and opens what ``--open`` asks for; the exit status."""
    if given["as_json"]:
        print_json({"schema": "mlxroles/pipeline/1", "families": docs, "correlation": correlation})
    if given["opens"]:
        from mlxroles.cli.report import open_page

        for doc in docs:
            page = Path(doc["run"], "report.html")
            if page.exists():
                open_page(page)
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
