"""Components from another program's state dict, saved as safetensors.

Read are the keys of the published decomposition program (Goodfire's spd): ``_components`` with the
module's path in dashes and U and V below it, the causal-importance functions ``_ci_fns`` (once
``_gates``), also below ``ci_fn``, or the one ``_global_ci_fn`` of all maps, and the weights of
``target_model`` (once ``patched_model``, with ``.original``), with which the sum of the components
is compared. What belongs to no linear map of a layer (components of an embedding, say) is left out
and named; so are importance functions that are no MLPs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlxroles.components.decomposition import HEADED, Components, Decomposition
from mlxroles.components.file import PICKLES, identity
from mlxroles.components.importance import ALL, importance_of
from mlxroles.components.maps import Map, decomposable
from mlxroles.errors import ModelError, SpecError, StoreError, VectorError
from mlxroles.models.model import Model
from mlxroles.models.weights import SEPARATE
from mlxroles.store.files import shown
from mlxroles.text import safe_text
from mlxroles.vectors.tensors import Tensor, open_tensors

OUTPUT = ("o_proj", "wo", "out_proj", "c_proj")
SAME = {
    "c_fc": ("up_proj", "fc1", "dense_h_to_4h", "fc_in"),
    "c_proj": ("down_proj", "fc2", "dense_4h_to_h", "fc_out"),
}
"""A leaf of an MLP in the state dict, and what mlx_lm's architectures call it."""
_COMPONENTS = re.compile(r"(?:.*\.)?_?components\.(?P<module>[^.]+)\.(?P<which>[UV])")
_OLD = re.compile(r"(?:patched_model|target_model)\.(?P<module>.+)\.components\.(?P<which>[UV])")
_FUNCTION = re.compile(
    r"(?:ci_fn\.)?(?:(?:_ci_fns|_gates|ci_fns|gates|ci_fn)\.(?P<module>[^._][^.]*)|_global_ci_fn)\."
    r"(?:layers\.)?(?P<part>\d+\.[Wb])"
)
_OTHER_FUNCTION = re.compile(r"(?:ci_fn|_?ci_fns|_?gates|_global_ci_fn)\..+")
_TARGET = re.compile(r"(?:target_model|patched_model)\.(?P<module>.+?)(?:\.original)?\.weight")
_MODULE = re.compile(r"(?:.*\.)?(?:h|layers|blocks|block)\.(?P<layer>\d+)\.(?P<rest>.+)")


class _Place(NamedTuple):
    """Where a module is."""

    layer: int
    kind: str
    path: str
    """In its layer."""


@dataclass
class _State:
    """The parts of a state dict, by module path with dots."""

    factors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    functions: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Module, or ``importance.ALL`` for all of them -> ``0.W``, ``0.b``, ..."""
    others: list[str] = field(default_factory=list)
    """Names of parameters of importance functions that are no MLPs."""
    targets: dict[str, Tensor] = field(default_factory=dict)


def read_state(
    path: Path | str, *, model: Model | None = None, d_head: int | None = None
) -> Components:
    """The components of a state dict, with their causal-importance functions where it has them.

    Args:
        path: A .safetensors file.
        model: The model to which they belong: its heads are taken, and its maps must fit.
        d_head: Width of a head, where no model says it.

    Raises:
        SpecError: no such file, a pickle, no components in it, some that make no map, or maps that
            the model lacks.
        StoreError: the file cannot be read.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in PICKLES:
        raise SpecError(
            f"{shown(path)} may hold a pickle, which runs code when it is opened; save the state "
            "dict with safetensors.torch.save_file and import that"
        )
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise SpecError(f"{shown(path)} is no state dict saved as .safetensors")
    try:
        state = _sorted(open_tensors(path))
    except VectorError as error:
        raise SpecError(str(error)) from None
    if not state.factors:
        raise SpecError(
            f"{shown(path)} has no components; expected keys such as "
            "_components.h-0-attn-q_proj.U and .V"
        )
    places = {} if model is None else _maps_of(model, state.factors)
    found, names, left_out = {}, {}, []
    for module, pair in sorted(state.factors.items()):
        place = _placed(module)
        if place is None or {*pair} != {"U", "V"}:
            left_out.append(module)
            continue
        made = _decomposition(place, pair, places.get(module), d_head)
        if made.key in found:
            raise SpecError(
                f"{shown(path)} has components of {made.key} twice; it holds two models"
            )
        found[made.key], names[module] = made, made.key
    if not found:
        raise SpecError(f"{shown(path)} has components of no q, k, v, o or MLP map")
    importance, why_not = _importance(state, names)
    meta = {
        "model": None if model is None else identity(model),
        "made": "imported",
        "from": safe_text(path.name, limit=120),
        "modules": {key: module for module, key in names.items()},
        "left_out": left_out,
        "no_importance": why_not,
        "unexplained": _unexplained(state, found, names),
    }
    components = Components(found, importance, meta)
    try:
        importance_of(components)
    except StoreError as error:
        raise SpecError(f"{shown(path)}: {error}") from None
    return components


def _sorted(tensors: Mapping[str, Tensor]) -> _State:
    state = _State()
    for name, tensor in tensors.items():
        if match := _COMPONENTS.fullmatch(name) or _OLD.fullmatch(name):
            module = match["module"].replace("-", ".")
            state.factors.setdefault(module, {})[match["which"]] = tensor
        elif match := _FUNCTION.fullmatch(name):
            module = (match["module"] or ALL).replace("-", ".")
            state.functions.setdefault(module, {})[match["part"]] = tensor
        elif _OTHER_FUNCTION.fullmatch(name):
            state.others.append(name)
        elif match := _TARGET.fullmatch(name):
            state.targets[match["module"]] = tensor
    return state


