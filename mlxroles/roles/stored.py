"""Reads the entropies of a finished run back from its packed file, with checks.

The file may come from elsewhere, so sizes, lengths and numbers are compared with each other before
anything is computed from them. Not here: finding the run (``sources``).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlxroles.errors import StoreError
from mlxroles.roles.patterns import categories
from mlxroles.roles.table import NEAR, Entropies
from mlxroles.store import reader
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.manifest import MANIFEST
from mlxroles.store.summary import read_summary
from mlxroles.text import safe_text

RUN_FILE = "run.h5"

_QUERY = ("prompt", "layer", "head", "query")
_AXES = {
    "entropy": _QUERY,
    "entropy_no_first": _QUERY,
    "first_keys": (*_QUERY, "near"),
    "recent_keys": (*_QUERY, "near"),
    "length": ("prompt",),
    "has_bos": ("prompt",),
    "category": ("prompt",),
}
_PER_MODEL = ("entropy", "entropy_no_first", "first_keys", "recent_keys")


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    with plain_errors(path, verb="read"):
        return any((path / name).is_file() for name in (RUN_FILE, MANIFEST))


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder, the newest first; none where there is no such folder."""
    with plain_errors(folder, verb="read"):
        if not folder.is_dir():
            return []
        runs = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
        return sorted(runs, key=lambda path: (_written(path), path.name), reverse=True)


def is_complete(path: Path) -> bool:
    """Whether a run has all of its cells, as far as its summary says."""
    found = read_summary(path)
    return (path / RUN_FILE).is_file() and found.get("missing_cells") == 0


def is_readable(file: Path) -> bool:
    """Whether a packed file opens and names its variables."""
    try:
        return bool(reader.axes(file))
    except (StoreError, LookupError, ValueError, TypeError, AttributeError):
        return False


def n_models(path: Path) -> int:
    """How many models a run holds, as far as its summary says."""
    models = read_summary(path).get("models")
    return len(models) if isinstance(models, list) else 0


def tables(path: Path) -> dict[str, Entropies]:
    """The entropies of a run by model: ``base`` and ``instruct``, or one of them, or ``model``.

    Args:
        path: the run folder.

    Raises:
        StoreError: the run has no entropies or lacks cells, or its file is damaged.
    """
    file = path / RUN_FILE
    with plain_errors(file, verb="read"):
        if not file.is_file():
            raise StoreError(
                f"{shown(path)} has no {RUN_FILE}: run the same command again, which computes only"
                " what is missing"
            )
    arrays, names, prompts, layers = _contents(path)
    _check_sizes(file, arrays, (len(names), len(prompts), len(layers)))
    _check_numbers(file, arrays)
    kept = np.any(~np.isnan(arrays["entropy"]), axis=(0, 1, 3, 4))
    if not np.any(kept):
        raise StoreError(f"{shown(path)}: no layer has attention weights, so there is no entropy")
    return {
        model: Entropies(
            model=model,
            prompts=prompts,
            category=categories(file, arrays["category"].tolist()),
            length=arrays["length"].astype(np.int64),
            has_bos=arrays["has_bos"] == 1,
            layers=tuple(layers[place] for place in np.flatnonzero(kept)),
            **{name: arrays[name][number][:, kept] for name in _PER_MODEL},
        )
        for number, model in enumerate(names)
    }


