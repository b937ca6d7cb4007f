"""`mlxroles entropy`: how attention spreads on prompts of different roles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from mlxroles.cli.dry_run import show_plan
from mlxroles.cli.inputs import loading, model_options, two_model_options
from mlxroles.cli.options import chosen_pair, no_arguments, run_options
from mlxroles.cli.output import note, print_json, print_time
from mlxroles.cli.readings import chosen_analysis, reading_options
from mlxroles.cli.results import drift_option, exit_status, place, say_time, show, show_files
from mlxroles.cli.shared import shard_option
from mlxroles.pairs import Pair
from mlxroles.text import format_bytes, safe_text

Command = TypeVar("Command", bound=Callable[..., object])

DEFAULT_SET = "roles"


def prompt_set_options(command: Command) -> Command:
    """Adds what names the prompts and how they are written; see :func:`planned`."""
    command = click.option(
        "--chat-template/--raw",
        "chat_template",
        default=None,
        help="Put plain texts into the chat template, or conversations into plain paragraphs.  "
        "[default: texts as they are, conversations through the template]",
    )(command)
    command = click.option(
        "--prompts-per-category",
        "per_category",
        type=click.IntRange(min=1),
        default=30,
        show_default=True,
        help="The first so many of each category.",
    )(command)
    return click.option(
        "--prompts",
        "source",
        metavar="FILE|NAME",
        default=DEFAULT_SET,
        show_default=True,
        help="A set with categories (.json .toml .csv) or a packaged name.",
    )(command)


@click.command("entropy")
@click.option(
    "--family", "--pair", "pair_name", metavar="NAME", help="A name of `mlxroles models list`."
)
@click.option("--base", metavar="DIR", help="Base model: a folder or a Hub id.")
@click.option("--instruct", metavar="DIR", help="Instruct model: a folder or a Hub id.")
@click.option("--model", "model_ref", metavar="DIR", help="One model alone: a folder or a Hub id.")
@click.option(
    "--variant",
    type=click.Choice(["base", "instruct", "both"]),
    default="both",
    show_default=True,
    help="Models of the family to run.",
)
@prompt_set_options
@reading_options
@two_model_options
@model_options
@shard_option
@drift_option
@run_options
@no_arguments
def command(**given: Any) -> int:
    """Measure the entropy of attention on prompts about the model and on others.

    Runs four categories of prompts (about the model itself, about the user, neutral, about a third
    person) and works out, per layer and head, RFC and RSI with intervals, tests and the value that
    uniform attention on prompts of these lengths would give; figures and a report. Everything but
    the capture is done again from the stored run, without the model.

    \b
    Examples:
      mlxroles entropy --family tiny
      mlxroles entropy --family qwen --variant base
      mlxroles entropy --model DIR --prompts mine.json --contrast code/prose --json
    """  # noqa: D301
    study = planned(_chosen_subject(given), given)
    if given["dry_run"]:
        return show_plan(study, plan_lines, as_json=given["as_json"])
    doc, status = run_study(study, given)
    if given["as_json"]:
        print_json(doc)
    return status


def planned(subject: Any, given: dict[str, Any]) -> Any:
    """The study of some models on the prompts that the options name."""
    from mlxroles.prompts import load_prompts
    from mlxroles.studies.entropy import EntropyStudy, role_prompts

    prompts, notes = role_prompts(
        load_prompts(given["source"]),
        per_category=given["per_category"],
        chat_template=bool(given["chat_template"]),
    )
    subject.notes += notes
    study = EntropyStudy(subject, prompts, raw=given["chat_template"] is False)
    study.check_analysis(chosen_analysis(given))
    return study


def _chosen_subject(given: dict[str, Any]) -> Any:
    """The models that the options name.

    Raises:
        click.UsageError: no model or family is named, or both are.
    """
    from mlxroles.studies.subject import Subject

    named = given["pair_name"] or given["base"] or given["instruct"]
    if given["model_ref"] is not None:
        if named or given["variant"] != "both":
            raise click.UsageError("--model excludes --variant and any family or pair")
        return Subject.of_model(given["model_ref"], **loading(given))
    if not named:
        raise click.UsageError("name a family with --family, or one model with --model")
    pair = chosen_pair(given["pair_name"], given["base"], given["instruct"])
    return family_subject(pair, given)


def family_subject(pair: Pair, given: dict[str, Any]) -> Any:
    """The models of a family, or the one that ``--variant`` names."""
    from mlxroles.studies.subject import Subject, fitting

    variant = given.get("variant", "both")
    # a base model's own template, which no plain text goes through, must not stand in the way
    fields = {"template": "instruct"} | loading(given)
    subject = Subject.of_pair(pair, only=None if variant == "both" else variant, **fields)
    subject.resident = given["resident"] or fitting(subject)
    return subject


def run_study(study: Any, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Runs a study, shows what it found unless ``--json`` is given; document and exit status."""
    from mlxroles.cli.progress import progress

    with progress(plain=given["plain"]) as emit:
        doc, finished = study.run(emit, place(given), chosen_analysis(given))
    if not given["as_json"]:
        if doc.get("sentence"):
            from mlxroles.dashboard import roles_table

            show(roles_table(doc), plain=given["plain"])
        show_files(doc["run"], "summary.json", "run.h5", "report.html", "figures")
    say_time(doc)
    return doc, exit_status(finished, given)


def plan_lines(plan: dict[str, Any]) -> None:
    """Prints what a dry run has to show."""
    click.echo(plan["title"])
    click.echo(f"run id        {plan['run_id']}")
    click.echo(
        f"runs          {plan['cells']} in {plan['batches']} batches, {plan['tokens']} tokens"
    )
    for category, lengths in _lengths(plan["prompts"]).items():
        mean = sum(lengths) / len(lengths)
        click.echo(
            f"tokens        {safe_text(category)}: {len(lengths)} prompts of {min(lengths)} to "
            f"{max(lengths)}, mean {mean:.2f}"
        )
    click.echo(f"layer calls   {plan['layer_calls']}")
    click.echo(f"weights       {format_bytes(plan['weights_bytes'])} on disk")
    click.echo(f"disk          about {format_bytes(plan['disk_bytes'])}")
    print_time(plan)
    for text in plan["notes"]:
        note(text)


def _lengths(prompts: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Tokens of each prompt by category: they differ by tokenizer, and entropy grows with them."""
    found: dict[str, list[int]] = {}
    for prompt in prompts:
        found.setdefault(prompt["category"], []).append(prompt["n_tokens"])
    return found
