"""What an entropy document shows and what it does not, in plain words with numbers.

Nothing is called an effect that the document does not flag as significant.
"""

import math
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import Finding, findings, smallest_p
from mlxroles.report.roles.tracks import Doc, Track
from mlxroles.text import format_number, safe_text

LABELS = {"rfc": "RFC", "rsi": "RSI"}
_HEADINGS = {tracks.DIFFERENCE: "instruct − base", "model": "the model"}


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
    is_alone = len(tracks.models(doc)) < 2
    models = [each for each in found if not each.is_difference]
    # of two models the change of RSI is told, of one the metric itself
    models = [each for each in models if is_alone or each.metric == "rfc"]
    change = [each for each in found if each.is_difference]
    return [
        *_models(doc, models, is_alone=is_alone),
        *_change(doc, change),
        *_heads(doc),
        _trust(doc, found),
    ]


def claim(doc: Doc, found: Finding) -> str:
    """What one metric of one model, or of the difference, shows, as far as it carries."""
    layers = len(found.raw.layers)
    if found.standing == "length":
        text = f"{_counts(doc, found, found.raw)} of {layers} layers on the raw scale, but "
        text += "in none once entropies are length-normalised"
        if found.raw.same_length:
            return f"{text}; {_same_length(found.raw)}"
        text += ": prompt length may be all there is to it"
        return f"{text}; {_same_length(found.raw)}" if found.raw.reversed else text
    text = f"{_counts(doc, found, found.normalised)} of {layers} layers, length-normalised"
    layer = found.normalised.largest(found.normalised.significant)
    if layer is not None:
        most = f"{LABELS[found.metric]} {with_interval(*found.normalised.at(layer))}"
        which = "most in layer" if len(found.normalised.significant) > 1 else "layer"
        text += f" ({which} {layer}: {most})"
    if not found.raw.significant:
        text += ", in none on the raw scale"
    if found.opposed:
        text += (
            f"; but the mean over layers is {signed(found.raw.mean)} raw and "
            f"{signed(found.normalised.mean)} normalised, so the sign depends on the scale"
        )
    return f"{text}; {_same_length(found.normalised)}"


def name_of(doc: Doc, metric: str) -> tuple[str, str]:
    """The two categories that a metric compares, safe to show."""
    compared = tracks.contrast(doc)
    assert compared is not None
    focus, reference, confounder = compared
    return shown(focus), shown(reference if metric == "rfc" else confounder)


def form_name(form: str) -> str:
    """What a form of RFC and RSI is called: ``ratio of means``."""
    return form.replace("_", " ")


def shown(text: object, limit: int = 40) -> str:
    """A name from the document, safe to show."""
    return safe_text(str(text), limit=limit)


def who_is(who: str) -> str:
    """The heading of a model or of the difference."""
    return _HEADINGS.get(who) or shown(who, 20)


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


def candidate_note(doc: Doc) -> str:
    """What the columns of the table of candidates are."""
    chance = tracks.number((doc.get("candidates") or {}).get("chance_consistency"))
    return (
        "DiD: difference in differences of medians, focus minus reference of instruct minus base. "
        "consistency: how often a focus prompt's change is on the same side of a reference "
        f"prompt's; {format_number(chance, '.2f')} by chance. score: the study's composite. z: the "
        "score by mean and deviation of the head's own scores under shuffled labels. p: this head "
        "alone; p max: against the largest z of all heads."
    )


def listed(layers: frozenset[int]) -> str:
    """``layer 3``, ``layers 3 and 5``; of many the first few."""
    first = [str(layer) for layer in sorted(layers)[:_MOST_LISTED]]
    more = len(layers) - len(first)
    last = f"{more} more" if more else first.pop() if len(first) > 1 else ""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(first)}" + (f" and {last}" if last else "")


_MOST_LISTED = 8


def _models(doc: Doc, found: list[Finding], *, is_alone: bool) -> list[str]:
    """The metrics of each model; those in which nothing survives are named together."""
    focus, _ = name_of(doc, found[0].metric)
    empty = [each for each in found if each.standing == "nothing"]
    parts = []
    if empty:
        layers = len(found[0].raw.layers)
        names = dict.fromkeys(shown(each.who, 20) for each in empty)
        others = dict.fromkeys(name_of(doc, each.metric)[1] for each in empty)
        labels = dict.fromkeys(LABELS[each.metric] for each in empty)
        start = "No" if is_alone else f"In {' and '.join(names)}, no"
        parts.append(
            f"{start} difference in attention entropy between {focus} and {' or '.join(others)} "
            f"prompts ({', '.join(labels)}) survives correction in any of {layers} layers."
        )
    for each in found:
        if each.standing != "nothing":
            start = "Attention" if is_alone else f"In {shown(each.who, 20)}, attention"
            parts.append(f"{start} entropy is {claim(doc, each)}.")
    return parts


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


def _counts(doc: Doc, found: Finding, track: Track) -> str:
    """``lower on a than on b prompts in 3 and higher in 1``, or ``RFC rises in 3``."""
    words = ("rises", "falls") if found.is_difference else ("lower", "higher")
    ways = zip(words, (track.up, track.down), strict=True)
    parts = [[word, f"in {len(layers)}"] for word, layers in ways if layers]
    if found.is_difference:
        parts[0].insert(0, LABELS[found.metric])
    else:
        focus, other = name_of(doc, found.metric)
        parts[0].insert(1, f"on {focus} than on {other} prompts")
    return " and ".join(" ".join(part) for part in parts)


def _same_length(track: Track) -> str:
    """What is left of the significant layers among prompts of equal length."""
    if not track.is_tested_same_length:
        return "no prompts of equal length allow a check that rules length out"
    kept, total = len(track.same_length), len(track.significant)
    where = "among prompts of equal length"
    if total == 1 and not track.reversed:
        return f"this {'holds' if kept else 'is not confirmed'} {where}"
    if total == 1:
        return f"this reverses {where}"
    text = f"{'all' if kept == total else kept or 'none'} of these hold{'s' * (kept == 1)} {where}"
    if track.reversed:
        turned = len(track.reversed)
        text += f", and {turned} reverse{'s' * (turned == 1)} {where} ({listed(track.reversed)})"
    return text


def _heads(doc: Doc) -> list[str]:
    """How many single heads survive, on the normalised scale."""
    found = {who: tracks.heads(doc, who) for who in tracks.names(doc)}
    known = {who: values for who, values in found.items() if values}
    if not known:
        return []
    total = max(int(values.get("n") or 0) for values in known.values())
    kept = {who: int(values.get("significant_bh") or 0) for who, values in known.items()}
    if any(kept.values()):
        named = ", ".join(
            f"{who_is(who)} {number:,}" if len(kept) > 1 else f"{number:,}"
            for who, number in kept.items()
        )
        return [f"Heads that differ (corrected), of {total:,}: {named}."]
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
    text = f"Prompts: {', '.join(numbers)}; correction: Benjamini-Hochberg over layers or heads"
    if any(each.standing not in ("nothing", "length") for each in found):
        text += "; brackets: 95 % bootstrap intervals"
    text += "."
    if smallest_p(doc, "rfc") >= tracks.ALPHA:
        text += " With so few prompts no test can reach p < .05."
    return text
