"""What an entropy document shows and what it does not, in plain words with numbers.

Nothing is called an effect whose interval includes 0 or whose corrected p is not below .05.
"""

import math
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import Finding, exchange, findings
from mlxroles.report.roles.tracks import Doc
from mlxroles.text import format_number, safe_text

LABELS = {"rfc": "RFC", "rsi": "RSI"}


def sentence(doc: Doc) -> str:
    """The finding: RFC of each model, what changes between them, heads, and how far to trust it."""
    return " ".join(sentences(doc))


def sentences(doc: Doc) -> list[str]:
    """The same, sentence by sentence."""
    if tracks.contrast(doc) is None:
        return [
            "Entropies were measured, but no two categories of prompts are compared: RFC and RSI "
            "do not exist."
        ]
    found = findings(doc)
    if not found:
        return ["No layer was measured."]
    models = [each for each in found if each.metric == "rfc" and not _is_difference(each)]
    change = [each for each in found if _is_difference(each)]
    return [*_models(doc, models), *_change(doc, change), *_heads(doc), _trust(doc, found)]


def claim(doc: Doc, found: Finding) -> str:
    """What one metric of one model, or of the difference, shows, as far as it carries."""
    layers = len(found.raw.layers)
    if found.standing == "nothing":
        return f"nothing survives correction in any of {layers} layers"
    if found.standing == "length":
        text = f"{_counts(doc, found, normalised=False)} of {layers} layers on the raw scale, but "
        text += "in none once entropies are length-normalised"
        kept = len(found.raw.same_length)
        if kept:
            return f"{text}; {kept} of these also when only prompts of equal length are exchanged"
        return f"{text}: prompt length may be all there is to it"
    text = f"{_counts(doc, found)} of {layers} layers, length-normalised"
    layer = found.normalised.largest(found.normalised.significant)
    if layer is not None:
        most = with_interval(*found.normalised.at(layer))
        text += f" (most in layer {layer}, {LABELS[found.metric]} {most})"
    if not found.raw.significant:
        text += ", while on the raw scale nothing survives correction"
    if found.opposed:
        text += (
            f"; but the mean over layers is {signed(found.raw.mean)} raw and "
            f"{signed(found.normalised.mean)} normalised, so the sign depends on the scale"
        )
    return f"{text}; {_same_length(found)}"


def name_of(doc: Doc, metric: str) -> tuple[str, str]:
    """The two categories that a metric compares, safe to show."""
    compared = tracks.contrast(doc)
    assert compared is not None
    focus, reference, confounder = compared
    return shown(focus), shown(reference if metric == "rfc" else confounder)


def shown(text: object, limit: int = 40) -> str:
    """A name from the document, safe to show."""
    return safe_text(str(text), limit=limit)


def who_is(who: str) -> str:
    """The heading of a model or of the difference."""
    return "instruct − base" if who == tracks.DIFFERENCE else shown(who, 20)


def signed(value: float) -> str:
    """A value with sign and three decimals."""
    return format_number(value, "+.3f")


def with_interval(value: float, low: float, high: float) -> str:
    """``+0.123 [+0.050, +0.180]``, without brackets where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return signed(value)
    return f"{signed(value)} [{low:+.3f}, {high:+.3f}]"


def count(number: int, noun: str) -> str:
    """``1 head``, ``2 heads``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _models(doc: Doc, found: list[Finding]) -> list[str]:
    """RFC of each model; those in which nothing survives are named together."""
    focus, other = name_of(doc, "rfc")
    empty = [shown(each.who, 20) for each in found if each.standing == "nothing"]
    parts = []
    if empty:
        layers = len(found[0].raw.layers)
        parts.append(
            f"In {' and '.join(empty)} no difference in attention entropy between {focus} and "
            f"{other} prompts (RFC) survives correction in any of {layers} layers."
        )
    others = [each for each in found if each.standing != "nothing"]
    return parts + [f"In {shown(each.who, 20)} {claim(doc, each)}." for each in others]


def _change(doc: Doc, found: list[Finding]) -> list[str]:
    """What changes from base to instruct; metrics in which nothing survives are named together."""
    empty = [LABELS[each.metric] for each in found if each.standing == "nothing"]
    parts = []
    if empty:
        layers = len(found[0].raw.layers)
        parts.append(
            f"From base to instruct no change of {' or '.join(empty)} survives correction in any "
            f"of {layers} layers."
        )
    others = [each for each in found if each.standing != "nothing"]
    return parts + [f"From base to instruct {claim(doc, each)}." for each in others]


def _counts(doc: Doc, found: Finding, *, normalised: bool = True) -> str:
    """``a entropy is lower than b in 3 and higher in 1``, or ``RFC rises in 3``."""
    track = found.normalised if normalised else found.raw
    focus, other = name_of(doc, found.metric)
    if _is_difference(found):
        start, words = LABELS[found.metric], ("rises", "falls")
    else:
        start, words = f"{focus} entropy is", (f"lower than {other}", f"higher than {other}")
    both = zip(words, (track.up, track.down), strict=True)
    return f"{start} " + " and ".join(f"{word} in {len(n)}" for word, n in both if n)


def _same_length(found: Finding) -> str:
    if found.standing == "untested":
        return "no prompts of equal length allow a check that rules length out"
    if found.standing == "unconfirmed":
        return "nothing survives when only prompts of equal length are exchanged"
    kept, total = len(found.normalised.same_length), len(found.normalised.significant)
    which = "all" if kept == total else f"{kept}"
    return f"{which} of these also when only prompts of equal length are exchanged"


def _heads(doc: Doc) -> list[str]:
    """How many single heads survive, on the normalised scale."""
    found = {who: tracks.heads(doc, who) for who in tracks.names(doc)}
    known = {who: values for who, values in found.items() if values}
    if not known:
        return []
    total = max(int(values.get("n") or 0) for values in known.values())
    kept = {who: int(values.get("significant_bh") or 0) for who, values in known.items()}
    if any(kept.values()):
        said = ", ".join(f"{number:,} in {who_is(who)}" for who, number in kept.items())
        return [f"Heads that differ after correction, of {total:,}: {said}."]
    by_maximum = sum(int(values.get("significant_max") or 0) for values in known.values())
    if by_maximum:
        return [
            f"Of {count(total, 'head')} none differs after Benjamini-Hochberg, though "
            f"{by_maximum:,} by the maximum statistic."
        ]
    return [f"Of {count(total, 'head')} none differs after correction."]


def _trust(doc: Doc, found: list[Finding]) -> str:
    sizes: dict[str, Any] = doc.get("lengths") or {}
    compared = [name for name in tracks.contrast(doc) or () if name is not None]
    numbers = [f"{(sizes.get(name) or {}).get('n', '?')} {shown(name)}" for name in compared]
    text = f"Prompts: {', '.join(numbers)}; corrected (Benjamini-Hochberg) over layers or heads"
    if any(each.standing not in ("nothing", "length") for each in found):
        text += "; brackets are 95 % bootstrap intervals over prompts"
    text += "."
    if len(compared) > 1 and exchange(doc, *compared[:2]).smallest_p >= tracks.LEVEL:
        text += " With so few prompts no test can reach p < .05."
    failed = len(doc.get("failed_cells") or [])
    return text + (
        f" {count(failed, 'cell')} failed; what they hold is left out." if failed else ""
    )


def _is_difference(found: Finding) -> bool:
    return found.who == tracks.DIFFERENCE
