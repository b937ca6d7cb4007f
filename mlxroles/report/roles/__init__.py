"""Reports of an entropy document: what role metrics show and what they do not."""

from mlxroles.report.roles.box import sentence
from mlxroles.report.roles.page import html
from mlxroles.report.roles.summary import markdown

__all__ = ["html", "markdown", "sentence"]
