r"""What a query component and a key component add to a head's score, by the distance between them.

With ``u_q = U_q[c] |V_q[:, c]|`` and ``u_k`` alike, cut into heads, the score of query position m
and key position n holds ``scale (R_m u_q) . (R_n u_k)``. A rotary embedding R makes this a function
of D = m - n alone; for one that rotates halves at angles ``th_j`` per position, in closed form::

    W(D) = scale sum_j [A_j cos(D th_j) + B_j sin(D th_j)]
    A = q1 k1 + q2 k2,  B = q1 k2 - q2 k1        (halves 1 and 2 of the head)

(spec of the original study; the sign of B follows from the rotation of halves.) The numbers are of
weights alone: the gain of the norm in front, the sizes and signs of activations, biases and the
softmax's competition are not in them, and sums over heads mix scores of different softmaxes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from mlxroles.components.decomposition import Decomposition
from mlxroles.components.weights import LEAST
from mlxroles.errors import StoreError
from mlxroles.store.files import shown, write_atomic
from mlxroles.store.hdf5 import plain_hdf5_errors

Numbers = NDArray[np.float64]
Rotate = Callable[[NDArray[Any], int], NDArray[Any]]
"""(vectors [head, component, d_head], position) -> the same vectors as they stand there."""

OFFSETS = tuple(range(17))
"""Distances between query and key that are computed."""
_DRAWS, _SETS = 400, 1000


class Chance(NamedTuple):
    """How the contributions of a layer stand beside those of random key directions."""

    above: NDArray[np.float64]
    """[query head], the share of pairs whose peak is beyond what 95 of 100 random directions of
    the key component's own size in that head reach: .05 by chance."""
    most: float
    """What the largest of ``above`` stays below in 95 of 100 sets of random keys."""
    of_query: NDArray[np.float64]
    """[query component], what the largest peak of the head sum stays below in 95 of 100 sets."""
    of_all: float
    """The same of all query components together."""


class Offsets(NamedTuple):
    """The contributions of one layer's query and key components."""

    layer: int
    q: NDArray[np.int64]
    """[query component], its number in the map."""
    k: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """Query position minus key position."""
    values: NDArray[np.float32]
    """[offset, query head, query component, key component]"""
    chance: Chance


def heads_of(found: Decomposition, chosen: Sequence[int] | NDArray[np.int64]) -> Numbers:
    """``U[c] |V[:, c]|`` of some components of a map, by head [head, component, d_head].

    Raises:
        ValueError: the map's output has no heads.
    """
    if not found.n_heads or found.kind == "o":
        raise ValueError(f"the output of {found.key} has no heads")
    written = np.asarray(found.U, dtype=np.float64)[list(chosen)]
    size = np.linalg.norm(np.asarray(found.V, dtype=np.float64)[:, list(chosen)], axis=0)
    parts = (written * size[:, None]).reshape(len(written), found.n_heads, -1)
    return parts.transpose(1, 0, 2)


def contributions(
    query: Numbers, key: Numbers, rotate: Rotate, offsets: Sequence[int], scale: float
) -> Numbers:
    """``W(D)`` under any position embedding that acts on single vectors.

    Args:
        query: [query head, query component, d_head], of :func:`heads_of`.
        key: [key head, key component, d_head]; each key head serves a group of query heads.
        rotate: The layer's own embedding; the key stands at position 0.
        offsets: Query position minus key position.
        scale: What the layer multiplies scores by.

    Returns:
        [offset, query head, query component, key component]
    """
    group = _group(query, key)
    at_zero = np.repeat(np.asarray(rotate(key, 0), dtype=np.float64), group, axis=0)
    turned = (np.asarray(rotate(query, int(d)), dtype=np.float64) for d in offsets)
    return scale * np.stack([q @ at_zero.transpose(0, 2, 1) for q in turned])


def peaks(values: NDArray[Any]) -> tuple[NDArray[np.int64], Numbers]:
    """Where ``|W|`` is largest over the first axis, and W there with its sign."""
    at = np.abs(values).argmax(axis=0)
    return at, np.take_along_axis(values, at[None], axis=0)[0].astype(np.float64)


