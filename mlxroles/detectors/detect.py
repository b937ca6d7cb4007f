"""All detectors on a model: a score, its uniform baseline and its control, per row and head."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles import notebook
from mlxroles.backend import mx
from mlxroles.detectors.catalogue import DETECTORS
from mlxroles.detectors.copies import copy_scores
from mlxroles.detectors.material import Material
from mlxroles.detectors.places import Numbers
from mlxroles.detectors.reading import Reading, read
from mlxroles.detectors.recipes import ANYWHERE, Part, Recipe, recipes_of
from mlxroles.errors import ModelError
from mlxroles.heads import head_name
from mlxroles.models.model import Model
from mlxroles.stats import nan_mean

_SHOWN = 4
"""Heads of each detector that a notebook shows."""
_AWAY = (2, 3, 4)
"""Distances from the peak of a profile whose mean is its control."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One detector on one model, all [row, layer, head] and NaN where there is no such head.

    Rows are the observations to resample: sequences of text or ids, lists, pairs of names; for
    ``copying`` tokens.
    """

    score: Numbers
    uniform: Numbers
    """The same from a head that attends evenly to all that it sees (0 for ``copying``)."""
    control: Numbers
    """The same measure where what the detector looks for is not there; see ``DETECTORS``."""
    more: Mapping[str, Numbers] = field(default_factory=dict)
    """Further numbers by name, [row, layer, head] as well, rows of their own:

    - ``random``: the score on random ids (first, self, positional);
    - ``offset``: of the peak, one row (positional);
    - ``ratio`` to uniform attention, ``ratio_no_first`` of the weight that is not on position 0,
      where many heads rest, and ``frequency_ratio`` to the share of delimiters, which is the
      published one (delimiter);
    - ``abba``, ``baba``: the two orders; ``copy`` and ``copy_other``: per name, what attending
      to it does to its own logit and on average to those of the others (s_inhibition);
    - ``eigenvalues``: the share of positive ones in the OV circuit over all tokens, between -1 and
      1 (Elhage et al. 2021), ``random_low`` and ``random_high``: between which 95 % of heads of
      random numbers lie, one row each (copying).
    """

    @property
    def mean(self) -> Numbers:
        """Mean score over the rows that have one [layer, head]."""
        return nan_mean(self.score)

    @property
    def null(self) -> Numbers:
        """The larger of the mean uniform baseline and the mean control [layer, head]."""
        return np.fmax(nan_mean(self.uniform), nan_mean(self.control))


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """All detectors on one model, in the order of ``DETECTORS``."""

    scores: Mapping[str, Scores]
    profile: NDArray[np.float32]
    """Mean weight at offsets 0, 1, ... on text (random ids without a tokenizer)
    [row, layer, head, offset]."""
    profile_uniform: NDArray[np.float32]
    """[row, layer, offset]"""
    profile_random: NDArray[np.float32]
    """The profile on random ids."""
    notes: tuple[str, ...] = ()

    def best(self, name: str) -> tuple[int, int] | None:
        """The head (layer, head) of the largest mean score; None where no layer has a pattern."""
        mean = self.scores[name].mean
        if not np.isfinite(mean).any():
            return None
        layer, head = divmod(int(np.nanargmax(mean)), mean.shape[1])
        return layer, head

    def __repr__(self) -> str:
        """The heads of the largest scores of each detector, beside their nulls."""
        lines = [f"  {name:<16} {told}" for name, told in self._best()]
        return "\n".join(["Detection: score (larger null)", *lines])

    def _repr_html_(self) -> str:
        return notebook.table("Heads of the largest scores", ("detector", "heads"), self._best())

    def _best(self) -> list[tuple[str, str]]:
        """Detector and its first heads, as text."""
        found = []
        for name, scores in self.scores.items():
            mean, null = scores.mean, scores.null
            order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), axis=None, kind="stable")
            first = [divmod(int(n), mean.shape[1]) for n in order[:_SHOWN]]
            told = [f"{head_name(*at)} {mean[at]:.2f} ({null[at]:.2f})" for at in first]
            found.append((name, ", ".join(told)))
        return found


class Example(NamedTuple):
    """A head's pattern on one row."""

    set: str
    ids: tuple[int, ...]
    pattern: NDArray[np.float32]
    """[query, key]"""
    detector: str
    start: int
    """Tokens in front of the row, such as BOS."""


