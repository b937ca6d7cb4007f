"""Figures of tests at single positions: redundancy, offsets, patterns, compare.

Points have 95 % intervals; grey is what random sets of heads of the same layers give.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles.plots import canvas
from mlxroles.report.ablate.position_rows import heads, number, taken

Doc = Mapping[str, Any]

_HEADS = 4
"""Heads of each model whose patterns are drawn."""
_PANELS = 8
"""Layers that are drawn, those with the largest numbers."""


def drawn(doc: Doc) -> Iterator[tuple[str, Figure | None]]:
    """The figures of a document by name."""
    if doc["test"] == "redundancy":
        yield "redundancy", redundancy(doc)
    elif doc["test"] == "offsets":
        yield "offsets", offsets(doc)
    elif doc["test"] == "patterns":
        yield "patterns", patterns(doc)
        yield "shifts", shifts(doc)
    else:
        yield "conditions", conditions(doc)


def redundancy(doc: Doc) -> Figure | None:
    """The seven comparisons of every model and layer, and what remains beside random heads."""
    if not doc["rows"]:
        return None
    layers = doc["layers"][:_PANELS]
    names = list(dict.fromkeys(row["comparison"] for row in doc["rows"]))
    figure = canvas.new_figure(max(3.6 * (len(layers) + 1), 7.2), 4.4)
    panels = figure.subplots(1, len(layers) + 1, squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=False):
        for m, model in enumerate(doc["models"]):
            ours = [r for r in doc["rows"] if (r["model"], r["layer"]) == (model, layer)]
            _dots(axes, [row["nip"] for row in ours], m, len(doc["models"]), model)
        axes.set_yticks(range(len(names)), [canvas.label(n) for n in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.axvline(1, color="#888888", linewidth=0.8)
        axes.set_title(f"layer {layer}")
        axes.set_xlabel("NIP of the attention output at t")
    _remains(panels[-1], doc)
    if len(doc["models"]) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    _dress(figure, doc, "Redundancy test")
    return figure


def _remains(axes: Axes, doc: Doc) -> None:
    """Shares of the values' effect that remain without the heads, beside random sets."""
    rows = doc["remains"]
    for n, row in enumerate(rows):
        null = [number(x) for x in row["random"].get("shares") or []]
        axes.plot(null, [n] * len(null), "|", color=canvas.SLATE, markersize=11, alpha=0.8)
        color = canvas.MODEL_COLORS.get(row["model"], canvas.GREY)
        _bar(axes, n, [number(x) for x in (row["share"], *row["ci"])], color)
    several = len(doc["models"]) > 1
    labels = [(f"{r['model']}, " if several else "") + f"layer {r['layer']}" for r in rows]
    axes.set_yticks(range(len(rows)), [canvas.label(text) for text in labels])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=min(-0.03, axes.get_xlim()[0]))
    axes.set_title("what t-1 still gives")
    axes.set_xlabel(
        f"share of the values' effect that remains\n(grey: without random {taken(doc)})"
    )


def offsets(doc: Doc) -> Figure | None:
    """NIP per offset with and without the heads, and the share that remains."""
    if not doc["rows"]:
        return None
    columns = list(dict.fromkeys((r["model"], r["layer"]) for r in doc["rows"]))[:_PANELS]
    figure = canvas.new_figure(max(3.9 * len(columns), 6.4), 6.2)
    panels = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
    for n, (model, layer) in enumerate(columns):
        rows = [r for r in doc["rows"] if (r["model"], r["layer"]) == (model, layer)]
        alone = {(r["model"], r["layer"]): r["nip"]["mean"] for r in doc["heads_alone"]}
        upper, lower = panels[0][n], panels[1][n]
        at = [row["offset"] for row in rows]
        for curve, color, name in (
            ("base - B", canvas.BLUE, "values at t-offset zero"),
            ("base - AB", canvas.ORANGE, "heads and those values zero"),
        ):
            _curve(upper, at, [row[curve]["nip"] for row in rows], color, name)
        upper.axhline(
            number(alone[model, layer]), color=canvas.RED, linewidth=1.3, label="heads zero"
        )
        title = f"{model}, layer {layer}" if len(doc["models"]) > 1 else f"layer {layer}"
        upper.set_title(canvas.label(title))
        null = np.array([[number(x) for x in r["random"]["shares"]] for r in rows])
        look = {"color": canvas.GREY, "alpha": 0.7, "linewidth": 0.8}
        for r, own in enumerate(null.T):
            lower.plot(at, own, label="random heads" if r == 0 else None, **look)
        shares = [{"mean": row["share"], "ci": row["ci"]} for row in rows]
        _curve(lower, at, shares, canvas.INK, "these heads")
        lower.axhline(1, color="#888888", linewidth=0.8)
        lower.set_ylim(bottom=-0.03)
        canvas.layer_axis(lower, at)
        lower.set_xlabel("offset d")
    panels[0][0].set_ylabel("NIP of the attention output at t")
    panels[1][0].set_ylabel("share that values at t-d\nstill give without the heads")
    panels[0][0].legend(loc="best")
    panels[1][0].legend(loc="best")
    _dress(figure, doc, "Offset sweep")
    return figure


