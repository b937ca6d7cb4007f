"""What an entropy document shows, decided once for page, Markdown and terminal alike.

A layer counts where its corrected p is below .05 and its interval excludes 0. What is left of it
after length normalisation, and among prompts of equal length, decides how much is claimed.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mlxroles.report.roles import tracks
from mlxroles.report.roles.tracks import Doc, Track

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


class Influence(NamedTuple):
    """The layer without which a mean over layers changes most."""

    layer: int
    mean: float
    without: float
    """The mean over the other layers."""

    @property
    def decides(self) -> bool:
        """Whether the mean changes its sign or loses more than half without this layer."""
        return self.mean * self.without < 0 or abs(self.without) < 0.5 * abs(self.mean)


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
    """How well prompts of equal length can be exchanged between two categories."""

    prompts: int
    """Prompts whose length occurs in both categories."""
    total: int
    smallest_p: float
    """The smallest p that exchanging all prompts of the two categories could reach."""


def findings(doc: Doc) -> list[Finding]:
    """Every metric of every model and of the difference that the document holds."""
    found = []
    for who in tracks.names(doc):
        for metric in tracks.METRICS:
            raw = tracks.track(doc, who, metric)
            normalised = tracks.track(doc, who, metric, scale="normalised")
            if raw is not None and normalised is not None:
                null = 0.0 if who == tracks.DIFFERENCE else tracks.null(doc, metric)
                found.append(Finding(who, metric, raw, normalised, null))
    return found


def influence(track: Track) -> Influence | None:
    """The layer that carries most of the mean over layers; None with fewer than three layers."""
    known = {n: v for n, v in zip(track.layers, track.value, strict=True) if not math.isnan(v)}
    if len(known) < 3:
        return None
    total = math.fsum(known.values())
    whole = total / len(known)
    without = {layer: (total - value) / (len(known) - 1) for layer, value in known.items()}
    layer = max(without, key=lambda layer: abs(without[layer] - whole))
    return Influence(layer, whole, without[layer])


def forms(doc: Doc, who: str, metric: str, scale: str = "raw") -> list[Form]:
    """The forms other than the default that the document holds, beside it."""
    default = tracks.track(doc, who, metric, scale=scale)
    found = []
    for name in tracks.FORMS:
        track = tracks.track(doc, who, metric, scale=scale, form=name)
        if default is None or track is None or name == tracks.DEFAULT_FORM:
            continue
        opposed = [at for at, v in enumerate(track.value) if v * default.value[at] < 0]
        firmly = [at for at in opposed if _excludes(track, at) and _excludes(default, at)]
        found.append(Form(name, track, track.mean, len(opposed), len(firmly)))
    return found


def exchange(doc: Doc, first: str, second: str) -> Exchange:
    """What permuting labels between two categories has to work with."""
    lengths = {name: Counter[int]() for name in (first, second)}
    for prompt in doc.get("prompts") or []:
        name = prompt.get("category")
        if name in lengths:
            lengths[name][int(prompt.get("n_tokens") or 0)] += 1
    both = lengths[first].keys() & lengths[second].keys()
    shared = sum(lengths[name][length] for name in (first, second) for length in both)
    sizes = [lengths[name].total() for name in (first, second)]
    ways = math.comb(sum(sizes), sizes[0])
    extreme = 2 if sizes[0] == sizes[1] else 1  # swapping equal groups turns the sign
    drawn = int(doc.get("n_permutations") or 0)
    fewest = 1 / (drawn + 1) if drawn else 0.0
    return Exchange(shared, sum(sizes), max(min(extreme / ways, 1.0), fewest))


def flagged(doc: Doc) -> list[tuple[int, int]]:
    """Layer and head of those whose reference entropy is near zero in any model."""
    rows: list[Any] = (doc.get("heads") or {}).get("flagged") or []
    return [(int(layer), int(head)) for layer, head, *_ in rows]


def _excludes(track: Track, at: int) -> bool:
    return track.low[at] > 0 or track.high[at] < 0
