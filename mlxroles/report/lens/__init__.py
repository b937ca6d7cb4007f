"""The report of a lens run: token grids, numbers as rows, the finding in words, the page."""

from mlxroles.report.lens.grids import TokenGrid, chosen_grids
from mlxroles.report.lens.page import html
from mlxroles.report.lens.wording import gain_sentence, sentence

__all__ = ["TokenGrid", "chosen_grids", "gain_sentence", "html", "sentence"]
