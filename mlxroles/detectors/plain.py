"""Rows of short texts before anything is put in front of them."""

from dataclasses import dataclass, field
from typing import Any

from mlxroles.detectors.places import Places

PLACES = ("elements", "final")
"""Marks that count tokens, and move with what is put in front."""


@dataclass(eq=False)
class Plain:
    """Rows of ids, the places of each score in them, and what else is known of each row."""

    about: str
    ids: list[list[int]] = field(default_factory=list)
    scores: dict[str, list[Places]] = field(default_factory=dict)
    marks: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, ids: list[int], scores: dict[str, Places], **marks: Any) -> None:
        """One more row."""
        self.ids.append(ids)
        for name, given in scores.items():
            self.scores.setdefault(name, []).append(given)
        for name, mark in marks.items():
            self.marks.setdefault(name, []).append(mark)

    def moved_marks(self, by: int) -> dict[str, tuple[Any, ...]]:
        """The marks after ``by`` tokens were put in front."""
        return {
            name: tuple(_moved(mark, by) if name in PLACES else mark for mark in given)
            for name, given in self.marks.items()
        }


def _moved(mark: Any, by: int) -> Any:
    return tuple(_moved(part, by) for part in mark) if isinstance(mark, tuple) else mark + by
