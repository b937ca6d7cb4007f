"""Estimates of cells against central differences of plain loops and of whole runs."""

import numpy as np
import plain_loops
import pytest
from plain_loops import weighted
from tiny_models import in_dtype, off, same, tiny, tiny_llama, to_numpy, tokens

from mlxroles import probes
from mlxroles.attribution import HEADS, METRICS, STREAM, Metric, estimate, metric, trace
from mlxroles.backend import mx, nn
from mlxroles.edits import Edit
from mlxroles.errors import ModelError, PromptError, SpecError
from mlxroles.forward import forward
from mlxroles.models.load import wrap
from mlxroles.probes import targets_from_ids

SITES = (*STREAM, *HEADS)
TARGETS = targets_from_ids([5, 9], variants=[17, 40])
ODDS = metric("log_odds", TARGETS)
LENGTH = 5


# --- metrics ----------------------------------------------------------------------------------


def random_logits(*shape, seed=0, scale=4.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def probed(name, rows, clean):
    """The measure of one prompt's logits [n_read, vocab] by the probes."""
    if name == "kl":
        return probes.kl(rows[0], clean[0])
    chain = {TARGETS.headline: probes.chain_log_prob(rows[:2], TARGETS.head.chain)}
    return probes.measure(rows[0], TARGETS, decode=str, chain=chain)[name]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_have_the_probes_numbers(name):
    for scale in (0.1, 4.0, 30.0):
        logits = random_logits(3, 2, 64, scale=scale)
        clean = random_logits(3, 2, 64, seed=1, scale=scale)
        found = np.array(metric(name, TARGETS, mx.array(clean))(mx.array(logits)))
        want = [probed(name, rows, clean[p]) for p, rows in enumerate(logits)]
        assert found.shape == (3,)
        assert np.allclose(found, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_slopes_are_those_of_the_probes(name):
    logits = random_logits(1, 2, 64, scale=1.0)
    clean = random_logits(1, 2, 64, seed=1, scale=1.0)
    of = metric(name, TARGETS, mx.array(clean))
    slope = np.array(mx.grad(lambda x: of(x).sum())(mx.array(logits)))[0]
    for read, token in ((0, 5), (0, 9), (0, 17), (0, 3), (1, 9), (1, 2)):
        step = np.zeros((2, 64))
        step[read, token] = 1e-4
        ends = [probed(name, logits[0] + s * step, clean[0]) for s in (1, -1)]
        assert abs((ends[0] - ends[1]) / 2e-4 - slope[read, token]) <= 1e-4


def test_log_odds_keep_their_slope_where_the_probability_is_1_or_0():
    for height in (90.0, -90.0):
        logits = random_logits(1, 1, 64)
        logits[0, 0, 5] = height
        value, slope = mx.value_and_grad(lambda x: ODDS(x).sum())(mx.array(logits))
        want = probes.measure(logits[0, 0], targets_from_ids([5]), decode=str)["log_odds"]
        assert abs(value.item() - want) <= 1e-4
        assert abs(slope[0, 0, 5].item() - 1) <= 1e-6
        assert abs(slope.sum().item()) <= 1e-5


def test_measures_without_a_gradient_are_refused():
    for name in ("rank", "entropy_study", "tool_call_prob", "nonsense"):
        with pytest.raises(SpecError, match=f"{name}.*no gradient; choose one of log_odds"):
            metric(name, TARGETS)
    with pytest.raises(ValueError, match="kl needs logits"):
        metric("kl", TARGETS)
    with pytest.raises(ValueError, match="p_chain of 2 tokens needs as many positions, found 1"):
        metric("p_chain", TARGETS)(mx.zeros((1, 1, 64)))


# --- small edits ------------------------------------------------------------------------------


def own_sites(model, ids):
    """Every site of the recipient's clean run by whole forwards, site -> layer -> array."""
    found = {}
    for site in SITES:
        layers = [i for i in range(model.n_layers) if site not in model.network.block(i).missing]
        run = forward(model.network, ids, keep=[site], layers=layers, logits=False)
        found[site] = dict(run.sites[site])
    return found


def moved(own, size, seed=0):
    """A donor that differs from the recipient by random vectors of a relative size."""
    generator = np.random.default_rng(seed)
    donor = {}
    for site, layers in own.items():
        donor[site] = {}
        for layer, array in layers.items():
            array = array.astype(mx.float32)
            step = mx.array(generator.standard_normal(array.shape, dtype=np.float32))
            if site == "pattern":
                step = step * array  # weights on hidden keys stay 0
            scale = mx.sqrt((array**2).mean())
            donor[site][layer] = array + size * scale * step
    return donor


def cells_of(site, array):
    """(head or None, position) of every cell of one prompt."""
    if site in STREAM:
        return [(None, t) for t in range(array.shape[1])]
    heads, length = array.shape[1:3] if site == "pattern" else array.shape[2:0:-1]
    return [(h, t) for h in range(heads) for t in range(length)]


def one_by_one(site, own, donor, cells):
    """The own array once per cell, with the donor's in that cell [cell, ...]."""
    rows = np.repeat(to_numpy(own), len(cells), 0)
    given = to_numpy(donor)[0]
    for n, (h, t) in enumerate(cells):
        at = t if h is None else (h, t) if site == "pattern" else (t, h)
        rows[n][at] = given[at]
    return mx.array(rows)


def clean_logits(model, ids, read):
    logits = forward(model.network, ids, read=[read]).logits
    assert logits is not None
    return logits


def by_whole_runs(model, ids, site, layer, rows):
    wide = mx.broadcast_to(ids, (rows.shape[0], ids.shape[1]))
    return forward(model.network, wide, edits=[Edit(site, layer, rows)]).logits


def by_plain_loops(model, ids, site, layer, rows):
    def touch(at, i, array):
        return rows if (at, i) == (site, layer) else array

    wide = mx.broadcast_to(ids, (rows.shape[0], ids.shape[1]))
    return plain_loops.run(model.architecture, model.module, wide, touch)


def exact(model, ids, site, layer, own, donors, run, of=None, read=(LENGTH - 1,)):
    """The metric of every cell's patched run [donor, (head x) position]."""
    cells = cells_of(site, own)
    rows = mx.concatenate([one_by_one(site, own, donor, cells) for donor in donors])
    value = (of or WEIGHTED)(run(model, ids, site, layer, rows)[:, mx.array(read)])
    return np.array(value).reshape(len(donors), len(cells))


WEIGHTED = Metric("weighted", weighted)


def compare_small(model, run, *, size=4e-3, seed=5):
    """Estimated against exact slopes of all cells; how many of them are large enough to tell."""
    ids = tokens(1, LENGTH, seed=seed)
    own = own_sites(model, ids)
    up, down = moved(own, size), moved(own, -size)
    estimates = [
        estimate(model.network, ids, d, WEIGHTED, read=[LENGTH - 1]).cells for d in (up, down)
    ]
    told = 0
    for site in SITES:
        for layer, array in own[site].items():
            if site == "resid_post" and layer < model.n_layers - 1:
                continue  # resid_pre of the next layer
            ends = exact(model, ids, site, layer, array, [d[site][layer] for d in (up, down)], run)
            want = (ends[0] - ends[1]) / 2
            found = (estimates[0][site][0, layer] - estimates[1][site][0, layer]) / 2
            found = found.reshape(want.shape)
            noise = 2e-5 * max(1.0, float(np.abs(ends).max()))
            assert np.allclose(found, want, rtol=1e-2, atol=noise), (site, layer)
            told += int((np.abs(want) > 5 * noise).sum())
    return told


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt_neox", "gpt_oss", "phi3"])
def test_effects_of_small_edits_equal_those_of_plain_loops(name):
    model = wrap(tiny_llama(0)) if name == "llama" else tiny(name)
    # a router that chooses other experts makes a jump, which no slope tells of
    size = 1e-3 if name == "gpt_oss" else 4e-3
    assert compare_small(model, by_plain_loops, size=size) > 60


@pytest.mark.parametrize("name", ["olmo2", "granite", "mixtral", "deepseek_v3"])
def test_effects_of_small_edits_equal_those_of_whole_runs(name):
    assert compare_small(tiny(name), by_whole_runs) > 60


def test_a_quantised_models_gradients_flow_through_its_activations():
    module = tiny_llama(3, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=4)
    assert compare_small(wrap(module), by_whole_runs) > 60


# --- large edits ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    return wrap(tiny_llama(0)), wrap(tiny_llama(1))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt_neox"])
def test_the_softmax_of_other_queries_and_keys_is_exact(name):
    """The estimate equals that of the pattern which a plain loop makes of each single change."""
    model = wrap(tiny_llama(0)) if name == "llama" else tiny(name)
    network, length, layer = model.network, 9, 2
    ids, other = tokens(1, length, seed=1), tokens(1, length, seed=2)
    block = network.block(layer)
    given = forward(network, other, keep=["q", "k"], layers=[layer], logits=False)
    donor = {site: {layer: 3 * given[site, layer]} for site in ("q", "k")}
    cells = estimate(network, ids, donor, WEIGHTED, read=[8]).cells

    def patterns(site, head, position):
        """Patterns of a plain run with one cell replaced [1, head, query, key]."""
        seen = []

        def touch(at, i, array):
            if (at, i) == (site, layer) and head is not None:
                array = mx.array(array)
                array[:, position, head] = donor[site][layer][:, position, head]
            if (at, i) == ("pattern", layer):
                seen.append(array)
            return array

        plain_loops.run(name, model.module, ids, touch)
        return seen[0]

    clean = patterns(None, None, None)
    slope = slopes(network, ids, {("pattern", layer): clean.shape}, [8])["pattern", layer]
    for site, heads in (("q", block.heads), ("k", block.kv_heads)):
        for head, position in ((0, 0), (1, 4), (heads - 1, 8), (heads - 1, 2)):
            change = to_numpy(patterns(site, head, position) - clean)
            want = float((change * to_numpy(slope)).sum())
            assert abs(cells[site][0, layer, head, position] - want) <= 1e-4 + 1e-3 * abs(want)


def slopes(network, ids, shapes, read):
    recipient = trace.Recipient(network, ids, WEIGHTED, read)
    return recipient.gradients(shapes).slope


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "v", "pattern"])
def test_integrated_gradients_add_up_to_the_effect_of_what_moves_together(pair, site):
    recipient, giver = pair
    ids, length = tokens(1, 10, seed=4), 10
    donor = {site: dict(forward(giver.network, ids, keep=[site], logits=False).sites[site])}
    found = estimate(recipient.network, ids, donor, ODDS, read=[9], ig=24)
    before = float(found.value[0])
    for layer in (0, 3):
        own = forward(recipient.network, ids, keep=[site], layers=[layer], logits=False)
        for way in (0, 1):
            if site in STREAM:
                at = (0, slice(way, length, 8))
                part = found.cells[site][0, layer, way::8]
            else:
                at = (0, way) if site == "pattern" else (0, slice(None), way)
                part = found.cells[site][0, layer, way]
            value = np.array(own[site, layer])
            value[at] = np.array(donor[site][layer])[at]
            logits = by_whole_runs(recipient, ids, site, layer, mx.array(value))
            effect = float(np.array(ODDS(logits[:, 9:]))[0]) - before
            assert abs(part.sum() - effect) <= 0.01 * abs(effect) + 1e-3


