"""The numbers of a direct attribution as rows: the largest parts, and what each layer writes.

A document is what ``direct.Parts.document`` returns. Of several positions the mean is shown.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.report.attribution.rows import signed
from mlxroles.report.rows import Grid
from mlxroles.text import safe_text, show_token

Doc = Mapping[str, Any]
Numbers = NDArray[np.float64]

COLUMNS = ("heads", "MLP", "bias", "other")
"""What a layer writes, by kind."""
_COLUMN_OF = {"head": "heads", "attention": "heads", "mlp": "MLP", "bias": "bias"}
_TOKEN_LIMIT = 14
_ALONE = (
    " Much of a single logit may be shared by all tokens; a second string gives a difference, "
    "in which that cancels."
)


class Layers(NamedTuple):
    """What every layer writes."""

    layers: list[int]
    values: Numbers
    """[layer, column], columns as ``COLUMNS``; NaN where a layer has no such part."""
    before: float
    """What the embedding writes."""
    after: float
    """What belongs to no layer: the biases of the final norm and the head, and roundings."""


def means(doc: Doc) -> Numbers:
    """Values [part], the mean where there are several positions."""
    values = np.asarray(doc["values"], dtype=np.float64)
    return values if values.ndim == 1 else values.mean(axis=1)


def ranked(doc: Doc, count: int) -> list[int]:
    """Indices of the parts of largest absolute value, the largest first."""
    return [int(i) for i in np.argsort(-np.abs(means(doc)), kind="stable")[:count]]


def by_layer(doc: Doc) -> Layers:
    """Sums of the parts of every layer."""
    layers = sorted({i for i in doc["layers"] if i is not None})
    values = np.full((len(layers), len(COLUMNS)), np.nan)
    outside = {"embedding": 0.0}
    for value, kind, layer in zip(means(doc), doc["kinds"], doc["layers"], strict=True):
        if layer is None:
            outside[kind] = outside.get(kind, 0.0) + float(value)
        else:
            column = COLUMNS.index(_COLUMN_OF.get(kind, "other"))
            at = layers.index(layer), column
            values[at] = np.nan_to_num(values[at]) + value
    before = outside.pop("embedding")
    return Layers(layers, values, before, sum(outside.values()))


def head_grid(doc: Doc) -> tuple[Numbers, list[int]]:
    """What every head writes [layer, head], NaN where there is none, and the layers."""
    layers = sorted({i for i in doc["layers"] if i is not None})
    width = 1 + max((h for h in doc["heads"] if h is not None), default=-1)
    grid = np.full((len(layers), width), np.nan)
    for value, layer, head in zip(means(doc), doc["layers"], doc["heads"], strict=True):
        if head is not None:
            grid[layers.index(layer), head] = value
    return grid, layers


def subject(doc: Doc) -> str:
    """What is attributed: ``logit of yes less no, position 7``."""
    return f"{logit(doc)}, {where(doc)}"


def logit(doc: Doc) -> str:
    """Which logit or difference: ``logit of yes less no``."""
    sides = [_side(doc, name) for name in ("plus", "minus")]
    return f"logit of {sides[0]}" + (f" less {sides[1]}" if sides[1] else "")


def where(doc: Doc) -> str:
    """At which position, or how many of them."""
    positions = doc["positions"]
    several = f"the mean of {len(positions)} positions"
    return f"position {positions[0]}" if len(positions) == 1 else several


def _side(doc: Doc, name: str) -> str:
    texts = [safe_text(show_token(str(t)), limit=_TOKEN_LIMIT) for t in doc[name]]
    if not texts:
        return ""
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more (mean)"


def sums(doc: Doc) -> str:
    """What the parts add up to, and the model's own number where that is another one."""
    total, logit = float(np.mean(doc["total"])), float(np.mean(doc["logit"]))
    if doc.get("cap") is None:
        return f"sum {signed(total)}, the model's own {signed(logit)}"
    return f"sum {signed(total)} before the soft-cap of {doc['cap']:g}, after it {signed(logit)}"


def parts_grid(doc: Doc, *, count: int = 10, title: str = "") -> Grid:
    """The largest parts, and the sum of all others."""
    values, shown = means(doc), ranked(doc, count)
    rows = [[safe_text(str(doc["names"][i])), signed(float(values[i]))] for i in shown]
    rest = [i for i in range(len(values)) if i not in shown]
    if rest:
        rows.append([f"{len(rest)} others", signed(float(values[rest].sum()))])
    rows.append(["all parts", signed(float(values.sum()))])
    return Grid(title or "Largest parts", ["part", "writes"], rows)


def layers_grid(doc: Doc, *, title: str = "") -> Grid:
    """What every layer writes, and the sum so far; kinds that write nothing are left out."""
    found = by_layer(doc)
    used = [c for c in range(len(COLUMNS)) if np.isfinite(found.values[:, c]).any()]
    so_far = found.before + np.cumsum(np.nansum(found.values, axis=1))
    empty = [""] * len(used)
    rows = [["embedding", *empty, signed(found.before)]]
    for layer, values, total in zip(found.layers, found.values, so_far, strict=True):
        cells = ["" if np.isnan(values[c]) else signed(float(values[c])) for c in used]
        rows.append([f"L{layer}", *cells, signed(float(total))])
    if found.after:
        end = so_far[-1] if len(so_far) else found.before
        rows.append(["end", *empty, signed(float(end + found.after))])
    return Grid(title or "By layer", ["layer", *(COLUMNS[c] for c in used), "sum so far"], rows)


def how_to_read(doc: Doc) -> str:
    """What these numbers are, and what they are not."""
    alone = "" if doc["minus"] else _ALONE
    notes = "".join(f" {safe_text(str(n))}." for n in doc.get("notes") or ())
    return (
        f"{safe_text(str(doc['sentence']))} A part's number is what it writes to the logit itself, "
        f"not what would change without it: later layers read it too.{alone}{notes}"
    )
