"""A model divided over the ranks of a group by mlx_lm's own ``shard``: what can be, and how.

Every rank holds its part of the heads and of the widths of the MLPs; embeddings and, as a rule,
the head are whole on all of them. What cannot be divided is refused by name, from the class and the
config alone where that is enough.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxroles.anatomy import Anatomy, Block, architecture_of
from mlxroles.backend import mx, nn
from mlxroles.edits import ATTENTION_SITES
from mlxroles.errors import ModelError
from mlxroles.models import integrity
from mlxroles.models.implementation import implementation
from mlxroles.ranks import Ranks
from mlxroles.snapshots import weight_files

HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups")
WHOLE = re.compile(r"embed|lm_head|wte|norm|^output\.|router")
"""In names of weights that every process holds whole."""
LATENT = "kv_lora_rank"
"""In the config of latent attention, whose keys have as many heads as its queries."""


def check(config: Mapping[str, Any], size: int) -> None:
    """Refuses a model that cannot be divided into ``size`` parts, before its weights are read.

    Raises:
        ModelError: mlx_lm has no ``shard`` for its architecture, or its heads do not divide.
    """
    if config.get("model_file"):
        raise ModelError("--shard: a model that brings its own Python file cannot be divided")
    served = implementation(config)
    if not hasattr(served.model, "shard"):
        raise ModelError(
            f"--shard: mlx_lm cannot divide {served.name} over several processes; run it on one "
            "machine, or quantised"
        )
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    for key in (*HEADS, *(() if text.get(LATENT) else KEY_HEADS)):
        count = text.get(key)
        if type(count) is int and count % size:
            raise ModelError(
                f"--shard: {served.name} has {count} heads ({key}), which do not divide over "
                f"{size} processes"
            )


def held_bytes(folder: Path, parts: int) -> int:
    """Bytes of a model's weights that one of several processes holds, from the files' headers."""
    total = 0
    for file in weight_files(folder):
        for name, array in integrity.load_tensors(file).items():
            total += array.nbytes if WHOLE.search(name) else array.nbytes // parts
    return total


def divide(module: nn.Module, ranks: Ranks) -> None:
    """Keeps this rank's part of a model whose weights are still on the disk, and reads it.

    Weights are read block by block, so that no more than one block is whole in memory.

    Raises:
        ModelError: mlx_lm cannot divide it, or a matrix does not divide.
    """
    if not hasattr(module, "shard"):
        raise ModelError(f"--shard: mlx_lm cannot divide {architecture_of(module)}")
    try:
        module.shard(ranks.group)
    except (ValueError, AssertionError) as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(
            f"--shard: mlx_lm cannot divide {architecture_of(module)} over {ranks.size} processes "
            f"({text})"
        ) from error
    for layer in module.layers:
        mx.eval(layer.parameters())
        mx.clear_cache()
    mx.eval(module.parameters())


def whole(anatomy: Anatomy, ranks: Ranks) -> Anatomy:
    """The anatomy of the undivided model from what every rank has seen of its part.

    Raises:
        RanksError: the parts are not alike.
    """
    seen = [[_seen(block), dict(block.missing)] for block in anatomy.blocks]
    told = ranks.exchange({"refused": anatomy.refused, "blocks": seen})
    if any(part["refused"] != anatomy.refused for part in told) or any(
        [block[0] for block in part["blocks"]] != [block[0] for block in seen] for part in told
    ):
        raise ModelError("--shard: the processes do not hold parts of one model")
    parts = [[block[1] for block in part["blocks"]] for part in told]
    joined = zip(anatomy.blocks, zip(*parts, strict=True), strict=True)
    return replace(anatomy, blocks=tuple(_joined(block, lacks, ranks) for block, lacks in joined))


def _seen(block: Block) -> list[Any]:
    return [block.kind, block.heads, block.kv_heads, block.d_head]


def _joined(block: Block, lacks: Iterable[Mapping[str, str]], ranks: Ranks) -> Block:
    missing = {site: why for lacking in lacks for site, why in lacking.items()}
    if block.kind == "softmax":
        why = "its heads are not seen whole where several processes hold them"
        missing |= dict.fromkeys(ATTENTION_SITES, why)
    heads, kv_heads = block.heads * ranks.size, block.kv_heads * ranks.size
    return replace(block, heads=heads, kv_heads=kv_heads, missing=missing)
