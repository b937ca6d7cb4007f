"""The reading at the top of a report on role metrics: what was asked, what stands against it."""

import math
from typing import Any, NamedTuple

from mlxroles.report.roles import tracks
from mlxroles.report.roles.box import beyond_chance
from mlxroles.report.roles.caveats import caveats
from mlxroles.report.roles.findings import Finding, findings, forms
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.verdict import few_prompts
from mlxroles.report.roles.wording import (
    LABELS,
    count,
    form_name,
    listed,
    name_of,
    shown,
    signed,
    who_is,
)
from mlxroles.roles.compare import without_one
from mlxroles.roles.metrics import METRICS
from mlxroles.text import format_number


class Section(NamedTuple):
    """A heading and its points, plain text that is safe to show."""

    heading: str
    points: list[str]


def reading(doc: Doc) -> list[Section]:
    """The sections in the order in which they are read; those with nothing to say are left out."""
    found = findings(doc)
    sections = [Section("What was asked", _asked(doc))]
    if found and not few_prompts(doc):
        sections += [
            Section("How much of it is prompt length", _lengths(found)),
            Section("Whether the ways of computing it agree", _agreement(doc, found)),
            Section("Candidates for patching", candidates(doc)),
        ]
    notes = [shown(note, 300) for note in doc.get("notes") or []]
    sections.append(Section("What the data do not show", caveats(doc)))
    sections.append(Section("Notes of the run", notes))
    return [section for section in sections if section.points]


def signs(doc: Doc, found: Finding) -> list[str]:
    """Where the scales or the forms of one metric differ in sign."""
    points = []
    label = _label(found)
    if found.opposed:
        points.append(
            f"{label}: raw and length-normalised disagree in sign (means over layers "
            f"{signed(found.raw.mean)} and {signed(found.normalised.mean)}): no direction can "
            "be read from the means."
        )
    opposite = (found.raw.up & found.normalised.down) | (found.raw.down & found.normalised.up)
    if opposite:
        points.append(
            f"{label}: {count(len(opposite), 'layer')} significant on both scales, with "
            "opposite signs."
        )
    return [*points, *_forms(doc, found, label)]


def candidates(doc: Doc) -> list[str]:
    """How the candidates stand against shuffled labels; nothing without candidates."""
    found: dict[str, Any] = doc.get("candidates") or {}
    rows = found.get("rows") or []
    if not rows:
        return []
    total, significant = int(found.get("n_heads") or 0), int(found.get("significant") or 0)
    _, loose = beyond_chance(doc)
    best = max((tracks.number(row.get("z_null")) for row in rows), default=math.nan)
    bound = tracks.number((found.get("null") or {}).get("max_z_95"))
    said = (
        f"{significant:,} of {total:,} heads ha{'s a score' if significant == 1 else 've scores'} "
        "beyond what the best of all heads reaches by chance (p max < .05)"
        if significant
        else f"none of {total:,} heads is beyond what the best of them reaches by chance"
    )
    return [
        f"Against shuffled labels {said}: the largest z of those listed is "
        f"{format_number(best, '.2f')}, and in 95 % of shuffles the largest of all heads stays "
        f"below {format_number(bound, '.2f')}. The list is always full.",
        *_loose(loose),
    ]


def _loose(rows: list[dict[str, Any]]) -> list[str]:
    """Candidates whose score stands out though their difference may be 0."""
    if not rows:
        return []
    named = ", ".join(
        f"{row.get('layer')}.{row.get('head')} (p max "
        f"{format_number(tracks.number(row.get('p_max')))})"
        for row in rows
    )
    return [
        f"Not called candidates beyond chance, because the interval of their difference in "
        f"differences holds 0: {named}."
    ]


def _label(found: Finding) -> str:
    return f"{LABELS[found.metric]}, {who_is(found.who)}"


def _asked(doc: Doc) -> list[str]:
    models = tracks.models(doc)
    layers = doc.get("layers") or []
    scope = (
        f"{count(len(layers), 'layer')} of {count(int(doc.get('n_heads') or 0), 'head')} each in "
        f"{' and '.join(map(who_is, models))}, {count(len(doc.get('prompts') or []), 'prompt')}."
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
    return points


def _lengths(found: list[Finding]) -> list[str]:
    points = []
    for metric in METRICS:
        own = [each for each in found if each.metric == metric]
        points += _against_null([each for each in own if not each.is_difference])
        points += [point for each in own for point in _reversals(each)]
    return points


def _reversals(found: Finding) -> list[str]:
    """The layers that reverse among prompts of equal length, once where both scales agree."""
    by_layers: dict[frozenset[int], list[str]] = {}
    for scale, track in (("raw", found.raw), ("length-normalised", found.normalised)):
        if track.reversed:
            by_layers.setdefault(track.reversed, []).append(scale)
    return [
        f"{_label(found)}, {' and '.join(scales)}: {listed(layers)} "
        f"reverse{'s' * (len(layers) == 1)} among prompts of equal length."
        for layers, scales in by_layers.items()
    ]


def _against_null(found: list[Finding]) -> list[str]:
    """One line per metric: what the lengths alone give, beside the means of the models."""
    if not found or math.isnan(found[0].null):
        return []
    by_verdict: dict[str, list[str]] = {}
    for each in found:
        mean = signed(each.raw.mean)
        named = f" of {who_is(each.who)} ({mean})" if len(found) > 1 else f" ({mean})"
        by_verdict.setdefault(_share(each), []).append(named)
    said = ", ".join(f"{verdict}{' and'.join(names)}" for verdict, names in by_verdict.items())
    return [
        f"{LABELS[found[0].metric]}: uniform attention on these lengths alone gives "
        f"{signed(found[0].null)}, {said}."
    ]


def _share(found: Finding) -> str:
    """How that compares with a model's mean."""
    mean = "the raw mean over layers"
    if math.isnan(found.null_share):
        opposed = found.null * found.raw.mean < 0
        return f"opposite in sign to {mean}" if opposed else f"beside {mean}"
    if found.null_share >= 1:
        return f"at least as far from 0 as {mean}"
    return f"{100 * found.null_share:.0f} % of {mean}"


def _agreement(doc: Doc, found: list[Finding]) -> list[str]:
    points = [point for each in found for point in (*signs(doc, each), *_one_layer(each))]
    return points or [
        "Raw and length-normalised means agree in sign, so do the forms of the ratio, and no "
        "single layer decides a mean."
    ]


def _one_layer(found: Finding) -> list[str]:
    most = without_one(found.raw.layers, found.raw.value)
    if most is None or not most.decides:
        return []
    return [
        f"{_label(found)}: layer {most.layer} alone decides the raw mean over layers: "
        f"{signed(most.mean)} with it, {signed(most.without)} without."
    ]


def _forms(doc: Doc, found: Finding, label: str) -> list[str]:
    points = []
    for form in forms(doc, found.who, found.metric):
        if form.name not in ("head_form", "log_ratio") or not (
            form.opposes(found.raw) or form.opposed_firmly
        ):
            continue
        text = f"{label}: ratio of means and {form_name(form.name)} disagree in sign"
        if form.opposed_layers:
            text += f" in {form.opposed_layers} of {len(found.raw.layers)} layers"
        if form.opposed_firmly:
            text += f", in {form.opposed_firmly} with both intervals excluding 0"
        if form.opposes(found.raw):
            levels = f"{signed(found.raw.mean)} and {signed(form.mean)}"
            text += f"; their means over layers are {levels}"
        points.append(f"{text}. What the forms do not share is not a finding.")
    return points
