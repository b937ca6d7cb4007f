"""Streams of any layer through a model's own norm, head, scale and soft-cap, block by block.

A vocabulary of 128,000 makes half a megabyte of every row of logits: rows are projected in blocks,
and whoever asks keeps of a block what is needed.
"""

from collections.abc import Iterator

from mlxroles.backend import mx
from mlxroles.errors import ModelError
from mlxroles.forward.asked import WHOLE_HEAD
from mlxroles.models.model import Model

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites that are as wide as the stream, which the head can read."""

BLOCK = 1 << 26
"""Bytes of float32 logits that are made at a time, about."""


def check(model: Model) -> None:
    """Refuses a model whose head cannot be given a stream.

    Raises:
        ModelError: naming the architecture and why.
    """
    anatomy = model.network.anatomy
    why = anatomy.refused
    if not why:
        why = model.network.block(model.n_layers - 1).missing.get("resid_post", "")
    if why:
        raise ModelError(f"there is no lens for {model.architecture}: {why}")


def mixes_positions(model: Model) -> bool:
    """Whether the model's head reads positions together, so that none can be left out."""
    return model.architecture in WHOLE_HEAD


def rows_per_block(model: Model) -> int:
    """Positions whose logits are made at a time."""
    return max(1, BLOCK // (4 * max(model.vocab, 1)))


def projected(
    model: Model, streams: mx.array, positions: list[int]
) -> Iterator[tuple[slice, mx.array]]:
    """Logits of some positions of every layer, as (rows, logits [row, vocab] float32).

    Rows count layer by layer: row l * len(positions) + n is the n-th of the positions at layer l.

    Args:
        model: Whose norm and head read the streams.
        streams: [layer, position, d_model], each layer's stream over a whole prompt.
        positions: Which are read, as indices into the second axis.
    """
    n = len(positions)
    index = mx.array(positions, dtype=mx.int32)
    if mixes_positions(model):
        for layer in range(streams.shape[0]):
            logits = model.unembed(streams[layer : layer + 1])[0, index]
            yield slice(layer * n, (layer + 1) * n), logits.astype(mx.float32)
        return
    rows = streams[:, index].reshape(-1, streams.shape[-1])
    size = rows_per_block(model)
    for start in range(0, rows.shape[0], size):
        block = rows[start : start + size]
        logits = model.unembed(block[None])[0]
        yield slice(start, start + block.shape[0]), logits.astype(mx.float32)


def log_softmax(logits: mx.array) -> mx.array:
    """Natural log of the softmax over the last axis, float32."""
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
