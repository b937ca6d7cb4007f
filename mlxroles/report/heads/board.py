"""Maps of layers by heads as HTML tables: kinds as tiles, scores as shades, both made for any size.

They follow the page's colours, light or dark, and are small where a picture would not be. Layer 0
is at the bottom, as in figures. Cells tell what they are to the page's script, as text.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mlxroles.report.heads import rows, scores
from mlxroles.report.heads.scores import Head, Panel
from mlxroles.report.heads.wording import (
    INKS,
    KINDS,
    NONE,
    brightness,
    in_order,
    is_light,
    kind,
    rgb,
    said,
)
from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]

_SIZES = ((8, 36), (16, 30), (24, 26), (40, 19))
_FINE, _SMALLEST = 10, 6
_LETTERS, _VALUES = 19, 26
"""Pixels of a cell from which on it holds a letter, or a value."""
_EVERY, _MANY = 10, 40
_ALL_TOLD = 400
"""Heads up to which those of no kind tell their numbers too."""
_LIGHT, _DARK = 0.5, 0.3
_LEAST = 0.45

STYLE = """\
:root { --tile: #eceff1; --up: #c43c39; --down: #2a6fb0; --shade: #1f6cb0 }
@media (prefers-color-scheme: dark) { :root { --tile: #262d33; --up: #e0645c; --down: #5aa2e0;
  --shade: #58a6e8 } }
.boards { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start }
.boards figure { margin: .5rem 0; max-width: 100% } .boards figcaption { margin: 0 0 .3rem;
  color: var(--ink); font-weight: 600 }
table.board { border-collapse: separate; border-spacing: 2px; font-size: .8rem }
table.board.fine { border-spacing: 1px }
.board th, .board td { padding: 0; border: 0; text-align: center; vertical-align: middle }
.board th { font-weight: 400; font-size: .72rem; color: var(--dim); padding: 0 .25rem }
.board.fine th { padding: 0; position: relative; min-width: var(--cell); height: var(--cell) }
.board.fine tbody th { min-width: 1.9rem } .board.fine tfoot th { height: 1.2rem }
.board.fine th span { position: absolute; top: 50%; left: 50%; transform: translate(-50%, -50%) }
.board td { width: var(--cell); min-width: var(--cell); height: var(--cell); cursor: default;
  background: var(--tile); border-radius: 3px; position: relative; font-weight: 700 }
.board.fine td { border-radius: 1px }
.board tbody tr:hover { background: none }
.board td.k { background: linear-gradient(var(--k), var(--k)) center / calc(var(--s) * 1%)
  calc(var(--s) * 1%) no-repeat var(--tile); color: var(--on) }
.board td.a::after { content: ""; position: absolute; top: 2px; right: 2px; width: 6px; height: 6px;
  border-radius: 50%; border: 1px solid var(--paper); background: var(--k2) }
.board td.x { background: none; box-shadow: inset 0 0 0 1px var(--rule) }
.shades td { font-weight: 400; font-size: .68rem; color: var(--ink);
  background: color-mix(in srgb, var(--c, var(--shade)) calc(var(--p) * 1%), var(--tile)) }
.shades td.d { color: #fff } .shades td.n { --c: var(--down) } .shades.signed td { --c: var(--up) }
.shades.signed td.n { --c: var(--down) }
.shades td.m { outline: 2px solid var(--ink); outline-offset: -1px; font-weight: 700; z-index: 1 }
.board td:focus-visible { outline: 3px solid var(--accent); z-index: 2 }
.chip { display: inline-block; min-width: 1.5em; padding: 0 .35em; border-radius: 4px;
  text-align: center; font-weight: 700; background: var(--k); color: var(--on) }
.key a { color: var(--accent) }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0;
  font-size: .88rem; margin: .75rem 0 }
#reading.on { position: sticky; top: 0; z-index: 3; box-shadow: 0 1px 0 var(--rule) }
#reading { min-height: 3.4rem; padding: .5rem .75rem; background: var(--panel);
  border-radius: 4px; font-size: .88rem; margin: .5rem 0 1rem; overflow-wrap: anywhere }"""

SCRIPT = """
"use strict";
const panel = document.getElementById("reading");
const tell = cell => {
  if (!cell) return;
  const table = cell.closest("table"), name = table.dataset.side;
  const layer = cell.parentElement.cells[0].dataset.n, head = cell.cellIndex - 1;
  panel.classList.add("on");
  panel.textContent = `${name}L${layer}H${head}: ` + (cell.dataset.t || table.dataset.rest || "");
};
for (const table of document.querySelectorAll("table.board")) {
  table.addEventListener("mouseover", event => tell(event.target.closest("td")));
  table.addEventListener("focusin", event => tell(event.target.closest("td")));
  table.addEventListener("click", event => tell(event.target.closest("td")));
  table.addEventListener("keydown", event => {
    const cell = event.target.closest("td"), row = cell && cell.parentElement;
    if (!cell) return;
    const at = cell.cellIndex;
    const next = {ArrowRight: cell.nextElementSibling, ArrowLeft: cell.previousElementSibling,
      ArrowDown: row.nextElementSibling && row.nextElementSibling.cells[at],
      ArrowUp: row.previousElementSibling && row.previousElementSibling.cells[at]}[event.key];
    if (!next || next.tagName !== "TD") return;
    event.preventDefault();
    cell.tabIndex = -1; next.tabIndex = 0; next.focus();
  });
}
"""


def colors() -> str:
    """A rule per kind: its colour and that of a letter on it; dark ones turn on a dark page."""
    found = []
    for name, one in KINDS.items():
        found.append(f".k-{name} {{ {_look(one.color)} }}")
    found.append(f".k-other {{ {_look(kind('').color)} }}")
    dark = [
        f".k-{name} {{ {_look(_paler(one.color))} }}"
        for name, one in KINDS.items()
        if brightness(one.color) < _DARK
    ]
    found.append(f"@media (prefers-color-scheme: dark) {{ {' '.join(dark)} }}")
    return "\n".join(found)


def style_of(name: str) -> str:
    """The class of a kind's colours."""
    return f"k-{name}" if name in KINDS else "k-other"


def chip(name: str) -> str:
    """The letter of a kind on its colour."""
    letter, title = escape(kind(name).letter), escape(said(name))
    return f'<span class="chip {style_of(name)}" title="{title}">{letter}</span>'


def key(doc: Doc) -> str:
    """The kinds that there are, with their letters and numbers of heads."""
    counted = {side: scores.counts(doc, side) for side in scores.sides(doc)}
    found = in_order(name for one in counted.values() for name in one)
    items = []
    for name in found:
        count = " → ".join(str(one.get(name, 0)) for one in counted.values())
        link = f'<a href="#{style_of(name)}">{escape(said(name))}</a>'
        items.append(f"<li>{chip(name)} {link} {count}</li>")
    count = " → ".join(str(one[NONE]) for one in counted.values())
    items.append(f"<li>nothing holds: {count}</li>")
    return f'<ul class="key">{"".join(items)}</ul>'


def kinds(doc: Doc, side: str) -> str:
    """What each head of a model is, a tile per head."""
    layers, heads = scores.shape(doc, side)
    known, share = scores.classes(doc, side), scores.strength(doc, side)
    visible, cell = scores.is_seen(doc, side), cell_of(layers, heads, len(scores.sides(doc)))
    is_small = layers * heads <= _ALL_TOLD
    body = []
    for layer in reversed(range(layers)):
        cells = []
        for head in range(heads):
            at, name = (layer, head), known[layer][head]
            if not visible[at]:
                cells.append("<td class=x>")
                continue
            told = tell(doc, side, at) if name != NONE or is_small else ""
            data = f' data-t="{escape(told)}"' if told else ""
            if name == NONE:
                cells.append(f"<td{data}>")
                continue
            part = 0.0 if math.isnan(share[at]) else math.sqrt(share[at])
            size = round(100 * (_LEAST + (1 - _LEAST) * part))
            rest = [one for one in scores.also(doc, side, at) if one != name]
            more = " a" if rest and cell >= _VALUES else ""
            second = f";--k2:{kind(rest[0]).color}" if more else ""
            letter = escape(kind(name).letter) if cell >= _LETTERS else ""
            cells.append(
                f'<td class="k{more} {style_of(name)}" style="--s:{size}{second}"{data}>{letter}'
            )
        body.append(_row(layer, layers, cells))
    several = len(scores.sides(doc)) > 1
    counted = scores.counts(doc, side)
    total = int(visible.sum())
    title = f"{side}: " if several else ""
    title += f"{total - counted[NONE]} of {total} heads have a kind"
    return _board(title, body, (heads, cell), side=side if several else "", kind="")


def shades(
    panel: Panel,
    held: np.ndarray,
    end: float,
    *,
    title: str,
    side: str = "",
    is_change: bool = False,
) -> str:
    """A score as shades, marked heads in a frame; values where cells have room for them.

    Args:
        panel: The map.
        held: Which heads are marked [layer, head].
        end: The value of the full shade.
        title: Of the map, plain text.
        side: The model, where there are several.
        is_change: Whether it is a difference, of which only clear ones have their number.
    """
    layers, heads = panel.values.shape
    cell, body = cell_of(layers, heads), []
    for layer in reversed(range(layers)):
        cells = []
        for head in range(heads):
            at = layer, head
            value = float(panel.values[at])
            if math.isnan(value):
                cells.append("<td class=x>")
                continue
            share = min(abs(value) / (end or 1.0), 1.0)
            names = ["m"] * bool(held[at] and not is_change) + ["n"] * (value < 0)
            names += ["d"] * (share > _LIGHT)
            kinds_ = f' class="{" ".join(names)}"' if names else ""
            text = scores.short(value) if cell >= _VALUES and (held[at] or not is_change) else ""
            cells.append(
                f'<td{kinds_} style="--p:{round(100 * share)}" data-t="{value:.3f}">{text}'
            )
        body.append(_row(layer, layers, cells))
    look = "shades signed" if panel.look == "signed" else "shades"
    return _board(title, body, (heads, cell), side=side, kind=look)


def cell_of(layers: int, heads: int, maps: int = 1) -> int:
    """Pixels of a cell, where so many maps stand side by side."""
    fine = _SMALLEST if maps > 1 else _FINE
    return next((size for most, size in _SIZES if max(heads, layers / 2) <= most), fine)


def tell(doc: Doc, side: str, at: Head) -> str:
    """A head in a sentence: what it is, its score beside its nulls, what else it does."""
    name = scores.classes(doc, side)[at[0]][at[1]]
    if name == NONE:
        return "nothing holds; " + nearest(doc, side, at)
    score = scores.by(doc, side, name, at)
    parts = [f"{said(score)} {rows.score_text(doc, side, score, at)}", nulls(doc, side, score, at)]
    rest = [said(one) for one in scores.also(doc, side, at) if one != name]
    parts += [f"also {', '.join(rest)}"] if rest else []
    zeroed = rows.causal_text(doc, side, at)
    parts += [f"zeroed alone: {zeroed}"] if zeroed != "–" else []
    return "; ".join(part for part in parts if part)


def nulls(doc: Doc, side: str, name: str, at: Head) -> str:
    """Uniform attention and the control of a head, in words."""
    found = []
    for key_, text in (("uniform", "uniform attention"), ("control", "control")):
        value = float(scores.grid(doc, side, name, key_)[at])
        if not math.isnan(value):
            found.append(f"{text} {format_number(value)}")
    return ", ".join(found)


def nearest(doc: Doc, side: str, at: Head) -> str:
    """The kind that a head comes nearest to, by its score over the threshold."""
    best, found = 0.0, ""
    for name in doc["models"][side]["detectors"]:
        least = scores.threshold(doc, side, name)
        value = float(scores.judged(doc, side, name)[at])
        if least and not math.isnan(value) and abs(value) / least > best:
            best = abs(value) / least
            what = {"delimiter": "times uniform", "successor": "above its control"}.get(name, "")
            found = f"{said(name)} {format_number(value)} {what}".rstrip()
            found = f"nearest: {found}, needed {least:g}"
    return found


def _row(layer: int, layers: int, cells: Sequence[str]) -> str:
    return f'<tr><th data-n="{layer}" scope="row">{_label(layer, layers)}{"".join(cells)}'


def _board(title: str, body: Sequence[str], size: tuple[int, int], *, side: str, kind: str) -> str:
    heads, cell = size
    names = "".join(f'<th scope="col">{_label(head, heads)}' for head in range(heads))
    fine = " fine" if cell < _LETTERS else ""
    name = f"{safe_text(side, limit=40)} " if side else ""
    text = "\n".join(body).replace("<td", '<td tabindex="0"', 1)
    rest = ' data-rest="nothing holds"' if not kind else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>\n"
        f'<div class="scroll"><table class="board {kind}{fine}" style="--cell:{cell}px" '
        f'data-side="{escape(name)}"{rest}>\n'
        f"<tbody>{text}</tbody>\n<tfoot><tr><th>{names}</tr></tfoot></table></div></figure>"
    )


def _label(number: int, count: int) -> str:
    """A layer's or head's number; of many, every tenth."""
    return f"<span>{number}</span>" if count <= _MANY or not number % _EVERY else ""


def _look(color: str) -> str:
    on = INKS[is_light(color)]
    return f"--k: {color}; --on: {on}"


def _paler(color: str) -> str:
    """The colour as light as it is dark."""
    return "#" + "".join(f"{255 - round((255 - part) * 0.35):02x}" for part in rgb(color))
