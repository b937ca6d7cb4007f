"""Heads and values set to zero: what one run of a prompt lacks, and many such runs at once.

The prompt ends at its position t, at which everything is read. Runs of one prompt under several
conditions are rows of one batch: each edit scales by a mask of ones and zeros with a row per
condition; what comes before the first edit runs once. A value head is named by the query head that
reads it: with grouped heads, several do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import Edit, onto
from mlxroles.engine.sweep import worth
from mlxroles.errors import SpecError
from mlxroles.forward import Prefix
from mlxroles.heads import by_layer, head_name
from mlxroles.models.model import Model

Head = tuple[int, int]
"""Layer and head."""

_KEYS = 16
"""Keys that runs after a prefix read at once, for each position worth computing at once."""


@dataclass(frozen=True)
class Condition:
    """What one run lacks."""

    name: str
    heads: tuple[Head, ...] = ()
    """Query heads whose output z is zero."""
    everywhere: bool = False
    """They are zero at all positions, not at t alone."""
    values: tuple[tuple[int, int | None], ...] = ()
    """Layer and the query head whose value head is zero; None for all heads of the layer."""
    offsets: tuple[int, ...] | None = (1,)
    """Values are zero at the positions t-d; None for all positions, t among them."""
    edits: tuple[Edit, ...] = ()
    """What else is changed; runs that have the same ones, in a row, are one batch."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the runs showed at t, one row per condition."""

    sites: Mapping[str, Mapping[int, np.ndarray]]
    """Site -> layer -> float32: ``attn_out`` [row, d_model], ``pattern`` [row, head, key]."""
    logits: np.ndarray | None
    """[row, vocab], float32."""


def name_of(heads: Sequence[Head]) -> str:
    """The heads in words: ``L0H1, L2H5``."""
    return ", ".join(head_name(layer, head) for layer, head in heads)


