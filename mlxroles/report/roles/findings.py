"""What an entropy document shows, decided once for page, Markdown and terminal alike.

Which layers count is read from the document. What is left of them after length normalisation, and
among prompts of equal length, decides how much is claimed.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mlxroles.report.roles import tracks
from mlxroles.report.roles.tracks import Doc, Track
from mlxroles.roles.metrics import DEFAULT_FORM, FORMS, METRICS

Standing = Literal["nothing", "length", "unconfirmed", "untested", "holds"]
"""How far a result carries: nothing survives correction; only without length normalisation; only
without the restriction to prompts of equal length; that restriction leaves nothing to exchange;
under all of them."""


@dataclass(frozen=True)
class Finding:
    """One metric of one model, or of the difference, on both scales."""

    who: str
    metric: str
    raw: Track
    normalised: Track
    null: float
    """The same metric under uniform attention on these lengths, 0 for a difference."""

    @property
    def is_difference(self) -> bool:
        """Whether this is the difference of two models."""
        return self.who == tracks.DIFFERENCE

    @property
    def standing(self) -> Standing:
        """How far the result carries."""
        if not self.normalised.significant:
            return "length" if self.raw.significant else "nothing"
        if self.normalised.same_length:
            return "holds"
        return "unconfirmed" if self.normalised.is_tested_same_length else "untested"

    @property
    def opposed(self) -> bool:
        """Whether the means over layers of the two scales differ in sign."""
        return self.raw.mean * self.normalised.mean < 0

    @property
    def null_share(self) -> float:
        """The metric under uniform attention as a share of the measured mean; NaN if opposed."""
        share = self.null / self.raw.mean if self.raw.mean else math.nan
        return share if share > 0 else math.nan


class Form(NamedTuple):
    """One form of a metric beside the default one."""

    name: str
    track: Track
    mean: float
    opposed_layers: int
    """Layers in which its sign is not that of the ratio of means."""
    opposed_firmly: int
    """Those of them in which both intervals exclude 0."""

    def opposes(self, default: Track) -> bool:
        """Whether its mean over layers has the other sign."""
        return self.mean * default.mean < 0


class Exchange(NamedTuple):
    """How many prompts have a partner of equal length in the other of two categories."""

    prompts: int
    """Prompts whose length occurs in both categories."""
    total: int


def findings(doc: Doc) -> list[Finding]:
    """Every metric of every model and of the difference that the document holds."""
    found = []
    for who in tracks.names(doc):
        for metric in METRICS:
            raw = tracks.track(doc, who, metric)
            normalised = tracks.track(doc, who, metric, scale="normalised")
            if raw is not None and normalised is not None:
                null = 0.0 if who == tracks.DIFFERENCE else tracks.null(doc, metric)
                found.append(Finding(who, metric, raw, normalised, null))
    return found


def forms(doc: Doc, who: str, metric: str, scale: str = "raw") -> list[Form]:
    """The forms other than the default that the document holds, beside it."""
    default = tracks.track(doc, who, metric, scale=scale)
    found = []
    for name in FORMS:
        track = tracks.track(doc, who, metric, scale=scale, form=name)
        if default is None or track is None or name == DEFAULT_FORM:
            continue
        opposed = [at for at, v in enumerate(track.value) if v * default.value[at] < 0]
        firmly = [at for at in opposed if _excludes(track, at) and _excludes(default, at)]
        found.append(Form(name, track, track.mean, len(opposed), len(firmly)))
    return found


def exchange(doc: Doc, first: str, second: str) -> Exchange:
    """How many prompts of two categories can be exchanged for one of equal length."""
    lengths = {name: Counter[int]() for name in (first, second)}
    for prompt in doc.get("prompts") or []:
        name = prompt.get("category")
        if name in lengths:
            lengths[name][int(prompt.get("n_tokens") or 0)] += 1
    both = lengths[first].keys() & lengths[second].keys()
    shared = sum(lengths[name][length] for name in (first, second) for length in both)
    return Exchange(shared, sum(each.total() for each in lengths.values()))


def smallest_p(doc: Doc, metric: str) -> float:
    """The smallest p that a layer of this metric could reach; 0 where the document does not say."""
    test = tracks.label_test(doc, tracks.names(doc)[0], metric) if tracks.names(doc) else {}
    drawn = int(test.get("n_permutations") or 0)
    if not drawn:
        return 0.0
    if not test.get("exact"):
        return 1 / (drawn + 1)
    focus, reference, confounder = tracks.contrast(doc) or ("", "", None)
    sizes = doc.get("lengths") or {}
    compared = (focus, reference if metric == "rfc" else confounder)
    first, second = ((sizes.get(name) or {}).get("n") for name in compared)
    return (2 if first == second else 1) / drawn  # swapping equal groups turns the sign


def _excludes(track: Track, at: int) -> bool:
    return track.low[at] > 0 or track.high[at] < 0
