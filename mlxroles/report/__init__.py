"""Reports of a patch document: one sentence, a short Markdown summary, a self-contained page."""

from mlxroles.report.page import html
from mlxroles.report.summary import markdown
from mlxroles.report.wording import sentence

__all__ = ["html", "markdown", "sentence"]
