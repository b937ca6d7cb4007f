"""Patched runs against plain loops that compute everything, on trained and on random pairs."""

from collections import Counter

import numpy as np
import plain_loops
import pytest
from tiny_models import in_dtype, off, same, tiny, tiny_llama, tokens

from mlxroles import engine
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.engine import Place
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import Start, forward
from mlxroles.models.load import load, wrap

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out", "z")
PUPPY = (
    *(1, 410, 471, 419, 285, 467, 410, 448, 260, 276, 410, 293, 265, 282, 425, 339, 422, 450),
    *(13, 447, 419, 419, 293, 413, 303, 413, 467, 410),
)
"""Ids of ``<s>User: Where is the puppy?\\nAssistant: ``."""
TOOL = 508
POSITIONS = {
    "all": None,
    "last": (27,),
    "single": (11,),
    "first": (0,),
    "range": (4, 5, 6, 7),
    "scattered": (20, 3),
}


@pytest.fixture(scope="module")
def stories(shared):
    base = load(shared / "models" / "stories260K", scan=False)
    return base, load(shared / "models" / "stories260K-chat", scan=False)


@pytest.fixture(scope="module")
def random_pair():
    return wrap(tiny_llama(0)), wrap(tiny_llama(1))


def plain_states(model, ids):
    """Every site of a clean run by a plain loop, and its logits."""
    seen = {}

    def touch(site, layer, array):
        seen[site, layer] = array
        return array

    logits = plain_loops.run("llama", model.module, mx.array([ids]), touch)
    return seen, logits


def plain_patched(model, ids, donor, place):
    """Logits of a whole run in which the donor's array goes in at a place, cell by cell."""

    def touch(site, layer, array):
        if (site, layer) != (place.site, place.layer):
            return array
        mixed, given = np.array(array), np.array(donor)
        for p in range(len(ids)) if place.positions is None else place.positions:
            if site == "pattern":
                mixed[:, place.heads or slice(None), p] = given[:, place.heads or slice(None), p]
            elif place.heads is None:
                mixed[:, p] = given[:, p]
            for head in place.heads or () if site != "pattern" else ():
                mixed[:, p, head] = given[:, p, head]
        return mx.array(mixed)

    return np.array(plain_loops.run("llama", model.module, mx.array([ids]), touch))[0]


def probability(logits):
    e = np.exp(np.asarray(logits, np.float64) - logits.max())
    return e[TOOL] / e.sum()


def compare(recipient, donor, ids, places, read):
    """Largest difference in a logit between the engine and plain runs, over the places."""
    site, layer = places[0].site, places[0].layer
    given, _ = plain_states(donor, ids)
    own = engine.clean(recipient.network, ids, site=site, layers=[layer], read=read)
    theirs = engine.clean(donor.network, ids, site=site, layers=[layer], read=read, inputs=False)
    assert off(theirs.site[layer], given[site, layer]) <= 5e-5
    run = engine.patched(recipient.network, ids, own, theirs.site[layer], places, read)
    assert run.logits.shape == (len(places), len(read), recipient.vocab)
    assert run.logits.dtype == np.float32
    worst, scale = 0.0, max(1.0, float(np.abs(own.logits).max()))
    for row, place in enumerate(places):
        want = plain_patched(recipient, ids, given[site, layer], place)[list(read)]
        worst = max(worst, float(np.abs(run.logits[row] - want).max()))
        assert off(recipient.unembed(run.final[row : row + 1])[0], run.logits[row]) <= 1e-4
    return worst / scale


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("direction", ["base_to_chat", "chat_to_base"])
def test_patched_runs_of_trained_models_equal_plain_loops(stories, site, direction):
    donor, recipient = stories if direction == "base_to_chat" else stories[::-1]
    for layer in (0, 2, 4):
        places = [Place(site, layer, positions) for positions in POSITIONS.values()]
        if site == "z":
            places += [Place(site, layer, None, (3,)), Place(site, layer, (27, 5), (0, 6))]
        assert compare(recipient, donor, PUPPY, places, [27, 12]) <= 2e-5


