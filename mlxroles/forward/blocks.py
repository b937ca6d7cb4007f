"""A long prompt by blocks of queries, so that no array grows with its length squared."""

from collections.abc import Iterator, Sequence

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import ModelError
from mlxroles.forward.network import Network, Run
from mlxroles.forward.run import forward


def by_blocks(
    network: Network, tokens: mx.array, *, keep: Sequence[str], size: int
) -> Iterator[tuple[int, Run]]:
    """Runs tokens [batch, position] in blocks of at most ``size`` positions, one after the other.

    Each block reads the keys and values of those before it from mlx_lm's own cache, as in
    generation: scores are [batch, head, size, position] at most. A prompt of one block runs
    without a cache.

    Yields:
        The first position of the block, and what was kept of its positions.

    Raises:
        ModelError: several blocks of an architecture that keeps more than plain keys and values.
    """
    length = int(tokens.shape[1])
    blocks = np.array_split(np.arange(length), -(-length // size))
    if len(blocks) == 1:
        yield 0, forward(network, tokens, keep=keep, logits=False)
        return
    if not network.anatomy.plain_cache:
        raise ModelError(
            f"{network.architecture} has no plain key-value cache, so {length} tokens cannot run "
            "in parts"
        )
    from mlx_lm.models.cache import KVCache

    caches = [KVCache() for _ in network.layers]
    for block in blocks:
        first, end = int(block[0]), int(block[-1]) + 1
        run = forward(
            network,
            tokens[:, first:end],
            keep=keep,
            prefix=caches,  # ty: ignore[invalid-argument-type]
            logits=False,
        )
        mx.eval([cache.state for cache in caches if cache.keys is not None])
        yield first, run
