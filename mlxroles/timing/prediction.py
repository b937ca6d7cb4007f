"""Seconds of an amount of work at some rates.

The constants were measured on studies of models of 1 to 300 M parameters on a CPU, with
``Rates.pace`` 1 there. They need not be right to better than a factor: what finished runs took
corrects them.
"""

from dataclasses import astuple, dataclass

from mlxroles.timing.rates import Rates
from mlxroles.timing.work import Sizes, Work

OPERATIONS = 60.0
"""Operations of one call of a block under taps."""
CALL = 2e-3
"""Seconds of Python per call of a block: taps, caches, edits, rows put together."""
HEAD_OPERATIONS = 20.0
"""The same of a call of the head."""
TRIPS = 2.0
"""Times that a number is read or written by an operation that makes it."""
MEASURE = 8e-4
"""Seconds of plain Python per measured position."""
PER_LOGIT = 3e-8
"""Seconds per logit of a measured position: softmax, ranks, the largest few."""
CELL = 2e-4
"""Seconds of Python per line of the journal."""
LOAD = 0.1
"""Seconds per model beside its weights."""
STORE = 3e-9
"""Seconds per byte of an array that is stored."""
START = 2.7
"""Seconds until a study begins: Python, libraries, tokenizers."""


@dataclass(frozen=True)
class Parts:
    """Seconds of a study, by what they go to."""

    start: float
    """Until it begins."""
    cells: float
    """Loading and computing, until the last cell is stored."""
    results: float
    """Everything else: checks before, statistics, figures and report after."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.start + self.cells + self.results

    def __mul__(self, times: "Parts") -> "Parts":
        """Part by part."""
        return Parts(*(a * b for a, b in zip(astuple(self), astuple(times), strict=True)))


def predict(work: Work, sizes: Sizes, rates: Rates, *, results: float) -> Parts:
    """Seconds of some work.

    Args:
        work: What is to be done.
        sizes: Of the model.
        rates: Of this machine.
        results: Seconds for what follows the cells, on the machine of the constants.
    """
    computed = sum(computing(work, sizes, rates).values())
    # results are written while the next ones are computed
    stored = work.cells * (rates.sync + CELL * rates.pace) + work.written * STORE * rates.pace
    loaded = work.loads / rates.load + (LOAD * rates.pace if work.loads else 0.0)
    return Parts(START * rates.pace, loaded + max(computed, stored), results * rates.pace)


def computing(work: Work, sizes: Sizes, rates: Rates) -> dict[str, float]:
    """Seconds of computing, by what they go to."""
    head = sizes.vocab * sizes.d_model
    return {
        "calls": (work.blocks * OPERATIONS + work.unembeds * HEAD_OPERATIONS) * rates.dispatch
        + work.blocks * CALL * rates.pace,
        "weights": (work.blocks * sizes.weights + work.unembeds * head) * rates.read,
        "products": (work.tokens * sizes.weights + work.reads * head) * rates.multiply,
        "attention": work.pairs * 2 * sizes.queries * rates.attend,
        "arrays": TRIPS * work.tokens * sizes.numbers * sizes.itemsize / rates.bandwidth,
        "measures": work.measures * (MEASURE + PER_LOGIT * sizes.vocab) * rates.pace,
    }
