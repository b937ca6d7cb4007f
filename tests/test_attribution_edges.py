"""Edges against path patching by plain loops, every reader computed from its own stream."""

import numpy as np
import plain_loops
import pytest
from plain_loops import HOUSES, weighted
from tiny_models import in_dtype, off, tiny, tiny_llama, to_numpy, tokens

from mlxroles import engine
from mlxroles.attribution import Metric, Node, edges, estimate, metric, path_rows
from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError, SpecError
from mlxroles.forward import forward
from mlxroles.models.load import wrap
from mlxroles.probes import targets_from_ids

LENGTH = 5
ODDS = metric("log_odds", targets_from_ids([5]))
NAMES = ("llama", "qwen3", "gemma2", "gpt_neox")


WEIGHTED = Metric("weighted", weighted)


def built(name):
    """A tiny model; the Llama has 4 heads on 2 kv heads."""
    return wrap(tiny_llama(0, num_hidden_layers=3)) if name == "llama" else tiny(name)


class Plain:
    """Path patching by plain loops: nothing is batched, nothing is known about engines."""

    def __init__(self, name, model, ids, donor):
        self.name, self.module, self.ids, self.donor = name, model.module, ids, donor
        self.house, self.clean = HOUSES[name], {}

        def touch(site, layer, array):
            self.clean[site, layer] = array
            return array

        self.logits = plain_loops.run(name, self.module, ids, touch)

    def changed(self, source, size):
        """Change of the stream by a source that goes ``size`` of the way to the donor."""
        site = {"head": "z", "mlp": "mlp_out", "embed": "resid_pre"}[source.part]
        own = self.clean[site, source.layer]
        step = size * (self.donor[site][source.layer] - own)
        if source.part != "head":
            return step
        z = mx.array(own)
        z[:, :, source.head] = own[:, :, source.head] + step[:, :, source.head]
        layer, house = self.module.layers[source.layer], self.house
        a = layer[house.attention][house.out](z.reshape(*z.shape[:2], -1))
        a = layer[house.after_attention](a) if house.after_attention else a
        return a - self.clean["attn_out", source.layer]

    def patched(self, source, target, size):
        """Logits of a run in which the target alone reads the source's change."""
        step, house = self.changed(source, size), self.house
        block = self.module.layers[target.layer]

        def touch(site, i, array):
            if i != target.layer:
                return array
            if site == target.part and site in ("q", "k", "v"):
                stream = self.clean["resid_pre", i] + step
                heads = house.heads(block[house.attention], block.input_layernorm(stream))
                array = mx.array(array)
                made = getattr(heads, site).swapaxes(1, 2)
                array[:, :, target.head] = made[:, :, target.head]
            if site == "mlp_out" and target.part == "mlp":
                read = self.clean["resid_pre" if house.parallel else "resid_mid", i] + step
                array = block.mlp(block[house.before_mlp](read))
                array = block[house.after_mlp](array) if house.after_mlp else array
            return array + step if site == "resid_post" and target.part == "resid" else array

        return plain_loops.run(self.name, self.module, self.ids, touch)


def sites_of(model, ids):
    run = forward(model.network, ids, keep=["z", "mlp_out", "resid_pre"], logits=False)
    return {site: dict(run.sites[site]) for site in run.sites}


def pairs_of(found):
    """(source, target) of every edge that exists, with their indices."""
    here = np.argwhere(np.isfinite(found.scores[0]))
    return [((s, t), (found.sources[s], found.targets[t])) for s, t in here]


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """A model, its prompt, another prompt's sites, their edges, and the plain loops over them."""
    model = built(request.param)
    ids, other = tokens(1, LENGTH, seed=1), tokens(1, LENGTH, seed=2)
    donor = sites_of(model, other)
    found = edges(model.network, ids, donor, WEIGHTED, read=[LENGTH - 1])
    return model, ids, donor, found, Plain(request.param, model, ids, donor)


def test_every_edge_that_exists_has_a_score_and_no_other(case):
    model, _, _, found, _ = case
    n, parallel = model.n_layers, HOUSES[model.architecture].parallel
    kv = model.n_kv_heads
    assert len(found.sources) == 1 + n * (4 + 1)
    assert len(found.targets) == n * (4 + 2 * kv + 1) + 1
    assert found.targets[-1] == Node(n - 1, "resid")
    for s, source in enumerate(found.sources):
        for t, target in enumerate(found.targets):
            same_block = source.layer == target.layer
            inside = same_block and (source.part, target.part) == ("head", "mlp")
            exists = (
                source.part == "embed"
                or target.part == "resid"
                or source.layer < target.layer
                or (inside and not parallel)
            )
            assert np.isfinite(found.scores[0, s, t]) == exists


def test_edges_are_the_slopes_of_plain_path_patching(case):
    model, _, _, found, plain = case
    size, told, name = 0.01, 0, model.architecture
    scale = float(np.abs(to_numpy(plain.logits)).max())
    for (s, t), pair in pairs_of(found)[:: 1 if name == "llama" else 5]:
        ends = [
            float(np.array(WEIGHTED(plain.patched(*pair, sign * size)[:, -1:]))[0])
            for sign in (1, -1)
        ]
        want = (ends[0] - ends[1]) / (2 * size)
        noise = 2e-5 * max(1.0, scale) / size
        assert abs(found.scores[0, s, t] - want) <= 0.02 * abs(want) + noise, pair
        told += abs(want) > 5 * noise
    assert told > 20


