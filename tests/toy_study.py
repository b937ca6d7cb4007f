"""A study that computes nothing a model is needed for, with everything a real one stores.

Its numbers depend on the cell alone, so that any two finished runs of it hold the same.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlxroles import runner
from mlxroles.events import Cell, RunFinished
from mlxroles.runner import Result
from mlxroles.store import RunFolder, Variable
from mlxroles.store.pack import pack

WIDTH = 16


class Batch(NamedTuple):
    cells: tuple[Cell, ...]
    group: int


def cells(count: int) -> list[Cell]:
    return [Cell(f"c{n:05d}", {"n": n}) for n in range(count)]


def values(n: int) -> dict[str, Any]:
    """The numbers of a cell."""
    return {"x": float(np.sin(n) * 10.0 ** (n % 7 - 3)), "name": f"cell {n} é"}


def row(n: int) -> np.ndarray:
    """The array of a cell, [column]."""
    return np.random.default_rng(n).normal(size=WIDTH).astype("f4")


class Toy:
    """Batches of ``size`` cells.

    Args:
        size: Cells per batch.
        arrays: Whether cells have arrays.
        before: Called with the number of a cell before it is computed; what it raises, the cell
            fails of.
    """

    def __init__(
        self, size: int = 2, *, arrays: bool = True, before: Callable[[int], None] | None = None
    ) -> None:
        self.size, self.arrays = size, arrays
        self.before = before if before is not None else lambda n: None
        self.computed: list[int] = []

    def batches(self, pending: Sequence[Cell]) -> list[Batch]:
        groups: dict[int, list[Cell]] = {}
        for cell in pending:
            groups.setdefault(cell.coords["n"] // self.size, []).append(cell)
        return [Batch(tuple(group), 0) for group in groups.values()]

    def prepare(self, batches: Sequence[Batch]) -> Iterator[None]:
        yield

    def compute(self, batch: Batch) -> Iterator[Result]:
        for cell in batch.cells:
            n = cell.coords["n"]
            self.before(n)
            self.computed.append(n)
            arrays = {"row": row(n)} if self.arrays else None
            yield Result(cell, values(n), arrays, tokens=3)


VARIABLES = (
    Variable("x", ("n",), "f8"),
    Variable("name", ("n",), "str"),
    Variable("row", ("n", "column")),
)


def run(
    path: Path,
    count: int = 6,
    study: Toy | None = None,
    emit: Callable[[Any], None] = lambda event: None,
    **how: Any,
) -> RunFinished:
    """A whole run in the folder ``path``: cells, packed file and document."""
    plan = cells(count)
    opened = {name: how.pop(name) for name in ("identity", "allow_drift", "fresh") if name in how}
    options = {"experiment": "toy", "identity": {"kind": "toy"}, "manifest": {}} | opened
    with RunFolder.open(path.parent, folder=path, **options) as folder:
        finished = runner.run(study or Toy(), plan, folder, emit, title="toy", **how)
        pack(folder, VARIABLES, {"n": count, "column": WIDTH})
        folder.write_json("summary.json", {"schema": "toy", "done": finished.done})
    return finished
