"""What tensors of other programs mean as vectors: which name, which layer, which row.

``direction.N`` of GGUF control vectors (llama.cpp, repeng) acts on the output of block N counted
from 0, which is ``resid_post`` at layer N here. A table with one row more than the model has
layers begins with the embedding, as ``hidden_states`` of transformers does, and is refused: its
row N + 1 would be layer N.
"""

import re
from dataclasses import dataclass

import numpy as np

from mlxroles.errors import VectorError
from mlxroles.text import did_you_mean, ranges, safe_text
from mlxroles.vectors.tensors import Tensor, listed_tensors
from mlxroles.vectors.vectors import Vectors, is_name

_LAYER_KEY = re.compile(
    r"(?:(?P<name>.+?)[./])?(?:(?:layers?|blocks?|direction)[._]?)?(?P<layer>\d{1,6})"
    r"(?:\.(?:hook_)?(?:resid_post|vector|weight|direction))?"
)
_LAYER_WORDS = ("layer", "layers", "block", "blocks", "direction", "directions")
"""Before the number of a layer these are no names."""
_ROW = re.compile(r"(?P<name>.*)\[(?P<row>\d{1,9})\]")


@dataclass(frozen=True)
class Fit:
    """What vectors must fit."""

    shown: str
    """The file, as messages call it."""
    stem: str
    """Name of a vector that has none of its own."""
    n_layers: int
    d_model: int
    layer: int | None
    """Layer of vectors that do not say theirs; of others the one that is wanted."""

    def check_layer(self, layer: int) -> None:
        """Refuses a layer that the model does not have."""
        if not 0 <= layer < self.n_layers:
            raise VectorError(
                f"{self.shown}: layer {layer} is outside 0..{self.n_layers - 1} of this model"
            )

    def check_width(self, name: str, width: int) -> None:
        """Refuses a vector of another length than the model's stream."""
        if width != self.d_model:
            raise VectorError(
                f"{self.shown}: '{safe_text(name, limit=60)}' has {width} numbers, the model's "
                f"stream has {self.d_model}; it belongs to another model"
            )


def vectors_of(tensors: dict[str, Tensor], wanted: str | None, fit: Fit) -> Vectors:
    """The vectors that a file's tensors are, or the one that is wanted.

    Raises:
        VectorError: a tensor that is no vector of this model, a layer that must be named, or a
            name that is not there.
    """
    match = _ROW.fullmatch(wanted) if wanted is not None and wanted not in tensors else None
    if match is not None:
        assert wanted is not None
        return _row(tensors, match["name"], int(match["row"]), wanted, fit)
    groups, alone = _grouped(tensors, fit.stem)
    if wanted is not None:
        _check_wanted(wanted, {**groups, **alone}, tensors, fit)
        groups = {name: group for name, group in groups.items() if name == wanted}
        alone = {name: tensor for name, tensor in alone.items() if name == wanted}
    rows = {name: _of_layers(name, group, fit) for name, group in groups.items()}
    rows |= {name: _of_table(name, tensor, tensors, fit) for name, tensor in alone.items()}
    return _together(rows, fit)


def _grouped(
    tensors: dict[str, Tensor], stem: str
) -> tuple[dict[str, dict[int, Tensor]], dict[str, Tensor]]:
    """Vectors of which each layer is a tensor of its own, and all other tensors."""
    groups: dict[str, dict[int, Tensor]] = {}
    alone = {}
    for key, tensor in tensors.items():
        match = _LAYER_KEY.fullmatch(key)
        if match is None or len(tensor.shape) != 1:
            alone[key] = tensor
        else:
            name = match["name"]
            name = stem if name is None or name in _LAYER_WORDS else name
            groups.setdefault(name, {})[int(match["layer"])] = tensor
    return groups, alone


def _check_wanted(wanted: str, there: dict, tensors: dict[str, Tensor], fit: Fit) -> None:
    if wanted not in there:
        hint = did_you_mean(wanted, there) or f"; it holds {listed_tensors(tensors)}"
        raise VectorError(f"{fit.shown} has no vector '{safe_text(wanted, limit=80)}'{hint}")


def _of_layers(name: str, group: dict[int, Tensor], fit: Fit) -> dict[int, np.ndarray]:
    chosen = group
    if fit.layer is not None:
        if fit.layer not in group:
            raise VectorError(
                f"{fit.shown}: '{safe_text(name, limit=60)}' has no layer {fit.layer}, but "
                f"{ranges(sorted(group))}"
            )
        chosen = {fit.layer: group[fit.layer]}
    for layer, tensor in chosen.items():
        fit.check_layer(layer)
        fit.check_width(name, tensor.shape[0])
    return {layer: _finite(name, tensor.read(...), fit) for layer, tensor in chosen.items()}


