"""The short Markdown summary of a patch run."""

from collections.abc import Mapping
from typing import Any

from mlxroles import documents
from mlxroles.report import rows
from mlxroles.report.markup import bullets, escape, table
from mlxroles.report.wording import caution, next_step, sentence

__all__ = ["escape", "markdown"]


def markdown(doc: Mapping[str, Any]) -> str:
    """The finding, the baselines and one table per direction; all text escaped."""
    facts = rows.facts(doc)
    parts = [f"# {escape(rows.title(doc))}", escape(sentence(doc))]
    parts += [escape(caution(doc))] if caution(doc) else []
    parts.append(bullets(facts))
    grids = [rows.baselines(doc)]
    grids += [rows.layer_grid(doc, direction) for direction in documents.directions(doc)]
    for grid in grids:
        parts += table(grid)
    parts.append("◆ largest effect, ½ first layer that restores half, \\*\\*\\* effect beyond .01.")
    parts += [escape(step) for step in next_step(doc)]
    return "\n\n".join(parts) + "\n"
