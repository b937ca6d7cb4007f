"""Named vectors of the residual stream, each bound to the layers that it was taken from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlxroles import notebook
from mlxroles.errors import VectorError
from mlxroles.text import did_you_mean, ranges, safe_text

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""Places of the residual stream where a vector may have been taken."""
MOST_NAME = 200
"""Characters of a name."""
_SHOWN, _MOST_ROWS = 5, 20


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors by name and layer; a layer that a vector was not taken from has none.

    Raises:
        ValueError: names, layers and array do not belong together.
    """

    names: tuple[str, ...]
    array: np.ndarray
    """[name, layer, d_model] float32; a row is NaN throughout where the layer is not there."""
    layers: tuple[int, ...]
    """Layers along axis 1, ascending; 7 stands for the output of block 7."""
    site: str = "resid_post"
    model: Mapping[str, Any] | None = None
    """What identifies the model that they were taken from, where that is known."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Name -> how the vector was made."""

    def __post_init__(self) -> None:
        given = np.array(self.array, dtype=np.float32)
        given.setflags(write=False)
        object.__setattr__(self, "array", given)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        sizes = (len(self.names), len(self.layers))
        if given.ndim != 3 or given.shape[:2] != sizes or not given.size:
            raise ValueError(f"vectors of shape {given.shape} for {sizes} names and layers")
        if len({*self.names}) < len(self.names) or not all(map(is_name, self.names)):
            raise ValueError(f"vectors need names of one line, each once: {list(self.names)}")
        if [*self.layers] != sorted({*self.layers}) or self.layers[0] < 0:
            raise ValueError(f"layers must ascend: {list(self.layers)}")
        if self.site not in SITES:
            raise ValueError(f"vectors are of none of {list(SITES)}: {self.site!r}")
        gone = np.all(np.isnan(given), axis=-1)
        if not np.isfinite(given[~gone]).all() or np.all(gone, axis=1).any():
            raise ValueError("a vector must be finite, and of one layer at least")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.array.shape[-1])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shown = ", ".join(safe_text(name, limit=40) for name in self.names[:_SHOWN])
        more = f", ... {len(self.names)} in all" if len(self.names) > _SHOWN else ""
        where = f"layer{'s' * (len(self.layers) > 1)} {ranges(self.layers)}"
        return f"Vectors({shown}{more}: {self.site} of {where}, d_model {self.d_model})"

    def _repr_html_(self) -> str:
        rows = []
        for name in self.names[:_MOST_ROWS]:
            lengths = [self.norm(name, layer) for layer in self.layers_of(name)]
            length = f"{min(lengths):.3g} to {max(lengths):.3g}"
            rows.append((name, ranges(self.layers_of(name)), length))
        more = len(self.names) - len(rows)
        about = f"{self.site}, d_model {self.d_model}" + (f"; {more} more" if more else "")
        return notebook.table(about, ("vector", "layers", "length"), rows)

    @property
    def single(self) -> str:
        """The one name.

        Raises:
            VectorError: there are several.
        """
        if len(self.names) > 1:
            raise VectorError(
                f"there are {len(self.names)} vectors ({_some(self.names)}) where one is wanted; "
                "name one, such as FILE#NAME"
            )
        return self.names[0]

    def layers_of(self, name: str) -> tuple[int, ...]:
        """Layers that a vector was taken from.

        Raises:
            VectorError: there is no such name.
        """
        there = ~np.all(np.isnan(self.array[self._row(name)]), axis=-1)
        return tuple(layer for layer, is_there in zip(self.layers, there, strict=True) if is_there)

    def at(self, name: str, layer: int) -> np.ndarray:
        """The vector of a layer [d_model], for that layer.

        Raises:
            VectorError: there is no such name, or the vector was not taken from that layer.
        """
        row = self._row(name)
        found = self.layers_of(name)
        if layer not in found:
            shown = safe_text(name, limit=80)
            raise VectorError(
                f"vector '{shown}' was not taken from layer {layer}, but from {ranges(found)}: "
                "a vector acts at its own layer"
            )
        return self.array[row, self.layers.index(layer)]

    def unit(self, name: str, layer: int) -> np.ndarray:
        """The vector of a layer at length 1 [d_model].

        Raises:
            VectorError: as ``at``, or its length is 0.
        """
        found = self.at(name, layer).astype(np.float64)
        length = float(np.linalg.norm(found))
        if not length > 0:
            shown = safe_text(name, limit=80)
            raise VectorError(f"vector '{shown}' of layer {layer} has length 0: no direction")
        return (found / length).astype(np.float32)

    def norm(self, name: str, layer: int) -> float:
        """The length of the vector of a layer.

        Raises:
            VectorError: as ``at``.
        """
        return float(np.linalg.norm(self.at(name, layer).astype(np.float64)))

    def subset(self, names: Sequence[str]) -> "Vectors":
        """These names only, in this order, and the layers that any of them has.

        Raises:
            VectorError: there is no such name.
        """
        rows = [self._row(name) for name in names]
        return replace(
            self,
            names=tuple(names),
            array=self.array[rows],
            meta={name: self.meta[name] for name in names if name in self.meta},
        )._trimmed()

    def at_layers(self, layers: Sequence[int]) -> "Vectors":
        """These layers only; a name that has none of them is left out.

        Raises:
            VectorError: no vector was taken from any of them.
        """
        columns = [n for n, layer in enumerate(self.layers) if layer in layers]
        array = self.array[:, columns]
        rows = [n for n in range(len(self.names)) if not np.isnan(array[n]).all()]
        if not rows:
            raise VectorError(
                f"no vector was taken from layer {ranges(layers)}; there are those of layer "
                f"{ranges(self.layers)}"
            )
        names = tuple(self.names[n] for n in rows)
        return replace(
            self,
            names=names,
            array=array[rows],
            layers=tuple(self.layers[n] for n in columns),
            meta={name: self.meta[name] for name in names if name in self.meta},
        )

    def _trimmed(self) -> "Vectors":
        gone = np.all(np.isnan(self.array), axis=(0, 2))
        if not gone.any():
            return self
        kept = tuple(layer for layer, is_gone in zip(self.layers, gone, strict=True) if not is_gone)
        return replace(self, array=self.array[:, ~gone], layers=kept)

    def _row(self, name: str) -> int:
        if name not in self.names:
            hint = did_you_mean(name, self.names) or f"; there are {_some(self.names)}"
            raise VectorError(f"there is no vector '{safe_text(name, limit=80)}'{hint}")
        return self.names.index(name)


def merge(parts: Sequence[Vectors]) -> Vectors:
    """Vectors of one model and site together; layers that only some have are NaN in the others.

    Raises:
        ValueError: a name occurs twice, or width, site or model differ.
    """
    first = parts[0]
    for part in parts[1:]:
        same = (part.site, part.d_model) == (first.site, first.d_model)
        if not same or part.model != first.model:
            raise ValueError("vectors of several sites, widths or models cannot be together")
    layers = tuple(sorted({layer for part in parts for layer in part.layers}))
    names = tuple(name for part in parts for name in part.names)
    array = np.full((len(names), len(layers), first.d_model), np.nan, np.float32)
    start = 0
    for part in parts:
        columns = [layers.index(layer) for layer in part.layers]
        array[start : start + len(part), columns] = part.array
        start += len(part)
    meta = {name: how for part in parts for name, how in part.meta.items()}
    return Vectors(names, array, layers, first.site, first.model, meta)


def is_name(name: object) -> bool:
    """Whether this can name a vector: printable text of one line, not blank."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
        return False
    return name.isprintable() and name.strip() == name


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(safe_text(name, limit=40) for name in names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
