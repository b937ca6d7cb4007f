"""Captures and edits against plain loops over mlx_lm's layers; every cell of every array."""

import numpy as np
import plain_loops
import pytest
from tiny_models import in_dtype, off, same, tiny, tiny_llama, tokens

from mlxroles.backend import mx, nn
from mlxroles.edits import EDITABLE, SITES, Edit, apply
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import Prefix, Start, forward
from mlxroles.models.load import wrap

ARCHITECTURES = tuple(plain_loops.HOUSES)
TOKENS = tokens(2, 11)
BOUND = 5e-5
"""Largest difference in a logit or an activation, which are of order 1."""


def offered(name: str) -> list[str]:
    return [s for s in SITES if s not in tiny(name).network.block(1).missing]


@pytest.fixture(scope="module")
def kept():
    """By architecture: a run that kept everything, and what a plain loop sees."""
    made = {}

    def arrays(name):
        if name not in made:
            model, seen = tiny(name), {}

            def touch(site, layer, array):
                seen[site, layer] = array
                return array

            seen["logits"] = plain_loops.run(name, model.module, TOKENS, touch)
            made[name] = (forward(model.network, TOKENS, keep=offered(name)), seen)
        return made[name]

    return arrays


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_sites_are_offered_but_a_stream_that_does_not_exist(name):
    absent = {"resid_mid"} if name == "gpt_neox" else set()
    assert set(SITES) - set(offered(name)) == absent