def chance(
    query: Numbers,
    key: Numbers,
    values: Numbers,
    rotate: Rotate,
    offsets: Sequence[int],
    *,
    scale: float,
    seed: int = 0,
) -> Chance:
    """What random key directions give with the same query components.

    A random key has a direction of its own in every key head, and there the size of a key
    component.

    Args:
        query: As in :func:`contributions`.
        key: Likewise.
        values: What :func:`contributions` gives for them.
        rotate: As there.
        offsets: As there.
        scale: As there.
        seed: Of the directions.
    """
    group, rng = _group(query, key), np.random.default_rng(seed)
    draws = rng.standard_normal((len(key), _DRAWS, key.shape[-1]))
    draws /= np.linalg.norm(draws, axis=-1, keepdims=True)
    null = contributions(query, draws, rotate, offsets, scale)
    size = np.repeat(np.linalg.norm(key, axis=-1), group, axis=0)  # [query head, key component]
    by_head = np.abs(null).max(axis=0)  # [query head, query component, draw]
    limit = np.quantile(by_head, 0.95, axis=-1)[:, :, None]
    is_above = np.abs(values).max(axis=0) > np.maximum(limit * size[:, None, :], LEAST)
    sets = rng.integers(_DRAWS, size=(_SETS, key.shape[1]))
    most = (by_head > limit).mean(axis=1)[:, sets].mean(axis=-1).max(axis=0)
    largest = np.zeros((_SETS, query.shape[1]))
    for sizes, drawn in zip(size.T, sets.T, strict=True):
        summed = np.abs(np.tensordot(sizes, null, (0, 1))).max(axis=0)  # [query component, draw]
        np.maximum(largest, summed[:, drawn].T, out=largest)
    return Chance(
        is_above.mean(axis=(1, 2)),
        float(np.quantile(most, 0.95)),
        np.quantile(largest, 0.95, axis=0),
        float(np.quantile(largest.max(axis=1), 0.95)),
    )


def _group(query: Numbers, key: Numbers) -> int:
    """How many query heads one key head serves."""
    if len(query) % len(key):
        raise ValueError(f"{len(query)} query heads cannot share {len(key)} key heads")
    return len(query) // len(key)


def write(path: Path, found: Mapping[int, Offsets], identity: str) -> None:
    """Writes the layers' contributions to one HDF5 file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with (
        plain_hdf5_errors(path),
        h5py.File(str(path), "w", driver="core", backing_store=False) as file,
    ):
        file.attrs["identity"] = identity
        for layer, each in sorted(found.items()):
            group = file.create_group(f"L{layer}")
            for name in ("q", "k", "offsets"):
                group[name] = getattr(each, name)
            for name, number in each.chance._asdict().items():
                group[f"chance/{name}"] = number
            group.create_dataset("W", data=each.values, compression="gzip", compression_opts=1)
            group["W"].attrs["axes"] = "offset, query head, query component, key component"
        file.flush()
        image = file.id.get_file_image()
    write_atomic(path, image)


def read(path: Path, identity: str | None = None) -> dict[int, Offsets]:
    """Every layer that the file holds, whichever others are missing.

    Args:
        path: A file of :func:`write`; where there is none, nothing is found.
        identity: What the file must have been made from; nothing is found in another's.

    Raises:
        StoreError: it is no such file.
    """
    if not path.exists():
        return {}
    try:
        with h5py.File(path) as file:
            if identity is not None and file.attrs.get("identity") != identity:
                return {}
            return {int(name[1:]): _layer(int(name[1:]), group) for name, group in file.items()}
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{shown(path)} holds no q.k contributions that can be read; delete it, and it is "
            "made again"
        ) from error


def _layer(layer: int, group: Any) -> Offsets:
    q, k, offsets, values = (group[n][()] for n in ("q", "k", "offsets", "W"))
    above, most, of_query, of_all = (group[f"chance/{n}"][()] for n in Chance._fields)
    if values.shape != (len(offsets), len(above), len(of_query), len(k)) or len(q) != len(of_query):
        raise ValueError(f"L{layer}/W has the shape {values.shape}")
    known = Chance(above, float(most), of_query, float(of_all))
    return Offsets(layer, q, k, offsets, values, known)
