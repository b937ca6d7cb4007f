"""What an entropy document does not show: every reason for doubt that its own numbers give."""

import math
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import exchange
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.wording import LABELS, count, name_of, shown

FEW_PROMPTS = 10
"""With fewer prompts in a category a bootstrap interval is too narrow to be relied on."""
SMALL_SHARE = 0.25
"""With fewer prompts than this that have a partner of equal length, its test is weak."""


def caveats(doc: Doc) -> list[str]:
    """The reasons for doubt, those of these prompts first, those of the method last."""
    if tracks.contrast(doc) is None:
        return _of_the_run(doc)
    found = [*_of_the_prompts(doc), *_of_the_resolution(doc), *_of_the_run(doc)]
    found += _of_the_threshold(doc)
    return found + _of_the_method(doc)


def _of_the_prompts(doc: Doc) -> list[str]:
    found = []
    sizes: dict[str, Any] = doc.get("lengths") or {}
    few = {name: int((sizes.get(name) or {}).get("n") or 0) for name in _compared(doc)}
    few = {name: n for name, n in few.items() if n < FEW_PROMPTS}
    if few:
        listed = ", ".join(f"{n} {shown(name)}" for name, n in few.items())
        found.append(
            f"Few prompts ({listed}): intervals over so few are too narrow, and what holds for "
            "them may not hold for others."
        )
    for metric in tracks.METRICS:
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
    if what.smallest_p >= tracks.LEVEL:
        found.append(
            f"With so few {named} prompts no permutation can reach p < .05 (the smallest possible "
            f"is {what.smallest_p:.2g}): that nothing is significant for {label} says nothing."
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
    compared = _compared(doc)
    heads = int((doc.get("heads") or {}).get("n") or 0)
    smallest = exchange(doc, *compared[:2]).smallest_p
    needed = math.ceil(smallest * heads / tracks.LEVEL - 1e-9)
    if needed <= 1 or smallest >= tracks.LEVEL:
        return []
    return [
        f"The smallest p that these permutations can give is {smallest:.1g}: of {heads:,} heads at "
        f"least {needed:,} must reach it before one survives Benjamini-Hochberg. The maximum "
        "statistic has no such limit; more permutations lower it."
    ]


def _of_the_run(doc: Doc) -> list[str]:
    found = []
    failed = len(doc.get("failed_cells") or [])
    if failed:
        found.append(
            f"{count(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} left out."
        )
    if doc.get("interrupted"):
        found.append("The run was interrupted: not all prompts are in these numbers.")
    if len(tracks.models(doc)) > 1 and doc.get("chat_template") is False:
        found.append(
            "Both models read raw text without a chat template, so the instruct model is seen "
            "outside the format it was tuned for."
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
            "again without it before relying on a small difference."
        )
    return found


def _of_the_threshold(doc: Doc) -> list[str]:
    """What the original study would have counted as changed layers, beside what is."""
    found = []
    for metric, label in LABELS.items():
        summary: dict[str, Any] = (doc.get("difference_summary") or {}).get(metric) or {}
        track = tracks.track(doc, tracks.DIFFERENCE, metric)
        if not summary or track is None:
            continue
        up, down = (int(summary.get(f"significant_{way}") or 0) for way in ("positive", "negative"))
        found.append(
            f"A threshold is not significance: {label} changes by more than .01 in {up + down} of "
            f"{len(track.layers)} layers ({up} up, {down} down), but on the raw scale "
            f"{len(track.significant) or 'none'} of {len(track.layers)} survive correction."
        )
    return found


def _of_the_method(doc: Doc) -> list[str]:
    questions = len(tracks.names(doc)) * (1 if tracks.confounder(doc) is None else 2)
    found = [
        "Entropy says how widely a head spreads its attention, not what it attends to or what "
        "the model makes of it; categories also differ in their words, not only in whom they "
        "are about.",
        "Uniform attention is a yardstick for what lengths alone can do, not a proof that they "
        "do it: real attention is not uniform.",
        f"Corrections are over the layers or heads of one question, not over the {questions} "
        "questions (models, difference, metrics) on two scales.",
        "Layers of one network are not independent; a mean over layers has no interval here.",
    ]
    if tracks.DIFFERENCE in tracks.names(doc):
        found.append(
            "Intervals are over prompts. One base and one instruct model are compared: what "
            "differs between them need not be what instruction tuning does elsewhere."
        )
    if not math.isnan(tracks.null(doc, "rfc")):
        found.append(
            "A curve over depth that looks like another family's may be a trend with depth that "
            "all networks share; `mlxroles correlate` tests for that."
        )
    return found


def _compared(doc: Doc) -> list[str]:
    return [name for name in tracks.contrast(doc) or () if name is not None]
