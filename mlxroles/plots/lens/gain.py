"""What a tuned lens gains: KL to the model's answer on held-out text, plain and tuned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.plots.lines import Series, curve, view

Doc = Mapping[str, Any]


def gain(doc: Doc) -> Figure | None:
    """Left the KL of both lenses, right the difference with its interval; None without a row."""
    if not doc["rows"]:
        return None
    figure = canvas.new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    levels, gains = [], []
    layers = sorted({row["layer"] for row in doc["rows"]})
    for model in doc["models"]:
        rows = {row["layer"]: row for row in doc["rows"] if row["model"] == model}
        if not rows:
            continue
        color = canvas.MODEL_COLORS.get(model, canvas.PURPLE)

        def column(name: str, at: int | None = None, found: Doc = rows) -> np.ndarray:
            values = [found[i][name] if i in found else None for i in layers]
            values = [None if v is None else v if at is None else v[at] for v in values]
            return np.array(values, dtype=np.float64)

        for lens, marker in (("plain", "o"), ("tuned", "s")):
            shade = color if lens == "tuned" else canvas.GREY
            shade = shade if lens == "tuned" or model == doc["models"][0] else canvas.SLATE
            levels.append(Series(f"{model}, {lens}", shade, marker, column(f"kl_{lens}")))
        bounds = (column("gain_ci", 0), column("gain_ci", 1))
        gains.append(Series(model, color, "o", column("gain"), *bounds))
        constant = float(np.nanmean(column("kl_constant")))
        left.axhline(constant, color=color, linewidth=0.9, linestyle=":", zorder=1)
    for axes, series, label in (
        (left, levels, "KL to the model's answer [nats]"),
        (right, gains, "gain of the tuned lens [nats]"),
    ):
        limits = view(series, levels=[0.0])
        axes.set_ylim(*limits)
        axes.axhline(0.0, color="#888888", linewidth=0.8, zorder=1)
        for one in series:
            curve(axes, layers, one, limits)
        axes.set_ylabel(label)
        canvas.layer_axis(axes, layers)
        axes.legend(loc="best")
    held = doc.get("held_out_texts")
    second = f"{held} held-out texts, 95 % intervals. Dotted: one answer for every position"
    canvas.dress(figure, doc, "Tuned against plain lens", second)
    return figure
