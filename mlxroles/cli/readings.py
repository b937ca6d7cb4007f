"""Options for how a stored entropy run is read, the same for every command that reads one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mlxroles.studies.role_results import Analysis

Command = TypeVar("Command", bound=Callable[..., object])


def reading_options(command: Command) -> Command:
    """Adds ``--queries``, ``--keys`` and ``--contrast``; see :func:`chosen_analysis`."""
    command = click.option(
        "--contrast",
        metavar="A/B[/C]",
        help="Categories: focus, reference and confounder of RFC and RSI.  "
        "[default: self_referent/neutral/confounder, or the set's first, last and second]",
    )(command)
    command = click.option(
        "--keys",
        type=click.Choice(["all", "no-bos"]),
        default="all",
        show_default=True,
        help="no-bos drops the begin token as a key and renormalises.",
    )(command)
    return click.option(
        "--queries",
        type=click.Choice(["all", "no-first", "last"]),
        default="all",
        show_default=True,
        help="Queries whose entropies are averaged; the first one always has entropy 0.",
    )(command)


def chosen_analysis(given: dict[str, Any]) -> "Analysis":
    """The settings that the options and ``--seed`` name."""
    from mlxroles.roles.table import Reading
    from mlxroles.studies.role_results import Analysis

    reading = Reading(given["queries"], given["keys"])
    return Analysis(reading, given["contrast"], given["seed"])
