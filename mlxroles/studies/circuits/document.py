"""The document of a study of circuits: scores beside chance, the strongest compositions, tokens.

Ids are the sample of copying scores and curves, all pairs of heads that of compositions, which
stand beside the same pairs with the stream turned at random between them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles import stats
from mlxroles.circuits import CURVE_FIELDS
from mlxroles.circuits.composition import KINDS
from mlxroles.circuits.copying import FALSE_SHARE, signs
from mlxroles.circuits.spectrum import CIRCUITS, positive_share
from mlxroles.events import Cell
from mlxroles.heads import head_name, parse_heads
from mlxroles.store.folder import RunFolder
from mlxroles.store.record import Record
from mlxroles.studies.circuits.axes import COPYING
from mlxroles.studies.circuits.told import sentence
from mlxroles.text import ranges

Numbers = NDArray[np.float64]

SCHEMA = "mlxroles/circuits/1"
MOST = 200
"""Compositions of each kind that the document lists, the strongest first."""
SHOWN, MOST_SHOWN = 12, 40
"""Heads whose curves the document holds: those that prefer a distance most, and those named."""

Stored = list[tuple[Cell, Record, dict[str, np.ndarray]]]


def build(
    about: Mapping[str, Any], folder: RunFolder, cells: Sequence[Cell], texts: Mapping[int, str]
) -> dict[str, Any]:
    """The document without what only the run knows.

    Args:
        about: What it begins with: display, sizes, settings and so on.
        folder: With the stored cells.
        cells: The whole plan.
        texts: Id -> what the token says, for the ids of ``shown_ids``.
    """
    doc = dict(about) | {"models": {}, "difference": {}}
    records = {r.id: r for r in folder.records().values() if r.status == "ok"}
    copies: dict[str, dict[int, Numbers]] = {}
    for side in about["names"]:
        stored: Stored = [
            (cell, records[cell.id], folder.arrays(cell.id) if records[cell.id].arrays else {})
            for cell in cells
            if cell.coords["model"] == side and cell.id in records
        ]
        if any(cell.coords["part"] == "layer" for cell, _, _ in stored):
            doc["models"][side] = _model(doc, side, stored, texts)
            copies[side] = _copies(stored)
    if {"base", "instruct"} <= copies.keys():
        doc["difference"] = {"copying": _difference(doc, copies["base"], copies["instruct"])}
    doc["sentence"] = sentence(doc)
    return doc


def shown_ids(folder: RunFolder) -> list[int]:
    """Ids of the tokens that a run's pairs are made of."""
    found: set[int] = set()
    for record in folder.records().values():
        if record.status == "ok" and record.coords.get("part") == "pairs" and record.arrays:
            arrays = folder.arrays(record.id)
            found |= {int(i) for name in ("pair_left", "pair_right") for i in arrays[name].ravel()}
    return sorted(found)


def _model(
    doc: Mapping[str, Any], side: str, stored: Stored, texts: Mapping[int, str]
) -> dict[str, Any]:
    layers = [(c.coords["layer"], r, a) for c, r, a in stored if c.coords["part"] == "layer"]
    widest = max((a["score"].size for _, _, a in layers if a), default=0)
    shape = (doc["n_layers"], widest)
    found: dict[str, Any] = {"name": doc["names"][side], "n_layers": shape[0], "n_heads": widest}
    found["copying"] = _copying(layers, shape)
    for name in CIRCUITS:
        found[f"{name}_share"] = _shares(layers, shape, name)
    found["composition"] = _composition(stored)
    found["curves"] = _curves(doc, layers, shape)
    found["pairs"] = [
        entry
        for cell, record, arrays in stored
        if cell.coords["part"] == "pairs" and arrays
        for entry in _pairs(record, arrays, texts)
    ]
    found["notes"] = list(_notes(layers))
    return found


def _table(shape: tuple[int, ...], layers: Any, name: str) -> Numbers:
    """An array of all layers [layer, head, ...]; NaN where a layer has none."""
    table = np.full(shape, np.nan)
    for layer, _, arrays in layers:
        if name in arrays:
            array = arrays[name]
            table[(layer, *(slice(size) for size in array.shape))] = array
    return table


def _copying(layers: Any, shape: tuple[int, int]) -> dict[str, Any]:
    tables = {name: _table(shape, layers, name) for name in COPYING}
    with np.errstate(invalid="ignore"):
        excess = (tables["score"] - tables["null"]) / tables["spread"]
    return {name: plain(table) for name, table in tables.items()} | {
        "excess": plain(excess),
        "sign": signs(tables).tolist(),
    }


