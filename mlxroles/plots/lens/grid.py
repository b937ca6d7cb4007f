"""The token grid: layers by positions, the likeliest token written on its probability."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.report.lens.grids import TokenGrid
from mlxroles.report.lens.wording import SITES
from mlxroles.text import show_token

_MAP = "cividis"
_MOST_COLUMNS, _MOST_ROWS = 18, 48
_INK_CHANGES = 0.55
_COLUMN_INCHES, _ROW_INCHES = 0.72, 0.23
_LEAST_INCHES = 1.8
_TOKEN_LIMIT = 9


def token_map(doc: Mapping[str, Any], grid: TokenGrid) -> Figure:
    """The last positions of one reading; of many layers every second, third, ... up to the last."""
    columns = list(range(len(grid.positions)))[-_MOST_COLUMNS:]
    step = -(-len(grid.layers) // _MOST_ROWS)
    rows = list(range(len(grid.layers) - 1, -1, -step))[::-1]
    width = max(_COLUMN_INCHES * len(columns) + 1.9, 7.0)
    figure = canvas.new_figure(width, max(_ROW_INCHES * len(rows), _LEAST_INCHES) + 1.9)
    axes = figure.subplots()
    probs = grid.probs[np.ix_(rows, columns)][..., 0]
    image = axes.imshow(
        probs, cmap=_MAP, vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="nearest"
    )
    axes.grid(visible=False)
    colors = mpl.colormaps[_MAP]
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            share = float(probs[y, x])
            is_end = grid.end_rank[row, column] == 0
            axes.text(
                x,
                y,
                canvas.label(show_token(grid.top[row][column][0]), _TOKEN_LIMIT),
                ha="center",
                va="center",
                fontsize=6.2,
                fontweight="bold" if is_end else "normal",
                color="black" if canvas.brightness(colors(share)) > _INK_CHANGES else "white",
            )
    axes.set_xticks(range(len(columns)), [_named(grid, n) for n in columns], fontsize=6.5)
    for text in axes.get_xticklabels():
        text.set(rotation=60, horizontalalignment="right", rotation_mode="anchor")
    every = 1 if len(rows) <= 24 else 2
    axes.set_yticks(range(0, len(rows), every), [str(grid.layers[r]) for r in rows[::every]])
    axes.tick_params(length=0)
    axes.set_ylabel("layer")
    axes.set_xlabel("position and its token")
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("probability of the token", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    prompt = canvas.label(grid.prompt, 30)
    second = f"{canvas.label(grid.name, 60)}, prompt {prompt}. Bold: what it says in the end"
    canvas.dress(figure, doc, f"The lens on {SITES[doc['site']]}", second)
    return figure


def _named(grid: TokenGrid, column: int) -> str:
    return f"{canvas.label(show_token(grid.tokens[column]), 10)} {grid.positions[column]}"
