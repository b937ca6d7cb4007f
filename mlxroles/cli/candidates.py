"""`mlxroles candidates`: heads worth patching, from stored numbers."""

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


@click.command("candidates")
@two_sources
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Heads to list."
)
@table_option
@stored_options
def command(**given: Any) -> int:
    """Rank the heads whose entropy instruction tuning moved for the focus alone.

    Difference in differences per head, its consistency beside the level that chance gives, and
    the composite score beside a permutation null: ten of a thousand heads always look special.
    SOURCE is as for compare; a published table of candidates is checked.

    \b
    Examples:
      mlxroles candidates llama --top-k 20
      mlxroles candidates --compat --base base.npz --instruct instruct.npz --json
    """  # noqa: D301
    from mlxroles.studies.role_reading import candidate_heads

    doc = candidate_heads(
        chosen_models(given),
        stored_analysis(given),
        is_compat=given["compat"],
        top_k=given["top_k"],
    )
    write_table(given["csv"], doc["rows"])
    if given["as_json"]:
        print_json(doc)
        return 0
    from mlxroles.dashboard import candidates_table, paragraphs

    show(candidates_table(doc["rows"]), plain=given["plain"])
    show(paragraphs(_chance(doc)), plain=given["plain"])
    for text in (
        *doc["notes"],
        f"from {' and '.join(dict.fromkeys([doc['base'], doc['instruct']]))}",
    ):
        note(text)
    return 0


def _chance(doc: dict[str, Any]) -> list[str]:
    """What chance alone gives: for the consistency, and for the best of all heads."""
    found = [f"consistency by chance alone: {doc['chance_consistency']:.3f}"]
    if "null" in doc:
        found.append(
            f"the largest z of {doc['n_heads']} heads stays below {doc['null']['max_z_95']:.2f} in "
            f"95 % of {doc['null']['n']} shuffles of the categories; above: {doc['significant']}"
        )
    if "population" in doc:
        found += [
            f"{name} over all heads, from its z scores: mean {one['mean']:.5f}, sd {one['sd']:.5f}"
            for name, one in doc["population"].items()
        ]
        found.append(
            f"consistency beyond chance after correction for {doc['n_heads']} heads: "
            f"{doc['significant']} of {doc['n']}"
        )
    return found
