"""The verdict: whether the focus prompts are a kind of their own, from RFC and RSI together.

What differs from neutral prompts alone may be what all questions share, what differs from the
confounder alone may be the confounder's. A kind of its own differs from both, in the same layer
and direction, also once entropies are length-normalised.
"""

from typing import NamedTuple

from mlxroles.report.roles import tracks
from mlxroles.report.roles.claims import claim, is_told_by_standing, likeness, standing
from mlxroles.report.roles.findings import Finding, smallest_p
from mlxroles.report.roles.tracks import Doc, Track
from mlxroles.report.roles.wording import listed, shown, signed, who_is, with_interval
from mlxroles.roles.sampling import FEWEST

_NAME = 24
_LISTED = 4


class Model(NamedTuple):
    """Both metrics of one model."""

    who: str
    rfc: Finding
    rsi: Finding | None

    @property
    def both(self) -> frozenset[int]:
        """Layers in which focus differs from both others in the same direction."""
        if self.rsi is None:
            return frozenset()
        rfc, rsi = self.rfc.normalised, self.rsi.normalised
        return (rfc.up & rsi.up) | (rfc.down & rsi.down)

    @property
    def confirmed(self) -> frozenset[int]:
        """Those of them in which both hold among prompts of equal length."""
        if self.rsi is None:
            return frozenset()
        same = self.rfc.normalised.same_length & self.rsi.normalised.same_length
        return self.both & same

    @property
    def any(self) -> frozenset[int]:
        """Layers in which focus differs from either."""
        found = [each.normalised.significant for each in (self.rfc, self.rsi) if each is not None]
        return frozenset().union(*found)

    @property
    def told(self) -> list[Finding]:
        """Metrics of which the verdict tells all there is to say."""
        own = [each for each in (self.rfc, self.rsi) if each is not None]
        claimed = [each for each in own if each.standing != "nothing"]
        is_one = len([each for each in own if each.normalised.significant]) == 1
        first = [each for each in claimed if each.normalised.significant]
        return [each for each in first if is_one and is_told_by_standing(each)]

    @property
    def is_raw(self) -> bool:
        """Whether any layer is significant on the raw scale."""
        return any(each.raw.significant for each in (self.rfc, self.rsi) if each is not None)


def few_prompts(doc: Doc) -> str:
    """Focus and reference with their sizes, if one has too few prompts for any conclusion."""
    numbers = {name: _size(doc, name) for name in (tracks.contrast(doc) or ())[:2]}
    if not numbers or (min(numbers.values()) >= FEWEST and smallest_p(doc, "rfc") < tracks.ALPHA):
        return ""
    return ", ".join(f"{n} {shown(name, _NAME)}" for name, n in numbers.items())


def _size(doc: Doc, category: str) -> int:
    return int(((doc.get("lengths") or {}).get(category) or {}).get("n") or 0)


def verdict(doc: Doc, found: list[Finding]) -> str:
    """One sentence on all models of a document that compares categories."""
    few = few_prompts(doc)
    if few:
        return (
            f"Too few prompts for any conclusion ({few}): below {FEWEST} of a category there are "
            "no intervals, and no layer is called significant."
        )
    each_model = models(found)
    compared = tracks.contrast(doc)
    assert compared is not None
    focus, reference = (shown(name, _NAME) for name in compared[:2])
    if compared[2] is None:
        return _without_confounder(each_model, focus, reference)
    confounder, n_confounder = shown(compared[2], _NAME), _size(doc, compared[2])
    if n_confounder < FEWEST:
        told = _without_confounder(each_model, focus, reference)
        return f"{told} {n_confounder} prompts of {confounder} are too few for RSI."
    names = focus, reference, confounder
    groups = _alike(each_model)
    telling = [group for group in groups if group[0].any]
    has_room = len(telling) == 1 and not any(each.both for each in each_model)
    said = [_differs(group, names, has_intervals=has_room) for group in telling]
    if not said:
        names_of = [who_is(each.who) for each in each_model if each.who != "model"]
        which = f" of {' or '.join(names_of)}" if names_of else ""
        scale = ", once length-normalised" if any(each.is_raw for each in each_model) else ""
        return (
            f"No sign of a separate kind: in no layer{which} does attention entropy on {focus} "
            f"prompts differ significantly from {reference} (RFC) or {confounder} (RSI){scale}."
        )
    start = "No sign of a separate kind"
    if any(each.both for each in each_model):
        is_confirmed = any(each.confirmed for each in each_model)
        start = "Sign of a separate kind" if is_confirmed else "Unconfirmed sign of a separate kind"
    silent = [who_is(each.who) for each in each_model if not each.any]
    rest = f"; in {' and '.join(silent)} from neither" if silent else ""
    return f"{start}: {'; '.join(said)}{rest}."


