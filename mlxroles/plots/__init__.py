"""Figures of a patch document, as PNG and SVG files.

Matplotlib is imported when the first figure is drawn, never before, and its global state
(``pyplot``) is not used: figures can be drawn in any thread and next to a user's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxroles import documents


def patch_figures(doc: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figures of a patch document into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Returns:
        The path per figure: ``effects``, ``recovery``, ``top_tokens``, ``heads``, ``positions``
        as PNG, and the same with ``_svg`` appended.
    """
    from mlxroles.plots.canvas import save, style
    from mlxroles.plots.curves import effects, recovery
    from mlxroles.plots.grids import parts
    from mlxroles.plots.tokens import top_tokens

    folder.mkdir(parents=True, exist_ok=True)
    has_parts = any(
        True
        for direction in documents.directions(doc)
        for axis in ("by_head", "by_position")
        for _ in documents.parts(doc, direction, axis)
    )
    paths: dict[str, str] = {}
    with style():
        drawn = {
            "effects": effects(doc),
            # over heads or positions the heat map shows it, part by part
            "recovery": None if has_parts else recovery(doc),
            "top_tokens": top_tokens(doc),
            "heads": parts(doc, "by_head"),
            "positions": parts(doc, "by_position"),
        }
        for name, figure in drawn.items():
            if figure is None:
                continue
            png, vector = folder / f"{name}.png", folder / f"{name}.svg"
            save(figure, png, vector)
            paths[name] = str(png)
            paths[f"{name}_svg"] = str(vector)
    return paths
