"""Which heads look from the deciding query to the injected positions, with the vector and without.

Looked at for the strongest addition of each model alone, beside the random vectors of its length:
a head that a random vector moves as far says nothing about what was injected.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import Edit, onto
from mlxroles.errors import MlxrolesError, StoreError
from mlxroles.models.model import Model
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import read_summary
from mlxroles.studies.inject import scores
from mlxroles.studies.inject.grid import OUT, Directions, Spot, edits
from mlxroles.studies.inject.items import TOWARD, Item
from mlxroles.studies.inject.packed import maps

if TYPE_CHECKING:
    from mlxroles.studies.inject.injection import Injection

LISTED = 12
_KEY = ("vector", "layer", "scale")


def look(study: "Injection", folder: RunFolder, doc: dict[str, Any]) -> dict[str, np.ndarray]:
    """Adds ``attention`` to the document and returns the maps; what is there already is kept.

    Per model: which vector, layer and scale, on which prompts, and the heads that the vector
    moves most, each with its p against the random vectors.
    """
    if study.subject.ranks is not None:
        return {}
    stored = read_summary(folder.path).get("attention")
    stored = stored if isinstance(stored, dict) else {}
    arrays = _stored(folder)
    found: dict[str, Any] = {}
    kept: dict[str, np.ndarray] = {}
    for side in study.subject.sides if _shown(study.asked.items) else ():
        spot = strongest(doc, side)
        if spot is None:
            continue
        old = stored.get(side)
        mine = {name: image for name, image in arrays.items() if name.startswith(f"{side}/")}
        if isinstance(old, dict) and all(old.get(k) == spot[k] for k in _KEY) and mine:
            found[side] = old
            kept |= mine
            continue
        try:
            found[side], looked = _of_model(study, side, spot)
        except MlxrolesError as error:
            doc["notes"] = [*doc["notes"], f"no attention maps of {side}: {error}"]
            continue
        kept |= looked
    doc["attention"] = found
    return kept


def strongest(doc: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    """Vector, layer and scale of the addition that random vectors match least.

    Of the last block nothing is seen by attention any more, so that it is left out.
    """
    rows = [
        row
        for row in doc["rows"]
        if row["model"] == side
        and row["vector"] in doc["vectors"]
        and row["scale"] != OUT
        and row["layer"] < doc["n_layers"] - 1
        and row.get("answers") is not False
    ]
    if not rows:
        return None
    main = next(key for key in ("score", "shift", "right") if key in rows[0])

    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        p = row["p_max"] if row["p_max"] is not None else 1.0
        return -p, abs(row[main])

    best = max(rows, key=rank)
    return {key: best[key] for key in _KEY}


def _stored(folder: RunFolder) -> dict[str, np.ndarray]:
    try:
        return maps(folder.path)
    except StoreError:
        return {}  # damaged: what it held is looked at anew


def _of_model(
    study: "Injection", side: str, at: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    model = study.subject.model(side)
    found = Directions(study.vectors(side), at["vector"], study.n_random, study.seed)
    spot = Spot(at["layer"], at["scale"])
    looked, listed = {}, []
    for item in _shown(study.asked.items):
        clean = looks(model, item, ())
        rows = [
            looks(model, item, edits(model, item, spot, found, draw))
            for draw in range(1 + study.n_random)
        ]
        draws = np.stack(rows)
        looked |= {f"{side}/{item.id}/clean": clean, f"{side}/{item.id}/draws": draws}
        listed.append({"id": item.id, "role": item.role, "heads": _heads(clean, draws)})
    return {**at, "items": listed}, looked


def _shown(items: Sequence[Item]) -> list[Item]:
    """The first prompt of the first two roles that a vector is added to.

    Where it is added everywhere all attention goes there, with it and without.
    """
    firsts: dict[str, Item] = {}
    for item in items:
        if item.role != TOWARD and len(item.where) < len(item.ids):
            firsts.setdefault(item.role, item)
    return list(firsts.values())[:2]


def looks(model: Model, item: Item, under: Sequence[Edit]) -> np.ndarray:
    """Share of each head's attention, at the last query, that goes to the injected positions.

    Returns:
        [layer, head], NaN for layers without a softmax pattern.
    """
    anatomy, last = model.network.anatomy, len(item.ids) - 1
    layers = [i for i in range(model.n_layers) if "pattern" not in model.network.block(i).missing]
    keep: dict[str, Any] = {"keep": ["pattern"], "layers": layers, "logits": False}
    if anatomy.prefix and anatomy.shortest == 1 and last > 0:
        before = [e for e in under if e.first_position < last]
        held = model.prefix([item.ids[:-1]], [_until(e, last) for e in before])
        after = [onto(e, last, last + 1) for e in under]
        rest = [e for e in after if e is not None]
        run = model.run([item.ids[-1:]], edits=rest, prefix=held, **keep)
    else:
        run = model.run([item.ids], edits=list(under), **keep)
    width = max((model.network.block(i).heads for i in layers), default=1)
    out = np.full((model.n_layers, width), np.nan)
    for i in layers:
        row = np.array(run["pattern", i][0, :, -1].astype(mx.float32))
        seen = row[:, [p for p in item.where if p < row.shape[1]]]
        out[i, : len(row)] = seen.sum(axis=1)
    return out


def _until(edit: Edit, length: int) -> Edit:
    """The edit on a run that ends before ``length``."""
    from dataclasses import replace

    if edit.positions is None:
        return edit
    return replace(edit, positions=tuple(p for p in edit.positions if p < length))


def _heads(clean: np.ndarray, draws: np.ndarray) -> list[dict[str, Any]]:
    """The heads that the vector moves most; ``p_max`` is familywise over all heads."""
    moved = draws - clean
    flat = moved.reshape(len(moved), -1)
    null = scores.against_random(flat, np.isfinite(flat).all(axis=0))
    order = np.argsort(-np.nan_to_num(np.abs(moved[0]), nan=-1.0), axis=None, kind="stable")
    found = []
    for at in order[:LISTED]:
        layer, head = (int(n) for n in np.unravel_index(at, clean.shape))
        if not np.isfinite(moved[0, layer, head]):
            break
        about = {"layer": layer, "head": head, "clean": float(clean[layer, head])}
        about |= {"injected": float(draws[0, layer, head]), "change": float(moved[0, layer, head])}
        p, p_max = (float(x[at]) if np.isfinite(x[at]) else None for x in (null.p, null.p_max))
        found.append(about | {"p": p, "p_max": p_max})
    return found
