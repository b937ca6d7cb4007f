"""Figures of the effects of ablations: growing circuits, maps of heads, lists, factors, sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlxroles.plots import canvas
from mlxroles.report.ablate import effect_rows as rows

Doc = Mapping[str, Any]
Row = Mapping[str, Any]

_MOST_LISTED = 40
_MOST_NAMED = 6
_NARROWEST = 6.4
"""Inches that the title takes."""


def effect_figures(doc: Doc, folder: Path) -> dict[str, str]:
    """Writes the figures into the folder; the same document, the same bytes.

    Figures without a single number are left out.

    Args:
        doc: As ``studies.ablate.document`` makes it, also when read back from JSON.
        folder: Made where it does not exist.

    Returns:
        The path per figure: ``circuit``, ``heads``, ``effects``, ``graded``, ``joint`` and
        ``entropies`` as PNG, and the same with ``_svg`` appended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawers: dict[str, Callable[[Doc], Figure | None]] = {
        "circuit": circuit,
        "heads": heads,
        "joint": joint,
        "graded": graded,
        "effects": effects,
        "entropies": entropies,
    }
    paths: dict[str, str] = {}
    with canvas.style():
        for name, draw in drawers.items():
            figure = draw(doc)
            if figure is not None:
                png, vector = folder / f"{name}.png", folder / f"{name}.svg"
                canvas.save(figure, png, vector)
                paths |= {name: str(png), f"{name}_svg": str(vector)}
    return paths


def _about(doc: Doc) -> str:
    n = len(doc["prompts"])
    which = canvas.counted(n, "prompt")
    if doc["headline"] == "gain":
        which = f"{n} sequences of {doc['prompts'][0]['n_tokens'] // 2} random tokens, repeated"
    return f"{rows.method(doc)}, {rows.positions(doc)}; {which}, seed {doc['seed']}"


def _panels(doc: Doc, width: float, height: float) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel per model."""
    models = rows.models(doc)
    figure = canvas.new_figure(max(width * len(models) + 0.3, _NARROWEST), height)
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for name, panel in zip(models, axes, strict=True):
        if len(models) > 1:
            panel.set_title(name)
    return figure, list(zip(models, axes, strict=True))


# --- the circuit ------------------------------------------------------------------------------


def circuit(doc: Doc) -> Figure | None:
    """The repetition gain that is left as pairs of heads go, beside random sets."""
    if not _is_circuit(doc):
        return None
    figure, panels = _panels(doc, 4.6, 4.3)
    for model, axes in panels:
        _circuit(axes, doc, model)
    top = 1.3 * max(axes.get_ylim()[1] for _, axes in panels)  # with room for the legend
    for n, (_, axes) in enumerate(panels):
        axes.set_ylim(min(0.0, *(a.get_ylim()[0] for _, a in panels)), top)
        if n == 0:
            axes.set_ylabel("repetition gain left [nats]")
    panels[0][1].legend(loc="upper left")
    title = "Repetition gain without the heads that score highest"
    canvas.dress(figure, doc, title, _about(doc))
    return figure


def _is_circuit(doc: Doc) -> bool:
    named = any(row["key"].startswith("pairs-") for row in doc["rows"])
    return named and doc["headline"] == "gain"


def _circuit(axes: Axes, doc: Doc, model: str) -> None:
    own = [row for row in doc["rows"] if row["model"] == model]
    pairs = [row for row in own if row["key"].startswith("pairs-")]
    alls = [row for row in own if row["key"].startswith("all-")]
    whole = doc["baseline"][model]["gain"]["mean"]
    places = [float(row["key"].removeprefix("pairs-")) for row in pairs]
    far = max(places, default=0.0) + 1.5
    spots = [*places, *(far + n for n in range(len(alls)))]
    axes.axhline(whole, color=canvas.SLATE, linewidth=1, linestyle="--", label="nothing ablated")
    axes.axhline(0, color="#999999", linewidth=0.8)
    color = canvas.MODEL_COLORS.get(model, canvas.BLUE)
    for x, row in zip(spots, [*pairs, *alls], strict=True):
        null = row.get("null") or {"values": []}
        left = [whole - value for value in null["values"]]
        spread = np.linspace(-0.13, 0.13, len(left)) if len(left) > 1 else np.zeros(len(left))
        axes.plot(
            x + spread,
            left,
            linestyle="none",
            marker="o",
            markersize=3,
            color=canvas.GREY,
            alpha=0.8,
            label="random heads, same layers" if x == spots[0] else None,
        )
    for group, line in ((pairs, "-"), (alls, "none")):
        at = spots[: len(pairs)] if group is pairs else spots[len(pairs) :]
        values = [row["gain"]["mean"] for row in group]
        low, high = _bars(group, "gain")
        axes.errorbar(
            at,
            values,
            yerr=[low, high],
            linestyle=line,
            marker="o",
            color=color,
            capsize=2,
            label="heads with the highest scores" if group is pairs else None,
        )
    short = {"all-previous": "all prev.", "all-induction": "all ind.", "all-both": "all"}
    names = [f"{n:.0f}" for n in places] + [short.get(row["key"], "") for row in alls]
    counts = [len(row["heads"]) for row in [*pairs, *alls]]
    axes.set_xticks(spots, [f"{a}\n({n})" for a, n in zip(names, counts, strict=True)], fontsize=7)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("pairs ablated: previous-token + induction head (heads)")


def _bars(group: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Lengths of error bars below and above."""
    low, high = [], []
    for row in group:
        mean, (a, b) = row[name]["mean"], _ci(row[name])
        low.append(0.0 if math.isnan(a) else max(mean - a, 0.0))
        high.append(0.0 if math.isnan(b) else max(b - mean, 0.0))
    return low, high


