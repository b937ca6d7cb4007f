"""Direct attribution: the parts add up on every architecture, and are what torch computes.

Heads are compared one by one with slices of the stored weights applied in float64 to what
transformers computes; sums with the model's own logits at every position.
"""

from types import SimpleNamespace

import architectures
import numpy as np
import pytest
from tiny_models import in_dtype, tiny, tiny_llama

from mlxroles.backend import mx, nn
from mlxroles.direct import KINDS, attribute, attribute_positions
from mlxroles.direct.structure import structure_of
from mlxroles.edits import Edit, zero
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import Network
from mlxroles.models.load import load, wrap

IDS = [(11 * i * i + 7 * i + 13) % 64 for i in range(20)]
REFUSED = {
    "deepseek_v41": "4 axes",
    "gemma3n": "4 axes",
    "iquestloopcoder": "never calls its layers",
    "kimi_k3": "no norm and head",
    "nanbeige": "more than once",
    "olmo": "own forward fails",
    "talkie": "no norm and head",
}
CAPS = {
    "gear": 30, "gemma2": 30, "gemma4": 30, "gemma4_text": 30, "muse_glimmer": 30,
    "muse_spark": 30, "nanochat": 15, "recurrent_gemma": 30,
}  # fmt: skip


def heads_expected(model):
    """How many heads stand alone: those of all layers whose attention output can be seen."""
    blocks = model.network.anatomy.blocks
    return sum(b.heads for b in blocks if "attn_out" not in b.missing)


@pytest.mark.parametrize("name", architectures.names())
def test_the_parts_add_up_at_every_position(name):
    model = tiny(name)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]) as caught:
            attribute(model, IDS, -1, 5)
        assert name in str(caught.value)
        return
    parts = attribute_positions(model, IDS, None, 5)
    logits = model.run(IDS).logits
    assert logits is not None
    logit = np.array(logits[0, :, 5], dtype=np.float64)
    assert np.abs(parts.values.sum(axis=0) - parts.total).max() == 0
    assert parts.cap == CAPS.get(name)
    cap = parts.cap
    got = parts.total if cap is None else cap * np.tanh(parts.total / cap)
    assert np.abs(got - logit).max() <= 1e-5 * max(1, np.abs(logit).max())
    assert np.abs(parts.logit - logit).max() <= 1e-6
    assert parts.kinds.count("head") == heads_expected(model)
    assert parts.notes == ()
    assert ("rounding" in parts.kinds) is (name == "muse_spark")  # its head is bfloat16
    assert {*parts.kinds} <= {*KINDS}
    # only blocks whose inside cannot be seen are a part as a whole
    hidden = sum("attn_out" in b.missing for b in model.network.anatomy.blocks)
    assert parts.kinds.count("other") == hidden


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mamba"])
def test_differences_of_logits_are_linear_in_the_ids(name):
    model = tiny(name)
    whole = attribute(model, IDS, 7, [5, 9], [11, 12, 13])
    single = {i: attribute(model, IDS, 7, i).values for i in (5, 9, 11, 12, 13)}
    want = (single[5] + single[9]) / 2 - (single[11] + single[12] + single[13]) / 3
    assert np.abs(whole.values - want).max() <= 1e-5
    several = attribute_positions(model, IDS, [0, 7, -1], [5, 9], [11, 12, 13])
    assert several.positions == (0, 7, 19)
    assert np.abs(several.values[:, 1] - whole.values).max() <= 1e-5


# --- against transformers ---------------------------------------------------------------------


