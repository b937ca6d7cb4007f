"""Builds entropy documents of runs that never happened: zeros, but for what a test sets."""

import copy
import json
import math

from role_tables import random_tables

from mlxroles.roles.document import Contrast, build
from mlxroles.roles.table import Reading

CONTRAST = {"focus": "self_referent", "reference": "neutral", "confounder": "confounder"}
WHAT = Contrast(**CONTRAST)
FORMS = ("ratio_of_means", "head_form", "mean_of_ratios", "median_of_ratios", "log_ratio")
LAYERS = 4


def series(values, half=0.01):
    """A metric in one form: the values with intervals of this half width."""
    return {"value": list(values), "ci": [[v - half, v + half] for v in values]}


def label_tests(values, half, q, same, turned=False):
    """The tests of a metric, and what the study flags by them; p is q, as if uncorrected."""
    n = len(values)
    q, same, turned = (x if isinstance(x, list) else [x] * n for x in (q, same, turned))
    diff = [-v if t else v for v, t in zip(values, turned, strict=True)]
    significant = [x < 0.05 and abs(v) > half for x, v in zip(q, values, strict=True)]
    agrees = [v * d > 0 for v, d in zip(values, diff, strict=True)]
    rows = list(zip(significant, same, agrees, turned, strict=True))
    return {
        "p": list(q),
        "q": list(q),
        "p_same_length": list(same),
        "q_same_length": list(same),
        "diff": list(values),
        "diff_same_length": diff,
        "significant": significant,
        "holds_at_equal_length": [s and x < 0.05 and a for s, x, a, _ in rows],
        "reverses_at_equal_length": [s and t for s, _, _, t in rows],
        "n_permutations": 10_000,
        "exact": False,
        "n_permutations_same_length": 10_000,
    }


def role_doc(*, models=("base", "instruct"), n=12, lengths=(5, 6, 7), layers=LAYERS, **more):
    """A document in which nothing differs; tokens per prompt repeat ``lengths``."""
    names = ("self_referent", "confounder", "neutral", "third_person")
    nothing = {
        **{m: {form: series([0.0] * layers) for form in FORMS} for m in ("rfc", "rsi")},
        **{f"{m}_test": label_tests([0.0] * layers, 0.01, 1.0, 1.0) for m in ("rfc", "rsi")},
    }
    entropy = {name: series([0.9] * layers, 0.05) for name in names}
    own = copy.deepcopy(nothing) | {"category": entropy}
    scale = {
        "models": {model: copy.deepcopy(own) for model in models},
        "difference": copy.deepcopy(nothing) if len(models) > 1 else None,
    }
    head = {"n": 4 * layers, "significant_bh": 0, "significant_max": 0, "below_05": 1}
    head |= {"significant_same_length": 0, "expected": 0.2 * layers, "top": [head_row()]}
    head |= {"n_permutations": 10_000, "exact": False, "smallest_q": 4 * layers / 10_001}
    who = [*models, *(["difference"] if len(models) > 1 else [])]
    prompts = [
        {"id": f"{name}-{i}", "category": name, "n_tokens": lengths[i % len(lengths)]}
        for name in names
        for i in range(n)
    ]
    zero = {"category": dict.fromkeys(names, 1.1), "rfc": -0.044, "rsi": 0.095}
    return {
        "schema": "mlxroles/entropy/1",
        "run_id": "a1b2c3",
        "family": "tiny",
        "display": "Tiny",
        "timestamp": "2026-11-21T00:00:00Z",
        "versions": {"mlxroles": "1.0"},
        "models": list(models),
        "layers": list(range(layers)),
        "n_heads": 4,
        "prompts": [prompt | {"has_bos": True} for prompt in prompts],
        "categories": list(names),
        "contrast": dict(CONTRAST),
        "reading": {"queries": "all", "keys": "all"},
        "seed": 0,
        "n_resamples": 10_000,
        "n_permutations": 10_000,
        "lengths": {name: {"n": n, "mean": 6.0, "sd": 0.8, "min": 5, "max": 7} for name in names},
        "null": {"raw": zero, "normalised": zero | {"rfc": 0.0, "rsi": 0.0}},
        "raw": scale,
        "normalised": copy.deepcopy(scale),
        "heads": {
            "n": 4 * layers,
            "flagged": [],
            "what": {name: {"raw": head, "normalised": head} for name in who},
        },
        "candidates": None,
        "difference_summary": None,
        "notes": [],
        "chat_template": True,
        "has_sinks": False,
        **more,
    }


def head_row(**more):
    """A row of the list of heads with the smallest p."""
    row = {"layer": 3, "head": 1, "focus": 0.5, "reference": 0.6, "confounder": 0.55, "diff": -0.1}
    row |= {"d": -1.0, "d_low": -1.5, "d_high": -0.5, "delta": -0.4, "delta_low": -0.7}
    row |= {"delta_high": -0.1, "p": 0.002, "q": 0.3, "p_max": 0.4, "p_same_length": 0.1}
    row |= {"diff_same_length": -0.1, "rfc": 0.167, "rfc_low": 0.1, "rfc_high": 0.2, "rsi": 0.08}
    return row | {"rsi_low": 0.0, "rsi_high": 0.1, "log_ratio": 0.18, "flagged": False} | more


def candidate(**more):
    """A row of the list of candidates."""
    row = {"layer": 2, "head": 3, "rank": 1, "did_median": -0.08, "did_low": -0.1}
    row |= {"did_high": 0.01, "did_log_ratio_median": -0.12, "consistency": 0.9}
    row |= {"baseline_entropy": 0.5, "composite_score": 5.25, "z_null": 2.75}
    row |= {"p": 0.001, "p_max": 0.3}
    return row | more


def candidates(significant=0, **more):
    """The part of a document that lists candidates."""
    null = {"n": 1000, "max_z_95": 3.5}
    found = {"paired": False, "rows": [candidate(**more)], "chance_consistency": 0.572}
    return found | {"n_heads": 16, "null": null, "significant": significant}


def set_track(
    doc, scales, who, metric, values, *, half=0.01, q=1.0, same=1.0, turned=False, form=None
):
    """Sets a metric of a model or of the difference, in one form or in all of them.

    ``same`` is the q among prompts of equal length, ``turned`` whether the sign is another there.
    """
    for scale in scales:
        found = doc[scale]["difference"] if who == "difference" else doc[scale]["models"][who]
        for name in FORMS if form is None else [form]:
            found[metric][name] = series(values, half)
        if form is None:
            found[f"{metric}_test"] = label_tests(values, half, q, same, turned)
    return doc


def built(seed=0, *, effect=0.0, one=False, contrast=WHAT, n=200, **more):
    """A document of made-up attention, as it is read back from JSON."""
    tables = random_tables(seed, effect=effect, **more)
    if one:
        tables = {"model": tables["instruct"]}
    found = build(
        tables, reading=Reading(), contrast=contrast, n_resamples=n, n_permutations=n, seed=seed
    )
    head = {"schema": "mlxroles/entropy/1", "run_id": "a1b2c3", "display": "Tiny"}
    return json.loads(json.dumps(head | nulls(found)))


def nulls(value):
    """The same with None for NaN."""
    if isinstance(value, dict):
        return {key: nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
