"""The reading at the top of a report on role metrics: what was asked, what the data show."""

import math
from typing import Any, NamedTuple

from mlxroles.report.roles import tracks
from mlxroles.report.roles.caveats import caveats
from mlxroles.report.roles.findings import Finding, findings, flagged, forms, influence
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.wording import (
    LABELS,
    claim,
    count,
    name_of,
    shown,
    signed,
    who_is,
)
from mlxroles.text import format_number

_MOST_HEADS = 6


class Section(NamedTuple):
    """A heading and its points, plain text that is safe to show."""

    heading: str
    points: list[str]


def reading(doc: Doc) -> list[Section]:
    """The sections in the order in which they are read; those with nothing to say are left out."""
    found = findings(doc)
    sections = [Section("What was asked", _asked(doc))]
    if found:
        sections += [
            Section("What the data show", _shown(doc, found)),
            Section("How much of it is prompt length", _lengths(doc, found)),
            Section("Whether the ways of computing it agree", _agreement(doc, found)),
            Section("Single heads", [*_heads(doc), *_candidates(doc)]),
        ]
    notes = [shown(note, 300) for note in doc.get("notes") or []]
    sections.append(Section("What the data do not show", caveats(doc)))
    sections.append(Section("Notes of the run", notes))
    return [section for section in sections if section.points]


def _label(found: Finding) -> str:
    return f"{LABELS[found.metric]}, {who_is(found.who)}"


def _asked(doc: Doc) -> list[str]:
    models = tracks.models(doc)
    layers = doc.get("layers") or []
    scope = (
        f"{count(len(layers), 'layer')} of {count(int(doc.get('n_heads') or 0), 'head')} each in "
        f"{' and '.join(map(shown, models))}, {count(len(doc.get('prompts') or []), 'prompt')}."
    )
    if tracks.contrast(doc) is None:
        return [f"How widely does attention spread over the prompt? {scope}"]
    focus, reference = name_of(doc, "rfc")
    points = [
        f"Does attention spread less widely on {focus} prompts than on others? {scope}",
        f"RFC = 1 − H({focus}) / H({reference}), with H the mean entropy of attention: above 0 "
        f"where {focus} prompts have the lower entropy.",
    ]
    if tracks.confounder(doc) is not None:
        _, confounder = name_of(doc, "rsi")
        points.append(
            f"RSI = (H({confounder}) − H({focus})) / H({reference}): above 0 where {focus} prompts "
            f"have lower entropy than {confounder} ones."
        )
    points.append(
        "A layer counts as different where p < .05 after the Benjamini-Hochberg correction over "
        "layers (labels permuted over prompts) and its interval excludes 0."
    )
    return points


def _shown(doc: Doc, found: list[Finding]) -> list[str]:
    points = []
    for each in found:
        track = each.normalised
        chance = f"before correction: {track.uncorrected}, by chance {track.expected:.1f}"
        points.append(f"{_label(each)}: {claim(doc, each)}. (p < .05 {chance})")
    return points


def _lengths(doc: Doc, found: list[Finding]) -> list[str]:
    points = []
    sizes: dict[str, Any] = doc.get("lengths") or {}
    if sizes:
        listed = ", ".join(
            f"{shown(name)} {format_number(tracks.number(size.get('mean')), '.2f')}"
            for name, size in sizes.items()
        )
        points.append(
            f"Mean tokens per prompt: {listed}. A query that sees more keys "
            "can spread further, so longer prompts tend to have larger entropies."
        )
    for each in found:
        means = (
            f"mean over layers {signed(each.raw.mean)} raw, "
            f"{signed(each.normalised.mean)} length-normalised"
        )
        points.append(f"{_label(each)}: {means}{_against_null(each)}; {_same_length_counts(each)}.")
    return points


def _against_null(found: Finding) -> str:
    if found.who == tracks.DIFFERENCE or math.isnan(found.null):
        return ""
    text = f"; uniform attention on these lengths alone gives {signed(found.null)}"
    if math.isnan(found.null_share):
        opposed = found.null and found.raw.mean and found.null * found.raw.mean < 0
        return f"{text}, of the opposite sign" if opposed else text
    if found.null_share >= 1:
        return f"{text}, as much as was measured or more"
    return f"{text}, {100 * found.null_share:.0f} % of the raw mean"


def _same_length_counts(found: Finding) -> str:
    if not (found.raw.is_tested_same_length or found.normalised.is_tested_same_length):
        return "no prompts of equal length to exchange"
    kept = {
        name: f"{len(track.same_length)} of {len(track.significant)}"
        for name, track in (("normalised", found.normalised), ("raw", found.raw))
        if track.same_length
    }
    if not kept:
        return "among prompts of equal length nothing survives correction"
    listed = ", ".join(f"{number} ({name})" for name, number in kept.items())
    return f"among prompts of equal length {listed} significant layers remain"