class Torch:
    """What transformers computes, and its weights, as float64 arrays."""

    def __init__(self, family, folder):
        pytest.importorskip("torch", reason="the oracle is transformers with torch (extra 'test')")
        import oracles
        import torch

        model = oracles.save(family, folder).double()
        self.family = family
        self.ids = oracles.tokens(12)
        seen = {"resid_post": [], "z": [], "attn_out": [], "mlp_out": []}
        entered = []
        first = oracles.blocks(model)[0]
        handle = first.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        with oracles.hooked(model, seen), torch.no_grad():
            model(torch.tensor(self.ids[:1]), use_cache=False)
        handle.remove()
        self.z, self.mlp, self.post = (
            [a[0] for a in seen[s]] for s in ("z", "mlp_out", "resid_post")
        )
        self.embedding = entered[0][0].numpy()
        self.w = {k: v.double().numpy() for k, v in model.state_dict().items()}

    def projection(self, i):
        """Weight [width, d_model] and bias of an output projection."""
        if self.family == "gpt2":
            base = f"transformer.h.{i}.attn.c_proj"
            return self.w[f"{base}.weight"], self.w[f"{base}.bias"]
        return self.w[f"model.layers.{i}.self_attn.o_proj.weight"].T, 0.0

    def written(self, i, o):
        """What the layer's norm after attention, if any, makes of o + bias, part by part."""
        if self.family != "gemma2":
            return o
        gain = 1 + self.w[f"model.layers.{i}.post_attention_layernorm.weight"]
        total = o.sum(axis=0)
        return o * gain / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-6)

    def read(self, parts, plus, minus):
        """What parts [part, position, d_model] write to the logit difference."""
        h, row = self.post[-1], self.w["lm_head.weight"][plus] - self.w["lm_head.weight"][minus]
        if self.family == "gpt2":
            scale = np.sqrt(h.var(-1, keepdims=True) + 1e-5)
            gain, parts = self.w["transformer.ln_f.weight"], parts - parts.mean(-1, keepdims=True)
        else:
            scale = np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6)
            gain = self.w["model.norm.weight"] + (self.family == "gemma2")
        return (parts / scale * gain) @ row

    def heads(self, i):
        """What every head [head, position, d_model] and the bias [1, ...] write to the stream."""
        weight, bias = self.projection(i)
        z = self.z[i].reshape(12, 8, -1)
        o = np.einsum("phd,hdm->hpm", z, weight.reshape(8, z.shape[-1], -1))
        return self.written(i, np.concatenate([o, np.broadcast_to(bias, (1, *o.shape[1:]))]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_heads_are_what_torch_computes(family, tmp_path):
    torch = Torch(family, tmp_path)
    model = load(tmp_path, scan=False)
    plus, minus = 17, 301
    parts = attribute_positions(model, torch.ids[0].tolist(), None, plus, minus)
    size = np.abs(parts.values).max()
    assert size > 0.2
    want = {"embedding": torch.read(torch.embedding[None], plus, minus)[0]}
    for i in range(model.n_layers):
        *heads, bias = torch.read(torch.heads(i), plus, minus)
        want |= {f"L{i}H{h}": values for h, values in enumerate(heads)}
        want[f"L{i} MLP"] = torch.read(torch.mlp[i][None], plus, minus)[0]
        if family == "gpt2":
            want[f"L{i} attention bias"] = bias
    if family == "gpt2":
        row = torch.w["lm_head.weight"][plus] - torch.w["lm_head.weight"][minus]
        want["final norm bias"] = np.full(12, torch.w["transformer.ln_f.bias"] @ row)
    assert set(parts.names) == set(want)
    for name, values in want.items():
        assert np.abs(parts.of(name) - values).max() <= 1e-4 * size, name


# --- edits, types, refusals -------------------------------------------------------------------


def test_an_edit_of_the_stream_is_a_part_of_its_own():
    """What is added to the last stream writes its product with what reads the stream."""
    model = tiny("llama")
    v = np.random.default_rng(0).standard_normal(model.d_model).astype(np.float32)
    edit = Edit("resid_post", 3, v, "add", positions=[6])
    parts = attribute(model, IDS, 6, 5, 7, edits=[edit])
    h = np.array(model.run(IDS, keep=["resid_post"], edits=[edit])["resid_post", 3][0, 6])
    norm, head = model.module.model.norm, model.module.lm_head.weight
    row = np.array((head[5] - head[7]) * norm.weight)
    want = (v / np.sqrt((h**2).mean() + norm.eps)) @ row
    assert abs(parts.of("L3 edit") - want) <= 1e-5
    assert abs(parts.total - parts.logit) <= 1e-5
    entering = attribute(model, IDS, 6, 5, 7, edits=[Edit("resid_pre", 2, v, "add")])
    assert abs(entering.total - entering.logit) <= 1e-5
    assert "L2 edit" in entering.names


def test_edits_of_parts_show_in_these_parts():
    model = tiny("llama")
    ablated = attribute(model, IDS, 6, 5, 7, edits=[zero("z", 1, heads=[2])])
    assert ablated.of("L1H2") == 0
    assert abs(ablated.total - ablated.logit) <= 1e-5
    whole = attribute(model, IDS, 6, 5, 7, edits=[zero("attn_out", 1)])
    assert whole.of("L1 attention") == 0
    assert whole.notes == ("the heads of layer 1 are one part: its output is edited",)
    first = attribute(model, IDS, 6, 5, 7, edits=[zero("resid_pre", 0)])
    assert first.notes == ("the embedding is the edited one",)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_half_precision_has_its_roundings_apart(name, dtype):
    exact = attribute_positions(tiny(name), IDS, None, 5, 7)
    model = wrap(in_dtype(tiny(name).module, dtype), tiny(name).config)
    parts = attribute_positions(model, IDS, None, 5, 7)
    assert parts.kinds.count("rounding") == 1
    assert parts.kinds.count("head") == 16
    near = 0.1 if dtype == mx.bfloat16 else 0.015
    size = np.abs(exact.values).max()
    assert np.abs(parts.of("rounding")).max() <= near * size
    assert np.abs(parts.values[:-1] - exact.values).max() <= near * size
    assert np.abs(parts.total - exact.total).max() <= 2 * near * size
    if parts.cap is None:
        assert np.abs(parts.total - parts.logit).max() <= 1e-5 * size


def test_quantised_models_add_up():
    module = tiny_llama(3, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=4)
    parts = attribute_positions(wrap(module), IDS, None, 5, 7)
    assert np.abs(parts.total - parts.logit).max() <= 1e-5
    assert parts.kinds.count("head") == 16


def test_a_gate_before_the_projection_stays_with_its_head():
    """afmoe multiplies z by a gate: a head that is zeroed writes nothing."""
    model = tiny("afmoe")
    parts = attribute(model, IDS, 6, 5, 7, edits=[zero("z", 1, heads=[2])])
    assert parts.of("L1H2") == 0
    assert parts.of("L1H1") != 0


def test_wrong_questions_are_refused():
    model = tiny("llama")
    with pytest.raises(ValueError, match="position 20 is outside 0"):
        attribute(model, IDS, 20, 5)
    with pytest.raises(ValueError, match="no position"):
        attribute_positions(model, IDS, [], 5)
    with pytest.raises(PromptError, match="id 5 is on both sides"):
        attribute(model, IDS, -1, [5, 6], [7, 5])
    with pytest.raises(PromptError, match="token id 9999 is outside"):
        attribute(model, IDS, -1, 9999)
    with pytest.raises(PromptError, match="give at least one"):
        attribute(model, IDS, -1, [])
    with pytest.raises(PromptError, match="give at least one"):
        attribute(model, IDS, -1, 5, [])
    with pytest.raises(KeyError, match="L9H9"):
        attribute(model, IDS, -1, 5).of("L9H9")


def test_a_part_of_a_model_is_refused():
    """Processes that hold the heads together hold no whole matrix."""
    network = tiny("llama").network
    part = Network(network.module, network.anatomy, SimpleNamespace(size=2))  # ty: ignore[invalid-argument-type]
    with pytest.raises(ModelError, match="llama has no direct logit attribution: 2 processes"):
        structure_of(part)


def test_one_token_is_enough():
    for name in ("llama", "deepseek_v3"):
        parts = attribute(tiny(name), [3], 0, 5, 7)
        assert abs(parts.total - parts.logit) <= 1e-5