@pytest.mark.parametrize("site", [s for s in SITES if s != "entropy"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kept_array_equals_the_plain_loop(name, site, kept):
    run, seen = kept(name)
    if site not in offered(name):
        assert name == "gpt_neox"
        return
    for layer in range(tiny(name).n_layers):
        wanted = seen[site, layer]
        assert off(run[site, layer], wanted) <= BOUND
        assert np.abs(np.array(wanted)).max() > 0.05


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_entropy_and_logits_equal_the_plain_loop(name, kept):
    run, seen = kept(name)
    for layer in range(tiny(name).n_layers):
        p = np.array(seen["pattern", layer]).astype(np.float64)
        terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
        assert off(run["entropy", layer], terms.sum(-1)) <= BOUND
    assert off(run.logits, seen["logits"]) <= BOUND


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keeping_everything_changes_no_logit(name, kept):
    assert same(kept(name)[0].logits, tiny(name).module(TOKENS))


@pytest.mark.parametrize("site", EDITABLE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patching_a_site_with_itself_changes_nothing(name, site, kept):
    run, network = kept(name)[0], tiny(name).network
    heads = [0, 1] if "head" in SITES[site] else None
    for edit in (Edit(site, 1, run[site, 1]), Edit(site, 1, 5.0, positions=[])):
        assert same(forward(network, TOKENS, edits=[edit]).logits, run.logits)
    for edit in (
        Edit(site, 1, 1.0, "scale", [3, 7], heads),
        Edit(site, 1, 0.0, "add", heads=heads),
    ):
        got = forward(network, TOKENS, edits=[edit]).logits
        # heads that were written to lie otherwise in memory, where some BLAS rounds otherwise
        assert off(got, run.logits) <= (BOUND if heads else 0)


OPERATIONS = {
    "replace": lambda old, new: new,
    "add": lambda old, new: old + new,
    "scale": lambda old, new: old * new,
}


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("site", EDITABLE)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_edit_equals_the_plain_loop(name, site, op, kept):
    run, model = kept(name)[0], tiny(name)
    positions, heads = [2, 6, 7], [1] if "head" in SITES[site] else None
    axes = {1: heads, 2: positions} if site == "pattern" else {1: positions, 2: heads}
    shape = list(run[site, 1].shape)
    for axis, items in axes.items():
        shape[axis] = len(items) if items else shape[axis]
    value = np.random.default_rng(4).standard_normal(shape, dtype=np.float32)

    def touch(at, layer, array):
        if (at, layer) != (site, 1):
            return array
        changed = np.array(array)
        old = changed
        for axis, items in axes.items():
            old = np.take(old, items, axis) if items else old
        new = OPERATIONS[op](old, value)
        for i, p in enumerate(positions):
            for j in range(1 if heads else 0):
                if site == "pattern":
                    changed[:, heads[j], p] = new[:, j, i]
                else:
                    changed[:, p, heads[j]] = new[:, i, j]
            if not heads:
                changed[:, p] = new[:, i]
        return mx.array(changed)

    edits = [Edit(site, 1, mx.array(value), op, positions, heads)]
    got = forward(model.network, TOKENS, edits=edits).logits
    assert off(got, plain_loops.run(name, model.module, TOKENS, touch)) <= 4 * BOUND
    # some edits do nothing: a key that nobody reads; none of these
    assert off(got, run.logits) > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_zeroed_head_is_its_zeroed_slice_at_the_output_projection(name, monkeypatch):
    model, house = tiny(name), plain_loops.HOUSES[name]
    attention = model.module.layers[2][house.attention]
    projection = attention[house.out]
    d = projection.weight.shape[1] // model.n_heads

    class Cut(nn.Module):
        def __call__(self, x):
            return projection(x * (mx.arange(x.shape[-1]) // d != 3))

    zeroed = forward(model.network, TOKENS, edits=[Edit("z", 2, 0.0, heads=[3])]).logits
    monkeypatch.setitem(attention, house.out, Cut())
    assert same(zeroed, model.module(TOKENS))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_zeroed_weights_of_a_head_are_a_zeroed_head(name):
    network = tiny(name).network
    by_z = forward(network, TOKENS, edits=[Edit("z", 2, 0.0, heads=[3])]).logits
    by_pattern = forward(network, TOKENS, edits=[Edit("pattern", 2, 0.0, heads=[3])]).logits
    assert off(by_z, by_pattern) <= 1e-5


def test_edits_at_one_site_are_carried_out_in_order():
    network = tiny("llama").network
    first, second = Edit("resid_post", 0, 2.0, "scale"), Edit("resid_post", 0, 1.0, "add")
    both = forward(network, TOKENS, edits=[first, second], keep=["resid_post"])
    clean = forward(network, TOKENS, keep=["resid_post"])
    assert same(both["resid_post", 0], clean["resid_post", 0] * 2 + 1)


def test_edits_of_half_precision_stay_in_half_precision():
    model = wrap(in_dtype(tiny("llama").module, mx.bfloat16))
    ones = mx.ones((2, 1, 64), mx.float32)
    for site in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
        edits = [Edit(site, 1, ones, op, [4]) for op in ("replace", "add", "scale")]
        run = forward(model.network, TOKENS, edits=edits, keep=["resid_post", site])
        assert {a.dtype for at in run.sites.values() for a in at.values()} == {mx.bfloat16}
        assert run.logits.dtype == mx.bfloat16
    heads = [Edit("z", 1, 0.5, "scale", heads=[0]), Edit("pattern", 2, 0.0, "scale", heads=[1])]
    run = forward(model.network, TOKENS, edits=heads, keep=["z", "resid_post"])
    assert run["z", 2].dtype == run["resid_post", 3].dtype == mx.bfloat16


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("positions", [None, [1]])
@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.full((4,), 0.5), mx.array([[0.5]])])
def test_an_edit_keeps_shape_and_dtype(op, positions, value):
    array = mx.random.normal((1, 3, 4), key=mx.random.key(0)).astype(mx.bfloat16)
    before = np.array(array.astype(mx.float32))
    got = apply(Edit("resid_pre", 0, value, op, positions), array)
    assert (got.shape, got.dtype) == (array.shape, array.dtype)
    want = np.array(before)
    for p in range(3) if positions is None else positions:
        want[:, p] = OPERATIONS[op](before[:, p], np.float32(0.5))
    assert off(got, mx.array(want).astype(mx.bfloat16)) == 0
    assert same(array, before)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("positions", [None, [0, 1]])
def test_a_value_that_would_enlarge_the_array_is_refused(op, positions):
    edit = Edit("resid_pre", 0, mx.zeros((3, 2, 4)), op, positions)
    with pytest.raises(ValueError, match="broadcast"):
        apply(edit, mx.zeros((1, 2, 4)))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "gpt_neox", "qwen3"])
def test_half_precision_stays_within_its_rounding(name, dtype, kept):
    run, _ = kept(name)
    model = wrap(in_dtype(tiny(name).module, dtype))
    assert model.dtype == dtype
    half = forward(model.network, TOKENS, keep=offered(name))
    assert same(half.logits, model.module(TOKENS))
    assert half["pattern", 0].dtype == mx.float32
    bound = 0.15 if dtype == mx.bfloat16 else 0.05
    for site in offered(name):
        assert off(half[site], run[site]) <= bound * float(mx.abs(run[site]).max().item())
    for site in EDITABLE:
        edits = [Edit(site, 2, half[site, 2])]
        assert same(forward(model.network, TOKENS, edits=edits).logits, half.logits)


def quantised(bits):
    module = tiny_llama(3, hidden_size=64, intermediate_size=128)
    if bits == "mixed":
        many = {"down_proj": 8, "v_proj": 6, "lm_head": 6}
        nn.quantize(
            module,
            class_predicate=lambda path, m: (
                hasattr(m, "to_quantized")
                and {"group_size": 32, "bits": many.get(path.rsplit(".", 1)[-1], 4)}
            ),
        )
    else:
        nn.quantize(module, group_size=32, bits=bits)
    return wrap(module)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, "mixed"])