def _ci(values: Mapping[str, Any]) -> tuple[float, float]:
    low, high = (math.nan if x is None else float(x) for x in values["ci"])
    return low, high


def _known(value: float | None) -> float:
    return math.nan if value is None else value


# --- single heads -----------------------------------------------------------------------------


def heads(doc: Doc) -> Figure | None:
    """The effect of every head by itself, layer by head."""
    if not doc["is_each"] or not doc["rows"]:
        return None
    grids = {model: rows.head_grid(doc, model) for model in rows.models(doc)}
    n_layers, n_heads = next(iter(grids.values())).shape
    width = min(max(0.24 * n_heads + 1.6, 3.4), 9.0)
    figure, panels = _panels(doc, width, min(max(0.2 * n_layers + 1.6, 2.9), 9.0))
    largest = max((float(np.nanmax(np.abs(g))) for g in grids.values()), default=1.0) or 1.0
    is_signed = doc["headline"] != "kl"
    image = None
    for model, axes in panels:
        axes.grid(visible=False)
        image = axes.imshow(
            grids[model],
            origin="lower",
            aspect="auto",
            cmap=_map(is_signed=is_signed),
            vmin=-largest if is_signed else 0.0,
            vmax=largest,
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("head")
        _mark(axes, doc, model, grids[model], largest)
    panels[0][1].set_ylabel("layer")
    if image is not None:
        bar = figure.colorbar(image, ax=[axes for _, axes in panels], fraction=0.05, pad=0.02)
        bar.set_label(rows.effect_name(doc))
    canvas.dress(figure, doc, "Every head ablated by itself", _about(doc))
    return figure


def _map(*, is_signed: bool) -> str | Colormap:
    return "RdBu_r" if is_signed else "viridis"


def _mark(axes: Axes, doc: Doc, model: str, grid: np.ndarray, largest: float) -> None:
    """Frames the largest effects and dots heads with a high induction score."""
    order = np.argsort(-np.nan_to_num(np.abs(grid), nan=-1), axis=None, kind="stable")
    for at in order[:3]:
        layer, head = divmod(int(at), grid.shape[1])
        axes.add_patch(_frame(head, layer))
    for name, marker in (("induction", "o"), ("previous", "s")):
        scores = (doc.get("scores") or {}).get(model, {}).get(name)
        if scores is None:
            continue
        found = [
            (layer, head)
            for layer, row in enumerate(scores)
            for head, value in enumerate(row)
            if value is not None and value > rows.MARKED
        ]
        axes.plot(
            [head for _, head in found],
            [layer for layer, _ in found],
            linestyle="none",
            marker=marker,
            markersize=5,
            markerfacecolor="none",
            markeredgecolor=canvas.INK,
            markeredgewidth=0.8,
        )


def _frame(head: int, layer: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=canvas.INK, linewidth=1.4
    )


# --- lists ------------------------------------------------------------------------------------


def effects(doc: Doc) -> Figure | None:
    """The largest effects with intervals, and the random sets of each as grey marks."""
    if doc["is_each"] or _is_circuit(doc):
        return None
    found = rows.ordered(doc, most=_MOST_LISTED)
    if not any(found.values()):
        return None
    longest = max(len(group) for group in found.values())
    figure, panels = _panels(doc, 4.2, 0.24 * longest + 1.7)
    for model, axes in panels:
        group = found.get(model, [])[::-1]
        for y, row in enumerate(group):
            values = (row.get("null") or {"values": []})["values"]
            axes.plot(
                values,
                [y] * len(values),
                linestyle="none",
                marker="|",
                markersize=7,
                color=canvas.GREY,
            )
        low, high = _bars(group, "effect")
        axes.errorbar(
            [row["effect"]["mean"] for row in group],
            range(len(group)),
            xerr=[low, high],
            linestyle="none",
            marker="o",
            color=canvas.MODEL_COLORS.get(model, canvas.BLUE),
            capsize=2,
        )
        axes.axvline(0, color="#999999", linewidth=0.8)
        names = [canvas.label(rows.name(row), 34) for row in group]
        axes.set_yticks(range(len(group)), names, fontsize=7)
        axes.set_ylim(-0.7, len(group) - 0.3)
        is_random = any(row.get("null") for row in group)
        axes.set_xlabel(rows.effect_name(doc) + ("; grey: random" if is_random else ""))
    canvas.dress(figure, doc, "Effects of ablations", _about(doc))
    return figure


def graded(doc: Doc) -> Figure | None:
    """Effect over factor, one line per ablation."""
    factors = {row["factor"] for row in doc["rows"] if row["factor"] is not None}
    if len(factors) < 2:
        return None
    figure, panels = _panels(doc, 4.2, 3.6)
    palette = (canvas.BLUE, canvas.VERMILION, canvas.PURPLE, canvas.BROWN, canvas.OLIVE, canvas.RED)
    for model, axes in panels:
        keys = rows.strongest_keys(doc, model)
        for n, key in enumerate(keys[:_MOST_LISTED]):
            group = sorted(rows.of_key(doc, model, key), key=lambda row: row["factor"])
            is_named = n < _MOST_NAMED
            axes.plot(
                [row["factor"] for row in group],
                [row["effect"]["mean"] for row in group],
                marker="o" if is_named else None,
                color=palette[n % len(palette)] if is_named else canvas.GREY,
                linewidth=1.8 if is_named else 0.7,
                label=canvas.label(group[0]["ablation"], 24) if is_named else None,
                zorder=3 if is_named else 1,
            )
        axes.invert_xaxis()
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_xlabel("factor (1: nothing is changed)")
        axes.legend(loc="best")
    panels[0][1].set_ylabel(rows.effect_name(doc))
    canvas.dress(figure, doc, "Effects as the parts are scaled down", _about(doc))
    return figure


def _size(row: Mapping[str, Any]) -> int:
    """Heads or components of an ablation; runs of before step 6 counted heads only."""
    return row.get("parts", len(row["heads"]))


def joint(doc: Doc) -> Figure | None:
    """Joint effects of growing sets beside the sums of the heads' own."""
    if len({_size(row) for row in doc["rows"] if row.get("sum")}) < 2:
        return None
    figure, panels = _panels(doc, 4.4, 3.8)
    for n, (model, axes) in enumerate(panels):
        group = [r for r in doc["rows"] if r["model"] == model and r.get("sum")]
        group = [r for r in group if r["factor"] == group[-1]["factor"]]
        x = [_size(row) for row in group]
        for place, row in zip(x, group, strict=True):
            values = (row.get("null") or {"values": []})["values"]
            axes.plot(
                [place] * len(values), values, linestyle="none", marker="o", markersize=3,
                color=canvas.GREY, label="random sets, same layers" if row is group[0] else None,
            )  # fmt: skip
        looks = (("effect", "together", "-", canvas.BLUE), ("sum", "sum of each", "--", canvas.RED))
        for name, said, line, color in looks:
            low, high = _bars(group, name)
            axes.errorbar(
                x,
                [row[name]["mean"] for row in group],
                yerr=[low, high],
                linestyle=line,
                marker="o",
                color=color,
                capsize=2,
                label=said,
            )
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("heads ablated together")
        if n == 0:
            axes.set_ylabel(rows.effect_name(doc))
    panels[0][1].legend(loc="upper left")
    canvas.dress(figure, doc, "Heads together and one by one", _about(doc))
    return figure


def entropies(doc: Doc) -> Figure | None:
    """What attention entropies of the layers gained under each ablation."""
    chosen = rows.ordered(doc, most=24)
    chosen = {m: [r for r in group if r.get("entropy_change")] for m, group in chosen.items()}
    if not any(chosen.values()):
        return None
    longest = max(len(group) for group in chosen.values())
    figure, panels = _panels(doc, 4.4, 0.24 * longest + 1.9)
    grids = {
        model: np.array(
            [[math.nan if v is None else v for v in r["entropy_change"]] for r in group]
        )
        for model, group in chosen.items()
        if group
    }
    known = [np.abs(grid[np.isfinite(grid)]) for grid in grids.values()]
    largest = max((float(k.max()) for k in known if k.size), default=0.0) or 1.0
    image = None
    for model, axes in panels:
        group = chosen.get(model, [])
        axes.grid(visible=False)
        axes.set_facecolor("#eeeeee")
        if not group:
            continue
        image = axes.imshow(grids[model], aspect="auto", cmap="RdBu_r", vmin=-largest, vmax=largest)
        names = [canvas.label(rows.name(row), 34) for row in group]
        axes.set_yticks(range(len(group)), names, fontsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
    if image is not None:
        bar = figure.colorbar(image, ax=[axes for _, axes in panels], fraction=0.05, pad=0.02)
        bar.set_label("attention entropy gained [nats]")
    canvas.dress(figure, doc, "Attention entropies of the layers from the ablation on", _about(doc))
    return figure
