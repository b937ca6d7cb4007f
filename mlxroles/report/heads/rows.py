"""The numbers of a heads document as rows of strings, the same for every kind of report."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlxroles.heads import head_name
from mlxroles.report.heads.scores import (
    Head,
    Numbers,
    also,
    by,
    classes,
    counts,
    difference,
    grid,
    is_seen,
    largest,
    marked,
    names,
    of_kind,
    ranked,
    shape,
    sides,
    threshold,
)
from mlxroles.report.heads.wording import NONE, kind, said
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]

_MOST_TOLD = 6
_MEASURES = {
    "gain": "repetition gain",
    "text_loss": "loss on text",
    "next_element": "ln P of the next element",
    "name_difference": "lead of the name",
    "seen": "lead of tokens seen before",
}
"""Short names, for tables."""
_SHORTEST = {"next_element": "ln P of next", "name_difference": "name lead", "seen": "seen lead"}
"""Of those, for a terminal."""


def finding(doc: Doc) -> list[str]:
    """The sentence of the document, what is said of the second model on a line of its own."""
    text = safe_text(str(doc.get("sentence") or ""))
    for side in sides(doc)[1:]:
        text = text.replace(f". {side}: ", f".\n{side}: ")
    return text.replace(". From base to ", ".\nFrom base to ").splitlines()


def between(value: float, low: float, high: float, form: str = ".3f") -> str:
    """A number with its interval: ``.62 [.58, .66]``."""
    shown = format_number(value, form)
    if math.isnan(low) or math.isnan(high):
        return shown
    return f"{shown} [{format_number(low, form)}, {format_number(high, form)}]"


def score_text(doc: Doc, side: str, name: str, at: Head, form: str = "") -> str:
    """A head's score with its interval."""
    form = form or ("+.3f" if kind(name).is_signed else ".3f")
    return between(*(grid(doc, side, name, key)[at] for key in ("score", "low", "high")), form)


def number(doc: Doc, side: str, name: str, at: Head, key: str) -> str:
    """One number of a head."""
    return format_number(float(grid(doc, side, name, key)[at]))


def heads_grid(doc: Doc, side: str, *, most: int) -> Grid | None:
    """The heads that have a kind, kind by kind, with their evidence; None without any.

    Where there are more than ``most``, every kind has its highest ones.
    """
    by_kind = {name: of_kind(doc, side, name) for name in counts(doc, side) if name != NONE}
    total, share = sum(map(len, by_kind.values())), 0
    while sum(min(len(own), share + 1) for own in by_kind.values()) <= most and share < most:
        share += 1
    share = max(share, 1)
    body = []
    for name, own in by_kind.items():
        for at in own[:share]:
            rest = [said(one) for one in also(doc, side, at) if one != name]
            score = by(doc, side, name, at)
            body.append(
                [
                    head_name(*at),
                    said(score),
                    score_text(doc, side, score, at),
                    number(doc, side, score, at, "uniform"),
                    number(doc, side, score, at, "control"),
                    ", ".join(rest),
                ]
            )
    if not body:
        return None
    several = f"{side}: " if len(sides(doc)) > 1 else ""
    shown = f"the {total} heads" if len(body) == total else f"the highest of {total} heads"
    title = f"{several}{shown} with a kind"
    return Grid(title, ["head", "what it does", "score [95 %]", "uniform", "control", "also"], body)


def nearest_grid(doc: Doc, *, most: int = 1) -> Grid | None:
    """The best head of each kind that no head of a model is of; None where there is no such."""
    body = []
    for name in names(doc):
        for side in sides(doc):
            if marked(doc, side, name).any():
                continue
            for at in ranked(doc, side, name)[:most]:
                least = threshold(doc, side, name)
                body.append(
                    [
                        said(name).replace(" token, random", ", random"),
                        *[side] * (len(sides(doc)) > 1),
                        head_name(*at),
                        score_text(doc, side, name, at),
                        number(doc, side, name, at, "uniform"),
                        number(doc, side, name, at, "control"),
                        need(name, least),
                    ]
                )
    several = ["model"] * (len(sides(doc)) > 1)
    head = ["kind", *several, "head", "score [95 %]", "uniform", "control", "needed"]
    title = "Scores by which no head is marked: the nearest one"
    return Grid(title, head, body) if body else None


def need(name: str, least: float | None) -> str:
    """What a score must exceed, in words."""
    if not least:
        return "–"
    if name == "delimiter":
        return f"{least:g} x uniform"
    return f"control + {least:g}" if name == "successor" else f"{least:g}"


def what(doc: Doc, side: str, at: Head) -> str:
    """The class of a head and what else holds of it, in words."""
    own = classes(doc, side)[at[0]][at[1]]
    rest = [said(name) for name in also(doc, side, at) if name != own]
    if own == NONE:
        return "nothing holds" if not rest else f"none; also {', '.join(rest)}"
    return said(own) + (f", also {', '.join(rest)}" if rest else "")


