"""Reports of an attribution document: estimates, what was run exactly, how far both agree."""

from mlxroles.report.attribution.page import html, markdown
from mlxroles.report.attribution.wording import sentence

__all__ = ["html", "markdown", "sentence"]
