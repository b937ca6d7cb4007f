"""`mlxroles run`: one experiment from a file, run by its command in this process."""

from dataclasses import replace
from typing import Any

import click

from mlxroles.cli.experiments import command_of, options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.results import WORDS
from mlxroles.errors import SpecError
from mlxroles.spec import Experiment, Queue, read
from mlxroles.text import safe_text

_SWITCHES = {"as_json": "--json", "plain": "--plain", "fresh": "--fresh", "dry_run": "--dry-run"}


@click.command("run")
@click.argument("file", metavar="FILE.toml")
@click.option("--out", metavar="DIR", help="Put the run here, whatever the file says.")
@click.option("--fresh", is_flag=True, help="Start anew instead of skipping what is already done.")
@click.option("--dry-run", is_flag=True, help="Show plan, cost, memory and disk; load no weights.")
@plain_option
@json_option
@click.pass_context
def command(context: click.Context, **given: Any) -> int:
    """Run the experiment of a file: what its command does with the same options.

    FILE.toml holds `kind = "patch"` and long options of that command, such as `pair = "tiny"`. The
    run folder is that of the command, so that either goes on where the other was stopped. A queue
    of experiments is run with `mlxroles sweep`.

    \b
    Examples:
      mlxroles run experiments/patch_tiny.toml
      mlxroles run experiments/probe_tiny.toml --json
    """  # noqa: D301
    experiment = read(given["file"])
    if isinstance(experiment, Queue):
        shown = safe_text(given["file"], limit=200)
        raise SpecError(f"{shown} is a queue of experiments: use `mlxroles sweep {shown}`")
    if given["out"] is not None:
        experiment = replace(experiment, options={**experiment.options, "out": given["out"]})
    # in front: behind a -- everything is an argument
    words = [*_switches(experiment, given), *options(experiment)]
    return _run(experiment, words, context)


def _switches(experiment: Experiment, given: dict[str, Any]) -> list[str]:
    """The switches of this call, refused where the command has no such switch."""
    known = {word for parameter in command_of(experiment).params for word in parameter.opts}
    found = [word for name, word in _SWITCHES.items() if given[name]]
    for word in found:
        if word not in known:
            raise SpecError(f"{experiment.source}: {experiment.kind} has no {word}")
    return found


def _run(experiment: Experiment, words: list[str], context: click.Context) -> int:
    """Calls the command as if these words had been typed after it; its exit status."""
    context.meta[WORDS] = [*experiment.kind.split(), *words]
    chosen = command_of(experiment)
    try:
        with chosen.make_context(experiment.kind, words, parent=context.parent) as inner:
            result = chosen.invoke(inner)
    except click.UsageError as error:
        text = f"{experiment.source}: {error.format_message()}"
        raise click.UsageError(text, error.ctx) from None
    return result if isinstance(result, int) else 0
