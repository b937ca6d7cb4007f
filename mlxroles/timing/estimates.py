"""An estimate in seconds and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles.text import format_seconds
from mlxroles.timing.history import Ratio, Record, learned
from mlxroles.timing.prediction import Parts


@dataclass(frozen=True)
class Estimate:
    """Seconds that a study should take."""

    likely: float
    low: float
    high: float
    basis: str
    """Where it comes from, in words."""

    def document(self) -> dict[str, Any]:
        """As plain data, to a hundredth of a second."""
        seconds = {n: round(getattr(self, n), 2) for n in ("likely", "low", "high")}
        return {**seconds, "basis": self.basis}


def estimate(predicted: Parts, records: Sequence[Record], size: str) -> Estimate:
    """The prediction, corrected by what runs like it took.

    Args:
        predicted: From ``predict``.
        records: Of the same kind of study on this machine.
        size: Kind of model.
    """
    ratio = learned(records, size, predicted)
    likely = (predicted * ratio.factors).total
    return Estimate(likely, likely / ratio.spread, likely * ratio.spread, _basis(ratio))


def _basis(ratio: Ratio) -> str:
    if not ratio.runs:
        return "calibrated here"
    runs = "1 run" if ratio.runs == 1 else f"{ratio.runs} runs"
    return f"measured here on {runs}" + ("" if ratio.same_size else " with other models")


def span(seconds: Mapping[str, Any]) -> str:
    """An estimate in words: ``about 4 min (2 to 8 min; calibrated here)``."""
    return f"about {_short(seconds['likely'])} ({_range(seconds)}; {seconds['basis']})"


def sentence(estimate: Mapping[str, Any]) -> str:
    """How good an estimate was: ``took 3 min 12 s; the estimate was 4 min (2 to 8 min)``."""
    took = format_seconds(estimate["seconds"])
    return f"took {took}; the estimate was {_short(estimate['likely'])} ({_range(estimate)})"


def _range(seconds: Mapping[str, Any]) -> str:
    """``2 to 8 min``: the unit once where both ends have the same."""
    low, high = _short(seconds["low"]), _short(seconds["high"])
    if low == high:
        return high
    number, _, unit = low.partition(" ")
    alone = unit == high.partition(" ")[2]
    return f"{number} to {high}" if alone else f"{low} to {high}"


def _short(seconds: float) -> str:
    """A duration in one unit, to about a tenth of it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.45 * size:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if amount < 9.95 and size > 60 else f"{amount:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1.45 else f"{max(seconds, 0.0):.1f} s"
