"""The box at the top: the verdict, what stands behind it, and what it rests on, in a few lines.

Nothing is called an effect that the document does not flag as significant, and nothing that it
does flag is left out.
"""

from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.claims import claim, likeness
from mlxroles.report.roles.findings import Finding, findings
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.verdict import few_prompts, models, verdict
from mlxroles.report.roles.wording import LABELS, count, name_of, reading_of, shown, who_is
from mlxroles.text import format_number


def sentence(doc: Doc) -> str:
    """The finding: the verdict, the models, what changes between them, heads, how it was tested."""
    return " ".join(sentences(doc))


def sentences(doc: Doc) -> list[str]:
    """The same, sentence by sentence, the small print last."""
    return [*said(doc), *small_print(doc)]


def said(doc: Doc) -> list[str]:
    """The finding without the small print."""
    if tracks.contrast(doc) is None:
        return [
            "Entropies were measured, but no two categories of prompts are compared: RFC and RSI "
            "do not exist."
        ]
    found = findings(doc)
    if not found:
        return ["No layer was measured."]
    if few_prompts(doc):
        return [verdict(doc, found)]
    return [
        verdict(doc, found),
        *_models(doc, found),
        *_change(found),
        *heads(doc),
    ]


def families_of_tests(doc: Doc) -> tuple[int, int]:
    """How many questions were tested (metrics of models and difference), on how many scales."""
    tested = {
        scale: sum(
            bool(tracks.label_test(doc, who, metric, scale))
            for who in tracks.names(doc)
            for metric in LABELS
        )
        for scale in tracks.SCALES
    }
    return max(tested.values()), sum(n > 0 for n in tested.values())


def heads(doc: Doc) -> list[str]:
    """How many single heads survive, and the candidates beyond chance with their p max."""
    found = {who: tracks.heads(doc, who) for who in tracks.names(doc)}
    known = {who: values for who, values in found.items() if values}
    if not known:
        return []
    total = max(int(values.get("n") or 0) for values in known.values())
    against = " against ".join(name_of(doc, "rfc"))
    start = f"Of {count(total, 'head')}, {against}, length-normalised, "
    kept = {who: int(values.get("significant_bh") or 0) for who, values in known.items()}
    by_maximum = sum(int(values.get("significant_max") or 0) for values in known.values())
    if any(kept.values()):
        named = [
            f"{number or 'none'} in {who_is(who)}" if len(kept) > 1 else f"{number:,}"
            for who, number in kept.items()
        ]
        text = f"after correction {', '.join(named)} differ{'s' * (sum(kept.values()) == 1)}"
    elif by_maximum:
        text = f"none differs after Benjamini-Hochberg, {by_maximum:,} by the maximum statistic"
    else:
        text = "none differs after correction"
    return [f"{start}{text}{_candidates(doc)}."]


def beyond_chance(doc: Doc) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Candidates with p max < .05: those whose difference excludes 0, and those whose does not."""
    rows = [
        row
        for row in (doc.get("candidates") or {}).get("rows") or []
        if tracks.number(row.get("p_max")) < tracks.ALPHA
    ]
    firm = [row for row in rows if _excludes_zero(row)]
    return firm, [row for row in rows if not _excludes_zero(row)]


def _candidates(doc: Doc) -> str:
    """The heads to patch first, with p max; nothing where none is beyond chance."""
    firm, _ = beyond_chance(doc)
    if not firm:
        return ""
    named = ", ".join(
        f"{row.get('layer')}.{row.get('head')} (p max {format_number(tracks.number(row['p_max']))})"
        for row in firm[:3]
    )
    more = f" and {len(firm) - 3} more" if len(firm) > 3 else ""
    return f"; to patch, beyond chance: head {named}{more}"


def next_step(doc: Doc) -> list[str]:
    """A command that patches the strongest candidate of a known pair."""
    firm, _ = beyond_chance(doc)
    if not firm or not doc.get("family"):
        return []
    best = min(firm, key=lambda row: (tracks.number(row["p_max"]), int(row.get("rank") or 0)))
    return [
        f"Next: mlxroles patch --pair {shown(doc['family'])} --site z --heads {best['head']} "
        f"--layers {best['layer']}"
    ]


def _excludes_zero(row: dict[str, Any]) -> bool:
    return tracks.number(row.get("did_low")) > 0 or tracks.number(row.get("did_high")) < 0


def _models(doc: Doc, found: list[Finding]) -> list[str]:
    """What each model shows, where anything does; models alike are told together."""
    if tracks.confounder(doc) is None:
        return []  # told by the verdict
    groups: dict[object, list[Finding]] = {}
    told = [each for model in models(found) for each in model.told]
    for each in found:
        if not each.is_difference and each.standing != "nothing" and each not in told:
            groups.setdefault(likeness(each), []).append(each)
    by_names: dict[str, list[str]] = {}
    for group in groups.values():
        names = " and ".join(who_is(each.who) for each in group)
        by_names.setdefault(names, []).append(claim(group))
    return [f"In {names} {'; '.join(parts)}." for names, parts in by_names.items()]


def _change(found: list[Finding]) -> list[str]:
    """What changes from base to instruct."""
    own = [each for each in found if each.is_difference]
    if not own:
        return []
    empty = [LABELS[each.metric] for each in own if each.standing == "nothing"]
    parts = [claim([each]) for each in own if each.standing != "nothing"]
    if empty:
        parts.append(f"no significant change of {' or '.join(empty)}")
    return [f"From base to instruct {'; '.join(parts)}."]


def small_print(doc: Doc) -> list[str]:
    """What the finding rests on, and the command that goes on from here, if any."""
    found = findings(doc)
    if tracks.contrast(doc) is None or not found:
        return []
    return [_basis(doc, found), *([] if few_prompts(doc) else next_step(doc))]


def _basis(doc: Doc, found: list[Finding]) -> str:
    sizes: dict[str, Any] = doc.get("lengths") or {}
    compared = [name for name in tracks.contrast(doc) or () if name is not None]
    numbers = [f"{(sizes.get(name) or {}).get('n', '?')} {shown(name, 24)}" for name in compared]
    parts = [f"Prompts: {', '.join(numbers)}", reading_of(doc, with_contrast=False)]
    if not few_prompts(doc):
        questions, scales = families_of_tests(doc)
        parts += [
            "length-normalised unless said otherwise",
            f"{questions * scales} families of tests ({count(questions, 'question')} × "
            f"{count(scales, 'scale')}), each corrected on its own",
        ]
        if any(each.standing != "nothing" for each in found):
            parts.append("brackets: 95 % intervals")
    return "; ".join(part for part in parts if part) + "."
