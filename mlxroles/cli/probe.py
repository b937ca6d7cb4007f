"""`mlxroles probe`: what a model is about to say: the measures alone."""

import sys
from pathlib import Path
from typing import Any

import click

from mlxroles.cli.inputs import (
    chosen_prompts,
    loading,
    measured_options,
    model_options,
    prompt_options,
)
from mlxroles.cli.options import chosen_pair, pair_options, run_options
from mlxroles.cli.output import note, print_json


@click.command("probe")
@click.option("--model", "model_ref", metavar="DIR", help="One model: a folder or a Hub id.")
@pair_options
@prompt_options
@measured_options
@click.option("--no-tools", is_flag=True, help="Also ask without the tools that the prompt offers.")
@click.option("--system", metavar="TEXT", help="Also ask under this system message.")
@model_options
@run_options
def command(**given: Any) -> int:
    """Measure what a model is about to say after each prompt.

    Probability of each string's first token and of the whole string, log-odds, rank, entropy and
    the top tokens, for one model or for both of a pair, with variants side by side.

    \b
    Examples:
      mlxroles probe --pair tiny --no-tools
      mlxroles probe --model DIR --prompt "TEXT" --tokens "<tool_call>" --json
    """  # noqa: D301
    if given["model_ref"] is not None and (
        given["pair_name"] or given["base"] or given["instruct"]
    ):
        raise click.UsageError("--model and a pair exclude each other")
    pair = None
    if given["model_ref"] is None:
        pair = chosen_pair(given["pair_name"], given["base"], given["instruct"])
    from mlxroles.backend import memory
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.inputs import DEFAULT_PROMPT
    from mlxroles.studies.probe import Probe, variants
    from mlxroles.studies.subject import Subject, fitting

    if pair is None:
        subject = Subject.of_model(given["model_ref"], **loading(given))
    else:
        subject = Subject.of_pair(pair, **loading(given))
    subject.resident = given["resident"] or fitting(subject, memory().limit)
    probe = Probe(
        subject,
        chosen_prompts(given) or load_prompts(DEFAULT_PROMPT),
        variants(no_tools=given["no_tools"], system=given["system"]),
        strings=given["strings"],
        token_ids=given["token_ids"],
        seed=given["seed"],
        note=note,
    )
    if given["dry_run"]:
        note(f"{len(probe.cells)} prompts to run; nothing was loaded or written")
        return 0
    return _run(probe, given)


def _run(probe: Any, given: dict[str, Any]) -> int:
    from mlxroles.cli.progress import progress
    from mlxroles.cli.status import exit_status

    with progress(plain=given["plain"]) as emit:
        doc, finished = probe.run(
            emit,
            results=Path("results"),
            out=given["out"],
            fresh=given["fresh"],
            argv=sys.argv[1:],
        )
    if given["as_json"]:
        print_json(doc)
    else:
        from rich.console import Console

        from mlxroles.dashboard import probe_table

        Console(no_color=given["plain"] or None).print(probe_table(doc))
        click.echo(f"{doc['run']}/summary.json")
    return exit_status(finished, note)
