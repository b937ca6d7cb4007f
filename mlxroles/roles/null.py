"""What uniform causal attention, which knows nothing, would give on prompts of these lengths.

A query that sees more keys has more entropy to spread, so categories of different lengths differ
before any model is asked. This is the bound to hold RFC and RSI against.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mlxroles.roles.contrast import Contrast
from mlxroles.roles.metrics import DEFAULT_FORM, FORMS, METRICS, Means, difference_of_means, forms
from mlxroles.roles.table import NEAR, Entropies, Reading
from mlxroles.stats import nan_mean


def uniform_table(
    length: ArrayLike, category: Sequence[str], has_bos: ArrayLike | bool = False
) -> Entropies:
    """One layer with one head whose query q spreads its weight evenly over q + 1 keys.

    Args:
        length: tokens per prompt.
        category: of each prompt.
        has_bos: whether a prompt's first token is the begin token, for each or for all.
    """
    tokens = np.asarray(length, dtype=int)
    n_prompts, longest = len(tokens), int(tokens.max(initial=1))
    seen = np.arange(longest) + 1.0
    inside = (np.arange(longest) < tokens[:, None])[:, None, None]
    no_first = np.log(np.maximum(seen - 1, 1))
    no_first[0] = np.nan
    near = np.arange(NEAR)[None, :] < seen[:, None]
    weights = np.where(near, 1 / seen[:, None], 0.0)
    shared = np.where(inside[..., None], weights, np.nan)
    return Entropies(
        model="uniform",
        prompts=tuple(f"p{i:03d}" for i in range(n_prompts)),
        category=tuple(category),
        length=tokens,
        has_bos=np.broadcast_to(np.asarray(has_bos, dtype=bool), (n_prompts,)),
        layers=(0,),
        entropy=np.where(inside, np.log(seen), np.nan),
        entropy_no_first=np.where(inside, no_first, np.nan),
        first_keys=shared,
        recent_keys=shared,
    )


def uniform(table: Entropies, reading: Reading, contrast: Contrast | None) -> dict[str, dict]:
    """Entropies, RFC and RSI of uniform attention on the prompts of a table, on both scales.

    ``rfc`` and ``rsi`` are of the default form; ``forms`` has them in each. On the scale
    ``normalised`` every entropy is 1 and so all are 0, unless no query of a category sees two
    keys.
    """
    model = uniform_table(table.length, table.category, table.has_bos)
    return {
        "raw": _scale(model, reading, contrast, normalised=False),
        "normalised": _scale(model, reading, contrast, normalised=True),
    }


def _scale(
    model: Entropies, reading: Reading, contrast: Contrast | None, *, normalised: bool
) -> dict:
    queries = model.queries(reading, normalised=normalised)[:, :, 0]
    prompts = nan_mean(queries, axis=-1)
    members = {name: model.members(name) for name in model.categories}
    means = {name: nan_mean(prompts[chosen]) for name, chosen in members.items()}
    document = {"category": {name: float(mean[0]) for name, mean in means.items()}}
    if contrast is None:
        return document | dict.fromkeys(("rfc", "rsi", "contrast", "forms"))
    pooled = {name: nan_mean(queries[chosen].ravel())[None] for name, chosen in members.items()}
    by_layer = {name: mean[0] for name, mean in means.items()}
    found = forms(Means(by_layer, means, pooled), contrast)
    by_form = {
        form: {
            metric: _number(found[metric][form]) if metric in found else None for metric in METRICS
        }
        for form in FORMS
    }
    return (
        document
        | by_form[DEFAULT_FORM]
        | {"contrast": {k: _number(v) for k, v in difference_of_means(by_layer, contrast).items()}}
        | {"forms": by_form}
    )


def _number(value: ArrayLike | None) -> float | None:
    return None if value is None else float(np.asarray(value))
