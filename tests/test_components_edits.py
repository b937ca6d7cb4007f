"""Components taken out of models against twins whose weights lack them, cell by cell."""

import copy

import numpy as np
import pytest
from tiny_models import in_dtype, tiny, tiny_llama, to_numpy, tokens

from mlxroles import engine
from mlxroles.backend import mx, nn
from mlxroles.components.decomposition import Components, Decomposition, parse
from mlxroles.components.edits import ablation
from mlxroles.components.maps import decomposable
from mlxroles.edits import LINEAR, Edit, LowRank, zero
from mlxroles.engine import Row
from mlxroles.errors import SpecError
from mlxroles.models.load import wrap

BOUND = 1e-5
COMPONENTS = 3
LENGTH = 9
BUILT: dict = {}
MAPS: dict = {}


def build(name):
    """A model and a decomposition of all its maps by random vectors, which need not sum to W."""
    if name not in BUILT:
        if name == "llama 4-bit":
            module = tiny_llama(6, hidden_size=64, intermediate_size=128)
            nn.quantize(module, group_size=32, bits=4)
            model = wrap(module, name=name)
        elif name == "llama":
            model = wrap(tiny_llama(5), name=name)
        else:
            model = tiny(name)
        kinds = ("q", "k", "v", "o") if name in NO_MLP else ("q", "k", "v", "o", "mlp")
        rng = np.random.default_rng(0)
        made = {}
        maps = decomposable(model, kinds)
        for m in maps.values():
            v = rng.standard_normal((m.d_in, COMPONENTS)) / m.d_in**0.5
            u = rng.standard_normal((COMPONENTS, m.d_out)) * 0.3
            made[m.key] = Decomposition(m.key, m.layer, m.kind, v, u, m.n_heads, m.d_head)
        BUILT[name], MAPS[model.name] = (model, Components(made)), maps
    return BUILT[name]


NO_MLP = ("gpt_oss",)
MODELS = ("llama", "llama 4-bit", "gpt2", "phi3", "gpt_neox", "qwen3", "gemma2", "gpt_oss")


def without(model, components, names, share=1.0):
    """The model's module with dense weights that lack the components, slice by slice."""
    module = copy.deepcopy(model.module)
    for name in map(parse, names):
        d, m = components.maps[name.key], MAPS[model.name][name.key]
        whole = np.zeros((m.d_out, m.d_in), np.float32)
        for head in range(max(1, m.n_heads)) if name.heads is None else name.heads:
            part = slice(head * m.d_head, (head + 1) * m.d_head) if m.n_heads else slice(None)
            u, v = d.U[name.index], d.V[:, name.index]
            if m.kind == "o":
                whole[:, part] += np.outer(u, v[part])
            else:
                whole[part] += np.outer(u[part], v)
        leaf = dict(leaves(module))[f"{m.layer}.{m.path}"]
        weight = dense(leaf)
        weight[np.arange(m.d_out) if m.rows is None else m.rows] -= share * whole
        replace(module, m, leaf, weight)
    return module


def twin_of(*given, **more):
    """The same as a model that can be asked for more than logits."""
    return wrap(without(*given, **more), name="twin")


def leaves(module):
    for i, layer in enumerate(module.layers):
        for path, leaf in layer.named_modules():
            yield f"{i}.{path}", leaf


def dense(leaf):
    weight = leaf["weight"]
    if "scales" in leaf:
        weight = mx.dequantize(
            weight, leaf["scales"], leaf["biases"], group_size=leaf.group_size, bits=leaf.bits
        )
    return to_numpy(weight).copy()


