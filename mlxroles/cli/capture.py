"""`mlxroles capture`: write the activations of prompts to HDF5."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import chosen_prompts, loading, model_options, prompt_options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.output import print_json, print_time
from mlxroles.cli.results import drift_option, exit_status, place, say_time
from mlxroles.cli.shared import shard_option
from mlxroles.text import format_bytes


@click.command("capture")
@click.option("--model", "model_ref", metavar="DIR", required=True, help="A folder or a Hub id.")
@prompt_options
@click.option(
    "--keep",
    default="resid_post,entropy",
    show_default=True,
    metavar="SITES",
    help="Any of resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, pattern, "
    "entropy, logits.",
)
@click.option("--layers", metavar="A-B|A,B|A", help="Layers to keep.  [default: all]")
@click.option(
    "--store",
    type=click.Choice(["f32", "f16", "bf16"]),
    default="f32",
    show_default=True,
    help="Type of the stored numbers.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.h5",
    help="The file to write.  [default: results/capture_<model>/<run id>/capture.h5]",
)
@click.option("--fresh", is_flag=True, help="Replace a file that is there already.")
@click.option("--dry-run", is_flag=True, help="Show plan, cost, memory and disk; load no weights.")
@model_options
@shard_option
@drift_option
@plain_option
@json_option
def command(**given: Any) -> int:
    """Run prompts and keep what happened inside, layer by layer, in one HDF5 file.

    Works on any local mlx_lm model folder, with or without a tokenizer. The same command again
    goes on where a killed one was.

    \b
    Examples:
      mlxroles capture --model DIR --prompt "The cat sat" --keep resid_post,pattern
      mlxroles capture --model DIR --ids 1,2,3 --keep z,logits --out run.h5 --json
    """  # noqa: D301
    prompts = chosen_prompts(given)
    if not prompts:
        raise click.UsageError("name what to run with --prompt or --ids")
    from mlxroles.cli.progress import progress
    from mlxroles.studies.capture import Capture, parse_keep
    from mlxroles.studies.inputs import encoded
    from mlxroles.studies.subject import Subject

    keep = parse_keep(given["keep"])
    subject = Subject.of_model(given["model_ref"], **loading(given))
    capture = Capture(
        subject,
        encoded(subject, prompts, note=subject.notes.append),
        keep,
        layers=given["layers"],
        store=given["store"],
    )
    if given["dry_run"]:
        return show_plan(capture, _plan_lines, as_json=given["as_json"])
    with progress(plain=given["plain"]) as emit:
        doc, finished = capture.run(emit, place(given))
    if given["as_json"]:
        print_json(doc)
    elif doc["bytes"] is not None:
        click.echo(doc["file"])
    say_time(doc)
    return exit_status(finished, given)


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(
        f"runs          {len(plan['prompts'])} prompts in {plan['cells']} batches, "
        f"{plan['tokens']} tokens"
    )
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"memory        about {format_bytes(plan['memory_bytes'])}")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)
