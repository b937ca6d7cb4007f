"""What all statistics of the original study start from: its entropy and its t intervals."""

import math

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.roles.patterns import Patterns
from mlxroles.roles.table import Entropies, Numbers, Reading

EPSILON = 1e-8
"""Added to every weight of a prompt before its rows are brought to the sum 1."""

FOCUS, REFERENCE, CONFOUNDER = "self_referent", "neutral", "confounder"
"""The study's categories."""

EVERYTHING = Reading()
"""All queries and all keys, query 0 and a begin token included."""

Side = Entropies | Patterns


def study_table(side: Side) -> Entropies:
    """The entropies that the study's formulas are applied to.

    Patterns give the study's own, with :data:`EPSILON`. A stored run gives its exact entropies:
    with rows of T keys these are smaller by at most about 2e-7 T nats.
    """
    return side.entropies(epsilon=EPSILON) if isinstance(side, Patterns) else side


def entropy_with_epsilon(patterns: Patterns) -> Numbers:
    """The study's entropy of each query [prompt, layer, head, query], nats; NaN beyond the prompt.

    1e-8 is added to the weight of all T keys of the prompt, those after the query included, and
    the row is brought to the sum 1 again.
    """
    return study_table(patterns).entropy


def study_pair(base: Side, instruct: Side) -> tuple[Entropies, Entropies]:
    """The tables of both models.

    Raises:
        SpecError: they do not have the same layers.
    """
    tables = study_table(base), study_table(instruct)
    if tables[0].layers != tables[1].layers:
        shown = [_range(table.layers) for table in tables]
        raise SpecError(
            f"base has the layers {shown[0]} and instruct {shown[1]}: these are not two models of"
            " one pair"
        )
    return tables


def head_means(table: Entropies) -> Numbers:
    """The study's E1 [prompt, layer, head]: mean over all queries of a prompt, nats."""
    return table.per_head(EVERYTHING)


def t_half_width(sd: float, n: int, df: int | None = None) -> float:
    """Half the 95 % t interval of a mean of n values with this sd; NaN for fewer than two."""
    df = n - 1 if df is None else df
    return t_quantile(df) * sd / math.sqrt(n) if n > 1 and df > 0 else math.nan


def t_quantile(df: int) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975))


def sd(values: Numbers, ddof: int = 1) -> float:
    """The standard deviation; NaN where there are too few values."""
    return float(np.std(values, ddof=ddof)) if values.size > ddof else math.nan


def _range(layers: tuple[int, ...]) -> str:
    return f"{layers[0]} to {layers[-1]} ({len(layers)} of them)" if layers else "of none"