def _placed(module: str) -> _Place | None:
    """Where a module is; None for one that is no map of a layer."""
    match = _MODULE.fullmatch(module)
    if match is None:
        return None
    path = match["rest"]
    last, in_attention = path.rsplit(".", 1)[-1], "att" in path.split(".")[0]
    if not in_attention:
        return _Place(int(match["layer"]), "mlp", path)
    named = {name: kind for kind, names in SEPARATE.items() for name in names}
    kind = named.get(last, "o" if last in OUTPUT else None)
    return None if kind is None else _Place(int(match["layer"]), kind, path)


def _maps_of(model: Model, modules: Iterable[str]) -> dict[str, Map]:
    """The model's map of every module.

    Raises:
        SpecError: it has none.
    """
    placed = {module: place for module in modules if (place := _placed(module)) is not None}
    last = max((place.layer for place in placed.values()), default=0)
    if last >= model.n_layers:
        raise SpecError(
            f"the components are of layers up to {last}; {model.name} has layers "
            f"0..{model.n_layers - 1}: they belong to another model"
        )
    try:
        maps = decomposable(model, {place.kind for place in placed.values()})
    except ModelError as error:
        raise SpecError(f"the components do not fit {model.name}: {error}") from None
    return {module: _fitting(model, maps, place) for module, place in placed.items()}


def _fitting(model: Model, maps: Mapping[str, Map], place: _Place) -> Map:
    if place.kind in HEADED:
        return maps[f"L{place.layer}.{place.kind}"]
    last = place.path.rsplit(".", 1)[-1]
    for name in (last, *SAME.get(last, ())):
        for m in maps.values():
            if (m.layer, m.kind) == (place.layer, "mlp") and m.path.rsplit(".", 1)[-1] == name:
                return m
    shown_path = safe_text(place.path, limit=80)
    raise SpecError(f"{model.name} has no map for {shown_path} of layer {place.layer}")


def _decomposition(
    place: _Place, pair: Mapping[str, Tensor], own: Map | None, d_head: int | None
) -> Decomposition:
    v, u = pair["V"].read(...), pair["U"].read(...)
    layer, kind = place.layer, place.kind
    key = f"L{layer}.{kind if kind in HEADED else place.path}" if own is None else own.key
    if v.ndim != 2 or u.ndim != 2:
        raise SpecError(
            f"{safe_text(key, limit=80)} has V {v.shape} and U {u.shape}; matrices were expected"
        )
    if own is not None and (v.shape[0], u.shape[1]) != (own.d_in, own.d_out):
        raise SpecError(
            f"{key} of the components maps {v.shape[0]} to {u.shape[1]}, that of the model "
            f"{own.d_in} to {own.d_out}: they belong to another model"
        )
    heads, width = (0, 0) if own is None else (own.n_heads, own.d_head)
    if own is None and kind in HEADED:
        whole = v.shape[0] if kind == "o" else u.shape[1]
        if d_head is None or whole % d_head:
            raise SpecError(
                f"{key} has {whole} numbers for its heads; name the model with --model, or the "
                "width of a head with --d-head"
            )
        heads, width = whole // d_head, d_head
    try:
        return Decomposition(key, layer, kind, v, u, heads, width)
    except ValueError as error:
        raise SpecError(safe_text(str(error), limit=200)) from None


def _importance(
    state: _State, names: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], str | None]:
    """Parameters of the functions by map, or of that of all maps; or none, and why if there is one.

    That of all maps reads every module's input, in the order of the modules' names.
    """
    own, missing = state.functions, [module for module in names if module not in state.functions]
    if ALL in own and {*names} == {*state.factors}:
        chosen = {ALL: ALL}
    elif ALL in own:
        others = ", ".join(safe_text(m, limit=60) for m in state.factors if m not in names)
        return {}, f"its importance function also reads {others}, so it is not taken over"
    elif not missing:
        chosen = dict(names)
    elif len(missing) < len(names):
        shown_module = safe_text(missing[0], limit=60)
        return {}, f"{shown_module} has no importance function, so those of others are not taken"
    elif state.others:
        name = safe_text(state.others[0], limit=60)
        return {}, f"its importance function ({name}, ...) is no MLP and is not taken over"
    else:
        return {}, None
    return {
        f"{key}.{part}": tensor.read(...)
        for module, key in chosen.items()
        for part, tensor in sorted(own[module].items())
    }, None


def _unexplained(
    state: _State, found: Mapping[str, Decomposition], names: Mapping[str, str]
) -> float | None:
    """Share of the target weights' squares that the components do not sum to; None if untold.

    Some models keep weights as [d_in, d_out]; those that are not square tell.
    """
    if not {*names} <= {*state.targets}:
        return None
    fits = [state.targets[m].shape == (found[k].d_out, found[k].d_in) for m, k in names.items()]
    total = rest = 0.0
    for module, key in names.items():
        target, made = state.targets[module].read(...).astype(np.float64), found[key].weight()
        target = target if all(fits) else target.T
        if target.shape != made.shape:
            return None
        total += float((target**2).sum())
        rest += float(((target - made) ** 2).sum())
    return rest / total if total else None
