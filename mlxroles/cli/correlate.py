"""`mlxroles correlate`: whether families changed in the same layers, and what that rests on."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.output import note, print_json
from mlxroles.cli.results import show, show_files
from mlxroles.cli.sources import stored_analysis, stored_options


@click.command("correlate")
@click.argument("sources", nargs=-1, metavar="SOURCE SOURCE...")
@click.option(
    "--metric",
    type=click.Choice(["rfc", "rsi"]),
    default="rfc",
    show_default=True,
    help="Whose change from base to instruct is correlated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write correlation.json and figures here.",
)
@stored_options
def command(**given: Any) -> int:
    """Correlate what instruction tuning changed over the layers of several families.

    Pearson and Spearman, the number of layers that autocorrelation leaves, the p-value of circular
    shifts, the correlation without the common trend in depth, and the layer without which it would
    be another. A SOURCE is as for compare; BASE.npz:INSTRUCT.npz where the two lie apart.

    \b
    Examples:
      mlxroles correlate llama qwen mistral
      mlxroles correlate --compat llama.csv mistral.csv --json
    """  # noqa: D301
    from mlxroles.studies.role_reading import correlation

    doc, profiles = correlation(
        given["sources"],
        stored_analysis(given),
        is_compat=given["compat"],
        metric=given["metric"],
    )
    if given["out"] is not None:
        from mlxroles.studies.reports import write_correlation

        write_correlation(given["out"], doc, profiles)
    if given["as_json"]:
        print_json(doc)
        return 0
    from mlxroles.dashboard import correlation_table

    show(correlation_table(doc), plain=given["plain"])
    for text in doc["notes"]:
        note(text)
    if given["out"] is not None:
        show_files(str(given["out"]), "correlation.json", "figures")
    return 0