def difference_text(doc: Doc, name: str, at: Head) -> str:
    """The change of a score with its interval, starred where it is clear."""
    values = [difference(doc, name, key) for key in ("value", "low", "high", "clear")]
    value, low, high, clear = (
        math.nan if v is None or not _inside(v, at) else float(v[at]) for v in values
    )
    if math.isnan(value):
        return "–"
    bounds = "" if math.isnan(low) or math.isnan(high) else f" [{low:+.3f}, {high:+.3f}]"
    return f"{value:+.3f}{bounds}{' *' if clear == 1.0 else ''}"


def _inside(values: Numbers, at: Head) -> bool:
    return at[0] < values.shape[0] and at[1] < values.shape[1]


def causal_rows(doc: Doc, side: str) -> list[Mapping[str, Any]]:
    """What zeroing heads of a model did."""
    return list((doc.get("causal") or {}).get(side) or [])


def causal_text(doc: Doc, side: str, at: Head) -> str:
    """What zeroing this head alone does to what it is for."""
    name = head_name(*at)
    found = [row for row in causal_rows(doc, side) if list(row.get("heads") or []) == [name]]
    if not found:
        return "–"
    row = found[0]
    shown = f"{short_measure(row)} {format_number(value_of(row, 'change'), '+.2f')}"
    return shown + (" ✓" if row.get("confirmed") else "")


def causal_sentence(row: Mapping[str, Any], side: str = "") -> str:
    """What zeroing a set of heads did, beside random sets, in a sentence."""
    bounds = between(*(value_of(row, key) for key in ("change", "low", "high")), "+.2f")
    unit = safe_text(str(row.get("unit") or ""), limit=20)
    text = f"{f'{side}: zeroing' if side else 'Zeroing'} {heads_text(row)} moves {measure(row)} "
    text += f"by {bounds}{f' {unit}' if unit else ''}"
    clean, values, p = value_of(row, "clean"), random_values(row), value_of(row, "p")
    text += "" if math.isnan(clean) else f" from {clean:.2f}"
    if not values:
        return f"{text}; there are no other heads to compare with."
    text += f"; {len(values)} random sets of as many other heads: "
    text += f"{min(values):+.2f} to {max(values):+.2f}"
    text += "" if math.isnan(p) else f", p {p:.2g}"
    confirmed = row.get("confirmed")
    verdict = "" if confirmed is None else ", confirmed" if confirmed else ", not confirmed"
    return f"{text}{verdict}."