def test_integrated_gradients_come_closer_to_the_exact_cells(pair):
    recipient, giver = pair
    ids = tokens(2, 6, seed=4)
    own, donor = ({}, {})
    for model, found in ((recipient, own), (giver, donor)):
        run = forward(model.network, ids, keep=["z", "k", "mlp_out"], logits=False)
        found |= {site: dict(run.sites[site]) for site in run.sites}
    plain, along = (
        estimate(recipient.network, ids, donor, ODDS, read=[5], ig=steps) for steps in (1, 3)
    )
    assert plain.passes == 2.0
    assert along.passes == 2.0 + 2 * 3 * (4 + 2 + 6) * (1 + 0.75 + 0.5 + 0.25)
    for site in ("z", "k", "mlp_out"):
        errors = [0.0, 0.0]
        for p in range(2):
            for layer in range(4):
                arrays = [x[site][layer][p : p + 1] for x in (own, donor)]
                ends = exact(
                    recipient, ids[p : p + 1], site, layer, arrays[0], arrays[1:], by_whole_runs,
                    ODDS, [5],
                )  # fmt: skip
                want = ends[0] - plain.value[p]
                for n, found in enumerate((plain, along)):
                    cells = found.cells[site][p, layer].ravel()
                    errors[n] += float(((cells - want) ** 2).sum())
        assert errors[1] < 0.5 * errors[0]


