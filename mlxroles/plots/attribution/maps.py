"""Maps of estimates: by layer, by layer and position, by layer and head."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlxroles import documents
from mlxroles.plots import canvas, maps
from mlxroles.plots.lines import Series, curve, view
from mlxroles.report.attribution.rows import directions, metric_name, signed
from mlxroles.report.attribution.wording import verdict
from mlxroles.text import show_token

Numbers = NDArray[np.float64]
Doc = Mapping[str, Any]

_COLORS = {"resid_post": canvas.SLATE, "attn_out": canvas.BLUE, "mlp_out": canvas.ORANGE}
_MARKERS = {"resid_post": "o", "attn_out": "s", "mlp_out": "^"}
_SITES = ("attn_out", "mlp_out", "resid_post")
_ALL_TOKENS = 64
"""Up to so many positions every token is named; of more, the strongest."""
_TOKEN_INCHES = 0.17
_STANDS_OUT = 0.15
"""Share of the colour scale from which on a position is worth its name."""
_NAMED_HEADS = 5
_NAME_WIDTH = 0.15
"""Share of a map's width that a head's name takes, about."""


def about(doc: Doc) -> str:
    """The second line of every title: what the effects are on, of which prompts, how sure."""
    count = documents.prompt_count(doc)
    prompts = doc.get("prompts") or [{}]
    which = f"{count} prompts" if count > 1 else f"prompt {canvas.label(prompts[0].get('id'), 30)}"
    return f"effect on {scale(doc)}, {which}. {verdict(doc)}"


def scale(doc: Doc) -> str:
    """Name and unit of the metric."""
    name = canvas.label(metric_name(doc["metric"]), 20)
    return f"{name} [nats]" if doc.get("unit") == "nat" else name


def _bar(doc: Doc, grids: Sequence[Numbers], *, is_cut: bool) -> str:
    """What a colour bar says: the metric and its unit, and the largest value where it is cut."""
    if not is_cut:
        return scale(doc)
    values = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    largest = signed(float(values[np.argmax(np.abs(values))]))
    return f"{scale(doc)}\nclipped; largest {largest}"


def layers(doc: Doc) -> Figure | None:
    """Estimates of whole layers: the parts above, the stream, where it is larger, below."""
    shown = directions(doc)
    groups = [
        [s for s in _SITES[:2] if s in doc["sites"]],
        [s for s in _SITES[2:] if s in doc["sites"]],
    ]
    groups = [group for group in groups if group]
    if not shown or not groups:
        return None
    figure = canvas.new_figure(max(4.5 * len(shown), 6.0), 1.2 + 2.5 * len(groups))
    panels = figure.subplots(len(groups), len(shown), sharex=True, sharey="row", squeeze=False)
    for row, group in zip(panels, groups, strict=True):
        series = [[_series(doc, d, site) for site in group] for d in shown]
        limits = view([one for column in series for one in column], levels=[0.0])
        for axes, direction, curves in zip(row, shown, series, strict=True):
            axes.set_ylim(*limits)
            axes.axhline(0.0, color="#888888", linewidth=0.8, zorder=1)
            for one in curves:
                curve(axes, doc["layers_tested"], one, limits)
            axes.set_title(documents.arrow(direction))
            axes.legend(loc="best")
        row[0].set_ylabel(scale(doc))
    for axes in panels[-1]:
        canvas.layer_axis(axes, doc["layers_tested"])
    canvas.dress(figure, doc, "Estimated effect of whole layers", about(doc))
    return figure


def _series(doc: Doc, direction: str, site: str) -> Series:
    entry = doc[direction]["sites"][site]
    found = entry.get("by_layer") or entry["grid"]
    low, high = (grid(found, name) if name in found else None for name in ("low", "high"))
    color, marker = _COLORS[site], _MARKERS[site]
    return Series(site, color, marker, grid(found, "estimate"), low, high)


def grid(found: Mapping[str, Any], name: str) -> Numbers:
    """Numbers of a document, NaN for null."""
    return np.array(found[name], dtype=np.float64)


def positions(doc: Doc, direction: str, grids: Mapping[str, Numbers]) -> Figure | None:
    """Estimates by layer and position, a panel per site of the stream; tokens below.

    Where there are too many tokens to name, those of the strongest positions are named.
    """
    shown = [s for s in _SITES if s in grids and np.isfinite(grids[s]).any()]
    if not shown:
        return None
    length = grids[shown[0]].shape[1]
    rows = len(doc["layers_tested"])
    width = float(np.clip(0.2 * length + 2.5, 6.5, 16.0))
    height = float(np.clip(0.11 * rows + 0.9, 1.5, 4.0))
    figure = canvas.new_figure(width, height * len(shown) + 2.2)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, site in zip(panels, shown, strict=True):
        norm, is_cut = maps.centred([grids[site]])
        image = maps.cells(axes, grids[site], doc["layers_tested"], norm)
        axes.set_title(site)
        axes.set_ylabel("layer")
        axes.set_xlabel("")
        bar = figure.colorbar(image, ax=axes, extend="both" if is_cut else "neither", pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(_bar(doc, [grids[site]], is_cut=is_cut), fontsize=7)
    panels[0].set_title(f"{documents.arrow(direction)}   {shown[0]}")
    named = _named([grids[site] for site in shown], round(width / _TOKEN_INCHES))
    texts = [_token(doc, at, with_number=length > _ALL_TOKENS) for at in named]
    panels[-1].set_xticks(named, texts, rotation=90, fontsize=7)
    panels[-1].set_xlabel("position")
    canvas.dress(figure, doc, "Estimated effect by layer and position", about(doc))
    return figure


def _named(grids: Sequence[Numbers], room: int) -> list[int]:
    """Positions that get their token as a label: all, or those that stand out, some way apart."""
    length = grids[0].shape[1]
    if length <= _ALL_TOKENS:
        return list(range(length))
    strength = np.zeros(length)
    for values in grids:
        norm, _ = maps.centred([values])
        shade = np.abs(2 * np.asarray(norm(np.nan_to_num(values).ravel())) - 1)
        strength = np.maximum(strength, shade.reshape(values.shape).max(axis=0))
    apart = -(-length // room)
    found: list[int] = []
    for at in np.argsort(-strength, kind="stable"):
        if strength[at] < _STANDS_OUT or len(found) == _ALL_TOKENS:
            break
        if all(abs(int(at) - other) >= apart for other in found):
            found.append(int(at))
    return sorted(found)


def _token(doc: Doc, at: int, *, with_number: bool) -> str:
    tokens = doc.get("tokens") or []
    text = tokens[at] if at < len(tokens) else None
    shown = "" if text is None else canvas.label(show_token(text), 12)
    return f"{shown} {at}".strip() if with_number or not shown else shown


def heads(doc: Doc, sites: Sequence[str]) -> Figure | None:
    """Estimates by layer and head: a row per direction, a panel per site; one scale per row."""
    shown = directions(doc)
    named = [s for s in sites if all(s in doc[d]["sites"] for d in shown)]
    grids = {d: {s: _heads(doc, d, s) for s in named} for d in shown}
    if not named or not any(np.isfinite(g).any() for row in grids.values() for g in row.values()):
        return None
    side_by_side = len(named) == 1
    n_rows, n_columns = (1, len(shown)) if side_by_side else (len(shown), len(named))
    tested = len(doc["layers_tested"])
    height = float(np.clip(0.16 * tested + 1.0, 2.2, 7.0))
    width = 4.6 if side_by_side else 3.2
    figure = canvas.new_figure(max(width * n_columns + 0.8, 6.5), height * n_rows + 1.0)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    for row, direction in enumerate(shown):
        ours = list(panels[0][row : row + 1] if side_by_side else panels[row])
        norm, is_cut = maps.centred(list(grids[direction].values()))
        for axes, site in zip(ours, named, strict=True):
            image = maps.cells(axes, grids[direction][site], doc["layers_tested"], norm)
            _name_heads(axes, grids[direction][site], doc["layers_tested"], site)
            axes.set_title(f"{documents.arrow(direction)}   {site}")
            if site in ("k", "v"):
                axes.set_xlabel("kv head")
            if axes is ours[-1]:
                extend = "both" if is_cut else "neither"
                text = _bar(doc, list(grids[direction].values()), is_cut=is_cut)
                figure.colorbar(image, ax=ours, label=text, extend=extend, pad=0.01)
        ours[0].set_ylabel("layer")
    what = "each head" if named == ["z"] else f"each head's {', '.join(named)}"
    canvas.dress(figure, doc, f"Estimated effect of {what}", about(doc))
    return figure


def _heads(doc: Doc, direction: str, site: str) -> Numbers:
    found = doc[direction]["sites"][site]
    return grid(found["grid"], "estimate")


def _name_heads(axes: Axes, values: Numbers, tested: Sequence[int], site: str) -> None:
    """Frames and names the largest cells whose name no larger one's is in the way of."""
    flat = np.nan_to_num(np.abs(values)).ravel()
    order = np.argsort(-flat, kind="stable")[:_NAMED_HEADS]
    columns = values.shape[1]
    named: list[tuple[int, int]] = []
    for at in (int(i) for i in order if flat[i] > 0):
        row, column = divmod(at, columns)
        if any(row == r and abs(column - c) <= _NAME_WIDTH * columns for r, c in named):
            continue
        axes.plot(
            [column],
            [row],
            marker="s",
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=canvas.INK,
            markeredgewidth=0.9,
            path_effects=[effects.withStroke(linewidth=2.0, foreground="white")],
            clip_on=False,
        )
        named.append((row, column))
        on_left = column >= (1 - _NAME_WIDTH) * columns
        axes.annotate(
            f"L{tested[row]}{'kv' if site in ('k', 'v') else 'H'}{column}",
            (column, row),
            xytext=(-8 if on_left else 8, 0),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            fontsize=6.5,
            color=canvas.INK,
            path_effects=[effects.withStroke(linewidth=2.4, foreground="white")],
        )
