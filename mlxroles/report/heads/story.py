"""The kinds of heads one by one: what each is, which heads are, how sure that is, what they do."""

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np

from mlxroles.heads import head_name
from mlxroles.report.heads import board, rows, scores
from mlxroles.report.heads.scores import Head
from mlxroles.report.heads.wording import NONE, SCORES, in_order, kind
from mlxroles.text import format_number

Doc = Mapping[str, Any]

MOST = 12
"""Heads of a kind that are listed per model."""
_WIDTH, _HEIGHT, _PAD = 150, 18, 6
_RANDOM = "_random"
_DRAWN = ("score", "low", "high", "low_all", "high_all", "uniform", "control")

STYLE = """\
.kind h2 { display: flex; gap: .5rem; align-items: baseline; flex-wrap: wrap }
.kind h2 small { font-weight: 400; color: var(--dim); font-size: .9rem }
table.heads td, table.heads th { text-align: left; padding: .24rem .42rem; font-size: .82rem }
table.heads td { vertical-align: middle } table.heads tr.first td { border-top: 2px solid
  var(--rule) } table.heads { margin: .75rem 0 }
svg.dots { display: block; overflow: visible } svg.dots line, svg.dots path { stroke-width: 2;
  fill: none } svg.dots line.base, svg.dots line.model { stroke-width: 3.2 }
svg.dots line.thin { stroke-width: 1 } .axis { stroke: var(--rule) }
.need { stroke: #c43c39; stroke-dasharray: 3 2 }
.null { stroke: var(--dim) } .base { stroke: #ffa90e; fill: #ffa90e }
.model { stroke: #3f90da; fill: #3f90da }
.dot { display: inline-block; width: .6em; height: .6em; border-radius: 50%; margin-right: .4em }
.dot.base { background: #ffa90e } .dot.model { background: #3f90da }
@media (max-width: 40rem) { .print { overflow-x: auto } .print img { width: 44rem } }"""


def sections(doc: Doc, drawn: Callable[[str], str]) -> list[str]:
    """A section per kind that any head is of, in order.

    Args:
        doc: Parsed.
        drawn: The maps of a score, HTML; nothing where there is no room for them.
    """
    found = in_order(
        name
        for side in scores.sides(doc)
        for known in (scores.classes(doc, side), *(doc["models"][side].get("also") or []))
        for line in known
        for name in ([line] if isinstance(line, str) else line or [])
    )
    return [_section(doc, name, drawn) for name in found]


def _section(doc: Doc, name: str, drawn: Callable[[str], str]) -> str:
    about = kind(name)
    measured = SCORES.get(name, name)
    which = f"<small>{escape(_which(doc, name))}</small>"
    parts = [
        f'<section class="kind" id="{board.style_of(name)}">',
        f"<h2>{board.chip(name)} {escape(about.name)} {which}</h2>",
        _note(_measured(doc, name)),
        drawn(measured),
        _table(doc, name),
    ]
    random = measured + _RANDOM
    if random in scores.names(doc):
        parts += [_folded_random(doc, random, drawn)]
    parts += [_note(text) for text in _causal(doc, name)]
    return "\n".join(part for part in [*parts, "</section>"] if part)


def _folded_random(doc: Doc, name: str, drawn: Callable[[str], str]) -> str:
    body = f"{_note(_measured(doc, name))}\n{drawn(name)}"
    return f"<details><summary>{escape(kind(name).name)}</summary>\n{body}</details>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _which(doc: Doc, name: str) -> str:
    """The heads of a kind: in each model, where there are several."""
    found = []
    for side in scores.sides(doc):
        own = [head_name(*at) for at in scores.of_class(doc, side, name)]
        shown = ", ".join(own[:5]) + (f" and {len(own) - 5} more" if len(own) > 5 else "")
        several = f"{side}: " if len(scores.sides(doc)) > 1 else ""
        found.append(several + (shown or "none"))
    return " · ".join(found)


def _measured(doc: Doc, name: str) -> str:
    """What is measured, what it is held against, and how much is needed."""
    measured = scores.told(doc, name, "what", kind(name).measures).rstrip(".")
    parts = [f"{measured[:1].upper()}{measured[1:]}." if measured else ""]
    control = scores.told(doc, name, "against", kind(name).control)
    parts += [f"Control: {control}."] if control else []
    least = scores.threshold(doc, scores.sides(doc)[0], name)
    if least:
        beside = "more than" if name in ("delimiter", "successor") else "twice"
        parts.append(
            f"Needed: {rows.need(name, least)}, and {beside} uniform attention and the control."
        )
    return " ".join(part for part in parts if part)


def _causal(doc: Doc, name: str) -> list[str]:
    """What zeroing the heads of a kind together did to what they are for, a line per model."""
    found = []
    for side in scores.sides(doc):
        own = [row for row in rows.causal_rows(doc, side) if row.get("class") == name]
        if own:
            several = side if len(scores.sides(doc)) > 1 else ""
            found.append(rows.causal_sentence(own[0], several))
    return found


# --- the table --------------------------------------------------------------------------------


