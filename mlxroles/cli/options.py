"""Options that several commands share, as decorators, and what they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from mlxroles.pairs import Pair, pair, pair_of
from mlxroles.text import safe_text

Command = TypeVar("Command", bound=Callable[..., object])


def json_option(command: Command) -> Command:
    """Adds ``--json``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON document on standard output and nothing else there.",
    )(command)


def plain_option(command: Command) -> Command:
    """Adds ``--plain``."""
    return click.option(
        "--plain", is_flag=True, help="Plain lines instead of the live display; no colour."
    )(command)


def out_option(command: Command) -> Command:
    """Adds ``--out`` for the folder that results go to."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Put the run folder here.  [default: results/<experiment>/<run id>]",
    )(command)


def seed_option(command: Command) -> Command:
    """Adds ``--seed``."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of everything random.",
    )(command)


def run_options(command: Command) -> Command:
    """Adds what every command with a run folder has: where, how, from which seed."""
    command = json_option(plain_option(command))
    command = click.option(
        "--dry-run", is_flag=True, help="Show plan, cost, memory and disk; load no weights."
    )(command)
    command = click.option(
        "--fresh", is_flag=True, help="Start anew instead of skipping what is already done."
    )(command)
    return out_option(seed_option(command))


def no_arguments(command: Command) -> Command:
    """Answers a bare name with the option that takes it."""

    def refuse(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> None:
        if values:
            shown = safe_text(values[0], limit=80)
            raise click.UsageError(f"{shown!r} is no option; a family is named with --family")

    return click.argument("names", nargs=-1, expose_value=False, callback=refuse, metavar="")(
        command
    )


def pair_options(command: Command) -> Command:
    """Adds ``--pair`` or, in its place, ``--base`` with ``--instruct``; see :func:`chosen_pair`."""
    command = click.option(
        "--instruct", metavar="DIR", help="Instruct model: a folder or a Hub id."
    )(command)
    command = click.option("--base", metavar="DIR", help="Base model: a folder or a Hub id.")(
        command
    )
    return click.option(
        "--pair", "pair_name", metavar="NAME", help="A pair of `mlxroles models list`."
    )(command)


def chosen_pair(pair_name: str | None, base: str | None, instruct: str | None) -> Pair:
    """The pair that ``--pair`` names or that ``--base`` and ``--instruct`` make up.

    Raises:
        click.UsageError: both ways or neither were used, or one of two models is missing.
        PairError: the name is not in the catalogue.
    """
    if pair_name is not None:
        if base is not None or instruct is not None:
            raise click.UsageError("--pair and --base/--instruct exclude each other")
        return pair(pair_name)
    if base is None and instruct is None:
        raise click.UsageError("name a pair with --pair, or two models with --base and --instruct")
    if base is None or instruct is None:
        raise click.UsageError(f"{'--base' if base is None else '--instruct'} is missing")
    return pair_of(base, instruct)
