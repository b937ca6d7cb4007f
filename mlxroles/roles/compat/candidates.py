"""The study's patching candidates: heads by a sum of three z scores, and a check of its tables.

Prompts of both categories are paired by their place in the list, which means nothing: the k-th
neutral prompt has nothing to do with the k-th self-referent one. The score rewards heads with
little entropy, where the ratios are least stable, and there is no null distribution.
"""

import math
from collections.abc import Sequence

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles.compat.study import FOCUS, REFERENCE, Side, head_means, sd, study_pair
from mlxroles.roles.table import Entropies, Numbers
from mlxroles.roles.tables_csv import CANDIDATE_COLUMNS, Row, layer_head
from mlxroles.stats import binomial_fold_mean

TOP_K = 10
METHOD = "robust_median_log_ratio_did"
"""How the study's summary names the method."""

_SHARE_OF_MEDIAN = 0.05
"""What is added to both parts of a ratio, as a share of the head's median entropy."""

_SCORES = ("magnitude", "consistency", "baseline")


def candidates(
    base: Side,
    instruct: Side,
    *,
    family: str,
    top_k: int = TOP_K,
    focus: str = FOCUS,
    reference: str = REFERENCE,
) -> tuple[list[Row], dict[str, object]]:
    """The study's ``patching_candidates_*.csv`` and its summary.

    The columns are named ``self`` and ``neutral`` whatever the categories are. Where these have
    unequally many prompts, the pairs end with the shorter list. A score that is the same for all
    heads is 0. Heads without a finite ratio are left out.

    Args:
        base: the base model; patterns give the study's numbers to the digit, a stored run those
            of its exact entropies.
        instruct: the instruct model on the same prompts.
        family: what the column ``model_family`` says.
        top_k: how many heads.
        focus: the category whose entropies are followed.
        reference: the category that they are compared with.

    Raises:
        SpecError: a category has no prompts, or the models differ in prompts, layers or heads.
    """
    if top_k < 1:
        raise SpecError(f"top_k is {top_k}, expected is 1 or more")
    tables = study_pair(base, instruct)
    _refuse_unequal(*tables)
    columns, sizes = _columns(tables, focus, reference)
    usable = np.isfinite(columns["did_log_ratio_median"])
    if not usable.any():
        raise SpecError(
            f"no head has a finite ratio of its entropies on {focus} and {reference} prompts"
        )
    columns |= _scores(columns, usable)
    # A stable sort: of equal scores the lower layer and head comes first.
    falling = np.where(usable, -columns["composite_score"], np.inf)
    by_score = np.argsort(falling, axis=None, kind="stable")
    rows = []
    for rank, flat in enumerate(by_score[: min(top_k, int(usable.sum()))], start=1):
        place, head = (int(i) for i in np.unravel_index(flat, usable.shape))
        layer = tables[0].layers[place]
        found: Row = {name: float(values[place, head]) for name, values in columns.items()}
        found |= sizes | {"layer": layer, "head": head, "model_family": family, "rank": rank}
        found["layer_head"] = layer_head(layer, head)
        rows.append({name: found[name] for name in CANDIDATE_COLUMNS})
    return rows, _summary(rows, family)


def check_candidates(rows: Sequence[Row], *, n_heads: int = 1024) -> dict[str, object]:
    """What a table of candidates says about the heads that it does not show.

    Each z score is a straight line of its own column, so intercept and slope are mean and
    standard deviation over all heads. How surprising the consistency of each candidate is, is a
    two-sided binomial test against a fair coin, times the number of heads.

    Args:
        rows: a table of the study, as read from its CSV.
        n_heads: heads that the candidates were chosen from.

    Returns:
        ``{"n", "composite_max_error", "population": {score: {"mean", "sd"}},
        "chance_consistency", "n_prompts", "n_heads", "heads": [{"layer", "head", "consistency",
        "p", "p_times_heads"}], "significant"}``.

    Raises:
        SpecError: there are no rows.
    """
    if not rows:
        raise SpecError("a table of candidates without rows: nothing to check")
    n_prompts = min(min(row["n_self"], row["n_neutral"]) for row in rows)
    tested = []
    for row in rows:
        p = fair_coin_p(row["did_consistency"], min(row["n_self"], row["n_neutral"]))
        tested.append(
            {
                "layer": row["layer"],
                "head": row["head"],
                "consistency": row["did_consistency"],
                "p": p,
                "p_times_heads": min(1.0, p * n_heads),
            }
        )
    sums = [sum(row[f"{score}_score"] for score in _SCORES) for row in rows]
    errors = [abs(total - row["composite_score"]) for total, row in zip(sums, rows, strict=True)]
    return {
        "n": len(rows),
        "composite_max_error": max(errors),
        "population": {
            "magnitude": _line(rows, "magnitude", [abs(r["did_log_ratio_median"]) for r in rows]),
            "consistency": _line(rows, "consistency", [r["did_consistency"] for r in rows]),
            "baseline": _line(rows, "baseline", [r["baseline_entropy"] for r in rows], sign=-1),
        },
        "chance_consistency": binomial_fold_mean(n_prompts),
        "n_prompts": n_prompts,
        "n_heads": n_heads,
        "heads": tested,
        "significant": sum(row["p_times_heads"] < 0.05 for row in tested),
    }


