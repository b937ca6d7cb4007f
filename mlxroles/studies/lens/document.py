"""The document of a reading: a row per cell, curves over the layers, the texts of all tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles import stats
from mlxroles.events import RunFinished
from mlxroles.prompts import token_texts
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.summary import notes_of
from mlxroles.studies.lens.differences import differences
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.studies.lens.reading import LensStudy

SCHEMA = "mlxroles/lens/1"
CURVES = (
    "p_first_token",
    "log_odds",
    "logit_diff",
    "rank",
    "entropy",
    "kl",
    "end_rank",
    "next_log_prob",
    "contrast",
)
"""Numbers per layer at the last position that is read; ``rank`` and ``end_rank`` are averaged as
ln(1 + rank)."""
RANKS = ("rank", "end_rank")
SHOWN_GRIDS = 12
"""Token grids whose texts the document holds: those that tables, figures and the page show."""
AXES = ("model", "variant", "prompt", "run", "lens")


def reading(study: "LensStudy", folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
    """The document of a run of the study as far as it is stored."""
    records = folder.records()
    good, failed = [], []
    for cell in study.cells:
        record = records.get(cell.id)
        if record is None:
            continue
        if record.status == "ok":
            good.append(record)
        else:
            failed.append({"cell": record.id, "error": record.error})
    read = [r for r in good if r.coords["lens"] != "parts"]
    arrays = {r.id: folder.arrays(r.id) for r in read}
    layers = _layers(study, arrays)
    main = "contrast" if study.is_contrast else "log_odds"
    compared = {r.id: curve(arrays[r.id], main) for r in read}
    about = study.about()
    return {
        "schema": SCHEMA,
        "run": str(folder.path),
        "run_id": folder.run_id,
        "pair": study.subject.pair,
        "display": study.subject.display,
        "site": study.view.site,
        "n_layers": study.subject.n_layers,
        "layers": layers,
        "vocab": _vocab(study),
        "headline": study.targets.headline,
        "by_ids": study.by_ids,
        "headline_ids": list(study.targets.head.variants),
        "contrast": [t.text for t in study.targets.strings] if study.is_contrast else None,
        "strings": study.targets.document(),
        "models": list(study.subject.sides),
        "variants": list(study.variants),
        "prompts": [{"id": name} for name in about["prompts"]],
        "tuned": _tuned(study),
        "edits": {str(r.coords["model"]): r.values["edits"] for r in read if "edits" in r.values},
        "rows": [_row(study, r, arrays) for r in read],
        "curves": [*_curves(study, read, arrays)],
        "differences": [*differences(read, compared, study.seed)],
        "parts": [_parts(study, folder, r) for r in good if r.coords["lens"] == "parts"],
        "texts": _texts(study, read, arrays),
        "interrupted": finished.interrupted,
        "failed_cells": failed,
        "notes": notes_of(folder, study.subject.notes),
        "timestamp": now(),
        "versions": versions(),
    }


def _layers(study: "LensStudy", arrays: Mapping[str, Mapping[str, np.ndarray]]) -> list[int]:
    """The layers that are read: all, or fewer of an architecture that lacks the site in some."""
    count = max((len(found["log_odds"]) for found in arrays.values()), default=0)
    return list(range(count or study.subject.n_layers))


def _vocab(study: "LensStudy") -> int | None:
    found = study.subject.vocab
    return found if found < 2**31 - 1 else None


def _tuned(study: "LensStudy") -> dict[str, Any] | None:
    """Per model where its tuned lens comes from and what it gained on held-out text."""
    if not study.tuned:
        return None
    return {
        side: {"path": str(study.view.tuned), **dict(tuned.meta)}
        for side, tuned in study.tuned.items()
    }


def _row(
    study: "LensStudy", record: Record, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """The numbers of one cell at the last position that is read."""
    c, found = record.coords, arrays[record.id]
    prompt = study.variants[str(c["variant"])][int(str(c["prompt"]))]
    last = found["log_odds"]
    return {
        "model": c["model"],
        "prompt": prompt.id,
        "variant": c["variant"],
        "run": c["run"],
        "lens": c["lens"],
        "category": prompt.category,
        **{name: value for name, value in record.values.items() if name != "edits"},
        "end_p": float(found["top_p"][-1, -1, 0]),
        "log_odds": float(last[-1]),
        "best_rank": int(found["rank"].min()),
        "best_layer": int(found["rank"].argmin()),
    }


def curve(found: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """One number per layer of a cell at the last position that is read [layer]."""
    if name == "entropy":
        return found["lens_entropy"][:, -1].astype(np.float64)
    return (found[name] if found[name].ndim == 1 else found[name][:, -1]).astype(np.float64)


def _curves(
    study: "LensStudy", read: Sequence[Record], arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[dict[str, Any]]:
    """Per model, variant, run and lens the means over prompts, with intervals from two on."""
    groups: dict[tuple, list[Record]] = {}
    for record in read:
        c = record.coords
        groups.setdefault((c["model"], c["variant"], c["run"], c["lens"]), []).append(record)
    for key, ours in groups.items():
        entry: dict[str, Any] = dict(zip(("model", "variant", "run", "lens"), key, strict=True))
        entry["n_prompts"] = len(ours)
        for name in CURVES:
            if name == "contrast" and not study.is_contrast:
                continue
            columns = np.stack([curve(arrays[r.id], name) for r in ours])
            entry[name] = _back(name, stats.nan_mean(_shaped(name, columns)))
            if len(ours) > 1:
                rng = np.random.default_rng([study.seed, *f"{key} {name}".encode()])
                bounds = stats.bootstrap_mean_ci(_shaped(name, columns), rng)
                entry[f"{name}_ci"] = [_back(name, bound) for bound in bounds]
        top = [arrays[r.id] for r in ours]
        # of the layers before the last, over all positions read: which lens is nearer to the end
        entry["kl_mean"] = float(np.mean([found["kl"][:-1].mean() for found in top]))
        if len(ours) == 1:
            ids, probs = top[0]["top_ids"][:, -1, 0], top[0]["top_p"][:, -1, 0]
            entry["top"] = [[int(i), float(p)] for i, p in zip(ids, probs, strict=True)]
        decided = [r.values["decided"] for r in ours if r.values["decided"] is not None]
        settled = [r.values["settled"] for r in ours if r.values["settled"] is not None]
        entry["decided"] = _spread(decided)
        entry["settled"] = _spread(settled)
        yield entry


def _shaped(name: str, columns: np.ndarray) -> np.ndarray:
    return np.log1p(columns) if name in RANKS else columns


def _back(name: str, values: Any) -> list[float | None]:
    """Means on the scale of the number itself."""
    array = np.asarray(values, dtype=np.float64)
    array = np.expm1(array) if name in RANKS else array
    return [None if np.isnan(v) else float(v) for v in array]


def _spread(layers: Sequence[Any]) -> dict[str, Any]:
    """How many prompts have such a layer, and its median with the least and the largest."""
    if not layers:
        return {"n": 0}
    found = [int(v) for v in layers]
    return {
        "n": len(found),
        "median": float(np.median(found)),
        "least": min(found),
        "most": max(found),
    }


def _parts(study: "LensStudy", folder: RunFolder, record: Record) -> dict[str, Any]:
    """One direct attribution, as ``Parts.document`` makes it, with the texts of its ids."""
    c = record.coords
    prompt = study.variants[str(c["variant"])][int(str(c["prompt"]))]
    found: Any = record.values["parts"]
    values = folder.arrays(record.id)["parts_values"]
    texts = {
        side: token_texts(found[f"ids_{side}"], study.subject.tokenizer)
        for side in ("plus", "minus")
    }
    about = {"model": c["model"], "prompt": prompt.id, "variant": c["variant"], "run": c["run"]}
    return {**about, "lens": "parts", **found, "values": values.tolist(), **texts}


def _texts(
    study: "LensStudy", read: Sequence[Record], arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, str]:
    """The text of every id that a shown grid or curve names."""
    variants = list(study.variants)

    def place(record: Record) -> tuple[int, int, bool, bool]:
        c = record.coords
        variant = variants.index(str(c["variant"]))
        return int(str(c["prompt"])), variant, c["lens"] == "plain", c["run"] != "clean"

    ids: set[int] = set()
    for n, record in enumerate(sorted(read, key=place)):  # as ``chosen_grids`` has them
        found = arrays[record.id]
        named = ("top_ids", "end_ids", "token") if n < SHOWN_GRIDS else ()
        for name in named:
            ids |= {int(i) for i in np.unique(found[name])}
        ids |= {int(i) for i in np.unique(found["top_ids"][:, -1, 0])}
        ids |= {int(i) for i in found["end_ids"][-1:]}
    order = sorted(ids)
    found_texts = token_texts(order, study.subject.tokenizer)
    return {str(i): text for i, text in zip(order, found_texts, strict=True)}
