"""Whether families agree on which layers instruction tuning changed, and what that rests on."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import SpecError, StoreError
from mlxroles.roles.influence import decides, without_one
from mlxroles.roles.metrics import METRICS
from mlxroles.roles.sampling import ALPHA
from mlxroles.stats import Correlation, correlation
from mlxroles.text import safe_text

_BOUNDS = (("_diff_ci_low", "_diff_ci_high"), ("_diff_low", "_diff_high"))
"""Columns of the study's comparison and of :func:`mlxroles.roles.compare.rows`."""

Numbers = NDArray[np.float64]

_INTERVAL = "95 %, Fisher's z with n_eff, the effective number of layers, in place of their number"
_IDENTICAL = "the same numbers twice: a correlation of these says nothing"
_TREND = 4
"""Layers that a quadratic trend and the correlation of what it leaves take up."""
_SAME = 1e-9
"""Profiles whose values differ by a smaller share are the same numbers."""


@dataclass(frozen=True)
class Profile:
    """One family's change per layer."""

    layers: tuple[int, ...]
    values: tuple[float, ...]
    ci: tuple[tuple[float, float], ...] | None = None
    """Interval of each value, where there is one."""


def from_rows(rows: Sequence[Mapping[str, Any]], metric: str) -> Profile:
    """The change of a metric from the rows of a comparison table.

    Args:
        rows: of :func:`mlxroles.roles.compare.rows`, or of the study's 25 columns; numbers may be
            text, and what is empty is NaN.
        metric: ``rfc`` or ``rsi``.

    Raises:
        StoreError: a column is missing, or holds something else than numbers.
    """
    if metric not in METRICS:
        raise SpecError(f"the metric '{safe_text(metric)}' is none of {', '.join(METRICS)}")
    if not rows:
        raise StoreError("a comparison table has no rows; expected one per layer")
    bounds = next(
        (pair for pair in _BOUNDS if all(f"{metric}{end}" in rows[0] for end in pair)), None
    )
    return Profile(
        tuple(_layer(row) for row in rows),
        tuple(_number(row, f"{metric}_diff") for row in rows),
        None
        if bounds is None
        else tuple(
            (_number(row, f"{metric}{bounds[0]}"), _number(row, f"{metric}{bounds[1]}"))
            for row in rows
        ),
    )


def correlate(named: Mapping[str, Profile], metric: str) -> dict[str, Any]:
    """What each family's layers add up to, and how every two families go together.

    Families with different layers are compared at equal relative depth, the deeper one
    interpolated linearly at the layers of the other. ``pearson_low`` and ``pearson_high`` are
    computed with ``n_eff`` layers, not with all of them as ``pearson_p`` is; the document says so
    in ``pearson_interval``.

    Args:
        named: the change per layer by family.
        metric: its name, for the document.

    Raises:
        SpecError: there is no family.
    """
    if not named:
        raise SpecError("no family to correlate; give two or more")
    return {
        "metric": metric,
        "pearson_interval": _INTERVAL,
        "families": {name: _family(one) for name, one in named.items()},
        "pairs": [
            _pair((one, named[one]), (other, named[other]))
            for one, other in itertools.combinations(named, 2)
        ],
    }


def _family(profile: Profile) -> dict[str, Any]:
    values = np.array(profile.values, dtype=np.float64)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else math.nan
    most = without_one(profile.layers, profile.values)
    return {
        "n_layers": len(values),
        "mean": mean,
        "median": float(np.median(values)) if len(values) else math.nan,
        "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        "mean_ci": _mean_ci(values),
        "without": None if most is None else {"layer": most.layer, "mean": most.without},
        "decided_by_one_layer": most is not None and most.decides,
    }