def test_prompts_of_a_batch_have_the_estimates_that_each_has_alone(pair):
    recipient, giver = pair
    ids = tokens(3, 6, seed=8)
    keep = ["resid_post", "z", "q", "k", "pattern"]
    run = forward(giver.network, ids, keep=keep, logits=False)
    donor = {site: dict(run.sites[site]) for site in keep}
    for ig in (1, 2):
        together = estimate(recipient.network, ids, donor, ODDS, read=[5, 2], ig=ig)
        for p in range(3):
            one = {s: {i: a[p : p + 1] for i, a in layers.items()} for s, layers in donor.items()}
            alone = estimate(recipient.network, ids[p : p + 1], one, ODDS, read=[5, 2], ig=ig)
            assert abs(alone.value[0] - together.value[p]) <= 1e-5
            for site in keep:
                assert off(alone.cells[site][0], together.cells[site][p]) <= 2e-5


def test_what_cannot_reach_the_read_position_has_no_effect(pair):
    recipient, giver = pair
    ids = tokens(1, 7, seed=8)
    keep = ["resid_post", "attn_out", "z", "q", "pattern", "v"]
    run = forward(giver.network, ids, keep=keep, logits=False)
    donor = {site: dict(run.sites[site]) for site in keep}
    cells = estimate(recipient.network, ids, donor, ODDS, read=[4]).cells
    for site in keep:
        assert (cells[site][..., 5:] == 0).all()
        assert (np.abs(cells[site][..., 4]) > 0).all()
    for site in ("resid_post", "attn_out", "z", "q", "pattern"):
        assert (cells[site][:, -1, ..., :4] == 0).all()


