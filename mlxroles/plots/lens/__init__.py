"""Figures of a lens document, as PNG and SVG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxroles.report.lens.grids import TokenGrid

MOST_GRIDS = 6


def lens_figures(
    doc: Mapping[str, Any], grids: Sequence["TokenGrid"], folder: Path
) -> dict[str, str]:
    """Writes the figures of a reading into the folder; the same document, the same bytes.

    Args:
        doc: As ``studies.lens.document`` makes it, also when read back from JSON.
        grids: Token grids; of many, some are drawn.
        folder: Made where it does not exist.

    Returns:
        The path per figure, ``curves``, ``changes``, ``grid_1``, ``grid_2``, ... and ``parts`` as
        PNG, and the same with ``_svg`` appended.
    """
    from mlxroles.plots import canvas, direct
    from mlxroles.plots.lens.curves import changes, curves
    from mlxroles.plots.lens.grid import token_map
    from mlxroles.report.lens.grids import chosen_grids
    from mlxroles.report.lens.rows import parts_by_name

    with canvas.style():
        drawn = {"curves": curves(doc), "changes": changes(doc)}
        for n, one in enumerate(chosen_grids(grids, MOST_GRIDS), 1):
            drawn[f"grid_{n}"] = token_map(doc, one)
        docs = parts_by_name(doc)
        drawn["parts"] = direct.parts(doc, docs) if docs else None
        return canvas.saved(drawn, folder)


def gain_figures(doc: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figure of a fitted lens, ``gain``, as :func:`lens_figures` does."""
    from mlxroles.plots import canvas
    from mlxroles.plots.lens.gain import gain

    with canvas.style():
        return canvas.saved({"gain": gain(doc)}, folder)
