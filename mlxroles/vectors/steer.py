"""Edits that put a vector to work, at the layer that it was taken from and at no other."""

from collections.abc import Sequence

from mlxroles.backend import mx
from mlxroles.edits import Edit, Operation, project_out
from mlxroles.vectors.vectors import Vectors


def edit(
    vectors: Vectors,
    name: str,
    layer: int,
    scale: float = 1.0,
    *,
    op: Operation = "add",
    positions: Sequence[int] | None = None,
) -> Edit:
    """The edit that adds a vector times ``scale`` at its layer, or projects it out there.

    Raises:
        VectorError: there is no such name, the vector was not taken from that layer, or it has
            length 0 and is to be projected out.
        ValueError: a position that is named twice.
    """
    if op == "project":
        direction = vectors.unit(name, layer)
        return project_out(vectors.site, layer, direction, positions=positions)
    value = mx.array(vectors.at(name, layer) * scale)
    return Edit(vectors.site, layer, value, op, positions=positions)
