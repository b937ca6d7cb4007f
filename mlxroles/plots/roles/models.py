"""Figures of two models: RFC over RSI side by side, and instruct - base."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mlxroles.plots import canvas, lines
from mlxroles.plots.lines import Series
from mlxroles.plots.roles.frame import frame, legend
from mlxroles.plots.roles.layers import NULL, intervals, mark_legend, marks
from mlxroles.plots.roles.looks import RFC, RSI, model_look
from mlxroles.plots.roles.subject import Doc, about, estimate, level
from mlxroles.roles.metrics import DEFAULT_FORM, METRICS
from mlxroles.roles.scales import SCALES

_WIDTH, _ROW, _REST = 10.0, 2.9, 1.7
_TITLES = {"raw": "raw", "normalised": "length-normalised"}
Rows = Mapping[str, Mapping[str, Sequence[Series]]]


def comparison(doc: Doc) -> Figure | None:
    """RFC over RSI of every model, in nats and length-normalised, with the level of the null."""
    if len(doc["models"]) < 2:
        return None
    rows = {
        metric: {
            scale: [
                Series(
                    model,
                    *model_look(model),
                    *estimate(found[metric][DEFAULT_FORM]),
                    marks=marks(found.get(f"{metric}_test")),
                )
                for model, found in doc[scale]["models"].items()
                if found.get(metric)
            ]
            for scale in SCALES
        }
        for metric in METRICS
    }
    levels = {
        (metric, scale): level(doc["null"][scale].get(metric))
        for metric in rows
        for scale in SCALES
    }
    drawn = _all(rows)
    extra = [Line2D([], [], **_DASHED, label=NULL), *mark_legend(drawn)]
    names = " and ".join(metric.upper() for metric, row in rows.items() if any(row.values()))
    return _grid(doc, names, rows, levels=levels, note=intervals(drawn), extra=extra)


def differences(doc: Doc) -> Figure | None:
    """Instruct - base of RFC and RSI, with what the permutation tests say of each layer."""
    if any(doc[scale].get("difference") is None for scale in SCALES):
        return None
    rows = {
        metric: {
            scale: [
                Series(
                    f"{metric.upper()}, instruct − base",
                    *look,
                    *estimate(found[metric][DEFAULT_FORM]),
                    marks=marks(found.get(f"{metric}_test")),
                )
            ]
            for scale in SCALES
            if (found := doc[scale]["difference"]).get(metric)
        }
        for metric, look in (("rfc", RFC), ("rsi", RSI))
    }
    drawn = _all(rows)
    note = f"{intervals(drawn)} Below 0: larger in base. Uniform attention gives 0."
    names = " and ".join(metric.upper() for metric, row in rows.items() if row)
    return _grid(doc, f"{names}, instruct − base", rows, note=note, extra=mark_legend(drawn))


_DASHED: dict[str, Any] = {"color": canvas.INK, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def _grid(
    doc: Doc,
    what: str,
    rows: Rows,
    *,
    note: str,
    extra: Sequence[Line2D],
    levels: Mapping[tuple[str, str], float | None] | None = None,
) -> Figure | None:
    """Metrics over each other, scales side by side; a metric without a number is left out."""
    kept = {metric: row for metric, row in rows.items() if any(map(_any, row.values()))}
    if not kept:
        return None
    size = (_WIDTH, _REST + _ROW * len(kept))
    layout = {"nrows": len(kept), "ncols": len(SCALES), "sharex": True, "sharey": "row"}
    made = frame(doc, (what, about(doc, "base and instruct")), size, note=note, **layout)
    layers = [int(layer) for layer in doc["layers"]]
    for row, (metric, scales) in zip(made.panels, kept.items(), strict=True):
        expected = {scale: (levels or {}).get((metric, scale)) for scale in scales}
        limits = lines.view(
            [each for found in scales.values() for each in found],
            levels=[0.0, *expected.values()],
        )
        for axes, (scale, found) in zip(row, scales.items(), strict=True):
            canvas.layer_axis(axes, layers)
            axes.axhline(0.0, color="#999999", linewidth=0.8, zorder=1)
            if (at := expected[scale]) is not None:
                axes.axhline(at, zorder=2, **_DASHED)
            for each in found:
                lines.curve(axes, layers, each, limits)
            if row is made.panels[0]:
                axes.set_title(_TITLES[scale])
        row[0].set_ylim(limits)
        row[0].set_ylabel(metric.upper())
    for axes in (axes for row in made.panels for axes in row):
        axes.label_outer()
    legend(made, extra)
    return made.figure


def _all(rows: Rows) -> list[Series]:
    return [each for row in rows.values() for found in row.values() for each in found]


def _any(found: Sequence[Series]) -> bool:
    return any(bool(np.isfinite(each.values).any()) for each in found)
