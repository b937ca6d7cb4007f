"""What a report on components keeps as JSON and as a table, a layer at a time."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlxroles.components.offsets import peaks
from mlxroles.components.weights import shares
from mlxroles.report.components.views import QK, LayerView, MapView, Story
from mlxroles.text import safe_text

LEADING = 24
"""Components of a map whose heads are told of, the most important first."""
_PAIRS = 10
COLUMNS = ("layer", "map", "component", "head", "quantity", "value", "null")
PAIR_COLUMNS = ("layer", "q", "k", "offset", "peak", "chance", "head", "head_value")


def layer(view: LayerView) -> dict[str, Any]:
    """A layer's entry in the document."""
    return {
        "layer": view.layer,
        "n_components": sum(len(m.norms) for m in view.maps),
        "n_alive": sum(int(m.alive.sum()) for m in view.maps),
        "maps": [_map(m) for m in view.maps],
        "pairs": [] if view.qk is None else list(_leading(view.qk, _PAIRS)),
        "chance": None if view.qk is None else _chance(view.qk),
        "stories": [_story(each) for each in view.stories],
    }


def _chance(qk: QK) -> dict[str, Any]:
    """Pairs beyond chance by head, what the most of any head is by chance, the largest peak."""
    found = qk.chance
    return {"above": found.above.tolist(), "most": found.most, "largest": found.of_all}


def _map(found: MapView) -> dict[str, Any]:
    top = found.top(LEADING)
    has_heads = found.head_norms is not None and not math.isnan(found.chance_share)
    share = shares(found.head_norms[top]) if has_heads and found.head_norms is not None else None
    best = None if share is None or not len(top) else share.argmax(axis=1)
    entries, heads = [], []
    for n, c in enumerate(int(c) for c in top):
        entry = {
            "component": c,
            "importance": float(found.importance[c]),
            "norm": float(found.norms[c]),
        }
        if share is not None and best is not None:
            entry |= {"head": int(best[n]), "share": float(share[n, best[n]])}
            heads += [int(best[n])] if share[n, best[n]] > found.chance_share else []
        if found.density is not None:
            entry["density"] = float(found.density[c])
        entries.append(entry)
    return {
        "key": found.key,
        "kind": found.kind,
        "layer": found.layer,
        "n": len(found.norms),
        "n_alive": int(found.alive.sum()),
        "n_heads": found.n_heads,
        "shown": len(top),
        "chance_share": found.chance_share if has_heads else None,
        "in_one_head": len(heads),
        "heads_of_those": heads,
        "top": entries,
    }


def _story(found: Story) -> dict[str, Any]:
    """A story in numbers and tokens."""

    def partner(each: Any) -> dict[str, Any]:
        return {
            "k": each.component,
            "peak": each.peak,
            "chance": each.chance,
            "offset": each.offset,
            "head": each.head,
            "tokens": [text for text, _ in each.tokens.reads],
            "values": [{"v": v.component, "measure": v.measure} for v in each.values],
        }

    return {
        "q": found.component,
        "importance": found.importance,
        "tokens": [text for text, _ in found.tokens.reads],
        "raises": [partner(each) for each in found.attended],
        "lowers": [partner(each) for each in found.avoided],
    }


def _leading(qk: QK, most: int | None = None) -> Iterator[dict[str, Any]]:
    """The pairs whose head sum peaks highest in size."""
    total = qk.values.sum(axis=1, dtype=np.float64)
    at, peak = peaks(total)
    order = np.argsort(-np.abs(peak), axis=None, kind="stable")[:most]
    for q, k in zip(*np.unravel_index(order, peak.shape), strict=True):
        column = qk.values[at[q, k], :, q, k]
        head = int((column * np.sign(peak[q, k])).argmax())
        yield {
            "q": int(qk.q[q]),
            "k": int(qk.k[k]),
            "offset": int(qk.offsets[at[q, k]]),
            "peak": float(peak[q, k]),
            "chance": float(qk.chance.of_query[q]),
            "head": head,
            "head_value": float(column[head]),
        }


def table(views: Sequence[MapView]) -> str:
    """A line per number of every component, as CSV; ``null`` is what chance gives, where known."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in views:
        key = safe_text(found.key, limit=200)
        for c in range(len(found.norms)):
            start = (found.layer, key, c)
            for name, value, null in _numbers(found, c):
                writer.writerow((*start, "", name, f"{value:.8g}", null))
            for name, by_head in (("head norm", found.head_norms), ("written", found.activity)):
                if by_head is not None:
                    for h, value in enumerate(by_head[c]):
                        shown = "" if np.isnan(value) else f"{value:.8g}"
                        writer.writerow((*start, h, name, shown, ""))
    return out.getvalue()


def _numbers(found: MapView, c: int) -> Iterator[tuple[str, float, str]]:
    """What a component has one number of: its name, the number, and what chance gives."""
    yield "norm", float(found.norms[c]), ""
    if found.density is not None and found.signed is not None:
        yield "mean importance", float(found.importance[c]), ""
        yield "density", float(found.density[c]), ""
        yield "mean activation", float(found.signed[c]), ""
    if found.spread is not None and found.head_norms is not None and found.n_heads > 1:
        yield "spread", float(found.spread[c]), f"{math.log(found.n_heads):.8g}"
        largest = float(shares(found.head_norms[c]).max())
        yield "largest share", largest, f"{found.chance_share:.8g}"


def pair_rows(view: LayerView) -> Iterator[tuple[Any, ...]]:
    """A line per pair of a query and a key component, the largest peak first."""
    if view.qk is not None:
        for each in _leading(view.qk):
            yield (view.layer, *(each[name] for name in PAIR_COLUMNS[1:]))
