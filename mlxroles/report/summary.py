"""The short Markdown summary of a patch run."""

from collections.abc import Mapping
from typing import Any

from mlxroles import documents
from mlxroles.report import rows
from mlxroles.report.markup import bullets, escape, table
from mlxroles.report.wording import caution, sentence

__all__ = ["escape", "markdown"]


def markdown(doc: Mapping[str, Any]) -> str:
    """The finding, the baselines and one table per direction; all text escaped."""
    facts = rows.facts(doc)
    parts = [f"# Patching {escape(dict(facts).get('pair', ''))}", escape(sentence(doc))]
    parts += [escape(caution(doc))] if caution(doc) else []
    parts.append(bullets(facts))
    grids = [rows.baselines(doc)]
    grids += [rows.layer_grid(doc, direction) for direction in documents.directions(doc)]
    for grid in grids:
        parts += table(grid)
    parts.append("◆ largest effect, ½ first layer that restores half, \\*\\*\\* effect beyond .01.")
    return "\n\n".join(parts) + "\n"