@pytest.mark.parametrize("site", [*SITES, "q", "k", "v", "pattern"])
def test_patched_runs_of_random_models_equal_plain_loops(random_pair, site):
    ids = tuple(tokens(1, 13, seed=5)[0].tolist())
    for donor, recipient in (random_pair, random_pair[::-1]):
        for layer in range(4):
            places = [Place(site, layer, p) for p in (None, (12,), (0, 1, 2))]
            places += [Place(site, layer, (4, 9), (1,))] if site not in SITES[:4] else []
            assert compare(recipient, donor, ids, places, [12]) <= 2e-5


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "gpt_oss", "deepseek_v3"])
def test_patched_runs_of_other_architectures_equal_whole_runs(name):
    model, ids = tiny(name), tokens(1, 10, seed=1)[0].tolist()
    other = tokens(1, 10, seed=2)[0].tolist()
    for site in SITES:
        own = engine.clean(model.network, ids, site=site, layers=[1], read=[9])
        donor = engine.clean(model.network, other, site=site, layers=[1], read=[9]).site[1]
        for positions in (None, (9,), (2, 5)):
            chosen = donor if positions is None else donor[:, mx.array(positions)]

            def touch(at, layer, array, site=site, positions=positions, chosen=chosen):
                if (at, layer) != (site, 1):
                    return array
                mixed = mx.array(array)
                mixed[:, mx.array([*(positions or range(10))])] = chosen
                return mixed

            want = plain_loops.run(name, model.module, mx.array([ids]), touch)[:, 9:]
            places = [Place(site, 1, positions)]
            run = engine.patched(model.network, ids, own, donor, places, [9])
            assert off(run.logits, want) <= 2e-4


def test_base_into_chat_falls_between_the_outputs_of_layers_1_and_2(stories):
    base, chat = stories
    states = [
        engine.clean(m.network, PUPPY, site="resid_post", layers=range(5), read=[27])
        for m in stories
    ]
    donor, own = states
    assert probability(donor.logits[0]) < 1e-6
    assert probability(own.logits[0]) > 0.99
    curve = []
    for layer in range(5):
        run = engine.patched(
            chat.network, PUPPY, own, donor.site[layer], [Place("resid_post", layer)], [27]
        )
        want = plain_patched(
            chat,
            PUPPY,
            plain_states(base, PUPPY)[0]["resid_post", layer],
            Place("resid_post", layer),
        )
        curve.append(probability(run.logits[0, 0]))
        assert curve[-1] == pytest.approx(probability(want[27]), rel=1e-3)
    assert curve[0] > 0.99
    assert curve[1] > 0.85
    assert curve[2] < 0.02
    assert curve[3] < 1e-3
    assert curve[4] < 1e-6


def test_patch_of_the_last_layer_is_the_recipients_head_on_the_donors_stream(stories):
    for donor, recipient in (stories, stories[::-1]):
        stream = plain_states(donor, PUPPY)[0]["resid_post", 4]
        body = recipient.module.model
        want = body.embed_tokens.as_linear(body.norm(stream))
        own = engine.clean(recipient.network, PUPPY, site="resid_post", layers=[4], read=[27])
        theirs = engine.clean(donor.network, PUPPY, site="resid_post", layers=[4], read=[27])
        places = [Place("resid_post", 4)]
        run = engine.patched(recipient.network, PUPPY, own, theirs.site[4], places, [27, 3])
        assert off(run.logits[0], want[0, mx.array([27, 3])]) <= 1e-4


def test_patch_of_the_embedding_is_the_donors_text_through_the_recipient(stories):
    """With one model's embedding of another text, the recipient answers that text."""
    chat = stories[1]
    other = tuple(tokens(1, 28, vocab=500, seed=3)[0].tolist())
    want = chat.module(mx.array([other]))[0, -1:]
    own = engine.clean(chat.network, PUPPY, site="resid_pre", layers=[0], read=[27])
    donor = engine.clean(chat.network, other, site="resid_pre", layers=[0], read=[27])
    run = engine.patched(chat.network, PUPPY, own, donor.site[0], [Place("resid_pre", 0)], [27])
    assert off(run.logits[0], want) <= 1e-4
    embedded = stories[0].module.model.embed_tokens(mx.array([PUPPY]))
    run = engine.patched(chat.network, PUPPY, own, embedded, [Place("resid_pre", 0)], [27])
    h = embedded
    for layer in chat.module.layers:
        h = layer(h, "causal", None)
    body = chat.module.model
    assert off(run.logits[0], body.embed_tokens.as_linear(body.norm(h))[0, -1:]) <= 1e-5


