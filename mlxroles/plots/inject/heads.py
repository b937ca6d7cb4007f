"""Attention from the deciding query to the injected positions: without, with, difference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mlxroles.plots import canvas, maps
from mlxroles.report.inject.rows import ROLES
from mlxroles.report.inject.wording import spot, where

Doc = Mapping[str, Any]

_HIGH = 0.2


def looks(doc: Doc, model: str, arrays: Mapping[str, np.ndarray]) -> Figure | None:
    """Three maps of layer by head per prompt; circles mark heads beyond all random vectors."""
    found = doc["attention"][model]
    items = [item for item in found["items"] if f"{model}/{item['id']}/draws" in arrays]
    if not items:
        return None
    grids = []
    for item in items:
        clean = arrays[f"{model}/{item['id']}/clean"].astype(np.float64)
        draws = arrays[f"{model}/{item['id']}/draws"].astype(np.float64)
        grids.append((clean, draws[0], draws - clean))
    moved, _ = maps.centred([grid[2][0] for grid in grids])
    most = max(float(np.nanmax(np.stack(grid[:2]), initial=0.0)) for grid in grids)
    height = min(max(1.4 + _HIGH * len(grids[0][0]), 2.4), 9.0)
    figure = canvas.new_figure(10.6, height * len(items) + 1.1)
    panels = figure.subplots(len(items), 3, squeeze=False)
    layers = range(len(grids[0][0]))
    for line, item, (clean, injected, change) in zip(panels, items, grids, strict=True):
        level = Normalize(0, most or 1.0)
        for axes, grid in zip(line[:2], (clean, injected), strict=True):
            axes.grid(visible=False)
            seen = axes.imshow(
                np.ma.masked_invalid(grid), cmap="Blues", norm=level, aspect="auto", origin="lower"
            )
            maps.number(axes, list(layers), grid.shape[1])
        shift = maps.cells(line[2], change[0], list(layers), moved)
        _mark(line[2], change)
        for axes, what in zip(line, ("without", "with", "difference"), strict=True):
            axes.set_title(what)
        line[0].set_ylabel(f"{ROLES.get(item['role'], item['role'])}\nlayer")
        figure.colorbar(seen, ax=list(line[:2]), shrink=0.85, pad=0.01)
        figure.colorbar(shift, ax=line[2], shrink=0.85, pad=0.02)
    name = f"{canvas.label(found['vector'], 24)} {spot(found)}, {canvas.label(where(doc), 50)}"
    canvas.dress(figure, doc, f"Attention to the injected positions, {model}", name)
    return figure


def _mark(axes: Any, change: np.ndarray) -> None:
    """Circles on the heads that the vector moves farther than every random vector does."""
    if len(change) < 2:
        return
    rest = change[1:]
    beyond = (change[0] > rest.max(axis=0)) | (change[0] < rest.min(axis=0))
    size = np.abs(change[0])
    shown = beyond & (size >= 0.01)
    rows, columns = np.nonzero(shown)
    axes.scatter(columns, rows, s=22, facecolors="none", edgecolors=canvas.INK, linewidths=0.9)
