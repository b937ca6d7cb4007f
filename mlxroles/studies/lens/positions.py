"""Which positions of a prompt are read: ``all``, ``last``, a list, spans, or the last so many."""

import re
from dataclasses import dataclass

from mlxroles.errors import PromptError, SpecError
from mlxroles.text import safe_text

USUAL = 64
"""Positions before the end that are read where nothing is said."""
_SPAN = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")


@dataclass(frozen=True)
class Where:
    """Positions as a user names them.

    Raises:
        SpecError: the text names none.
    """

    text: str = f"last {USUAL}"

    def __post_init__(self) -> None:
        if self.text not in ("all", "last") and self._tail() is None:
            self._spans()

    def of(self, length: int, prompt: str) -> list[int]:
        """The positions of a prompt, ascending.

        Raises:
            PromptError: the prompt has no such position.
        """
        if self.text == "all":
            return list(range(length))
        tail = 1 if self.text == "last" else self._tail()
        if tail is not None:
            return list(range(max(0, length - tail), length))
        found = set()
        for first, last in self._spans():
            for p in (first, last):
                if not -length <= p < length:
                    raise PromptError(
                        f"--positions: prompt '{safe_text(prompt)}' has no position {p}; it has "
                        f"{length} tokens, 0..{length - 1}"
                    )
            found |= {*range(first % length, last % length + 1)}
        if not found:
            raise PromptError(f"--positions {safe_text(self.text, limit=60)} names no position")
        return sorted(found)

    def _tail(self) -> int | None:
        match = re.fullmatch(r"last ([1-9]\d{0,8})", self.text)
        return int(match[1]) if match else None

    def _spans(self) -> list[tuple[int, int]]:
        found = []
        for part in self.text.split(","):
            match = _SPAN.fullmatch(part.strip())
            if match is None:
                raise SpecError(
                    f"--positions '{safe_text(self.text, limit=60)}' is none of all, last, "
                    "'last 20', 5,9,-1 and 3-7"
                )
            found.append((int(match[1]), int(match[2] or match[1])))
        return found
