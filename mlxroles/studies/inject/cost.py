"""What an injection run takes: layer calls, positions, logits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxroles.engine.sweep import worth
from mlxroles.events import Cell
from mlxroles.studies.inject.grid import Spot
from mlxroles.studies.timed import loads, sizes
from mlxroles.timing import NOTHING, Work
from mlxroles.timing.work import passes, seen

if TYPE_CHECKING:
    from mlxroles.studies.inject.injection import Injection


def work(study: "Injection", cells: Sequence[Cell]) -> Work:
    """The amounts of these cells, and of the prompts that vectors are made from."""
    sides = sorted({cell.coords["model"] for cell in cells})
    of, total = sizes(study.subject), loads(study.subject, sides)
    for length in study.source.passes():
        total += passes(of, rows=1, length=length, times=float(len(sides)))
    lines: dict[str, Work] = {}
    for cell in cells:
        item = study.items[cell.coords["prompt"]]
        if item.id not in lines:
            n = len(item.ids)
            rows = 1 + study.n_random
            each = passes(of, rows=1, length=n)
            for spot in study.spots(item):
                each += _spot(of.n_layers, n, item.where[0], spot) * rows
            count = rows * len(study.spots(item))
            calls = each.tokens / max(of.n_layers, 1) / worth()
            each = Work(
                blocks=of.n_layers * (1 + calls),
                tokens=each.tokens,
                pairs=each.pairs,
                unembeds=1.0 + calls,
                reads=1.0 + count,
                measures=1.0 + count,
                cells=1.0,
                written=8.0 * count * len(study.asked.readout.names),
            )
            lines[item.id] = each
        total += lines[item.id]
    return total


def _spot(n_layers: int, length: int, first: int, spot: Spot) -> Work:
    """Positions and pairs of one row: from its first layer and position on."""
    start = 0 if spot.is_out else first
    layers = n_layers if spot.is_out or spot.layer is None else n_layers - 1 - spot.layer
    if not layers:
        return NOTHING
    return Work(tokens=layers * float(length - start), pairs=layers * seen(start, length))
