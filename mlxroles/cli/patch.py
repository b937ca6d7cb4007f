"""`mlxroles patch`: which layers carry the difference between base and instruct."""

from typing import Any

import click
from click.core import ParameterSource

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import (
    chosen_prompts,
    loading,
    measured_options,
    memory_option,
    model_options,
    prompt_options,
    two_model_options,
)
from mlxroles.cli.options import chosen_pair, pair_options, run_options
from mlxroles.cli.output import print_json, print_time
from mlxroles.cli.results import (
    drift_option,
    exit_status,
    open_report,
    place,
    say_time,
    show,
    show_files,
)
from mlxroles.cli.shared import shard_option, unshared
from mlxroles.errors import SpecError

METRICS = (
    "log_odds",
    "log_prob",
    "logit_diff",
    "p_first_token",
    "p_union",
    "p_chain",
    "entropy",
    "kl",
)
"""What ``--metric`` takes: ``attribution.METRICS``, here without loading it."""

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")

_EXACT_ONLY = {
    "heads": "it has a cell for every head",
    "controls": "estimates have no control runs",
    "read": "estimates are about the recipient's own reading",
}
"""Options that mean nothing to attribution, and why."""

_ATTRIBUTION_ONLY = ("metric", "ig", "edges", "verify")


@click.command("patch")
@pair_options
@click.option(
    "--method",
    type=click.Choice(["exact", "attribution"]),
    default="exact",
    show_default=True,
    help="exact runs every cell; attribution estimates all cells of all sites from one backward "
    "pass per prompt and direction.",
)
@click.option("--layers", metavar="A-B|A,B|A", help="Layers to patch.  [default: all]")
@click.option(
    "--site",
    type=click.Choice(SITES),
    help="What is patched: the stream after or before the block, a part of it, or heads' outputs, "
    "queries, keys, values, attention.  [default: resid_post; with attribution: all]",
)
@click.option(
    "--positions",
    metavar="all|last|each|A-B",
    help="Token positions to patch; 'each' makes a cell per position.  [default: all; with "
    "attribution: each in the stream, all in heads]",
)
@click.option(
    "--heads",
    metavar="A-B|each",
    help="With --site z, q, k, v or pattern: heads to patch; 'each' makes a cell per head.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="With attribution: what the effects are effects on.  [default: log_odds]",
)
@click.option(
    "--ig",
    type=click.IntRange(min=1),
    metavar="N",
    help="With attribution: gradients at N points (64 at most) between recipient and donor, not at "
    "one, in the stream's sites or the one of --site; nearer to the exact effects, and many times "
    "dearer.",
)
@click.option(
    "--edges",
    is_flag=True,
    help="With attribution: edges too, from each head and MLP to what later ones read.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=1),
    metavar="K",
    help="With attribution: run the K largest and K random cells of each site exactly.",
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
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser.")
@model_options
@shard_option
@memory_option
@drift_option
@run_options
@click.pass_context
def command(context: click.Context, **given: Any) -> int:
    """Put one model's activations into the other and see what it then says.

    Both directions, layer by layer: base into instruct and instruct into base, with controls. The
    default prompt is a conversation that ends in a request which an instruct model answers by
    calling a tool.

    With --method attribution every cell of every site (layers by positions, single heads, on
    request edges) is estimated at once, to first order; --verify runs the largest of them, and
    random ones, exactly and says how good the estimates are.

    \b
    Examples:
      mlxroles patch --pair tiny
      mlxroles patch --pair llama8b --layers 25-31
      mlxroles patch --base DIR --instruct DIR --prompt "TEXT" --token-ids 508 --json
      mlxroles patch --pair tiny --method attribution --verify 20
    """  # noqa: D301
    is_estimated = given["method"] == "attribution"
    _check_options(context, given, is_estimated=is_estimated)
    pair = chosen_pair(given["pair_name"], given["base"], given["instruct"])
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.inputs import DEFAULT_PROMPT
    from mlxroles.studies.subject import Subject, fitting

    subject = Subject.of_pair(pair, **loading(given))
    subject.resident = given["resident"] or fitting(subject)
    prompts = chosen_prompts(given) or load_prompts(DEFAULT_PROMPT)
    if is_estimated:
        unshared(given, "--method attribution")
        from mlxroles.cli.patch_attribution import run_attribution

        return run_attribution(subject, prompts, given)
    return _sweep(subject, prompts, given)


def _check_options(context: click.Context, given: dict[str, Any], *, is_estimated: bool) -> None:
    """Refuses options of the other method.

    Raises:
        SpecError: naming the option and the method.
    """
    named = {
        name
        for name in (*_EXACT_ONLY, *_ATTRIBUTION_ONLY)
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    if is_estimated:
        for name in (name for name in _EXACT_ONLY if name in named):
            raise SpecError(
                f"--{name} does not go with --method attribution: {_EXACT_ONLY[name]}; drop it"
            )
    for name in (name for name in _ATTRIBUTION_ONLY if name in named and not is_estimated):
        raise SpecError(f"--{name} goes with --method attribution; add it, or drop --{name}")


def _sweep(subject: Any, prompts: list[Any], given: dict[str, Any]) -> int:
    """The exact method."""
    from mlxroles.engine import memory
    from mlxroles.studies.patch import CONTROLS
    from mlxroles.studies.patch_sweep import PatchOptions, PatchSweep

    controls = {"all": CONTROLS, "none": ()}.get(given["controls"], (given["controls"],))
    options = PatchOptions(
        layers=given["layers"],
        site=given["site"] or "resid_post",
        positions=given["positions"] or "all",
        heads=given["heads"],
        controls=controls,
        strings=given["strings"],
        token_ids=given["token_ids"],
        donor_head=given["read"] == "donor-head",
        seed=given["seed"],
        memory=memory.limit(given["memory"]),
    )
    sweep = PatchSweep(subject, prompts, options)
    if given["dry_run"]:
        return show_plan(sweep, _plan_lines, as_json=given["as_json"])
    return _run(sweep, given)


def _plan_lines(plan: dict[str, Any]) -> None:
    from mlxroles.text import format_bytes

    whole = plan["layer_calls_if_every_cell_ran_whole"]
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(f"cells         {plan['cells']} over layers {plan['layers']}")
    click.echo(f"layer calls   {plan['layer_calls']:.0f} (whole runs would take {whole})")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    for shortcut, why in plan["not_possible"].items():
        click.echo(f"not possible  {shortcut}: {why}")
    click.echo(
        f"memory        about {format_bytes(plan['memory_bytes'])} at the peak "
        f"(--resident {plan['resident_models']})"
    )
    if plan["over_memory"]:
        click.echo(f"              {plan['over_memory']}")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _run(sweep: Any, given: dict[str, Any]) -> int:
    from rich.console import Console
    from rich.text import Text

    from mlxroles.backend import memory
    from mlxroles.dashboard import final_table, watch
    from mlxroles.documents import DIRECTIONS
    from mlxroles.report.wording import next_step

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
    open_report(doc["run"], given)
    say_time(doc)
    if not given["as_json"]:
        for step in next_step(doc):
            click.echo(step)
    return exit_status(finished, given)