def test_quantised_models_are_captured_as_they_compute(bits):
    model, seen = quantised(bits), {}
    found = {m.bits for m in model.module.modules() if isinstance(m, nn.QuantizedLinear)}
    assert found == ({4, 6, 8} if bits == "mixed" else {bits})

    def touch(site, layer, array):
        seen[site, layer] = array
        return array

    logits = plain_loops.run("llama", model.module, TOKENS, touch)
    run = forward(model.network, TOKENS, keep=tuple(SITES))
    assert same(run.logits, model.module(TOKENS))
    assert off(run.logits, logits) <= BOUND
    for (site, layer), wanted in seen.items():
        assert off(run[site, layer], wanted) <= BOUND
    for site in EDITABLE:
        edits = [Edit(site, 1, run[site, 1])]
        assert same(forward(model.network, TOKENS, edits=edits).logits, run.logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_rows_equal_single_runs(name):
    model, rows = tiny(name), [row[:n] for row, n in zip(TOKENS.tolist(), (11, 6), strict=True)]
    together = model.run(rows, keep=["resid_post", "z", "pattern"])
    last = model.run(rows, positions="last").logits
    for i, row in enumerate(rows):
        n = len(row)
        alone = model.run(row, keep=["resid_post", "z", "pattern"])
        assert off(together.logits[i, :n], alone.logits[0]) <= BOUND
        assert off(last[i, 0], alone.logits[0, -1]) <= BOUND
        for layer in range(model.n_layers):
            for site in ("resid_post", "z"):
                assert off(together[site, layer][i, :n], alone[site, layer][0]) <= BOUND
            pattern = together["pattern", layer][i]
            assert off(pattern[:, :n, :n], alone["pattern", layer][0]) <= BOUND
            assert float(mx.abs(pattern[:, :n, n:]).max().item() if n < 11 else 0) == 0


@pytest.mark.parametrize("cut", [1, 4, 10])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_continuing_from_a_prefix_equals_the_whole_run(name, cut, kept):
    run, _ = kept(name)
    model = tiny(name)
    prefix = model.prefix(TOKENS[:, :cut])
    sites = [s for s in offered(name) if name != "deepseek_v3" or s not in ("q", "k", "v", "z")]
    got = model.run(TOKENS[:, cut:], keep=sites, prefix=prefix)
    assert got.offset == cut
    assert off(got.logits, run.logits[:, cut:]) <= BOUND
    for site in sites:
        for layer in range(model.n_layers):
            whole = run[site, layer]
            part = whole[:, :, cut:] if site in ("pattern", "entropy") else whole[:, cut:]
            assert off(got[site, layer], part) <= BOUND * max(1, np.abs(np.array(part)).max())


@pytest.mark.parametrize("site", EDITABLE)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_edits_after_a_prefix_count_from_its_end(name, site):
    model, value = tiny(name), 0.3
    prefix = model.prefix(TOKENS[:, :4])
    whole = model.run(TOKENS, edits=[Edit(site, 1, value, "add", [4, 6])]).logits
    edits = [Edit(site, 1, value, "add", [0, 2])]
    part = model.run(TOKENS[:, 4:], edits=edits, prefix=prefix).logits
    assert off(part, whole[:, 4:]) <= BOUND


def test_one_prefix_serves_many_rows_and_stays_as_it_is():
    model = tiny("llama")
    prefix = model.prefix(TOKENS[0, :5])
    before = [np.array(p.k) for p in prefix]
    rows = mx.stack([TOKENS[0, 5:], TOKENS[1, 5:], TOKENS[0, 5:]])
    got = model.run(rows, prefix=prefix).logits
    whole = mx.concatenate([mx.broadcast_to(TOKENS[:1, :5], (3, 5)), rows], axis=1)
    assert off(got, model.module(whole)[:, 5:]) <= BOUND
    assert all(same(p.k, k) for p, k in zip(prefix, before, strict=True))


def test_edited_prefix_is_that_of_the_edited_run():
    model, edit = tiny("llama"), Edit("resid_post", 0, 0.5, "add", [2])
    whole = model.run(TOKENS, edits=[edit]).logits
    got = model.run(TOKENS[:, 5:], prefix=model.prefix(TOKENS[:, :5], edits=[edit])).logits
    assert off(got, whole[:, 5:]) <= BOUND


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_starting_at_any_layer_equals_the_whole_run(name, kept):
    run, _ = kept(name)
    network, n = tiny(name).network, tiny(name).n_layers
    for layer in range(n + 1):
        entering = run["resid_pre", layer] if layer < n else run["resid_post", n - 1]
        assert same(forward(network, TOKENS, start=Start(layer, entering)).logits, run.logits)
    later = forward(network, TOKENS, start=Start(2, run["resid_pre", 2]), keep=["z"])
    assert later.layers("z") == [2, 3]
    assert same(later["z"], run["z"][2:])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_the_positions_read_have_logits(name, kept):
    run, network = kept(name)[0], tiny(name).network
    for read in ([10], [0, 5], [3, 3, 1]):
        got = forward(network, TOKENS, read=read).logits
        assert off(got, run.logits[:, mx.array(read)]) <= BOUND
    own = mx.array([[10, 2], [4, 5]])
    got = forward(network, TOKENS, read=own).logits
    for row in range(2):
        assert off(got[row], run.logits[row, own[row]]) <= BOUND


def test_negative_positions_count_from_each_prompts_end():
    model, rows = tiny("llama"), [[5, 6, 7, 8], [9, 10]]
    got = model.run(rows, positions=[-1, 0]).logits
    for i, row in enumerate(rows):
        alone = model.run(row).logits[0]
        assert off(got[i, 0], alone[-1]) <= BOUND
        assert off(got[i, 1], alone[0]) <= BOUND


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embedding_and_unembedding_are_the_ends_of_a_run(name, kept):
    run, seen = kept(name)
    model = tiny(name)
    assert same(model.embed(TOKENS), run["resid_pre", 0])
    assert off(model.embed(TOKENS), seen["resid_pre", 0]) == 0
    assert same(model.unembed(run["resid_post", model.n_layers - 1]), run.logits)


def test_layers_after_the_last_wanted_one_are_not_run():
    model = tiny("llama")
    called, order = [], {id(layer): i for i, layer in enumerate(model.module.layers)}

    class Counting(type(model.module.layers[0])):
        def __call__(self, *args, **kwargs):
            called.append(order[id(self)])
            return super().__call__(*args, **kwargs)

    before = [type(layer) for layer in model.module.layers]
    for layer in model.module.layers:
        layer.__class__ = Counting
    try:
        forward(model.network, TOKENS, keep=["resid_post"], layers=[1], logits=False)
        assert called == [0, 1]
        called.clear()
        start = Start(2, mx.zeros((2, 11, 64)))
        forward(model.network, TOKENS, start=start)
        assert called == [2, 3]
    finally:
        for layer, cls in zip(model.module.layers, before, strict=True):
            layer.__class__ = cls


@pytest.mark.parametrize("name", ["gemma4", "muse_spark", "talkie", "rwkv7", "hunyuan"])
def test_single_layers_of_models_with_more_state_than_their_stream(name):
    model = tiny(name)
    whole = forward(model.network, TOKENS, keep=["resid_post"])
    one = forward(model.network, TOKENS, keep=["resid_post"], layers=[1], logits=False)
    assert same(one["resid_post", 1], whole["resid_post", 1])
    assert same(whole.logits, model.module(TOKENS))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompt_of_one_token(name):
    model = tiny(name)
    latent = {"q", "k", "v", "z"} if name == "deepseek_v3" else set()
    sites = [s for s in offered(name) if s not in latent]
    run, seen = model.run([7], keep=sites), {}

    def touch(site, layer, array):
        seen[site, layer] = array
        return array

    logits = plain_loops.run(name, model.module, mx.array([[7]]), touch)
    assert off(run.logits, logits) <= BOUND
    for site in set(sites) - {"entropy"}:
        assert off(run[site, 1], seen[site, 1]) <= BOUND
    for site in latent:
        with pytest.raises(ModelError, match=f"{site} cannot be captured .* single token"):
            model.run([7], keep=[site])


NETWORK_REFUSALS = {
    "layer": ({"keep": ["z"], "layers": [4]}, ValueError, r"layer 4 is outside 0\.\.3"),
    "negative layer": ({"keep": ["z"], "layers": [-1]}, ValueError, "layer -1 is outside"),
    "no layer": ({"keep": ["z"], "layers": []}, ValueError, "no layer at which"),
    "layer of an edit": ({"edits": [Edit("z", 9, 0.0)]}, ValueError, "layer 9 is outside"),
    "site": ({"keep": ["resid"]}, ModelError, "no site 'resid'; the sites are resid_pre"),
    "logits are no site": ({"keep": ["logits"]}, ModelError, "no site 'logits'; .*entropy$"),
    "position": ({"edits": [Edit("z", 0, 0.0, positions=[11])]}, ValueError, "position 11 is out"),
    "negative position": (
        {"edits": [Edit("resid_pre", 0, 0.0, positions=[-1])]},
        ValueError,
        "position -1 is outside 0..10",
    ),
    "head": ({"edits": [Edit("z", 0, 0.0, heads=[4])]}, ValueError, r"head 4 is outside 0\.\.3"),
    "kv head": ({"edits": [Edit("k", 0, 0.0, heads=[2])]}, ValueError, "head 2 is outside 0..1"),
    "shape": (
        {"edits": [Edit("resid_pre", 0, mx.zeros((3, 11, 64)), "add")]},
        ValueError,
        "broadcast",
    ),
    "read": ({"read": [11]}, ValueError, r"position 11 is outside 0\.\.10"),
    "negative read": ({"read": [-1]}, ValueError, "position -1 is outside"),
    "read in a row": ({"read": mx.array([[0], [12]])}, ValueError, "position 12 is outside"),
    "read of other rows": ({"read": mx.array([[0], [1], [2]])}, ValueError, "shape"),
    "nothing to read": ({"read": []}, ValueError, "positions to read have shape"),
    "start": ({"start": Start(5, mx.zeros((2, 11, 64)))}, ValueError, "start layer 5 is outside"),
    "shape of a start": (
        {"start": Start(1, mx.zeros((2, 10, 64)))},
        ValueError,
        r"a stream of shape \(2, 10, 64\) cannot start; expected \(2, 11, 64\)",
    ),
    "edit before the start": (
        {"start": Start(2, mx.zeros((2, 11, 64))), "edits": [Edit("resid_post", 1, 0.0)]},
        ValueError,
        "layer 1 lies before the start layer 2",
    ),
    "kept before the start": (
        {"start": Start(2, mx.zeros((2, 11, 64))), "keep": ["z"], "layers": [1, 3]},
        ValueError,
        "layer 1 lies before",
    ),
    "kept after the end": (
        {"start": Start(4, mx.zeros((2, 11, 64))), "keep": ["z"]},
        ValueError,
        "no layer at which",
    ),
    "layers of a prefix": (
        {"prefix": [Prefix(mx.zeros((1, 2, 3, 16)), mx.zeros((1, 2, 3, 16)))] * 3},
        ValueError,
        "a prefix of 3 layers",
    ),
}


@pytest.mark.parametrize("case", NETWORK_REFUSALS)
def test_what_does_not_exist_is_refused_by_name(case):
    asked, error, match = NETWORK_REFUSALS[case]
    model = tiny("llama")
    want = model.module(TOKENS)
    with pytest.raises(error, match=match):
        forward(model.network, TOKENS, **asked)
    assert same(model.module(TOKENS), want)
    assert type(model.module.layers[0]).__name__ == "TransformerBlock"
    assert not hasattr(type(model.module.layers[0]), "_tapped_class")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"site": "resid_mid"}, "cannot be edited"),
        ({"site": "entropy"}, "cannot be edited"),
        ({"site": "resid_pre", "heads": [0]}, "has no heads"),
        ({"site": "z", "op": "zero"}, "op 'zero' is none of"),
        ({"site": "z", "positions": [1, 1]}, "a position is named twice"),
        ({"site": "z", "heads": [0, 2, 0]}, "a head is named twice"),
    ],
)
def test_edit_that_means_nothing_is_refused(given, match):
    with pytest.raises(ValueError, match=match):
        Edit(**{"layer": 0, "value": 0.0} | given)


