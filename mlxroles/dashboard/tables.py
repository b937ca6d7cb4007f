"""The tables that end a command: one per direction of a patch run, one for probed prompts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlxroles import documents
from mlxroles.dashboard.bars import COLORS
from mlxroles.text import format_number, safe_text, show_token

_MOST_PARTS = 20
_PEAK, _HALF = "◆", "½"


def final_table(doc: Mapping[str, Any]) -> RenderableType:
    """The numbers of a patch document per layer: a table per direction, side by side if they fit.

    ``***`` marks an effect beyond 0.01, ◆ the largest effect, ½ the first layer that recovers
    half. Runs over heads or positions list the largest effects instead.
    """
    tables: list[RenderableType] = []
    for direction in documents.directions(doc):
        axis = _part_axis(doc, direction)
        tables.append(
            _layer_table(doc, direction) if axis is None else _part_table(doc, direction, axis)
        )
    legend = "*** |effect| > .01"
    has_layers = all(_part_axis(doc, d) is None for d in documents.directions(doc))
    if has_layers:
        legend = f"{_PEAK} largest effect   {_HALF} first recovery of at least half   {legend}"
    if documents.controls(doc):
        names = " or ".join(documents.controls(doc)).replace("_", " ")
        legend += f"\nctrl: recovery of the control that recovers most ({safe_text(names)})"
    flips = doc.get("sign_flips")
    if flips:
        least = format_number(documents.number(flips, "smallest_p"), ".2g")
        legend += (
            f"\nq: sign flips over prompts, of the effect, corrected per direction (p >= {least})"
        )
    return Group(Columns(tables, padding=(0, 2)), Text(legend, style="dim"))


def probe_table(doc: Mapping[str, Any]) -> Table:
    """The rows of a probe document: how likely each model is to begin the headline string."""
    table = _table(f"P({safe_text(str(doc.get('headline', '')), limit=30)})")
    for name in ("model", "prompt", "variant"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("P", "first", "chain", "log-odds", "rank", "entropy"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(5, len(name)))
    table.add_column("top token", overflow="ellipsis", no_wrap=True)
    previous = None
    for row in doc.get("rows") or []:
        model = str(row.get("model") or "")
        if previous not in (None, model):
            table.add_section()
        previous = model
        table.add_row(
            *(_plain(row.get(name)) for name in ("model", "prompt", "variant")),
            _number(row, "tool_call_prob", ".3f"),
            _number(row, "p_first_token", ".3f"),
            _number(row, "p_chain", ".3f"),
            _number(row, "log_odds", "+.2f"),
            _number(row, "rank", ".0f"),
            _number(row, "entropy", ".2f"),
            _top(row),
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="dim",
    )


def _layer_table(doc: Mapping[str, Any], direction: str) -> Table:
    found = documents.finding(doc, direction)
    table = _titled(doc, direction)
    table.add_column("layer", justify="right", no_wrap=True)
    _add_numbers(doc, table)
    has_controls = bool(documents.controls(doc))
    if has_controls:
        table.add_column("ctrl", justify="right", no_wrap=True)
    for layer, values in documents.cells(doc, direction).items():
        is_half = layer == found.half_layer and not found.nothing_to_recover
        marks = _PEAK * (layer == found.peak_layer) + _HALF * is_half
        cells: list[RenderableType] = [f"{marks} {layer}".strip(), *_numbers(doc, values)]
        if has_controls:
            cells.append(_control(doc, direction, layer))
        table.add_row(*cells, style="bold" if marks else "")
    return table


def _part_table(doc: Mapping[str, Any], direction: str, axis: str) -> Table:
    table = _titled(doc, direction)
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column(axis.removeprefix("by_"), justify="right", no_wrap=True)
    _add_numbers(doc, table)
    rows = list(documents.parts(doc, direction, axis))
    rows.sort(key=lambda row: -_size(row[2]))
    names = documents.controls(doc)
    controls: dict[tuple[int, int], list[float]] = {}
    for name in names:
        for layer, part, values in documents.parts(doc, direction, axis, name):
            share = documents.number(values, "recovery")
            controls.setdefault((layer, part), []).append(share)
    if names:
        table.add_column("ctrl", justify="right", no_wrap=True)
    for layer, part, values in rows[:_MOST_PARTS]:
        ctrl = [_most(controls.get((layer, part), []))] if names else []
        table.add_row(str(layer), str(part), *_numbers(doc, values), *ctrl)
    if len(rows) > _MOST_PARTS:
        table.caption = Text(f"the {_MOST_PARTS} largest effects of {len(rows)}", style="dim")
    return table


def _titled(doc: Mapping[str, Any], direction: str) -> Table:
    level = documents.number(documents.baseline(doc, documents.recipient(direction)), _HEADLINE)
    table = _table(f"{documents.arrow(direction)}   unpatched P {format_number(level, '.3f')}")
    if isinstance(table.title, Text):
        table.title.stylize(COLORS[direction], 0, len(documents.arrow(direction)))
    return table


_HEADLINE = "tool_call_prob"


def _add_numbers(doc: Mapping[str, Any], table: Table) -> None:
    tested = [("q", 4)] if doc.get("sign_flips") else []
    for name, width in (("P", 5), ("effect", 6), *tested, ("R", 4)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)


def _numbers(doc: Mapping[str, Any], values: Mapping[str, Any]) -> list[RenderableType]:
    effect = documents.number(values, "effect")
    stars = "***" if abs(effect) > documents.MARKED_EFFECT else ""
    return [
        _number(values, _HEADLINE, ".3f"),
        Text(f"{format_number(effect, '+.3f')} {stars:3}"),
        *([_number(values, "effect_q", ".2g")] if doc.get("sign_flips") else []),
        _number(values, "recovery", ".2f"),
    ]


def _part_axis(doc: Mapping[str, Any], direction: str) -> str | None:
    for values in documents.cells(doc, direction).values():
        for axis in ("by_head", "by_position"):
            if values.get(axis):
                return axis
    return None


def _size(values: Mapping[str, Any]) -> float:
    effect = documents.number(values, "effect")
    return -1.0 if math.isnan(effect) else abs(effect)


def _control(doc: Mapping[str, Any], direction: str, layer: int) -> Text:
    shares = [
        documents.number(documents.cells(doc, direction, name).get(layer), "recovery")
        for name in documents.controls(doc)
    ]
    return _most(shares)


def _most(shares: Sequence[float]) -> Text:
    """The largest recovery of the controls."""
    known = [share for share in shares if not math.isnan(share)]
    return Text(format_number(max(known, default=math.nan), ".2f"), style="dim")


def _number(values: Mapping[str, Any], name: str, form: str) -> Text:
    return Text(format_number(documents.number(values, name), form))


def _plain(value: object) -> Text:
    return Text("" if value is None else safe_text(str(value), limit=40))


def _top(row: Mapping[str, Any]) -> Text:
    top = row.get("top5") or []
    if not top:
        return Text("–")
    prob = documents.number(top[0], "prob")
    return Text(f"{show_token(top[0].get('token'), limit=16)} {format_number(prob, '.3f')}")
