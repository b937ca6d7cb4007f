"""`mlxroles heads`: what each head of a model does."""

from typing import Any

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import (
    chosen_subject,
    model_options,
    model_or_pair_options,
    two_model_options,
)
from mlxroles.cli.options import run_options
from mlxroles.cli.output import print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.text import format_bytes

SEQUENCES, LENGTH = 32, 256
"""Rows of tokens of every kind by default, and tokens of each."""


@click.command("heads")
@model_or_pair_options
@click.option(
    "--text",
    metavar="FILE",
    help="Text on which the scores on text are taken.  [default: generated English]",
)
@click.option(
    "--sequences",
    type=click.IntRange(min=2),
    default=SEQUENCES,
    show_default=True,
    help="Rows of tokens of every kind; intervals are over them.",
)
@click.option(
    "--length",
    type=click.IntRange(min=16),
    default=LENGTH,
    show_default=True,
    help="Tokens of a row of text or of random ids.",
)
@click.option(
    "--causal",
    is_flag=True,
    help="Also set the marked heads to zero and see what gets worse, beside other heads.",
)
@two_model_options
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser at the end.")
@model_options
@drift_option
@run_options
def command(**given: Any) -> int:
    """Say what each head does: previous token, induction, sink, delimiter, successor, ...

    Every score stands beside what uniform attention over the same keys gives and beside a control,
    with an interval over rows of tokens; a head of which nothing holds is of no class.

    With --pair the two models are compared: both are scored on the same rows, and every difference,
    instruct less base, has an interval.

    \b
    Examples:
      mlxroles heads --pair tiny
      mlxroles heads --pair tiny --causal --open
      mlxroles heads --model DIR --text novel.txt --sequences 64
    """  # noqa: D301
    subject = chosen_subject(given)
    from mlxroles.studies.heads.study import Heads, Options

    options = Options(
        text=given["text"],
        sequences=given["sequences"],
        length=given["length"],
        causal=given["causal"],
        seed=given["seed"],
    )
    study = Heads(subject, options)
    if given["dry_run"]:
        return show_plan(study, _plan_lines, as_json=given["as_json"])
    return run_study(study, given, _tell)


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"cells         {plan['cells']}")
    for name, rows in plan["sets"].items():
        click.echo(f"rows          {rows} {name}")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.studies.heads.results import FILES, tables

    show(tables(doc), plain=given["plain"])
    show_files(doc["run"], *FILES)