def test_positions_may_be_numpy_integers():
    model = tiny("llama")
    edits = [Edit("z", 1, 0.0, positions=np.arange(3), heads=[np.int64(2)])]
    plain = [Edit("z", 1, 0.0, positions=[0, 1, 2], heads=[2])]
    assert same(model.run(TOKENS, edits=edits).logits, model.run(TOKENS, edits=plain).logits)
    got = model.run(TOKENS, positions=np.array([-1, 2])).logits
    assert same(got, model.run(TOKENS, positions=[10, 2]).logits)


MODEL_REFUSALS = {
    "empty prompt": (([],), {}, PromptError, "a prompt has no tokens"),
    "empty row": (([[1], []],), {}, PromptError, "a prompt has no tokens"),
    "id": (([1, 128],), {}, PromptError, r"token id 128 is outside 0\.\.127 of llama"),
    "negative id": (([[1, 2], [-1]],), {}, PromptError, "token id -1 is outside"),
    "floats": (([1.0, 2.0],), {}, TypeError, "integer"),
    "text": (("123",), {}, TypeError, "integer"),
    "position": (([1, 2],), {"positions": [2]}, ValueError, r"position 2 is outside 0\.\.1"),
    "position of one row": (([[1, 2], [1]],), {"positions": [1]}, ValueError, "position 1"),
    "no position": (([1, 2],), {"positions": []}, ValueError, "no positions are named"),
    "word": (([1, 2],), {"positions": "first"}, ValueError, "neither a list nor 'last'"),
}