def models(found: list[Finding]) -> list[Model]:
    """The models of a document's findings, in order."""
    by_who: dict[str, dict[str, Finding]] = {}
    for each in found:
        if not each.is_difference:
            by_who.setdefault(each.who, {})[each.metric] = each
    return [Model(who, own["rfc"], own.get("rsi")) for who, own in by_who.items() if "rfc" in own]


def _alike(models: list[Model]) -> list[list[Model]]:
    """Models of which the same is to be said, together."""
    groups: dict[object, list[Model]] = {}
    for each in models:
        key = tuple(likeness(m) for m in (each.rfc, each.rsi) if m is not None)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _without_confounder(models: list[Model], focus: str, reference: str) -> str:
    """With two categories a difference is all that can be found."""
    groups: dict[object, list[Finding]] = {}
    for each in models:
        groups.setdefault(likeness(each.rfc), []).append(each.rfc)
    said = []
    for group in groups.values():
        names = [who_is(each.who) for each in group if each.who != "model"]
        start = f"in {' and '.join(names)} " if names else ""
        if group[0].standing != "nothing":
            said.append(start + claim(group))
    end = "two categories cannot show a separate kind, only that they differ"
    if not said:
        return f"In no layer does {focus} differ significantly from {reference} (RFC); {end}."
    return f"Entropy on {focus} against {reference} prompts: {'; '.join(said)}; {end}."


def _differs(group: list[Model], names: tuple[str, str, str], *, has_intervals: bool) -> str:
    """In which layers focus differs from what, with the values of the largest."""
    focus, reference, confounder = names
    first = group[0]
    rfc, rsi = first.rfc.normalised, first.rsi.normalised if first.rsi else first.rfc.normalised
    of = "" if first.who == "model" else f" of {' and '.join(who_is(m.who) for m in group)}"
    layers = first.both or rfc.significant or rsi.significant
    chosen = (rfc if first.both or rfc.significant else rsi).largest(layers)
    assert chosen is not None
    most = "" if len(layers) == 1 else f"most in layer {chosen}: "
    values = [
        _values(group, metric, chosen, has_intervals=has_intervals) for metric in ("rfc", "rsi")
    ]
    if first.both:
        is_lower = first.both <= rfc.up
        how = "lower" if is_lower else "higher" if first.both <= rfc.down else "lower or higher"
        held = len(first.confirmed)
        kept = "also" if held == len(layers) else f"{held or 'none'} of these also"
        return (
            f"in {_layers(layers, rfc)}{of} entropy is {how} on {focus} than on both {reference} "
            f"and {confounder} ({most}RFC {values[0]}, RSI {values[1]}), {kept} at equal lengths"
        )
    where = f"in {_layers(layers, rfc)}{of} {focus} differs from "
    if rfc.significant and not rsi.significant:
        return (
            f"{where}{reference} ({most}RFC {values[0]}; {standing(first.rfc)}) but not "
            f"significantly from {confounder} (RSI {values[1]})"
        )
    if not rfc.significant and first.rsi is not None:
        return (
            f"{where}{confounder} ({most}RSI {values[1]}; {standing(first.rsi)}) but not "
            f"significantly from {reference} (RFC {values[0]})"
        )
    return (
        f"{where}{reference} ({most}RFC {values[0]}), in {_layers(rsi.significant, rsi)} from "
        f"{confounder}, in none from both in one direction"
    )


def _layers(layers: frozenset[int], track: Track) -> str:
    """Their numbers, or of many how many there are."""
    total = len(track.layers)
    return listed(layers) if len(layers) <= _LISTED else f"{len(layers)} of {total} layers"


def _values(group: list[Model], metric: str, layer: int, *, has_intervals: bool) -> str:
    found = [each.rfc if metric == "rfc" else each.rsi for each in group]
    known = [each.normalised for each in found if each is not None]
    if len(known) == 1 and has_intervals:
        return with_interval(*known[0].at(layer))
    return " and ".join(signed(each.at(layer)[0]) for each in known)
