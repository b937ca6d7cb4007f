"""`mlxroles inject`: what happens when a direction is added to the residual stream."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import (
    chosen_prompts,
    chosen_subject,
    measured_options,
    model_options,
    model_or_pair_options,
    prompt_options,
    two_model_options,
)
from mlxroles.cli.options import run_options
from mlxroles.cli.output import note, print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.text import format_bytes

Command = TypeVar("Command", bound=Callable[..., object])


def what_options(command: Command) -> Command:
    """Adds what is injected."""
    command = click.option(
        "--vector",
        "vectors",
        multiple=True,
        metavar="FILE#NAME",
        help="A vector of your own: .h5, .npy, .safetensors, .gguf, one row FILE#W_dec[12], or the "
        "folder of an earlier run. May be given several times.",
    )(command)
    command = click.option(
        "--away",
        multiple=True,
        metavar="PROMPTS|no-tools",
        help="Prompts on the other side; no-tools: the same without the tools that they offer.",
    )(command)
    command = click.option(
        "--toward",
        multiple=True,
        metavar="PROMPTS",
        help="Inject the mean difference of these prompts to those of --away. Without --prompt "
        "every other one of them is held out and measured.",
    )(command)
    return click.option(
        "--concept",
        "concepts",
        multiple=True,
        metavar="WORD",
        help="Inject this concept: 'Tell me about WORD' less the mean over everyday words. May be "
        "given several times.",
    )(command)


def where_options(command: Command) -> Command:
    """Adds layers, strengths, positions."""
    command = click.option(
        "--random",
        "n_random",
        type=click.IntRange(0, 1000),
        default=20,
        show_default=True,
        help="Random vectors of the same length beside each vector.",
    )(command)
    command = click.option(
        "--kv-only",
        is_flag=True,
        help="Inject before the last message only: the answer sees what keys and values kept.",
    )(command)
    command = click.option(
        "--positions",
        metavar="all|last|question|TEXT",
        help="Tokens that the vector is added to: also 4-9, or a text that stands in every prompt. "
        " [default: question for a battery, else last]",
    )(command)
    command = click.option(
        "--relative", is_flag=True, help="Scales are shares of the stream's own length."
    )(command)
    command = click.option(
        "--scales",
        metavar="1,2,4,8",
        help="What the vector is multiplied with.  [default: 1,2,4,8; of a contrast 0.5,1,2,4]",
    )(command)
    return click.option(
        "--layers",
        metavar="0-5|2,4",
        help="Layers whose own vectors are added at their outputs.  [default: all, or 16 of them]",
    )(command)


@click.command("inject")
@model_or_pair_options
@what_options
@where_options
@click.option(
    "--test",
    type=click.Choice(["battery", "localise"]),
    default="battery",
    show_default=True,
    help="Yes or No beside controls, or which of five sentences holds the injection.",
)
@click.option(
    "--battery",
    metavar="NAME|FILE",
    help="Questions with controls, a TOML file.  [default: introspection]",
)
@prompt_options
@measured_options
@two_model_options
@model_options
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser.")
@drift_option
@run_options
def command(**given: Any) -> int:
    """Add a direction to the residual stream and see what the model says.

    With a concept: asked whether it detects an injected thought, does the model say Yes more than
    to control questions, and more than with random vectors of the same length? With two sets of
    prompts (or --prompt and --tokens): does the direction between them switch what the model does
    next, and does projecting it out block it? Every layer and strength, beside random vectors.

    \b
    Examples:
      mlxroles inject --pair tiny --concept ocean
      mlxroles inject --pair tiny --toward offers --away no-tools
      mlxroles inject --model DIR --vector FILE#NAME --prompt "TEXT" --tokens "STRING"
    """  # noqa: D301
    subject = chosen_subject(given)
    from mlxroles.studies.inject.planned import Options, planned

    names = ("concepts", "toward", "away", "vectors", "layers", "scales", "positions", "kv_only")
    names += ("test", "battery", "strings", "token_ids", "n_random", "relative", "seed")
    options = Options(prompts=tuple(chosen_prompts(given)), **{name: given[name] for name in names})
    study = planned(subject, options)
    if given["dry_run"]:
        return show_plan(
            study, lambda plan: _plan_lines(plan, subject.notes), as_json=given["as_json"]
        )
    return run_study(study, given, _tell)


def _plan_lines(plan: dict[str, Any], notes: list[str]) -> None:
    from mlxroles.text import safe_text

    shown = ", ".join(safe_text(name, limit=40) for name in plan["vectors"][:6])
    more = f" and {len(plan['vectors']) - 6} more" if len(plan["vectors"]) > 6 else ""
    layers = ", ".join(map(str, plan["layers"]))
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"vectors       {shown}{more}")
    click.echo(f"layers        {layers}; scales {', '.join(f'{s:g}' for s in plan['scales'])}")
    click.echo(f"cells         {plan['cells']} of {len(plan['prompts'])} prompts")
    click.echo(f"runs          {plan['runs']}, random vectors included")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)
    for text in notes:
        note(text)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.dashboard import paragraphs
    from mlxroles.dashboard.inject_tables import inject_tables
    from mlxroles.report.inject.wording import lines

    show(inject_tables(doc), plain=given["plain"])
    show(paragraphs(["", *lines(doc)]), plain=given["plain"])
    files = ("summary.json", "inject.csv", "vectors.h5", "strongest.toml")
    show_files(doc["run"], *files, "run.h5", "report.html", "figures")
