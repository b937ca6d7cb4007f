"""Options for what goes into a model and what is measured on what comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlxroles.cli.options import chosen_pair, pair_options
from mlxroles.errors import PromptError

if TYPE_CHECKING:
    from mlxroles.studies.subject import Subject

Command = TypeVar("Command", bound=Callable[..., object])


def prompt_options(command: Command) -> Command:
    """Adds ``--prompt`` and ``--prompt-ids``; see :func:`chosen_prompts`."""
    command = click.option(
        "--prompt-ids",
        "--ids",
        "prompt_ids",
        multiple=True,
        metavar="FILE.npy|1,2,3",
        help="Token ids instead of text; one row of a .npy file per prompt. May be given several "
        "times.",
    )(command)
    return click.option(
        "--prompt",
        "prompts",
        multiple=True,
        metavar="TEXT|FILE|NAME",
        help="A text, a file (.txt .json .toml .csv: a prompt, a conversation or a set; .npy: ids) "
        "or a packaged name such as notepad. May be given several times.",
    )(command)


def measured_options(command: Command) -> Command:
    """Adds ``--tokens`` and ``--token-ids``."""
    command = click.option(
        "--token-ids",
        "token_ids",
        metavar="A,B",
        callback=_numbers,
        help="Ids whose probability is measured as the next token.",
    )(command)
    return click.option(
        "--tokens",
        "strings",
        multiple=True,
        metavar="STRING",
        help="String whose probability is measured, the headline first. May be given several "
        "times.  [default: those of the prompt]",
    )(command)


def model_options(command: Command) -> Command:
    """Adds what concerns running any model on prompts: windows, remote code."""
    command = trust_option(command)
    return click.option(
        "--allow-window-mismatch",
        is_flag=True,
        help="Go on with a prompt longer than a sliding window that mlx_lm ignores.",
    )(command)


def trust_option(command: Command) -> Command:
    """Adds ``--trust-remote-code``."""
    return click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that a model folder brings along.",
    )(command)


def model_or_pair_options(command: Command) -> Command:
    """Adds ``--model`` and the options of a pair; see :func:`chosen_subject`."""
    command = pair_options(command)
    return click.option(
        "--model", "model_ref", metavar="DIR", help="One model: a folder or a Hub id."
    )(command)


def chosen_subject(given: dict[str, Any]) -> "Subject":
    """The model or pair that the options name, not loaded.

    Raises:
        click.UsageError: a model and a pair, or neither.
        MlxrolesError: there is no such model, or two models that do not fit together.
    """
    named = given["pair_name"] or given["base"] or given["instruct"]
    if given["model_ref"] is not None and named:
        raise click.UsageError("--model and a pair exclude each other")
    if given["model_ref"] is None and not named:
        raise click.UsageError(
            "name a model with --model, a pair with --pair, or two models with --base and "
            "--instruct"
        )
    pair = None
    if given["model_ref"] is None:
        pair = chosen_pair(given["pair_name"], given["base"], given["instruct"])
    from mlxroles.studies.subject import Subject, fitting

    if pair is None:
        subject = Subject.of_model(given["model_ref"], **loading(given))
    else:
        subject = Subject.of_pair(pair, **loading(given))
    subject.resident = given["resident"] or fitting(subject)
    return subject


def two_model_options(command: Command) -> Command:
    """Adds what only a pair needs: residency, and whose chat template is used."""
    command = click.option(
        "--template",
        type=click.Choice(["same", "instruct"]),
        help="Chat template of a pair: 'instruct' takes the instruct model's where they differ.",
    )(command)
    return click.option(
        "--resident",
        type=click.IntRange(1, 2),
        help="Models in memory at once.  [default: 2 if they fit]",
    )(command)


def memory_option(command: Command) -> Command:
    """Adds ``--memory``, whose value is a number of bytes or None."""
    return click.option(
        "--memory",
        metavar="12GB|50%",
        help="Memory that the run may take; rows per batch follow.  [default: 75%]",
    )(command)


def loading(given: dict[str, Any]) -> dict[str, Any]:
    """What the options on loading said, as keywords for ``Subject``."""
    options = {name: given[name] for name in ("allow_window_mismatch", "trust_remote_code")}
    template = given.get("template")
    fields = {"options": options, "ranks": given.get("ranks")}
    return fields | ({"template": template} if template else {})


def chosen_prompts(given: dict[str, Any]) -> list[Any]:
    """The prompts that the options name, in order; empty where none was named.

    Raises:
        PromptError: a file or name cannot be read, or two prompts have one id.
    """
    from mlxroles.prompts import load_ids, load_prompts, parse_ids

    found = [p for source in given["prompts"] for p in load_prompts(source)]
    for ids in given["prompt_ids"]:
        is_file = ids.endswith(".npy") or _is_file(ids)
        found += load_ids(ids) if is_file else parse_ids(ids)
    return _distinct(found)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a list of ids may be longer than any file's name
        return False


def _distinct(prompts: list[Any]) -> list[Any]:
    """Prompts of several sources, numbered where they have no id of their own."""
    from dataclasses import replace

    ids = [p.id for p in prompts]
    if len(set(ids)) == len(ids):
        return prompts
    if all(p.text is not None or p.ids is not None for p in prompts):
        return [replace(p, id=f"p{n:03d}") for n, p in enumerate(prompts)]
    twice = next(i for i in ids if ids.count(i) > 1)
    raise PromptError(f"two prompts have the id {twice!r}; give every prompt an id of its own")


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of token ids such as 508 or 5,6"
        ) from None