def value_of(row: Mapping[str, Any], key: str) -> float:
    """A number of a row; NaN for none."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def measure(row: Mapping[str, Any]) -> str:
    """What was measured, in words."""
    words = row.get("words") or str(row.get("measure") or "").replace("_", " ")
    return safe_text(str(words), limit=60)


def short_measure(row: Mapping[str, Any]) -> str:
    """What was measured, in a few words."""
    return _MEASURES.get(str(row.get("measure")), measure(row))


def heads_text(row: Mapping[str, Any], most: int = 4) -> str:
    """The heads that were zeroed, in words."""
    found = [safe_text(str(name), limit=16) for name in row.get("heads") or []]
    if len(found) <= most:
        return ", ".join(found)
    return f"{', '.join(found[:most])} and {len(found) - most} more"


def random_values(row: Mapping[str, Any]) -> list[float]:
    """What random sets of as many other heads did."""
    return [float(value) for value in row.get("random") or [] if value is not None]


def own_rows(doc: Doc, side: str) -> list[Mapping[str, Any]]:
    """What zeroing heads did to what they are for; all heads of each class first."""
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in causal_rows(doc, side):
        found.setdefault((str(row.get("class")), *map(str, row.get("heads") or ())), row)
    return sorted(found.values(), key=lambda row: row.get("set") != "all")


def causal_grid(doc: Doc, side: str, *, most: int, is_whole: bool = True) -> Grid | None:
    """What zeroing each set of heads did, beside random sets; None where nothing was zeroed.

    Args:
        doc: The document.
        side: The model.
        most: Rows at most.
        is_whole: Whether the loss on text stands beside what the heads are for, q beside p, and
            all is said in full.
    """
    own = causal_rows(doc, side) if is_whole else own_rows(doc, side)
    tests = ("p", "q") if is_whole else ("p",)
    if not own:
        return None
    body = []
    for row in own[:most]:
        values, mark = random_values(row), " ✓" if row.get("confirmed") else ""
        measured = str(row.get("measure"))
        body.append(
            [
                (heads_text(row, 2) if is_whole else _which(row)) + mark,
                short_measure(row) if is_whole else _SHORTEST.get(measured, short_measure(row)),
                between(*(value_of(row, key) for key in ("change", "low", "high")), "+.2f"),
                f"{min(values):+.2f} to {max(values):+.2f}" if values else "–",
                *(format_number(value_of(row, key), ".2g") for key in tests),
                said(str(row.get("class"))),
            ]
        )
    several = f"{side}: " if len(sides(doc)) > 1 else ""
    head = ["zeroed", "measure", "change [95 %]", "random sets", *tests, "class"]
    return Grid(f"{several}what zeroing heads does", head, body)


def _which(row: Mapping[str, Any]) -> str:
    """The one head that was zeroed, or how many of which class."""
    count = len(row.get("heads") or ())
    return heads_text(row) if count < 2 else f"{count} {said(str(row.get('class')))}"


def differences(doc: Doc, *, most: int) -> list[tuple[str, Head]]:
    """The scores that differ clearly between the models, the largest first.

    Weights of attention as they are, others as a share of the largest.
    """
    found: list[tuple[float, str, Head]] = []
    for name in names(doc):
        value, clear = difference(doc, name), difference(doc, name, "clear")
        if value is None or clear is None:
            continue
        scale = largest(doc, name) if kind(name).is_signed else 1.0
        for layer, head in np.argwhere((clear > 0) & np.isfinite(value)):
            at = int(layer), int(head)
            found.append((-abs(float(value[at])) / scale, name, at))
    return [(name, at) for _, name, at in sorted(found)[:most]]


def difference_grid(doc: Doc, *, most: int) -> Grid | None:
    """What differs between the models, with intervals."""
    if not doc.get("difference") or len(sides(doc)) < 2:
        return None
    first, second = sides(doc)[:2]
    total = len(differences(doc, most=1 << 30))
    body = [
        [
            head_name(*at),
            said(name),
            difference_text(doc, name, at).removesuffix(" *"),
            *(number(doc, side, name, at, "score") for side in (first, second)),
        ]
        for name, at in differences(doc, most=most)
    ]
    shown = f"the {len(body)} largest of {total}" if total > len(body) else str(total)
    title = f"Clear differences of scores: {shown}"
    return Grid(title, ["head", "score", f"{second} − {first}", first, second], body)


def summary(doc: Doc, side: str, most: int = _MOST_TOLD) -> str:
    """The kinds of a model with their heads, in a sentence."""
    parts = []
    for name, count in counts(doc, side).items():
        if name == NONE:
            continue
        own = [head_name(*at) for at in of_kind(doc, side, name)]
        more = f" and {count - most} more" if count > most else ""
        parts.append(f"{said(name)} {', '.join(own[:most])}{more}")
    rest = counts(doc, side)[NONE]
    tail = f"nothing holds of {rest} of {int(is_seen(doc, side).sum())} heads"
    return "; ".join([*parts, tail])


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was."""
    versions = doc.get("versions") or {}
    found = [
        ("models", safe_text(str(doc.get("display") or doc.get("pair") or ""), limit=80)),
        *(
            (str(side), f"{layers} layers of {heads} heads")
            for side, (layers, heads) in ((side, shape(doc, side)) for side in sides(doc))
        ),
        *_material(doc.get("material")),
        ("seed", safe_text(str(doc.get("seed", "")), limit=20)),
        ("run", safe_text(str(doc.get("run_id", "")), limit=40)),
        ("made", safe_text(str(doc.get("timestamp", "")), limit=40)),
        (
            "versions",
            ", ".join(f"{safe_text(str(k))} {safe_text(str(v))}" for k, v in versions.items()),
        ),
    ]
    return [(name, value) for name, value in found if value]


def _material(values: Any) -> list[tuple[str, str]]:
    """What was shown to the models."""
    if not isinstance(values, Mapping):
        return []
    sets, count = values.get("sets"), values.get("rows")
    listed = sets if isinstance(sets, Mapping) else {}
    counted = count if isinstance(count, Mapping) else {}
    said_ = [
        f"{safe_text(str(name), limit=30)}: {safe_text(str(about), limit=80)}"
        + (f" ({counted[name]} rows)" if name in counted else "")
        for name, about in listed.items()
    ]
    own = [("length", "tokens of a row"), ("text", "text"), ("random_ids", "different random ids")]
    found = [(label, safe_text(str(values[key]), limit=80)) for key, label in own if key in values]
    return [("rows of tokens", "; ".join(said_)), *found]


def notes(doc: Doc) -> list[str]:
    """Notes of the run and of its models, each once."""
    own = [str(text) for text in doc.get("notes") or ()]
    for side in sides(doc):
        head = f"{side}: " if len(sides(doc)) > 1 else ""
        own += [head + str(text) for text in doc["models"][side].get("notes") or ()]
    return list(dict.fromkeys(safe_text(text) for text in own))
