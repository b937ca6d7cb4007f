"""Figures of components, as PNG and SVG files: those of all layers, and those of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxroles.report.components.views import LayerView, MapView

QK = ("heatmaps", "heads", "diffs", "lines", "lines_by_head", "single", "scatter")
"""Kinds of figures of contributions to scores, as ``qk_KIND``."""


def overview_figures(
    doc: Mapping[str, Any], maps: Sequence["MapView"], folder: Path
) -> dict[str, str]:
    """Writes the figures of all layers into the folder; the same input, the same bytes.

    Returns:
        The path per figure, ``importance`` and ``spread``, as PNG, and with ``_svg`` appended.
    """
    from mlxroles.plots.canvas import saved, style
    from mlxroles.plots.components.overview import importance, spreads

    with style():
        return saved({"spread": spreads(doc, maps), "importance": importance(doc, maps)}, folder)


def layer_figures(doc: Mapping[str, Any], view: "LayerView", folder: Path) -> dict[str, str]:
    """Writes the figures of one layer into the folder; what needs what is not there is left out.

    Returns:
        The path per figure, ``heads``, ``weights``, ``likeness``, ``together`` and ``qk_KIND``
        of :data:`QK`, as PNG, and the same with ``_svg`` appended.
    """
    from mlxroles.plots.canvas import saved, style
    from mlxroles.plots.components import grids, offsets
    from mlxroles.plots.components.heads import heads

    with style():
        found = {
            "heads": heads(doc, view),
            "weights": grids.matrices(doc, view),
            "likeness": grids.likeness(doc, view),
            "together": grids.together(doc, view),
        }
        if view.qk is not None:
            named = (getattr(offsets, kind)(doc, view.layer, view.qk) for kind in QK)
            found |= {f"qk_{kind}": figure for kind, figure in zip(QK, named, strict=True)}
        return saved(found, folder)
