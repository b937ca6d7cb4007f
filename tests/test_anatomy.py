"""What is found out about blocks, on blocks that are made to mislead."""

import mlx_lm.models.llama as llama
import pytest
from tiny_models import in_dtype, off, tiny, tiny_llama, tokens

from mlxroles.anatomy import ROUNDINGS, sum_error
from mlxroles.backend import mx, number
from mlxroles.edits import SITES
from mlxroles.forward import forward
from mlxroles.models.check import check
from mlxroles.models.load import wrap

PARTS = {"attn_out", "mlp_out", "resid_mid"}


class Gained(llama.TransformerBlock):
    """A block whose MLP part is scaled by an array: no setting tells, only the numbers do."""

    def __call__(self, x, mask=None, cache=None):
        h = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return h + self.gain * self.mlp(self.post_attention_layernorm(h))


class Leaky(llama.TransformerBlock):
    """A block that adds something besides its parts, small beside the stream's largest values."""

    def __call__(self, x, mask=None, cache=None):
        out = super().__call__(x, mask, cache)
        return out + 0.2


def test_blocks_that_look_alike_are_each_verified():
    module = tiny_llama(0)
    for i, layer in enumerate(module.layers):
        layer.__class__ = Gained
        layer.gain = mx.array(0.5 if i == 2 else 1.0)
    blocks = wrap(module).network.anatomy.blocks
    assert [bool(block.attn_out) for block in blocks] == [True, True, False, True]
    assert set(blocks[2].missing) == PARTS
    assert "not its input plus an attention and an MLP part" in blocks[2].missing["attn_out"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_few_huge_values_in_the_stream_hide_nothing(dtype):
    """Trained models have streams with single values in the hundreds."""
    for cls in (llama.TransformerBlock, Leaky):
        module = tiny_llama(0)
        weight = module.model.embed_tokens.weight
        module.model.embed_tokens.weight = mx.where(mx.arange(32) == 5, 800.0, weight)
        for layer in module.layers:
            layer.__class__ = cls
        missing = set(wrap(in_dtype(module, dtype)).network.block(1).missing)
        assert missing == (PARTS if cls is Leaky else set())


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "granite", "minicpm", "phi"])
def test_half_precision_models_offer_the_same_sites(name):
    full = tiny(name).network.anatomy
    half = wrap(in_dtype(tiny(name).module, mx.bfloat16)).network.anatomy
    for a, b in zip(full.blocks, half.blocks, strict=True):
        assert set(a.missing) == set(b.missing)
        assert (a.attn_out, a.mlp_out) == (b.attn_out, b.mlp_out)


@pytest.mark.parametrize("name", ["granite", "minicpm"])
def test_parts_of_models_that_scale_them_are_what_reaches_the_stream(name):
    model, x = tiny(name), tokens(2, 9)
    assert model.network.block(1).attn_out.scale not in (0.0, 1.0)
    run = forward(
        model.network, x, keep=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    )
    for i in range(model.n_layers):
        mid = run["resid_pre", i] + run["attn_out", i]
        assert off(run["resid_mid", i], mid) <= 1e-5
        assert off(run["resid_post", i], mid + run["mlp_out", i]) <= 1e-5


def test_sum_error_counts_roundings_of_every_element():
    a = mx.array([1000.0, 1.0]).astype(mx.bfloat16)
    b = mx.array([1.0, 0.01]).astype(mx.bfloat16)
    assert number(sum_error(a + b, a, b)) <= 1
    assert number(sum_error(a, a, b)) <= 3  # 0.01 beside 1 is hardly more than rounding
    assert number(sum_error(a + mx.array([0.0, 0.5]), a, b)) > ROUNDINGS
    assert not number(sum_error(a * mx.nan, a, b)) <= ROUNDINGS


def test_a_pattern_that_holds_nan_does_not_pass_the_checks():
    module = tiny_llama(0)
    module.layers[1].self_attn.q_proj.weight = module.layers[1].self_attn.q_proj.weight * mx.nan
    report = check(wrap(module))
    assert report.verdict == "refused"


def test_a_sound_model_passes_all_checks_at_every_site():
    report = check(wrap(tiny_llama(0)))
    assert report.verdict == "works"
    assert report.notes == ()
    assert report.sites == tuple(SITES)
    assert all(c.ok for c in report.checks)


def test_what_mlx_lm_cannot_run_here_is_refused_when_it_is_wrapped():
    """Experts in bfloat16 do not run on a CPU; the reason is told at once and not in a run."""
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("platform: this device multiplies experts in bfloat16")
    model = wrap(in_dtype(tiny("mixtral").module, mx.bfloat16))
    assert "mlx_lm's own forward fails" in str(model.network.anatomy.refused)
    assert check(model).verdict == "refused"
