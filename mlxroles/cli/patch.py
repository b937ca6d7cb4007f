"""`mlxroles patch`: which layers carry the difference between base and instruct."""

from typing import Any

import click

from mlxroles.cli.inputs import (
    chosen_prompts,
    loading,
    measured_options,
    model_options,
    prompt_options,
    two_model_options,
)
from mlxroles.cli.options import chosen_pair, pair_options, run_options
from mlxroles.cli.output import print_json
from mlxroles.cli.results import drift_option, exit_status, place, show, show_files


@click.command("patch")
@pair_options
@click.option("--layers", metavar="A-B|A,B|A", help="Layers to patch.  [default: all]")
@click.option(
    "--site",
    type=click.Choice(["resid_post", "resid_pre", "attn_out", "mlp_out", "z"]),
    default="resid_post",
    show_default=True,
    help="What is patched: the stream after or before the block, a part of it, or head outputs.",
)
@click.option(
    "--positions",
    metavar="all|last|each|A-B",
    default="all",
    show_default=True,
    help="Token positions to patch; 'each' makes a cell per position.",
)
@click.option(
    "--heads",
    metavar="A-B|each",
    help="With --site z: heads to patch; 'each' makes a cell per head.",
)
@prompt_options
@measured_options
@click.option(
    "--controls",
    metavar="all|none|NAME",
    default="all",
    show_default=True,
    help="Control donors: other_prompt (the donor on another text), random (noise of its norms).",
)
@click.option(
    "--read",
    type=click.Choice(["recipient", "donor-head"]),
    default="recipient",
    show_default=True,
    help="donor-head: read the patched stream with the donor's norm and head too.",
)
@two_model_options
@model_options
@drift_option
@run_options
def command(**given: Any) -> int:
    """Put one model's activations into the other and see what it then says.

    Both directions, layer by layer: base into instruct and instruct into base, with controls. The
    default prompt is a conversation that ends in a request which an instruct model answers by
    calling a tool.

    \b
    Examples:
      mlxroles patch --pair tiny
      mlxroles patch --pair llama8b --layers 25-31
      mlxroles patch --base DIR --instruct DIR --prompt "TEXT" --token-ids 508 --json
    """  # noqa: D301
    pair = chosen_pair(given["pair_name"], given["base"], given["instruct"])
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.inputs import DEFAULT_PROMPT
    from mlxroles.studies.patch import CONTROLS
    from mlxroles.studies.patch_sweep import PatchOptions, PatchSweep
    from mlxroles.studies.subject import Subject, fitting

    subject = Subject.of_pair(pair, **loading(given))
    subject.resident = given["resident"] or fitting(subject)
    controls = {"all": CONTROLS, "none": ()}.get(given["controls"], (given["controls"],))
    options = PatchOptions(
        layers=given["layers"],
        site=given["site"],
        positions=given["positions"],
        heads=given["heads"],
        controls=controls,
        strings=given["strings"],
        token_ids=given["token_ids"],
        donor_head=given["read"] == "donor-head",
        seed=given["seed"],
    )
    prompts = chosen_prompts(given) or load_prompts(DEFAULT_PROMPT)
    sweep = PatchSweep(subject, prompts, options)
    if given["dry_run"]:
        return _dry_run(sweep.plan(), as_json=given["as_json"])
    return _run(sweep, given)


def _dry_run(plan: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print_json(plan)
        return 0
    from mlxroles.text import format_bytes

    whole = plan["layer_calls_if_every_cell_ran_whole"]
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"cells         {plan['cells']} over layers {plan['layers']}")
    click.echo(f"layer calls   {plan['layer_calls']} (whole runs would take {whole})")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(
        f"memory        {format_bytes(plan['memory_bytes'])} of weights at a time "
        f"(--resident {plan['resident_models']}), and the states of the prompts"
    )
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    return 0


def _run(sweep: Any, given: dict[str, Any]) -> int:
    from rich.console import Console
    from rich.text import Text

    from mlxroles.backend import memory
    from mlxroles.dashboard import final_table, watch
    from mlxroles.documents import DIRECTIONS

    with watch(
        Console(stderr=True),
        mode="plain" if given["plain"] else "auto",
        n_layers=sweep.subject.n_layers,
        layers=sweep.grid.layers.layers,
        directions=DIRECTIONS,
        headline=sweep.targets.headline,
        memory=memory,
    ) as emit:
        doc, finished = sweep.run(emit, place(given))
    if given["as_json"]:
        print_json(doc)
    else:
        show(final_table(doc), plain=given["plain"])
        sentence = doc["summary"].get("sentence", "No layer was finished yet.")
        show(Text(sentence), plain=given["plain"])
        show_files(doc["run"], "summary.json", "run.h5", "report.html", "figures")
    return exit_status(finished, given)
