"""The shell of every report page: one HTML file that asks for nothing, no link, no font.

A content security policy forbids everything but the page's own style, inlined images and, where a
page has one, a script known by its hash, so that the page cannot reach a network even if a token's
text should slip through the escaping. Not here: what a page says.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mlxroles.errors import StoreError
from mlxroles.report.rows import Grid

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
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
details { margin: 1.25rem 0 } summary { cursor: pointer; font-weight: 600 }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
details[open] summary { margin-bottom: .75rem }
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


def page(title: str, parts: Sequence[str], *, style: str = "", script: str = "") -> str:
    """The whole file around parts that are HTML already; empty parts are left out.

    Args:
        title: plain text.
        parts: what stands in the body, in order.
        style: rules that come after those of every page.
        script: code that runs at the end of the body; nothing else can.
    """
    body = "\n".join(part for part in parts if part)
    policy = f"{_POLICY}; script-src '{_digest(script)}'" if script else _POLICY
    rules = f"{_STYLE}\n{style}" if style else _STYLE
    tail = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{rules}\n</style>\n</head>\n"
        f"<body>\n{body}\n{tail}</body>\n</html>\n"
    )


def figure(path: Path, caption: str) -> str:
    """A PNG file inlined, with its caption.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise StoreError(
            f"{path}: the figure cannot be read ({error.strerror}); draw the figures again"
        ) from error
    shown = escape(caption)
    image = f'<img alt="{shown}" src="data:image/png;base64,{data}">'
    return f"<figure>\n{image}\n<figcaption>{shown}</figcaption>\n</figure>"


def folded(heading: str, body: str) -> str:
    """What a click on the heading shows; ``body`` is HTML already."""
    return f"<details>\n<summary>{escape(heading)}</summary>\n{body}\n</details>"


def table(
    grid: Grid,
    *,
    is_sortable: bool = False,
    ordered: int | None = None,
    is_folded: bool = False,
) -> str:
    """The grid under its title; rows whose first cell ends in a mark stand out.

    Args:
        grid: title, head and rows as plain text.
        is_sortable: whether the page's script may sort the rows.
        ordered: the column by which the rows ascend as they are.
        is_folded: whether a click on the title shows the rows.
    """
    cells = [
        f'<th scope="col"{_direction(ordered == at)}>{escape(name)}</th>'
        for at, name in enumerate(grid.head)
    ]
    body = "\n".join(_row(row) for row in grid.rows)
    kind = ' class="sortable"' if is_sortable else ""
    rows = (
        f'<div class="scroll"><table{kind}>\n<thead><tr>{"".join(cells)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
    return folded(grid.title, rows) if is_folded else f"<h2>{escape(grid.title)}</h2>\n{rows}"


def note(text: str) -> str:
    """A paragraph of small print; nothing for no text."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values as a list of two columns."""
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>\n{items}\n</dl>"


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _direction(is_ordered: bool) -> str:
    return ' aria-sort="ascending"' if is_ordered else ""


def _row(row: Sequence[str]) -> str:
    is_marked = row[0].endswith(("◆", "½"))
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
    return f'<tr class="marked">{cells}</tr>' if is_marked else f"<tr>{cells}</tr>"
