"""The strongest spot from close by: every question, every prompt, every random vector."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlxroles import documents
from mlxroles.plots import canvas
from mlxroles.plots.inject.strengths import NARROWEST, about, unit
from mlxroles.report.inject.rows import ROLES
from mlxroles.report.inject.wording import ALL, headline_tests, spot

Doc = Mapping[str, Any]
Test = Mapping[str, Any]

ROLE_LOOKS = {
    "detect": ("D", canvas.RED),
    "no": ("o", canvas.BLUE),
    "yes": ("^", canvas.ORANGE),
}


def questions(doc: Doc) -> Figure | None:
    """Yes - No without injection against with it, one panel per model."""
    tests = _with_items(doc) if doc["mode"] == "battery" else []
    if not tests:
        return None
    figure = canvas.new_figure(max(4.7 * len(tests) + 0.4, NARROWEST), 4.9)
    panels = figure.subplots(1, len(tests), squeeze=False)[0]
    for axes, test in zip(panels, tests, strict=True):
        for role, (marker, color) in ROLE_LOOKS.items():
            rows = [item for item in test["items"] if item["role"] == role]
            if not rows:
                continue
            x = [item["clean"] for item in rows]
            low, high = ([item[f"random_{k}"] for item in rows] for k in ("low", "high"))
            if None not in low:
                axes.vlines(x, low, high, color="#c4c4c4", linewidth=1.6, zorder=1)
            y = [item["injected"] for item in rows]
            look: dict[str, Any] = {"color": color, "s": 34, "zorder": 4 if role == "detect" else 3}
            axes.scatter(x, y, marker=marker, label=ROLES[role], edgecolors="white", **look)
        values = [v for item in test["items"] for v in (item["clean"], item["injected"])]
        ends = [min(values), max(values)]
        axes.plot(ends, ends, linestyle="--", color="#777777", linewidth=1, zorder=2)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.set_title(f"{test['model']}: {canvas.label(test['vector'], 24)}, {spot(test)}")
        axes.set_xlabel("Yes - No without injection, nats")
    panels[0].set_ylabel("Yes - No with injection, nats")
    panels[0].legend(loc="upper left")
    canvas.dress(figure, doc, "Every question with and without the injection", about(doc))
    return figure


def prompts(doc: Doc) -> Figure | None:
    """Probability per prompt, without and with the vector, one panel per test."""
    tests = _with_items(doc) if doc["mode"] == "prompts" else []
    if not tests:
        return None
    columns = min(2, len(tests))
    lines = -(-len(tests) // columns)
    figure = canvas.new_figure(max(4.9 * columns + 0.4, NARROWEST), 3.2 * lines + 1.1)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, test in zip(panels.flat, tests, strict=False):
        _prompt_panel(axes, test)
    for axes in list(panels.flat)[len(tests) :]:
        axes.set_visible(False)
    panels[0][0].legend(loc="center left")
    canvas.dress(figure, doc, "Every prompt without and with the vector", about(doc))
    return figure


def _prompt_panel(axes: Axes, test: Test) -> None:
    items = test["items"]
    at = np.arange(len(items))
    color = canvas.MODEL_COLORS.get(test["model"], canvas.GREY)
    low, high = ([item[f"random_{k}"] for item in items] for k in ("low", "high"))
    if None not in low:
        axes.vlines(at, low, high, color="#c4c4c4", linewidth=5, zorder=1, label="random vectors")
    clean = [item["clean"] for item in items]
    axes.plot(at, clean, "o", markerfacecolor="white", color=color, label="without", zorder=3)
    axes.plot(at, [item["injected"] for item in items], "o", color=color, label="with", zorder=4)
    axes.set_ylim(-0.04, 1.04)
    names = [canvas.label(item["id"], 18) for item in items]
    if len(items) <= 30:
        axes.set_xticks(at, names, rotation=90, fontsize=7)
    axes.set_ylabel("probability")
    done = "out" if test["test"] == "out" else "added"
    where = spot(test).removeprefix("at ")
    if test["test"] == "out":
        is_all = test["layer"] == ALL
        where = "all layers" if is_all else f"layer {test['layer']}"
    axes.set_title(f"{test['model']}: {done}, {where} ({ROLES[test['role']]})")


def picks(doc: Doc) -> Figure | None:
    """Where the injection was and which place was named, one panel per model."""
    tests = [t for t in _headline(doc) if t.get("picks")] if doc["mode"] == "localise" else []
    tests = tests or [t for t in doc["tests"] if t.get("picks")][:2]
    if doc["mode"] != "localise" or not tests:
        return None
    figure = canvas.new_figure(max(3.9 * len(tests) + 0.6, NARROWEST), 4.2)
    panels = figure.subplots(1, len(tests), squeeze=False)[0]
    for axes, test in zip(panels, tests, strict=True):
        counts = np.array(test["picks"], dtype=np.float64)
        axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(counts.sum(axis=1).max(), 1.0))
        axes.grid(visible=False)
        for row, column in np.ndindex(*counts.shape):
            ink = canvas.INK if counts[row, column] < counts.max() else "white"
            axes.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=ink
            )
        axes.set_xticks(range(len(counts)), doc["labels"])
        axes.set_yticks(range(len(counts)), doc["labels"])
        axes.set_xlabel("sentence that gains most")
        axes.set_ylabel("sentence with the injection")
        axes.set_title(f"{test['model']}: {canvas.label(test['vector'], 24)}, {spot(test)}")
    canvas.dress(figure, doc, "Where is the injection?", about(doc))
    return figure


def draws(doc: Doc) -> Figure | None:
    """The vector and its random vectors at the strongest spots, one line per test."""
    tests = [test for test in _headline(doc) if len(test.get("draws") or ()) > 1]
    if not tests:
        return None
    figure = canvas.new_figure(7.6, 0.62 * len(tests) + 1.9)
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for row, test in enumerate(reversed(tests)):
        values = np.array(test["draws"], dtype=np.float64)
        up = row + rng.uniform(-0.16, 0.16, len(values) - 1)
        axes.plot(values[1:], up, "o", color=canvas.GREY, alpha=0.75, markersize=4.5)
        color = canvas.MODEL_COLORS.get(test["model"], canvas.RED)
        axes.plot(values[0], row, "D", color=color, markersize=7, zorder=4)
        p = documents.number(test, "p_any")
        text = f"p = {p:.3f} over {canvas.counted(test['n_spots'], 'spot')}"
        place: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "ha": "right",
            "fontsize": 8,
        }
        axes.annotate(text, (0.995, row + 0.26), **place)
    axes.set_yticks(range(len(tests)), [_name(test) for test in reversed(tests)])
    axes.set_ylim(-0.5, len(tests) - 0.3)
    if doc["mode"] == "localise":
        axes.axvline(tests[0]["chance"], color="#777777", linestyle=":")
    else:
        axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel(unit(doc))
    canvas.dress(figure, doc, "The vector (diamond) beside random ones of its length", about(doc))
    return figure


def _name(test: Test) -> str:
    layers = "all layers" if test["layer"] == ALL else f"layer {test['layer']}"
    done = {"out": f"projected out, {layers}"}.get(test["test"], spot(test))
    which = f" ({test['role']})" if "role" in test else ""
    return f"{test['model']}: {canvas.label(test['vector'], 18)}{which}\n{done.removeprefix('at ')}"


def _headline(doc: Doc) -> list[Test]:
    return [test for model in doc["models"] for test in headline_tests(doc, model)]


def _with_items(doc: Doc) -> list[Test]:
    """The headline tests, or where they are means over vectors the strongest single ones."""
    found = [test for test in _headline(doc) if test.get("items")]
    if found:
        return found
    for model in doc["models"]:
        own = [t for t in doc["tests"] if t["model"] == model and t.get("items")]
        if own:
            found.append(max(own, key=lambda test: abs(documents.number(test, "t"))))
    return found
