"""What runs of the engine take, in amounts: closed forms of what it counts while it runs."""

from collections.abc import Sequence

from mlxroles.engine.rows import Shape, Spot
from mlxroles.timing import NOTHING, Sizes, Work
from mlxroles.timing.work import passes, seen


def of_clean(sizes: Sizes, shape: Shape, *, prompts: int, late: bool, logits: bool = True) -> Work:
    """A clean run.

    Args:
        sizes: Of the model.
        shape: Of the rows.
        prompts: Rows.
        late: Whether its last layer is read late.
        logits: Whether logits are made.
    """
    work = passes(sizes, rows=prompts, length=shape.length)
    if late and shape.first_read > 0:
        work += Work(tokens=-prompts * shape.first_read, pairs=-prompts * seen(0, shape.first_read))
    return work + (_head(prompts, shape) if logits else NOTHING)


def of_batch(sizes: Sizes, shape: Shape, spots: Sequence[Spot | None], *, whole: bool) -> Work:
    """A batch of patched rows.

    Args:
        sizes: Of the model.
        shape: What the rows have in common.
        spots: Where they join; None for rows that no edit moves.
        whole: Rows run whole, one by one, as the architecture asks for.
    """
    moved = [s for s in spots if s is not None]
    if not moved:
        return NOTHING
    if whole:
        return (passes(sizes, rows=1, length=shape.length) + _head(1, shape)) * len(moved)
    first, last = min(s.start for s in moved), shape.n_layers - 1
    blocks, tokens, pairs = 0, 0, 0.0
    for layer in range(min(s.layer for s in moved), shape.n_layers):
        here = [s for s in moved if s.layer == layer and s.inside is not None]
        through = sum(s.layer <= layer for s in moved)
        entered = through - len(here)
        blocks += (entered > 0) + len({s.inside for s in here})
        if layer < last:
            tokens += through * (shape.length - first)
            pairs += through * seen(first, shape.length)
            continue
        # keys and values that are edited there are needed at every position
        early = sum(s.inside in ("k", "v") for s in here)
        begins = max(first, shape.first_read)
        tokens += early * (shape.length - first) + (through - early) * (shape.length - begins)
        pairs += early * seen(first, shape.length)
        pairs += (through - early) * seen(begins, shape.length)
    work = Work(blocks=blocks, tokens=tokens, pairs=pairs)
    return work + _head(len(moved), shape)


def _head(rows: int, shape: Shape) -> Work:
    return Work(unembeds=1, reads=rows * len(shape.read))
