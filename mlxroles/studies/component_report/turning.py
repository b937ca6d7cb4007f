"""How a model turns queries and keys by position, and whether that is all before the scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.anatomy import PROBE, distance
from mlxroles.backend import mx
from mlxroles.circuits import Rotary
from mlxroles.components.maps import Map, inputs
from mlxroles.components.offsets import Rotate
from mlxroles.forward import forward
from mlxroles.models.model import Model

LEFT_OUT = "between {} and the scores stands more than a rotation (a norm, a bias), left out in W"
_ROUGH = 0.05
"""Share of the largest number by which bfloat16 may be off."""


def rotate(found: Rotary) -> Rotate:
    """The rotation of a layer for arrays of numpy."""

    def turned(vectors: NDArray[Any], position: int) -> NDArray[Any]:
        return np.array(found.at(vectors.astype(np.float32), position))

    return turned


def left_out(model: Model, found: Rotary, maps: Mapping[str, Map]) -> str:
    """What stands between the maps of queries and keys and the scores besides; empty for nothing.

    The maps' outputs on a short run, turned, are compared with what enters the scores.
    """
    rows, layer = mx.array([PROBE]), found.layer
    chosen = {kind: maps[f"L{layer}.{kind}"] for kind in "qk"}
    entering = inputs(model, chosen.values(), rows)
    run = forward(model.network, rows, keep=["q", "k"], layers=[layer], logits=False)
    named = []
    for kind, m in chosen.items():
        x = entering[m.key][0].astype(mx.float32)
        y = (x @ mx.array(m.weight(model)).T).reshape(-1, m.n_heads, m.d_head)
        turned = mx.stack([found.at(y[p], p) for p in range(len(PROBE))])
        if distance(turned, run[kind, layer][0]) > _ROUGH:
            named.append(kind)
    return LEFT_OUT.format(" and ".join(named)) if named else ""
