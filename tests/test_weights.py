"""Weight matrices per head against slices that numpy takes of the stored weights."""

import copy

import mlx_lm.models.gpt2 as gpt2_file
import numpy as np
import pytest
from tiny_models import off, tiny, tiny_llama, to_numpy, tokens

from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError
from mlxroles.forward import forward
from mlxroles.models.load import wrap

BOUND = 1e-6
NAMES = "QKVO"


def by_head(weight, heads):
    """[head, d_model, d_head] of a stored matrix [head * d_head, d_model]."""
    out, d_model = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, out // heads, d_model).transpose(0, 2, 1))


def output_by_head(weight, heads):
    """[head, d_head, d_model] of a stored matrix [d_model, head * d_head]."""
    return np.ascontiguousarray(weight.T.reshape(heads, -1, weight.shape[0]))


def separate(layer):
    a = layer.self_attn
    stored = [to_numpy(m.weight) for m in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)]
    return (
        by_head(stored[0], 4),
        by_head(stored[1], 2),
        by_head(stored[2], 2),
        output_by_head(stored[3], 4),
    )


def phi3(layer):
    w = to_numpy(layer.self_attn.qkv_proj.weight)
    out = output_by_head(to_numpy(layer.self_attn.o_proj.weight), 4)
    return by_head(w[:64], 4), by_head(w[64:96], 2), by_head(w[96:], 2), out


def gpt2(layer):
    w = to_numpy(layer.attn.c_attn.weight)
    out = output_by_head(to_numpy(layer.attn.c_proj.weight), 4)
    return by_head(w[:64], 4), by_head(w[64:128], 4), by_head(w[128:], 4), out


def gpt_neox(layer):
    """q, k and v of a head lie side by side, head after head."""
    w = to_numpy(layer.attention.query_key_value.weight).reshape(4, 3, 16, 64)
    out = output_by_head(to_numpy(layer.attention.dense.weight), 4)
    return (*(np.ascontiguousarray(w[:, i].transpose(0, 2, 1)) for i in range(3)), out)


STORED = {
    "llama": separate,
    "qwen2": separate,
    "qwen3": separate,
    "gpt_oss": separate,
    "gemma2": separate,
    "gemma3_text": separate,
    "phi3": phi3,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
}


def matrices(model, layer):
    return [getattr(model, f"W_{name}")(layer) for name in NAMES]


@pytest.mark.parametrize("name", STORED)
def test_matrices_are_slices_of_the_stored_weights(name):
    model = tiny(name)
    for layer in range(model.n_layers):
        stored = STORED[name](model.module.layers[layer])
        for got, want in zip(matrices(model, layer), stored, strict=True):
            assert got.dtype == mx.float32
            assert off(got, want) <= BOUND
            assert np.abs(want).max() > 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_of_quantised_models_are_dequantised(bits):
    module = tiny_llama(3, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=bits)
    model, a = wrap(module), module.layers[1].self_attn
    dense = [
        np.array(mx.dequantize(m.weight, m.scales, m.biases, group_size=32, bits=bits))
        for m in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)
    ]
    want = [by_head(w, n) for w, n in zip(dense[:3], (4, 2, 2), strict=True)]
    want.append(output_by_head(dense[3], 4))
    for got, wanted in zip(matrices(model, 1), want, strict=True):
        assert off(got, wanted) <= BOUND


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_matrices_of_half_precision_models_are_float32(dtype):
    module = tiny_llama(3)
    module.set_dtype(dtype)
    model = wrap(module)
    for got, want in zip(matrices(model, 2), separate(module.layers[2]), strict=True):
        assert got.dtype == mx.float32
        assert off(got, want) <= BOUND


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox"])
def test_heads_computed_from_the_matrices_are_those_of_the_model(name):
    """z W_O summed over heads is the attention's output, v is the normed input times W_V."""
    model, x = tiny(name), tokens(1, 7)
    run = forward(model.network, x, keep=["resid_pre", "attn_out", "z", "v"])
    layer, attention = model.module.layers[1], None
    for child in ("self_attn", "attn", "attention"):
        attention = layer.get(child, attention)
    norm = layer["ln_1"] if name == "gpt2" else layer.input_layernorm
    normed = norm(run["resid_pre", 1])
    out = next(attention[n] for n in ("o_proj", "c_proj", "dense") if n in attention)
    summed = np.einsum("bphd,hdm->bpm", to_numpy(run["z", 1]), to_numpy(model.W_O(1)))
    bias = to_numpy(out.bias) if "bias" in out else 0
    assert off(run["attn_out", 1], (summed + bias).astype(np.float32)) <= 1e-5
    v = np.einsum("bpm,hmd->bphd", to_numpy(normed), to_numpy(model.W_V(1)))
    biases = {
        "qwen2": lambda: to_numpy(attention.v_proj.bias).reshape(2, 16),
        "gpt2": lambda: to_numpy(attention.c_attn.bias)[128:].reshape(4, 16),
        "gpt_neox": lambda: to_numpy(attention.query_key_value.bias).reshape(4, 3, 16)[:, 2],
    }
    shift = biases[name]() if name in biases else 0
    assert off(run["v", 1], (v + shift).astype(np.float32)) <= 1e-5


