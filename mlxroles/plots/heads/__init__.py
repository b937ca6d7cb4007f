"""Figures of a study of heads, as PNG and SVG files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Doc = Mapping[str, Any]
Patterns = Mapping[str, Mapping[str, "NDArray[Any]"]]
"""Model -> head name -> weights [query, key]."""


def head_figures(doc: Doc, patterns: Patterns, folder: Path) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Args:
        doc: As ``studies.heads`` makes it, also when read back from JSON.
        patterns: Of the document's examples.
        folder: Made where it does not exist.

    Returns:
        The path per figure: ``overview``; one per score by its name, ``previous``, ``induction``,
        ...; ``profile``; ``patterns_MODEL``; ``causal``. As PNG, and the same with ``_svg``
        appended.
    """
    from mlxroles.plots import canvas

    paths: dict[str, str] = {}
    with canvas.style():
        for name, figure in _drawn(doc, patterns):
            paths |= canvas.saved({name: figure}, folder)
    return paths


def _drawn(doc: Doc, patterns: Patterns) -> Iterator[tuple[str, "Figure | None"]]:
    from mlxroles.plots.heads.causal import causal
    from mlxroles.plots.heads.overview import overview
    from mlxroles.plots.heads.patterns import patterns as looks
    from mlxroles.plots.heads.profile import profile
    from mlxroles.plots.heads.scores import figure_of
    from mlxroles.report.heads.scores import names, parsed, sides
    from mlxroles.text import slug

    doc = parsed(doc)
    yield "overview", overview(doc)
    for name in names(doc):
        yield slug(name), figure_of(doc, name)
    yield "profile", profile(doc)
    for side in sides(doc):
        yield f"patterns_{slug(side)}", looks(doc, side, patterns.get(side) or {})
    yield "causal", causal(doc)
