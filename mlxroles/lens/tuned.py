"""A tuned lens: one affine map per layer, and the file that keeps it.

The map of layer l takes its stream h to h + h W + b, which then goes through the model's own norm
and head. The file is safetensors: tensors ``3.weight`` [d_model, d_model] and ``3.bias`` [d_model]
for layer 3, and in the metadata the site, the model's identity and how well it does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import SpecError
from mlxroles.store.files import shown, write_atomic
from mlxroles.text import safe_text

FORMAT = "mlxroles/tuned-lens/1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Tuned:
    """Maps of some layers of one model."""

    site: str
    layers: tuple[int, ...]
    weight: np.ndarray
    """[layer, d_model, d_model] float32, what is added is h W + b."""
    bias: np.ndarray
    """[layer, d_model] float32"""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What identifies the model that it was fitted on."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted, and its gain on held-out text."""

    @property
    def d_model(self) -> int:
        """Width of the stream that it reads."""
        return int(self.bias.shape[-1])

    def needs(self, layer: int, n_layers: int) -> bool:
        """Whether a layer is mapped at all: what leaves the last one is the answer itself."""
        return not (self.site == "resid_post" and layer == n_layers - 1)

    def apply(
        self, streams: mx.array, layers: Sequence[int], *, site: str, n_layers: int
    ) -> mx.array:
        """Streams [layer, position, d_model] after their maps, in their own dtype.

        Raises:
            SpecError: it was fitted on another site or width, or lacks a layer.
        """
        if site != self.site:
            raise SpecError(f"the tuned lens was fitted on {self.site}, and cannot read {site}")
        if streams.shape[-1] != self.d_model:
            raise SpecError(
                f"the tuned lens is for streams {self.d_model} wide; this model's are "
                f"{streams.shape[-1]}"
            )
        mapped = []
        for row, layer in enumerate(layers):
            if not self.needs(layer, n_layers):
                mapped.append(streams[row])
                continue
            if layer not in self.layers:
                raise SpecError(f"the tuned lens has layers {list(self.layers)}, and not {layer}")
            at = self.layers.index(layer)
            h = streams[row].astype(mx.float32)
            new = h + h @ mx.array(self.weight[at]) + mx.array(self.bias[at])
            mapped.append(new.astype(streams.dtype))
        return mx.stack(mapped)


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Writes the file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    from safetensors.numpy import save

    tensors = {}
    for at, layer in enumerate(tuned.layers):
        tensors[f"{layer}.weight"] = np.ascontiguousarray(tuned.weight[at], dtype=np.float32)
        tensors[f"{layer}.bias"] = np.ascontiguousarray(tuned.bias[at], dtype=np.float32)
    about = {"format": FORMAT, "site": tuned.site}
    about |= {"model": json.dumps(dict(tuned.model)), "meta": json.dumps(dict(tuned.meta))}
    write_atomic(path, save(tensors, metadata=about))


def read_tuned(path: Path, *, d_model: int | None = None) -> Tuned:
    """Reads a tuned lens.

    Raises:
        SpecError: there is no such file, or it is not a tuned lens of this width.
    """
    about, tensors = _content(path)
    if about.get("format") != FORMAT:
        raise SpecError(
            f"{shown(path)} is no tuned lens of this program; `mlxroles lens --fit` makes one"
        )
    try:
        named = (name.removesuffix(".bias") for name in tensors if name.endswith(".bias"))
        layers = tuple(sorted(int(name) for name in named))
        weight = np.stack([tensors[f"{layer}.weight"] for layer in layers]).astype(np.float32)
        bias = np.stack([tensors[f"{layer}.bias"] for layer in layers]).astype(np.float32)
        model, meta = (json.loads(about.get(name, "{}")) for name in ("model", "meta"))
    except (KeyError, ValueError) as error:
        raise SpecError(f"{shown(path)} is a damaged tuned lens; fit it again") from error
    width = bias.shape[-1]
    good = bias.ndim == 2 and weight.shape == (len(layers), width, width)
    if not good or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise SpecError(
            f"{shown(path)} is a damaged tuned lens: its maps have shapes {weight.shape[1:]} and "
            f"{bias.shape[1:]}, or numbers that are not finite; fit it again"
        )
    if d_model is not None and width != d_model:
        raise SpecError(
            f"{shown(path)} is for streams {width} wide; this model's are {d_model}: fit one for "
            "it with `mlxroles lens --fit`"
        )
    return Tuned(str(about.get("site", "resid_post")), layers, weight, bias, model, meta)


def _content(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SpecError(
            f"{shown(path)} {what}; name the {SUFFIX} file that `mlxroles lens --fit` wrote"
        )
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = dict(file.metadata() or {})
            if about.get("format") != FORMAT:
                return about, {}
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        text = safe_text(str(error).splitlines()[0] if str(error) else "", limit=120)
        raise SpecError(f"{shown(path)} is no readable safetensors file ({text})") from error
