"""Reports of an injection document: the finding in words, tables of numbers, the page."""

from mlxroles.report.inject.page import html
from mlxroles.report.inject.wording import rank, sentence, where

__all__ = ["html", "rank", "sentence", "where"]