def _contents(
    path: Path,
) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """The arrays, those per model with that axis first, and the models, prompts and layers."""
    file = path / RUN_FILE
    if not is_readable(file):
        raise StoreError(f"{shown(file)} is damaged: `mlxroles report` packs it again")
    try:
        axes = reader.axes(file)
        if "entropy" not in axes:
            raise StoreError(
                f"{shown(path)} is not a run of `mlxroles entropy`: it holds no entropies"
            )
        several = axes["entropy"][:1] == ("model",)
        _check_axes(file, axes, several=several)
        arrays = {name: reader.read(file, name) for name in _AXES}
        names = _texts(file, "model") if several else (_only_model(path),)
        prompts, layers = _texts(file, "prompt"), _layers(file)
    except (LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        # What h5py says of damage that it meets on the way.
        raise StoreError(
            f"{shown(file)} is damaged: remove it, and `mlxroles report` packs it again"
        ) from error
    for name in _PER_MODEL:
        arrays[name] = arrays[name] if several else arrays[name][None]
    return arrays, names, prompts, layers


def _written(path: Path) -> float:
    """When the results of a run were written last."""
    for name in (RUN_FILE, MANIFEST):
        if (path / name).is_file():
            return (path / name).stat().st_mtime
    return 0.0


def _texts(file: Path, axis: str) -> tuple[str, ...]:
    return tuple(str(value) for value in reader.read(file, axis))


def _layers(file: Path) -> tuple[int, ...]:
    found = reader.read(file, "layer")
    if found.dtype.kind not in "iu" or (np.diff(found) < 1).any():
        raise StoreError(f"{shown(file)}: layer does not hold ascending whole numbers")
    return tuple(int(layer) for layer in found)


def _only_model(path: Path) -> str:
    models = read_summary(path).get("models")
    name = models[0] if isinstance(models, list) and len(models) == 1 else None
    return name if isinstance(name, str) else "model"


def _check_axes(file: Path, axes: Mapping[str, tuple[str, ...]], *, several: bool) -> None:
    for name, expected in _AXES.items():
        wanted = ("model", *expected) if several and name in _PER_MODEL else expected
        if axes.get(name) != wanted:
            found = "is missing" if name not in axes else f"has the axes {_listed(axes[name])}"
            raise StoreError(
                f"{shown(file)}: {name} {found}, expected are {_listed(wanted)}; remove the file"
                " and run the same command again"
            )


def _listed(axes: tuple[str, ...]) -> str:
    return f"({safe_text(', '.join(axes), limit=80)})"


def _check_sizes(
    file: Path, arrays: Mapping[str, np.ndarray], leading: tuple[int, int, int]
) -> None:
    shape = arrays["entropy"].shape
    expected = {name: shape if name in _PER_MODEL else leading[1:2] for name in _AXES}
    expected |= {name: (*shape, NEAR) for name in _PER_MODEL if name.endswith("keys")}
    wrong = [name for name in _AXES if arrays[name].shape != expected[name]]
    numbers = [name for name in _AXES if name != "category"]
    wrong += [name for name in numbers if arrays[name].dtype.kind not in "fiu"]
    if shape[:3] != leading or 0 in shape or wrong:
        raise StoreError(
            f"{shown(file)}: the size of {(wrong or ['entropy'])[0]} does not fit the rest;"
            " remove the file and run the same command again"
        )


def _check_numbers(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses lengths that are none, missing cells, and holes or infinities in what is there."""
    length, entropy = arrays["length"], arrays["entropy"]
    size = entropy.shape[-1]
    if ((length < 1) | (length > size)).any():
        raise StoreError(
            f"{shown(file)}: a prompt without a length from 1 to {size}; remove the file and run"
            " the same command again"
        )
    known = np.isfinite(entropy)
    here = known.any(axis=(2, 3, 4))
    if not here.all():
        raise StoreError(
            f"{shown(file.parent)}: {int((~here).sum())} of {here.size} cells are missing; run the"
            " same command again"
        )
    inside = np.arange(size) < length[:, None]
    has_head = known.any(axis=(1, 4), keepdims=True)
    if (has_head & inside[:, None, None] & ~known).any() or (entropy < -1e-3).any():
        raise StoreError(
            f"{shown(file)}: entropies that are no numbers; remove the file and run the same"
            " command again"
        )
    for name in ("first_keys", "recent_keys"):
        if not np.isfinite(arrays[name][known]).all():
            raise StoreError(
                f"{shown(file)}: {name} holds what is no number; remove the file and run the same"
                " command again"
            )
