"""Figures of an attribution document, as PNG and SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Maps = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Direction -> site -> means over prompts [tested layer, position]."""


def attribution_figures(doc: Mapping[str, Any], maps: Maps, folder: Path) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Args:
        doc: As ``studies.attribution.document`` makes it, also when read back from JSON.
        maps: Estimates by position; empty where prompts differ in length.
        folder: Made where it does not exist.

    Returns:
        The path per figure: ``layers``, ``heads``, ``attention``, and per direction
        ``positions_``, ``edges_`` and ``verify_DIRECTION`` as PNG, and the same with ``_svg``
        appended.
    """
    from mlxroles.plots import canvas
    from mlxroles.plots.attribution import maps as panels
    from mlxroles.plots.attribution.edges import flow
    from mlxroles.plots.attribution.verify import scatter
    from mlxroles.report.attribution.rows import directions

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    with canvas.style():
        drawn = {
            "layers": panels.layers(doc),
            "heads": panels.heads(doc, ("z",)),
            "attention": panels.heads(doc, ("q", "k", "v", "pattern")),
        }
        for direction in directions(doc):
            grids = maps.get(direction) or {}
            drawn[f"positions_{direction}"] = panels.positions(doc, direction, grids)
            drawn[f"edges_{direction}"] = flow(doc, direction)
            drawn[f"verify_{direction}"] = scatter(doc, direction)
        for name, figure in drawn.items():
            if figure is not None:
                png, vector = folder / f"{name}.png", folder / f"{name}.svg"
                canvas.save(figure, png, vector)
                paths |= {name: str(png), f"{name}_svg": str(vector)}
    return paths
