"""From decomposed maps, a harvest and a model to what is shown of a layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.components import offsets, weights
from mlxroles.components.counts import coactivation
from mlxroles.components.decomposition import Decomposition
from mlxroles.components.harvest_file import ALIVE, Harvest, MapHarvest
from mlxroles.report.components.views import (
    QK,
    LayerView,
    Likeness,
    MapView,
    Matrices,
    Together,
)
from mlxroles.studies.component_report.story import stories

Numbers = NDArray[np.float64]

MOST_IN_QK, MOST_IN_GRIDS, MOST_AS_MATRICES = 24, 16, 6
"""Components of a map, the most important first, that go into each kind of figure."""
_PIXELS = 48
_READS = (("q", "k"), ("k", "v"), ("q", "v"))
_FIRES = (("k", "v"), ("q", "k"))


@dataclass(frozen=True)
class Sources:
    """What a report is made from."""

    maps: Mapping[str, Decomposition]
    """Decomposed maps by key."""
    harvest: Harvest | None = None
    weight: Callable[[str], NDArray[Any]] | None = None
    """The model's own weight [d_out, d_in] of a map."""
    rotary: Callable[[int], tuple[offsets.Rotate, float]] | None = None
    """The position embedding of a layer and what its scores are multiplied by."""
    seed: int = 0
    _read: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def harvested(self, key: str) -> MapHarvest | None:
        """The harvest of a map, if there is one; read once for a layer."""
        if self.harvest is None or key not in self.harvest.keys:
            return None
        if key not in self._read:
            self._read[key] = self.harvest.map(key)
        return self._read[key]

    def pairs(self, first: str, second: str) -> NDArray[np.int64] | None:
        """At how many tokens components of two maps both fire; None where that was not counted."""
        if (first, second) not in self._read:
            found = None if self.harvest is None else self.harvest.pairs(first, second)
            self._read[first, second] = found
        return self._read[first, second]

    def forget(self) -> None:
        """Drops what was read of a layer's harvest."""
        self._read.clear()

    def of(self, layer: int) -> dict[str, Decomposition]:
        """The decomposed maps of a layer by kind; those of an MLP by their path."""
        found = [each for each in self.maps.values() if each.layer == layer]
        return {_name(each): each for each in found}


def layer_view(sources: Sources, layer: int, known: offsets.Offsets | None = None) -> LayerView:
    """Everything that is shown of a layer.

    Args:
        sources: Of all layers.
        layer: Its number.
        known: Its contributions of query to key components, where they were computed before.
    """
    sources.forget()
    found = sources.of(layer)
    views = {name: map_view(sources, each) for name, each in found.items()}
    qk = _qk(known, views) if known is not None else None
    likeness = tuple(
        _likeness(found[one], found[other], views[one], views[other])
        for one, other in _READS
        if one in found and other in found and found[one].V.shape[0] == found[other].V.shape[0]
    )
    together = tuple(
        each
        for one, other in _FIRES
        if one in found and other in found
        for each in _together(sources, views[one], views[other])
    )
    return LayerView(
        layer,
        tuple(views.values()),
        tuple(_matrices(sources, each, views[name]) for name, each in found.items()),
        likeness,
        together,
        qk,
        stories(sources, views, found, qk),
    )


def map_view(sources: Sources, found: Decomposition) -> MapView:
    """What is shown of one map."""
    norms = weights.norms(found)
    by_head = weights.head_norms(found) if found.n_heads else None
    harvested: dict[str, Any] = {}
    importance, limit = norms, ALIVE * float(norms.max(initial=0.0))
    one = sources.harvested(found.key)
    if one is not None and sources.harvest is not None:
        importance, limit = one.mean_importance, ALIVE
        harvested = {
            "density": one.firing / max(sources.harvest.n_tokens, 1),
            "signed": one.mean_activation,
        }
        if found.n_heads and found.kind != "o":
            harvested["activity"] = weights.head_activity(found, one.mean_abs_activation)
    return MapView(
        found.key,
        found.layer,
        _name(found),
        found.n_heads,
        importance,
        importance > limit,
        np.argsort(-importance, kind="stable"),
        norms,
        by_head,
        None if by_head is None else weights.spread(by_head),
        weights.chance_share(found.n_heads, found.d_head, seed=sources.seed)
        if found.n_heads > 1
        else float("nan"),
        **harvested,
    )


