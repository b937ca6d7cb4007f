"""How many layers the engine ran, beside how many it had to."""

from typing import NamedTuple


class LayerCalls(NamedTuple):
    """Row-layers: one layer over one whole prompt counts as 1, over half of its positions as .5."""

    made: float
    least: float
    """What had to run: layers after an edit, from its position on; the last where it is read."""


_total = LayerCalls(0.0, 0.0)


def add(*, made: float, least: float) -> None:
    """Counts what a run took."""
    global _total
    _total = LayerCalls(_total.made + made, _total.least + least)


def calls() -> LayerCalls:
    """Row-layers since the process began or ``reset_calls``."""
    return _total


def reset_calls() -> None:
    """Counts from 0 again."""
    global _total
    _total = LayerCalls(0.0, 0.0)
