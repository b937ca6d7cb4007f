"""Every captured array against transformers: eager attention, float32, folders as it saves them.

Each cell of each array is compared, not a mean. `gemma3` and `gpt_neox` deviate because mlx_lm
rounds the embedding scale to bfloat16 and approximates GELU; with the same deviation in the
oracle they agree like the others.
"""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is transformers with torch (extra 'test')")

import further_families
import oracles
import torch

from mlxroles.backend import mx
from mlxroles.errors import PromptError
from mlxroles.models.load import load

SITES = ("resid_post", "pattern", "z", "entropy", "attn_out", "mlp_out", "logits")
KEPT = SITES[:-1]
BOUND = 1e-4
DEVIANT = {
    "gemma3": {
        "resid_post": 1e-3,
        "z": 2.1e-4,
        "entropy": 1.7e-4,
        "attn_out": 2.4e-4,
        "mlp_out": 5.1e-4,
    },
    "gpt_neox": {
        "resid_post": 3.9e-3,
        "pattern": 2.8e-4,
        "z": 9.6e-4,
        "entropy": 4.4e-4,
        "attn_out": 1.1e-3,
        "mlp_out": 2.3e-3,
        "logits": 3.8e-4,
    },
}
"""Documented deviations of mlx_lm, by site: 1.5 times what was measured."""
REPAIRED = ("llama-theta", "llama-llama3", "qwen2", "qwen2-yarn-factor", "phi3-longrope", "glm")
"""Families that plain mlx_lm loads without complaint and computes wrongly."""
WINDOWED = [family for family in oracles.FAMILIES if family.endswith("-window")]


class Comparison:
    """One saved model: what transformers computes beside what a `Model` captures."""

    def __init__(self, oracle, *, allow_window_mismatch=False):
        self.oracle = oracle
        self.model = load(oracle.folder, allow_window_mismatch=allow_window_mismatch, scan=False)
        self.length = min(self.model.longest or oracles.LENGTH, oracles.LENGTH)
        self.run = self.model.run(oracle.tokens[:, : self.length], keep=KEPT)

    def wanted(self, site):
        """The oracle's array, cut to the positions that were run."""
        array, n = getattr(self.oracle, site), self.length
        match site:
            case "pattern":
                return array[..., :n, :n]
            case "entropy":
                return array[..., :n]
            case "logits":
                return array[:, :n]
        return array[:, :, :n]

    def got(self, site):
        array = self.run.logits if site == "logits" else self.run[site]
        return np.array(array.astype(mx.float32))

    def error(self, site):
        """Largest absolute difference over all cells."""
        got, wanted = self.got(site), self.wanted(site)
        assert got.shape == wanted.shape
        return float(np.abs(got - wanted).max())


@pytest.fixture(scope="session")
def comparisons(tmp_path_factory):
    """Comparison of a family, made on first use."""
    made = {}

    def comparison(family, *, deviates=False):
        if (family, deviates) not in made:
            folder = tmp_path_factory.mktemp(family)
            deviation = oracles.DEVIATIONS[family] if deviates else None
            oracle = oracles.oracle(family, folder, deviation=deviation)
            made[family, deviates] = Comparison(oracle)
        return made[family, deviates]

    return comparison


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", oracles.FAMILIES)
def test_captures_equal_transformers(family, site, comparisons):
    assert comparisons(family).error(site) <= DEVIANT.get(family, {}).get(site, BOUND)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", oracles.DEVIATIONS)
def test_only_the_documented_deviation_is_left(family, site, comparisons):
    assert comparisons(family, deviates=True).error(site) <= BOUND


@pytest.mark.parametrize("family", oracles.FAMILIES)
def test_the_oracle_is_not_trivial(family, comparisons):
    oracle = comparisons(family).oracle
    largest = oracle.pattern[..., 8:, :].max(-1)
    assert 0.05 < largest.mean() < 0.6  # neither uniform nor one-hot
    parts = oracle.resid_post[:-1] + oracle.attn_out[1:] + oracle.mlp_out[1:]
    assert np.abs(parts - oracle.resid_post[1:]).max() < 1e-5


