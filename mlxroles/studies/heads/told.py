"""What a study of heads found, in a few sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.heads import head_name, parse_heads

NAMES = {
    "previous": "previous-token",
    "induction": "induction",
    "duplicate": "duplicate-token",
    "positional": "fixed-offset",
    "first": "first-position",
    "self": "self",
    "final": "final-token",
    "delimiter": "delimiter",
    "successor": "successor",
    "s_inhibition": "S-inhibition",
    "copying": "copying",
    "anti_copying": "anti-copying",
}
ALWAYS = ("previous", "induction")
"""Classes of which a sentence says that there is none."""
LOSS, NO_LEAD = "text_loss", "; it has no repetition gain to lose"
SHOWN = 2
"""Heads of a class that a sentence names."""

Doc = Mapping[str, Any]


def sentence(doc: Doc) -> str:
    """The finding about each model, its causal check, and what tuning changed."""
    parts = []
    for side, of in doc["models"].items():
        told = f"{_found(of)}.{_causal(doc['causal'].get(side, ()))}"
        parts.append(f"{side}: {told}" if len(doc["models"]) > 1 else told[:1].upper() + told[1:])
    if doc.get("difference"):
        parts.append(_difference(doc))
    return " ".join(parts) or "Nothing was measured."


def _found(of: Doc) -> str:
    """The heads of each class; that there is none of those that everybody asks for."""
    parts, others = [], []
    for name, heads in of["by_class"].items():
        word = NAMES.get(name, name)
        if name in ALWAYS and not heads and name in of["detectors"]:
            parts.append(_none(of, name))
        elif name in ALWAYS and heads:
            parts.append(_named(of, name, heads))
        elif heads:
            others.append(f"{len(heads)} {word}")
    rest = sum(c == "none" for line in of["classes"] for c in line)
    total = sum(c is not None for line in of["classes"] for c in line)
    also = [f"also {', '.join(others)}"] if others else []
    return "; ".join([*parts, *also, f"{rest} of {total} heads are of no class"])


def _score_of(of: Doc, name: str, head: str) -> float:
    """The score of a head (L5H8) by the first detector of a class that marks it."""
    (layer, column), *_ = parse_heads(head)
    key, wanted = ("anti", "copying") if name == "anti_copying" else ("marked", name)
    return next(
        one["score"][layer][column]
        for one in of["detectors"].values()
        if one["class"] == wanted and one[key][layer][column]
    )


def _named(of: Doc, name: str, heads: Sequence[str]) -> str:
    shown = ", ".join(f"{head} {_score_of(of, name, head):.2f}" for head in heads[:SHOWN])
    more = f" and {len(heads) - SHOWN} more" if len(heads) > SHOWN else ""
    return f"{len(heads)} {NAMES.get(name, name)} head{'s' * (len(heads) > 1)} ({shown}{more})"


def _none(of: Doc, name: str) -> str:
    """That a model has no such head, with the best one beside its null."""
    found, word = of["detectors"][name], NAMES.get(name, name)
    if found["best"] is None:
        return f"no {word} head"
    i, h = found["best"]
    low, high = found["low"][i][h], found["high"][i][h]
    bounds = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    beside = [
        f"{found[key][i][h]:.3f} {what}"
        for key, what in (("uniform", "under uniform attention"), ("control", "in the control"))
        if found.get(key) and found[key][i][h] is not None
    ]
    against = f", against {' and '.join(beside)}" if beside else ""
    best = f"{head_name(i, h)} {found['score'][i][h]:.3f}{bounds}"
    return f"no {word} head (best {best}{against}; a head needs {found['threshold']:g})"


def _causal(rows: Sequence[Doc]) -> str:
    """What zeroing the heads of each class does to what they are for."""
    seen: dict[str, Doc] = {}
    for row in rows:
        if row["set"] == "all":
            seen.setdefault(row["class"], row)
    told: dict[str, list[str]] = {}
    for row in (row for row in seen.values() if row["class"] in ALWAYS):
        start = f"Zeroing moves {row['words']} of {row['clean']:.2f} {row['unit']} by "
        told.setdefault(start, []).append(_did(row))
    parts = [start + " and by ".join(found) for start, found in told.items()]
    others = [row for row in seen.values() if row["class"] not in ALWAYS]
    for word, is_good in (("Also confirmed", True), ("Not confirmed", False)):
        names = [NAMES.get(r["class"], r["class"]) for r in others if r["confirmed"] == is_good]
        parts += [f"{word}: {_and(names)} heads"] if names else []
    return "".join(f" {part}." for part in parts)


def _did(row: Doc) -> str:
    heads, name = len(row["heads"]), NAMES.get(row["class"], row["class"])
    what = f"{name} head" if heads == 1 else f"{heads} {name} heads"
    moved = f"{signed(row['change'])} [{signed(row['low'])}, {signed(row['high'])}] without "
    moved += f"the {what}" if heads == 1 else what
    drawn = row["random"]
    if not drawn:
        return f"{moved} (there are no other heads to compare them with)"
    sets = "set" if len(drawn) == 1 else "sets"
    verdict = "confirmed" if row["confirmed"] else "not confirmed"
    verdict += "" if row["measure"] != LOSS or row["class"] not in ALWAYS else NO_LEAD
    return f"{moved} (random {sets} {signed(min(drawn))} to {signed(max(drawn))}: {verdict})"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _difference(doc: Doc) -> str:
    """How many heads are of other classes in instruct, and the largest clear change."""
    found = doc["difference"]
    rows = [
        (abs(of["value"][i][h]), name, i, h)
        for name, of in found.items()
        for i, line in enumerate(of["clear"])
        for h, is_clear in enumerate(line)
        if is_clear and name != "copying"  # in other units
    ]
    if not rows:
        return "Attention differs clearly between base and instruct in no head."
    _, name, i, h = max(rows)
    of, count = found[name], len(doc["changed"])
    value, low, high = (of[key][i][h] for key in ("value", "low", "high"))
    label = doc["models"]["base"]["detectors"][name]["class"]
    return (
        f"From base to instruct {_heads(count)} {'change' if count != 1 else 'changes'} class; "
        f"the largest clear change of attention is {signed(value, 3)} "
        f"[{signed(low, 3)}, {signed(high, 3)}], {NAMES.get(label, label)} score of "
        f"{head_name(i, h)}."
    )


def _heads(count: int) -> str:
    return f"{count} head{'s' * (count != 1)}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
