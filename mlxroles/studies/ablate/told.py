"""What an ablation run found, in one sentence."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.heads import head_name
from mlxroles.text import safe_text

ENOUGH = 0.9
"""The share of the repetition gain that counts as removed."""

Row = Mapping[str, Any]


def sentence(doc: Mapping[str, Any]) -> str:
    """The finding of each model, or that nothing was measured."""
    parts = []
    for model in doc["models"]:
        rows = [row for row in doc["rows"] if row["model"] == model]
        if rows:
            found = _model(doc, rows)
            several = len(doc["models"]) > 1
            parts.append(f"{model}: {found}" if several else found[:1].upper() + found[1:])
    return " ".join(parts) or "Nothing was measured."


def _model(doc: Mapping[str, Any], rows: Sequence[Row]) -> str:
    is_circuit = any(row["key"].startswith("pairs-") for row in rows)
    if is_circuit and doc["headline"] == "gain":
        return _circuit(doc, rows)
    joint = [row for row in rows if row.get("beyond_sum")]
    if joint:
        return _joint(doc, joint[-1])
    best = max(rows, key=lambda row: _size(row["effect"]["mean"]))
    first = f"of {len(rows)} ablations the largest effect: " if len(rows) > 1 else ""
    return f"{first}{_did(doc, best)}{_chance(doc, best)}."


def _circuit(doc: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How many pairs have to go before the gain is removed, and what random sets do."""
    pairs = [row for row in rows if row["key"].startswith("pairs-")]
    enough = next((row for row in pairs if row["removed"]["mean"] >= ENOUGH), None)
    if enough is None:
        most = max(pairs, key=lambda row: row["removed"]["mean"])
        return (
            f"up to {len(pairs)} pairs do not remove {100 * ENOUGH:.0f} % of the repetition gain; "
            f"{_did(doc, most)}{_chance(doc, most)}."
        )
    told = f"{_did(doc, enough)}{_chance(doc, enough)}"
    one = pairs[0]
    if one is not enough:
        told += f"; the first pair ({named(one)}) alone removes {_share(one['removed'])}"
    return f"{told}."


def _joint(doc: Mapping[str, Any], row: Row) -> str:
    beyond, ci = row["beyond_sum"]["mean"], row["beyond_sum"]["ci"]
    way = ""
    if not math.isnan(ci[0]):
        away = ci[0] > 0 or ci[1] < 0
        way = ", so not additive" if away else ", so additive within the interval"
    total = _signed(row["sum"]["mean"])
    whose = "components'" if row["kind"] == "components" else "heads'"
    more = f"{_signed(beyond)} nats{_bounds(ci)} beyond the sum of its {whose} own, {total}"
    return f"{_did(doc, row)}: {more}{way}{_chance(doc, row)}."


def named(row: Row) -> str:
    """The heads of a row in words, or its name."""
    if row["heads"] and len(row["heads"]) <= 10:
        return ", ".join(head_name(*at) for at in row["heads"])
    return safe_text(row["ablation"], limit=80)


def verb(row: Row) -> str:
    """What was done: ``ablating``, ``scaling by 0.5``, ``projecting out``."""
    if row["kind"] == "direction":
        return "projecting out"
    return "ablating" if row["factor"] is None else f"scaling by {row['factor']:g}"


def _did(doc: Mapping[str, Any], row: Row) -> str:
    what = named(row) if row["kind"] == "heads" else safe_text(row["ablation"], limit=80)
    if len(row["heads"]) > 1 and row["kind"] == "heads":
        what = f"{len(row['heads'])} heads ({what})"
    effect = row["effect"]
    if doc["headline"] == "gain":
        before = doc["baseline"][row["model"]]["gain"]["mean"]
        after = row["gain"]["mean"]
        return (
            f"{verb(row)} {what} removes {_share(row['removed'])} of the repetition gain "
            f"({before:.2f} to {after:.2f} nats)"
        )
    if doc["headline"] == "log_odds":
        shown = safe_text(str(doc["measured"]), limit=40)
        before = doc["baseline"][row["model"]]["p_first_token"]["mean"]
        after = row["p_first_token"]["mean"]
        return (
            f"{verb(row)} {what} moves the log-odds of {shown} by "
            f"{_signed(effect['mean'])} nats{_bounds(effect['ci'])} (P {before:.3g} to {after:.3g})"
        )
    return f"{verb(row)} {what} moves the next tokens by KL {effect['mean']:.3g} nats" + _bounds(
        effect["ci"]
    )


def _chance(doc: Mapping[str, Any], row: Row) -> str:
    """What random sets do, or other heads of the layer."""
    null = row.get("null")
    if not null or not null["n"]:
        return ""
    what = "random sets of as many heads of the same layers"
    if row["kind"] == "direction":
        what = "random directions"
    elif doc["is_each"]:
        what = "other heads of its layer"
    elif row["kind"] == "values":
        what = "other sets of as many key-value heads of the same layers"
    elif row["kind"] == "components":
        several = len(row["components"]) > 1
        what = "random sets of as many" if several else "random"
        what += " other components of the same map" + "s" * several
    elif len(row["heads"]) == 1:
        what = "other heads of the same layer"
    low, high = null["range"]
    if doc["headline"] == "gain":
        whole = doc["baseline"][row["model"]]["gain"]["mean"]
        middle = 100 * statistics.median(null["values"]) / whole
        span = f"remove {middle:.0f} % ({100 * low / whole:.0f} to {100 * high / whole:.0f})"
    else:
        way = " either way" if doc["headline"] == "log_odds" else ""
        middle = statistics.median([abs(value) for value in null["values"]])
        span = f"move it by {middle:.2g}{way} ({low:.2g} to {high:.2g})"
    return f"; {null['n']} {what} {span}, p = {null['p']:.2g}"


def _share(removed: Mapping[str, Any]) -> str:
    low, high = removed["ci"]
    shown = f"{100 * removed['mean']:.0f} %"
    return shown if math.isnan(low) else f"{shown} [{100 * low:.0f}, {100 * high:.0f}]"


def _bounds(ci: Sequence[float]) -> str:
    return "" if math.isnan(ci[0]) else f" [{ci[0]:.3g}, {ci[1]:.3g}]"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _size(value: float) -> float:
    return -1.0 if math.isnan(value) else abs(value)