def _table(doc: Doc, name: str) -> str:
    """A row per head and model: the score as number and dot, its nulls, the change, the check."""
    sides = scores.sides(doc)
    listed = _listed(doc, name)
    if not listed:
        return ""
    is_pair, is_causal = len(sides) > 1, any(rows.causal_rows(doc, side) for side in sides)
    measured = SCORES.get(name, name)
    change = scores.difference(doc, measured) if is_pair else None
    head = ["head", *["model"] * is_pair, "score [95 %]", "beside its nulls", "uniform · control"]
    random = measured + _RANDOM if measured + _RANDOM in scores.names(doc) else ""
    head += ["random ids"] * bool(random) + [" − ".join(sides[1::-1])] * (change is not None)
    others = {(at, side): _also(doc, side, at, name) for at in listed for side in sides}
    head += ["zeroed alone"] * is_causal
    head += ["other kinds"] * any(others.values())
    scale = _scale(doc, measured, listed)
    body = []
    for at in listed:
        for n, side in enumerate(sides):
            first = n == 0
            cells = [f"<b>{head_name(*at)}</b>" if first else ""]
            cells += [f'<i class="dot {_color(side)}"></i>{escape(side)}'] * is_pair
            cells.append(escape(rows.score_text(doc, side, measured, at)))
            cells.append(_dots(doc, side, measured, at, scale))
            nulls = [rows.number(doc, side, measured, at, key) for key in ("uniform", "control")]
            cells.append(" · ".join(nulls))
            cells += [rows.number(doc, side, random, at, "score")] if random else []
            if change is not None:
                cells.append(escape(rows.difference_text(doc, measured, at)) if first else "")
            cells += [escape(rows.causal_text(doc, side, at))] * is_causal
            cells += [others[at, side]] * any(others.values())
            kind_ = ' class="first"' if first and is_pair else ""
            body.append(f"<tr{kind_}>{''.join(f'<td>{cell}' for cell in cells)}</tr>")
    names = "".join(f'<th scope="col">{escape(text)}' for text in head)
    left = _left(doc, name, listed)
    return (
        f'<div class="scroll"><table class="heads">\n<thead><tr>{names}</tr></thead>\n'
        f"<tbody>{chr(10).join(body)}</tbody></table></div>\n{_note(left)}"
    )


def _color(side: str) -> str:
    return "base" if side == "base" else "model"


def _listed(doc: Doc, name: str) -> list[Head]:
    """Heads of the kind in any model, the highest score first, each once."""
    found: dict[Head, float] = {}
    for side in scores.sides(doc):
        size = scores.size(doc, side, name)
        for at in scores.of_class(doc, side, name)[:MOST]:
            found[at] = max(found.get(at, 0.0), float(np.nan_to_num(size[at])))
    return sorted(found, key=lambda at: (-found[at], at))[:MOST]


def _left(doc: Doc, name: str, listed: list[Head]) -> str:
    own = {at for side in scores.sides(doc) for at in scores.of_class(doc, side, name)}
    rest = len(own - set(listed))
    return f"{rest} more heads are in heads.csv." if rest else ""


def _also(doc: Doc, side: str, at: Head, name: str) -> str:
    """The other kinds of a head as chips, its first one first; or that it is not of this one."""
    own = scores.classes(doc, side)[at[0]][at[1]]
    every = list(dict.fromkeys([own, *scores.also(doc, side, at)]))
    chips = " ".join(board.chip(one) for one in every if one not in (name, NONE))
    missing = '<span class="note">not marked</span>' if name not in every else ""
    return f"{missing} {chips}".strip()


def _scale(doc: Doc, name: str, listed: list[Head]) -> tuple[float, float]:
    """The ends of the axis of dots."""
    found = [0.0]
    for side in scores.sides(doc):
        for key in _DRAWN:
            values = scores.grid(doc, side, name, key)
            found += [float(values[at]) for at in listed if not math.isnan(values[at])]
        found.append(_need(doc, side, name))
    return min(found), (max(found) or 1.0)


def _need(doc: Doc, side: str, name: str) -> float:
    """The threshold, where it is one of the score itself."""
    least = scores.threshold(doc, side, name)
    return 0.0 if least is None or name in ("delimiter", "successor") else least


def _dots(doc: Doc, side: str, name: str, at: Head, scale: tuple[float, float]) -> str:
    """A line of dots: the score with its interval, uniform attention, control, threshold."""
    low, high = scale

    def x(value: float) -> str:
        return f"{_PAD + (value - low) / (high - low) * (_WIDTH - 2 * _PAD):.1f}"

    values = {key: float(scores.grid(doc, side, name, key)[at]) for key in _DRAWN}
    middle, color = _HEIGHT / 2, _color(side)
    parts = [f'<line class="axis" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>']
    need = _need(doc, side, name)
    if need:
        parts.append(f'<line class="need" x1="{x(need)}" x2="{x(need)}" y1="0" y2="{_HEIGHT}"/>')
    if not math.isnan(values["uniform"]):
        u = x(values["uniform"])
        parts.append(f'<line class="null" x1="{u}" x2="{u}" y1="4" y2="14"/>')
    if not math.isnan(values["control"]):
        c = float(x(values["control"]))
        parts.append(f'<path class="null" d="M{c - 3.5:.1f} 5.5l7 7m0-7l-7 7"/>')
    if not (math.isnan(values["low_all"]) or math.isnan(values["high_all"])):
        ends = f'x1="{x(values["low_all"])}" x2="{x(values["high_all"])}"'
        parts.append(f'<line class="{color} thin" {ends} y1="{middle}" y2="{middle}"/>')
    if not (math.isnan(values["low"]) or math.isnan(values["high"])):
        ends = f'x1="{x(values["low"])}" x2="{x(values["high"])}"'
        parts.append(f'<line class="{color}" {ends} y1="{middle}" y2="{middle}"/>')
    if not math.isnan(values["score"]):
        parts.append(f'<circle class="{color}" cx="{x(values["score"])}" cy="{middle}" r="3.4"/>')
    label = f"{format_number(values['score'])}, uniform {format_number(values['uniform'])}"
    return (
        f'<svg class="dots" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
