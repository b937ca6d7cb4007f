"""Figures of an injection document, as PNG and SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def inject_figures(
    doc: Mapping[str, Any], maps: Mapping[str, np.ndarray], folder: Path
) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Args:
        doc: As ``studies.inject.document`` makes it, also when read back from JSON.
        maps: Attention by ``MODEL/PROMPT/clean`` [layer, head] and ``.../draws``
            [draw, layer, head].
        folder: Made where it does not exist.

    Returns:
        The path per figure: ``map``, ``dose``, ``questions`` or ``prompts`` or ``picks``,
        ``draws``, and ``attention_MODEL`` as PNG, and the same with ``_svg`` appended.
    """
    from mlxroles.plots import canvas
    from mlxroles.plots.inject import heads, shifts, strengths

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    with canvas.style():
        drawn = {
            "map": strengths.grids(doc),
            "dose": strengths.dose(doc),
            "questions": shifts.questions(doc),
            "prompts": shifts.prompts(doc),
            "picks": shifts.picks(doc),
            "draws": shifts.draws(doc),
        }
        for model in doc.get("attention") or {}:
            drawn[f"attention_{model}"] = heads.looks(doc, model, maps)
        for name, figure in drawn.items():
            if figure is not None:
                png, vector = folder / f"{name}.png", folder / f"{name}.svg"
                canvas.save(figure, png, vector)
                paths |= {name: str(png), f"{name}_svg": str(vector)}
    return paths
