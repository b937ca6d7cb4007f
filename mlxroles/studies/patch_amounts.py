"""What a patch sweep has to do, in amounts, from its batches alone."""

from collections.abc import Sequence

from mlxroles import engine
from mlxroles.anatomy import JOIN_LATE
from mlxroles.documents import recipient
from mlxroles.engine.amounts import of_batch, of_clean
from mlxroles.engine.rows import LATE
from mlxroles.events import Cell
from mlxroles.studies.patch_run import Batch, PatchWork
from mlxroles.studies.timed import loads, sizes
from mlxroles.timing import NOTHING, Sizes, Work


def amounts(work: PatchWork, pending: Sequence[Cell]) -> Work:
    """Everything between a run's beginning and its last cell.

    Args:
        work: The study's computing half.
        pending: Cells that are not stored yet; a batch runs whole for a single one of them.
    """
    batches = work.batches(pending)
    total, of = NOTHING, sizes(work.subject)
    order: list[str] = []
    for group in sorted({batch.group for batch in batches}):
        ours = [batch for batch in batches if batch.group == group]
        passages = sorted({key for batch in ours for key in work._needs(batch)})
        order += [key.side for key in passages]
        for key in passages:
            shape = work.shape(key.prompts[0])
            late = shape.late and _is_late(work, shape.n_layers - 1, other=key.other)
            total += of_clean(of, shape, prompts=len(key.prompts), late=late)
        for batch in ours:
            total += _batch(work, of, batch)
            if "direction" in batch.rows[0].coords:
                order.append(recipient(str(batch.rows[0].coords["direction"])))
    return total + loads(work.subject, order) + Work(cells=len(pending))


def _is_late(work: PatchWork, last: int, *, other: bool) -> bool:
    """Whether a clean run reads its last layer late; recipients keep keys beside queries."""
    late = (*LATE, "resid_pre") if other else tuple({*LATE, "resid_pre"} - {"q"})
    return work.grid.site in late or last not in work.grid.layers


def _batch(work: PatchWork, of: Sizes, batch: Batch) -> Work:
    shape = work.shape(batch.prompts[0])
    measured = Work(measures=len(batch.cells) * (1 + work.donor_head))
    if "baseline" in batch.rows[0].coords:
        return measured
    rows = [work._row(cell, 0.0, batch.prompts) for cell in batch.rows]
    spots = [engine.spot(row, shape) for row in rows]
    return measured + of_batch(of, shape, spots, whole=JOIN_LATE in work.forbidden)
