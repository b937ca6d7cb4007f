"""How much memory a batch takes: predicted from sizes alone, so that its rows fit before they run.

The peak of a batch is weights + clean states + rows * (what a row has in memory at its widest).
On a CPU MLX allocates many operations ahead of the thread that computes, so that a row's
widest moment is not its largest array but about all that one block makes, at any depth. The
coefficients below were measured with ``mx.get_peak_memory``, sizes varied one by one; a GPU, whose
kernels for norms and rotations make no arrays on the way, stays below the prediction.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx.utils import tree_flatten

from mlxroles.backend import memory, mx, nn, on_gpu
from mlxroles.edits import STREAM_SITES
from mlxroles.engine.drive import BLOCK, BLOCKS
from mlxroles.errors import SpecError
from mlxroles.forward import Network
from mlxroles.machine import memory as machine
from mlxroles.text import safe_text

SHARE = 0.75
"""Share of the device's memory that is used where nothing else is asked for."""

STREAM = {4: 7, 2: 15}
"""Bytes per number -> arrays as wide as the stream that are alive at once; norms of a model in
half precision compute in float32."""
QUERIES = {4: 6, 2: 8}
"""The same for arrays as wide as all queries: rotations compute in float32 too."""
KEYS, KEYS_OF_BLOCKS = 5, 3
"""The same for all keys of a layer, and where attention runs by blocks of queries: those take
so many operations that not all of what comes before them is still there."""
SINKS = 3
"""Copies of the scores that MLX's kernel for CPUs makes where a model has attention sinks; it
works in place on one where it has none."""

_FAILURES = re.compile(
    r"unable to allocate|attempting to allocate|out of ?memory|insufficient memory|cannot allocate",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[kmgt]?i?b)\s*", re.IGNORECASE)
_IN_ONE = ("qkv_proj", "gate_up_proj", "query_key_value", "c_attn")
_WINDOWS = ("sliding_window", "window_size")
_TOP_K = ("top_k", "num_experts_per_tok", "num_selected_experts", "moe_top_k")


@dataclass(frozen=True)
class Sizes:
    """What the memory of a run depends on, of the widest block."""

    weights: int
    """Bytes."""
    n_layers: int
    d_model: int
    heads: int
    queries: int
    """heads * d_head"""
    keys: int
    """kv_heads * d_head"""
    hidden: int
    """Outputs per token of the MLP's matrices but the last, and of what else a block holds."""
    vocab: int
    itemsize: int = 4
    """Bytes per number of the stream."""
    scores: int = 1
    """Copies of the score matrices that a block makes; 0 for a kernel that makes none."""
    window: int | None = None
    """Keys that a windowed layer sees; a prompt that is longer makes its mask an array."""
    by_hand: bool = False
    """The model takes its softmax itself, without MLX's kernel."""
    parts: int = 1
    """Processes among which the heads are divided: weights, heads, queries, keys and hidden are
    those of one of them."""


def sizes(network: Network) -> Sizes:
    """The sizes of a loaded network on this device."""
    anatomy = network.anatomy
    blocks = anatomy.blocks
    by_hand = anatomy.direct and "sdpa" not in {b.kind for b in blocks}
    parts = network.parts
    queries = max((b.heads * b.d_head for b in blocks), default=0) // parts
    keys = max((b.kv_heads * b.d_head for b in blocks), default=0) // parts
    parameters = dict(tree_flatten(network.module.parameters()))
    sinks = any(path.endswith("sinks") for path in parameters)
    widest = max(_outputs(layer) for layer in network.layers)
    return Sizes(
        weights=sum(a.nbytes for a in parameters.values() if isinstance(a, mx.array)),
        n_layers=len(network.layers),
        d_model=anatomy.d_model,
        heads=max((b.heads for b in blocks), default=0) // parts,
        queries=queries,
        keys=keys,
        hidden=max(0, widest - queries - 2 * keys - 2 * anatomy.d_model),
        vocab=anatomy.vocab,
        itemsize=anatomy.dtype.size,
        scores=_copies(sinks=sinks, by_hand=by_hand),
        window=_window(network.module),
        by_hand=by_hand,
        parts=parts,
    )