@pytest.mark.parametrize("case", MODEL_REFUSALS)
def test_prompts_and_positions_are_checked(case):
    given, options, error, match = MODEL_REFUSALS[case]
    with pytest.raises(error, match=match):
        tiny("llama").run(*given, **options)


def test_the_forward_itself_refuses_tokens_that_would_read_foreign_memory():
    network = tiny("llama").network
    with pytest.raises(PromptError, match="token id 128 is outside"):
        forward(network, mx.array([[1, 128]]))
    with pytest.raises(PromptError, match="no tokens"):
        forward(network, mx.zeros((1, 0), mx.int32))
    with pytest.raises(ValueError, match="tokens have 1 axes"):
        forward(network, mx.array([1, 2]))


def test_what_an_architecture_lacks_is_refused_by_name():
    for name, keep, match in (
        ("gpt_neox", "resid_mid", "resid_mid cannot be captured from gpt_neox: no submodule"),
        ("mamba", "pattern", "pattern cannot be captured from mamba: .* no softmax attention"),
        ("gemma3n", "resid_post", "gemma3n: the residual stream has 4 axes and not 3"),
        ("longcat_flash", "z", "the layer attends 2 times"),
    ):
        with pytest.raises(ModelError, match=match):
            forward(tiny(name).network, TOKENS, keep=[keep])
    blocks = tiny("jamba").network.anatomy.blocks
    absent = next(i for i, block in enumerate(blocks) if "z" in block.missing)
    with pytest.raises(ModelError, match="pattern cannot be captured from jamba"):
        forward(tiny("jamba").network, TOKENS, keep=["pattern"], layers=[absent])
    with pytest.raises(ModelError, match="z cannot be captured from mamba"):
        forward(tiny("mamba").network, TOKENS, edits=[Edit("z", 0, 0.0)])
    attends = forward(tiny("jamba").network, TOKENS, keep=["pattern"]).layers("pattern")
    assert attends == [i for i, block in enumerate(blocks) if block.kind == "sdpa"]
    assert len(attends) == 2


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mamba", "keep a state instead of keys and values"),
        ("rwkv7", "keep a state instead of keys and values"),
        ("jamba", "some of its layers keep a state"),
        ("longcat_flash", "a second set of keys"),
        ("gemma4", "not every layer has a key-value cache"),
        ("nemotron-nas", "not every layer has a key-value cache"),
        ("phi3small", "show later positions to earlier ones"),
        ("iquestloopcoder", "never calls its layers"),
    ],
)
def test_models_that_cannot_go_on_from_a_prefix_say_why(name, match):
    with pytest.raises(ModelError, match=f"{name} cannot go on from a prefix: .*{match}"):
        tiny(name).prefix([1, 2])


