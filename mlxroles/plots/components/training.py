"""The course of a training of components, and how well they stand for the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mlxroles.plots import canvas

NAMES = {
    "unmasked": "all components",
    "masked": "by causal importance",
    "largest": "same importances,\nlargest outputs",
    "shuffled": "same importances,\nrandom components",
    "stochastic": "stochastic masks",
    "none": "no components",
}
_COLORS = (canvas.BLUE, canvas.ORANGE, canvas.PURPLE, canvas.SLATE, canvas.GREY)


def training_figures(doc: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draws and saves the figures of a training; the paths by name."""
    with canvas.style():
        drawn = {"training": _course(doc), "learned": _learned(doc)}
        return canvas.saved(drawn, folder)


def _course(doc: Mapping[str, Any]) -> Figure:
    """Left the terms of the loss by step, right the number of important components."""
    log = doc["log"]
    steps = [row["step"] for row in log]
    figure = canvas.new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    names = [n for n in log[0] if n not in ("step", "loss", "active", "minimality")]
    shown = [n for n in names if any(row[n] is not None for row in log)]
    for color, name in zip(_COLORS, shown, strict=False):
        left.plot(steps, _column(log, name), color=color, label=name, linewidth=1.4)
    left.set_yscale("log")
    _plain(left.yaxis)
    left.set_ylabel("term of the loss, before its coefficient")
    left.legend(loc="best")
    right.plot(steps, _column(log, "active"), color=canvas.BLUE, linewidth=1.4)
    right.set_ylabel("components important at a position")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        _warm(axes, doc)
        axes.set_xlabel("step")
    canvas.dress(figure, doc, "Training of components", f"{_about(doc)} (dotted)")
    return figure


def _plain(axis: Axis) -> None:
    """Powers of ten in plain numbers: what is not parsed as mathematics would show its source."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _warm(axes: Axes, doc: Mapping[str, Any]) -> None:
    """Marks where the warm-up ends."""
    axes.axvline(doc["recipe"]["warmup"], color="#888888", linewidth=0.8, linestyle=":")


def _column(log: list[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in log], dtype=np.float64)


def _learned(doc: Mapping[str, Any]) -> Figure | None:
    """Left the distance to the model by what is left of its maps, right L0 map by map."""
    learned = doc.get("learned")
    if not learned:
        return None
    figure = canvas.new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    places = np.arange(len(NAMES))[::-1]
    for place, name in zip(places, NAMES, strict=True):
        own = learned["measures"][name]
        color = canvas.BLUE if name == "masked" else canvas.GREY
        left.plot([own["low"], own["high"]], [place, place], color=color, linewidth=2)
        left.plot(own["mean"], place, "o", color=color)
    left.set_xscale("log")
    _plain(left.xaxis)
    left.set_yticks(places, list(NAMES.values()))
    left.set_ylim(-0.6, len(NAMES) - 0.4)
    left.set_xlabel("KL to the model's next token [nats]")
    _maps(right, learned["maps"])
    held = f"{learned['batches']} held-out batches, 95 % intervals"
    canvas.dress(figure, doc, "What the components keep", f"{_about(doc)}; {held}")
    return figure


def _maps(axes: Axes, maps: Mapping[str, Any]) -> None:
    """Important components at a position, map by map, as a share of all."""
    x = np.arange(len(maps))
    own = list(maps.values())
    share = np.array([m["active"]["mean"] / m["components"] for m in own])
    alive = np.array([m["alive"] / m["components"] for m in own])
    axes.bar(x, alive, color="#d9dee5", label="alive: mean importance above .01")
    axes.bar(x, share, color=canvas.BLUE, label="important at a position")
    axes.set_ylabel("share of the map's components")
    axes.set_ylim(0, 1.25)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    every = max(1, -(-len(maps) // 24))
    names = [canvas.label(key, 24) for key in maps]
    axes.set_xticks(x[::every], names[::every], rotation=90, fontsize=7)
    axes.legend(loc="upper center", ncols=2)


def _about(doc: Mapping[str, Any]) -> str:
    return f"{doc['recipe']['steps']} steps after {doc['recipe']['warmup']} of warm-up"
