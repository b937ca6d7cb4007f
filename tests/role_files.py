"""Files that role metrics are read from: a packed run and patterns, written for tests."""

import json

import h5py
import numpy as np

from mlxroles.store.hdf5 import attach_axes, write_axes
from mlxroles.store.schema import Variable

_QUERY = ("prompt", "layer", "head", "query")
_PER_MODEL = {
    "entropy": _QUERY,
    "entropy_no_first": _QUERY,
    "first_keys": (*_QUERY, "near"),
    "recent_keys": (*_QUERY, "near"),
}


def write_run(folder, tables, *, summary=None, layers=None):
    """A run folder as an entropy study leaves it, of one table or two by model."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(tables.values()))
    several = len(tables) > 1
    n_layers, n_heads, size = first.entropy.shape[1:]
    coords = {"model": list(tables)} if several else {}
    coords |= {"prompt": list(first.prompts), "layer": list(layers or range(n_layers))}
    coords |= {"head": n_heads, "query": size, "near": 3}
    with h5py.File(folder / "run.h5", "w") as file:
        write_axes(file, coords)
        for name, axes in _PER_MODEL.items():
            found = [getattr(table, name) for table in tables.values()]
            data = np.stack(found) if several else found[0]
            axes = ("model", *axes) if several else axes
            _write(file, Variable(name, axes), data.astype("f4"))
        _write(file, Variable("length", ("prompt",), "i4"), first.length.astype("i4"))
        _write(file, Variable("has_bos", ("prompt",), "i4"), first.has_bos.astype("i4"))
        category = np.array(first.category, dtype=object)
        _write(file, Variable("category", ("prompt",), "str"), category)
    doc = {"display": "Toy", "models": list(tables), "missing_cells": 0, "failed_cells": []}
    (folder / "summary.json").write_text(json.dumps(doc | (summary or {})))
    (folder / "manifest.json").write_text("{}")
    return folder


def _write(file, variable, data):
    kind = h5py.string_dtype("utf-8") if variable.dtype == "str" else data.dtype
    attach_axes(file, file.create_dataset(variable.name, data=data, dtype=kind), variable)


def random_patterns(seed, *, n_layers=2, n_heads=3, per_category=3, categories=None, lengths=None):
    """The arrays of an ``.npz``: causal rows of softmaxed noise, float32, lengths 4 to 7."""
    rng = np.random.default_rng(seed)
    names = categories or ("self_referent", "confounder", "neutral", "third_person")
    category = np.array([name for name in names for _ in range(per_category)])
    length = rng.integers(4, 8, len(category)) if lengths is None else np.array(lengths)
    size = int(length.max())
    scores = rng.normal(size=(n_layers, len(category), n_heads, size, size))
    weights = np.exp(scores) * np.tril(np.ones((size, size)))
    for prompt, n_tokens in enumerate(length):
        weights[:, prompt, :, n_tokens:] = 0
    total = weights.sum(axis=-1, keepdims=True)
    pattern = (weights / np.where(total > 0, total, 1)).astype(np.float32)
    return {"pattern": pattern, "length": length, "category": category}