def _copies(*, sinks: bool, by_hand: bool = False) -> int:
    """Copies of the score matrices on this device."""
    if on_gpu() and not by_hand:
        return 0
    return SINKS if sinks else 1


def _window(module: nn.Module) -> int | None:
    """The narrowest window of the layers, as models of mlx_lm name it."""
    parts = [part for _, part in module.named_modules()]
    found = [getattr(part, name, None) for part in parts for name in _WINDOWS]
    return min((n for n in found if type(n) is int and n > 0), default=None)


def _outputs(layer: nn.Module) -> int:
    """Outputs per token of all matrices of a block; of experts, of those that a token meets.

    What several matrices in one give out is cut into copies, and counts twice.
    """
    parts = layer.named_modules()
    chosen = [getattr(part, name) for _, part in parts for name in _TOP_K if hasattr(part, name)]
    top_k = next((n for n in chosen if isinstance(n, int)), 1)
    weights = [(path, part["weight"]) for path, part in parts if "weight" in part]
    return sum(
        w.shape[-2] * (top_k if w.ndim > 2 else 1) * (2 if path.endswith(_IN_ONE) else 1)
        for path, w in weights
        if w.ndim > 1
    )


def sizes_of_config(
    config: Mapping[str, Any], weights: int, n_layers: int, *, parts: int = 1
) -> Sizes:
    """The same from a config, for a plan without weights; what it does not say is taken as usual.

    Args:
        config: The part of ``config.json`` that describes the language model.
        weights: Bytes of the weight files; where several processes hold them, of one's share.
        n_layers: Number of blocks.
        parts: Number of such processes.
    """

    def size(*keys: str, default: int) -> int:
        return next((config[k] for k in keys if type(config.get(k)) is int), default)

    d_model = size("hidden_size", "n_embd", "d_model", "model_dim", "dim", default=4096)
    heads = size("num_attention_heads", "n_head", "n_heads", "num_heads", default=1)
    d_head = size("head_dim", default=d_model // heads)
    kv_heads = size("num_key_value_heads", default=heads)
    mlp = size("intermediate_size", "n_inner", "ffn_hidden_size", default=4 * d_model)
    experts = size(*_TOP_K, "num_experts_per_token", default=0)
    mlp = max(mlp, experts * size("moe_intermediate_size", default=mlp if experts else 0))
    windowed = "sliding_attention" in (config.get("layer_types") or ())
    windowed = windowed or bool(config.get("sliding_window_pattern"))
    by_hand = "attn_logit_softcapping" in config
    kind = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    return Sizes(
        weights=weights,
        n_layers=n_layers,
        d_model=d_model,
        heads=heads // parts,
        queries=heads * d_head // parts,
        keys=kv_heads * d_head // parts,
        hidden=2 * mlp // parts,
        vocab=size("vocab_size", default=0),
        itemsize=4 if kind.endswith("32") else 2,
        scores=_copies(sinks=config.get("model_type") == "gpt_oss", by_hand=by_hand),
        window=size("sliding_window", default=0) or None if windowed else None,
        by_hand=by_hand,
        parts=parts,
    )


def states(
    of: Sizes,
    *,
    prompts: int,
    length: int,
    sites: Iterable[str] = (),
    layers: int | None = None,
    recipient: bool = True,
) -> int:
    """Bytes that a clean run leaves behind.

    Args:
        of: The network.
        prompts: Its rows.
        length: Tokens of each.
        sites: What is kept, of ``edits.SITES``.
        layers: At how many layers; None for all.
        recipient: Whether streams, keys and values are kept for rows to join.
    """
    n = of.n_layers if layers is None else layers
    widths = {"q": of.queries, "z": of.queries, "k": of.keys, "v": of.keys}
    widths |= {"entropy": of.heads, "pattern": of.heads * length}
    # what is kept of heads is gathered: every process keeps that of all
    per_layer = sum(of.d_model if s in STREAM_SITES else of.parts * widths[s] for s in sites)
    own = (of.d_model + 2 * of.keys) * n + of.d_model if recipient else 0
    return prompts * length * of.itemsize * (per_layer * n + own)


def batch(of: Sizes, *, rows: int, length: int, start: int = 0, read: int = 1) -> int:
    """Bytes that rows have in memory at their widest, beside weights and clean states.

    Args:
        of: The network.
        rows: How many run together.
        length: Tokens of a row.
        start: First position that is computed.
        read: Positions of which logits are wanted.
    """
    own, item = length - start, of.itemsize
    width = STREAM.get(item, STREAM[2]) * of.d_model + QUERIES.get(item, QUERIES[2]) * of.queries
    width += of.hidden
    # the last layer puts its keys together once for all positions and once for those read
    late = item * of.keys * (own + 4 * length) if start and own > read else 0
    together = 0
    if start > 0 and rows > 1 and not of.by_hand and of.heads * own < 2 * of.keys:
        # one prefix is read in place, in float32: see caches.attend_shared
        block = own * item * (width + 2 * of.queries + KEYS * of.keys)
        block += 4 * own * of.heads * 3 * length
        block += 4 * own * (of.queries + 2 * of.keys) if item < 4 else 0
        together = 2 * 4 * start * of.keys
    else:
        masked = of.window is not None and length > of.window
        in_blocks = not (of.by_hand or masked or own < 2 * BLOCK) and of.scores > 0
        size = max(BLOCK, -(-own // BLOCKS)) if in_blocks else own
        scores = sum(
            min(size, own - begin) * (start + min(begin + size, own))
            for begin in range(0, own, size)
        )
        keys = of.keys * ((KEYS_OF_BLOCKS if in_blocks else KEYS) * own + 2 * start)
        block = item * (own * width + keys + of.scores * of.heads * scores)
    joined = 2 * own * of.d_model * item if start else 0
    logits = read * of.vocab
    after = logits * (item + 4) if item < 4 else 0
    return together + rows * max(block + logits * item, late, joined, after)


def predict(
    of: Sizes, *, rows: int, length: int, start: int = 0, read: int = 1, known: int = 0
) -> int:
    """Bytes at the peak of one batch; ``known`` are those of clean states, other as ``batch``."""
    return of.weights + known + batch(of, rows=rows, length=length, start=start, read=read)


def rows_that_fit(
    of: Sizes, limit: int, *, length: int, start: int = 0, read: int = 1, known: int = 0
) -> int:
    """Most rows of a batch that stays below ``limit`` bytes; 1 where not even one does."""
    left = limit - of.weights - known
    two, three = (batch(of, rows=n, length=length, start=start, read=read) for n in (2, 3))
    shared = 3 * two - 2 * three  # what all rows of a batch have together
    return max(1, (left - shared) // max(1, three - two))


def limit(option: str | None = None) -> int:
    """Bytes that a run may take: ``--memory``, else ``SHARE`` of what the device recommends.

    Args:
        option: ``12GB``, ``800 MiB`` or ``50%`` of the device's memory.

    Raises:
        SpecError: it is none of these, or nothing.
    """
    whole = memory().limit or machine.total()
    if option is None:
        return int(SHARE * whole)
    match = _AMOUNT.fullmatch(option)
    amount = 0.0 if match is None else float(match[1])
    if match is not None and match[2] == "%":
        found = whole * amount / 100 if amount <= 100 else 0.0
    else:
        unit = "b" if match is None else match[2].lower()
        found = amount * (1024 if "i" in unit else 1000) ** " kmgt".index(unit[0].replace("b", " "))
    if found < 1:
        raise SpecError(
            f"--memory '{safe_text(option, limit=40)}' is no amount of memory; write for example "
            "12GB, or 50% of what the device has"
        )
    return int(found)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that a smaller batch may do.

    On Linux without a GPU MLX cannot say so: there a failed allocation of its own ends the
    process, and only conversions to numpy raise. What is left is not to ask for too much.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _FAILURES.search(str(error)) is not None
