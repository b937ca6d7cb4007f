"""Writes a harvest from its sums, group by group; the layout is told in ``harvest``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mlxroles.components.harvest_file import EXAMPLES, SCHEMA
from mlxroles.components.harvest_state import Parts
from mlxroles.components.harvest_sums import WINDOW
from mlxroles.components.harvest_tokens import top_tokens
from mlxroles.prompts import token_texts
from mlxroles.store.files import plain, plain_errors, sync, sync_folder, temporary
from mlxroles.store.hdf5 import TEXT, hdf5_text, plain_hdf5_errors
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.components.harvest import Harvester

Array = np.ndarray[Any, Any]
State = Mapping[str, Array]
UNITS = {
    "firing": "positions",
    "mean_importance": "1",
    "mean_importance_error": "1",
    "mean_activation": "length of a map's output",
    "mean_abs_activation": "length of a map's output",
    "input_tokens/pmi": "nat",
    "input_tokens/low": "nat",
    "input_tokens/count": "positions",
    "output_tokens/pmi": "nat",
    "output_tokens/low": "nat",
    "output_tokens/count": "positions",
}
"""Attribute ``units`` of what is kept of a map."""
PACKED: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def write_harvest(path: Path, of: "Harvester", parts: Parts) -> None:
    """Writes the file beside its place and puts it there when it is whole.

    Raises:
        StoreError: it cannot be written.
    """
    with plain_errors(path), temporary(path) as temp:
        with plain_hdf5_errors(path), h5py.File(temp, "w", locking=False) as file:
            fired = _write_all(file, of, parts)
            for name, value in _about(of, fired).items():
                file.attrs[name] = hdf5_text(value) if isinstance(value, str) else value
            file.flush()
        with temp.open("rb+") as raw:
            sync(raw.fileno())
        temp.replace(path)
        sync_folder(path.parent)


def _write_all(file: h5py.File, of: "Harvester", parts: Parts) -> int:
    """Everything but the attributes; the number of components that fire at all."""
    with_token = _write_text(file, of)
    file.create_group("pairs")
    left_out = np.array(of.left_out, dtype=object).reshape(-1, 2)
    file.create_dataset("pairs_left_out", data=left_out, dtype=TEXT)
    fired, order = 0, list(of.maps)
    for number, keys in enumerate(of.groups):
        state = parts.state(number)
        assert state is not None
        for key in keys:
            head = f"maps/{key}/"
            own = {n.removeprefix(head): a for n, a in state.items() if n.startswith(head)}
            fired += int((own["firing"] > 0).sum())
            group = file.create_group(f"maps/{key}")
            _write_map(group, of, own, with_token, state["mass"])
            for name, unit in UNITS.items():
                group[name].attrs["units"] = unit
            d = of.components.maps[key]
            facts: dict[str, Any] = {"layer": d.layer, "kind": d.kind, "n_heads": d.n_heads}
            facts |= {"d_head": d.d_head, "n_components": d.n, "at": order.index(key)}
            group.attrs.update(facts)
        for first, second in of.pairs_of(keys):
            counts = state[f"pairs/{first}/{second}"]
            file.create_dataset(f"pairs/{first}/{second}", data=counts, **PACKED)
    return fired


def _write_text(file: h5py.File, of: "Harvester") -> Array:
    """The rows and the ids; how often each column's token stands in the text."""
    longest = max(len(row) for row in of.rows)
    tokens = np.full((len(of.rows), longest), -1, dtype=np.int32)
    for n, row in enumerate(of.rows):
        tokens[n, : len(row)] = row
    file.create_dataset("tokens", data=tokens, **PACKED)
    present, counts = np.unique(tokens[tokens >= 0], return_counts=True)
    ids = np.union1d(present, of.columns)
    texts = [hdf5_text(text) for text in token_texts(ids, of.model.tokenizer)]
    seen = np.zeros(len(ids), dtype=np.int64)
    seen[np.searchsorted(ids, present)] = counts
    file.create_dataset("vocabulary/id", data=ids.astype(np.int32))
    file.create_dataset("vocabulary/text", data=np.array(texts, dtype=object), dtype=TEXT)
    file.create_dataset("vocabulary/count", data=seen)
    return seen[np.searchsorted(ids, of.columns)]


def _write_map(
    group: h5py.Group, of: "Harvester", state: State, with_token: Array, mass: Array
) -> None:
    n = of.n_tokens
    firing = state["firing"]
    group["firing"] = firing
    group["mean_importance"] = state["importance"] / n
    group["mean_importance_error"] = _row_error(state, of)
    group["mean_activation"] = state["activation"] / n
    while_firing = np.full(len(firing), np.nan)
    np.divide(state["abs_activation"], firing, out=while_firing, where=firing > 0)
    group["mean_abs_activation"] = while_firing
    for kind in EXAMPLES:
        for name in ("row", "position", "importance", "activation"):
            array = state[f"{kind}/{name}"]
            group.create_dataset(f"examples/{kind}/{name}", data=array, **PACKED)
    pairs = {"input": (state["inputs"].T, with_token), "output": (state["outputs"], mass)}
    for kind, (both, total) in pairs.items():
        for name, array in top_tokens(both, total, firing, n, of.columns)._asdict().items():
            group[f"{kind}_tokens/{name}"] = array


def _row_error(state: State, of: "Harvester") -> Array:
    """Standard error of the mean importance, rows being what was drawn (a ratio of row sums).

    With S_r the sum over row r of n_r positions, R rows and m = sum S_r / sum n_r it is
    sqrt( R / (R - 1) sum (S_r - m n_r)^2 ) / sum n_r; NaN for a single row.
    """
    lengths = np.array([len(row) for row in of.rows], dtype=np.float64)
    rows, n = len(lengths), lengths.sum()
    if rows < 2:
        return np.full(len(state["firing"]), np.nan)
    mean = state["importance"] / n
    squares = state["row_squares"] - 2 * mean * state["row_products"]
    squares = np.maximum(squares + mean**2 * (lengths**2).sum(), 0.0)
    return np.sqrt(rows / (rows - 1) * squares) / n


def _about(of: "Harvester", fired: int) -> dict[str, Any]:
    """The attributes of the file."""
    plan = plain(of.identity())
    about: dict[str, Any] = {n: of.about.get(n) for n in ("model", "components", "text")}
    about |= {"notes": of.notes, "versions": versions(), "plan": plan}
    n_components = sum(of.components.maps[key].n for key in of.maps)
    where = (of.about.get("text") or {}).get("name", "text")
    return {
        "schema": SCHEMA,
        "measure": of.importance.name,
        "threshold": of.threshold,
        "n_tokens": of.n_tokens,
        "n_rows": len(of.rows),
        "row_length": max(len(row) for row in of.rows),
        "window": WINDOW,
        "seed": of.settings.seed,
        "sentence": (
            f"On {of.n_tokens:,} tokens ({where}) {fired:,} of {n_components:,} components of "
            f"{len(of.maps)} maps fire at least once ({of.importance.name} > {of.threshold:g})."
        ),
        "timestamp": now(),
        **{name: json.dumps(plain(value)) for name, value in about.items()},
    }
