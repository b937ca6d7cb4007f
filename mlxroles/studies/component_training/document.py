"""The summary of a training: what was learned, with intervals over held-out batches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles import stats
from mlxroles.components.harvest_file import ALIVE
from mlxroles.components.train_measures import DISTANCES
from mlxroles.events import RunFinished
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import notes_of
from mlxroles.studies.component_training.results import COLUMNS, KIND
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.studies.component_training.study import Training

NULLS = ("largest", "shuffled")
"""Whose distance is compared with that by causal importance, batch by batch."""
SCHEMA = f"mlxroles/{KIND}/1"

Doc = dict[str, Any]


def document(
    folder: RunFolder, study: "Training", facts: Mapping[str, Any], finished: RunFinished
) -> Doc:
    """The summary of a run: what was learned, if it came to its end."""
    records = folder.records()
    failed = [
        {"cell": r.id, "error": r.error}
        for cell in study.cells
        if (r := records.get(cell.id)) is not None and r.status != "ok"
    ]
    doc: Doc = {
        "schema": SCHEMA,
        "run": str(folder.path),
        "run_id": folder.run_id,
        "pair": study.subject.pair,
        "display": study.subject.display,
        "recipe": study.identity()["recipe"],
        "wishes": study.identity()["wishes"],
        "seed": study.wishes.seed,
        **facts,
        "learned": _learned(folder, study, facts) if facts else None,
        "interrupted": finished.interrupted,
        "failed_cells": failed,
        "notes": notes_of(folder, study.subject.notes),
        "timestamp": now(),
        "versions": versions(),
    }
    doc["log"] = log(folder, study)
    doc["sentence"] = sentence(doc)
    return doc


def log(folder: RunFolder, study: "Training") -> list[dict[str, float | None]]:
    """The losses in the course of training: means over some steps each."""
    done, rows = folder.done(), []
    for cell in study.cells:
        if cell.coords["stage"] == "train" and cell.id in done:
            for line in folder.arrays(cell.id)["log"].tolist():
                own = {n: None if v != v else v for n, v in zip(COLUMNS, line, strict=True)}
                rows.append(own | {"step": int(line[0])})
    return rows


def _learned(folder: RunFolder, study: "Training", facts: Mapping[str, Any]) -> Doc:
    """Means over held-out batches with their 95 % bootstrap intervals."""
    (cell,) = (cell for cell in study.cells if cell.coords["stage"] == "measure")
    arrays = folder.arrays(cell.id)
    active, importance = arrays["active"], arrays["importance"]
    table = {name: arrays[name] for name in DISTANCES} | {"active": active.sum(axis=1)}
    table |= {f"{null} - masked": table[null] - table["masked"] for null in NULLS}
    found = {name: _interval(column, study.wishes.seed) for name, column in table.items()}
    ends = np.cumsum(list(facts["maps"].values()))[:-1]
    per_map = {}
    for n, (key, own) in enumerate(zip(facts["maps"], np.split(importance, ends), strict=True)):
        per_map[key] = {
            "components": facts["maps"][key],
            "active": _interval(active[:, n], study.wishes.seed),
            "alive": int((own > ALIVE).sum()),
            "missing": float(arrays["missing"][n]),
        }
    return {"batches": len(active), "measures": found, "maps": per_map}


def _interval(column: np.ndarray, seed: int) -> dict[str, float]:
    low, high = stats.bootstrap_mean_ci(column, np.random.default_rng([seed, 5]))
    return {"mean": float(column.mean()), "low": float(low), "high": float(high)}


def sentence(doc: Mapping[str, Any]) -> str:
    """What was found, in one sentence."""
    learned = doc.get("learned")
    if not learned:
        return f"The training of {doc['display']}'s components has not come to its end."
    if doc["unexplained"] > 1:
        return (
            f"The components do not stand for {doc['display']}: they are further from its weights "
            "than nothing would be; train longer, or at a lower --rate."
        )
    own, n = learned["measures"], sum(doc["maps"].values())
    clear = [own[f"{null} - masked"]["low"] > 0 for null in NULLS]
    verdict = (
        f"{_less(clear[0])} than with the same importances on the components with the largest "
        f"outputs ({_of(own['largest'], 3)}), {_less(clear[1])} than on random ones "
        f"({_of(own['shuffled'], 3)})"
    )
    alive = sum(m["alive"] for m in learned["maps"].values())
    return (
        f"Of {n} components of {len(doc['maps'])} maps of {doc['display']}, {alive} are alive on "
        f"held-out text and {_of(own['active'], 1)} important at a position; with these alone "
        f"the next token is KL {_of(own['masked'], 3)} nats from the model's, {verdict}; the "
        f"components leave out {doc['unexplained']:.2%} of the weights' squares."
    )


def _less(clearly: bool) -> str:
    return "less" if clearly else "not clearly less"


def _of(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
