"""Reads the summary document of a patch run, for tables, figures and reports alike.

The document (schema ``mlxroles/patch/1``) is plain JSON: a number that does not exist is
``null``, and with several prompts ``name`` has a sibling ``name_ci``. Here such numbers become
NaN, layers become integers, and the finding that a report states is worked out once. Not here:
statistics; the intervals are those of the document.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

DIRECTIONS = ("instruct_to_base", "base_to_instruct")
"""Both ways of patching, in the order in which they are shown."""

MARKED_EFFECT = 0.01
"""An effect on the probability larger than this is marked ``***``, as in the original study."""

HALF = 0.5
"""The share of the gap between the baselines that counts as recovered."""

SMALL_GAP = 1.0
"""Baselines closer than this (log-odds, nats) leave nothing that could be recovered."""

SMALL_LEVEL = 0.01
"""Where neither unpatched model gives the string this probability there is no decision for it."""

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Sites that hold all that came before, so that the difference of two layers says something."""

Values = Mapping[str, Any]
_Key = TypeVar("_Key")


def donor(direction: str) -> str:
    """The model whose activations are put in: ``instruct`` or ``base``."""
    return direction.split("_to_")[0]


def recipient(direction: str) -> str:
    """The model that runs on with them: ``instruct`` or ``base``."""
    return direction.split("_to_")[-1]


def arrow(direction: str) -> str:
    """The direction for a heading: ``instruct → base``."""
    return f"{donor(direction)} → {recipient(direction)}"


def accumulates(doc: Values) -> bool:
    """Whether what a layer adds is the difference to the one before: in the stream alone."""
    return doc.get("site") in STREAM


def place(site: object, positions: object, heads: object = None) -> str:
    """Where a run patches, in words: ``resid_post at all positions``, ``z, one head at a time``."""
    part = f"{site}"
    if heads == "each":
        return f"{part}, one head at a time"
    if heads is not None:
        part += f", {_listed('head', heads)}"
    if positions == "each":
        return f"{part}, one position at a time"
    if positions == "all" and heads is not None:
        return part
    if positions == "last":
        return f"{part} at the last position"
    return f"{part} at {'all positions' if positions == 'all' else _listed('position', positions)}"


def _listed(noun: str, value: object) -> str:
    """``head 5`` or ``heads 5-7``."""
    several = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
    shown = ", ".join(several)
    return f"{noun} {shown}" if shown.isdigit() else f"{noun}s {shown}"


