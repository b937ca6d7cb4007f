"""How something is ablated: the edits of one run, for each method and kind.

``zero`` puts zeros in, ``scale`` multiplies, ``mean`` puts in the mean over prompts and positions
of a reference set, ``resample`` what another prompt of it had at the same positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlxroles.backend import mx
from mlxroles.components.decomposition import Components
from mlxroles.components.edits import ablation as of_components
from mlxroles.components.maps import Map
from mlxroles.edits import Edit, project_out, selected
from mlxroles.errors import ModelError
from mlxroles.heads import by_layer
from mlxroles.models.model import Model
from mlxroles.studies.ablate.ablation import Ablation

Method = Literal["zero", "scale", "mean", "resample"]
METHODS: tuple[Method, ...] = ("zero", "scale", "mean", "resample")

Reference = Callable[[str, Sequence[int]], Mapping[int, mx.array]]
"""Site, layers -> layer -> array [1 or prompt, position or 1, ...] that is put in."""


Fitted = tuple[Components, Mapping[str, Map]]
"""Components, and the model's maps that they decompose."""


@dataclass(frozen=True)
class How:
    """How something is ablated, where."""

    method: Method = "zero"
    factor: float = 0.0
    """Of ``scale``."""
    positions: tuple[int, ...] | None = None
    """Where; None for everywhere."""


def edits(
    ablation: Ablation,
    how: How,
    model: Model,
    length: int,
    *,
    reference: Reference | None = None,
    directions: Mapping[int, np.ndarray] | None = None,
    components: Fitted | None = None,
) -> list[Edit]:
    """The edits of one run of prompts of one length.

    Args:
        ablation: With its heads, not slots.
        how: Method and positions.
        model: For the number of heads.
        length: Tokens of the prompts.
        reference: What ``mean`` and ``resample`` put in.
        directions: Layer -> direction [d_model].
        components: Those that an ablation of components names.

    Raises:
        ModelError: a layer has no such heads.
    """
    if ablation.kind == "components":
        assert components is not None
        share = 1.0 - how.factor if how.method == "scale" else 1.0
        found, maps = components
        return of_components(model, found, ablation.components, how.positions, share, maps=maps)
    if ablation.kind == "direction":
        assert directions is not None
        return [
            project_out("resid_post", layer, directions[layer], positions=how.positions)
            for layer in ablation.layers
        ]
    if ablation.kind == "values" and ablation.offsets is not None and how.positions is None:
        return list(_unread(ablation, how, model, length))
    places = _places(ablation, how, length)
    heads = _heads(ablation, model)
    filled = {}
    if how.method in ("mean", "resample"):
        assert reference is not None
        filled = reference(ablation.site, sorted(heads))
    made = []
    for layer, own in heads.items():
        where: dict[str, Any] = {"positions": places, "heads": own}
        if how.method == "scale":
            made.append(Edit(ablation.site, layer, how.factor, "scale", **where))
        elif how.method == "zero":
            made.append(Edit(ablation.site, layer, 0.0, **where))
        else:
            made.append(_put_in(Edit(ablation.site, layer, 0.0, **where), filled[layer]))
    return made


def _put_in(edit: Edit, array: mx.array) -> Edit:
    """The edit with its part of an array; one that has a single position fills all of them."""
    if array.shape[1] == 1:
        part = array if edit.heads is None else array[:, :, mx.array(list(edit.heads))]
        return Edit(edit.site, edit.layer, part, positions=edit.positions, heads=edit.heads)
    value = selected(edit, array)
    return Edit(edit.site, edit.layer, value, positions=edit.positions, heads=edit.heads)


def _heads(ablation: Ablation, model: Model) -> dict[int, tuple[int, ...] | None]:
    """Layer -> heads that change there, None for all or where there are none to choose from."""
    if not ablation.heads:
        return dict.fromkeys(ablation.layers)
    found: dict[int, tuple[int, ...] | None] = {}
    for layer, heads in by_layer(ablation.heads).items():
        block = model.network.block(layer)
        count = block.kv_heads or block.heads if ablation.site == "v" else block.heads
        if max(heads) >= count:
            raise ModelError(
                f"layer {layer} of {model.name} has {count or 'no'} heads; there is no head "
                f"{max(heads)} to ablate"
            )
        found[layer] = heads
    return found


def _places(ablation: Ablation, how: How, length: int) -> tuple[int, ...] | None:
    """Positions that change: for values those before the named ones, or all up to the last."""
    if how.positions is None or ablation.kind != "values":
        return how.positions
    if ablation.offsets is None:
        return tuple(range(max(how.positions) + 1))
    found = {p - d for p in how.positions for d in ablation.offsets}
    return tuple(sorted(p for p in found if 0 <= p < length))


def _unread(ablation: Ablation, how: How, model: Model, length: int) -> Iterator[Edit]:
    """For all queries at once: what each reads d tokens before itself is scaled or not read.

    For the query t this is the same as values of zero at t - d, and no other query is touched.
    """
    assert ablation.offsets is not None
    factor = how.factor if how.method == "scale" else 0.0
    mask = np.ones((length, length), np.float32)
    for offset in ablation.offsets:
        queries = np.arange(offset, length)
        mask[queries, queries - offset] = factor
    first = min(ablation.offsets)
    rows = tuple(range(first, length))
    value = mx.array(mask[None, None, first:])
    kv = by_layer(ablation.heads)
    for layer in ablation.layers:
        block = model.network.block(layer)
        if not block.heads:
            raise ModelError(f"layer {layer} of {model.name} has no heads whose values could go")
        group = block.heads // (block.kv_heads or block.heads)
        own = None
        if layer in kv:
            own = tuple(h for h in range(block.heads) if h // group in kv[layer])
        yield Edit("pattern", layer, value, "scale", rows, own)


def first_position(made: Sequence[Edit], length: int) -> int:
    """The first position that the edits can change, at most the last one."""
    return min(min(edit.first_position for edit in made), length - 1)
