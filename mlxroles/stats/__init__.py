"""Means, effects and associations over prompts, and how sure they are.

:mod:`.bootstrap` resamples prompts, :mod:`.permutation` permutes what they are called or flips the
sign of their values, :mod:`.effects` measures how far two groups lie apart, :mod:`.series`
compares two sequences along the layers. The prompts are the sample: axis 0 everywhere. Generators
are passed in, so the same seed gives the same numbers.
"""

from mlxroles.stats.bootstrap import (
    Interval,
    bootstrap_mean_ci,
    nan_mean,
    percentile_interval,
    resample_counts,
    weighted_means,
)
from mlxroles.stats.effects import (
    Estimate,
    binomial_fold_mean,
    cliffs_delta,
    cohens_d,
    cohens_d_interval,
)
from mlxroles.stats.permutation import (
    PermutationTest,
    benjamini_hochberg,
    permutation_test,
    sign_flip_test,
    smallest_flip_p,
)
from mlxroles.stats.series import Correlation, correlation

__all__ = [
    "Correlation",
    "Estimate",
    "Interval",
    "PermutationTest",
    "benjamini_hochberg",
    "binomial_fold_mean",
    "bootstrap_mean_ci",
    "cliffs_delta",
    "cohens_d",
    "cohens_d_interval",
    "correlation",
    "nan_mean",
    "percentile_interval",
    "permutation_test",
    "resample_counts",
    "sign_flip_test",
    "smallest_flip_p",
    "weighted_means",
]
