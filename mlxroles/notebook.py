"""What a notebook shows of a result: one escaped table, the same for all of them."""

from collections.abc import Iterable, Sequence
from html import escape

from mlxroles.text import safe_text

_LIMIT = 200
"""Longest text of a cell."""


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """A table as HTML that holds nothing of the texts but their characters.

    Args:
        caption: What it is, above the table.
        head: Names of the columns; empty for none.
        rows: Cells, shown as ``str`` gives them.
        note: How to read it, below the table.
    """
    top = "".join(f"<th>{_shown(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_shown(c)}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f"<div>{_shown(caption)}</div><table style='text-align:left'>"
        + (f"<thead><tr>{top}</tr></thead>" if top else "")
        + f"<tbody>{body}</tbody></table>"
        + (f"<small>{_shown(note)}</small>" if note else "")
    )


def _shown(text: object) -> str:
    return escape(safe_text(str(text), limit=_LIMIT))
