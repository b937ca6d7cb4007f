"""How a work is measured: clocks, repetitions, memory, and the plain forward beside it."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles.backend import mx, on_gpu
from mlxroles.bench.work import Ran, Work

LONG_RUN = 5.0
"""Seconds, of those that ratios are made of, from which a work is not run again to warm up."""
FEWEST, MOST = 3, 15
"""Runs of a short work, and plain forwards around a long one."""
PATIENCE = 7.0
"""Seconds for which a short work is repeated, at least ``FEWEST`` times."""


@dataclass(frozen=True)
class Cost:
    """What something took."""

    seconds: float
    cpu_seconds: float
    """Of all threads of this process."""

    @property
    def counted(self) -> float:
        """Of the two what a ratio is made of: time on a GPU, CPU seconds elsewhere."""
        return self.seconds if on_gpu() else self.cpu_seconds


def timed(job: Callable[[], Any]) -> tuple[Cost, Any]:
    """Runs a job once: what it took, and what it returned."""
    mx.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    result = job()
    mx.synchronize()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu), result


def median(costs: list[Cost]) -> Cost:
    """Medians of time and CPU time, each by itself."""
    return Cost(
        statistics.median(c.seconds for c in costs), statistics.median(c.cpu_seconds for c in costs)
    )


class Peak:
    """The most memory that jobs took, beyond what was held when each of them began."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, job: Callable[[], Any]) -> tuple[Cost, Any]:
        """Runs and times a job."""
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        found = timed(job)
        self.bytes = max(self.bytes, mx.get_peak_memory() - held)
        return found


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of a work, and what it is compared with before each of them and after the last."""

    own: list[Cost]
    beside: list[Cost]
    peak_memory: int
    first: Ran

    def ratio(self, cost: Callable[[Cost], float]) -> float:
        """Median over the runs of a cost as a multiple of the two beside it."""
        around = [cost(c) for c in self.beside]
        pairs = zip(self.own, around[:-1], around[1:], strict=True)
        return statistics.median(2 * cost(c) / (before + after) for c, before, after in pairs)


def repeated(work: Work, against: Callable[[], Any] | None) -> Runs:
    """Runs a work, once where it is long, else to warm up and then several times.

    ``against`` runs before and after each: several times around a long work, else once.
    """
    gc.collect()
    peak = Peak()

    def once() -> tuple[Cost, Ran]:
        return peak(lambda: work.run(work.sample))

    def reference(count: int) -> list[Cost]:
        return [] if against is None else [median([timed(against)[0] for _ in range(count)])]

    found = reference(FEWEST)
    first, ran = once()
    if first.counted >= LONG_RUN:
        return Runs([first], [*found, *reference(FEWEST)], peak.bytes, ran)
    own, found = [], reference(1)
    for _ in range(max(FEWEST, min(MOST, round(PATIENCE / max(first.counted, 1e-6))))):
        own.append(once()[0])
        found += reference(1)
    return Runs(own, found, peak.bytes, ran)


def measured(work: Work) -> dict[str, Any]:
    """Measures our way of a work and its plain twin; see ``document.item`` for the keys.

    The plain forward that the ratio is to runs right before and right after each run.

    Raises:
        ModelError: the architecture cannot do this.
    """
    is_to_plain = not (work.is_memory or work.is_against_twin)
    runs = repeated(work, work.against if is_to_plain else None)
    twin = twin_of(work, runs.first)
    own = median(runs.own)
    found = {
        "seconds": own.seconds,
        "cpu_seconds": own.cpu_seconds,
        "layer_calls": runs.first.layer_calls,
        "peak_memory": runs.peak_memory,
        "twin_peak_memory": twin.peak_memory,
        "error": twin.error,
    }
    if is_to_plain:
        plain = median(runs.beside)
        ratios = (runs.ratio(lambda c: c.counted), runs.ratio(lambda c: c.seconds))
    elif twin.cost is not None:
        plain = twin.cost
        ratios = (own.counted / plain.counted, own.seconds / plain.seconds)
    else:
        return found
    found |= {"reference_seconds": plain.seconds, "reference_cpu_seconds": plain.cpu_seconds}
    found |= dict(zip(("ratio", "wall_ratio"), ratios, strict=True))
    if twin.cost is not None:
        found |= {
            "twin_ratio": twin.cost.counted / plain.counted,
            "twin_seconds": twin.cost.seconds,
            "twin_cpu_seconds": twin.cost.cpu_seconds,
        }
    return found


@dataclass(frozen=True)
class Twin:
    """The plain twin: its cost for all cells, its memory, and how far its numbers are from ours."""

    cost: Cost | None
    peak_memory: int | None
    error: float | None


def twin_of(work: Work, ran: Ran) -> Twin:
    """Runs the sampled cells of the twin; their cost is scaled to all cells."""
    cells = work.sample
    if not cells:
        return Twin(None, None, None)
    gc.collect()
    peak = Peak()
    once, state = peak(work.prepare)
    costs, errors = [], []
    for cell in (cells[0], *cells):  # the first warms up
        cost, value = peak(lambda cell=cell: work.plain(state, cell))
        costs.append(cost)
        errors.append(_difference(ran.values[cell], value))
    scale = work.n_cells / len(cells)
    if work.is_memory:
        return Twin(None, round(peak.bytes * scale), max(errors))
    total = Cost(
        once.seconds + scale * sum(c.seconds for c in costs[1:]),
        once.cpu_seconds + scale * sum(c.cpu_seconds for c in costs[1:]),
    )
    return Twin(total, peak.bytes, max(errors))


def _difference(own: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference; 0 between arrays without numbers."""
    return float(np.abs(own - other).max(initial=0.0))
