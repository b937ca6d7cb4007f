"""Runs that start at a later position, over every model module of mlx_lm that allows it.

Prompts are longer than the windows and chunks of the tiny configs, so that what a prefix's mask
hides shows. The oracle is the run of the whole prompt without any cache.
"""

import architectures
import numpy as np
import plain_loops
import pytest
from tiny_models import off, same, tiny, to_numpy, tokens

from mlxroles.anatomy import JOIN_LATE, START_LATE, forbidden_by_type
from mlxroles.anatomy import shortcuts as reasons
from mlxroles.backend import mx
from mlxroles.edits import EDITABLE, Edit
from mlxroles.forward import Prefix, forward
from mlxroles.forward.network import Recorder

LENGTH = 19
TOKENS = tokens(2, LENGTH, vocab=100, seed=3)
REFUSED = {"iquestloopcoder", "nanbeige", "olmo"}
NAMES = [name for name in architectures.names() if name not in REFUSED]
ALLOWED = [name for name in NAMES if START_LATE not in forbidden_by_type(name)]
WINDOWED = ["cohere2", "gemma3_text", "gpt_oss", "llama4", "mimo_v2_flash", "ministral3", "olmo3"]
BOUND = 1e-5
"""Largest difference, as a share of the largest number of the array where that is above 1."""
AMPLIFIED = {"muse_spark": 2e-3}
"""Logits whose tiny head blows the rounding of the stream up; the streams keep the bound."""


@pytest.fixture(scope="module")
def whole():
    """By architecture: a run of the whole prompt without a cache, and one that was recorded."""
    made = {}

    def run(name):
        if name not in made:
            network = tiny(name).network
            missing = network.block(network.anatomy.blocks.index(attending(network))).missing
            keep = [site for site in ("resid_post", "z") if site not in missing]
            recorders = [Recorder() for _ in network.layers]
            plain = forward(network, TOKENS, keep=keep)
            recorded = forward(network, TOKENS, keep=keep, prefix=recorders)
            made[name] = (plain, recorded, [cache.kv for cache in recorders])
        return made[name]

    return run


def attending(network):
    return next(block for block in network.anatomy.blocks if block.kind != "none")


def cut_from(kv, end, rows=slice(None)):
    """Prefixes of the first positions of recorded keys and values."""
    return [Prefix(k[rows, :, :end], v[rows, :, :end]) for k, v in kv]


def close(got, wanted, bound=BOUND):
    return off(got, wanted) <= bound * max(1, np.abs(to_numpy(wanted)).max())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_plan_says_by_name_is_what_the_network_shows(name):
    anatomy = tiny(name).network.anatomy
    assert anatomy.resumable is (JOIN_LATE not in anatomy.forbidden)
    assert anatomy.prefix is (START_LATE not in anatomy.forbidden)
    if name == "gemma3n":  # the tiny one shares no keys and values between layers, real ones do
        assert anatomy.prefix
        assert forbidden_by_type(name)[START_LATE] == reasons.UNEQUAL
        return
    assert dict(anatomy.forbidden) == forbidden_by_type(name)


def test_an_unknown_file_is_taken_to_allow_everything():
    assert forbidden_by_type("llama_9") == {}


@pytest.mark.parametrize("name", [*ALLOWED, "gemma3n"])
def test_caches_that_record_change_no_bit(name, whole):
    plain, recorded, _ = whole(name)
    assert same(recorded.logits, plain.logits)
    for site, arrays in plain.sites.items():
        for layer, wanted in arrays.items():
            assert same(recorded[site, layer], wanted)


@pytest.mark.parametrize("name", [*ALLOWED, "gemma3n"])
def test_runs_from_a_prefix_equal_whole_runs(name, whole):
    plain, _, kv = whole(name)
    network = tiny(name).network
    shortest = network.anatomy.shortest
    for start in (1, 10, LENGTH - shortest):
        keep = list(plain.sites)
        got = forward(network, TOKENS[:, start:], keep=keep, prefix=cut_from(kv, start))
        assert close(got.logits, plain.logits[:, start:], AMPLIFIED.get(name, BOUND))
        for site in keep:
            for layer in plain.layers(site):
                assert close(got[site, layer], plain[site, layer][:, start:])
    last = forward(network, TOKENS[:, -1:], prefix=cut_from(kv, LENGTH - 1)).logits
    assert close(last, plain.logits[:, -1:], AMPLIFIED.get(name, BOUND))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "deepseek_v3", *WINDOWED])
def test_one_prompts_prefix_serves_rows_of_any_number(name, whole):
    _, _, kv = whole(name)
    model = tiny(name)
    rows = mx.stack([TOKENS[0, 11:], TOKENS[1, 11:], TOKENS[0, 11:]])
    got = model.run(rows, prefix=cut_from(kv, 11, slice(1))).logits
    together = mx.concatenate([mx.broadcast_to(TOKENS[:1, :11], (3, 11)), rows], axis=1)
    assert close(got, model.module(together)[:, 11:])


@pytest.mark.parametrize("site", EDITABLE)
@pytest.mark.parametrize("name", [*WINDOWED, "deepseek_v3"])
def test_edits_after_a_prefix_equal_those_of_the_whole_run(name, site, whole):
    _, _, kv = whole(name)
    network = tiny(name).network
    assert site not in network.block(1).missing
    heads = None if site in ("resid_pre", "resid_post", "attn_out", "mlp_out") else [1]
    for start in (3, 12, LENGTH - 2):
        values = np.random.default_rng(start).standard_normal(2).tolist()
        edits = [Edit(site, 1, values[0], "add", [LENGTH - 1, start], heads)]
        edits.append(Edit("resid_post", 2, values[1], "scale", [LENGTH - 2]))
        wanted = forward(network, TOKENS, edits=edits).logits[:, start:]
        after = [
            Edit(e.site, e.layer, e.value, e.op, [p - start for p in e.positions], e.heads)
            for e in edits
        ]
        got = forward(network, TOKENS[:, start:], edits=after, prefix=cut_from(kv, start)).logits
        assert close(got, wanted)


@pytest.mark.parametrize("window", [None, 1, 3, 6, 40])
@pytest.mark.parametrize(("before", "n"), [(0, 1), (0, 6), (4, 1), (4, 2), (9, 5)])
def test_masks_of_a_prefix_are_the_last_rows_of_the_whole_mask(before, n, window):
    made = Prefix(mx.zeros((1, 1, before, 2)), mx.zeros((1, 1, before, 2))).make_mask
    hidden = plain_loops.hidden(before + n, window)[before:]
    array = made(n, return_array=True, window_size=window)
    mask = made(n, window_size=window)
    if n == 1 and not hidden.any():
        assert mask is None
        assert array is None
        return
    assert np.array_equal(~np.array(array), hidden)
    narrow = window is not None and window < before + n
    assert np.array_equal(mask, array) if narrow else mask == "causal"


@pytest.mark.parametrize("name", ["deepseek_v3", "mistral4", "glm4_moe_lite"])
def test_latent_attention_needs_two_positions_to_show_its_heads(name):
    network = tiny(name).network
    assert network.anatomy.shortest == 2
    assert (
        tiny("llama").network.anatomy.shortest == tiny("deepseek_v2").network.anatomy.shortest == 1
    )
