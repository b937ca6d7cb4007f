"""`mlxroles capture`: write the activations of prompts to HDF5."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.inputs import chosen_prompts, loading, model_options, prompt_options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.output import print_json
from mlxroles.cli.results import drift_option, exit_status, place


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
@model_options
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
    with progress(plain=given["plain"]) as emit:
        doc, finished = capture.run(emit, place(given))
    if given["as_json"]:
        print_json(doc)
    elif doc["bytes"] is not None:
        click.echo(doc["file"])
    return exit_status(finished, given)