@pytest.mark.parametrize("family", REPAIRED)
def test_without_repair_mlx_lm_is_silently_wrong(family, comparisons):
    from mlx_lm.utils import load_model

    comparison = comparisons(family)
    plain, _ = load_model(comparison.oracle.folder)
    logits = np.array(plain(mx.array(comparison.oracle.tokens[:, : comparison.length])))
    assert np.abs(logits - comparison.wanted("logits")).max() > 1e-2
    assert comparison.model.repairs


@pytest.mark.parametrize("family", WINDOWED)
def test_prompts_beyond_an_ignored_window_are_refused(family, comparisons):
    comparison = comparisons(family)
    assert comparison.model.longest == oracles.WINDOW
    with pytest.raises(PromptError, match="sliding_window 16 is ignored"):
        comparison.model.run(comparison.oracle.tokens)


@pytest.mark.parametrize("family", WINDOWED)
def test_allowing_the_mismatch_is_wrong_only_beyond_the_window(family, comparisons):
    allowed = Comparison(comparisons(family).oracle, allow_window_mismatch=True)
    error = np.abs(allowed.got("logits") - allowed.wanted("logits")).max(axis=(0, 2))
    assert allowed.length == oracles.LENGTH
    assert error[: oracles.WINDOW].max() <= BOUND
    assert error[oracles.WINDOW :].max() > 1e-2


@pytest.mark.parametrize("family", further_families.FAMILIES)
def test_further_families_are_understood(family, tmp_path):
    oracle = oracles.stream(family, tmp_path)
    model = load(tmp_path, scan=False)
    run = model.run(oracle.tokens, keep=["resid_post"])
    assert np.abs(np.array(run["resid_post"]) - oracle.resid_post).max() <= BOUND
    assert np.abs(np.array(run.logits) - oracle.logits).max() <= BOUND
    assert not model.warnings


@pytest.mark.parametrize("family", further_families.APPROXIMATE)
def test_another_form_of_gelu_is_warned_about_and_small(family, tmp_path):
    oracle = oracles.stream(family, tmp_path)
    model = load(tmp_path, scan=False)
    error = np.abs(np.array(model.run(oracle.tokens).logits) - oracle.logits).max()
    assert error <= 4e-4
    assert any("computes the exact GELU" in warning for warning in model.warnings)


@pytest.mark.parametrize("family", ["llama-theta", "gemma3", "gpt_oss", "gpt2"])
def test_right_padding_changes_no_real_position(family, tmp_path):
    lengths = (oracles.LENGTH, 29)
    deviation = oracles.DEVIATIONS.get(family)
    oracle = oracles.oracle(family, tmp_path, deviation=deviation, lengths=lengths)
    rows = [row[:n] for row, n in zip(oracle.tokens.tolist(), lengths, strict=True)]
    run = load(tmp_path, scan=False).run(rows, keep=KEPT)
    for row, n in enumerate(lengths):
        for site in ("resid_post", "z"):
            error = np.array(run[site])[:, row, :n] - getattr(oracle, site)[:, row, :n]
            assert np.abs(error).max() <= BOUND
        pattern = np.array(run["pattern"])[:, row, :, :n, :n] - oracle.pattern[:, row, :, :n, :n]
        assert np.abs(pattern).max() <= BOUND
        assert np.abs(np.array(run.logits)[row, :n] - oracle.logits[row, :n]).max() <= BOUND


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.008)])
@pytest.mark.parametrize("family", ["llama-theta", "qwen2", "gemma2"])
def test_half_precision_stays_within_its_rounding(family, dtype, bound, tmp_path):
    comparison = Comparison(oracles.oracle(family, tmp_path, dtype=dtype))
    assert comparison.model.dtype == {torch.bfloat16: mx.bfloat16}.get(dtype, mx.float16)
    for site in SITES:
        scale = np.abs(comparison.wanted(site)).max()
        assert comparison.error(site) <= bound * scale
