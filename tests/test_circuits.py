"""Circuits of weights against dense float64 twins, cell by cell, and every architecture."""

import numpy as np
import pytest
from architectures import names
from tiny_models import LLAMA, off, tiny, tiny_llama, to_numpy, tokens

from mlxroles import circuits
from mlxroles.backend import mx, nn
from mlxroles.circuits import composition, pairs, spectrum
from mlxroles.circuits.copying import signs
from mlxroles.circuits.curves import _band
from mlxroles.circuits.matrices import readable
from mlxroles.errors import ModelError
from mlxroles.forward import forward
from mlxroles.models.load import wrap

IDS = np.array([3, 9, 17, 40, 41, 63])


@pytest.fixture(scope="module")
def llama():
    """Four query heads, two kv heads, an embedding and a head of their own."""
    return wrap(tiny_llama(3), LLAMA, name="llama")


@pytest.fixture(scope="module")
def dense(llama):
    """The stored matrices in float64, per head: W_E, W_U, gains, and W_Q .. W_O per layer."""
    net = llama.module
    double = {"e": f64(net.model.embed_tokens.weight), "u": f64(net.lm_head.weight)}
    double["final"] = f64(net.model.norm.weight)
    layers = []
    for layer in net.layers:
        a = layer.self_attn
        q, k, v = (f64(m.weight) for m in (a.q_proj, a.k_proj, a.v_proj))
        o, gain = f64(a.o_proj.weight), f64(layer.input_layernorm.weight)
        layers.append(
            [
                {
                    "q": q[8 * h : 8 * h + 8].T,
                    "k": k[8 * (h // 2) : 8 * (h // 2) + 8].T,
                    "v": v[8 * (h // 2) : 8 * (h // 2) + 8].T,
                    "o": o[:, 8 * h : 8 * h + 8].T,
                    "gain": gain,
                }
                for h in range(4)
            ]
        )
    return double | {"layers": layers}


def f64(array):
    return to_numpy(array).astype(np.float64)


def folded(head, which):
    return head["gain"][:, None] * head[which]


# --- copying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
def test_copying_is_the_diagonal_of_the_dense_circuit(llama, dense, fold):
    found = circuits.copying(llama, fold_norms=fold, n=16, seed=4)
    u = dense["u"] * dense["final"] if fold else dense["u"]
    for layer, heads in enumerate(dense["layers"]):
        for h, head in enumerate(heads):
            v = folded(head, "v") if fold else head["v"]
            whole = dense["e"] @ v @ head["o"] @ u.T
            part = whole[np.ix_(found.ids, found.ids)]
            own = np.diagonal(part)
            rest = part[~np.eye(16, dtype=bool)]
            shifts = [np.mean([part[t, (t + s) % 16] for t in range(16)]) for s in range(1, 16)]
            wanted = {
                "score": own.mean(),
                "null": rest.mean(),
                "spread": rest.std(ddof=1),
                "null_low": np.quantile(shifts, 0.025),
                "null_high": np.quantile(shifts, 0.975),
            }
            for name, value in wanted.items():
                assert abs(getattr(found, name)[layer, h] - value) < 1e-5, name
            assert found.low[layer, h] < own.mean() < found.high[layer, h]


def test_a_head_that_copies_is_told_from_one_that_does_not():
    module = tiny_llama(5, num_attention_heads=4, num_key_value_heads=4)
    a, e = module.layers[1].self_attn, to_numpy(module.model.embed_tokens.weight)
    read = np.linalg.svd(e, full_matrices=False)[2][:8]  # the directions that tell tokens apart
    for h, sign in ((0, 1), (1, -1)):
        rows = slice(8 * h, 8 * h + 8)
        a.v_proj.weight[rows] = mx.array(read / to_numpy(module.layers[1].input_layernorm.weight))
        a.o_proj.weight[:, rows] = mx.array(sign * read.T)
    module.lm_head.weight = module.model.embed_tokens.weight
    module.model.norm.weight = mx.ones(32)
    found = circuits.copying(wrap(module), n=64)
    assert list(found.sign[1, :2]) == [1, -1]
    assert found.excess[1, 0] > 1 > -1 > found.excess[1, 1]
    joined = spectrum.between(circuits.ends_of(wrap(module)), fold_norms=True)
    values = spectrum.eigenvalues(circuits.heads_of(wrap(module), 1), joined)
    assert spectrum.positive_share(values["ov"])[0] == pytest.approx(1, abs=1e-4)
    assert spectrum.positive_share(values["ov"])[1] == pytest.approx(-1, abs=1e-4)


def test_of_scores_by_chance_no_head_is_said_to_copy():
    """The interval of one in twenty lies beyond its null; of 2000 heads hardly one is called."""
    rng, n = np.random.default_rng(2), 2000
    score, error = rng.standard_normal(n), 1.959964
    tables = {"score": score, "null": np.zeros(n)}
    tables |= {"low": score - error, "high": score + error}
    tables |= {"null_low": np.full(n, -1e-9), "null_high": np.full(n, 1e-9)}
    assert (np.abs(score) > error).mean() == pytest.approx(0.05, abs=0.01)
    assert not signs(tables).any()
    tables["score"][7:9] = 6, -6
    assert signs(tables)[7:9].tolist() == [1, -1]
    assert np.abs(signs(tables)).sum() == 2


# --- every architecture ---------------------------------------------------------------------------

MATRICES = ("llama", "gemma", "gemma2", "qwen2", "phi", "phi3", "gpt2", "gpt_neox", "cohere2")
MATRICES += ("granite", "minicpm", "starcoder2", "olmo2", "internlm2", "stablelm", "qwen3", "gptj")


@pytest.mark.parametrize("name", MATRICES)
def test_folded_matrices_compute_what_the_model_does(name):
    """Queries at position 0, values and what heads write, from the stream and the matrices."""
    model = tiny(name)
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out"]
    run = forward(model.network, tokens(1, 9), keep=sites)
    for layer in (0, model.n_layers - 1):
        heads = circuits.heads_of(model, layer)
        x = heads.normed(run["resid_pre", layer][0])
        for site, made in (("q", heads.queries(x)), ("k", heads.keys(x)[:: heads.group])):
            got, wanted = to_numpy(made)[:, 0], to_numpy(run[site, layer])[0, 0]
            size = np.ones(len(got))
            if name == "qwen3":  # a norm in every head
                size = (got * wanted).sum(-1) / (got * got).sum(-1)
            if name == "olmo2":  # one norm over all heads
                size = np.full(len(got), (got * wanted).sum() / (got * got).sum())
            assert np.abs(size[:, None] * got - wanted).max() < 1e-4 * np.abs(wanted).max()
        v, wanted = to_numpy(x @ heads.v), to_numpy(run["v", layer])[0].swapaxes(0, 1)
        assert off(v - v[:, :1], wanted - wanted[:, :1]) < 1e-4 * np.abs(wanted).max()
        if name not in ("gemma2", "olmo2"):
            z = run["z", layer][0].swapaxes(0, 1)
            out, wanted = to_numpy((z @ heads.o).sum(0)), to_numpy(run["attn_out", layer])[0]
            assert off(out - out[0], wanted - wanted[0]) < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["gemma2", "cohere2", "granite", "minicpm", "phi", "gpt2"])
def test_tables_are_found_with_their_factors(name):
    """Scaled embeddings, scaled and capped logits, heads with a bias, tied tables."""
    model = tiny(name)
    ends, ids = circuits.ends_of(model), np.arange(0, 128, 9)
    e = to_numpy(model.embed(ids[:, None].tolist()))[:, 0]
    got = to_numpy(ends.embedding(ids))
    assert off(got - got[0], e - e[0]) < 2e-4 * np.abs(e).max()
    small = 1e-2 * np.random.default_rng(0).standard_normal((1, 6, 64)).astype(np.float32)
    h = np.concatenate([small, -small], axis=1) + 1.0
    logits = to_numpy(model.unembed(mx.array(h)))[0][:, ids].astype(np.float64)
    if name == "gemma2":
        logits = 30.0 * np.arctanh(logits / 30.0)
    x = h[0] - h[0].mean(-1, keepdims=True) if ends.centred else h[0]
    eps = {"gpt2": 1e-5, "cohere2": 1e-5, "phi": 1e-5}.get(name, 1e-5)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    made = x @ to_numpy(ends.unembedding(ids)).T
    assert off(made - made[0], logits - logits[0]) < 2e-3 * np.abs(made - made[0]).max()


QUICK = ("afmoe", "deepseek_v3", "mamba", "iquestloopcoder", "gear", "nanbeige", "talkie")


@pytest.mark.parametrize("name", QUICK)
def test_what_cannot_be_read_is_refused_in_one_line_by_name(name):
    for read in (circuits.copying, lambda m: circuits.rotary(m, 0)):
        told = refusal(read, tiny(name))
        assert (name in told and "\n" not in told) or (name == "afmoe" and not told)


def refusal(read, model):
    """What a reading says when it is refused; nothing where it works."""
    try:
        read(model)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_architecture_works_or_is_refused_in_one_line(name):
    model = tiny(name)
    for read in (lambda m: circuits.copying(m, n=8), lambda m: circuits.rotary(m, 0)):
        told = refusal(read, model)
        assert not told or (model.architecture in told and "\n" not in told)


def test_quantised_models_are_read_from_their_dequantised_weights():
    module = tiny_llama(3, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=8)
    model = wrap(module)

    def dequantised(m):
        return to_numpy(mx.dequantize(m.weight, m.scales, m.biases, group_size=32, bits=8))

    a, ends = module.layers[1].self_attn, circuits.ends_of(model)
    assert off(ends.embedding(IDS), dequantised(module.model.embed_tokens)[IDS]) < 1e-6
    u = dequantised(module.lm_head)[IDS] * to_numpy(module.model.norm.weight)
    assert off(ends.unembedding(IDS), u) < 1e-5
    o = dequantised(a.o_proj).T.reshape(4, 16, 64)
    assert off(circuits.heads_of(model, 1).o, o) < 1e-6
    assert np.isfinite(circuits.copying(model, n=8).score).all()


# --- composition ----------------------------------------------------------------------------------


def test_composition_is_the_norm_of_the_dense_product(llama, dense):
    reduced = [composition.reduced(circuits.heads_of(llama, i)) for i in (0, 2)]
    got = composition.scores(*reduced)
    for a, first in enumerate(dense["layers"][0]):
        ov1 = folded(first, "v") @ first["o"]
        for b, second in enumerate(dense["layers"][2]):
            qk = folded(second, "q") @ folded(second, "k").T
            ov2 = folded(second, "v") @ second["o"]
            for kind, matrix in (("q", qk), ("k", qk.T), ("v", ov2)):
                size = np.linalg.norm(ov1) * np.linalg.norm(matrix)
                wanted = np.linalg.norm(ov1 @ matrix) / size
                assert abs(got[kind][a, b] - wanted) < 1e-6
    rng = np.random.default_rng(0)
    turned = [composition.scores(*reduced, composition.turn(32, rng)) for _ in range(300)]
    for kind in composition.KINDS:
        squares = np.mean([t[kind] ** 2 for t in turned])
        assert squares == pytest.approx(1 / 32, rel=0.05)


def test_a_head_that_reads_what_another_writes_has_score_one():
    module = tiny_llama(7, num_key_value_heads=4)
    first, second = (module.layers[i].self_attn for i in (0, 1))
    one = np.zeros(32, dtype=np.float32)
    one[5] = 1.0
    first.o_proj.weight[:, :8] = mx.array(np.outer(one, np.ones(8, dtype=np.float32)))
    second.k_proj.weight[8:16] = mx.array(np.outer(np.ones(8, dtype=np.float32), one))
    model = wrap(module)
    made = [composition.reduced(circuits.heads_of(model, i)) for i in (0, 1)]
    scores = composition.scores(*made)
    assert scores["k"][0, 1] == pytest.approx(1, abs=1e-5)
    assert scores["k"][1, 1] < 0.6
    assert scores["q"][0, 1] < 0.9


# --- eigenvalues, pairs of tokens -----------------------------------------------------------------


def test_eigenvalues_are_those_of_the_circuit_between_tokens(llama, dense):
    ends = circuits.ends_of(llama)
    joined = spectrum.between(ends, fold_norms=True)
    got = spectrum.eigenvalues(circuits.heads_of(llama, 2), joined)
    u = dense["u"] * dense["final"]
    for h, head in enumerate(dense["layers"][2]):
        ov = dense["e"] @ folded(head, "v") @ head["o"] @ u.T
        qk = dense["e"] @ folded(head, "q") @ folded(head, "k").T @ dense["e"].T
        for name, whole in (("ov", ov), ("qk", qk)):
            values = np.linalg.eigvals(whole)
            values = values[np.argsort(-np.abs(values))][:8]
            assert np.abs(np.sort_complex(values) - np.sort_complex(got[name][h])).max() < 1e-4
            share = values.real.sum() / np.abs(values).sum()
            assert spectrum.positive_share(got[name])[h] == pytest.approx(share, abs=1e-5)
    random = spectrum.random_shares(
        circuits.heads_of(llama, 2), joined, np.random.default_rng(0), draws=30
    )
    assert {name: values.shape for name, values in random.items()} == {"ov": (30,), "qk": (30,)}
    assert np.abs(random["ov"]).max() < 1


@pytest.mark.parametrize("block", [50, 1 << 24])
def test_pairs_of_tokens_are_the_extremes_of_the_dense_circuit(llama, dense, monkeypatch, block):
    monkeypatch.setattr(pairs, "BLOCK", block)
    found = pairs.ends_of_head(
        circuits.ends_of(llama), circuits.heads_of(llama, 1), 3, fold_norms=1
    )
    head = dense["layers"][1][3]
    x = dense["e"] / np.sqrt((dense["e"] ** 2).mean(-1, keepdims=True) + 1e-5)
    u = dense["u"] * dense["final"]
    qk = (x @ folded(head, "q")) @ (x @ folded(head, "k")).T
    ov = (x @ folded(head, "v")) @ head["o"] @ u.T
    for whole, (left, right) in ((qk, ("q", "k")), (ov, ("v", "o"))):
        got = pairs.top_pairs(found[left], found[right], 7)
        for end, sign in ((0, -1), (1, 1)):
            order = np.argsort(sign * whole, axis=None)[:7]
            places = np.stack(np.unravel_index(order, whole.shape))
            assert np.array_equal(np.stack([got.left[end], got.right[end]]), places)
            assert np.abs(got.value[end] - whole[tuple(places)]).max() < 1e-5
        moments = (whole.mean(), whole.std(), np.diagonal(whole).mean())
        assert (got.mean, got.spread, got.same) == pytest.approx(moments, abs=1e-5)
        assert np.abs(got.z - (got.value - whole.mean()) / whole.std()).max() < 1e-3


def test_more_pairs_than_there_are_give_all_of_them():
    left, right = (mx.array([[1.0], [2.0]]), mx.array([[3.0], [-1.0], [0.5]]))
    found = pairs.top_pairs(left, right, 50)
    assert found.value.tolist() == [[6, 3, 1, 0.5, -1, -2], [-2, -1, 0.5, 1, 3, 6]]


# --- distance -------------------------------------------------------------------------------------


def turned(vectors, position, *, dims, base=10000.0, traditional=False):
    """Rotary embedding in float64 by the formula (Su et al. 2021)."""
    x = vectors.astype(np.float64).copy()
    angles = position * base ** (-np.arange(0, dims, 2) / dims)
    first = np.arange(0, dims, 2) if traditional else np.arange(dims // 2)
    second = first + (1 if traditional else dims // 2)
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first] = a * np.cos(angles) - b * np.sin(angles)
    x[..., second] = a * np.sin(angles) + b * np.cos(angles)
    return x


ROPES = {
    "llama": {"dims": 16},
    "gptj": {"dims": 8, "traditional": True},
    "stablelm": {"dims": 8},
    "gpt_neox": {"dims": 8},
    "cohere": {"dims": 16, "traditional": True},
    "gemma2": {"dims": 16},
}


@pytest.mark.parametrize("name", ROPES)
def test_the_rotary_curve_is_that_of_the_formula(name):
    found = circuits.rotary(tiny(name), 1)
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 5, found.d_head))
    at = np.array(found.at(q, 11))
    assert np.abs(at - turned(q, 11, **ROPES[name])).max() < 1e-5
    got = np.array(found.curve(q, k, [-2, 0, 1, 30]))
    for n, distance in enumerate((-2, 0, 1, 30)):
        wanted = (turned(q, 40 + distance, **ROPES[name]) * turned(k, 40, **ROPES[name])).sum(-1)
        assert np.abs(got[:, n] - found.scale * wanted).max() < 1e-4
    assert found.scale == pytest.approx(0.25, rel=1e-3)


def test_layers_without_rope_have_a_constant_curve():
    for model, layer in ((tiny("gpt2"), 1), (tiny("llama4"), 3), (tiny("cohere2"), 3)):
        found = circuits.rotary(model, layer)
        assert found.module is None
        curve = np.array(found.curve(np.ones(16), np.arange(16.0), [0, 5]))
        assert curve == pytest.approx(found.scale * 120)


def test_curves_are_means_over_pairs_of_tokens(llama, dense):
    heads, rotary = circuits.heads_of(llama, 1), circuits.rotary(llama, 1)
    rng = np.random.default_rng(0)
    got = circuits.curves(circuits.ends_of(llama), heads, rotary, IDS, rng, offsets=[0, 4])
    x = dense["e"][IDS]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    for h, head in enumerate(dense["layers"][1]):
        q, k = x @ folded(head, "q"), x @ folded(head, "k")
        for n, distance in enumerate((0, 4)):
            whole = turned(q, distance, dims=8) @ k.T * 8**-0.5
            rest = whole[~np.eye(6, dtype=bool)]
            assert got.mean[h, n] == pytest.approx(rest.mean(), abs=1e-5)
            assert got.spread[h, n] == pytest.approx(rest.std(), abs=1e-4)
            assert got.same[h, n] == pytest.approx(np.diagonal(whole).mean(), abs=1e-5)
            assert got.low[h, n] <= got.mean[h, n] <= got.high[h, n]


def test_the_band_holds_whole_curves():
    """Of curves that are noise alone, 95 % lie in it at all of their distances."""
    rng = np.random.default_rng(0)
    every = np.concatenate([np.zeros((20, 1, 1)), rng.standard_normal((20, 1, 4000))], axis=2)
    wide = _band(every)
    assert wide.shape == (1, 20)
    assert wide == pytest.approx(3.02, abs=0.1)  # two-sided, 1 - 0.95 ** (1 / 20)
    inside = (np.abs(rng.standard_normal((20, 4000))) < wide.T).all(axis=0)
    assert inside.mean() == pytest.approx(0.95, abs=0.02)


def test_wrong_vectors_and_layers_are_refused(llama):
    found = circuits.rotary(llama, 0)
    with pytest.raises(ValueError, match=r"are not \[\.\.\., 8\]"):
        found.at(np.ones((3, 4)), 2)
    with pytest.raises(ValueError, match="position -1 is below 0"):
        found.at(np.ones(8), -1)
    for read in (circuits.rotary, circuits.heads_of):
        with pytest.raises(ValueError, match=r"layer 9 is outside 0\.\.3"):
            read(llama, 9)
    notes: list[str] = []
    assert [h.layer for h in readable(tiny("jamba"), fold_norms=True, notes=notes)] == [1, 3]
    assert any("JambaMambaMixer layers have no softmax attention" in n for n in notes)