def _agreement(doc: Doc, found: list[Finding]) -> list[str]:
    points = disagreements(doc, found) or [
        "Raw and length-normalised means agree in sign, so do the forms of the ratio, and no "
        "single layer decides a mean."
    ]
    return [*points, *_near_zero(doc)]


def disagreements(doc: Doc, found: list[Finding]) -> list[str]:
    """Where scales or forms differ in sign, and where one layer decides a mean."""
    points = []
    for each in found:
        label = _label(each)
        if each.opposed:
            points.append(
                f"{label}: raw and length-normalised disagree in sign (means over layers "
                f"{signed(each.raw.mean)} and {signed(each.normalised.mean)}): no direction can "
                "be read from the means."
            )
        opposite = (each.raw.up & each.normalised.down) | (each.raw.down & each.normalised.up)
        if opposite:
            points.append(
                f"{label}: {count(len(opposite), 'layer')} significant on both scales, with "
                "opposite signs."
            )
        points += _forms(doc, each, label)
        layer = influence(each.raw)
        if layer is not None and layer.decides:
            points.append(
                f"{label}: layer {layer.layer} alone decides the raw mean over layers: "
                f"{signed(layer.mean)} with it, {signed(layer.without)} without."
            )
    return points


def _forms(doc: Doc, found: Finding, label: str) -> list[str]:
    points = []
    for form in forms(doc, found.who, found.metric):
        if form.name not in ("head_form", "log_ratio") or not (
            form.opposes(found.raw) or form.opposed_firmly
        ):
            continue
        text = f"{label}: ratio of means and {tracks.FORMS[form.name]} disagree in sign"
        if form.opposed_layers:
            text += f" in {form.opposed_layers} of {len(found.raw.layers)} layers"
        if form.opposed_firmly:
            text += f", in {form.opposed_firmly} with both intervals excluding 0"
        if form.opposes(found.raw):
            levels = f"{signed(found.raw.mean)} and {signed(form.mean)}"
            text += f"; their means over layers are {levels}"
        points.append(f"{text}. What the forms do not share is not a finding.")
    return points


def _near_zero(doc: Doc) -> list[str]:
    rows = flagged(doc)
    if not rows:
        return []
    listed = ", ".join(f"{layer}.{head}" for layer, head in rows[:_MOST_HEADS])
    more = f" and {len(rows) - _MOST_HEADS} more" if len(rows) > _MOST_HEADS else ""
    return [
        f"{count(len(rows), 'head')} with a reference entropy below .01 nat ({listed}{more}): "
        "ratios of single heads explode there, so forms that average them are not to be relied "
        "on in these layers."
    ]


def _heads(doc: Doc) -> list[str]:
    points = []
    for who in tracks.names(doc):
        found = tracks.heads(doc, who)
        if not found:
            continue
        total = int(found.get("n") or 0)
        parts = {name: int(found.get(f"significant_{name}") or 0) for name in _KINDS}
        if any(parts.values()):
            said = ", ".join(f"{parts[name]:,} {how}" for name, how in _KINDS.items())
        else:
            said = "nothing survives correction"
        points.append(
            f"{who_is(who)}, length-normalised: of {count(total, 'head')} {said}; before "
            f"correction p < .05 in {int(found.get('below_05') or 0):,}, where chance alone gives "
            f"{format_number(tracks.number(found.get('expected')), '.1f')}."
        )
    return points


_KINDS = {
    "bh": "differ after Benjamini-Hochberg",
    "max": "by the maximum statistic",
    "same_length": "among prompts of equal length",
}


def _candidates(doc: Doc) -> list[str]:
    found: dict[str, Any] = doc.get("candidates") or {}
    rows = found.get("rows") or []
    if not rows:
        return []
    significant = int(found.get("significant") or 0)
    best = max((tracks.number(row.get("composite_score")) for row in rows), default=math.nan)
    bound = tracks.number((found.get("null") or {}).get("max_composite_95"))
    said = (
        f"{count(significant, 'head')} "
        f"{'reaches' if significant == 1 else 'reach'} p < .05 over all heads"
        if significant
        else "nothing survives correction over all heads"
    )
    return [
        f"Candidates for patching: a list of the {len(rows)} highest scores is always full. "
        f"Against shuffled labels {said}: the best score is "
        f"{format_number(best, '.2f')}, and in 95 % of shuffles the best stays below "
        f"{format_number(bound, '.2f')}."
    ]
