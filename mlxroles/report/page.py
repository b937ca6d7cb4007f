"""The report of a patch run as one HTML file that asks for nothing: no script, no link, no font.

A content security policy forbids everything but its own style and inlined images, so that the
page cannot reach a network even if a token's text should slip through the escaping.
"""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles import documents
from mlxroles.errors import StoreError
from mlxroles.report import rows
from mlxroles.report.wording import caution, sentence

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CAPTIONS = {
    "effects": "Probability of the measured string after each patch. Horizontal lines: unpatched "
    "models. Thin lines: controls.",
    "recovery": "Share of the gap in log-odds that each patch closes. The circle marks the first "
    "layer of at least one half; bars show what each layer adds.",
    "top_tokens": "The five likeliest next tokens after each patch, between those of the unpatched "
    "recipient (top) and donor (bottom).",
    "heads": "Recovery when a single head is patched; the frame marks the largest.",
    "positions": "Recovery when a single position is patched; the frame marks the largest.",
}
_STYLE = """\
:root { color-scheme: light dark; --ink: #1d2329; --dim: #5f6b76; --paper: #ffffff;
  --panel: #f4f6f8; --rule: #dce1e6; --accent: #1f6cb0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --dim: #98a3ad; --paper: #14181c;
  --panel: #1d2328; --rule: #333c44; --accent: #6db3ef } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
.finding { font-size: 1.1rem; padding: 1rem 1.25rem; background: var(--panel);
  border-left: 4px solid var(--accent); border-radius: 4px; margin: 0 0 1rem }
.note, figcaption, footer { color: var(--dim); font-size: .9rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 1rem 0 }
dt { color: var(--dim) } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1.5rem 0 } figcaption { margin-top: .4rem }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--rule) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule) }
th { color: var(--dim); font-weight: 600 }
tbody tr:hover { background: var(--panel) } tr.marked td { font-weight: 600 }
th:last-child, td:last-child { text-align: left }
@media print { body { max-width: none; padding: 0 } }"""


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    facts = rows.facts(doc)
    title = f"Patching {dict(facts).get('pair', '')}"
    grids = [rows.layer_grid(doc, direction) for direction in documents.directions(doc)]
    legend = "◆ largest effect · ½ first layer that restores half · *** effect beyond .01 · "
    legend += (
        "R: share of the gap in log-odds that the patch closes · KL: nats, to the unpatched run"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(sentence(doc))}</p>',
        f'<p class="note">{escape(caution(doc))}</p>' if caution(doc) else "",
        *(_figure(name, Path(path)) for name, path in figures.items() if path.endswith(".png")),
        _table(rows.baselines(doc)),
        *(_table(grid) for grid in grids),
        f'<p class="note">{escape(legend)}</p>',
        "<h2>The run</h2>",
        _list(facts),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(name: str, path: Path) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise StoreError(
            f"{path}: the figure cannot be read ({error.strerror}); draw the figures again"
        ) from error
    caption = escape(_CAPTIONS.get(name, name))
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"


def _table(grid: rows.Grid) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.head)
    body = "\n".join(_row(row) for row in grid.rows)
    return (
        f'<h2>{escape(grid.title)}</h2>\n<div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _row(row: list[str]) -> str:
    is_marked = row[0].endswith(("◆", "½"))
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
    return f'<tr class="marked">{cells}</tr>' if is_marked else f"<tr>{cells}</tr>"


def _list(facts: list[tuple[str, str]]) -> str:
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>\n{items}\n</dl>"
