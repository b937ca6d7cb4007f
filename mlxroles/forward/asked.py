"""What one forward is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.forward.network import Start

# Files whose final norm or head mix positions or copies, so that a cropped stream would be wrong.
WHOLE_HEAD = {"kimi_k3", "deepseek_v41", "gemma3n", "nanbeige"}


Summary = Callable[[int, mx.array, mx.array], mx.array]
"""Takes a layer, its weights [batch, head, query, key] and which keys each query sees (bool,
broadcastable to the weights), and returns what is kept in their place."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What one forward is asked for; see ``forward``."""

    keep: tuple[str, ...]
    layers: tuple[int, ...] | None
    edits: tuple[Edit, ...]
    start: Start | None
    read: Sequence[int] | mx.array | None
    offset: int
    """Positions that come from a prefix."""
    through: bool
    """Whether all blocks are built, also those after the last layer that is kept."""
    summary: Summary | None = None
    """What is kept of a ``pattern`` instead of the pattern."""


def at(h: mx.array, read: Sequence[int] | mx.array) -> mx.array:
    """Positions ``read`` of h [batch, position, width], the same or others for every row."""
    if isinstance(read, mx.array) and read.ndim == 2:
        return mx.take_along_axis(h, read[:, :, None], axis=1)
    return h[:, read if isinstance(read, mx.array) else mx.array([int(p) for p in read])]