def replace(module, m, holder, weight):
    """Puts a dense linear layer in the place of a leaf."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in holder)
    made.weight = mx.array(weight)
    if "bias" in holder:
        made.bias = holder["bias"]
    *parents, last = m.path.split(".")
    place = module.layers[m.layer]
    for part in parents:
        place = place[part]
    place[last] = made


def off(got, wanted):
    got, wanted = to_numpy(got), to_numpy(wanted)
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max())


def choices(components):
    """Sets of names: every kind of map alone, in one head, and several together."""
    by_kind = {}
    for d in components.maps.values():
        by_kind.setdefault(d.kind, []).append(d)
    last = {kind: found[-1] for kind, found in by_kind.items()}
    alone = [[f"{d.key}:1"] for d in last.values()]
    in_head = [[f"{d.key}:2@H{d.n_heads - 1}"] for d in last.values() if d.n_heads]
    first = [f"{found[0].key}:0" for found in by_kind.values()]
    both = [f"{by_kind['q'][0].key}:1@H0+H1", f"{by_kind['q'][0].key}:2"]
    return [*alone, *in_head, [*first, *both]]


@pytest.mark.parametrize("name", MODELS)
def test_runs_and_sweeps_equal_models_whose_weights_lack_the_slices(name):
    """Rows of one sweep have different components, and are of different prompts."""
    model, components = build(name)
    ids, read = tokens(2, LENGTH, vocab=60, seed=3), (LENGTH - 1, LENGTH - 3)
    plain, every = model.run(ids).logits, choices(components)
    made = [ablation(model, components, names, maps=MAPS[model.name]) for names in every]
    own = engine.clean(model.network, ids, read=read)
    rows = [Row(tuple(edits), n % 2) for n, edits in enumerate(made)]
    answers = dict(engine.sweep(model.network, own, rows))
    for n, names in enumerate(every):
        twin = without(model, components, names)(ids)
        got = model.run(ids, edits=made[n]).logits
        assert off(got, twin) < BOUND, names
        assert off(got, plain) > 20 * BOUND, names
        assert off(answers[n].logits, twin[n % 2, mx.array(read)]) < BOUND, names


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_they_go_together_with_other_edits_of_the_same_layer(name):
    model, components = build(name)
    ids = tokens(2, LENGTH, vocab=60, seed=5)
    names = ["L1.q:0", "L1.v:1@H1", "L1.o:2@H0", "L1.mlp.down_proj:1"]
    more = [
        zero("z", 1, heads=[2]),
        Edit("v", 1, 0.5, "scale", heads=[0]),
        Edit("q", 1, 2.0, "scale", [3]),
        Edit("attn_out", 1, 0.1, "add"),
        Edit("resid_post", 0, 0.1, "add", [2]),
    ]
    edits = [*ablation(model, components, names), *more]
    other = twin_of(model, components, names)
    twin = other.run(ids, edits=more).logits
    assert off(model.run(ids, edits=edits).logits, twin) < BOUND
    own = engine.clean(model.network, ids, read=[LENGTH - 1], site=["z", "q"])
    inside = edits[:-1]  # joins within the layer, whose clean q, k and v are known
    rows = [Row(tuple(edits)), Row((more[0],)), Row(tuple(reversed(edits)), 1), Row(tuple(inside))]
    answers = engine.run(model.network, own, rows)
    wanted = other.run(ids[:1], edits=more[:-1]).logits[0, -1:]
    assert off(answers[3].logits, wanted) < BOUND
    for n, prompt in ((0, 0), (2, 1)):
        assert off(answers[n].logits, twin[prompt, -1:]) < BOUND


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_positions_and_shares(name):
    """At positions from p on, the rows before p stay; a half removed twice is the whole."""
    model, components = build(name)
    ids, names = tokens(1, LENGTH, vocab=60, seed=6), ["L0.k:1", "L2.q:0@H1", "L3.v:2"]
    plain = model.run(ids).logits
    late = ablation(model, components, names, positions=range(4, LENGTH))
    got = model.run(ids, edits=late).logits
    assert off(got[:, :4], plain[:, :4]) == 0
    twin = twin_of(model, components, names)
    prefix = model.prefix(ids[:, :4])
    assert off(got[:, 4:], twin.run(ids[:, 4:], prefix=prefix).logits) < BOUND
    assert (
        off(
            model.run(ids[:, 4:], prefix=prefix, edits=ablation(model, components, names)).logits,
            got[:, 4:],
        )
        < BOUND
    )
    half = ablation(model, components, names, share=0.5)
    whole = model.run(ids, edits=ablation(model, components, names)).logits
    assert off(model.run(ids, edits=[*half, *half]).logits, whole) < BOUND
    assert (
        off(
            model.run(ids, edits=half).logits,
            without(model, components, names, 0.5)(ids),
        )
        < BOUND
    )
    assert off(model.run(ids, edits=ablation(model, components, names, share=0)).logits, plain) == 0


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2"])
def test_sweeps_of_the_last_layer_at_single_positions(name):
    """Keys and values of early positions count, o and the MLP only where they are read."""
    model, components = build(name)
    ids, read = tokens(2, LENGTH, vocab=60, seed=9), (5, 7)
    last = max(d.layer for d in components.maps.values())
    keys = [key for key, d in components.maps.items() if d.layer == last]
    other = Edit("z", last, 1.5, "scale", [5], [0])
    rows = [
        Row((*ablation(model, components, [f"{key}:1"], [p], maps=MAPS[model.name]), *more), p % 2)
        for key in keys
        for p in (2, 5, 8)
        for more in ((), (other,))
    ]
    own = engine.clean(model.network, ids, read=read, site="z", late=True)
    for row, answer in zip(rows, engine.run(model.network, own, rows), strict=True):
        prompt = ids[row.prompt : row.prompt + 1]
        wanted = model.run(prompt, edits=row.edits).logits[0, mx.array(read)]
        assert off(answer.logits, wanted) < BOUND, row.edits[0].value.name
        [p] = row.edits[0].positions
        clean = own.logits[row.prompt]
        if row.edits[0].value.leaf.endswith(("o_proj", "down_proj")) and len(row.edits) == 1:
            moved = np.abs(to_numpy(answer.logits) - clean).max(axis=-1) > BOUND
            assert moved.tolist() == [r == p for r in read]


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama 4-bit"])
def test_texts_grow_as_those_of_the_model_without_the_slices(name):
    model, components = build(name)
    prompt, names = tokens(1, 7, vocab=60, seed=7).tolist()[0], choices(components)[-1]
    how = {"max_tokens": 6, "stop": (), "logprobs": True}
    found = model.generate(prompt, edits=ablation(model, components, names), **how)
    wanted = twin_of(model, components, names).generate(prompt, **how)
    assert found.tokens == wanted.tokens
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-4)
    assert "take L0.q:0" in " ".join(found.edits)
    # read under the edit, gone on without it: what is in the cache keeps it
    mixed = model.generate(prompt, prompt_edits=ablation(model, components, names), **how)
    longer = ablation(model, components, names, positions=range(7))
    for n in range(6):
        logits = model.run([*prompt, *mixed.tokens[:n]], edits=longer, positions="last").logits
        assert int(mx.argmax(logits[0, -1]).item()) == mixed.tokens[n]


def test_bfloat16_rounds_once():
    """The change is made in float32 and rounded to the leaf's output once."""
    model, components = build("llama")
    half = wrap(in_dtype(model.module, mx.bfloat16), name="llama bf16")
    ids, names = tokens(1, LENGTH, vocab=60, seed=8), ["L0.q:1"]
    [edit] = ablation(half, components, names)
    got = half.run(ids, keep=["q"], layers=[0], edits=[edit])["q", 0]
    clean = half.run(ids, keep=["q"], layers=[0])["q", 0]
    twin = twin_of(model, components, names).run(ids, keep=["q"], layers=[0])["q", 0]
    assert got.dtype == mx.bfloat16
    assert off(got, twin) < 0.02 < off(clean, twin)


