"""The numbers behind the study's nine figures, one dict per layer.

RFC and RSI are ratios of means over prompts here, not the mean of heads' ratios as in the
comparison; the two definitions disagree. Their intervals pair prompts by their place in the list.
"""

import math

import numpy as np

from mlxroles.roles.compat.study import (
    CONFOUNDER,
    EVERYTHING,
    FOCUS,
    REFERENCE,
    Side,
    head_means,
    sd,
    study_table,
    t_half_width,
)
from mlxroles.roles.patterns import NEAR, Patterns
from mlxroles.roles.table import Entropies, Numbers
from mlxroles.roles.tables_csv import Row
from mlxroles.stats import nan_mean

TOP_HEADS = 3


def layer_form(
    side: Side,
    *,
    focus: str = FOCUS,
    reference: str = REFERENCE,
    confounder: str | None = CONFOUNDER,
) -> list[Row]:
    """What the study's figures show of one model, a dict per layer.

    - ``mean``, ``ci``: per category the mean of E2 over prompts, with its t interval (figure 1);
    - ``heatmap_self_minus_neutral_min_max``: extremes over heads of the difference of mean
      weights (figure 2), which is ``mean_inverse_T_diff`` and says nothing but how long the
      prompts are, since rows sum to 1;
    - ``first3``, ``last3``: per category the mean weight on the first and last three keys of a
      prompt, query 0 left out (figures 3 and 7; mean and not sum, so at most 1/3);
    - ``cohens_d_self_neutral_ddof0``: per head (figure 4); 0 where nothing varies;
    - ``delta_conf_minus_self``, ``delta_neutral_minus_self`` (figures 5 and 8);
    - ``top3_heads_abs_self_minus_conf``: [head, difference], the largest last (figure 6);
    - ``rfc``, ``rsi``, ``rfc_ci``, ``rsi_ci`` (figure 9);
    - ``rfc_length_normalised``: RFC of entropies divided by ln(q + 1), query 0 left out.

    Args:
        side: patterns give the study's numbers to the digit, a stored run those of its exact
            entropies.
        focus: the category that the study calls self.
        reference: the category that it calls neutral.
        confounder: the category that it calls confounder; None leaves what needs it NaN.

    Raises:
        SpecError: a category has no prompts.
    """
    table = study_table(side)
    asked = (focus, reference) if confounder is None else (focus, confounder, reference)
    members = {name: table.members(name) for name in (*asked, *table.categories)}
    per_head = head_means(table)
    per_layer = table.per_layer(EVERYTHING)
    normalised = table.per_layer(EVERYTHING, normalised=True)
    first, last = _first_keys(table), _last_keys(table)
    spread = mean_weights(side)
    inverse = 1 / table.length
    rows = []
    for place, layer in enumerate(table.layers):
        level = {name: per_layer[members[name], place] for name in table.categories}
        heads = {name: per_head[members[name], place] for name in members}
        other = (np.full(1, np.nan), np.full((1, table.n_heads), np.nan))
        if confounder is not None:
            other = level[confounder], heads[confounder]
        even = normalised[:, place]
        focus_spread, reference_spread = (
            nan_mean(spread[members[name], place]) for name in (focus, reference)
        )
        rows.append(
            {
                "layer": layer,
                "mean": {name: _mean(values) for name, values in level.items()},
                "ci": {name: _interval(_mean(v), v) for name, v in level.items()},
                **_contrasts(level[focus], level[reference], other[0]),
                "cohens_d_self_neutral_ddof0": _cohens_d(heads[focus], heads[reference]),
                "top3_heads_abs_self_minus_conf": _top_heads(heads[focus], other[1]),
                "first3": {n: _mean(first[members[n], place]) for n in table.categories},
                "last3": {n: _mean(last[members[n], place]) for n in table.categories},
                "heatmap_self_minus_neutral_min_max": _extremes(focus_spread - reference_spread),
                "mean_inverse_T_diff": _mean(inverse[members[focus]])
                - _mean(inverse[members[reference]]),
                "rfc_length_normalised": _ratio(
                    even[members[reference]], even[members[focus]], even[members[reference]]
                ),
            }
        )
    return rows


