"""`mlxroles ablate`: what a model says without some of its parts."""

from typing import Any

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import (
    chosen_subject,
    measured_options,
    model_options,
    model_or_pair_options,
    prompt_options,
    two_model_options,
)
from mlxroles.cli.options import run_options
from mlxroles.cli.output import print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.text import format_bytes

POSITION_TESTS = ("redundancy", "offsets", "patterns", "compare")
"""Tests at single positions t; the others are about whole prompts."""
TESTS = ("effects", "joint", *POSITION_TESTS)
METHODS = ("zero", "scale", "mean", "resample")


@click.command("ablate")
@model_or_pair_options
@click.option(
    "--test",
    type=click.Choice(TESTS),
    default="effects",
    show_default=True,
    help="effects: every ablation by itself. joint: growing sets of heads beside the sum of each. "
    "At single positions t: redundancy (heads and the values at t - 1), offsets, patterns, "
    "compare (an HTML page of predictions).",
)
@click.option(
    "--heads",
    metavar="L5H8,L6H1|each|induction|FILE",
    help="Heads by name; each head of the model; the induction circuit, found by scores; or the "
    "first --top of a table of candidates (.csv or run).  [default: each]",
)
@click.option(
    "--values",
    metavar="1|1,2|all",
    help="Instead of heads' outputs the values at t - 1 (t - 1 and t - 2, all) of their key-value "
    "heads, or of whole --layers.",
)
@click.option("--sites", metavar="attn_out,mlp_out", help="Whole outputs of --layers.")
@click.option(
    "--direction",
    metavar="FILE#NAME",
    help="A vector, projected out of the stream after --layers, or after all of them.",
)
@click.option(
    "--components",
    metavar="FILE#L3.q:17,L3.k:2",
    help="Components of a file, each and all together, beside random ones of the same maps; #top "
    "and #L3.q name the --top largest, L3.q:17@H4 one in a head.",
)
@click.option("--layers", metavar="A-B|A,B|A", help="With --values, --sites or --direction.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="zero",
    show_default=True,
    help="What is put in: zeros, a multiple, the mean over --reference, another prompt's.",
)
@click.option(
    "--factors", metavar="1,.5,0", help="With --method scale: multiples.  [default: 1,.5,0]"
)
@click.option(
    "--reference",
    multiple=True,
    metavar="TEXT|FILE|NAME",
    help="With mean and resample: where values come from.  [default: the prompts themselves]",
)
@click.option(
    "--positions",
    metavar="all|last|A-B",
    help="Where; for the tests at single positions, each t.  [default: all; there, drawn ones]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Pairs of heads, heads of a table, or components, at most.  [default: 8; at single "
    "positions 1 pair]",
)
@click.option(
    "--random",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Random sets of as many other heads in the same layers, for each ablation.",
)
@prompt_options
@measured_options
@two_model_options
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser.")
@model_options
@drift_option
@run_options
def command(**given: Any) -> int:
    """Take heads, values, outputs, directions or components out and see what changes.

    KL, top-1 and logit changes, loss, attention outputs and entropies of later layers, at the
    positions that can change, each ablation beside random sets of heads. Where no prompt is given,
    heads are ablated on random tokens that repeat once, and what counts is how much less the
    repetition helps; outputs and directions on the packaged conversation notepad.

    \b
    Examples:
      mlxroles ablate --pair tiny --heads induction
      mlxroles ablate --model DIR --heads L5H8,L6H1 --prompt "TEXT" --positions last
      mlxroles ablate --pair tiny --direction vectors.h5#tools
      mlxroles ablate --pair tiny --heads L1H4,L2H7 --test redundancy
      mlxroles ablate --model tiny/base --components tiny.safetensors#L2.q
    """  # noqa: D301
    subject = chosen_subject(given)
    from mlxroles.cli.ablate_study import planned

    study = planned(subject, given)
    if given["dry_run"]:
        return show_plan(study, _plan_lines, as_json=given["as_json"])
    return _run(study, given)


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    runs = f"{plan['cells']} on {len(plan['prompts'])} prompts"
    if "ablations" in plan:
        runs += f": {plan['ablations']} ablations, {plan['random']} random sets"
    click.echo(f"cells         {runs}")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _run(study: Any, given: dict[str, Any]) -> int:
    from pathlib import Path

    from mlxroles.studies.ablate.results import tables, write

    files: list[str] = []

    def tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
        show(tables(doc), plain=given["plain"])
        show_files(doc["run"], *files, "run.h5", "figures")

    def finish(doc: dict[str, Any]) -> None:
        files.extend(write(Path(doc["run"]), doc))

    return run_study(study, given, tell, finish=finish)
