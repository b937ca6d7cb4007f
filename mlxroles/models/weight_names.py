"""Weight names of transformers 5, translated where an mlx_lm module expects others.

Most modules translate by themselves; these two only know the files that were on the hub when
they were written. A translation runs before the module's own ``sanitize``.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from mlxroles.backend import mx

_FUSED = ".mlp.experts."
_GPT2_PREFIX = "transformer."
_GPT2_BUFFERS = (".attn.bias", ".attn.masked_bias")


class Translation(NamedTuple):
    """When the stored names are not the expected ones, and what to do then."""

    needed: Callable[[Collection[str]], bool]
    apply: Callable[[dict[str, Any]], dict[str, Any]]


def renaming(
    module: str, names: Collection[str]
) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """The function that translates these weights for a module, None where none is needed."""
    known = TRANSLATIONS.get(module)
    return known.apply if known and known.needed(names) else None


def _has_gpt2_prefix(names: Collection[str]) -> bool:
    return any(name.startswith(_GPT2_PREFIX) for name in names)


def _without_gpt2_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    """Drops ``transformer.``, the causal masks stored as buffers, and the tied output matrix."""
    return {
        name.removeprefix(_GPT2_PREFIX): weight
        for name, weight in weights.items()
        if not name.endswith(_GPT2_BUFFERS) and name != "lm_head.weight"
    }


def _has_fused_experts(names: Collection[str]) -> bool:
    return any(name.endswith(f"{_FUSED}gate_up_proj") for name in names)


def _split_experts(weights: dict[str, Any]) -> dict[str, Any]:
    """gpt_oss: one (expert, in, out) matrix with gate and up interleaved becomes two (out, in)."""
    split: dict[str, Any] = {}
    for name, weight in weights.items():
        head, fused, part = name.rpartition(_FUSED)
        experts = head + fused
        match part if fused else "":
            case "gate_up_proj":
                transposed = weight.swapaxes(1, 2)
                split[f"{experts}gate_proj.weight"] = mx.contiguous(transposed[:, ::2])
                split[f"{experts}up_proj.weight"] = mx.contiguous(transposed[:, 1::2])
            case "gate_up_proj_bias":
                split[f"{experts}gate_proj.bias"] = mx.contiguous(weight[:, ::2])
                split[f"{experts}up_proj.bias"] = mx.contiguous(weight[:, 1::2])
            case "down_proj":
                split[f"{experts}down_proj.weight"] = mx.contiguous(weight.swapaxes(1, 2))
            case "down_proj_bias":
                split[f"{experts}down_proj.bias"] = weight
            case _:
                split[name] = weight
    return split


TRANSLATIONS = {
    "gpt2": Translation(_has_gpt2_prefix, _without_gpt2_prefix),
    "gpt_oss": Translation(_has_fused_experts, _split_experts),
}
"""By name of the mlx_lm module."""
