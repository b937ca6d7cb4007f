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
SHOWN = 3
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
            others.append(f"{len(heads)} {word} ({heads[0]}{', …' * (len(heads) > 1)})")
    rest = sum(c == "none" for line in of["classes"] for c in line)
    total = sum(c is not None for line in of["classes"] for c in line)
    also = [f"also {', '.join(others)}"] if others else []
    return "; ".join([*parts, *also, f"{rest} of {total} heads are of no class"])


def score_of(of: Doc, name: str, head: str) -> float | None:
    """The largest score of a head (L5H8) among the detectors of a class."""
    (layer, column), *_ = parse_heads(head)
    wanted = "copying" if name == "anti_copying" else name
    tables = [one["score"] for one in of["detectors"].values() if one["class"] == wanted]
    known = [t[layer][column] for t in tables if t[layer][column] is not None]
    return max(known, default=None)


def _named(of: Doc, name: str, heads: Sequence[str]) -> str:
    scores = {head: score_of(of, name, head) for head in heads[:SHOWN]}
    shown = ", ".join(h if x is None else f"{h} {x:.2f}" for h, x in scores.items())
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
    parts = [_did(row) for row in seen.values() if row["class"] in ALWAYS]
    others = [row for row in seen.values() if row["class"] not in ALWAYS]
    good = [NAMES.get(row["class"], row["class"]) for row in others if row["confirmed"]]
    poor = [NAMES.get(row["class"], row["class"]) for row in others if not row["confirmed"]]
    if good:
        parts.append(f"zeroing also confirms the {_and(good)} heads")
    if poor:
        parts.append(f"it does not confirm the {_and(poor)} heads")
    return "".join(f" {part[:1].upper()}{part[1:]}." for part in parts)


def _did(row: Doc) -> str:
    heads = len(row["heads"])
    name = NAMES.get(row["class"], row["class"])
    what = f"the {name} head {row['heads'][0]}" if heads == 1 else f"{heads} {name} heads"
    bounds = f"[{signed(row['low'])}, {signed(row['high'])}]"
    moved = f"zeroing {what} moves {row['words']} by {signed(row['change'])} {row['unit']} {bounds}"
    moved += f" from {row['clean']:.2f}"
    drawn = row["random"]
    if not drawn:
        return f"{moved}; there are no other heads to compare them with"
    sets = "set" if len(drawn) == 1 else "sets"
    span = f"{signed(min(drawn))} to {signed(max(drawn))}"
    verdict = "confirmed" if row["confirmed"] else "not confirmed"
    verdict += "" if row["measure"] != LOSS or row["class"] not in ALWAYS else NO_LEAD
    return (
        f"{moved}; {len(drawn)} random {sets} of other heads {span} (p = {row['p']:.2g}, {verdict})"
    )


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _difference(doc: Doc) -> str:
    """The clear changes of attention from base to instruct, the largest named."""
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
    of, heads = found[name], {(i, h) for _, _, i, h in rows}
    value, low, high = (of[key][i][h] for key in ("value", "low", "high"))
    label = doc["models"]["base"]["detectors"][name]["class"]
    return (
        f"Attention differs clearly between base and instruct in {_heads(len(heads))}, the most in "
        f"{head_name(i, h)}: its {NAMES.get(label, label)} score by "
        f"{signed(value, 3)} [{signed(low, 3)}, {signed(high, 3)}]; "
        f"{_heads(len(doc['changed']))} change class."
    )


def _heads(count: int) -> str:
    return f"{count} head{'s' * (count != 1)}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
