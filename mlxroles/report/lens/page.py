"""The report of a lens run as one HTML file: the finding, figures, token grids, tables.

A token grid is a table whose cells show the likeliest token; pointing at one, or moving to it with
the keyboard, shows the other likely ones. The script only moves text that already stands in the
page, as text.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.lens import rows
from mlxroles.report.lens.grids import TokenGrid, chosen_grids
from mlxroles.report.lens.wording import SITES, caution, followed, sentence, title
from mlxroles.text import safe_text, show_token

Doc = Mapping[str, Any]

MOST_GRIDS = 8
_OPEN = 2
"""Grids that are shown unfolded."""
_CAPTIONS = {
    "curves": "The followed string through the layers, at the last position read. Bands: 95 % "
    "bootstrap over prompts, where there are several.",
    "changes": "What an offer, edits or the other model change, prompt by prompt. Bands: 95 % "
    "bootstrap over prompts.",
    "grid": "The likeliest token per layer and position, coloured by its probability; bold where "
    "it is what the model says in the end.",
    "gain": "KL of the lens to the model's own answer on held-out texts, plain and tuned, and the "
    "difference. Dotted: one answer for every position. Bands: 95 % bootstrap over texts.",
    "parts": "What each part of the model writes to the logit.",
}
STYLE = """\
.lens { border-collapse: separate; border-spacing: 1px; font-size: .78rem }
.lens th, .lens td { padding: .12rem .35rem; border: 0; text-align: center;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace }
.lens th { font-weight: 500 } .lens tbody th { position: sticky; left: 0;
  background: var(--paper); text-align: right }
.lens td { background: color-mix(in srgb, var(--shade) calc(var(--p) * 1%), var(--paper));
  border-radius: 3px; cursor: default }
.lens td:focus-visible, .lens td.same { outline: 2px solid var(--accent); outline-offset: -1px }
.lens td.end { font-weight: 700 }
:root { --shade: #f2b134 } @media (prefers-color-scheme: dark) { :root { --shade: #9c6a00 } }
#reading { min-height: 3.2rem; padding: .5rem .75rem; background: var(--panel);
  border-radius: 4px; font-size: .85rem; margin: .5rem 0 1rem; overflow-wrap: anywhere }