def patterns(doc: Doc) -> Figure | None:
    """Patterns at t by offset, of the later heads that moved most, with and without the heads."""
    if not doc["profiles"]:
        return None
    models = list(dict.fromkeys(p["model"] for p in doc["profiles"]))
    shown = {m: [p for p in doc["profiles"] if p["model"] == m][:_HEADS] for m in models}
    width = max(len(found) for found in shown.values())
    figure = canvas.new_figure(max(2.6 * width, 6.4), 2.5 * len(models) + 0.6)
    panels = figure.subplots(len(models), width, squeeze=False, sharex=True, sharey=True)
    rows = {(r["model"], r["layer"], r["head"]): r for r in doc["rows"]}
    for line, model in zip(panels, models, strict=True):
        for axes in line[len(shown[model]) :]:
            axes.set_axis_off()
        for axes, profile in zip(line, shown[model], strict=False):
            at = doc["offsets"]
            for name, (label, color, style) in _STATES.items():
                values = [number(x) for x in profile[name]]
                axes.plot(at, values, style, color=color, label=label)
            change = np.array([number(x) for x in profile["base"]])
            ends = np.array([[number(e) for e in pair] for pair in profile["ci"]])
            low, high = (change[:, None] + ends).T.clip(0, 1)
            axes.fill_between(at, low, high, color=canvas.ORANGE, alpha=0.2, linewidth=0)
            row = rows[model, profile["layer"], profile["head"]]
            who = f"{model} " if len(models) > 1 else ""
            p = f", p {number(row['p_any']):.2g}" if row["random"]["n"] else ""
            head, moved = f"L{profile['layer']}H{profile['head']}", 100 * number(row["moved"])
            axes.set_title(f"{who}{head}: {moved:.0f} %{p}", fontsize=8.5)
            canvas.layer_axis(axes, at)
            axes.set_xlabel("")
    for axes in panels[-1]:
        axes.set_xlabel("offset back from t")
    for line in panels:
        line[0].set_ylabel("attention weight")
    panels[0][0].legend(loc="best")
    _dress(figure, doc, "Later heads' patterns at t")
    return figure


_STATES = {
    "base": ("with the heads", canvas.BLUE, "-"),
    "without": ("without", canvas.ORANGE, "--"),
}


