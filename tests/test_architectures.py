"""Every model module of mlx_lm, tiny and random: captures change nothing and mean what they say.

The numbers are recomputed here in numpy from what a run returns; the self-checks of
`models.check` are only asked for the verdict that the table in CONTRIBUTING.md holds.
"""

from functools import cache
from typing import Any, NamedTuple

import architectures
import numpy as np
import pytest

from mlxroles.backend import mx
from mlxroles.models.check import CheckReport
from mlxroles.models.model import Model

LENGTH = 20  # longer than the window, so that sliding windows show
MODULES = architectures.names()
WITH_SINKS = {"deepseek_v41", "gpt_oss", "mimo_v2_flash"}
REFUSED = {"iquestloopcoder", "nanbeige", "olmo", "phi3small"}
NO_ATTENTION = {"mamba", "mamba2", "rwkv7"}


class Examined(NamedTuple):
    """A tiny instance with every capturable site of one run."""

    model: Model | None
    report: CheckReport
    run: Any
    logits: mx.array | None


def prompt():
    rows = [[(11 * i * i + 7 * i + 13 * row) % 128 for i in range(LENGTH)] for row in (1, 2)]
    return mx.array(rows)


@cache
def examined(name):
    model, report = architectures.examined(name)
    if model is None or report.verdict == "refused":
        return Examined(model, report, None, None)
    plain = model.module(prompt())
    run = model.run(prompt(), keep=report.sites)
    return Examined(model, report, run, plain[0] if isinstance(plain, tuple) else plain)


def run_of(name):
    found = examined(name)
    if found.run is None:
        assert name in REFUSED, found.report.notes
        assert found.report.notes
    return found.run


def rows(name, site):
    """(layer, array) of a site, as numpy; nothing where the module does not offer it."""
    run = run_of(name)
    if run is None or site not in run.sites:
        return []
    return [(i, np.array(run[site, i].astype(mx.float32))) for i in run.layers(site)]


@pytest.mark.parametrize("name", MODULES)
def test_capturing_every_site_changes_no_logit(name):
    run = run_of(name)
    if run is not None:
        assert mx.array_equal(run.logits, examined(name).logits, equal_nan=True)
        assert {"resid_post", "pattern"} & set(run.sites) or name in {"deepseek_v41"}


@pytest.mark.parametrize("name", MODULES)
def test_rows_are_causal_distributions(name):
    found = rows(name, "pattern")
    without = REFUSED | NO_ATTENTION | {"deepseek_v41", "longcat_flash", "longcat_flash_ngram"}
    assert bool(found) is (name not in without)
    for _, pattern in found:
        assert np.triu(pattern, k=1).max() == 0
        assert pattern.min() >= 0
        total = pattern.astype(np.float64).sum(-1)
        assert total.max() <= 1 + 1e-5
        if name not in WITH_SINKS:
            assert total.min() >= 1 - 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_entropy_is_that_of_the_rows(name):
    patterns = dict(rows(name, "pattern"))
    for layer, entropy in rows(name, "entropy"):
        p = patterns[layer].astype(np.float64)
        expected = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        assert np.abs(entropy - expected).max() <= 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_z_is_the_pattern_times_the_values(name):
    patterns, values = dict(rows(name, "pattern")), dict(rows(name, "v"))
    for layer, z in rows(name, "z"):
        if layer not in patterns or layer not in values:
            continue
        v = values[layer].repeat(z.shape[2] // values[layer].shape[2], axis=2)
        expected = np.einsum("bhqk,bkhd->bqhd", patterns[layer], v)
        assert np.abs(z - expected).max() <= 1e-5 * max(1, np.abs(z).max())
        mixed_up = np.einsum("bhqk,bkhd->bqhd", np.roll(patterns[layer], 1, axis=1), v)
        assert np.abs(z - mixed_up).max() > 1e-3


def test_every_verdict_stands_in_contributing():
    """`python -m tests.architectures` writes the table anew."""
    stored = architectures.stored()
    assert sorted(stored, key=str.lower) == MODULES
    for name in MODULES:
        found = examined(name)
        line = architectures.row(name, found.model, found.report)
        assert (line[:4]) == (stored[name][:4])
