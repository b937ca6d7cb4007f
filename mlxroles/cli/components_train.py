"""`mlxroles components train`: components and their causal importance, learned."""

import math
from pathlib import Path
from typing import Any

import click

from mlxroles.cli.components import map_options
from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import chosen_subject, model_options
from mlxroles.cli.options import run_options
from mlxroles.cli.output import note, print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.text import format_bytes

FILES = (
    "components.safetensors",
    "summary.json",
    "log.csv",
    "learned.csv",
    "report.html",
    "figures",
)
FAITHFULNESS = 1.0
"""What it would cost, in nats, if the components left out all of the weights."""
IMPORTANCES = ("shared", "activation", "input", "global")


def _finite(_ctx: click.Context, _option: click.Parameter, value: float) -> float:
    """A number as it was typed, unless it is ``nan`` or ``inf``."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number")
    return value


@click.command("train")
@map_options
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to train on.  [default: generated English]",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Steps of Adam."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    default=1e-3,
    show_default=True,
    help="Learning rate at the start.",
)
@click.option(
    "--minimality",
    type=click.FloatRange(min=0),
    callback=_finite,
    default=1e-3,
    show_default=True,
    help="What an important component costs, in nats: more leaves fewer of them.",
)
@click.option(
    "--importance",
    type=click.Choice(IMPORTANCES),
    default="shared",
    show_default=True,
    help="What tells importances: one MLP per map on its input, one per component on its "
    "activation or on the map's input, or one for all maps.",
)
@click.option(
    "--size",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    default=1.5,
    show_default=True,
    help="Components of a map, as a multiple of its largest possible rank.",
)
@click.option(
    "--length",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Tokens of a window of text.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Windows in a step."
)
@model_options
@drift_option
@run_options
def command(**given: Any) -> int:
    """Train components of a model's maps with a function that says which of them matter where.

    Stochastic parameter decomposition: the components of a map must add up to it, as few as
    possible may be important at a position, and the model must say the same whatever is done to
    the others. For small models; what is stopped or killed goes on with the same command. The
    run folder stands for its component file in all other commands.

    \b
    Examples:
      mlxroles components train --model tiny/base --layers 1-2 --maps q,k
      mlxroles components show results/components-train_tiny-base/RUN
      mlxroles components harvest results/components-train_tiny-base/RUN --model tiny/base
    """  # noqa: D301
    study = _study(given)
    if given["dry_run"]:
        return show_plan(study, _plan_lines, as_json=given["as_json"])
    return run_study(study, given, _tell)


def _study(given: dict[str, Any]) -> Any:
    """The planned training."""
    one = {"pair_name": None, "base": None, "instruct": None, "resident": 1}
    subject = chosen_subject(given | one)
    from mlxroles.components.train import Recipe
    from mlxroles.plan import parse_layers
    from mlxroles.studies.component_training.study import Training, Wishes

    layers = given["layers"]
    chosen = None if layers is None else tuple(parse_layers(layers, subject.n_layers))
    recipe = Recipe(
        steps=given["steps"],
        rate=given["rate"],
        warmup=min(200, given["steps"]),
        importance=given["importance"],
        hidden=(16,) if given["importance"] in ("activation", "input") else (64,),
        faithfulness=FAITHFULNESS,
        minimality=given["minimality"],
        layerwise_maps=1,
    )
    names = ("kinds", "size", "text", "length", "batch", "seed")
    return Training(subject, recipe, Wishes(layers=chosen, **{n: given[n] for n in names}))


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"steps         {plan['steps']} in {plan['cells']} cells")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.dashboard.training_tables import training_tables

    show(training_tables(doc), plain=given["plain"])
    for text in doc["notes"]:
        note(text)
    show_files(doc["run"], *FILES)