def number(values: Values | None, name: str) -> float:
    """The value as a float; NaN where it is absent, null or not a number."""
    value = (values or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def interval(values: Values | None, name: str) -> tuple[float, float] | None:
    """The 95 % interval of the value, where the document has one."""
    bounds = (values or {}).get(f"{name}_ci")
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None
    low, high = (number({"x": bound}, "x") for bound in bounds)
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def directions(doc: Values) -> list[str]:
    """The directions that the document holds at least one layer of."""
    return [direction for direction in DIRECTIONS if doc.get(direction)]


def layers(doc: Values) -> list[int]:
    """The tested layers in ascending order."""
    listed = doc.get("layers_tested")
    if listed:
        return sorted(int(layer) for layer in listed)
    return sorted({int(layer) for direction in DIRECTIONS for layer in doc.get(direction) or {}})


def cells(doc: Values, direction: str, control: str | None = None) -> dict[int, Values]:
    """The values per layer of a direction, or of one of its controls."""
    source = doc if control is None else (doc.get("controls") or {}).get(control) or {}
    found = source.get(direction) or {}
    return {int(layer): found[layer] or {} for layer in sorted(found, key=int)}


def controls(doc: Values) -> list[str]:
    """The names of the controls that were run."""
    return list(doc.get("controls") or {})


def baseline(doc: Values, model: str) -> Values:
    """The values of the unpatched model."""
    return (doc.get("baselines") or {}).get(model) or {}


def part_axis(doc: Values) -> str | None:
    """``by_head`` or ``by_position`` where one head or position at a time was patched."""
    for direction in directions(doc):
        for axis in ("by_head", "by_position"):
            if any(True for _ in parts(doc, direction, axis)):
                return axis
    return None


def parts(
    doc: Values, direction: str, axis: str, control: str | None = None
) -> Iterator[tuple[int, int, Values]]:
    """Yields (layer, head or position, values) of ``by_head`` or ``by_position``."""
    for layer, values in cells(doc, direction, control).items():
        inner = values.get(axis) or {}
        for index in sorted(inner, key=int):
            yield layer, int(index), inner[index] or {}


def prompt_count(doc: Values) -> int:
    """The number of prompts, at least one."""
    return max(len(doc.get("prompts") or []), 1)


@dataclass(frozen=True)
class Finding:
    """What one direction of a patch run shows."""

    direction: str
    """``instruct_to_base`` or ``base_to_instruct``."""
    gap: float
    """Log-odds of the donor's baseline less those of the recipient's, in nats."""
    level: float
    """The larger of the baselines' probabilities of the string's first token."""
    peak_layer: int | None
    """The layer with the largest absolute effect on the probability; the first on ties."""
    best_layer: int | None
    """The layer with the largest recovery; the first on ties."""
    half_layer: int | None
    """The first tested layer with a recovery of at least one half."""
    strongest_control: tuple[str, int, float] | None
    """Name, layer and recovery of the control that recovers most at or before the layer above."""
    matched_by: tuple[str, float] | None
    """A control that recovers as much as the patch at the deciding layer, and how much."""
    unmeasured: tuple[int, ...]
    """Tested layers whose recovery has no number: failed, or not reached before an interrupt."""

    @property
    def nothing_to_recover(self) -> bool:
        """Whether the baselines are too near each other, or too small, for a recovery."""
        return not (abs(self.gap) >= SMALL_GAP and self.level >= SMALL_LEVEL)

    @property
    def deciding_layer(self) -> int | None:
        """The first layer that recovers half, or else the one that recovers most."""
        return self.best_layer if self.half_layer is None else self.half_layer


def finding(doc: Values, direction: str) -> Finding:
    """The finding of a direction: peak, first half recovery, and what the controls say."""
    found = cells(doc, direction)
    recovery = {layer: number(values, "recovery") for layer, values in found.items()}
    effect = {layer: abs(number(values, "effect")) for layer, values in found.items()}
    half = next((layer for layer, share in recovery.items() if share >= HALF), None)
    best = _largest(recovery)
    deciding = best if half is None else half
    at_layer = {
        name: number(cells(doc, direction, name).get(deciding), "recovery")
        for name in controls(doc)
        if deciding is not None
    }
    matched = _largest(at_layer)
    is_matched = (
        matched is not None
        and deciding is not None
        and recovery[deciding] > 0
        and at_layer[matched] >= 0.9 * recovery[deciding]
    )
    return Finding(
        direction,
        gap=number(baseline(doc, donor(direction)), "log_odds")
        - number(baseline(doc, recipient(direction)), "log_odds"),
        level=max(
            (number(baseline(doc, model), "p_first_token") for model in ("base", "instruct")),
            key=lambda level: -1.0 if math.isnan(level) else level,
        ),
        peak_layer=_largest(effect),
        best_layer=best,
        half_layer=half,
        strongest_control=_strongest_control(doc, direction, deciding),
        matched_by=(matched, at_layer[matched]) if matched is not None and is_matched else None,
        unmeasured=tuple(
            layer for layer in layers(doc) if math.isnan(recovery.get(layer, math.nan))
        ),
    )


def _largest(values: Mapping[_Key, float]) -> _Key | None:
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    return max(known, key=known.__getitem__) if known else None


def _strongest_control(
    doc: Values, direction: str, until: int | None
) -> tuple[str, int, float] | None:
    shares = {
        (name, layer): number(values, "recovery")
        for name in controls(doc)
        for layer, values in cells(doc, direction, name).items()
        if until is not None and layer <= until
    }
    most = _largest(shares)
    return None if most is None else (*most, shares[most])
