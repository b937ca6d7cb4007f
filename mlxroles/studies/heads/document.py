"""The document of a study of heads: means over rows with intervals, classes, differences, checks.

Rows of tokens are the sample: intervals are bootstrapped over them. The rows of a pair are the
same for both models, so that a difference is taken row by row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles import stats
from mlxroles.detectors import DETECTORS, Classes, Detection, Material, classify
from mlxroles.detectors.classify import ANTI, LEVEL, bounds
from mlxroles.events import Cell
from mlxroles.heads import head_name
from mlxroles.prompts import Tokenizer, token_texts
from mlxroles.store.folder import RunFolder
from mlxroles.studies.ablate import spread
from mlxroles.studies.heads import stored
from mlxroles.studies.heads.behaviours import BEHAVIOURS, LOSS, Behaviour
from mlxroles.studies.heads.causal import ENOUGH
from mlxroles.studies.heads.told import sentence
from mlxroles.studies.heads.work import SHOWN

Numbers = NDArray[np.float64]

SCHEMA = "mlxroles/heads/1"
OFFSETS, PROFILES = 64, 128
"""Offsets of the profiles in a document, and heads that have one at most."""
FALSE_SHARE = 0.05
"""Share of the differences called clear that may be none (Benjamini & Hochberg 1995)."""


def build(
    about: Mapping[str, Any],
    folder: RunFolder,
    cells: Sequence[Cell],
    material: Material,
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """The document without what only the run knows.

    Args:
        about: What it begins with: display, seed, names of the models and so on.
        folder: With the stored cells.
        cells: The whole plan.
        material: What the heads were scored on.
        tokenizer: For the texts of tokens.
    """
    doc: dict[str, Any] = dict(about) | {
        "models": {},
        "difference": {},
        "changed": [],
        "causal": {},
        "examples": {},
    }
    records = {r.id: r for r in folder.records().values() if r.status == "ok"}
    done = [(cell, records[cell.id]) for cell in cells if cell.id in records]
    found: dict[str, Detection] = {}
    for cell, record in done:
        side = cell.coords["model"]
        if cell.coords.get("what") == "scores":
            found[side] = stored.detection_of(folder.arrays(record.id))
            doc["models"][side] = _model(doc, side, found[side])
            doc["examples"][side] = _examples(record.values["examples"], material, tokenizer)
    for side in found:
        zeroed = [
            (cell.coords, record.values, folder.arrays(record.id))
            for cell, record in done
            if cell.coords["model"] == side and "class" in cell.coords and record.arrays
        ]
        if zeroed:
            doc["causal"][side] = corrected(list(causal(zeroed, about["seed"])))
    if {"base", "instruct"} <= found.keys():
        doc["difference"] = _differences(doc, found["base"], found["instruct"])
        doc["changed"] = list(_changed(doc["models"]["base"], doc["models"]["instruct"]))
    doc["sentence"] = sentence(doc)
    return doc


def _model(doc: Mapping[str, Any], side: str, found: Detection) -> dict[str, Any]:
    """Scores, bounds and classes of one model."""
    classes = classify(found.scores)
    known = np.any([np.isfinite(scores.mean) for scores in found.scores.values()], axis=0)
    primary = [
        [name if known[i, h] else None for h, name in enumerate(line)]
        for i, line in enumerate(classes.primary)
    ]
    return {
        "name": doc["names"][side],
        "n_layers": known.shape[0],
        "n_heads": known.shape[1],
        "detectors": {name: _detector(doc, side, name, found, classes) for name in found.scores},
        "profile": _profile(doc, side, found),
        "classes": primary,
        "also": classes.also,
        "by_class": {
            name: [head_name(*at) for at in heads]
            for name, heads in stored.by_class(found, classes).items()
        },
        "tests": classes.tests,
        "notes": [n.partition(": ")[2] for n in doc["notes"] if n.startswith(f"{side}: ")],
    }


def _detector(
    doc: Mapping[str, Any], side: str, name: str, found: Detection, classes: Classes
) -> dict[str, Any]:
    """One detector: means over rows with their intervals, what it marks, what else it knows."""
    scores, about = found.scores[name], DETECTORS[name]
    low_all, high_all = bounds(scores.score, (1 - LEVEL) / (2 * max(classes.tests, 1)))
    made: dict[str, Any] = {
        "title": about.title,
        "what": about.what,
        "against": about.control,
        "class": about.class_name,
        "threshold": about.threshold,
        "n": len(scores.score),
        "best": None if (best := found.best(name)) is None else list(best),
        "uniform": table(stats.nan_mean(scores.uniform)),
        "marked": classes.marked[name].tolist(),
        "low_all": table(low_all),
        "high_all": table(high_all),
    }
    if ANTI in classes.marked and name == "copying":
        made["anti"] = classes.marked[ANTI].tolist()
    both = np.stack([scores.score, np.broadcast_to(scores.control, scores.score.shape)], axis=1)
    ends = stats.bootstrap_mean_ci(both, spread.generator(doc["seed"], side, name))
    for key, start, mean, low, high in zip(
        ("score", "control"), ("", "control_"), stats.nan_mean(both), *ends, strict=True
    ):
        made |= {key: table(mean), f"{start}low": table(low), f"{start}high": table(high)}
    return made | {key: table(stats.nan_mean(values)) for key, values in scores.more.items()}


def _profile(doc: Mapping[str, Any], side: str, found: Detection) -> dict[str, Any]:
    """The positional profile: all heads of a small model, of a large one those that peak most."""
    known = found.profile[..., :OFFSETS].astype(np.float64)
    mean = stats.nan_mean(known)
    peak = np.where(np.isfinite(mean[..., 1:]), mean[..., 1:], -1.0).max(axis=-1, initial=-1.0)
    order = np.argsort(-peak, axis=None, kind="stable")[:PROFILES]
    chosen = [divmod(int(n), mean.shape[1]) for n in order if peak.flat[n] >= 0]
    columns = np.stack([known[:, i, h] for i, h in chosen], axis=1) if chosen else known[:, :0, 0]
    rng = spread.generator(doc["seed"], side, "profile")
    low, high = stats.bootstrap_mean_ci(columns, rng, n_resamples=1_000)
    made: dict[str, Any] = {"offsets": list(range(mean.shape[-1]))}
    for name, rows in (("mean", [mean[at] for at in chosen]), ("low", low), ("high", high)):
        by_head: list[list[Any]] = [[None] * mean.shape[1] for _ in range(mean.shape[0])]
        for (i, h), row in zip(chosen, rows, strict=True):
            by_head[i][h] = [float(f"{x:.5g}") for x in row]
        made[name] = by_head
    even = stats.nan_mean(found.profile_uniform[..., :OFFSETS].astype(np.float64))
    return made | {"uniform": table(even)}


def _differences(doc: Mapping[str, Any], base: Detection, instruct: Detection) -> dict[str, Any]:
    """Instruct less base of every score that both models have."""
    changed = {
        name: instruct.scores[name].score - base.scores[name].score
        for name in base.scores
        if name in instruct.scores
        and base.scores[name].score.shape == instruct.scores[name].score.shape
    }
    return differences(changed, doc["seed"])


def _changed(base: Mapping[str, Any], instruct: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Heads whose class, or whose other classes, are not the same in both models."""
    for layer, line in enumerate(base["classes"]):
        for head in range(len(line)):
            first, second = (
                [of["classes"][layer][head], *of["also"][layer][head]] for of in (base, instruct)
            )
            if set(first) != set(second):
                yield {"head": head_name(layer, head), "base": first, "instruct": second}


