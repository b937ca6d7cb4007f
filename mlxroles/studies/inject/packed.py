"""``run.h5`` of an injection run: every measure of every run, and the attention maps.

``added`` has what additions do, ``projected`` what projections do, ``unedited`` what is measured
without either. Draw 0 is the vector itself, the others are random vectors of its length.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.reader import axes, read
from mlxroles.store.schema import Variable

PACKED = "run.h5"
_CELL = ("model", "vector", "prompt", "draw")
_MAP = ("block", "head")
_WITHOUT, _WITH = "attention_without", "attention_with"
_LOOKED = "share of the last query's attention that the injected positions get"
VARIABLES = {
    "added": Variable(
        "added", (*_CELL, "layer", "scale", "readout"), long_name="under an addition at a layer"
    ),
    "projected": Variable(
        "projected",
        (*_CELL, "direction", "readout"),
        long_name="with the direction of a layer projected out of all",
    ),
    "unedited": Variable(
        "unedited", ("model", "vector", "prompt", "readout"), long_name="without injection"
    ),
    _WITHOUT: Variable(_WITHOUT, ("model", "prompt", *_MAP), long_name=_LOOKED),
    _WITH: Variable(
        _WITH,
        ("model", "prompt", "draw", *_MAP),
        long_name=f"{_LOOKED}, under the addition that the summary names for it",
    ),
}


def split(values: np.ndarray, n_layers: int, n_scales: int, n_out: int) -> dict[str, np.ndarray]:
    """A cell's runs [draw, spot, readout] as stored: additions by layer and scale, projections.

    Args:
        values: Additions first, layer by layer, then projections.
        n_layers: Layers at which something is added.
        n_scales: Scales with which it is.
        n_out: Directions that are projected out.
    """
    draws, spots, measures = values.shape
    n_added = spots - n_out
    found = {}
    if n_added:
        grid = (draws, n_layers, n_scales, measures)
        found["added"] = values[:, :n_added].reshape(grid)
    if n_out:
        found["projected"] = values[:, n_added:]
    return found


def joined(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The same put back together [draw, spot, readout]."""
    parts = []
    if "added" in arrays:
        added = arrays["added"]
        parts.append(added.reshape(len(added), -1, added.shape[-1]))
    if "projected" in arrays:
        parts.append(arrays["projected"])
    return np.concatenate(parts, axis=1)


def pack_run(folder: RunFolder, stored: Sequence[str], maps: Mapping[str, np.ndarray]) -> None:
    """Packs what the run has stored; nothing is written where that is nothing.

    Args:
        folder: The run.
        stored: Names of the arrays that its cells have.
        maps: Attention by ``MODEL/PROMPT/clean`` [layer, head] and ``.../draws``.

    Raises:
        StoreError: something cannot be read or written.
    """
    records = [record for record in folder.records().values() if record.status == "ok"]
    if not records:
        return
    identity: Any = folder.manifest["identity"]
    sides, prompts = list(identity["models"]), [str(item[0]) for item in identity["items"]]
    coords: dict[str, Any] = {
        "model": sides,
        "vector": list(dict.fromkeys(str(record.coords["vector"]) for record in records)),
        "prompt": prompts,
        "draw": 1 + identity["random"],
        "layer": identity["layers"],
        "scale": identity["scales"],
        "direction": identity["directions"],
        "readout": identity["readouts"],
    }
    wanted = [VARIABLES[name] for name in stored]
    if maps:
        wanted += [VARIABLES[_WITHOUT], VARIABLES[_WITH]]
        shapes = [image.shape for image in maps.values()]
        coords |= {"block": max(s[-2] for s in shapes), "head": max(s[-1] for s in shapes)}
    used = {axis for variable in wanted for axis in variable.axes}
    coords = {axis: values for axis, values in coords.items() if axis in used}
    pack(folder, wanted, coords, records=[*records, *_looks(sides, prompts, maps)])


def _looks(
    sides: Iterable[str], prompts: Sequence[str], maps: Mapping[str, np.ndarray]
) -> list[Record]:
    """The attention maps as if they were cells."""
    found = []
    for side in sides:
        for prompt in prompts:
            key = f"{side}/{prompt}"
            if f"{key}/draws" in maps:
                values = {_WITHOUT: maps[f"{key}/clean"], _WITH: maps[f"{key}/draws"]}
                at = {"model": side, "prompt": prompt}
                found.append(Record(f"attention of {key}", "ok", at, values))
    return found


def maps(path: Path) -> dict[str, np.ndarray]:
    """The attention maps of a run by ``MODEL/PROMPT/clean`` and ``.../draws``; empty without.

    Raises:
        StoreError: the packed file cannot be read.
    """
    file = path / PACKED
    if not file.is_file() or _WITH not in axes(file):
        return {}
    without, under = read(file, _WITHOUT), read(file, _WITH)
    found: dict[str, np.ndarray] = {}
    for m, side in enumerate(read(file, "model")):
        for n, name in enumerate(read(file, "prompt")):
            if not np.isnan(under[m, n]).all():
                key = f"{side}/{name}"
                found |= {f"{key}/clean": without[m, n], f"{key}/draws": under[m, n]}
    return found
