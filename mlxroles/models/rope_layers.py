"""Corrections to rope layers that mlx_lm builds otherwise than the config says."""

import math
from collections.abc import Mapping
from typing import Any

from mlx_lm.models.rope_utils import YarnRoPE

from mlxroles.backend import mx, nn


def correct(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Changes the rope layers of a freshly built model in place.

    Args:
        model: any mlx_lm model.
        settings: ``dims`` (rotated dimensions per head) for plain layers; ``yarn``, a rope
            dictionary with ``rope_theta``, for YaRN layers.
    """
    for layer in model.modules():
        if "dims" in settings and type(layer) is nn.RoPE:
            layer.dims = settings["dims"]
        if "yarn" in settings and isinstance(layer, YarnRoPE):
            layer._freqs = yarn_wavelengths(layer.dims, settings["yarn"])
            if settings["yarn"].get("attention_factor") is not None:
                layer.mscale = settings["yarn"]["attention_factor"]


def yarn_wavelengths(dims: int, rope: Mapping[str, Any]) -> mx.array:
    """Radians per position, inverted, of a YaRN rope: ``(dims // 2,)`` (Peng et al. 2023).

    Unlike mlx_lm's, the ends of the ramp are only rounded to whole dimensions if ``truncate``.
    """
    base, factor = rope["rope_theta"], rope["factor"]
    trained = rope["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        return dims * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001
    plain = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    ramp = mx.clip((mx.arange(dims // 2, dtype=mx.float32) - low) / width, 0, 1)
    return 1.0 / (ramp / (factor * plain) + (1 - ramp) / plain)
