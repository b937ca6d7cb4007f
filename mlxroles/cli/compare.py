"""`mlxroles compare`: what instruction tuning changed, layer by layer, from stored numbers."""

from typing import Any

import click

from mlxroles.cli.output import note, print_json
from mlxroles.cli.results import show
from mlxroles.cli.sources import (
    chosen_models,
    stored_analysis,
    stored_options,
    two_sources,
)
from mlxroles.cli.tables import table_option, write_table


@click.command("compare")
@two_sources
@table_option
@stored_options
def command(**given: Any) -> int:
    """Compare base and instruct: RFC and RSI per layer, with intervals, tests and the null.

    SOURCE is a run folder of `mlxroles entropy`, a family (its newest run), attention patterns in
    an .npz, or the original study's comparison .csv. No model is needed.

    \b
    Examples:
      mlxroles compare llama
      mlxroles compare --base base.npz --instruct instruct.npz --compat --json
    """  # noqa: D301
    from mlxroles.studies.role_reading import comparison

    models = chosen_models(given)
    doc = comparison(models, stored_analysis(given), is_compat=given["compat"])
    write_table(given["csv"], doc["rows"])
    if given["as_json"]:
        print_json(doc)
        return 0
    from mlxroles.dashboard import comparison_table, paragraphs

    show(comparison_table(doc["rows"]), plain=given["plain"])
    summary = doc["summary"] or {}
    lines = [_sum_up(name, one) for name, one in summary.items() if isinstance(one, dict)]
    show(paragraphs(lines), plain=given["plain"])
    for text in (
        *doc["notes"],
        f"from {' and '.join(dict.fromkeys([doc['base'], doc['instruct']]))}",
    ):
        note(text)
    return 0


def _sum_up(metric: str, one: dict[str, Any]) -> str:
    """What the differences of one metric add up to; the thresholds of the study are no test."""
    n = one["total_layers"]
    parts = [f"{metric.upper()}, instruct − base: mean {one['mean']:+.4f}"]
    if one.get("mean_without_it") is not None:
        parts.append(f"without layer {one['most_influential_layer']} {one['mean_without_it']:+.4f}")
    parts.append(f"median {one['median']:+.4f}")
    excluding = len(one["ci_excludes_zero"])
    parts.append(
        f"{one['significant_negative']} of {n} layers below -.01, {one['near_zero']} within, "
        f"{one['significant_positive']} above (a threshold, no test); interval excludes 0 in "
        f"{excluding}"
    )
    if "q_below_05" in one:
        parts.append(f"significant after correction in {len(one['q_below_05'])}")
    return "; ".join(parts)