def fair_coin_p(consistency: float, n: int) -> float:
    """Two-sided p of at least this share of n equal signs."""
    k = round(consistency * n)
    tail = sum(math.comb(n, m) for m in range(max(k, n - k), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def _columns(
    tables: tuple[Entropies, Entropies], focus: str, reference: str
) -> tuple[dict[str, Numbers], dict[str, int]]:
    """Each numeric column before the scores [layer, head], and the numbers of prompts."""
    s_b, s_i = (head_means(table)[table.members(focus)] for table in tables)
    n_b, n_i = (head_means(table)[table.members(reference)] for table in tables)
    self_diff, neutral_diff = s_i - s_b, n_i - n_b
    pairs = min(len(s_b), len(n_b))
    did = self_diff[:pairs] - neutral_diff[:pairs]
    epsilon = _SHARE_OF_MEDIAN * np.median(s_b, axis=0)
    log_ratio = _log_ratio(s_i + epsilon, s_b + epsilon)
    did_log_ratio = log_ratio[:pairs] - _log_ratio(n_i + epsilon, n_b + epsilon)[:pairs]
    columns = {
        "self_base_median": np.median(s_b, axis=0),
        "self_instruct_median": np.median(s_i, axis=0),
        "neutral_base_median": np.median(n_b, axis=0),
        "neutral_instruct_median": np.median(n_i, axis=0),
        "self_diff_median": np.median(self_diff, axis=0),
        "neutral_diff_median": np.median(neutral_diff, axis=0),
        "did_median": np.median(did, axis=0),
        "log_ratio_median": np.median(log_ratio, axis=0),
        "did_log_ratio_median": np.median(did_log_ratio, axis=0),
        "self_consistency": _consistency(self_diff),
        "did_consistency": _consistency(did),
        "self_diff_iqr": _iqr(self_diff),
        "did_iqr": _iqr(did),
        "log_ratio_iqr": _iqr(log_ratio),
        "baseline_entropy": np.median(s_b, axis=0),
    }
    return columns, {"n_self": len(s_b), "n_neutral": len(n_b)}


def _log_ratio(above: Numbers, below: Numbers) -> Numbers:
    """ln(above / below); NaN where one of them is not positive."""
    fine = (above > 0) & (below > 0)
    return np.where(fine, np.log(np.where(fine, above, 1) / np.where(fine, below, 1)), np.nan)


def _consistency(differences: Numbers) -> Numbers:
    """The share of positive ones if that is more than half, else the share of negative ones."""
    positive = (differences > 0).mean(axis=0)
    return np.where(positive > 0.5, positive, (differences < 0).mean(axis=0))


def _iqr(values: Numbers) -> Numbers:
    low, high = np.percentile(values, [25, 75], axis=0)
    return high - low


def _scores(columns: dict[str, Numbers], usable: np.ndarray) -> dict[str, Numbers]:
    scores = {
        "magnitude_score": _z(np.abs(columns["did_log_ratio_median"]), usable),
        "consistency_score": _z(columns["did_consistency"], usable),
        "baseline_score": _z(-columns["baseline_entropy"], usable),
    }
    return scores | {"composite_score": sum(scores.values(), np.zeros(usable.shape))}


def _z(values: Numbers, usable: np.ndarray) -> Numbers:
    """Standard scores over the usable heads (ddof 1); 0 where they are all the same."""
    spread = sd(values[usable])
    centred = values - values[usable].mean()
    return centred / spread if spread > 0 else np.zeros_like(values)


def _summary(rows: Sequence[Row], family: str) -> dict[str, object]:
    """The study's summary; what it calls log ratio is the difference of two of them."""
    columns = {
        name: np.array([row[name] for row in rows])
        for name in ("did_median", "did_log_ratio_median", "did_consistency", "composite_score")
    }
    return {
        "model_family": family,
        "total_candidates": len(rows),
        "mean_did_median": float(columns["did_median"].mean()),
        "std_did_median": sd(columns["did_median"]),
        "mean_log_ratio_median": float(columns["did_log_ratio_median"].mean()),
        "std_log_ratio_median": sd(columns["did_log_ratio_median"]),
        "mean_consistency": float(columns["did_consistency"].mean()),
        "mean_composite_score": float(columns["composite_score"].mean()),
        "layers_with_candidates": sorted({row["layer"] for row in rows}),
        "top_layer": rows[0]["layer"],
        "top_head": rows[0]["head"],
        "methodology": METHOD,
    }


def _line(
    rows: Sequence[Row], score: str, values: Sequence[float], *, sign: int = 1
) -> dict[str, float]:
    """Mean and sd of a population in which these values have these z scores (least squares)."""
    z = sign * np.array([row[f"{score}_score"] for row in rows])
    x = np.array(values)
    spread = ((z - z.mean()) ** 2).sum()
    if spread == 0:
        return {"mean": math.nan, "sd": math.nan}
    slope = float(((z - z.mean()) * (x - x.mean())).sum() / spread)
    return {"mean": float(x.mean() - slope * z.mean()), "sd": slope}


def _refuse_unequal(base: Entropies, instruct: Entropies) -> None:
    if base.n_heads != instruct.n_heads:
        raise SpecError(
            f"base has {base.n_heads} heads per layer and instruct {instruct.n_heads}: these are"
            " not two models of one pair"
        )
    if base.category != instruct.category or not np.array_equal(base.length, instruct.length):
        raise SpecError(
            "base and instruct were not run on the same prompts: categories or lengths differ"
        )
