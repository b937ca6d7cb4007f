"""The study's comparison of base and instruct: 25 columns, one row per layer.

RFC and RSI are taken per head from entropies pooled over all (prompt, query) pairs of a category,
then averaged over heads without weights. So a head whose reference entropy is almost zero decides
its layer, long prompts weigh more, and the intervals are over heads as if these were a sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles.compat.study import (
    CONFOUNDER,
    EVERYTHING,
    FOCUS,
    REFERENCE,
    Side,
    sd,
    study_pair,
    t_half_width,
    t_quantile,
)
from mlxroles.roles.table import Entropies, Numbers
from mlxroles.roles.tables_csv import COMPARISON_COLUMNS, METRICS, SIDES, Row
from mlxroles.stats import nan_mean

HEADS = 28
"""The study looked at heads 0 to 27 of every model, also where there are 32."""

_FLOAT32_DIGITS = 8


@dataclass(frozen=True)
class _Level:
    """One metric of one model in one layer."""

    mean: float
    sd: float
    n: int

    def bounds(self) -> tuple[float, float]:
        """The 95 % t interval over heads."""
        half = t_half_width(self.sd, self.n)
        return self.mean - half, self.mean + half


def compare_rows(
    base: Side,
    instruct: Side,
    *,
    n_heads: int | None = HEADS,
    focus: str = FOCUS,
    reference: str = REFERENCE,
    confounder: str | None = CONFOUNDER,
) -> list[Row]:
    """The study's ``detailed_comparison.csv``: its 25 columns in its order, a dict per layer.

    Args:
        base: the base model; patterns give the study's numbers to the digit, a stored run those
            of its exact entropies, which lack the study's 1e-8.
        instruct: the instruct model, likewise.
        n_heads: heads that count, from 0; None for all. Fewer where a model has fewer, which the
            columns ``n_heads_*`` say.
        focus: the category that RFC and RSI are about.
        reference: the category that both are relative to.
        confounder: the second category of RSI; None leaves its columns NaN.

    Raises:
        SpecError: a category has no prompts, or the models differ in their layers.
    """
    if n_heads is not None and n_heads < 1:
        raise SpecError(f"n_heads is {n_heads}, expected is 1 or more")
    tables = study_pair(base, instruct)
    names = (focus, reference, confounder)
    levels = [_levels(table, n_heads, names) for table in tables]
    rows = []
    for place, layer in enumerate(tables[0].layers):
        here = {side: levels[number][place] for number, side in enumerate(SIDES)}
        rows.append(_row(layer, here))
    return rows


def rows_from_comparison(base: Sequence[Row], instruct: Sequence[Row] | None = None) -> list[Row]:
    """The 25 columns once more, from the means, spreads and head counts of tables alone.

    The study wrote RSI in single precision. A column whose values are all the shortest text of
    such numbers is taken for what it was, so that differences and intervals agree to the last
    digits; the interval of an RSI mean then misses the published one by up to 2e-8 where the
    study's own spread was rounded twice.

    Args:
        base: rows that the base columns are taken from.
        instruct: rows that the instruct columns are taken from, if they are others.

    Raises:
        SpecError: the tables differ in their layers.
    """
    instruct = base if instruct is None else instruct
    layers = [row["layer"] for row in base]
    if layers != [row["layer"] for row in instruct]:
        raise SpecError("the tables of base and instruct do not have the same layers")
    sources = {"base": base, "instruct": instruct}
    single = {
        metric: all(
            _is_single([row[f"{metric}_{what}_{side}"] for row in sources[side]])
            for what in ("mean", "std")
            for side in SIDES
        )
        for metric in METRICS
    }
    rows = []
    for place, layer in enumerate(layers):
        levels = {
            side: {
                metric: _stored(sources[side][place], metric, side, single[metric])
                for metric in METRICS
            }
            for side in SIDES
        }
        row = _row(layer, levels, single)
        kept = {
            f"{metric}_{what}_{side}": sources[side][place][f"{metric}_{what}_{side}"]
            for metric in METRICS
            for what in ("mean", "std")
            for side in SIDES
        }
        rows.append(row | kept)
    return rows


def pooled_means(table: Entropies, category: str) -> Numbers:
    """The study's E3 [layer, head]: mean over all (prompt, query) pairs of a category, nats."""
    chosen = table.chosen(table.members(category).tolist())
    values = np.moveaxis(chosen.queries(EVERYTHING), -1, 1)
    return nan_mean(values.reshape(-1, *values.shape[2:]))