@pytest.mark.parametrize("site", SITES)
def test_self_patch_gives_the_clean_logits(random_pair, site):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = engine.clean(model.network, ids, site=site, layers=range(4), read=[8, 2])
    assert off(own.logits, model.module(mx.array([ids]))[0, mx.array([8, 2])]) <= 1e-6
    for layer in range(4):
        heads = [Place(site, layer, None, (1, 3))] if site == "z" else []
        places = [Place(site, layer), Place(site, layer, (8,)), Place(site, layer, ()), *heads]
        for place in places:
            run = engine.patched(model.network, ids, own, own.site[layer], [place], [8, 2])
            assert same(run.logits[0], own.logits)
        run = engine.patched(model.network, ids, own, own.site[layer], places, [8, 2])
        for row in run.logits:  # a larger batch is rounded in another order
            assert off(row, own.logits) <= 1e-5


@pytest.fixture
def counter(random_pair):
    """Calls of every layer, of the final norm and the head: (what, batch, positions)."""
    model, calls, undo = random_pair[0], Counter(), []

    def watch(module, name):
        cls = type(module)

        def __call__(self, x, *args, **kwargs):
            calls[name, *x.shape[:2]] += 1
            return cls.__call__(self, x, *args, **kwargs)

        module.__class__ = type(cls.__name__, (cls,), {"__call__": __call__})
        undo.append((module, cls))

    for i, layer in enumerate(model.module.layers):
        watch(layer, i)
        watch(layer.mlp, f"mlp {i}")
    watch(model.module.model.norm, "norm")
    watch(model.module.lm_head, "head")
    yield calls
    for module, cls in undo:
        module.__class__ = cls


@pytest.mark.parametrize("site", SITES)
def test_nothing_before_the_edited_layer_runs_and_the_head_reads_what_is_read(
    random_pair, site, counter
):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = engine.clean(model.network, ids, site=site, layers=range(4), read=[8, 2])
    assert counter == Counter(
        {(name, 1, 9): 1 for i in range(4) for name in (i, f"mlp {i}")}
        | {("norm", 1, 2): 1, ("head", 1, 2): 1}
    )
    places = [(8,), (3, 4), None]
    for layer in range(4):
        counter.clear()
        batch = [Place(site, layer, p) for p in places]
        engine.patched(model.network, ids, own, own.site[layer], batch, [8, 2])
        first = layer + 1 if site == "resid_post" else layer
        assert counter == Counter(
            {(name, 3, 9): 1 for i in range(first, 4) for name in (i, f"mlp {i}")}
            | {("norm", 3, 2): 1, ("head", 3, 2): 1}
        )


def test_nothing_that_precedes_an_edit_is_computed():
    """Layers before the edit and the embedding hold NaN: what is computed of them would show."""
    model, ids = wrap(tiny_llama(2)), tokens(1, 9)[0].tolist()
    states = {s: engine.clean(model.network, ids, site=s, layers=[2], read=[8]) for s in SITES}
    donors = {s: states[s].site[2] * 0.5 for s in SITES}
    want = {
        s: engine.patched(model.network, ids, states[s], donors[s], [Place(s, 2)], [8]).logits
        for s in SITES
    }
    body = model.module.model
    body.embed_tokens.weight = body.embed_tokens.weight * mx.nan
    for layer in body.layers[:2]:
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * mx.nan
    for s in SITES:
        run = engine.patched(model.network, ids, states[s], donors[s], [Place(s, 2)], [8])
        assert np.isfinite(run.logits).all()
        assert same(run.logits, want[s])


def test_architectures_that_cannot_start_run_whole_with_the_same_numbers():
    model = tiny("hunyuan")
    assert not model.network.anatomy.resumable
    ids, other = tokens(1, 9)[0].tolist(), tokens(1, 9, seed=8)[0].tolist()
    for site in ("resid_post", "resid_pre", "z"):
        own = engine.clean(model.network, ids, site=site, layers=[2], read=[8])
        donor = engine.clean(model.network, other, site=site, layers=[2], read=[8]).site[2]
        places = [Place(site, 2), Place(site, 2, (3,))]
        run = engine.patched(model.network, ids, own, donor, places, [8])
        for row, positions in enumerate((None, [3])):
            chosen = donor if positions is None else donor[:, 3:4]
            edits = [Edit(site, 2, chosen, positions=positions)]
            want = forward(model.network, mx.array([ids]), edits=edits).logits[0, 8:]
            assert off(run.logits[row], want) <= 1e-5


