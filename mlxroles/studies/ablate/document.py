"""The document of an ablation run: means with intervals, random sets, sums, and the sentence.

Everything is read from the stored cells. Prompts are the sample: intervals are bootstrapped over
them, and a difference is taken prompt by prompt. The random sets give a p value of their own,
which says whether other heads would have done the same.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.events import Cell
from mlxroles.heads import head_name
from mlxroles.store.folder import RunFolder
from mlxroles.studies.ablate import spread
from mlxroles.studies.ablate.told import sentence
from mlxroles.text import guarded

Numbers = NDArray[np.float64]
Names = Mapping[str, tuple[str, str, bool]]
"""Key of an ablation -> name, kind, whether it is held against a sum."""

SCHEMA = "mlxroles/ablate/1"
TABLE = "effects.csv"

LEVELS = ("gain", "loss_first", "loss_second", "p_first_token", "p_union", "log_odds", "entropy")
"""Measures that the unablated model has too: the change is what counts."""
MEASURES = ("kl", "top1_changed", "logit_diff", "loss", "nip", "cosine", *LEVELS)


def repeats(ids: Sequence[int]) -> bool:
    """Whether token ids are a sequence [x, x] of two tokens each at least."""
    half = len(ids) // 2
    return len(ids) == 2 * half and half > 1 and tuple(ids[:half]) == tuple(ids[half:])


def headline(is_repeated: bool, has_targets: bool) -> str:
    """The measure that effects are held against chance by: gain, log_odds or kl."""
    if is_repeated:
        return "gain"
    return "log_odds" if has_targets else "kl"


def digest(directions: Mapping[int, np.ndarray]) -> str:
    """SHA-256 of directions by layer."""
    found = hashlib.sha256()
    for layer in sorted(directions):
        found.update(f"{layer}:".encode())
        found.update(np.ascontiguousarray(directions[layer], dtype="<f4").tobytes())
    return found.hexdigest()


def build(
    about: Mapping[str, Any], folder: RunFolder, cells: Sequence[Cell], names: Names
) -> dict[str, Any]:
    """The document without what only the run knows.

    Args:
        about: What it begins with: models, headline, seed and so on.
        folder: With the stored cells.
        cells: The whole plan.
        names: Of the ablations.
    """
    doc = dict(about)
    doc |= {"baseline": {}, "scores": {}, "rows": [], "skipped": 0}
    for model in about["models"]:
        own = [cell for cell in cells if cell.coords["model"] == model]
        _model(doc, folder, own, names, model)
    doc["sentence"] = sentence(doc)
    return doc


def _model(
    doc: dict[str, Any], folder: RunFolder, cells: Sequence[Cell], names: Names, model: str
) -> None:
    records = {r.id: r for r in folder.records().values() if r.status == "ok"}
    done = [cell for cell in cells if cell.id in records]
    start = next((c for c in done if c.coords["what"] == "baseline"), None)
    if start is None:
        return
    base = folder.arrays(start.id)
    levels = {name: base[name] for name in LEVELS if name in base}
    doc["baseline"][model] = _means(doc, levels, model, "baseline")
    doc["scores"] |= _scores(base, model)
    drawn: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    own: list[tuple[Cell, Mapping[str, Any], dict[str, np.ndarray]]] = []
    for cell in done:
        c, values = cell.coords, records[cell.id].values
        if "skipped" in values:
            doc["skipped"] += "random" not in c
        elif "random" in c:
            drawn.setdefault((c["what"], c.get("factor")), []).append(values)
        elif c["what"] != "baseline":
            own.append((cell, values, folder.arrays(cell.id)))
    rows = []
    for cell, values, arrays in own:
        c = cell.coords
        row = _row(doc, cell, values, (arrays, base), names)
        row["null"] = _null(doc, row, drawn.get((c["what"], c.get("factor")), ()))
        rows.append(row)
    if doc["is_each"]:
        _peers(rows)
    _sums(doc, rows, own, base, names)
    doc["rows"] += rows


def _scores(base: Mapping[str, np.ndarray], model: str) -> dict[str, Any]:
    if "score_previous" not in base:
        return {}
    return {model: {name: base[f"score_{name}"].tolist() for name in ("previous", "induction")}}


def _row(
    doc: Mapping[str, Any],
    cell: Cell,
    values: Mapping[str, Any],
    stored: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    names: Names,
) -> dict[str, Any]:
    """One ablation; ``stored`` are its arrays and the baseline's."""
    (arrays, base), model = stored, cell.coords["model"]
    key, factor = cell.coords["what"], cell.coords.get("factor")
    name, kind, is_joint = names[key]
    heads = [tuple(at) for at in values["heads"]]
    if len(heads) == 1 and head_name(*heads[0]) not in name and kind == "heads":
        name += f" {head_name(*heads[0])}"  # one that was found by its score
    row: dict[str, Any] = {
        "model": model,
        "ablation": name,
        "key": key,
        "kind": kind,
        "heads": [list(at) for at in heads],
        **({"components": values["components"]} if "components" in values else {}),
        "parts": len(_parts(values)),
        "factor": None if factor is None else float(factor),
        "is_joint": is_joint,
        "cell": cell.id,
    }
    columns = {name: arrays[name] for name in MEASURES if name in arrays}
    both = [name for name in columns if name in LEVELS and name in base]
    columns |= {f"{name} change": arrays[name] - base[name] for name in both}
    columns["effect"] = effect(doc, arrays, base)
    found = _means(doc, columns, model, key)
    for name in both:
        change = found.pop(f"{name} change")
        found[name] |= {f"change_{part}": value for part, value in change.items()}
    row |= found
    if doc["headline"] == "gain":
        row["removed"] = _removed(doc, arrays, base, model, key)
    if "entropy_change" in arrays:
        row["entropy_change"] = _by_layer(arrays["entropy_change"])
    return row