def contributions(sources: Sources, layer: int) -> offsets.Offsets | None:
    """What query and key components of a layer add to scores; None without both, or a model."""
    found = sources.of(layer)
    if sources.rotary is None or "q" not in found or "k" not in found:
        return None
    rotate, scale = sources.rotary(layer)
    q, k = (map_view(sources, found[n]).top(MOST_IN_QK) for n in ("q", "k"))
    if not len(q) or not len(k):
        return None
    query, key = offsets.heads_of(found["q"], q), offsets.heads_of(found["k"], k)
    values = offsets.contributions(query, key, rotate, offsets.OFFSETS, scale)
    chance = offsets.chance(
        query, key, values, rotate, offsets.OFFSETS, scale=scale, seed=sources.seed
    )
    where = np.array(offsets.OFFSETS)
    return offsets.Offsets(layer, q, k, where, values.astype(np.float32), chance)


def _qk(known: offsets.Offsets, views: Mapping[str, MapView]) -> QK:
    """Contributions as they act while both activations have the sign of their mean, if known."""
    values, (q, k) = known.values, (views[kind].signed for kind in "qk")
    if q is not None and k is not None:
        values = values * np.where(np.outer(q[known.q], k[known.k]) < 0, -1, 1).astype(np.float32)
    return QK(known.q, known.k, known.offsets, values, known.chance)


def _likeness(
    one: Decomposition, other: Decomposition, first: MapView, second: MapView
) -> Likeness:
    rows, columns = first.top(MOST_IN_GRIDS), second.top(MOST_IN_GRIDS)
    cosine = weights.similarity(one, other)[np.ix_(rows, columns)]
    chance = weights.chance_cosine(one.V.shape[0], cosine.size)
    return Likeness(one.key, other.key, rows, columns, cosine, chance)


def _together(sources: Sources, first: MapView, second: MapView) -> Sequence[Together]:
    """How often both fire, where that was counted."""
    both, one, other = (
        sources.pairs(first.key, second.key),
        sources.harvested(first.key),
        sources.harvested(second.key),
    )
    if sources.harvest is None or both is None or one is None or other is None:
        return []
    rows, columns = first.top(MOST_IN_GRIDS), second.top(MOST_IN_GRIDS)
    n, pairs = sources.harvest.n_tokens, both[np.ix_(rows, columns)]
    found = coactivation(one.firing[rows], other.firing[columns], pairs, n)
    chance = weights.chance_cosine(n, found.phi.size)
    return [Together(first.key, second.key, rows, columns, found, n, chance)]


def _matrices(sources: Sources, found: Decomposition, view: MapView) -> Matrices:
    """The target, VU and some components, small enough to draw."""
    shape = (found.U.shape[1], found.V.shape[0])
    names, grids = ["VU"], [pooled(np.asarray(found.U).T @ np.asarray(found.V).T, _PIXELS)]
    if sources.weight is not None:
        names.insert(0, "target")
        grids.insert(0, pooled(np.asarray(sources.weight(found.key)), _PIXELS))
    for component in view.top(MOST_AS_MATRICES):
        written, read = np.asarray(found.U)[component], np.asarray(found.V)[:, component]
        # the block with the largest entry of an outer product is where both vectors' are
        parts = (pooled(each[:, None], _PIXELS)[:, 0] for each in (written, read))
        names.append(f"{view.name}:{component}")
        grids.append(np.outer(*parts))
    is_by_column = found.kind == "o"
    pixels = grids[0].shape[1 if is_by_column else 0]
    heads = found.n_heads
    lines = tuple(pixels * h / heads - 0.5 for h in range(1, heads)) if heads <= _PIXELS / 3 else ()
    components = len(view.top(MOST_AS_MATRICES))
    return Matrices(found.key, tuple(names), tuple(grids), components, shape, lines, is_by_column)


def pooled(matrix: NDArray[Any], most: int) -> Numbers:
    """The matrix in at most so many rows and columns: of each block the entry largest in size."""
    found = np.asarray(matrix, dtype=np.float64)
    for axis in (0, 1):
        count = found.shape[axis]
        if count <= most:
            continue
        ends = np.linspace(0, count, most + 1).astype(int)[:-1]
        high = np.maximum.reduceat(found, ends, axis=axis)
        low = np.minimum.reduceat(found, ends, axis=axis)
        found = np.where(high >= -low, high, low)
    return found


def _name(found: Decomposition) -> str:
    """The map's name in its layer: ``q``, ``mlp.down_proj``."""
    return found.key.split(".", 1)[-1]
