"""`mlxroles lens`: what every layer would say."""

from pathlib import Path
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
from mlxroles.text import format_bytes

TAIL = "last 64"
SITES = ("resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out")


@click.command("lens")
@model_or_pair_options
@prompt_options
@measured_options
@click.option(
    "--site",
    type=click.Choice(SITES),
    default="resid_post",
    show_default=True,
    help="What is read: the stream, or what a part writes to it.",
)
@click.option(
    "--positions",
    default=TAIL,
    show_default=True,
    metavar="all|last|3-7,-1",
    help="Positions of the prompt that are read; the table is on the last of them.",
)
@click.option("--no-tools", is_flag=True, help="Also read the prompt without the tools it offers.")
@click.option(
    "--edits",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also read the run under these edits, a TOML file.",
)
@click.option(
    "--tuned",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Also read through a tuned lens: its file, or the run that fitted it.",
)
@click.option(
    "--parts",
    is_flag=True,
    help="Also say what each head and MLP adds to the string's logit (direct attribution).",
)
@click.option(
    "--fit",
    is_flag=True,
    help="Fit a tuned lens on the prompts as texts.  [default texts: the packaged roles]",
)
@two_model_options
@model_options
@drift_option
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser at the end.")
@run_options
def command(**given: Any) -> int:
    """Read what a model would say if it ended at an earlier layer.

    Each layer's stream goes through the model's own final norm and head: the likeliest token at
    every position, and how the followed string rises: log-odds, rank, entropy, distance from the
    model's own answer. Two --tokens are set against each other (Yes against No). With --fit an
    affine map per layer is trained that makes the reading truer, with its gain on held-out text.

    \b
    Examples:
      mlxroles lens --pair tiny --no-tools
      mlxroles lens --model DIR --prompt "Is ice cold?" --tokens " Yes" --tokens " No"
      mlxroles lens --pair tiny --fit --prompt texts.txt
      mlxroles lens --pair tiny --tuned results/lens-fit_tiny/RUN --open
    """  # noqa: D301
    study = _fit(given) if given["fit"] else _reading(given)
    if given["dry_run"]:
        return show_plan(study, _plan_lines, as_json=given["as_json"])
    return run_study(study, given, _tell)


def _reading(given: dict[str, Any]) -> Any:
    """The study that reads prompts."""
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.inputs import DEFAULT_PROMPT
    from mlxroles.studies.lens.positions import Where
    from mlxroles.studies.lens.reading import LensStudy, View
    from mlxroles.studies.probe import variants

    view = View(
        given["site"], Where(given["positions"]), given["tuned"], given["edits"], given["parts"]
    )
    return LensStudy(
        chosen_subject(given),
        chosen_prompts(given) or load_prompts(DEFAULT_PROMPT),
        variants(no_tools=given["no_tools"], system=None),
        view,
        strings=given["strings"],
        token_ids=given["token_ids"],
        seed=given["seed"],
    )


def _fit(given: dict[str, Any]) -> Any:
    """The study that fits a tuned lens.

    Raises:
        click.UsageError: an option that only a reading has.
    """
    only = {"tuned": "--tuned", "edits": "--edits", "parts": "--parts", "no_tools": "--no-tools"}
    only |= {"strings": "--tokens", "token_ids": "--token-ids"}
    wrong = [word for name, word in only.items() if given[name]]
    wrong += ["--positions"] * (given["positions"] != TAIL)
    if wrong:
        raise click.UsageError(f"--fit trains on texts and takes no {wrong[0]}; leave one out")
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.lens.fitting import DEFAULT_TEXTS, LensFit

    prompts = chosen_prompts(given) or load_prompts(DEFAULT_TEXTS)
    return LensFit(chosen_subject(given), prompts, site=given["site"], seed=given["seed"])


def _plan_lines(plan: dict[str, Any]) -> None:
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    if "held_out" in plan:
        texts = f"{len(plan['prompts'])} texts, {plan['held_out']} of them held out"
    else:
        texts = f"{len(plan['prompts'])} prompts and variants"
    click.echo(f"cells         {plan['cells']}, on {texts}")
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)


def _tell(doc: dict[str, Any], given: dict[str, Any]) -> None:
    from mlxroles.dashboard.lens_tables import lens_tables
    from mlxroles.studies.lens import results

    grids = results.stored_grids(doc)
    show(lens_tables(doc, grids), plain=given["plain"])
    for path in (doc.get("files") or {}).values():
        click.echo(path)
    show_files(doc["run"], "summary.json", results.TABLE, "run.h5", "report.html", "figures")
