"""Eigenvalues of the circuits between tokens, from matrices no larger than d_model x d_model.

The OV circuit between tokens is W_E W_V W_O W_U^T [vocab, vocab]. What of its eigenvalues is not
0 are those of the small matrix W_O (W_U^T W_E) W_V [d_value, d_value]. A token that a head copies
is pushed up by itself: copying makes real parts positive, and the score is their sum over the sum
of absolute values, between -1 and 1 (Elhage et al. 2021). The QK circuit W_E W_Q W_K^T W_E^T has
one too: positive where tokens attend to tokens like themselves. RoPE is left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxroles.backend import mx
from mlxroles.circuits.ends import Ends
from mlxroles.circuits.matrices import Heads

Numbers = NDArray[np.float64]

CIRCUITS = ("ov", "qk")


@dataclass(frozen=True, eq=False)
class Between:
    """W_U^T W_E and W_E^T W_E, both [d_model, d_model], summed over the whole vocabulary."""

    ov: mx.array
    qk: mx.array


def between(ends: Ends, *, fold_norms: bool) -> Between:
    """What joins a head's two ends over all tokens, a block of the vocabulary at a time."""
    d_model = ends.gain.size
    ov, qk = mx.zeros((d_model, d_model)), mx.zeros((d_model, d_model))
    for ids in ends.blocks():
        e, u = ends.embedding(ids), ends.unembedding(ids, fold_norms=fold_norms)
        ov, qk = ov + u.T @ e, qk + e.T @ e
        mx.eval(ov, qk)
    return Between(ov, qk)


def eigenvalues(heads: Heads, joined: Between) -> dict[str, NDArray[np.complex128]]:
    """Eigenvalues of both circuits of every head of a layer [head, d], the largest first."""
    cores = {
        "ov": heads.o @ joined.ov @ heads.shared(heads.v),
        "qk": heads.shared(heads.k).swapaxes(1, 2) @ joined.qk @ heads.q,
    }
    return {name: _eigenvalues(core) for name, core in cores.items()}


def _eigenvalues(cores: mx.array) -> NDArray[np.complex128]:
    found = np.linalg.eigvals(np.array(cores, dtype=np.float64)).astype(np.complex128)
    return np.take_along_axis(found, np.argsort(-np.abs(found), axis=-1), axis=-1)


def positive_share(values: NDArray[np.complex128]) -> Numbers:
    """Sum of the real parts over the sum of the absolute values, over the last axis; in [-1, 1]."""
    size = np.abs(values).sum(axis=-1)
    return np.where(size > 0, values.real.sum(axis=-1) / np.where(size > 0, size, 1.0), 0.0)


def random_shares(
    heads: Heads, joined: Between, rng: np.random.Generator, *, draws: int
) -> dict[str, Numbers]:
    """Scores of heads of random numbers with the shapes of these, by circuit [draw]."""
    found: dict[str, list[Numbers]] = {name: [] for name in CIRCUITS}
    d_model = heads.q.shape[1]
    for start in range(0, draws, heads.q.shape[0]):
        n = min(heads.q.shape[0], draws - start)

        def normal(*shape: int) -> mx.array:
            return mx.array(rng.standard_normal(shape, dtype=np.float32))

        d, value = heads.q.shape[2], heads.v.shape[2]
        q, k = normal(n, d_model, d), normal(n, d_model, d)
        made = Heads(heads.layer, q, k, normal(n, d_model, value), normal(n, value, d_model))
        for name, values in eigenvalues(made, joined).items():
            found[name].append(positive_share(values))
    return {name: np.concatenate(parts) for name, parts in found.items()}
