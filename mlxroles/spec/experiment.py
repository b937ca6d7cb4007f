"""What an experiment and a queue are, and how options of one place are laid over another's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_WHOLE = ("pair", "family", "model", "all", "source")
_HALVES = ("base", "instruct")
"""Options that name the models: naming them one way replaces any other way that was inherited."""


@dataclass(frozen=True)
class Experiment:
    """One run of one command."""

    kind: str
    """The command."""
    name: str
    options: Mapping[str, Any]
    """Long option without dashes in front -> string, number, boolean or a list of them."""
    priority: int = 0
    """Higher ones run first."""
    source: str = ""
    """Where it was read, for messages: ``night.toml, experiment 2``."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options of the whole queue, for commands that have them; ``options`` override them."""


@dataclass(frozen=True)
class Queue:
    """Experiments to run one after the other."""

    name: str
    experiments: tuple[Experiment, ...]
    """In the order of the file; :meth:`ordered` is the order of running."""
    until: str | None = None
    """When to stop, for :func:`parse_until`."""
    budget: str | None = None
    """How long to run, for :func:`parse_budget`."""
    notify: str | None = None
    """Command to call at the end."""

    def ordered(self) -> list[Experiment]:
        """The experiments in the order of running: by priority, then as in the file."""
        return sorted(self.experiments, key=lambda experiment: -experiment.priority)


def over(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others laid over them; models named one way replace those named another."""
    gone = set(own)
    if gone & set(_WHOLE):
        gone |= {*_WHOLE, *_HALVES}
    elif gone & set(_HALVES):
        gone |= set(_WHOLE)
    return {key: value for key, value in inherited.items() if key not in gone} | dict(own)