def test_what_does_not_fit_is_refused():
    model, components = build("llama")
    other, _ = build("phi3")
    with pytest.raises(SpecError, match=r"no map L9\.q is decomposed"):
        ablation(model, components, ["L9.q:0"])
    with pytest.raises(SpecError, match=r"component 3 of L0\.q is outside 0\.\.2"):
        ablation(model, components, ["L0.q:3"])
    with pytest.raises(SpecError, match=r"head 2 of L0\.k is outside 0\.\.1"):
        ablation(model, components, ["L0.k:0@H2"])
    with pytest.raises(SpecError, match=r"L0\.mlp\.up_proj has no heads"):
        ablation(model, components, ["L0.mlp.up_proj:0@H2"])
    with pytest.raises(SpecError, match=r"'L0q:1' names no component; write L3\.q:17"):
        ablation(model, components, ["L0q:1"])
    with pytest.raises(SpecError, match="is named twice"):
        ablation(model, components, ["L0.q:1", "L0.q:1@H1"])
    with pytest.raises(SpecError, match=r"belong to another model|has no map"):
        ablation(other, components, ["L0.q:1"])
    low = ablation(model, components, ["L0.q:1"])[0].value
    for leaf, why in (("self_attn.o_projs", "has no leaf"), ("self_attn.k_proj", "does not fit")):
        edit = Edit(LINEAR, 0, LowRank(leaf, low.V, low.U), "add")
        with pytest.raises(ValueError, match=why):
            model.run([1, 2], edits=[edit])
    with pytest.raises(ValueError, match="a map of low rank is added"):
        Edit("z", 0, low, "add")
    with pytest.raises(ValueError, match="a map of low rank is added"):
        Edit(LINEAR, 0, 0.0)