.scroll { max-height: 80vh }
.keys span { display: inline-block; color: var(--ink); min-width: 2.4rem;
  padding: .1rem .4rem; text-align: center;
  background: color-mix(in srgb, var(--shade) calc(var(--p) * 1%), var(--paper)) }"""
SCRIPT = """
"use strict";
const panel = document.getElementById("reading");
const tell = cell => {
  if (!cell || !cell.dataset.top) return;
  panel.textContent = cell.dataset.top;
  for (const other of document.querySelectorAll(".lens td.same")) other.classList.remove("same");
  for (const other of cell.closest("table").querySelectorAll("td"))
    if (other.textContent === cell.textContent) other.classList.add("same");
};
const atEnd = box => { box.scrollLeft = box.scrollWidth; };
for (const table of document.querySelectorAll("table.lens")) {
  const box = table.closest("div");
  atEnd(box);
  table.closest("details").addEventListener("toggle", () => atEnd(box));
  table.addEventListener("mouseover", event => tell(event.target.closest("td")));
  table.addEventListener("focusin", event => tell(event.target.closest("td")));
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


def html(
    doc: Doc, grids: Sequence[TokenGrid], figures: Mapping[str, str], parts: Sequence[str] = ()
) -> str:
    """The whole page.

    Args:
        doc: Of a reading or of a fit.
        grids: The token grids that there are; of many, some are shown.
        figures: Paths of PNG files by name; other files are left out.
        parts: Tables of direct logit attribution, HTML already.

    Raises:
        StoreError: a figure cannot be read.
    """
    is_fit = str(doc["schema"]).startswith("mlxroles/lens-fit/")
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    shown = chosen_grids(grids, MOST_GRIDS)
    headline = followed(doc, 24)
    tables = (
        [rows.gain_grid(doc, m) for m in doc["models"]]
        if is_fit
        else [rows.difference_grid(doc), *rows.layer_grids(doc)]
    )
    # the page's own grids say what those in PNG files say, and more
    kept = {name: path for name, path in drawn.items() if not (shown and name.startswith("grid"))}
    body = [
        f"<h1>{escape(title(doc))}</h1>",
        f'<p class="finding">{escape(sentence(doc))}</p>',
        shell.note("" if is_fit else caution(doc)),
        *(shell.figure(path, caption(name)) for name, path in kept.items()),
        _intro(doc) if shown else "",
        *(token_table(grid, headline, is_open=n < _OPEN) for n, grid in enumerate(shown)),
        _left_out(grids, shown),
        *(shell.table(grid) for grid in tables if grid is not None),
        shell.note(rows.GAIN_LEGEND if is_fit else rows.legend(doc)),
        *parts,
        *(shell.note(safe_text(text)) for text in doc.get("notes") or []),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(title(doc), body, style=STYLE, script=SCRIPT if shown else "")


def caption(name: str) -> str:
    """What stands below a figure."""
    return next((text for key, text in _CAPTIONS.items() if name.startswith(key)), name)


def _intro(doc: Doc) -> str:
    keys = "".join(f'<span style="--p:{p}">{p} %</span>' for p in (0, 25, 50, 75, 100))
    text = (
        f"Read: {SITES[doc['site']]}. Columns are positions with their token, rows layers, the "
        "last on top. Bold: what the model says there in the end. Point at a cell, or use the "
        "arrow keys, for what else is likely."
    )
    return (
        f"<h2>Likeliest tokens</h2>\n{shell.note(text)}\n"
        f'<p class="note keys">probability {keys}</p>\n'
        '<p id="reading" aria-live="polite">&nbsp;</p>'
    )


def _left_out(grids: Sequence[TokenGrid], shown: Sequence[TokenGrid]) -> str:
    left = len(grids) - len(shown)
    return shell.note(f"{left} more grids are in run.h5." if left > 0 else "")


def token_table(grid: TokenGrid, headline: str, *, is_open: bool) -> str:
    """One grid as a table, the last layer on top."""
    names = "".join(
        f'<th scope="col" title="position {p}">{escape(show_token(t, limit=12))}</th>'
        for p, t in zip(grid.positions, grid.tokens, strict=True)
    )
    body = []
    for at in reversed(range(len(grid.layers))):
        cells = "".join(_cell(grid, at, n, headline) for n in range(len(grid.positions)))
        body.append(f'<tr><th scope="row">{grid.layers[at]}</th>{cells}</tr>')
    heading = escape(f"{grid.name}: prompt {show_token(grid.prompt, limit=40)}")
    state = " open" if is_open else ""
    rows_ = "\n".join(body)
    return (
        f"<details{state}>\n<summary>{heading}</summary>\n"
        '<div class="scroll"><table class="lens">\n'
        f'<thead><tr><th scope="col">layer</th>{names}</tr></thead>\n'
        f"<tbody>\n{rows_}\n</tbody></table></div>\n</details>"
    )


def _cell(grid: TokenGrid, at: int, n: int, headline: str) -> str:
    tokens, probs = grid.top[at][n], grid.probs[at, n]
    likely = ", ".join(
        f"{show_token(t, limit=24)} {p:.3f}" for t, p in zip(tokens, probs, strict=True)
    )
    said = (
        f"layer {grid.layers[at]}, position {grid.positions[n]} "
        f"{show_token(grid.tokens[n], limit=24)}: {likely}. In the end: "
        f"{show_token(grid.end[n], limit=24)}, number {grid.end_rank[at, n] + 1} here; "
        f"KL {grid.kl[at, n]:.2f} nats. {headline} is number {grid.headline_rank[at, n] + 1}"
    )
    share = 0 if math.isnan(probs[0]) else round(100 * float(probs[0]))
    kind = ' class="end"' if grid.end_rank[at, n] == 0 else ""
    focus = 0 if at == len(grid.layers) - 1 and n == len(grid.positions) - 1 else -1
    return (
        f'<td{kind} tabindex="{focus}" style="--p:{share}" data-top="{escape(said)}">'
        f"{escape(show_token(tokens[0], limit=12))}</td>"
    )
