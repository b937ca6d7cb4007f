"""The words that page, Markdown and terminal share for an entropy document: names and numbers."""

import math

from mlxroles.report.roles import tracks
from mlxroles.report.roles.tracks import Doc
from mlxroles.text import format_number, safe_text

LABELS = {"rfc": "RFC", "rsi": "RSI"}
_READINGS = {
    ("queries", "no-first"): "without query 0",
    ("queries", "last"): "last query only",
    ("keys", "no-bos"): "without the begin token",
}
_OF_THE_STUDY = "self_referent", "neutral", "confounder"
_HEADINGS = {tracks.DIFFERENCE: "instruct − base", "model": "the model"}


def name_of(doc: Doc, metric: str) -> tuple[str, str]:
    """The two categories that a metric compares, safe to show."""
    compared = tracks.contrast(doc)
    assert compared is not None
    focus, reference, confounder = compared
    return shown(focus), shown(reference if metric == "rfc" else confounder)


def is_of_the_study(doc: Doc) -> bool:
    """Whether the categories that are compared are those of the original study."""
    return (tracks.contrast(doc) or ())[:2] == _OF_THE_STUDY[:2]


def reading_of(doc: Doc, *, with_contrast: bool = True) -> str:
    """What was read, and what was compared, where that is not the default, else nothing."""
    found = doc.get("reading") or {}
    parts = [text for (name, value), text in _READINGS.items() if found.get(name) == value]
    compared = tracks.contrast(doc)
    usual = None, _OF_THE_STUDY, (*_OF_THE_STUDY[:2], None)
    if with_contrast and compared is not None and compared not in usual:
        focus, *others = (shown(name, 24) for name in compared if name is not None)
        parts.append(f"{focus} against {' and '.join(others)}")
    return ", ".join(parts)


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


def ways(up: int, down: int, words: tuple[str, str]) -> str:
    """``above 0 in 3 and below 0 in 1``: in how many layers, with the words for both ways."""
    parts = [f"{word} in {n}" for word, n in zip(words, (up, down), strict=True) if n]
    return " and ".join(parts)


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