def detect(
    model: Model,
    material: Material,
    *,
    layers: Sequence[int] | None = None,
    on_set: Callable[[str], None] = lambda name: None,
) -> Detection:
    """All detectors on a model: one pass for each set of rows.

    Args:
        model: Any model; layers whose attention cannot be seen are NaN.
        material: From ``material``, the same for both models of a pair.
        layers: Layers to read; None for all.
        on_set: Told the name of each set before it runs.

    Raises:
        ModelError: the model has no attention whose pattern can be had.
        PromptError: ids that the model does not have, or rows too long for it.
    """
    readings = {}
    for name, rows in material.sets.items():
        on_set(name)
        readings[name] = read(model, rows, layers=layers)
    return combined(model, material, readings, layers=layers)


def combined(
    model: Model,
    material: Material,
    readings: Mapping[str, Reading],
    *,
    layers: Sequence[int] | None = None,
) -> Detection:
    """The detection that the readings of all sets make; ``detect`` in steps.

    Raises:
        ModelError: the model has no attention whose pattern can be had.
    """
    if not any(np.isfinite(v).any() for r in readings.values() for v in r.values.values()):
        missing = [b.missing.get("pattern") for b in model.network.anatomy.blocks]
        why = model.network.anatomy.refused or next(filter(None, missing), "no attention heads")
        raise ModelError(f"{model.name} ({model.architecture}) shows no attention pattern: {why}")
    found = {
        name: _scores(name, recipe, readings) for name, recipe in recipes_of(material.sets).items()
    }
    home = readings["text" if "text" in readings else "random"]
    assert home.profile is not None
    assert home.profile_uniform is not None
    random = readings["random"].profile
    assert random is not None
    found["positional"] = positional(home.profile, home.profile_uniform, random)
    if "delimiter" in found:
        found["delimiter"] = _ratios(found["delimiter"], found["first"], material)
    notes = [*material.notes]
    try:
        with_names = [material.names] if "s_inhibition" in found else []
        copied = copy_scores(model, material.ordinary, *with_names, layers=layers)
        (own, *named), shares = copied.sets, copied.eigenvalues
        found["copying"] = Scores(own.z, 0 * own.z, own.shifted, shares)
        notes += [f"copying: {note}" for note in copied.notes]
        for of_names in named:
            more = {"copy": of_names.own, "copy_other": of_names.other}
            whole = found["s_inhibition"]
            found["s_inhibition"] = replace(whole, more=dict(whole.more) | more)
    except ModelError as error:
        notes.append(f"copying: {error}")
    ordered = {name: found[name] for name in DETECTORS if name in found}
    return Detection(ordered, home.profile, home.profile_uniform, random, tuple(notes))


def patterns(
    model: Model, material: Material, heads: Iterable[tuple[int, int, str]], *, row: int = 0
) -> dict[tuple[int, int, str], Example]:
    """The patterns of some heads on a row that shows what a detector found, [query, key].

    Args:
        model: The model.
        material: What it was detected on.
        heads: (layer, head, detector); ``copying`` shows the text.
        row: Which row of the detector's set.

    Raises:
        ModelError: a layer that shows no pattern.
    """
    by_set: dict[str, list[tuple[int, int, str]]] = {}
    known = recipes_of(material.sets)
    for layer, head, detector in heads:
        name = known[detector].score[0][0] if detector in known else "text"
        by_set.setdefault(name if name in material.sets else "random", []).append(
            (layer, head, detector)
        )
    found = {}
    for name, wanted in by_set.items():
        rows = material.sets[name]
        ids, layers = rows.ids[row], sorted({layer for layer, _, _ in wanted})
        for layer in layers:  # one at a time: no two layers' patterns in memory
            run = model.run([list(ids)], keep=["pattern"], layers=[layer], logits=False)
            pattern = np.array(run["pattern", layer].astype(mx.float32))[0]
            for at in (at for at in wanted if at[0] == layer):
                found[at] = Example(name, ids, pattern[at[1]], at[2], rows.start)
    return found


