"""`mlxroles circuits`: what the weights of heads say without a prompt."""

from typing import Any

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import chosen_subject, model_or_pair_options, trust_option
from mlxroles.cli.options import run_options
from mlxroles.cli.output import print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.text import format_bytes


@click.command("circuits")
@model_or_pair_options
@click.option(
    "--heads",
    metavar="L5H8,..|each",
    help="Heads whose pairs of tokens are listed.  [default: the 4 that copy most]",
)
@click.option(
    "--fold-norms/--no-fold-norms",
    default=True,
    show_default=True,
    help="Put the gains of norms into the matrices that read and write through them.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Pairs of tokens that are listed per circuit and end.",
)
@trust_option
@drift_option
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser at the end.")
@run_options
def command(**given: Any) -> int:
    """Read what heads do off their weights, without a prompt.

    For every head: whether it copies the tokens that it attends to (OV circuit: diagonal and
    eigenvalues), what it reads of earlier heads (Q-, K- and V-composition), which distances it
    prefers under the model's own RoPE; for some, the pairs of tokens that QK and OV join most.
    Every score stands beside chance. A pair gives both models and what tuning changed.

    \b
    Examples:
      mlxroles circuits --pair tiny
      mlxroles circuits --model DIR --heads L2H5,L3H2 --top 20 --open
    """  # noqa: D301
    subject = chosen_subject(given | _WITHOUT_PROMPTS)
    from mlxroles.studies.circuits.study import Circuits
    from mlxroles.studies.circuits.work import Options

    heads = _heads(given["heads"], subject)
    options = Options(
        heads=heads, fold_norms=given["fold_norms"], top=given["top"], seed=given["seed"]
    )
    study = Circuits(subject, options)
    if given["dry_run"]:
        return show_plan(study, _plan_lines, as_json=given["as_json"])
    return run_study(study, given, _tell)


_WITHOUT_PROMPTS = {"resident": 1, "template": "instruct", "allow_window_mismatch": False}
"""What loading is told: one model after the other, and none of them is given a conversation."""


def _heads(text: str | None, subject: Any) -> tuple[tuple[int, int], ...] | None:
    """The heads that are named; None for those that copy most.

    Raises:
        SpecError: a head that the models do not have.
    """
    if text is None:
        return None
    from mlxroles.heads import parse_heads
    from mlxroles.studies.timed import sizes

    layers, heads = subject.n_layers, sizes(subject).heads
    if text.strip() == "each":
        return tuple((i, h) for i in range(layers) for h in range(heads))
    return tuple(parse_heads(text, n_layers=layers, n_heads=heads or None))


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"cells         {plan['cells']}")
    click.echo(f"compositions  {plan['head_pairs']:,} of pairs of heads")
    click.echo(f"lists         tokens of {plan['listed']} heads")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.dashboard.circuits_tables import circuits_tables
    from mlxroles.studies.circuits.results import FILES

    if doc["models"]:
        show(circuits_tables(doc), plain=given["plain"])
    show_files(doc["run"], *FILES)
