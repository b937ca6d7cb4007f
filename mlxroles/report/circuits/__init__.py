"""The report of a study of circuits: tables as rows of text, the page."""

from mlxroles.report.circuits.page import html

__all__ = ["html"]