def _shares(layers: Any, shape: tuple[int, int], circuit: str) -> dict[str, Any]:
    """Scores of eigenvalues, and what heads of random numbers have in each layer."""
    share, clear = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    low, high = np.full(shape[:1], np.nan), np.full(shape[:1], np.nan)
    heads = sum(arrays["score"].size for _, _, arrays in layers if arrays)
    for layer, _, arrays in layers:
        if arrays:
            values = arrays[f"{circuit}_real"] + 1j * arrays[f"{circuit}_imag"]
            share[layer, : len(values)] = positive_share(values)
            random = arrays[f"random_{circuit}"]
            low[layer], high[layer] = np.quantile(random, (0.025, 0.975))
            far = NormalDist().inv_cdf(1 - FALSE_SHARE / 2 / heads) * random.std(ddof=1)
            clear[layer] = share[layer] > max(random.mean() + far, random.max())
            clear[layer] |= share[layer] < min(random.mean() - far, random.min())
    bounds = {"random_low": plain(low), "random_high": plain(high)}
    return {"score": plain(share)} | bounds | {"clear": clear.tolist()}


def _composition(stored: Stored) -> dict[str, Any]:
    """Per kind the scores by chance, the largest of them as bound, the strongest pairs."""
    found: dict[str, Any] = {}
    cells: list[tuple[int, Any, dict[str, np.ndarray]]] = [
        (c.coords["layer"], r.values, a) for c, r, a in stored if a and _is_pair_of_layers(c)
    ]
    for kind in KINDS:
        nulls = [values["turned"][kind] for _, values, _ in cells]
        n = sum(null["n"] for null in nulls)
        rows = list(_composed(cells, kind))
        if not n or not rows:
            continue
        mean = sum(null["sum"] for null in nulls) / n
        spread = math.sqrt(max(sum(null["squares"] for null in nulls) / n - mean**2, 0.0))
        bound = max(null["highest"] for null in nulls if null["n"])
        rows.sort(key=lambda row: (-row[0], row[1:]))
        found[kind] = {
            "pairs": len(rows),
            "clear": sum(row[0] > bound for row in rows),
            "null_mean": mean,
            "null_spread": spread,
            "bound": bound,
            "top": [
                {
                    "from": head_name(*row[1:3]),
                    "to": head_name(*row[3:]),
                    "score": row[0],
                    "z": (row[0] - mean) / spread if spread else None,
                    "clear": bool(row[0] > bound),
                }
                for row in rows[:MOST]
            ],
            "by_layer": _strongest(cells, kind),
        }
    return found


def _is_pair_of_layers(cell: Cell) -> bool:
    return cell.coords["part"] == "composition"


def _composed(cells: Any, kind: str) -> Iterator[tuple[float, int, int, int, int]]:
    """(score, earlier layer, head, later layer, head) of all pairs."""
    for layer, _, arrays in cells:
        table = arrays[f"composition_{kind}"]
        for before, first, second in np.argwhere(np.isfinite(table)):
            score = float(table[before, first, second])
            yield score, int(before), int(first), layer, int(second)


def _strongest(cells: Any, kind: str) -> list[dict[str, Any]]:
    """The largest score of each pair of layers."""
    found = []
    for layer, _, arrays in cells:
        for before, table in enumerate(arrays[f"composition_{kind}"]):
            if np.isfinite(table).any():
                found.append({"from": before, "to": layer, "score": float(np.nanmax(table))})
    return found