def test_the_value_is_the_clean_runs_metric_and_the_donor_equal_to_it_has_no_effect(pair):
    ids = tokens(2, 6, seed=8)
    for model in (pair[0], tiny("gemma2"), tiny("gpt_oss")):
        sites = own_sites(model, ids)
        found = estimate(model.network, ids, sites, ODDS, read=[5])
        assert same(found.value, ODDS(clean_logits(model, ids, 5)))
        for site in SITES:
            assert np.abs(found.cells[site]).max() <= 1e-5
        assert found.cells["resid_pre"].shape == (2, 4, 6)
        assert found.cells["z"].shape == found.cells["pattern"].shape == (2, 4, 4, 6)
        assert found.cells["k"].shape == (2, 4, 2, 6)


def test_layers_without_the_site_or_the_donors_array_are_nan():
    model, ids = tiny("qwen3_next"), tokens(1, 6, seed=8)
    run = forward(model.network, ids, keep=["z", "resid_post"], logits=False)
    donor = {"z": dict(run.sites["z"]), "resid_post": {1: run["resid_post", 1] * 2}}
    cells = estimate(model.network, ids, donor, ODDS, read=[5]).cells
    attends = [i for i in range(model.n_layers) if model.network.block(i).kind == "sdpa"]
    assert 0 < len(attends) < model.n_layers
    for layer in range(model.n_layers):
        assert np.isnan(cells["z"][:, layer]).all() == (layer not in attends)
        assert np.isnan(cells["resid_post"][:, layer]).all() == (layer != 1)