def shifts(doc: Doc) -> Figure | None:
    """Per layer and offset, how the mean pattern over heads changed, beside random sets."""
    if not doc["shifts"]:
        return None
    layers = sorted({row["layer"] for row in doc["shifts"]})
    by = {layer: [r for r in doc["shifts"] if r["layer"] == layer] for layer in layers}
    largest = sorted(layers, key=lambda i: -max(abs(number(r["mean"])) for r in by[i]))[:_PANELS]
    columns = min(4, len(largest))
    lines = -(-len(largest) // columns)
    figure = canvas.new_figure(max(3.0 * columns, 6.4), 2.5 * lines + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.ravel()[len(largest) :]:
        axes.set_axis_off()
    for axes, layer in zip(panels.ravel(), sorted(largest), strict=False):
        for model in doc["models"]:
            rows = [r for r in by[layer] if r["model"] == model]
            if not rows:
                continue
            at = [row["offset"] for row in rows]
            ranges = np.array([[number(e) for e in r["random_range"]] for r in rows])
            if np.isfinite(ranges).any():
                look = {"color": canvas.GREY, "alpha": 0.25, "linewidth": 0}
                axes.fill_between(at, ranges[:, 0], ranges[:, 1], **look)
            _curve(axes, at, rows, canvas.MODEL_COLORS.get(model, canvas.GREY), model)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_title(f"layer {layer}")
    for n, axes in enumerate(panels.ravel()[: len(largest)]):
        if n + columns >= len(largest):  # nothing is drawn below it
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("offset back from t")
    for line in panels:
        line[0].set_ylabel("change of weight")
    if len(doc["models"]) > 1:
        panels[0][0].legend(loc="best")
    _dress(figure, doc, "Mean pattern of later layers at t")
    return figure


def conditions(doc: Doc) -> Figure | None:
    """Per condition the share of predictions that changed, and the KL to its baseline."""
    if not doc["means"]:
        return None
    names = list(dict.fromkeys(row["condition"] for row in doc["means"]))
    figure = canvas.new_figure(9.6, 0.42 * len(names) + 1.6)
    panels = figure.subplots(1, 2, squeeze=False, sharey=True)[0]
    for axes, (what, title) in zip(panels, _WHAT, strict=True):
        for m, model in enumerate(doc["models"]):
            ours = [r[what] for r in doc["means"] if r["model"] == model]
            _dots(axes, ours, m, len(doc["models"]), model)
        null = [r[what]["random"]["range"] for r in doc["means"] if r[what].get("random")]
        ends = [[number(e) for e in pair] for pair in null]
        if ends and np.isfinite(ends).all():
            look = {"color": canvas.GREY, "alpha": 0.25, "linewidth": 0}
            axes.axvspan(np.min(ends), np.max(ends), label="random heads at t", **look)
        axes.set_xlabel(title)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    panels[0].set_yticks(range(len(names)), [_against(doc, name) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[1].legend(loc="best")
    _dress(figure, doc, "What each condition changes at t")
    return figure


_WHAT = (("changed", "share with another token"), ("kl", "KL to the baseline, nats"))


def _against(doc: Doc, name: str) -> str:
    """A condition, with its baseline where that is not the unedited run."""
    base = doc["baselines"].get(name)
    first = next(n for n, of in doc["baselines"].items() if of is None)
    return canvas.label(name if base == first else f"{name} (to: {base})", 60)


def _dots(axes: Axes, told: Sequence[Mapping[str, Any]], m: int, count: int, name: str) -> None:
    """Points with intervals on lines 0, 1, ... of a model among several."""
    color = canvas.MODEL_COLORS.get(name, canvas.GREY)
    for n, value in enumerate(told):
        at = n + (m - (count - 1) / 2) * 0.26
        ends = [number(end) for end in value["ci"]]
        _bar(axes, at, (number(value["mean"]), *ends), color, name if n == 0 else None)


def _bar(axes: Axes, at: float, told: Sequence[float], color: str, name: str | None = None) -> None:
    """A point (value, low, high) with its interval, where there is one."""
    value, low, high = told
    if not math.isnan(low):
        axes.hlines(at, low, high, color=color, linewidth=2.2, alpha=0.5)
    axes.plot([value], [at], "o", color=color, label=name, zorder=5)


def _curve(
    axes: Axes, at: Sequence[int], told: Sequence[Mapping[str, Any]], color: str, name: str
) -> None:
    """Means with a band."""
    values = [number(row["mean"]) for row in told]
    ends = np.array([[number(e) for e in row["ci"]] for row in told]).reshape(-1, 2)
    axes.fill_between(at, ends[:, 0], ends[:, 1], color=color, alpha=0.16, linewidth=0)
    axes.plot(at, values, "o-", color=color, label=name, markersize=3.5, linewidth=1.5)


def _dress(figure: Figure, doc: Doc, what: str) -> None:
    """Title and small print."""
    counts = sorted({int(n) for n in doc["n_samples"].values()})
    shown = canvas.label(heads(doc), 60)
    n = canvas.counted(counts[-1] if counts else 0, "position")
    about = f"without {shown}, {n} of {canvas.counted(len(doc['prompts']), 'prompt')}"
    canvas.dress(figure, doc, what, about)