def mean_weights(side: Side) -> Numbers:
    """Mean weight of each head over the queries and keys of a prompt [prompt, layer, head].

    Rows sum to 1, so this is 1 / T of the prompt in every head but for rounding. A stored run has
    no patterns and gives 1 / T itself.
    """
    if isinstance(side, Patterns):
        prompts = range(len(side.category))
        return np.stack([np.abs(side.of_prompt(i)).mean(axis=(-2, -1)) for i in prompts])
    known = ~np.isnan(side.entropy[..., 0])
    return np.where(known, 1 / side.length[:, None, None], np.nan)


def _contrasts(focus: Numbers, reference: Numbers, confounder: Numbers) -> Row:
    """The differences and indices of one layer; pairs end with the shortest list."""
    rfc, rsi = _ratio(reference, focus, reference), _ratio(confounder, focus, reference)
    below = np.where(reference > 0, reference, np.nan)
    two = min(len(focus), len(reference))
    three = min(two, len(confounder))
    pairs = {
        "rfc": 1 - focus[:two] / below[:two],
        "rsi": (confounder[:three] - focus[:three]) / below[:three],
    }
    df = len(focus) - 1
    return {
        "delta_conf_minus_self": _mean(confounder) - _mean(focus),
        "delta_neutral_minus_self": _mean(reference) - _mean(focus),
        "rfc": rfc,
        "rsi": rsi,
        "rfc_ci": _interval(rfc, pairs["rfc"], df),
        "rsi_ci": _interval(rsi, pairs["rsi"], df),
    }


def _ratio(above: Numbers, focus: Numbers, below: Numbers) -> float:
    """(mean of ``above`` - mean of ``focus``) / mean of ``below``; 0 where that is not positive."""
    scale = _mean(below)
    if math.isnan(scale):
        return math.nan
    return (_mean(above) - _mean(focus)) / scale if scale > 0 else 0.0


def _mean(values: Numbers) -> float:
    return float(nan_mean(values))


def _interval(centre: float, values: Numbers, df: int | None = None) -> list[float]:
    """The 95 % t interval of the mean of ``values``, put around ``centre``."""
    known = values[~np.isnan(values)]
    half = t_half_width(sd(known), known.size, df)
    return [centre - half, centre + half]


def _cohens_d(first: Numbers, second: Numbers) -> list[float]:
    """Difference of means over the root of the mean variance, ddof 0, per head."""
    difference = nan_mean(first) - nan_mean(second)
    scale = np.sqrt((np.var(first, axis=0) + np.var(second, axis=0)) / 2)
    varies = scale > 0
    found = np.where(varies, difference / np.where(varies, scale, 1), 0.0)
    return np.where(np.isnan(scale), np.nan, found).tolist()


def _top_heads(focus: Numbers, confounder: Numbers) -> list[list[float]]:
    difference = nan_mean(focus) - nan_mean(confounder)
    size = np.where(np.isnan(difference), -1.0, np.abs(difference))
    chosen = [int(head) for head in np.argsort(size)[-TOP_HEADS:] if size[head] >= 0]
    return [[head, float(difference[head])] for head in chosen]


def _extremes(values: Numbers) -> list[float]:
    known = values[~np.isnan(values)]
    return [float(known.min()), float(known.max())] if known.size else [math.nan, math.nan]


def _first_keys(table: Entropies) -> Numbers:
    """Mean weight on a prompt's first three keys over queries from 1 [prompt, layer]."""
    return _near_means(table, table.first_keys)


def _last_keys(table: Entropies) -> Numbers:
    """Mean weight on a prompt's last three keys over queries from 1 [prompt, layer].

    What a query sees of those keys are its own and the two before it, as far as they belong to
    the last three.
    """
    size = table.recent_keys.shape[3]
    key = np.arange(size)[:, None] - np.arange(NEAR)
    is_last = key >= table.length[:, None, None] - NEAR
    return _near_means(table, np.where(is_last[:, None, None], table.recent_keys, 0.0))


def _near_means(table: Entropies, near: Numbers) -> Numbers:
    """Sums over the last axis, averaged over heads and queries from 1, per key."""
    query = np.arange(near.shape[3])
    counts = (query >= 1) & (query < table.length[:, None])
    weights = np.where(counts[:, None, None], near.sum(axis=-1, dtype=np.float64), np.nan)
    keys = np.minimum(table.length, NEAR)[:, None]
    over_queries = nan_mean(np.moveaxis(weights, -1, 0))
    return nan_mean(np.moveaxis(over_queries, -1, 0)) / keys
