"""One work item: the same job by mlxroles and as a plain loop, cell by cell."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlxroles.backend import mx
from mlxroles.bench.ground import RECIPIENT, Ground
from mlxroles.errors import ModelError


@dataclass(frozen=True, eq=False)
class Ran:
    """What our way of doing a work left behind."""

    values: dict[int, np.ndarray]
    """Cell -> its numbers, for the cells that were to be kept."""
    layer_calls: float
    """Row-layers: one layer over one whole prompt counts as 1."""


class Work(ABC):
    """A work of the bench on one pair."""

    name: ClassVar[str]
    what: ClassVar[str]
    goal: ClassVar[float | None] = None
    """The ratio to reach on the pair of ``SHAPE``; bytes where ``is_memory``."""
    unit: ClassVar[str] = "probability"
    """Of the cells' numbers, and so of the error: ``probability``, ``nats`` or ``stream``."""
    reference: ClassVar[str] = "W1"
    """What the ratio is to, in words."""
    is_memory: ClassVar[bool] = False
    """The result is the peak memory and no ratio."""
    is_against_twin: ClassVar[bool] = False
    """The ratio is to the work's own plain twin."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a prompt; of the longest, where they differ."""

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """Cells of the work."""

    @property
    def sample(self) -> list[int]:
        """The cells that the twin runs; all of them unless that would take too long."""
        return list(range(self.n_cells))

    @abstractmethod
    def least(self) -> float:
        """Row-layers without which the work cannot be done: see ``Ran.layer_calls``."""

    @abstractmethod
    def run(self, kept: Collection[int]) -> Ran:
        """Does the whole work, and returns the numbers of the cells in ``kept``."""

    def prepare(self) -> Any:
        """What the plain twin needs before its first cell."""
        return None

    @abstractmethod
    def plain(self, state: Any, cell: int) -> np.ndarray:
        """One cell by the plain twin: the whole model once, with a hook."""

    def against(self) -> None:
        """The plain forward that the ratio is to: ``model(tokens)`` with logits of all positions.

        Raises:
            ModelError: the model cannot be run by itself.
        """
        plain_forward(self.ground, self.ground.prompts(1, self.ground.tokens))

    def note(self) -> str:
        """What a reader of the result should know, or an empty string."""
        return ""


def plain_forward(ground: Ground, tokens: mx.array) -> None:
    """The recipient's own call on tokens [prompt, position], evaluated."""
    network = ground.network(RECIPIENT)
    if network.anatomy.refused:
        raise ModelError(f"{network.architecture}: {network.anatomy.refused}")
    out = network.module(tokens)
    mx.eval(out[0] if isinstance(out, (tuple, list)) else out)


def evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, the middles of as many equal parts."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in the logits' type."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