def test_half_precision_estimates_are_those_of_full_precision_with_its_rounding(pair):
    ids = tokens(1, 8, seed=8)
    donor = {s: dict(forward(pair[1].network, ids, keep=[s], logits=False).sites[s]) for s in SITES}
    full = estimate(pair[0].network, ids, donor, ODDS, read=[7]).cells
    half = wrap(in_dtype(tiny_llama(0), mx.bfloat16))
    rounded = estimate(half.network, ids, donor, ODDS, read=[7]).cells
    for site in SITES:
        a, b = full[site].ravel(), rounded[site].ravel()
        assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(a)


def test_architectures_whose_stream_is_not_all_they_hand_on_are_estimated_too():
    model, ids = tiny("hunyuan"), tokens(1, LENGTH, seed=8)
    own = own_sites(model, ids)
    own = {site: own[site] for site in ("z", "mlp_out")}
    donor = moved(own, 0.02)
    for ig in (1, 2):
        found = estimate(model.network, ids, donor, WEIGHTED, read=[4], ig=ig).cells
        for site in own:
            ends = exact(model, ids, site, 2, own[site][2], [donor[site][2]], by_whole_runs)
            before = np.array(WEIGHTED(clean_logits(model, ids, 4)))
            assert np.allclose(found[site][0, 2].ravel(), ends[0] - before, rtol=0.1, atol=1e-4)


def test_kernels_without_gradients_are_left_out_on_a_gpu_while_a_gradient_is_taken(monkeypatch):
    model, ids = tiny("qwen3_next"), tokens(1, 5)
    monkeypatch.setattr(trace, "on_gpu", lambda: True)
    donor = {"resid_post": {0: forward(model.network, ids, keep=["resid_post"], layers=[0])[
        "resid_post", 0]}}  # fmt: skip
    during = []

    def watching(logits):
        during.append([m.training for m in model.module.modules()])
        return weighted(logits)

    assert not any(m.training for m in model.module.modules())
    estimate(model.network, ids, donor, Metric("watching", watching), read=[4])
    assert any(during[0])
    assert not any(m.training for m in model.module.modules())


def test_what_cannot_be_estimated_is_refused(pair):
    network, ids = pair[0].network, tokens(1, 6)
    donor = own_sites(pair[0], ids)

    def run(of=ODDS, given=donor, net=network, **more):
        return estimate(net, ids, given, of, read=[5], **more)

    clean = clean_logits(pair[0], ids, 5)
    divergence = metric("kl", TARGETS, clean)
    short = {"z": {0: donor["z"][0][:, :3]}, "q": {0: donor["q"][0][:, :3]}}
    for call, error, match in (
        (
            lambda: run(sites=["resid_mid"]),
            SpecError,
            "no site 'resid_mid'; the sites are resid_pre",
        ),
        (lambda: run(given={}, sites=["z"]), ValueError, "the donor has no z"),
        (lambda: run(given={}), ValueError, "the donor has none of resid_pre"),
        (lambda: run(divergence), SpecError, "kl is smallest in the unpatched run"),
        (lambda: run(given={"z": short["z"]}), ValueError, "donor's z has shape"),
        (lambda: run(given={"q": short["q"]}), ValueError, "donor's (q|pattern) has shape"),
        (
            lambda: run(net=tiny("mamba").network),
            ModelError,
            "attn_out cannot be captured from mamba",
        ),
        (lambda: run(net=tiny("iquestloopcoder").network), ModelError, "iquestloopcoder"),
    ):
        with pytest.raises(error, match=match):
            call()
    for read, tokens_, error in (([6], ids, ValueError), ([5], ids + 64, PromptError)):
        with pytest.raises(error, match="is outside"):
            estimate(network, tokens_, donor, ODDS, read=read)
    along = run(divergence, moved(donor, 0.3), sites=["z"], ig=2)
    assert np.abs(along.cells["z"]).max() > 1e-4
