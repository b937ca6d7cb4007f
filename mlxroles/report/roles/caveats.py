"""What an entropy document does not show: every reason for doubt that its own numbers give."""

import math
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.box import families_of_tests
from mlxroles.report.roles.findings import exchange, smallest_p
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.verdict import few_prompts
from mlxroles.report.roles.wording import LABELS, is_of_the_study, name_of, shown
from mlxroles.roles.metrics import METRICS

FEW_PROMPTS = 10
"""With fewer prompts in a category a bootstrap interval is too narrow to be relied on."""
SMALL_SHARE = 0.25
"""With fewer prompts than this that have a partner of equal length, its test is weak."""


def caveats(doc: Doc) -> list[str]:
    """The reasons for doubt, those of these prompts first, those of the method last."""
    if tracks.contrast(doc) is None:
        return _of_the_run(doc)
    if few_prompts(doc):
        return [*_of_the_prompts(doc), *_of_the_run(doc)]
    found = [*_of_the_prompts(doc), *_of_the_resolution(doc), *_of_the_run(doc)]
    found += _of_the_threshold(doc)
    return found + _of_the_method(doc)


def _of_the_prompts(doc: Doc) -> list[str]:
    found = []
    sizes: dict[str, Any] = doc.get("lengths") or {}
    compared = [name for name in tracks.contrast(doc) or () if name is not None]
    few = {name: int((sizes.get(name) or {}).get("n") or 0) for name in compared}
    few = {name: n for name, n in few.items() if n < FEW_PROMPTS}
    if few:
        listed = ", ".join(f"{n} {shown(name)}" for name, n in few.items())
        found.append(
            f"Few prompts ({listed}): intervals over so few are too narrow, and what holds for "
            "them may not hold for others."
        )
    if few_prompts(doc):
        return found
    for metric in METRICS:
        found += _of_the_lengths(doc, metric)
    return found


def _of_the_lengths(doc: Doc, metric: str) -> list[str]:
    focus, reference, confounder = tracks.contrast(doc) or ("", "", None)
    other = reference if metric == "rfc" else confounder
    if other is None:
        return []
    what = exchange(doc, focus, other)
    named, label = " and ".join(name_of(doc, metric)), LABELS[metric]
    found = []
    smallest = smallest_p(doc, metric)
    if smallest >= tracks.ALPHA:
        found.append(
            f"With so few {named} prompts no permutation can reach p < .05 (the smallest possible "
            f"is {smallest:.2g}): that nothing is significant for {label} says nothing."
        )
    if not what.prompts:
        found.append(
            f"No length occurs in both {named} prompts: for {label} no test can rule out length."
        )
    elif what.prompts < SMALL_SHARE * what.total:
        found.append(
            f"Only {what.prompts} of the {what.total} {named} prompts have a length that occurs "
            f"in both: the test among prompts of equal length is weak for {label}."
        )
    return found


def _of_the_resolution(doc: Doc) -> list[str]:
    """Whether permutations are fine enough for one head alone to survive the correction."""
    for who in tracks.names(doc):
        found = tracks.heads(doc, who)
        smallest, total = tracks.number(found.get("smallest_q")), int(found.get("n") or 0)
        if not smallest >= tracks.ALPHA or smallest_p(doc, "rfc") >= tracks.ALPHA:
            continue
        needed = math.floor(smallest / tracks.ALPHA + 1e-9) + 1
        drawn = int(found.get("n_permutations") or 0)
        cure = (
            "these are all that there are" if found.get("exact") else "more permutations lower it"
        )
        return [
            f"With {drawn:,} permutations a head that differs alone reaches q = {smallest:.2g} at "
            f"best: of {total:,} heads at least {needed:,} must reach the smallest p before any "
            f"survives Benjamini-Hochberg ({cure}). The maximum statistic has no such limit."
        ]
    return []


def _of_the_run(doc: Doc) -> list[str]:
    found = []
    if "instruct" in tracks.models(doc) and doc.get("chat_template") is False:
        found.append(
            "The instruct model was read on raw text without its chat template, outside the "
            "format it was tuned for."
        )
    if doc.get("has_sinks") is True:
        found.append(
            "The heads of this architecture have a sink beside the keys: the weights of real keys "
            "sum to less than 1, so that query 0 has an entropy above 0. Length normalisation and "
            "uniform attention know nothing of sinks."
        )
    bos = [bool(prompt.get("has_bos")) for prompt in doc.get("prompts") or []]
    if bos and not any(bos):
        found.append(
            "No prompt starts with a begin token, so its first word takes the weight that such a "
            "token would draw."
        )
    elif any(bos) and (doc.get("reading") or {}).get("keys") == "all":
        found.append(
            "The begin token counts as a key. It usually draws much of the weight; read the run "
            "again without it (keys no-bos) before relying on a small difference."
        )
    return found


def _of_the_threshold(doc: Doc) -> list[str]:
    """What the original study would have counted as changed layers, beside what is."""
    parts: list[str] = []
    if not is_of_the_study(doc):
        return parts
    for metric, label in LABELS.items():
        summary: dict[str, Any] = (doc.get("difference_summary") or {}).get(metric) or {}
        track = tracks.track(doc, tracks.DIFFERENCE, metric)
        if summary and track is not None:
            ways = (summary.get(f"significant_{way}") for way in ("positive", "negative"))
            changed = sum(int(number or 0) for number in ways)
            parts.append(
                f"{label} changes by more than .01 in {changed} of {len(track.layers)} layers, "
                f"significantly in {len(track.significant) or 'none'}"
            )
    if not parts:
        return []
    return [f"A threshold is not significance: {'; '.join(parts)} (raw scale)."]


def _of_the_method(doc: Doc) -> list[str]:
    questions, scales = families_of_tests(doc)
    found = [
        "Entropy says how widely a head spreads its attention, not what it attends to or what "
        "the model makes of it; categories also differ in their words, not only in whom they "
        "are about.",
    ]
    if questions * scales > 1:
        found.append(
            "Corrections are over the layers of one question on one scale, or over its heads, not "
            f"over all {questions * scales} families of tests together."
        )
    if tracks.DIFFERENCE in tracks.names(doc):
        found.append(
            "Intervals are over prompts. One base and one instruct model are compared: what "
            "differs between them need not be what instruction tuning does elsewhere."
        )
    return found
