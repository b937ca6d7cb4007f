"""What is known about a network and its blocks: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlxroles.backend import mx

STATEFUL = {
    "afm7": "the last layers reuse keys and values of an earlier layer",
    "deepseek_v41": "a mixing state travels beside the stream",
    "gemma3n": "per-layer inputs of the tokens enter every block",
    "gemma4": "per-layer inputs and shared keys and values enter the blocks",
    "gemma4_text": "per-layer inputs and shared keys and values enter the blocks",
    "hunyuan": "every second layer reuses the keys and values of the one before",
    "kimi_k3": "residuals of earlier blocks travel beside the stream",
    "rwkv7": "the first layer's values travel beside the stream",
    "talkie": "the embedding enters every block again",
}
"""Architectures in which the residual stream is not all that one block hands to the next.

Measured by replacing the whole stream by another prompt's: the other prompt's logits do not come
out. A patch of the stream is partial there.
"""

NO_ATTENTION = "no softmax attention"
"""In every reason why a layer that is no attention layer has no attention sites."""


@dataclass(frozen=True)
class Part:
    """A submodule of a block whose output, times ``scale``, is added to the stream."""

    path: str
    scale: float


@dataclass(frozen=True)
class Block:
    """One layer: how its attention is seen and what of it can be captured."""

    kind: str
    """How attention is seen: ``sdpa`` (q, k, v), ``softmax`` (weights only) or ``none``."""
    heads: int = 0
    kv_heads: int = 0
    d_head: int = 0
    """Width of a head's output z."""
    attn_out: Part | None = None
    mlp_out: Part | None = None
    out_proj: str | None = None
    """Leaf whose input is the flattened z; only where the kernel is not seen."""
    rope: str | None = None
    """Leaf that returns q, then k [batch, head, position, d]; only where the kernel is not seen."""
    v_proj: str | None = None
    """Leaf that returns the flattened v; only where the kernel is not seen."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Site -> why it cannot be captured here."""


@dataclass(frozen=True)
class Anatomy:
    """What a forward needs to know about a network besides its own code."""

    blocks: tuple[Block, ...] = ()
    d_model: int = 0
    vocab: int = 0
    """Width of the logits; 0 where the network cannot run at all."""
    dtype: mx.Dtype = mx.float32
    """Of the stream that enters the first block."""
    direct: bool = False
    """The network's file calls ``mx.fast`` or ``mx.softmax`` itself."""
    resumable: bool = False
    """A run may start at any layer from its residual stream alone."""
    stateful: str | None = None
    """Why a full-stream patch is partial here, or None."""
    plain_cache: bool = False
    """Every layer has mlx_lm's plain key-value cache."""
    prefix: bool = False
    """Keys and values of the positions before a run can stand for them."""
    forbidden: Mapping[str, str] = field(default_factory=dict)
    """Shortcut, of ``shortcuts``, -> why runs of this network may not take it."""
    shortest: int = 1
    """Fewest positions of a run that shows q, k, v and z: latent attention hides them in one."""
    refused: str | None = None
    """Why nothing can be captured layer by layer, or None."""
