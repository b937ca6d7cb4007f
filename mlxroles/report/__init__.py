"""Reports of a document: one sentence, a short Markdown summary, a self-contained page.

What kind of report is written follows from the document's schema.
"""

from collections.abc import Mapping
from typing import Any

from mlxroles.report import page, roles, summary, wording

__all__ = ["brief", "html", "markdown", "sentence"]

_ENTROPY = "mlxroles/entropy/"


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    return roles.html(doc, figures) if _is_entropy(doc) else page.html(doc, figures)


def markdown(doc: Mapping[str, Any]) -> str:
    """The finding and the tables; all text escaped."""
    return roles.markdown(doc) if _is_entropy(doc) else summary.markdown(doc)


def sentence(doc: Mapping[str, Any]) -> str:
    """What the run found, in one to a few sentences."""
    return roles.sentence(doc) if _is_entropy(doc) else wording.sentence(doc)


def brief(doc: Mapping[str, Any]) -> str:
    """What a patch run found, in half a line; empty for other runs and without a number."""
    return "" if _is_entropy(doc) else wording.brief(doc)


def _is_entropy(doc: Mapping[str, Any]) -> bool:
    return str(doc.get("schema")).startswith(_ENTROPY)
