"""The numbers of components as rows of strings, the same for the page and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles.report.components.views import LayerView, MapView
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]

_MOST = 20
_MOST_TOKENS = 4


def display(doc: Doc) -> str:
    """The name of what was decomposed."""
    return safe_text(str(doc["display"]), limit=60)


def layer_grid(doc: Doc) -> Grid:
    """A row per layer: components that count, those in one head, the strongest pair."""
    kinds = [k for k in ("q", "k", "v", "o") if _has(doc, k)]
    with_pairs = any(layer["pairs"] for layer in doc["layers"])
    head = ["layer", "n", "alive", *(f"{kind} in 1" for kind in kinds)]
    head += ["pair", "W", "at", "head"] if with_pairs else []
    body = []
    for layer in doc["layers"]:
        maps = {m["kind"]: m for m in layer["maps"]}
        row = [str(layer["layer"]), f"{layer['n_components']:,}", f"{layer['n_alive']:,}"]
        row += [_in_one(maps.get(kind)) for kind in kinds]
        if with_pairs:
            row += _pair(layer)
        body.append(row)
    return Grid("Layers", head, body)


def legend(doc: Doc) -> str:
    """What the columns of the table of layers are."""
    alive = safe_text(str(doc["counts"]), limit=80)
    told = f"n: components · alive: {alive}"
    if any(_has(doc, kind) for kind in ("q", "k", "v", "o")):
        told += (
            " · in 1: of the leading ones those with a larger share in one head than 95 % of "
            "random directions"
        )
    if any(_grouped(layer["maps"]) for layer in doc["layers"]):
        told += " · heads of k and v: key-value heads"
    if any(layer["pairs"] for layer in doc["layers"]):
        told += (
            " · W: largest contribution of a pair to scores, summed over heads (*: beyond the "
            "largest of as many random key components); at: distance"
        )
    return told


def map_grid(found: MapView, doc: Doc, view: LayerView) -> Grid:
    """A row per leading component of a map."""
    name, measure = safe_text(found.name, limit=40), safe_text(str(doc["measure"]), limit=40)
    head = ["component", measure]
    has_heads = found.head_norms is not None and found.n_heads > 1
    is_ranked = found.density is not None
    head += ["fires"] * is_ranked + ["norm"] * is_ranked
    head += ["head", "share", "spread"] if has_heads else []
    head += ["written while firing, by head"] * (found.activity is not None)
    tokens = {s.component: s.tokens for s in view.stories} if found.kind == "q" else {}
    head += ["tokens"] if any(t.reads for t in tokens.values()) else []
    body = []
    for c in (int(c) for c in found.top(_MOST)):
        row = [f"{name}:{c}", format_number(float(found.importance[c]))]
        if found.density is not None:
            row += [f"{found.density[c]:.2%}", format_number(float(found.norms[c]))]
        row += _heads(found, c) if has_heads else []
        row += [_written(found, c)] if found.activity is not None else []
        if "tokens" in head:
            reads = tokens[c].reads[:_MOST_TOKENS] if c in tokens else ()
            row.append(" ".join(safe_text(text, limit=12) for text, _ in reads))
        body.append(row)
    count = int(found.alive.sum())
    shown = f"the first {len(body)} of {count}" if count > len(body) else f"{count}"
    return Grid(f"{name}: {shown} alive, of {len(found.norms)}", head, body)


def _heads(found: MapView, c: int) -> list[str]:
    assert found.head_norms is not None
    assert found.spread is not None
    share = found.head_norms[c] / max(float(found.head_norms[c].sum()), 1e-30)
    best = int(share.argmax())
    mark = "*" if share[best] > found.chance_share else ""
    return [f"H{best}", f"{mark}{share[best]:.0%}", format_number(float(found.spread[c]), ".2f")]


def _written(found: MapView, c: int) -> str:
    """The two heads that a component writes most to while it fires."""
    assert found.activity is not None
    values = found.activity[c]
    if not np.isfinite(values).any():
        return "–"
    best = np.argsort(-np.nan_to_num(values), kind="stable")[:2]
    return ", ".join(f"H{h} {values[h]:.2f}" for h in best)


def _has(doc: Doc, kind: str) -> bool:
    return any(
        m["kind"] == kind and m["chance_share"] is not None
        for layer in doc["layers"]
        for m in layer["maps"]
    )


def _grouped(maps: Sequence[Doc]) -> bool:
    """Whether several query heads share a key-value head."""
    return len({m["n_heads"] for m in maps if m["n_heads"]}) > 1


def _in_one(found: Doc | None) -> str:
    if found is None or found["chance_share"] is None:
        return "–"
    return f"{found['in_one_head']}/{found['shown']}"


def _pair(layer: Doc) -> list[str]:
    if not layer["pairs"]:
        return ["–"] * 4
    first = layer["pairs"][0]
    peak = float(first["peak"])
    mark = "*" * (abs(peak) > layer["chance"]["largest"])
    name = f"q:{first['q']} k:{first['k']}"
    return [name, f"{peak:+.2f}{mark}", str(first["offset"]), f"H{first['head']}"]