def _scores(name: str, recipe: Recipe, readings: Mapping[str, Reading]) -> Scores:
    def part(parts: Sequence[Part]) -> Numbers:
        return np.mean([readings[rows].values[score] for rows, score in parts], axis=0)

    score = part(recipe.score)
    even = np.mean([readings[r].uniform[s] for r, s in recipe.score], axis=0)[..., None]
    uniform = np.where(np.isnan(score), np.nan, even)
    more = {}
    if len(recipe.score) > 1:
        more = {r.rsplit("_", 1)[-1]: readings[r].values[s] for r, s in recipe.score}
    if name in ANYWHERE:
        more["random"] = readings["random"].values[recipe.score[0][1]]
    return Scores(score, uniform, part(recipe.control), more)


def positional(
    profile: NDArray[np.float32],
    uniform: NDArray[np.float32],
    random: NDArray[np.float32] | None = None,
) -> Scores:
    """The weight at the offset, 1 or more, where the averaged profile is largest.

    Each row is read at the peak of the other rows, so that the chance by which an offset has the
    largest mean is not in its score; ``more["offset"]`` is the peak of all rows. The control is
    the mean over the offsets 2, 3 and 4 away from the peak, on both sides.

    Args:
        profile: [row, layer, head, offset]
        uniform: [row, layer, offset]
        random: The profile on random ids, for ``more["random"]``.
    """
    known = np.nan_to_num(profile[..., 1:])
    total = known.sum(axis=0, dtype=np.float64)
    whole = 1 + np.argmax(total, axis=-1)
    peaks = np.stack([1 + np.argmax(total - row, axis=-1) for row in known])

    def at(values: np.ndarray, offsets: np.ndarray) -> Numbers:
        index = np.broadcast_to(offsets, (len(values), *offsets.shape[-2:]))[..., None]
        return np.take_along_axis(values, index, axis=-1)[..., 0].astype(np.float64)

    away = []
    for distance in (*_AWAY, *(-d for d in _AWAY)):
        beside = peaks + distance
        there = (beside >= 1) & (beside < profile.shape[-1])
        away.append(np.where(there, at(profile, np.where(there, beside, 1)), np.nan))
    even = np.broadcast_to(uniform[:, :, None], profile.shape)
    score = at(profile, peaks)
    more = {"offset": np.where(np.isfinite(profile).any(axis=(0, 3)), whole, np.nan)[None]}
    if random is not None and random.shape[-1] >= profile.shape[-1]:
        more["random"] = score if random is profile else at(random, whole)
    return Scores(
        score, np.where(np.isnan(score), np.nan, at(even, peaks)), nan_mean(np.stack(away)), more
    )


def _ratios(scores: Scores, first: Scores, material: Material) -> Scores:
    """The delimiter scores with their ratios."""
    rows = material.sets["text"]
    alone = 1 / len(rows.ids[0]) if not rows.start else 0.0  # query 0 sees nothing but key 0
    share = material.share or np.nan

    def rest(given: Numbers) -> Numbers:
        """Mean weight on other keys than the first."""
        return (1 - alone) * (1 - given)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scores.uniform > 0, scores.score / scores.uniform, np.nan)
        no_first = ratio * rest(first.uniform) / rest(first.score)
    more = {"ratio": ratio, "ratio_no_first": no_first, "frequency_ratio": scores.score / share}
    return Scores(scores.score, scores.uniform, scores.control, dict(scores.more) | more)