def _examples(shown: Any, material: Material, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Head -> which row its pattern is of, and the texts of its tokens."""
    found = {}
    for name, about in shown.items():
        rows = material.sets[about["set"]]
        found[name] = dict(about) | {
            "file": f"pattern_{name}",
            "tokens": token_texts(rows.ids[0][:SHOWN], tokenizer),
            "start": rows.start,
            "length": (len(rows.ids[0]) - rows.start) // 2,
        }
    return found


def table(values: Numbers) -> list[list[float | None]]:
    """Numbers [layer, head] as JSON has them, six digits of each."""
    return [[None if math.isnan(x) else float(f"{x:.6g}") for x in row] for row in values]


def differences(changed: Mapping[str, Numbers], seed: int) -> dict[str, Any]:
    """What became of every score, from its changes row by row [row, layer, head].

    ``clear``: the sign-flip test over rows, corrected for all heads and scores together, and an
    interval without 0.
    """
    ends, p = {}, {}
    for name, rows in changed.items():
        rng = spread.generator(seed, "difference", name)
        ends[name] = stats.bootstrap_mean_ci(rows, rng)
        p[name] = stats.sign_flip_test(rows, rng)
    q = stats.benjamini_hochberg(np.concatenate([[], *(one.ravel() for one in p.values())]))
    made, first = {}, 0
    for name, rows in changed.items():
        (low, high), own = ends[name], q[first : first + p[name].size].reshape(p[name].shape)
        first += own.size
        with np.errstate(invalid="ignore"):
            clear = (own < FALSE_SHARE) & ((low > 0) | (high < 0))
        found = {"value": stats.nan_mean(rows), "low": low, "high": high, "q": own}
        made[name] = {key: table(array) for key, array in found.items()} | {"clear": clear.tolist()}
    return made


def causal(
    cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, np.ndarray]]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for every set of heads and measure, what the class is for before the loss on text.

    A lead that the model does not have, as it is, says nothing where heads go: its row comes last.

    Args:
        cells: Coordinates, values and arrays of each cell that zeroed heads.
        seed: Of the intervals.
    """
    for coords, values, arrays in cells:
        behaviour = BEHAVIOURS.get(coords["class"], LOSS)
        wanted = [behaviour, *([LOSS] if behaviour is not LOSS else [])]
        rows = [
            _zeroed(one, coords, values, arrays, seed) for one in wanted if one.measure in arrays
        ]
        yield from sorted(rows, key=lambda row: not row["has_lead"])


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one model with ``q``: p corrected for all of its sets and measures."""
    q = stats.benjamini_hochberg([math.nan if row["p"] is None else row["p"] for row in rows])
    found = (None if math.isnan(one) else float(one) for one in q)
    return [row | {"q": one} for row, one in zip(rows, found, strict=True)]


def _zeroed(
    one: Behaviour,
    coords: Mapping[str, Any],
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """One set of heads and one measure."""
    change, clean = (
        np.asarray(arrays[f"{part}{one.measure}"], dtype=np.float64) for part in ("", "clean_")
    )
    drawn = [float(x) for x in arrays[f"random_{one.measure}"]]
    rng = spread.generator(seed, coords["model"], coords["class"], coords["set"])
    low, high = (float(x) for x in stats.bootstrap_mean_ci(change, rng))
    has_lead = not one.is_lead or float(stats.bootstrap_mean_ci(clean, rng).low) > 0
    mean = float(change.mean())
    judgement = judged(one, (mean, low, high), drawn)
    return {
        "class": coords["class"],
        "set": coords["set"],
        "heads": [head_name(*at) for at in values["heads"]],
        "measure": one.measure,
        "words": one.words,
        "unit": one.unit,
        "way": one.way,
        "clean": float(clean.mean()),
        "has_lead": has_lead,
        "change": mean,
        "low": low,
        "high": high,
        "n": len(change),
        "random": drawn,
        "random_heads": list(values["random_heads"]),
        **judgement,
        "confirmed": judgement["confirmed"] and has_lead,
    }


def judged(
    behaviour: Behaviour, found: tuple[float, float, float], drawn: Sequence[float]
) -> dict[str, Any]:
    """The one-sided p against random sets, and whether the class is confirmed.

    Confirmed: the interval lies on the side where the measure goes without such heads, and no
    random set, of five at least, goes as far.

    Args:
        behaviour: What was measured.
        found: The change and its interval.
        drawn: The changes of random sets.
    """
    mean, low, high = (behaviour.way * x for x in found)
    null = spread.against(mean, [behaviour.way * x for x in drawn], smaller=False)
    beyond = all(mean > behaviour.way * x for x in drawn)
    p = None if math.isnan(null["p"]) else null["p"]
    confirmed = min(low, high) > 0 and beyond and len(drawn) >= ENOUGH
    return {"p": p, "confirmed": bool(confirmed)}