def _levels(
    table: Entropies, n_heads: int | None, names: tuple[str, str, str | None]
) -> list[dict[str, _Level]]:
    """RFC and RSI of each layer, from the first heads."""
    focus, reference, confounder = (
        None if name is None else pooled_means(table, name)[:, :n_heads] for name in names
    )
    assert focus is not None
    assert reference is not None
    if confounder is None:
        confounder = np.full_like(focus, np.nan)
    found = np.where(np.isnan(reference), np.nan, reference > 0)
    below = np.where(found == 1, reference, 1.0)
    values = {
        "rfc": np.where(found == 0, 0.0, 1 - focus / below),
        "rsi": np.where(found == 0, 0.0, (confounder - focus) / below),
    }
    has_head = ~np.isnan(focus) & ~np.isnan(reference)
    return [
        {metric: _level(values[metric][place][has_head[place]]) for metric in METRICS}
        for place in range(len(table.layers))
    ]


def _level(heads: Numbers) -> _Level:
    mean = float(heads.mean()) if heads.size else math.nan
    return _Level(mean, sd(heads), heads.size)


def _row(
    layer: int,
    levels: Mapping[str, Mapping[str, _Level]],
    single: Mapping[str, bool] | None = None,
) -> Row:
    """One row; with ``single`` a metric's difference is rounded to single precision."""
    row: Row = {"layer": layer}
    for side in SIDES:
        for metric in METRICS:
            level = levels[side][metric]
            low, high = level.bounds()
            row |= {
                f"{metric}_mean_{side}": level.mean,
                f"{metric}_std_{side}": level.sd,
                f"{metric}_ci_low_{side}": low,
                f"{metric}_ci_high_{side}": high,
                f"n_heads_{side}": level.n,
            }
    for metric in METRICS:
        base, instruct = (levels[side][metric] for side in SIDES)
        diff = instruct.mean - base.mean
        shown = diff
        if single and single[metric]:
            diff, shown = float(np.float32(diff)), float(str(np.float32(diff)))
        half = _difference_half_width(base, instruct)
        row |= {
            f"{metric}_diff": shown,
            f"{metric}_diff_ci_low": diff - half,
            f"{metric}_diff_ci_high": diff + half,
        }
    return {column: row[column] for column in COMPARISON_COLUMNS}


def _difference_half_width(base: _Level, instruct: _Level) -> float:
    """Half the study's interval of a difference: both models' heads as independent samples."""
    df = min(base.n, instruct.n) - 1
    if df < 1:
        return math.nan
    return t_quantile(df) * math.sqrt(base.sd**2 / base.n + instruct.sd**2 / instruct.n)


def _stored(row: Row, metric: str, side: str, single: bool) -> _Level:
    mean, spread = (float(row[f"{metric}_{what}_{side}"]) for what in ("mean", "std"))
    if single:
        mean, spread = float(np.float32(mean)), float(np.float32(spread))
    return _Level(mean, spread, int(row[f"n_heads_{side}"]))


def _is_single(values: Sequence[float]) -> bool:
    """Whether all values are the shortest texts of float32 numbers, and none a rounded one."""
    texts = [f"{value!r}" for value in values if math.isfinite(value)]
    digits = [len(text.split("e")[0].lstrip("-0.").replace(".", "")) for text in texts]
    return max(digits, default=0) >= _FLOAT32_DIGITS and all(
        float(str(np.float32(text))) == float(text) for text in texts
    )