def test_prompts_of_a_prefix_have_one_length():
    with pytest.raises(ValueError, match="different lengths cannot share a prefix"):
        tiny("llama").prefix([[1, 2], [3]])


def test_stateful_models_cannot_start_from_their_stream():
    with pytest.raises(ValueError, match="gemma4 cannot start from a residual stream"):
        forward(tiny("gemma4").network, TOKENS, start=Start(1, mx.zeros((2, 11, 64))))


def test_models_that_hide_their_layers_still_give_logits_where_read():
    model = tiny("iquestloopcoder")
    want = model.module(TOKENS)
    assert same(forward(model.network, TOKENS).logits, want)
    assert same(forward(model.network, TOKENS, read=[3]).logits, want[:, 3:4])
    with pytest.raises(ModelError, match="the model never calls its layers"):
        forward(model.network, TOKENS, keep=["resid_post"])
    with pytest.raises(ModelError, match="mlx_lm's own forward fails"):
        forward(tiny("olmo").network, TOKENS)


def test_a_run_says_what_it_does_not_hold():
    run = forward(tiny("llama").network, TOKENS, keep=["z"], layers=[1, 2])
    assert run["z"].shape == (2, 2, 11, 4, 16)
    with pytest.raises(KeyError, match=r"z was kept at layers \[1, 2\], not at 0"):
        run["z", 0]
    with pytest.raises(KeyError, match="'q' was not kept"):
        run["q", 1]
