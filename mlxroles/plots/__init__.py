"""Figures of result documents, as PNG and SVG files.

Matplotlib is imported when the first figure is drawn, never before, and its global state
(``pyplot``) is not used: figures can be drawn in any thread and next to a user's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxroles import documents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlxroles.roles.correlate import Profile
    from mlxroles.roles.table import Entropies


def patch_figures(doc: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes the figures of a patch document into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Returns:
        The path per figure: ``effects`` and ``recovery`` of layers, or the map of ``heads`` or
        ``positions``, and ``top_tokens`` as PNG; the same with ``_svg`` appended.
    """
    from mlxroles.plots.canvas import style
    from mlxroles.plots.curves import effects, recovery
    from mlxroles.plots.grids import parts
    from mlxroles.plots.tokens import top_tokens

    folder.mkdir(parents=True, exist_ok=True)
    has_parts = documents.part_axis(doc) is not None
    paths: dict[str, str] = {}
    with style():
        drawn = {
            "heads": parts(doc, "by_head"),
            "positions": parts(doc, "by_position"),
            # over heads or positions the map shows it, part by part
            "effects": None if has_parts else effects(doc),
            "recovery": None if has_parts else recovery(doc),
            "top_tokens": top_tokens(doc),
        }
        for name, figure in drawn.items():
            if figure is None:
                continue
            paths |= _saved(figure, folder, name)
    return paths


def role_figures(
    doc: Mapping[str, Any], tables: Mapping[str, "Entropies"], folder: Path
) -> dict[str, str]:
    """Writes the figures of an entropy document into the folder; same document, same bytes.

    Figures without a single number are left out, and so are those that need what is not there: a
    contrast of categories, a second model, a model's table.

    Args:
        doc: as :func:`mlxroles.roles.document.build` makes it, also when read back from JSON.
        tables: by model; single heads and prompts are drawn from them.
        folder: made where it does not exist.

    Returns:
        The path per figure as PNG, and the same with ``_svg`` appended. Per model: ``entropy_``,
        ``heads_``, ``first_keys_``, ``violins_``, ``contrasts_``, ``top_heads_``, ``first_last_``,
        ``confounder_`` and ``roles_MODEL``; then ``comparison``, ``differences``, ``candidates``.
    """
    from mlxroles.plots.canvas import style
    from mlxroles.plots.roles import drawn

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    with style():
        for name, figure in drawn(doc, tables):
            paths |= _saved(figure, folder, name)
    return paths


def family_figures(
    correlations: Mapping[str, Any], named: Mapping[str, "Profile"], folder: Path
) -> dict[str, str]:
    """Writes the figures that hold several families against each other; same input, same bytes.

    Args:
        correlations: as :func:`mlxroles.roles.correlate.correlate` makes it.
        named: the profiles that went into it, by family.
        folder: made where it does not exist.

    Returns:
        The path per figure, ``families`` and ``family_pairs``, and with ``_svg`` appended.
    """
    from mlxroles.plots.canvas import style
    from mlxroles.plots.roles.families import families, family_pairs

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    with style():
        for name, draw in (("families", families), ("family_pairs", family_pairs)):
            figure = draw(correlations, named)
            if figure is not None:
                paths |= _saved(figure, folder, name)
    return paths


def _saved(figure: "Figure", folder: Path, name: str) -> dict[str, str]:
    from mlxroles.plots.canvas import save

    png, vector = folder / f"{name}.png", folder / f"{name}.svg"
    save(figure, png, vector)
    return {name: str(png), f"{name}_svg": str(vector)}