def _of_table(
    name: str, tensor: Tensor, tensors: dict[str, Tensor], fit: Fit
) -> dict[int, np.ndarray]:
    shape = tensor.shape
    if len(shape) not in (1, 2):
        raise VectorError(
            f"{fit.shown}: '{safe_text(name, limit=60)}' has shape {list(shape)}; a vector is "
            "[d_model] or [layer, d_model]"
        )
    if len(shape) == 2 and shape[0] != fit.n_layers and fit.d_model in shape and shape[0] != 1:
        raise VectorError(_rows_told(name, shape, fit))
    fit.check_width(name, shape[-1])
    if len(shape) == 2 and shape[0] == fit.n_layers:
        table = tensor.read(...)
        if fit.layer is not None:
            return {fit.layer: _finite(name, table[fit.layer], fit)}
        there = ~np.all(np.isnan(table), axis=-1)
        return {n: _finite(name, row, fit) for n, row in enumerate(table) if there[n]}
    if fit.layer is None:
        raise VectorError(
            f"{fit.shown}: '{safe_text(name, limit=60)}' does not say its layer; name "
            "the one it was taken from"
        )
    return {fit.layer: _finite(name, tensor.read(...).reshape(-1), fit)}


def _rows_told(name: str, shape: tuple[int, ...], fit: Fit) -> str:
    """Why a table of other sizes than [layer, d_model] is refused."""
    shown = f"{fit.shown}: '{safe_text(name, limit=60)}' has shape {list(shape)}"
    if shape == (fit.n_layers + 1, fit.d_model):
        return (
            f"{shown}, one row more than the model has layers: it begins with the embedding; "
            "leave the first row out, so that row N is what leaves layer N"
        )
    return (
        f"{shown}; a vector is [{fit.d_model}] or [{fit.n_layers}, {fit.d_model}]; one row of a "
        f"dictionary is named {safe_text(name, limit=60)}[ROW]"
    )


def _row(tensors: dict[str, Tensor], name: str, row: int, wanted: str, fit: Fit) -> Vectors:
    """One row of a dictionary, such as the decoder of a sparse autoencoder."""
    if not name and len(tensors) == 1:
        name = next(iter(tensors))
    _check_wanted(name, tensors, tensors, fit)
    shape = tensors[name].shape
    if len(shape) != 2 or fit.d_model not in shape:
        raise VectorError(
            f"{fit.shown}: '{safe_text(name, limit=60)}' has shape {list(shape)}; a dictionary "
            f"has [feature, {fit.d_model}] or its transpose"
        )
    if shape[0] == shape[1]:
        raise VectorError(
            f"{fit.shown}: '{safe_text(name, limit=60)}' is square, {list(shape)}: rows and "
            "columns cannot be told apart; save the vector alone"
        )
    by_row = shape[1] == fit.d_model
    count = shape[0] if by_row else shape[1]
    if row >= count:
        raise VectorError(
            f"{fit.shown}: feature {row} of '{safe_text(name, limit=60)}' is outside 0..{count - 1}"
        )
    if fit.layer is None:
        raise VectorError(
            f"{fit.shown}: a row of a dictionary does not say its layer; name the one it is for"
        )
    vector = tensors[name].read((row,) if by_row else (slice(None), row))
    return _together({wanted or name: {fit.layer: _finite(name, vector, fit)}}, fit)


def _finite(name: str, vector: np.ndarray, fit: Fit) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise VectorError(
            f"{fit.shown}: '{safe_text(name, limit=60)}' holds numbers that are not finite"
        )
    return vector


def _together(rows: dict[str, dict[int, np.ndarray]], fit: Fit) -> Vectors:
    """Vectors by name and layer as one array."""
    for name, by_layer in rows.items():
        if not is_name(name):
            raise VectorError(
                f"{fit.shown}: '{safe_text(name, limit=60)}' cannot be the name of a vector; "
                "rename the tensor"
            )
        if not by_layer:
            raise VectorError(f"{fit.shown}: '{safe_text(name, limit=60)}' is NaN at every layer")
    layers = sorted({layer for by_layer in rows.values() for layer in by_layer})
    array = np.full((len(rows), len(layers), fit.d_model), np.nan, np.float32)
    for n, by_layer in enumerate(rows.values()):
        for layer, vector in by_layer.items():
            array[n, layers.index(layer)] = vector
    how = {name: {"how": "file", "file": fit.shown} for name in rows}
    return Vectors(tuple(rows), array, tuple(layers), meta=how)