def _mean_ci(values: Numbers) -> list[float] | None:
    """The 95 % t interval of the mean of a sequence whose neighbours are alike.

    The number of layers counts as n (1 - r) / (1 + r), r the autocorrelation at lag 1 (Bartlett
    1935), between 2 and n. None for fewer than four layers or a constant.
    """
    from scipy.special import stdtrit

    n = len(values)
    moved = values - values.mean() if n else values
    if n < 4 or not np.abs(moved).max() > 1e-12 * np.abs(values).max():
        return None
    lag1 = float(moved[:-1] @ moved[1:] / (moved @ moved))
    n_eff = min(max(n * (1 - lag1) / (1 + lag1), 2.0), n)
    half = float(stdtrit(n_eff - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n_eff)
    mean = float(values.mean())
    return [mean - half, mean + half]


def _pair(first: tuple[str, Profile], second: tuple[str, Profile]) -> dict[str, Any]:
    (name, one), (other_name, other) = first, second
    how, layers, x, y = aligned(one, other)
    found = correlation(x, y)
    most, without = _most_influential(found, layers)
    numbers = asdict(found)
    del numbers["n"]
    numbers["leave_one_out"] = list(found.leave_one_out)
    return {
        "a": name,
        "b": other_name,
        "n_layers": found.n,
        "aligned": how,
        **numbers,
        "most_influential_layer": most,
        "r_without_it": without,
        "verdict": (
            _IDENTICAL
            if math.isfinite(found.pearson_r) and np.allclose(x, y, _SAME, 0, equal_nan=True)
            else _verdict(found, most, without)
        ),
    }


def aligned(one: Profile, other: Profile) -> tuple[str, tuple[int, ...], Numbers, Numbers]:
    """How two families share layers, those layers, and both families' values at them.

    Families with other layers meet at equal relative depth, at the layers of the one with fewer.
    """
    x, y = (np.array(profile.values, dtype=np.float64) for profile in (one, other))
    if one.layers == other.layers:
        return "layer", one.layers, x, y
    if len(one.layers) <= len(other.layers):
        return "relative depth", one.layers, x, _at(relative_depth(one.layers), other)
    return "relative depth", other.layers, _at(relative_depth(other.layers), one), y


def relative_depth(layers: Sequence[int]) -> Numbers:
    """How deep each layer lies, the last one at 1."""
    numbers = np.array(layers, dtype=np.float64)
    return numbers / numbers.max() if numbers.size and numbers.max() > 0 else numbers


def _at(depth: Numbers, profile: Profile) -> Numbers:
    """A profile's values at other depths, between the layers that have one."""
    values = np.array(profile.values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.full(depth.shape, np.nan)
    return np.interp(depth, relative_depth(profile.layers)[known], values[known])


def _most_influential(found: Correlation, layers: tuple[int, ...]) -> tuple[int | None, float]:
    """The layer without which r changes most, and r without it."""
    without = np.array(found.leave_one_out)
    change = np.abs(without - found.pearson_r)
    if not np.isfinite(change).any():
        return None, math.nan
    i = int(np.nanargmax(change))
    return layers[i], float(without[i])


def _verdict(found: Correlation, layer: int | None, without: float) -> str:
    """What the tests leave of a correlation, in one sentence."""
    if math.isnan(found.pearson_r):
        return "no correlation can be computed: too few layers, or no variation"
    if not found.pearson_p < ALPHA:
        return "no correlation shown"
    has_detrended = found.n > _TREND
    has_shifts = 1 / found.n < ALPHA
    doubts = []
    if layer is not None and decides(found.pearson_r, without):
        doubts.append(f"it rests on layer {layer}")
    if not found.n_eff_p < ALPHA:
        doubts.append(
            "neighbouring layers depend on each other, which leaves too few independent ones"
        )
    if has_detrended and not found.detrended_p < ALPHA:
        doubts.append("a trend over depth that both share explains it")
    if has_shifts and not found.shift_p < ALPHA:
        as_much = round(found.shift_p * found.n) - 1
        doubts.append(
            f"{as_much} of {found.n - 1} shifts of the profiles against each other correlate as "
            "much"
        )
    untested = []
    if not has_detrended:
        untested.append(f"a trend over depth takes up all of {found.n} layers: no test without it")
    if not has_shifts:
        smallest = f"{1 / found.n:.3f}".lstrip("0")
        untested.append(
            f"{found.n} layers allow only {found.n} shifts (smallest p {smallest}): no test by "
            "shifts"
        )
    if doubts:
        return f"nominally correlated, but {'; '.join([*doubts, *untested])}"
    beyond = ", beyond a trend over depth that both share" if has_detrended else ""
    return "; ".join([f"correlated layer by layer{beyond}", *untested])


def _layer(row: Mapping[str, Any]) -> int:
    number = _number(row, "layer")
    if math.isfinite(number) and number == int(number):
        return int(number)
    raise _odd(row, "layer", "a whole number")


def _number(row: Mapping[str, Any], column: str) -> float:
    if column not in row:
        raise StoreError(
            f"a comparison table lacks the column {column}; expected a table of `mlxroles compare` "
            "or the study's 25 columns"
        )
    text = row[column]
    try:
        return math.nan if text is None or text == "" else float(text)
    except (TypeError, ValueError):
        raise _odd(row, column, "a number") from None


def _odd(row: Mapping[str, Any], column: str, expected: str) -> StoreError:
    found = safe_text(str(row[column]), limit=40)
    return StoreError(
        f"a comparison table has '{found}' in the column {column}; expected {expected}"
    )
