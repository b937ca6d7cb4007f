"""Any number of rows: cut into batches by their place in the model and by memory."""

from collections.abc import Callable, Iterator, Sequence

from mlxroles.backend import mx, on_gpu
from mlxroles.engine.batch import Answer, run_batch
from mlxroles.engine.check import check
from mlxroles.engine.clean import Clean
from mlxroles.engine.memory import Sizes, is_out_of_memory, limit, rows_that_fit, sizes
from mlxroles.engine.pressure import relief
from mlxroles.engine.rows import Row, Shape, Spot, batches, spot
from mlxroles.forward import Network

TOKENS_ON_CPU = 512
TOKENS_ON_GPU = 8192
"""Positions of one layer call beyond which a larger batch is no faster; on a GPU an estimate."""


ANSWERS = 1 << 28
"""Bytes of logits that one batch leaves behind at most."""


def worth() -> int:
    """Positions per layer call that are worth computing at once on this device."""
    return TOKENS_ON_GPU if on_gpu() else TOKENS_ON_CPU


def run(network: Network, own: Clean, rows: Sequence[Row]) -> list[Answer]:
    """Runs rows as one batch; where memory runs out or is about to, in parts.

    Args:
        network: The recipient.
        own: Its clean run of the prompts, as a recipient's, with the layers that are edited.
        rows: What is edited, in any order.

    Returns:
        Answers in the order of the rows.

    Raises:
        ModelError: a site that cannot be edited in this architecture.
        ValueError: a row without edits, a layer, position or head that does not exist or that the
            clean run has not kept, or a value that does not fit.
        RuntimeError: a single row does not fit into memory.
    """
    check(network, own, rows)
    return _run(network, own, rows)


def _run(network: Network, own: Clean, rows: Sequence[Row]) -> list[Answer]:
    parts = relief.cut(rows, network.ranks)
    return [answer for part in parts for answer in _halved(network, own, part)]


def _halved(network: Network, own: Clean, rows: Sequence[Row]) -> list[Answer]:
    try:
        return run_batch(network, own, rows)
    except (RuntimeError, MemoryError) as error:
        alone = network.ranks is None  # halves of one rank would not be those of the others
        if len(rows) < 2 or not alone or not is_out_of_memory(error):
            raise
    mx.clear_cache()
    half = len(rows) // 2
    return [*_halved(network, own, rows[:half]), *_halved(network, own, rows[half:])]


def sweep(
    network: Network, own: Clean, rows: Sequence[Row], *, memory: int | None = None
) -> Iterator[tuple[int, Answer]]:
    """Runs any number of rows; yields (index of the row, answer) batch by batch.

    ``memory`` caps the bytes in use, by default at a share of the device's; other arguments and
    errors are those of ``run``.
    """
    check(network, own, rows)
    of, most = sizes(network), limit() if memory is None else memory
    fits = room(of, own.shape, most, known=mx.get_active_memory() - of.weights)
    for batch in cut(own.shape, [spot(row, own.shape) for row in rows], fits):
        answers = _run(network, own, [rows[n] for n in batch])
        yield from zip(batch, answers, strict=True)


def room(of: Sizes, shape: Shape, most: int, *, known: int) -> Callable[[int], int]:
    """How many rows fit into memory, by the position at which they begin.

    Args:
        of: The network's sizes.
        shape: What the rows have in common.
        most: Bytes that may be in use.
        known: Bytes in use beside the network's weights: another model, clean states.
    """
    read = len(shape.read)
    answers = max(1, ANSWERS // max(1, 4 * read * of.vocab))

    def fits(start: int) -> int:
        held = rows_that_fit(of, most, length=shape.length, start=start, read=read, known=known)
        return min(held, answers)

    return fits


def cut(shape: Shape, spots: Sequence[Spot | None], fits: Callable[[int], int]) -> list[list[int]]:
    """Indices of rows that run together; those that no edit moves come first, as one batch.

    Args:
        shape: What the rows have in common.
        spots: Where they join, from ``spot``.
        fits: From ``room``.
    """
    moved = [n for n, s in enumerate(spots) if s is not None]
    still = [n for n, s in enumerate(spots) if s is None]
    made = batches([s for s in spots if s is not None], shape, tokens=worth(), fits=fits)
    return [*([still] if still else []), *([moved[n] for n in batch] for batch in made)]
