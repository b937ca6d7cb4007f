"""What transformers uses where a config is silent: the defaults of its config classes."""

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from mlxroles.models.findings import Findings, Reading, shown

_CHANGES_NUMBERS = re.compile(
    r"""
    .*_eps(ilon)? | .*soft_?cap.* | .*multiplier | .*scalar | .*_scal(e|ing)(_factor)? | route_scale
    | norm_topk_prob | n_group | topk_group | num_experts_per_tok | sliding_window | mup_enabled
    """,
    re.VERBOSE,
)
"""Keys that change numbers but no shape, so that loading the weights would not notice."""


@cache
def defaults(model_type: str) -> Mapping[str, Any]:
    """Default of every plain key of this model type; empty if transformers does not know it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {}
    known = CONFIG_MAPPING[model_type]
    if not dataclasses.is_dataclass(known):
        return {}
    found = {field.name: field.default for field in dataclasses.fields(known)}
    found["default_theta"] = getattr(known, "default_theta", None)
    plain = (bool, int, float, type(None))
    return {key: value for key, value in found.items() if isinstance(value, plain)}


def absent(reading: Reading, found: Findings) -> None:
    """Gives absent keys the default of transformers where mlx_lm's is another one."""
    reference = defaults(reading.model_type)
    for key, default in reading.served.defaults.items():
        if key in reading.text or key in found.overrides or key not in reference:
            continue
        if not _CHANGES_NUMBERS.fullmatch(key) or reference[key] == default:
            continue
        if reference[key] is None and "cap" not in key:
            continue
        if reading.served.requires(key):
            found.repair(key, reference[key], "the key is absent")
        elif reading.served.reads(key):
            found.repair(key, reference[key], f"absent, mlx_lm would have used {shown(default)}")
