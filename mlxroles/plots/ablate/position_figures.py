"""Figures of a test at single positions, as PNG and SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def position_figures(doc: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Args:
        doc: As ``studies.ablate.at_positions`` makes it, also when read back from JSON.
        folder: Made where it does not exist.

    Returns:
        The path per figure as PNG, and the same with ``_svg`` appended: ``redundancy``,
        ``offsets``, ``patterns`` and ``shifts``, or ``conditions``.
    """
    from mlxroles.plots import canvas
    from mlxroles.plots.ablate.positions import drawn

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    with canvas.style():
        for name, figure in drawn(doc):
            if figure is not None:
                png, vector = folder / f"{name}.png", folder / f"{name}.svg"
                canvas.save(figure, png, vector)
                paths |= {name: str(png), f"{name}_svg": str(vector)}
    return paths