def test_a_full_precision_donor_does_not_change_the_recipients_precision():
    """Patched at all positions or at one, a bf16 recipient stays bf16."""
    full = wrap(tiny_llama(0))
    half = wrap(in_dtype(tiny_llama(1), mx.bfloat16))
    ids = tokens(1, 9)[0].tolist()
    for site in SITES:
        own = engine.clean(half.network, ids, site=site, layers=[1], read=[8])
        donor = engine.clean(full.network, ids, site=site, layers=[1], read=[8]).site[1]
        rounded = donor.astype(mx.bfloat16)
        for positions in (None, tuple(range(9))):
            places = [Place(site, 1, positions)]
            run = engine.patched(half.network, ids, own, donor, places, [8])
            assert run.final.dtype == mx.bfloat16
            again = engine.patched(half.network, ids, own, rounded, places, [8])
            assert same(run.logits, again.logits)


def test_noise_has_the_donors_norms_and_nothing_else_of_it():
    donor = mx.array(np.random.default_rng(0).standard_normal((1, 50, 4, 16), dtype=np.float32))
    donor = donor * mx.arange(1, 5).reshape(1, 1, 4, 1)
    made = [engine.matched_noise(donor, np.random.default_rng(s)) for s in (1, 1, 2)]
    norms = np.linalg.norm(np.array(donor), axis=-1)
    assert same(made[0], made[1])
    assert off(made[0], made[2]) > 1
    for noise in made:
        assert np.allclose(np.linalg.norm(np.array(noise), axis=-1), norms, rtol=1e-5)
        cosines = (np.array(noise) * np.array(donor)).sum(-1) / norms**2
        assert abs(cosines.mean()) < 0.05
    half = engine.matched_noise(donor.astype(mx.bfloat16), np.random.default_rng(1))
    assert half.dtype == mx.bfloat16
    silent = engine.matched_noise(donor * 0, np.random.default_rng(1))
    assert same(silent, donor * 0)


def test_what_does_not_fit_is_refused(random_pair):
    model, ids = random_pair[0], [3, 1, 4, 1, 5]
    network = model.network

    def clean(**changes):
        given = {"site": "z", "layers": [1], "read": [4]} | changes
        return engine.clean(network, changes.pop("ids", ids), **given)

    own = clean()
    bare = clean(inputs=False)
    donor = own.site[1]

    def patched(places, *, states=own, value=donor, read=(4,)):
        return engine.patched(network, ids, states, value, places, read)

    for call, error, match in (
        (lambda: clean(layers=[4]), ValueError, "layer 4 is outside"),
        (lambda: clean(layers=[-1]), ValueError, "layer -1 is outside"),
        (lambda: clean(read=[5]), ValueError, r"position 5 is outside 0\.\.4"),
        (lambda: clean(read=[]), ValueError, "positions to read"),
        (lambda: clean(site="resid"), ModelError, "no site 'resid'"),
        (
            lambda: engine.clean(network, [64], site="z", layers=[0], read=[0]),
            PromptError,
            "token id 64 is outside",
        ),
        (lambda: patched([]), ValueError, "share one site and one layer"),
        (lambda: patched([Place("z", 1), Place("z", 2)]), ValueError, "share one site"),
        (lambda: patched([Place("z", 2)]), ValueError, r"clean states hold layers \[1\], not 2"),
        (lambda: patched([Place("z", 1, (5,))]), ValueError, r"position 5 is outside 0\.\.4"),
        (lambda: patched([Place("z", 1, (-1,))]), ValueError, "position -1 is outside"),
        (lambda: patched([Place("z", 1, None, (4,))]), ValueError, r"head 4 is outside 0\.\.3"),
        (lambda: patched([Place("z", 1)], value=donor[:, :4]), ValueError, "donor's z has shape"),
        (lambda: patched([Place("z", 1)], value=donor[..., :1]), ValueError, "donor's z has shape"),
        (lambda: patched([Place("z", 1)], states=bare), ValueError, "lack what enters layer 1"),
        (lambda: patched([Place("z", 1)], read=(5,)), ValueError, "position 5 is outside"),
    ):
        with pytest.raises(error, match=match):
            call()


def test_start_and_head_agree_on_what_was_read(random_pair):
    """The engine's rows equal runs that start by hand, at every layer."""
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    seen, _ = plain_states(model, ids)
    for layer in range(4):
        stream = seen["resid_pre", layer] + 0.3
        own = engine.clean(model.network, ids, site="resid_pre", layers=[layer], read=[8])
        place = Place("resid_pre", layer)
        run = engine.patched(model.network, ids, own, stream, [place], [8])
        by_hand = forward(model.network, mx.array([ids]), start=Start(layer, stream), read=[8])
        assert same(run.logits, by_hand.logits)
        want = plain_patched(model, ids, stream, place)[8:]
        assert off(run.logits[0], want) <= 5e-5
