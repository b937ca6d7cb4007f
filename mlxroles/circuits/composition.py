"""How much a head reads of what an earlier head writes: Q-, K- and V-composition.

The score of an earlier head 1 and a later head 2 (Elhage et al. 2021) is the Frobenius norm of the
product of their matrices over the product of their norms:

    Q: |W_OV1 W_QK2| / (|W_OV1| |W_QK2|)   K: with W_QK2 transposed   V: with W_OV2

It is 1 at most, and 1 / sqrt(d_model) in root mean square for directions of the stream that have
nothing to do with each other. RoPE is left out. No array is larger than [head d_head, head d_head]:
each matrix has the factors of its head, and a factor that only turns can be left off.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.backend import mx
from mlxroles.circuits.matrices import Heads

Numbers = NDArray[np.float64]

KINDS = ("q", "k", "v")
"""What of a later head reads."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """The heads of a layer, each matrix replaced by a smaller one with the same products' norms."""

    layer: int
    writer: mx.array
    """|writer X| = |W_V W_O X| for every X [head, d_value, d_model]."""
    readers: dict[str, mx.array]
    """|X readers["q"]| = |X W_Q W_K^T|, and so on [head, d_model, d]."""


def reduced(heads: Heads) -> Reduced:
    """The heads of a layer without the factors that only turn."""
    q, k, v, o = heads.q, heads.shared(heads.k), heads.shared(heads.v), heads.o
    corner = {name: _corner(matrix) for name, matrix in (("q", q), ("k", heads.k), ("v", heads.v))}
    corner["o"] = _corner(o.swapaxes(1, 2))
    readers = {
        "q": q @ heads.shared(corner["k"]).swapaxes(1, 2),
        "k": k @ corner["q"].swapaxes(1, 2),
        "v": v @ corner["o"].swapaxes(1, 2),
    }
    return Reduced(heads.layer, heads.shared(corner["v"]) @ o, readers)


def _corner(tall: mx.array) -> mx.array:
    """R of the QR decomposition of matrices [..., d_model, d]."""
    return mx.linalg.qr(tall, stream=mx.cpu)[1]


def scores(
    earlier: Reduced, later: Reduced, turn: tuple[mx.array, mx.array] | None = None
) -> dict[str, Numbers]:
    """The composition scores of all pairs of heads of two layers, by kind [earlier, later].

    Args:
        earlier: The layer that writes.
        later: The layer that reads.
        turn: From ``turn``, for the null: what the earlier layer writes is moved by it.
    """
    written = earlier.writer
    if turn is not None:
        written = written[..., turn[0]] * turn[1]
    found = {}
    for kind, reader in later.readers.items():
        made = _flat(written) @ _flat(reader.swapaxes(1, 2)).T
        blocks = made.reshape(*written.shape[:2], *(reader.shape[0], reader.shape[2]))
        product = mx.sqrt((blocks * blocks).sum(axis=(1, 3)))
        sizes = _size(written)[:, None] * _size(reader)[None]
        found[kind] = np.array(product / mx.maximum(sizes, 1e-30), dtype=np.float64)
    return found


def turn(d_model: int, rng: np.random.Generator) -> tuple[mx.array, mx.array]:
    """Another order of the stream's elements and signs for them: a random turn of the stream.

    It leaves a head's singular values and the sizes of its elements what they are, and takes away
    what its directions have to do with another head's; the mean square of a score is 1 / d_model.
    """
    signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), d_model)
    return mx.array(rng.permutation(d_model).astype(np.int32)), mx.array(signs)


def _flat(matrices: mx.array) -> mx.array:
    return matrices.reshape(-1, matrices.shape[-1])


def _size(matrices: mx.array) -> mx.array:
    """Frobenius norms [head]."""
    return mx.sqrt((matrices * matrices).sum(axis=(1, 2)))
