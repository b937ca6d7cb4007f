"""The summary of an injection run: every vector, layer and strength beside its nulls."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles import stats
from mlxroles.events import RunFinished
from mlxroles.store.files import plain
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import notes_of
from mlxroles.studies.inject import scores
from mlxroles.studies.inject.grid import Spot
from mlxroles.studies.inject.items import AWAY, PROMPT, TOWARD, Item
from mlxroles.studies.inject.packed import joined
from mlxroles.studies.inject.tables import cells_of
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.studies.inject.injection import Injection

SCHEMA = "mlxroles/inject/1"
ALL = "all"
"""Name under which the mean over several vectors stands."""

FEWEST = 4
"""Values from which an interval is drawn; resampled, fewer say less than they themselves do."""

Numbers = scores.Numbers
Table = Mapping[str, Any]


class Answers:
    """What is stored of one model and vector: items of the roles asked for, all complete."""

    def __init__(
        self,
        study: "Injection",
        folder: RunFolder,
        side: str,
        name: str,
        roles: Sequence[str] = (),
    ) -> None:
        found = cells_of(study, folder, side, name)
        chosen = [each for each in found if not roles or each[0].role in roles]
        self.items: list[Item] = [item for item, _ in chosen]
        self._arrays = [arrays for _, arrays in chosen]

    @cached_property
    def clean(self) -> Numbers:
        """Measures without injection [item, measure]."""
        return np.stack([arrays["unedited"] for arrays in self._arrays])

    @cached_property
    def values(self) -> Numbers:
        """Measures with injection [item, draw, spot, measure]; all items have the same spots."""
        return np.stack([joined(arrays) for arrays in self._arrays])

    @property
    def roles(self) -> np.ndarray:
        """Role of each item."""
        return np.array([item.role for item in self.items])

    @property
    def shift(self) -> Numbers:
        """First measure with injection less without [item, draw, spot]."""
        return self.values[..., 0] - self.clean[:, None, None, 0]


def build(study: "Injection", folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
    """The document of what is stored so far."""
    asked, subject = study.asked, study.subject
    records = folder.records().values()
    doc: dict[str, Any] = {
        "schema": SCHEMA,
        "run": str(folder.path),
        "run_id": folder.run_id,
        "pair": subject.pair,
        "display": subject.display,
        "mode": asked.mode,
        "battery": asked.battery,
        "headline": asked.readout.what,
        "read": asked.readout.document(),
        "source": study.source.identity(),
        "vectors": list(study.source.names),
        "positions": asked.where.document(),
        "layers": list(study.grid.layers),
        "n_layers": subject.n_layers,
        "scales": list(study.grid.scales),
        "projects": study.grid.projects,
        "relative": study.relative,
        "n_random": study.n_random,
        "seed": study.seed,
        "prompts": [item.document() for item in asked.items],
        "labels": list(asked.labels),
        "models": {},
        "rows": [],
        "tests": [],
    }
    for side in subject.sides:
        doc["models"][side] = _model(study, folder, side)
        summaries = {"battery": _battery, "localise": _localise, "prompts": _prompts}
        for row, test in summaries[asked.mode](study, folder, side):
            (doc["rows"] if row is not None else doc["tests"]).append(row or test)
    doc |= {
        "interrupted": finished.interrupted,
        "failed_cells": [{"cell": r.id, "error": r.error} for r in records if r.status != "ok"],
        "notes": notes_of(folder, subject.notes),
        "timestamp": now(),
        "versions": versions(),
    }
    found: Any = plain(doc)
    return found


Found = Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]
"""A row, or a test."""


def _model(study: "Injection", folder: RunFolder, side: str) -> dict[str, Any]:
    """What a model says without injection, and how long its vectors are beside its stream."""
    answers = Answers(study, folder, side, study.source.names[0])
    names = study.asked.readout.names
    clean = {}
    for role in dict.fromkeys(answers.roles.tolist()):
        rows = answers.clean[answers.roles == role]
        clean[role] = {"n": len(rows)} | dict(zip(names, rows.mean(axis=0), strict=True))
        if study.asked.mode == "battery":
            right = rows[:, 0] > 0 if role == "yes" else rows[:, 0] < 0
            clean[role]["right"] = float(right.mean())
    found = study.stored(folder, side)
    lengths = {} if found is None else {n: dict(found.meta.get(n, {})) for n in found.names}
    return {
        "clean": clean,
        "items": [
            {"id": item.id} | dict(zip(names, row, strict=True))
            for item, row in zip(answers.items, answers.clean if answers.items else (), strict=True)
        ],
        "lengths": {
            n: {key: how.get(key) for key in ("at", "length", "stream")}
            for n, how in lengths.items()
        },
    }


def _each(
    study: "Injection", folder: RunFolder, side: str, roles: Sequence[str] = ()
) -> list[tuple[str, Answers]]:
    """Vectors of which all prompts of the roles are there, with their answers."""
    wanted = sum(not roles or item.role in roles for item in study.asked.items)
    found = ((n, Answers(study, folder, side, n, roles)) for n in study.source.names)
    return [(name, answers) for name, answers in found if wanted and len(answers.items) == wanted]


def _rng(study: "Injection", *about: str) -> np.random.Generator:
    return np.random.default_rng([study.seed, *" ".join(about).encode()])


# --- a battery --------------------------------------------------------------------------------


def _battery(study: "Injection", folder: RunFolder, side: str) -> Found:
    spots = study.grid.spots("detect")
    every, excesses, rights, before = [], [], [], 0.0
    answering = study.asked.readout.names.index("p_answer")
    for name, answers in _each(study, folder, side):
        found = scores.battery(answers.values[..., 0], answers.clean[:, 0], answers.roles)
        right, before = scores.answering(answers.values[..., 0], answers.clean[:, 0], answers.roles)
        usable = scores.still_answers(right, before)
        null, beyond = (scores.against_random(x, usable) for x in (found.draws, found.excess_draws))
        rights.append(right)
        every.append(found.draws)
        excesses.append(found.excess_draws)
        shift = answers.shift[:, 0]
        low, high = scores.score_interval(shift, answers.roles, _rng(study, side, name))
        p_answer = answers.values[:, 0, :, answering].mean(axis=0)
        for k, spot in enumerate(spots):
            row = {"model": side, "vector": name, **spot.document(), "score": found.score[k]}
            row |= {"score_ci": [low[k], high[k]], "z": found.z[k]}
            row |= {"percentile": found.percentile[k], **_null(null, k)}
            row |= {"excess": found.excess[k], "p_excess": beyond.p[k]}
            row |= {"shift_detect": found.detect[k], "shift_no": found.no[k]}
            row |= {"shift_yes": found.yes[k], "p_answer": p_answer[k]}
            yield row | {"controls_right": right[0, k], "answers": usable[k]}, None
        k = null.strongest
        test = _test(side, name, "score", null, spots)
        test |= {"value": found.score[k], "value_ci": [low[k], high[k]], "z": found.z[k]}
        test |= {"percentile": found.percentile[k], "excess": found.excess[k]}
        test |= {"p_excess": beyond.p[k], "p_any_excess": beyond.p_max[k]}
        test |= {"shift_detect": found.detect[k], "shift_no": found.no[k]}
        test |= {"shift_yes": found.yes[k], "p_answer": p_answer[k]}
        test |= {"controls_right": right[0, k], "controls_right_before": before}
        test["draws"] = found.draws[:, k].tolist()
        test["items"] = _per_item(answers, k)
        yield None, test
    if len(every) > 1 and ALL not in study.source.names:
        usable = scores.still_answers(np.mean(rights, axis=0), before)
        yield from _pooled(study, side, usable, np.stack(every), np.stack(excesses))


def _pooled(
    study: "Injection", side: str, usable: np.ndarray, draws: Numbers, excess: Numbers
) -> Found:
    """The mean over vectors [vector, draw, spot]; its interval is over vectors."""
    spots = study.grid.spots("detect")
    null = scores.against_random(draws.mean(axis=0), usable)
    beyond = scores.against_random(excess.mean(axis=0), usable)
    low, high = _over_vectors(study, side, draws[:, 0])
    mean = draws[:, 0].mean(axis=0)
    for k, spot in enumerate(spots):
        row = {"model": side, "vector": ALL, **spot.document(), "score": mean[k]}
        row |= {"score_ci": [low[k], high[k]], **_null(null, k)}
        row |= {"excess": excess[:, 0, k].mean(), "p_excess": beyond.p[k]}
        yield row | {"answers": usable[k]}, None
    k = null.strongest
    test = _test(side, ALL, "score", null, spots)
    test |= {"value": mean[k], "value_ci": [low[k], high[k]], "n_vectors": len(draws)}
    test |= {"excess": excess[:, 0, k].mean(), "p_excess": beyond.p[k]}
    test["p_any_excess"] = beyond.p_max[k]
    test["draws"] = draws.mean(axis=0)[:, k].tolist()
    yield None, test


# --- prompts ----------------------------------------------------------------------------------


def _prompts(study: "Injection", folder: RunFolder, side: str) -> Found:
    """Prompts by role; adding and projecting out are questions of their own."""
    for role in (AWAY, TOWARD, PROMPT):
        spots = study.grid.spots(role)
        for name, answers in _each(study, folder, side, [role]):
            for family in ("add", "out"):
                chosen = [n for n, s in enumerate(spots) if s.is_out == (family == "out")]
                if chosen:
                    yield from _prompt_family(study, answers, (side, name, role, family), chosen)


def _prompt_family(
    study: "Injection", answers: Answers, about: tuple[str, str, str, str], chosen: list[int]
) -> Found:
    side, name, role, family = about
    spots = [study.grid.spots(role)[n] for n in chosen]
    shift, values = answers.shift[:, :, chosen], answers.values[:, :, chosen]
    null = scores.against_random(shift.mean(axis=0))
    p, kl = (study.asked.readout.names.index(x) for x in ("p", "kl"))
    probability, clean = values[..., p], float(answers.clean[:, p].mean())
    many = len(answers.items) >= FEWEST
    rng = _rng(study, *about)
    both = np.concatenate([shift[:, 0], probability[:, 0]], axis=1)
    bounds = stats.bootstrap_mean_ci(both, rng) if many else None
    intervals = np.asarray(bounds) if bounds is not None else np.full((2, both.shape[1]), np.nan)
    draws = probability.mean(axis=0)
    count = len(spots)
    best: dict[str, Any] = {}
    for k, spot in enumerate(spots):
        row = {"model": side, "vector": name, "role": role, "family": family, **spot.document()}
        row |= {"n_prompts": len(answers.items), "shift": shift[:, 0, k].mean()}
        row |= {"shift_ci": intervals[:, k].tolist(), **_null(null, k)}
        row |= {"probability": draws[0, k], "probability_ci": intervals[:, count + k].tolist()}
        row |= {"clean_probability": clean, "kl": values[:, 0, k, kl].mean()}
        rest = draws[1:, k] if len(draws) > 1 else np.full(1, np.nan)
        row |= {"random_probability": rest.mean(), "random_least": rest.min()}
        row["random_most"] = rest.max()
        if k == null.strongest:
            best = dict(row)
        yield row, None
    k = null.strongest
    test = _test(side, name, family, null, spots)
    test |= {key: value for key, value in best.items() if key not in test}
    test |= {"value": best["shift"], "value_ci": best["shift_ci"]}
    test["draws"] = shift[:, :, k].mean(axis=0).tolist()
    test["items"] = _per_item(answers, chosen[k], p)
    yield None, test


# --- trials -----------------------------------------------------------------------------------


def _localise(study: "Injection", folder: RunFolder, side: str) -> Found:
    spots, places = study.grid.spots("trial"), len(study.asked.labels)
    every = []
    answering = study.asked.readout.names.index("p_answer")
    for name, answers in _each(study, folder, side):
        truth = np.array([item.right for item in answers.items])
        found = scores.located(answers.values[..., :places], answers.clean[:, :places], truth)
        every.append(found.right)
        null = scores.against_random(found.right)
        p_answer = answers.values[:, 0, :, answering].mean(axis=0)
        n = len(answers.items)
        for k, spot in enumerate(spots):
            row = {"model": side, "vector": name, **spot.document(), "right": found.right[0, k]}
            row |= {"right_ci": list(scores.share_interval(found.right[0, k], n))}
            row |= {"raw_right": found.raw[0, k], **_null(null, k)}
            yield row | {"n_trials": n, "chance": 1 / places, "p_answer": p_answer[k]}, None
        k = null.strongest
        test = _test(side, name, "right", null, spots)
        test |= {"value": found.right[0, k], "n_trials": n, "chance": 1 / places}
        test["value_ci"] = list(scores.share_interval(found.right[0, k], n))
        test |= {"raw_right": found.raw[0, k], "p_answer": p_answer[k]}
        counts = np.zeros((places, places), dtype=int)
        np.add.at(counts, (truth, found.picks[:, 0, k]), 1)
        test |= {"picks": counts.tolist(), "draws": found.right[:, k].tolist()}
        yield None, test
    if len(every) > 1 and ALL not in study.source.names:
        draws = np.stack(every)
        null = scores.against_random(draws.mean(axis=0))
        k, mean = null.strongest, draws[:, 0].mean(axis=0)
        for n, spot in enumerate(spots):
            row = {"model": side, "vector": ALL, **spot.document(), "right": mean[n]}
            yield row | {**_null(null, n), "chance": 1 / places}, None
        test = _test(side, ALL, "right", null, spots)
        low, high = _over_vectors(study, side, draws[:, 0])
        test |= {"value": mean[k], "value_ci": [low[k], high[k]], "chance": 1 / places}
        test |= {"n_vectors": len(draws), "draws": draws.mean(axis=0)[:, k].tolist()}
        yield None, test


def _over_vectors(study: "Injection", side: str, own: Numbers) -> Numbers:
    """The 95 % interval of a mean over vectors [vector, spot]: [2, spot], NaN for few vectors."""
    if len(own) < FEWEST:
        return np.full((2, own.shape[1]), np.nan)
    return np.asarray(stats.bootstrap_mean_ci(own, _rng(study, side, ALL)))


# --- shared -----------------------------------------------------------------------------------


def _null(null: scores.Null, k: int) -> dict[str, float]:
    found = {"p": null.p[k], "p_max": null.p_max[k], "random_mean": null.mean[k]}
    return found | {"random_low": null.low[k], "random_high": null.high[k]}


def _test(
    side: str, name: str, what: str, null: scores.Null, spots: Sequence[Spot]
) -> dict[str, Any]:
    """The strongest spot of a family, and how many there were to choose from."""
    k = null.strongest
    found = {"model": side, "vector": name, "test": what, **spots[k].document()}
    found |= {"n_spots": int(null.tested.sum()), "n_all_spots": len(spots)}
    return found | {"p_any": null.p_any, "t": null.t[k], **_null(null, k)}


def _per_item(answers: Answers, k: int, measure: int = 0) -> list[dict[str, Any]]:
    """Every prompt at one spot: without injection, with it, and the range of random vectors."""
    found = []
    values = answers.values[:, :, k, measure]
    for item, row, clean in zip(answers.items, values, answers.clean[:, measure], strict=True):
        noise = row[1:] if len(row) > 1 else np.full(1, np.nan)
        about = {"id": item.id, "role": item.role, "about": item.about, "text": item.text}
        about |= {"clean": clean, "injected": row[0], "random_mean": noise.mean()}
        found.append(about | {"random_low": noise.min(), "random_high": noise.max()})
    return found
