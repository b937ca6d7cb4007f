"""The followed string through the layers: log-odds, rank, entropy and KL to the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from mlxroles.plots import canvas
from mlxroles.plots.lines import Series, curve, view
from mlxroles.report.lens.wording import SITES, differences_of, differs, followed, name
from mlxroles.text import show_token

Doc = Mapping[str, Any]
Numbers = NDArray[np.float64]

_OTHERS = (canvas.PURPLE, canvas.BROWN, canvas.OLIVE, canvas.SLATE, canvas.RED, canvas.CYAN)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_PANELS = (
    ("log_odds", "log-odds [nats]", [0.0]),
    ("rank", "rank, 1 is the top", []),
    ("kl", "KL to the model's answer [nats]", [0.0]),
    ("entropy", "entropy [nats]", []),
)


def curves(doc: Doc) -> Figure | None:
    """A panel per number, a curve per model, variant, run and lens; None without any."""
    shown = list(doc.get("curves") or [])
    if not shown:
        return None
    panels = list(_PANELS)
    if doc.get("contrast"):
        panels[0] = ("contrast", "ln of the odds [nats]", [0.0])
    figure = canvas.new_figure(9.0, 6.2)
    grid = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (key, label, levels) in zip(grid, panels, strict=True):
        _panel(axes, doc, shown, key, levels)
        axes.set_ylabel(label)
    for axes in grid[2:]:
        canvas.layer_axis(axes, doc["layers"])
    if len(shown) > 1:
        grid[0].legend(loc="best", fontsize=8 if len(shown) <= 4 else 6.5)
    headline = canvas.label(followed(doc), 30)
    if doc.get("contrast"):
        pair = [canvas.label(show_token(text, limit=20), 20) for text in doc["contrast"]]
        headline = f"{pair[0]} against {pair[1]}"
    canvas.dress(figure, doc, f"{headline} through the layers", about(doc))
    return figure


def changes(doc: Doc) -> Figure | None:
    """What an offer, an edit or the other model changes, with its interval; None without any."""
    found = differences_of(doc)
    if not found:
        return None
    figure = canvas.new_figure(7.0, 3.6)
    axes = figure.subplots()
    series = [
        Series(
            canvas.label(differs(entry), 40),
            _OTHERS[n],
            _MARKERS[n],
            np.array(entry["mean"], dtype=np.float64),
            low=np.array(entry["ci"][0], dtype=np.float64),
            high=np.array(entry["ci"][1], dtype=np.float64),
        )
        for n, entry in enumerate(found)
    ]
    limits = view(series, levels=[0.0])
    axes.set_ylim(*limits)
    axes.axhline(0.0, color="#888888", linewidth=0.8, zorder=1)
    for one in series:
        curve(axes, doc["layers"], one, limits)
    what = "ln of the odds" if doc.get("contrast") else "log-odds"
    axes.set_ylabel(f"change of the {what} [nats]")
    canvas.layer_axis(axes, doc["layers"])
    axes.legend(loc="best")
    second = f"{found[0]['n_prompts']} prompts, last position read, 95 % intervals"
    canvas.dress(figure, doc, "What a change makes, paired by prompt", second)
    return figure


def about(doc: Doc) -> str:
    """The second line of a title: what is read, of how many prompts."""
    count = max((int(entry["n_prompts"]) for entry in doc.get("curves") or []), default=0)
    prompts = doc.get("prompts") or [{}]
    which = f"{count} prompts" if count > 1 else f"prompt {canvas.label(prompts[0].get('id'), 30)}"
    return f"{SITES[doc['site']]}, {which}, last position read"


def _panel(axes: Axes, doc: Doc, shown: Sequence[Doc], key: str, levels: Sequence[float]) -> None:
    colors = _colors(shown)
    series = [
        Series(
            canvas.label(name(entry), 40),
            colors[n],
            _MARKERS[n % len(_MARKERS)],
            _column(key, entry[key]),
            low=_bound(key, entry, 0),
            high=_bound(key, entry, 1),
        )
        for n, entry in enumerate(shown)
    ]
    if key == "rank":
        axes.set_yscale("log")
        axes.invert_yaxis()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        limits = (0.0, np.inf)
    else:
        limits = view(series, levels=levels)
        axes.set_ylim(*limits)
    for level in levels:
        axes.axhline(level, color="#888888", linewidth=0.8, zorder=1)
    for one in series:
        curve(axes, doc["layers"], one, limits)


def _bound(key: str, entry: Doc, end: int) -> Numbers | None:
    """One end of the interval; None without one."""
    bounds = entry.get(f"{key}_ci")
    return None if bounds is None else _column(key, bounds[end])


def _column(key: str, values: Sequence[float | None]) -> Numbers:
    """Numbers per layer; ranks count from 1, as they are drawn on a log scale."""
    array = np.array(values, dtype=np.float64)
    return array + 1 if key == "rank" else array


def _colors(shown: Sequence[Doc]) -> list[str]:
    """A colour per curve: the models' own for the usual ones."""
    found, others = [], list(_OTHERS)
    for entry in shown:
        color = canvas.MODEL_COLORS.get(entry["model"])
        usual = entry["variant"] == "default" and entry["run"] == "clean" and color is not None
        usual = usual and entry["lens"] == shown[0]["lens"]
        found.append(color if color is not None and usual else others[0])
        if not usual:
            others = [*others[1:], others[0]]
    return found
