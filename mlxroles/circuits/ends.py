"""Where tokens enter and leave the stream: rows of W_E and W_U, verified by what they compute.

Both are found among the tables of a model by what the model itself makes of a few ids, so that
scales of the embedding and of the logits, tied tables and quantised ones need no names. Rows are
read a block at a time: a vocabulary of 128,000 is half a gigabyte per 1,024 of width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from mlxroles.anatomy import distance, stream
from mlxroles.backend import mx, nn, number
from mlxroles.direct.norms import gain_of
from mlxroles.direct.readout import Head
from mlxroles.direct.structure import Structure, structure_of
from mlxroles.errors import ModelError
from mlxroles.forward import Network, forward
from mlxroles.models.model import Model
from mlxroles.models.weights import dense

BLOCK = 1 << 26
"""Bytes of float32 rows that are made at a time, about."""

_CLOSE = 0.1
"""Largest error of a table, as a share of the largest number: a wrong one is off by about 1."""

_ONE = 1e-3
"""Factors as near to 1 as this are 1, and the rest is rounding."""

_SMALL = 0.1
"""Size of the elements of the streams that are handed to the head."""

_PROBED = 16
"""Ids of which embedding and logits are compared with the tables."""


@dataclass(frozen=True, eq=False)
class Ends:
    """The tables of a model between token ids and its stream."""

    network: Network
    vocab: int
    read: nn.Module | None
    """Table of embeddings; None where each one is made by a run of one token."""
    factor: float
    """Of the table's rows, as the first block is handed them."""
    written: nn.Module
    """Table of the head."""
    scale: float
    """Of the logits."""
    gain: mx.array
    """Of the final norm [d_model]."""
    centred: bool
    """The final norm takes the mean of the stream out."""
    notes: tuple[str, ...]

    def embedding(self, ids: Sequence[int] | np.ndarray) -> mx.array:
        """W_E of some ids [id, d_model], float32, as the first block is handed them.

        What a table of positions adds is left out.
        """
        rows = mx.array(np.asarray(ids, dtype=np.int32))
        if self.read is None:
            return _streams(self.network, rows)
        return self.factor * dense(self.read, rows)

    def unembedding(self, ids: Sequence[int] | np.ndarray, *, fold_norms: bool = True) -> mx.array:
        """W_U of some ids [id, d_model], float32: what each reads off the final stream.

        With ``fold_norms`` the gain of the final norm is in it, and its centring if it has one;
        the size of the stream that the norm divides by is not. Head bias and soft-cap are left out.
        """
        found = self.scale * dense(self.written, mx.array(np.asarray(ids, dtype=np.int32)))
        return folded(found, self.gain, centred=self.centred) if fold_norms else found

    def blocks(self, *, rows: int | None = None) -> Iterator[np.ndarray]:
        """All ids, so many at a time that their rows of a table take 64 MB at most."""
        size = rows or max(1, BLOCK // (4 * self.gain.size))
        for start in range(0, self.vocab, size):
            yield np.arange(start, min(start + size, self.vocab))


def sized(rows: mx.array, *, centred: bool, epsilon: float = 0.0) -> mx.array:
    """Rows of the stream as a norm without gain makes them: mean square 1, mean 0 if ``centred``.

    Rows of zeros stay what they are. ``epsilon`` is what the norm adds to the mean square.
    """
    rows = rows - rows.mean(axis=-1, keepdims=True) if centred else rows
    size = mx.sqrt((rows * rows).mean(axis=-1, keepdims=True) + epsilon)
    return rows / mx.where(size > 0, size, 1.0)


def folded(readers: mx.array, gain: mx.array, *, centred: bool) -> mx.array:
    """Directions [..., d_model] along which a stream is read through a norm, but for its size."""
    out = readers * gain
    return out - out.mean(axis=-1, keepdims=True) if centred else out


_KNOWN: "WeakKeyDictionary[Network, Ends]" = WeakKeyDictionary()


def ends_of(model: Model) -> Ends:
    """The tables of a model; found once.

    Raises:
        ModelError: a model whose final stream is not read by a norm and a table of all ids.
    """
    network = model.network
    if network not in _KNOWN:
        _KNOWN[network] = _found(model)
    return _KNOWN[network]


def _found(model: Model) -> Ends:
    network, vocab = model.network, model.n_ids
    try:
        structure = structure_of(network)
    except ModelError as error:
        why = str(error).partition(": ")[2]
        raise ModelError(f"the head of {network.architecture} cannot be read: {why}") from None
    ids = mx.array(np.linspace(0, vocab - 1, min(_PROBED, vocab)).astype(np.int32))
    tables = _tables(network, vocab)
    read, factor, notes = _reader(network, tables, ids)
    written, scale = _writer(network, structure, tables, ids)
    d_model = network.anatomy.d_model
    gain, centred = mx.ones(d_model), False
    if structure.is_norm:
        norm = dict(network.module.named_modules())[structure.final]
        known = gain_of(norm, d_model)
        if known is None:
            raise ModelError(f"the final norm of {network.architecture} is no plain norm")
        gain, _, centred = known
    return Ends(network, vocab, read, factor, written, scale, gain, centred, notes)


def _tables(network: Network, vocab: int) -> list[nn.Module]:
    """Modules outside the blocks with a row of the stream's width for every id."""
    inside = {id(m) for layer in network.layers for m in layer.modules()}
    found = []
    for _, module in network.module.named_modules():
        weight = module.get("weight")
        if id(module) in inside or not isinstance(weight, mx.array) or weight.ndim != 2:
            continue
        if weight.shape[0] < vocab or dense(module, mx.array([0])).shape[-1] != _width(network):
            continue
        found.append(module)
    return found


def _width(network: Network) -> int:
    return network.anatomy.d_model


def _streams(network: Network, ids: mx.array) -> mx.array:
    """What the first block is handed for prompts of one token each [id, d_model], float32."""
    run = forward(network, ids[:, None], keep=["resid_pre"], layers=[0], logits=False)
    found = run["resid_pre", 0]
    if found.ndim != 3:
        raise ModelError(
            f"the embedding of {network.architecture} cannot be read: its stream has "
            f"{found.ndim} axes, not [batch, position, d_model]"
        )
    return found[:, 0].astype(mx.float32)


def _reader(
    network: Network, tables: Sequence[nn.Module], ids: mx.array
) -> tuple[nn.Module | None, float, tuple[str, ...]]:
    """The table of embeddings and its factor, or None where no table gives the stream."""
    streams = _streams(network, ids)
    for table in tables:
        rows = dense(table, ids)
        factor = _ratio(rows, streams)
        if factor is not None:
            return table, factor, ()
        factor = _ratio(rows - rows.mean(axis=0), streams - streams.mean(axis=0))
        if factor is not None:
            note = "what a table of positions adds to the embedding is left out"
            return table, factor, (note,)
    return None, 1.0, ("embeddings are what enters block 0 for prompts of one token",)


def _writer(
    network: Network, structure: Structure, tables: Sequence[nn.Module], ids: mx.array
) -> tuple[nn.Module, float]:
    """The table of the head and the factor of its logits."""

    def head(y: mx.array) -> mx.array:
        run = Head(network, structure, y)
        return stream(run.run(mx.zeros(y.shape[:2], dtype=mx.int32))).astype(mx.float32)

    rng = np.random.default_rng(0)
    y = mx.array(rng.standard_normal((1, 4, _width(network))).astype(np.float32))
    # near 0 a soft-cap is linear, and a bias is no part of a difference
    y = (_SMALL * y).astype(network.anatomy.dtype)
    logits = (head(y) - head(-y))[0][:, ids] / 2
    for table in tables:
        scale = _ratio(y[0].astype(mx.float32) @ dense(table, ids).T, logits)
        if scale is not None:
            return table, scale
    raise ModelError(
        f"the head of {network.architecture} cannot be read: no table of its ids gives its logits"
    )


def _ratio(a: mx.array, b: mx.array) -> float | None:
    """The number k with b = k a up to rounding, or None."""
    k = number((a * b).sum() / mx.maximum((a * a).sum(), 1e-30))
    k = 1.0 if abs(k - 1) <= _ONE else k
    return k if k and distance(k * a, b) <= _CLOSE else None