def test_path_rows_are_path_patching(case):
    model, ids, donor, found, plain = case
    pairs = [pair for _, pair in pairs_of(found)][:: 1 if model.architecture == "llama" else 4]
    own = engine.clean(model.network, ids, read=[LENGTH - 1])
    rows = path_rows(model.network, own, donor, pairs)
    assert len(rows) == len(pairs)
    moved = 0
    for index, answer in engine.sweep(model.network, own, rows):
        want = to_numpy(plain.patched(*pairs[index], 1.0))[0, -1:]
        assert off(answer.logits, want) <= 1e-4, pairs[index]
        moved += off(want, plain.logits[0, -1:]) > 1e-3
    assert moved > len(pairs) / 4


@pytest.mark.parametrize("name", [*NAMES, "gpt_oss", "olmo2", "granite", "mixtral"])
def test_the_edges_of_a_source_add_up_to_the_estimate_of_its_cells(name):
    model = built(name)
    ids = tokens(2, LENGTH, seed=3)
    donor = sites_of(model, tokens(2, LENGTH, seed=4))
    found = edges(model.network, ids, donor, ODDS, read=[LENGTH - 1])
    whole = estimate(model.network, ids, donor, ODDS, read=[LENGTH - 1])
    assert np.abs(found.value - whole.value).max() <= 1e-5
    sums = np.nansum(found.scores, axis=-1)
    for s, source in enumerate(found.sources):
        site = {"head": "z", "mlp": "mlp_out", "embed": "resid_pre"}[source.part]
        cells = whole.cells[site][:, source.layer]
        cells = cells if source.head is None else cells[:, source.head]
        want = cells.sum(axis=-1)
        assert np.abs(sums[:, s] - want).max() <= 1e-4 * max(1.0, np.abs(want).max()), source


def test_edges_of_quantised_and_half_precision_models_add_up_too():
    module = tiny_llama(3, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=4)
    half = in_dtype(tiny_llama(3), mx.bfloat16)
    for made, allowed in ((module, 1e-4), (half, 0.1)):
        model, ids = wrap(made), tokens(1, LENGTH, seed=3)
        donor = sites_of(model, tokens(1, LENGTH, seed=4))
        found = edges(model.network, ids, donor, ODDS, read=[LENGTH - 1])
        cells = estimate(model.network, ids, donor, ODDS, read=[LENGTH - 1]).cells
        heads = [n for n, source in enumerate(found.sources) if source.part == "head"]
        sums = np.nansum(found.scores[0, heads], axis=-1)
        want = cells["z"][0].sum(axis=-1).ravel()
        assert np.abs(sums - want).max() <= allowed * np.abs(want).max()


def test_layers_whose_parts_cannot_be_seen_have_no_ends():
    model, ids = tiny("qwen3_next"), tokens(1, LENGTH)
    attends = [i for i in range(model.n_layers) if model.network.block(i).kind == "sdpa"]
    run = forward(model.network, tokens(1, LENGTH, seed=2), keep=["z"], logits=False)
    found = edges(model.network, ids, {"z": dict(run.sites["z"])}, ODDS, read=[LENGTH - 1])
    assert {node.layer for node in found.sources} == {*attends}
    assert {node.layer for node in found.targets[:-1]} == {*attends}


def test_an_edge_that_does_not_exist_is_refused():
    model, ids = built("llama"), tokens(1, LENGTH)
    own = engine.clean(model.network, ids, read=[LENGTH - 1])
    donor = sites_of(model, ids)
    head, mlp = Node(1, "head", 1), Node(1, "mlp")

    def rows(*pair, given=donor, of=model.network):
        return path_rows(of, own, given, [pair])

    for call, error, match in (
        (lambda: rows(mlp, Node(1, "q", 0)), SpecError, "does not feed"),
        (lambda: rows(mlp, mlp), SpecError, "does not feed"),
        (lambda: rows(head, Node(0, "mlp")), SpecError, "does not feed"),
        (lambda: rows(Node(2, "mlp"), Node(1, "v", 0)), SpecError, "does not feed"),
        (lambda: rows(Node(1, "head", 4), Node(2, "mlp")), SpecError, "no such head"),
        (lambda: rows(head, Node(2, "k", 2)), SpecError, "no such head; the layer has 2"),
        (lambda: rows(Node(1, "q", 0), Node(2, "mlp")), SpecError, "is no end of an edge"),
        (lambda: rows(head, Node(3, "mlp")), SpecError, "is no end of an edge"),
        (lambda: rows(head, Node(2, "mlp"), given={}), ValueError, "donor has no z of layer 1"),
        (
            lambda: rows(head, Node(2, "mlp"), given={"z": {1: donor["z"][1][:, :2]}}),
            ValueError,
            "donor's z has shape",
        ),
        (
            lambda: rows(head, Node(2, "mlp"), of=tiny("hunyuan").network),
            ModelError,
            "hunyuan has no edges",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    with pytest.raises(ValueError, match="neither z nor mlp_out"):
        edges(model.network, ids, {}, ODDS, read=[4])
    with pytest.raises(
        ModelError, match="hunyuan has no edges that can be told apart: every second"
    ):
        edges(tiny("hunyuan").network, ids, donor, ODDS, read=[4])
