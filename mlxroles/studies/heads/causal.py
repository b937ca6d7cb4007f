"""What zeroing heads of a class changes, beside other heads that none of the class's marks has.

A class is held to what its heads are said to be for: less repetition gain for induction,
previous-token and duplicate-token heads, a worse prediction of the next element for successor
heads, and so on; the loss on text is measured beside it. A random set has as many heads of the same
layers, none of them marked for a class with the same measure, or at least not for this class; where
these layers have too few of those, unmarked heads of other layers stand in.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlxroles.heads import by_layer
from mlxroles.models.model import Model
from mlxroles.studies.ablate.ablation import of_heads
from mlxroles.studies.ablate.effects import Numbers
from mlxroles.studies.ablate.how import How
from mlxroles.studies.ablate.runs import Runs
from mlxroles.studies.heads.behaviours import LOSS, Behaviour, Task

Head = tuple[int, int]
"""Layer and head."""

ALONE = 3
"""Heads of a class that are zeroed one by one, the strongest first."""
TOGETHER = 8
"""Heads of a class that are zeroed together at most, the strongest first."""
RANDOM = 20
"""Random sets beside every set of heads."""
ENOUGH = 5
"""Random sets without which no class counts as confirmed."""

SETS = ("all", *(str(n + 1) for n in range(ALONE)))
"""All heads of a class (``TOGETHER`` at most), and the first, the second, ... alone."""


class Change(NamedTuple):
    """What zeroing one set of heads does to one measure."""

    measure: str
    clean: Numbers
    """[prompt]"""
    change: Numbers
    """Zeroed less clean [prompt]."""
    random: Numbers
    """Mean over the prompts of the same change [random set]."""


def of_set(ranked: Sequence[Head], name: str) -> tuple[Head, ...]:
    """The heads that a set of ``SETS`` stands for; none where it would repeat another."""
    if name == "all":
        return tuple(ranked[:TOGETHER])
    n = int(name) - 1
    is_all = len(ranked) == 1
    return () if is_all or n >= len(ranked) else (ranked[n],)


def unmarked_sets(
    heads: Sequence[Head],
    marked: Collection[Head],
    n_heads: Mapping[int, int],
    rng: np.random.Generator,
    *,
    count: int,
) -> list[tuple[Head, ...]]:
    """Different sets of as many other heads, none of them marked, as far as there are any.

    Those from the same layers come first; others follow where there are not enough of them.

    Args:
        heads: The set that they are compared with.
        marked: Heads that no set may hold.
        n_heads: Layer -> heads that it has, 0 where they cannot be zeroed.
        rng: Draws them.
        count: How many are wanted.
    """
    banned = {*heads, *marked}
    free = {
        layer: [(layer, head) for head in range(n) if (layer, head) not in banned]
        for layer, n in n_heads.items()
    }
    if sum(map(len, free.values())) < len(heads):
        return []
    own = {layer: len(rows) for layer, rows in by_layer(heads).items()}
    found: dict[tuple[Head, ...], None] = {}
    for wanted in (own, {None: len(heads)}):
        for _ in range(20 * count):
            if len(found) == count:
                break
            found.setdefault(_drawn(wanted, free, rng))
    return list(found)


def _drawn(
    own: Mapping[int, int] | Mapping[None, int],
    free: Mapping[int, Sequence[Head]],
    rng: np.random.Generator,
) -> tuple[Head, ...]:
    """One set: so many of these layers as far as they go, the rest, or those of None, of any."""
    drawn: list[Head] = []
    for layer, size in own.items():
        pool = () if layer is None else free.get(layer, ())
        drawn += _some(pool, min(size, len(pool)), rng)
    missing = sum(own.values()) - len(drawn)
    others = [at for rows in free.values() for at in rows if at not in drawn]
    return tuple(sorted([*drawn, *_some(others, missing, rng)]))


def _some(pool: Sequence[Head], size: int, rng: np.random.Generator) -> Iterator[Head]:
    for n in rng.choice(len(pool), size=size, replace=False) if size else ():
        yield pool[int(n)]


class Zeroing:
    """One model with heads at zero, on the prompts of every task that is asked for.

    Args:
        model: Loaded.
        tasks: By measure.
    """

    def __init__(self, model: Model, tasks: Mapping[str, Task]) -> None:
        self.model, self.tasks = model, tasks
        self.n_heads = {
            layer: block.heads if "z" not in block.missing else 0
            for layer, block in enumerate(model.network.anatomy.blocks)
        }
        self._runs: dict[str, Runs] = {}
        self._clean: dict[str, Numbers] = {}
        self._zeroed: dict[tuple[str | Head, ...], Numbers] = {}

    def measures(self, behaviour: Behaviour) -> list[str]:
        """What is measured of a behaviour: its own measure and the loss, where there are tasks."""
        wanted = dict.fromkeys((behaviour.measure, LOSS.measure))
        return [name for name in wanted if name in self.tasks]

    def clean(self, measure: str) -> Numbers:
        """The measure of the model as it is [prompt]."""
        if measure not in self._clean:
            self._clean[measure] = self._of(measure).baseline()[measure]
        return self._clean[measure]

    def zeroed(self, heads: Sequence[Head], measure: str) -> Numbers:
        """The measure with the heads at zero [prompt]; each set runs once."""
        key = (measure, *sorted(heads))
        if key not in self._zeroed:
            self._zeroed[key] = self._of(measure).levels(of_heads(heads), How("zero"))[measure]
        return self._zeroed[key]

    def change(
        self, heads: Sequence[Head], measure: str, random: Sequence[Sequence[Head]]
    ) -> Change:
        """What zeroing heads does, beside random sets.

        Raises:
            FloatingPointError: a logit is not finite.
        """
        clean = self.clean(measure)
        drawn = [float(np.mean(self.zeroed(one, measure) - clean)) for one in random]
        return Change(measure, clean, self.zeroed(heads, measure) - clean, np.array(drawn))

    def _of(self, measure: str) -> Runs:
        if measure not in self._runs:
            task = self.tasks[measure]
            self._runs[measure] = Runs(self.model, task.prompts, "all", None, own=task.own)
        return self._runs[measure]
