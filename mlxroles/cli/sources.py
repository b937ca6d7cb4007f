"""Options that say where stored entropies, patterns or published tables lie."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlxroles.cli.options import json_option, plain_option, seed_option
from mlxroles.cli.readings import chosen_analysis, reading_options

if TYPE_CHECKING:
    from mlxroles.studies.role_reading import TwoModels
    from mlxroles.studies.role_results import Analysis

Command = TypeVar("Command", bound=Callable[..., object])


def stored_options(command: Command) -> Command:
    """Adds what every command has that reads what is stored: compat, readings, seed, output."""
    command = json_option(plain_option(reading_options(command)))
    command = seed_option(command)
    return click.option(
        "--compat", is_flag=True, help="The original study's formulas and columns, to the digit."
    )(command)


def stored_analysis(given: dict[str, Any]) -> "Analysis":
    """How stored numbers are read.

    Raises:
        click.UsageError: ``--compat`` with a reading, which the study's formulas do not have.
    """
    if given["compat"] and (given["queries"], given["keys"], given["seed"]) != ("all", "all", 0):
        raise click.UsageError(
            "--compat takes all queries and keys and draws nothing, as the study did: it has no "
            "--queries, --keys or --seed"
        )
    return chosen_analysis(given)


def two_sources(command: Command) -> Command:
    """Adds the argument SOURCE, or in its place ``--base`` with ``--instruct``."""
    command = click.option(
        "--instruct", metavar="SOURCE", help="The instruct model's, if they lie apart."
    )(command)
    command = click.option("--base", metavar="SOURCE", help="The base model's, if they lie apart.")(
        command
    )
    return click.argument("source", required=False)(command)


def chosen_models(given: dict[str, Any]) -> "TwoModels":
    """Base and instruct as SOURCE or as ``--base`` and ``--instruct``.

    Raises:
        click.UsageError: both ways or neither were used, or one of two is missing.
    """
    from mlxroles.studies.role_reading import TwoModels, family_of

    apart = given["base"], given["instruct"]
    if given["source"] is not None:
        if any(apart):
            raise click.UsageError("SOURCE and --base/--instruct exclude each other")
        return family_of(given["source"])
    if not all(apart):
        raise click.UsageError("name a run, family or file, or two with --base and --instruct")
    return TwoModels(*apart)