class KeysFirst(gpt2_file.Attention):
    """The fused matrix in the order k, q, v, which no file has, but one might."""

    def __call__(self, x, mask=None, cache=None):
        parts = mx.split(self.c_attn(x), 3, axis=-1)
        k, q, v = (p.reshape(*x.shape[:2], 4, -1).transpose(0, 2, 1, 3) for p in parts)
        z = gpt2_file.scaled_dot_product_attention(
            q, k, v, cache=cache, scale=self.scale, mask=mask
        )
        return self.c_proj(z.transpose(0, 2, 1, 3).reshape(x.shape))


def test_a_fused_matrix_in_an_unknown_order_is_refused():
    """The values alone would not tell q from k where both have as many heads."""
    module = copy.deepcopy(tiny("gpt2").module)
    for layer in module.layers:
        layer.attn.__class__ = KeysFirst
    for which in "QKV":
        with pytest.raises(ModelError, match=f"W_{which} of layer 0"):
            getattr(wrap(module), f"W_{which}")(0)


@pytest.mark.parametrize(
    ("name", "which", "match"),
    [
        ("deepseek_v3", "V", "W_V of layer 1: deepseek_v3 has no matrix that maps"),
        ("deepseek_v3", "Q", "W_Q of layer 1: deepseek_v3 has no matrix that maps"),
        ("afmoe", "O", "W_O of layer 1: afmoe puts something between its heads and the output"),
        ("bitnet", "O", "W_O of layer 1: bitnet puts something between"),
        ("gear", "Q", "q cannot be captured from gear: the model's file computes"),
        ("mamba", "K", "q cannot be captured from mamba: .* no softmax attention"),
        ("iquestloopcoder", "Q", "the model never calls its layers"),
    ],
)
def test_what_is_no_plain_projection_is_refused_by_name(name, which, match):
    with pytest.raises(ModelError, match=match):
        getattr(tiny(name), f"W_{which}")(1)


def test_gated_queries_are_refused_and_latent_outputs_are_not():
    model = tiny("qwen3_next")
    blocks = model.network.anatomy.blocks
    attends = next(i for i, block in enumerate(blocks) if block.kind == "sdpa")
    for which in "QO":
        with pytest.raises(ModelError, match=f"W_{which} of layer {attends}: qwen3_next"):
            getattr(model, f"W_{which}")(attends)
    latent = tiny("deepseek_v3")
    stored = to_numpy(latent.module.layers[1].self_attn.o_proj.weight)
    assert off(latent.W_O(1), output_by_head(stored, 4)) <= BOUND


@pytest.mark.parametrize("layer", [-1, 4])
@pytest.mark.parametrize("which", NAMES)
def test_layer_that_does_not_exist_is_refused(layer, which):
    with pytest.raises(ValueError, match=rf"layer {layer} is outside 0\.\.3"):
        getattr(tiny("llama"), f"W_{which}")(layer)
