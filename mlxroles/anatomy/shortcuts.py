"""Which shortcuts of the sweep engine an architecture forbids, and why.

A run that joins late begins at a layer from the residual stream that enters it; a run that
starts late begins at a position with the keys and values of the positions before it. Whether a
loaded network allows that is read off its blocks and its caches; ``forbidden_by_type`` answers
from the name of an mlx_lm model file alone, for a plan without weights.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mlxroles.anatomy.block import STATEFUL
from mlxroles.backend import nn

JOIN_LATE, START_LATE = "join late", "start late"

BY_POSITION = ("KVCache", "RotatingKVCache", "ChunkedKVCache")
"""Caches of keys and values, one per position; those that drop old ones do so by a window that
the model's own masks hide as well."""

BESIDES = "its blocks hand on more than their stream"
STATE = "some of its layers keep a state instead of keys and values by position"
SEVERAL = "its layers keep a second set of keys beside those of their attention"
UNEQUAL = "not every layer has a key-value cache of its own"

NOT_CAUSAL = {"phi3small": "its block-sparse layers show later positions to earlier ones"}
"""Architectures whose caches would allow a prefix and whose numbers do not."""

_NO_PREFIX = {
    STATE: (
        "baichuan_m1 bailing_hybrid bailing_moe_linear bailing_moe_v3 falcon_h1 gear "
        "granitemoehybrid jamba kimi_k3 kimi_linear lfm2 lfm2-vl lfm2_moe longcat_flash_ngram "
        "mamba mamba2 nemotron_h olmo_hybrid plamo2 prism_hadamard_qwen35 qwen3_5 qwen3_5_moe "
        "qwen3_next recurrent_gemma rwkv7"
    ),
    SEVERAL: "deepseek_v32 deepseek_v41 glm_moe_dsa longcat_flash minimax_m3_vl",
    UNEQUAL: "afm7 gemma3n gemma4 gemma4_text nemotron-nas",
}


def forbidden(
    architecture: str, caches: Sequence[Any], n_layers: int, *, besides: str | None
) -> dict[str, str]:
    """Shortcut -> why a network may not take it; empty where all are allowed.

    Args:
        architecture: Name of its mlx_lm model file.
        caches: What mlx_lm makes for it, from ``caches_of``.
        n_layers: Number of its blocks.
        besides: Why its stream is not all that a block hands to the next, or None.
    """
    reasons = {JOIN_LATE: besides, START_LATE: _no_prefix(architecture, caches, n_layers)}
    return {shortcut: why for shortcut, why in reasons.items() if why}


def forbidden_by_type(architecture: str) -> dict[str, str]:
    """The same from the name of an mlx_lm model file, for models of its usual shape.

    Files that this version does not know are taken to allow everything; the plan of a loaded
    model is the one that counts.
    """
    join = STATEFUL.get(architecture)
    if architecture == "muse_spark":
        join = BESIDES
    start = NOT_CAUSAL.get(architecture)
    for why, names in _NO_PREFIX.items():
        start = why if architecture in names.split() else start
    reasons = {JOIN_LATE: join, START_LATE: start}
    return {shortcut: why for shortcut, why in reasons.items() if why}


def caches_of(net: nn.Module) -> list[Any]:
    """The caches that mlx_lm makes for a network, one per layer as a rule."""
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(net)


def _no_prefix(architecture: str, caches: Sequence[Any], n_layers: int) -> str | None:
    if architecture in NOT_CAUSAL:
        return NOT_CAUSAL[architecture]
    parts = list(_parts(caches))
    if "ArraysCache" in parts:
        return STATE
    if not {*parts} <= {*BY_POSITION} or len(parts) > n_layers:
        return SEVERAL
    return None if len(parts) == n_layers else UNEQUAL


def _parts(caches: Sequence[Any]) -> Iterator[str]:
    """Names of the classes of the caches, and of those inside a list of them."""
    for cache in caches:
        inside = getattr(cache, "caches", None)
        if inside is None:
            yield type(cache).__name__
        else:
            yield from _parts(inside)
