"""Components taken out of a model: its map less their rank-one matrices, at given positions.

The projection's own output loses a_c U[c], with a_c = x . V[:, c] of what enters it there: before
RoPE and any norm of q and k, and exactly what the model with the weight W - (V[:, c] U[c])^T would
compute. In given heads only the heads' part of U[c] goes (of V[:, c] in o).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.backend import mx
from mlxroles.components.decomposition import Components, Decomposition, Name, parse
from mlxroles.components.file import fitted
from mlxroles.components.maps import Map
from mlxroles.edits import LINEAR, Edit, LowRank
from mlxroles.errors import SpecError
from mlxroles.models.model import Model


def ablation(
    model: Model,
    components: Components,
    named: Iterable[str | Name],
    positions: Sequence[int] | None = None,
    share: float = 1.0,
    *,
    maps: Mapping[str, Map] | None = None,
) -> list[Edit]:
    """The edits that take components out together, one edit for every leaf that has some.

    Args:
        model: The model whose maps the components decompose.
        components: Of a file.
        named: ``L3.q:17``, or ``L3.q:17@H4+H5`` for its part in given heads; key-value heads
            in k and v.
        positions: Where they go; None for everywhere.
        share: How much of them goes; 1 takes them out, 0 changes nothing.
        maps: From ``fitted``, to spare its runs where many ablations are made.

    Raises:
        SpecError: a name that is none, a map, component or head that is not there, one that is
            named twice, or components of another model.
    """
    chosen = [parse(n, components) if isinstance(n, str) else n for n in named]
    check_once(chosen, components)
    if maps is None:
        used = {name.key: components.map(name.key) for name in chosen}
        maps = fitted(Components(used), model)
    by_leaf: dict[tuple[int, str], list[Name]] = {}
    for name in chosen:
        found = maps[name.key]
        by_leaf.setdefault((found.layer, found.path), []).append(name)
    edits = []
    for (layer, path), names in by_leaf.items():
        parts = [_part(model, maps[n.key], components.map(n.key), n) for n in names]
        v = np.concatenate([part.v for part in parts], axis=1)
        u = np.concatenate([part.u for part in parts]) * np.float32(-share)
        low = LowRank(path, mx.array(v), mx.array(u), _words(names, share))
        edits.append(Edit(LINEAR, layer, low, "add", positions))
    return edits


@dataclass(frozen=True)
class _Part:
    """What one component adds to a leaf."""

    v: np.ndarray
    """[d_in, 1]"""
    u: np.ndarray
    """[1, outputs of the leaf]"""


def _part(model: Model, place: Map, d: Decomposition, name: Name) -> _Part:
    v, u = d.factors([name.index], name.heads)
    if place.rows is None:
        return _Part(v, u)
    whole = np.zeros((1, place.leaf(model)["weight"].shape[0]), np.float32)
    whole[:, place.rows] = u
    return _Part(v, whole)


def check_once(names: Sequence[Name], components: Components) -> None:
    """Refuses what would be taken out twice.

    Raises:
        SpecError: a component is named twice in one head.
    """
    seen: set[tuple[str, int, int]] = set()
    for name in names:
        heads = name.heads or range(max(1, components.map(name.key).n_heads))
        own = {(name.key, name.index, h) for h in heads}
        if own & seen:
            raise SpecError(f"{name} is named twice; it can be taken out once")
        seen |= own


def _words(names: Sequence[Name], share: float) -> str:
    listed = ", ".join(str(n) for n in names[:8])
    listed += f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"take {listed} out" if share == 1 else f"take {share:g} of {listed} out"