def run(
    model: Model,
    ids: Sequence[int],
    conditions: Sequence[Condition],
    keep: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    *,
    logits: bool = True,
) -> Seen:
    """Runs a prompt, whose last position is t, under every condition.

    Args:
        model: Any.
        ids: The prompt up to t.
        conditions: At least one.
        keep: ``attn_out`` and ``pattern``, read at t.
        layers: Layers of which they are read; None for all that have them.
        logits: Whether the logits at t are wanted.

    Raises:
        ModelError: heads or values cannot be edited in this architecture, or a site not be kept.
        SpecError: a layer or head that the model does not have.
        FloatingPointError: what was read is not all finite.
    """
    made = [*edits(model, conditions, len(ids)), *(e for c in conditions for e in c.edits)]
    before = _prefix(model, ids, made)
    first = before[0].offset if before else 0
    # rows have the keys of the whole prompt, which is why they are not many times as many
    rows = max(1, min(worth() // (len(ids) - first), _KEYS * worth() // len(ids)))
    alike = [list(some) for _, some in groupby(conditions, key=lambda c: [*map(id, c.edits)])]
    parts = [some[i : i + rows] for some in alike for i in range(0, len(some), rows)]
    found = [_part(model, ids, part, (before, keep, layers), logits=logits) for part in parts]
    sites = {
        site: {i: np.concatenate([f.sites[site][i] for f in found]) for i in found[0].sites[site]}
        for site in keep
    }
    said = [f.logits for f in found if f.logits is not None]
    seen = Seen(sites, np.concatenate(said) if said else None)
    for array in [*(a for kept in sites.values() for a in kept.values()), *said]:
        if not np.isfinite(array).all():
            raise FloatingPointError("what a run shows is not all finite numbers")
    return seen


def _prefix(model: Model, ids: Sequence[int], made: Sequence[Edit]) -> list[Prefix] | None:
    """Keys and values of what comes before the first edit, which is the same in all rows."""
    first = min((edit.first_position for edit in made), default=len(ids) - 1)
    anatomy = model.network.anatomy
    if not anatomy.prefix or not 0 < first <= len(ids) - anatomy.shortest:
        return None
    return model.prefix([list(ids[:first])])


def _part(
    model: Model,
    ids: Sequence[int],
    conditions: Sequence[Condition],
    how: tuple[list[Prefix] | None, Sequence[str], Sequence[int] | None],
    *,
    logits: bool,
) -> Seen:
    """As ``run``, of conditions that run as one batch; ``how`` is (prefix, keep, layers)."""
    before, keep, layers = how
    first = before[0].offset if before else 0
    whole = [*edits(model, conditions, len(ids)), *conditions[0].edits]
    cut = [onto(edit, first, len(ids)) for edit in whole]
    made = model.run(
        [list(ids[first:])] * len(conditions),
        keep,
        [edit for edit in cut if edit is not None],
        "last" if logits else None,
        layers=layers,
        prefix=before,
        logits=logits,
    )
    sites = {site: {i: _last(site, made[site, i]) for i in made.layers(site)} for site in keep}
    said = made.logits
    return Seen(sites, None if said is None else np.array(said.astype(mx.float32))[:, 0])


def _last(site: str, array: mx.array) -> np.ndarray:
    """An array at a site, at its last position or query."""
    cut = array[:, :, -1] if site == "pattern" else array[:, -1]
    return np.array(cut.astype(mx.float32))


def edits(model: Model, conditions: Sequence[Condition], length: int) -> Iterator[Edit]:
    """Edits of a batch with one row per condition; t is the last of ``length`` positions.

    Raises:
        SpecError: a layer or head that the model does not have.
    """
    outputs: dict[int, np.ndarray] = {}
    values: dict[int, np.ndarray] = {}
    for row, condition in enumerate(conditions):
        where = slice(None) if condition.everywhere else slice(length - 1, None)
        for layer, head in condition.heads:
            sizes = _sizes(model, layer, head)
            shape = (len(conditions), length, sizes[0], 1)
            outputs.setdefault(layer, np.ones(shape, np.float32))[row, where, head] = 0
        for layer, head in condition.values:
            sizes = _sizes(model, layer, head)
            shape = (len(conditions), length, sizes[1], 1)
            mask = values.setdefault(layer, np.ones(shape, np.float32))
            at = slice(None) if head is None else kv_head(sizes, head)
            mask[row, _positions(condition.offsets, length), at] = 0
    for site, masks in (("v", values), ("z", outputs)):
        for layer, mask in sorted(masks.items()):
            yield _edit(site, layer, mask)


def _positions(offsets: Sequence[int] | None, length: int) -> slice | list[int]:
    """Positions of values; those before the prompt's first are none."""
    if offsets is None:
        return slice(None)
    return [length - 1 - d for d in offsets if 0 <= d < length]


def _edit(site: str, layer: int, mask: np.ndarray) -> Edit:
    """The edit that scales by a mask [row, position, head, 1], where it is not 1."""
    touched = np.flatnonzero((mask != 1).any(axis=(0, 2, 3)))
    if len(touched) == mask.shape[1]:
        return Edit(site, layer, mx.array(mask), "scale")
    places = [int(p) for p in touched]
    return Edit(site, layer, mx.array(mask[:, places]), "scale", places)


def kv_head(sizes: tuple[int, int], head: int) -> int:
    """The value head that a query head reads, of (query heads, value heads)."""
    return head // (sizes[0] // sizes[1])


def _sizes(model: Model, layer: int, head: int | None) -> tuple[int, int]:
    """Query heads and value heads of a layer."""
    if not 0 <= layer < model.n_layers:
        raise SpecError(f"layer {layer} is outside 0..{model.n_layers - 1} of {model.name}")
    block = model.network.block(layer)
    if not block.heads:
        why = next(iter(block.missing.values()), "it has no softmax attention")
        raise SpecError(f"layer {layer} of {model.name} has no heads: {why}")
    if head is not None and not 0 <= head < block.heads:
        raise SpecError(
            f"{head_name(layer, head)} is not in {model.name}: layer {layer} has the heads "
            f"0..{block.heads - 1}"
        )
    return block.heads, block.kv_heads or block.heads


def random_sets(
    heads: Sequence[Head], n_heads: Mapping[int, int], count: int, rng: np.random.Generator
) -> list[tuple[Head, ...]]:
    """Other sets with as many heads of the same layers, all different; fewer where there are less.

    Sets without any of the heads come first; others follow where there are not enough of those.

    Args:
        heads: The set that they are compared with; it is none of them.
        n_heads: Layer -> heads that it has.
        count: How many are wanted.
        rng: Draws them.
    """
    own = by_layer(heads)
    seen = {tuple(sorted(heads))}
    found: list[tuple[Head, ...]] = []
    for avoided in (True, False):
        pools = {layer: _pool(n_heads[layer], at, avoided=avoided) for layer, at in own.items()}
        for _ in range(50 * count):
            if len(found) == count:
                return found
            drawn = tuple(
                (layer, int(head))
                for layer, pool in pools.items()
                for head in sorted(rng.choice(pool, size=len(own[layer]), replace=False))
            )
            if drawn not in seen:
                seen.add(drawn)
                found.append(drawn)
    return found


def _pool(n_heads: int, own: Sequence[int], *, avoided: bool) -> list[int]:
    """Heads of a layer to draw from: those that are not in the set, if they are enough."""
    others = [head for head in range(n_heads) if head not in own]
    return others if avoided and len(others) >= len(own) else list(range(n_heads))
