"""Figures of a document of circuits, as PNG and SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def circuit_figures(
    doc: Mapping[str, Any], eigenvalues: "Mapping[str, Mapping[int, np.ndarray]]", folder: Path
) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Args:
        doc: As ``studies.circuits.document`` makes it, also when read back from JSON.
        eigenvalues: Model -> layer -> those of its OV circuits [head, eigenvalue].
        folder: Made where it does not exist.

    Returns:
        The path per figure, ``copying``, ``difference`` of a pair, and ``composition_MODEL``,
        ``eigenvalues_MODEL`` and ``curves_MODEL`` of every model, as PNG, and the same with
        ``_svg`` appended.
    """
    from mlxroles.plots import canvas
    from mlxroles.plots.circuits.composition import composition
    from mlxroles.plots.circuits.copying import copying, difference
    from mlxroles.plots.circuits.heads import curves, spectra

    with canvas.style():
        drawn = {"copying": copying(doc), "difference": difference(doc)}
        for model in doc["models"]:
            drawn[f"composition_{model}"] = composition(doc, model)
            drawn[f"eigenvalues_{model}"] = spectra(doc, model, eigenvalues.get(model, {}))
            drawn[f"curves_{model}"] = curves(doc, model)
        return canvas.saved(drawn, folder)
