"""The short Markdown summary of a patch run."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.report import rows
from mlxroles.report.wording import caution, sentence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")


def markdown(doc: Mapping[str, Any]) -> str:
    """The finding, the baselines and one table per direction; all text escaped."""
    facts = dict(rows.facts(doc))
    parts = [f"# Patching {escape(facts.get('pair', ''))}", escape(sentence(doc))]
    parts += [escape(caution(doc))] if caution(doc) else []
    parts.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts.items()))
    grids = [rows.baselines(doc)]
    grids += [rows.layer_grid(doc, direction) for direction in documents.directions(doc)]
    for grid in grids:
        parts += [f"## {escape(grid.title)}", _table(grid.head, grid.rows)]
    parts.append("◆ largest effect, ½ first layer that restores half, \\*\\*\\* effect beyond .01.")
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """The text with everything that Markdown or inline HTML would read as a mark escaped."""
    return _SPECIAL.sub(r"\\\1", text).replace(r"\&", "&amp;").replace(r"\<", "&lt;")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    shown = [f"| {' | '.join(map(escape, lines[0]))} |", f"| {' | '.join(lines[1])} |"]
    shown += [f"| {' | '.join(map(escape, row))} |" for row in body]
    return "\n".join(shown)