def _curves(doc: Mapping[str, Any], layers: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """Which distance every head likes best, and the curves of those that like one most."""
    offsets = doc["settings"]["offsets"]
    tables = {n: _table((*shape, offsets), layers, f"curve_{n}") for n in CURVE_FIELDS}
    known = np.asarray(np.isfinite(tables["mean"]).all(axis=2))
    peak = np.full(shape, np.nan)
    for at in map(tuple, np.argwhere(known)):
        # how far that distance stands out, in what tokens make of a score
        mean, spread = tables["mean"][at], float(np.median(tables["spread"][at]))
        peak[at] = (mean.max() - float(np.median(mean))) / spread if spread else 0.0
    named = doc["settings"]["heads"]
    chosen = parse_heads(",".join(named)) if isinstance(named, list) else []
    order = np.argsort(-np.where(known, peak, -np.inf), axis=None, kind="stable")
    chosen += [(int(flat) // shape[1], int(flat) % shape[1]) for flat in order[:SHOWN]]
    return {
        "offsets": list(range(offsets)),
        "peak_offset": [[int(n) for n in row] for row in _best_offsets(tables["mean"], known)],
        "peak": plain(peak),
        "clear": _stands_out(tables, known).tolist(),
        "rope": {str(layer): r.values["rope"] for layer, r, _ in layers if "rope" in r.values},
        "shown": [
            {"head": head_name(*at), **{name: plain(table[at]) for name, table in tables.items()}}
            for at in list(dict.fromkeys(chosen))[:MOST_SHOWN]
            if known[at]
        ],
    }


def _stands_out(tables: Mapping[str, Numbers], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the interval at the best distance lies above those of half of the distances."""
    best = _best_offsets(tables["mean"], known)
    low = np.take_along_axis(tables["low"], np.maximum(best, 0)[..., None], axis=2)[..., 0]
    return known & (low > np.median(np.nan_to_num(tables["high"]), axis=2))


def _best_offsets(mean: Numbers, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance of the largest mean score [layer, head]; -1 where there is no curve."""
    return np.where(known, np.nan_to_num(mean, nan=-np.inf).argmax(axis=2), -1)


def _pairs(
    record: Record, arrays: Mapping[str, np.ndarray], texts: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    """The lists of one head: QK, then OV."""
    values: Mapping[str, Any] = record.values
    for n, circuit in enumerate(("qk", "ov")):
        known = values[circuit]
        spread = known["spread"] or 1.0
        entry = {
            "head": head_name(values["layer"], values["head"]),
            "circuit": circuit,
            **known,
            "same_z": (known["same"] - known["mean"]) / spread,
        }
        for end, name in enumerate(("top", "bottom")):
            entry[name] = [
                {
                    "left": int(left),
                    "right": int(right),
                    "left_text": texts.get(int(left), str(int(left))),
                    "right_text": texts.get(int(right), str(int(right))),
                    "value": float(value),
                    "z": (float(value) - known["mean"]) / spread,
                }
                for left, right, value in zip(
                    *(arrays[f"pair_{part}"][n, end] for part in ("left", "right", "value")),
                    strict=True,
                )
            ]
        yield entry


def _notes(layers: Any) -> Iterator[str]:
    """What is left out, and the layers of which it is true."""
    why: dict[str, list[int]] = {}
    for layer, record, _ in layers:
        told = [*record.values.get("notes", ())]
        told += [f"no heads: {record.values[k]}" for k in ("refused",) if k in record.values]
        told += [f"no curve: {record.values[k]}" for k in ("no_curve",) if k in record.values]
        for note in told:
            why.setdefault(note, []).append(layer)
    for note, where in why.items():
        yield f"layer{'s' * (len(where) > 1)} {ranges(sorted(where))}: {note}"


# --- two models -----------------------------------------------------------------------------------


def _copies(stored: Stored) -> dict[int, Numbers]:
    """Layer -> how far each id's own entry lies above its others [head, id], in their spread."""
    return {
        cell.coords["layer"]: (a["copied"] - a["others"]) / a["spread"][:, None]
        for cell, _, a in stored
        if cell.coords["part"] == "layer" and a
    }


def _difference(
    doc: Mapping[str, Any], base: dict[int, Numbers], instruct: dict[int, Numbers]
) -> dict[str, Any]:
    """Instruct less base of the copying score over the same ids, with intervals."""
    widest = max((len(rows) for rows in base.values()), default=0)
    shape = (doc["n_layers"], widest)
    value, low, high, z = (np.full(shape, np.nan) for _ in range(4))
    for layer in base.keys() & instruct.keys():
        if base[layer].shape != instruct[layer].shape:
            continue
        moved = (instruct[layer] - base[layer]).T
        rng = np.random.default_rng([doc["settings"]["seed"], 5, layer])
        at = (layer, slice(moved.shape[1]))
        value[at] = moved.mean(axis=0)
        low[at], high[at] = stats.bootstrap_mean_ci(moved, rng, n_resamples=2000)
        error = moved.std(axis=0, ddof=1) / math.sqrt(len(moved))
        z[at] = moved.mean(axis=0) / np.where(error > 0, error, np.inf)
    n = int(np.isfinite(z).sum())
    far = NormalDist().inv_cdf(1 - FALSE_SHARE / 2 / max(n, 1)) if n else math.inf
    clear = np.abs(np.nan_to_num(z)) > far
    tables = {"value": value, "low": low, "high": high}
    return {name: plain(table) for name, table in tables.items()} | {"clear": clear.tolist()}


def plain(table: Numbers) -> Any:
    """Nested lists in which what is no number is None."""
    if table.ndim == 0:
        return float(table) if np.isfinite(table) else None
    return [plain(np.asarray(row)) for row in table]
