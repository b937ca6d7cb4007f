"""The report of a study of heads: scores as arrays and rows, kinds in words, the page."""

from mlxroles.report.heads.page import html

__all__ = ["html"]