def effect(
    doc: Mapping[str, Any], arrays: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]
) -> Numbers:
    """What an ablation did, by the headline measure [prompt].

    ``gain``: what it took from the repetition gain, nats. ``log_odds``: what it added to them.
    ``kl``: from the clean run, nats.
    """
    name = doc["headline"]
    if name == "kl":
        return np.asarray(arrays["kl"])
    change = np.asarray(arrays[name]) - base[name]
    return -change if name == "gain" else change


def _removed(
    doc: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    model: str,
    key: str,
) -> dict[str, Any]:
    """The share of the repetition gain that is gone, with its interval."""
    taken, whole = base["gain"] - arrays["gain"], base["gain"]
    rng = spread.generator(doc["seed"], model, key, "removed")
    share, ci = spread.ratio(taken, whole, range(len(whole)), rng)
    return {"mean": share, "ci": ci}


def _null(
    doc: Mapping[str, Any], row: Mapping[str, Any], drawn: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The random sets beside an ablation, by the size of the headline effect."""
    if not drawn:
        return None
    name, model = doc["headline"], row["model"]
    found = []
    for values in drawn:
        value = float(values[name])
        if name == "gain":
            value = doc["baseline"][model]["gain"]["mean"] - value
        elif name == "log_odds":
            value -= doc["baseline"][model]["log_odds"]["mean"]
        found.append(value)
    return _against(name, row["effect"]["mean"], found)


def _against(name: str, value: float, drawn: Sequence[float]) -> dict[str, Any]:
    """One-sided; of changes that may go either way the sizes are compared."""
    if name == "log_odds":
        known = spread.against(abs(value), [abs(x) for x in drawn], smaller=False)
    else:
        known = spread.against(value, list(drawn), smaller=False)
    return known | {"values": [float(x) for x in drawn]}


def _peers(rows: Sequence[dict[str, Any]]) -> None:
    """Of single heads that were all ablated: the other heads of the layer are the random sets."""
    for row in rows:
        layer = row["heads"][0][0]
        others = [
            r["effect"]["mean"]
            for r in rows
            if r is not row and r["heads"][0][0] == layer and r["factor"] == row["factor"]
        ]
        row["null"] = _against("", row["effect"]["mean"], others) if others else None


def _sums(
    doc: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    own: Sequence[tuple[Cell, Mapping[str, Any], Mapping[str, np.ndarray]]],
    base: Mapping[str, np.ndarray],
    names: Names,
) -> None:
    """Of joint ablations: the sum of their parts' own effects, and what they do beyond it."""
    alone: dict[tuple[Any, str | None], Numbers] = {}
    for cell, values, arrays in own:
        if len(_parts(values)) == 1:
            at = _parts(values)[0], cell.coords.get("factor")
            alone[at] = effect(doc, arrays, base)
    for row, (cell, values, arrays) in zip(rows, own, strict=True):
        if not names[cell.coords["what"]][2]:
            continue
        parts = [alone.get((at, cell.coords.get("factor"))) for at in _parts(values)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            continue
        total = np.sum(found, axis=0)
        beyond = effect(doc, arrays, base) - total
        row |= _means(doc, {"sum": total, "beyond_sum": beyond}, row["model"], row["key"])


def _parts(values: Mapping[str, Any]) -> list[Any]:
    """What an ablation consists of: heads (layer, head), or components by name."""
    return values.get("components") or [tuple(at) for at in values["heads"]]


def _by_layer(changed: np.ndarray) -> list[float]:
    """Mean over the heads of each layer, NaN where there is none."""
    known = np.isfinite(changed)
    total = np.where(known, changed, 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return [float(t / c) if c else math.nan for t, c in zip(total, count, strict=True)]


def _means(
    doc: Mapping[str, Any], columns: Mapping[str, np.ndarray], model: str, key: str
) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval over prompts of each column."""
    if not columns:
        return {}
    values = np.stack([np.asarray(column) for column in columns.values()], axis=1)
    rng = spread.generator(doc["seed"], model, key, *columns)
    found = spread.means(values, range(len(values)), rng)
    return {
        name: {part: found.at(n)[part] for part in ("mean", "ci")} for n, name in enumerate(columns)
    }


def write_table(folder: RunFolder, doc: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Writes every number in long form as ``effects.csv``: one line per prompt and measure.

    Random sets have one line per measure, their means over the prompts.

    Raises:
        StoreError: it cannot be written.
    """
    from mlxroles.studies.role_results import write_csv

    write_csv(folder.path / TABLE, list(_lines(folder, doc, cells)))


def _lines(
    folder: RunFolder, doc: Mapping[str, Any], cells: Sequence[Cell]
) -> Iterator[dict[str, Any]]:
    records = {r.id: r for r in folder.records().values() if r.status == "ok"}
    prompts = [guarded(str(prompt["id"])) for prompt in doc["prompts"]]
    has_components = any("components" in record.values for record in records.values())
    for cell in cells:
        record = records.get(cell.id)
        if record is None or "skipped" in record.values:
            continue
        c = cell.coords
        named: Any = record.values.get("heads", ())
        heads = " ".join(head_name(*at) for at in named)
        about = {
            "model": c["model"],
            "ablation": c["what"],
            "factor": c.get("factor", ""),
            "random": c.get("random", ""),
            "heads": heads,
        }
        if has_components:
            parts: Any = record.values.get("components", ())
            about["components"] = " ".join(parts)
        if "random" in c:
            for name in MEASURES:
                if name in record.values:
                    line = {"prompt": "", "measure": name, "value": record.values[name]}
                    yield about | line
            continue
        arrays = folder.arrays(cell.id)
        for name in (name for name in MEASURES if name in arrays):
            for prompt, value in zip(prompts, arrays[name].tolist(), strict=True):
                yield about | {"prompt": prompt, "measure": name, "value": value}
