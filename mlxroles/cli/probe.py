"""`mlxroles probe`: what a model is about to say: the measures alone."""

from typing import Any

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
from mlxroles.cli.output import print_time
from mlxroles.cli.results import drift_option, run_study, show, show_files
from mlxroles.cli.shared import shard_option
from mlxroles.text import format_bytes


@click.command("probe")
@model_or_pair_options
@prompt_options
@measured_options
@click.option("--no-tools", is_flag=True, help="Also ask without the tools that the prompt offers.")
@click.option("--system", metavar="TEXT", help="Also ask under this system message.")
@two_model_options
@model_options
@shard_option
@drift_option
@run_options
def command(**given: Any) -> int:
    """Measure what a model is about to say after each prompt.

    Probability of each string's first token and of the whole string, log-odds, rank, entropy and
    the top tokens, for one model or for both of a pair, with variants side by side. The default
    prompt is the packaged conversation notepad, as for patch.

    \b
    Examples:
      mlxroles probe --pair tiny --no-tools
      mlxroles probe --model DIR --prompt "TEXT" --tokens "<tool_call>" --json
    """  # noqa: D301
    subject = chosen_subject(given)
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.inputs import DEFAULT_PROMPT
    from mlxroles.studies.probe import Probe, variants

    probe = Probe(
        subject,
        chosen_prompts(given) or load_prompts(DEFAULT_PROMPT),
        variants(no_tools=given["no_tools"], system=given["system"]),
        strings=given["strings"],
        token_ids=given["token_ids"],
        seed=given["seed"],
    )
    if given["dry_run"]:
        return show_plan(probe, _plan_lines, as_json=given["as_json"])
    return run_study(probe, given, _tell)


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"runs          {plan['cells']} of {len(plan['prompts'])} prompts and variants")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.dashboard import probe_table

    show(probe_table(doc), plain=given["plain"])
    show_files(doc["run"], "summary.json")
