"""Which layers read which, and the pairs of heads that do so most, beside chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.plots.maps import number

Doc = Mapping[str, Any]

KINDS = {"q": "queries", "k": "keys", "v": "values"}
_LISTED = 12
_NUMBERED = 12


def composition(doc: Doc, model: str) -> Figure | None:
    """A row per kind: layer by layer, and the strongest pairs; None for a single layer."""
    found = doc["models"][model]["composition"]
    if not found:
        return None
    figure = canvas.new_figure(9.2, 2.75 * len(found) + 0.9)
    panels = figure.subplots(len(found), 2, squeeze=False, gridspec_kw={"width_ratios": [1.0, 1.5]})
    highest = max(kind["top"][0]["score"] for kind in found.values())
    lowest = min(kind["null_mean"] for kind in found.values())
    norm = Normalize(lowest, highest)
    for (kind, of), (left, right) in zip(found.items(), panels, strict=True):
        image = _layers(left, of, doc["n_layers"], norm)
        left.set_title(f"{KINDS[kind]} of a later layer")
        figure.colorbar(image, ax=left, shrink=0.9, pad=0.02)
        _listed(right, of, highest)
        right.set_title(f"{of['clear']} of {of['pairs']} pairs beyond chance", fontweight="normal")
    panels[-1][0].set_xlabel("layer that writes")
    panels[-1][1].set_xlabel("|W1 W2| / (|W1| |W2|)")
    about = "largest score of any two heads per pair of layers; right: the strongest pairs"
    name = f"Composition, {model}" if len(doc["models"]) > 1 else "Composition"
    canvas.dress(figure, doc, name, about)
    return figure


def _layers(axes: Axes, of: Doc, n_layers: int, norm: Normalize) -> Any:
    grid = np.full((n_layers, n_layers), np.nan)
    for one in of["by_layer"]:
        grid[one["to"], one["from"]] = one["score"]
    axes.grid(visible=False)
    axes.set_facecolor("#f4f4f4")
    image = axes.imshow(
        np.ma.masked_invalid(grid), cmap="viridis", norm=norm, origin="lower", aspect="auto"
    )
    number(axes, list(range(n_layers)), n_layers)
    axes.set_xlabel("")
    axes.set_ylabel("layer that reads")
    return image


def _listed(axes: Axes, of: Doc, highest: float) -> None:
    rows = of["top"][:_LISTED]
    at = np.arange(len(rows))[::-1]
    colors = [canvas.BLUE if row["clear"] else canvas.GREY for row in rows]
    axes.barh(at, [row["score"] for row in rows], color=colors, height=0.72)
    axes.set_yticks(at, [f"{row['from']} → {row['to']}" for row in rows], fontsize=7)
    spread = of["null_spread"]
    middle = (of["null_mean"] - 2 * spread, of["null_mean"] + 2 * spread)
    axes.axvspan(*middle, color="#555555", alpha=0.22, linewidth=0, zorder=3)
    axes.axvline(of["bound"], color=canvas.INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    axes.set_xlim(0, 1.06 * max(highest, of["bound"]))
    axes.grid(visible=False, axis="y")
