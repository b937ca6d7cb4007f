"""What ``--dry-run`` answers with: the plan of a study, for people, as JSON, or for a queue.

Every command that plans a study answers through :func:`show_plan`. ``mlxroles plan`` calls the same
commands with ``--dry-run`` and takes their plans in place of what they would print.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import click

from mlxroles.cli.output import print_json
from mlxroles.events import Cell

_TAKEN = "mlxroles.plans"


class Study(Protocol):
    """What every study has before it runs."""

    cells: list[Cell]

    def plan(self) -> dict[str, Any]:
        """What a dry run shows."""
        ...


@dataclass(frozen=True)
class Planned:
    """A plan and the cells that it is about."""

    plan: Mapping[str, Any]
    cells: tuple[str, ...]
    """Their ids."""


def take_plans(context: click.Context) -> list[Planned]:
    """A list that gets the plans of the command that runs in this context; nothing is printed."""
    found: list[Planned] = []
    context.meta[_TAKEN] = found
    return found


def taken(study: Study) -> bool:
    """Whether the plan of a study was asked for by :func:`take_plans`, and is handed over."""
    found = click.get_current_context().meta.get(_TAKEN)
    if found is None:
        return False
    found.append(Planned(study.plan(), tuple(cell.id for cell in study.cells)))
    return True


def show_plan(study: Study, lines: Callable[[dict[str, Any]], None], *, as_json: bool) -> int:
    """Answers ``--dry-run`` for one study; the exit status.

    Args:
        study: What would run.
        lines: Prints the plan for people.
        as_json: Print the document instead.
    """
    if taken(study):
        return 0
    plan = study.plan()
    if as_json:
        print_json(plan)
    else:
        lines(plan)
    return 0
