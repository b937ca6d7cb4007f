"""Patched runs against plain loops that compute everything, on trained and on random pairs."""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import plain_loops
import pytest
from tiny_models import in_dtype, off, same, tiny, tiny_llama, tokens

from mlxroles import engine
from mlxroles.backend import mx
from mlxroles.edits import (
    EDITABLE,
    STREAM_SITES,
    Edit,
    apply,
    mean,
    onto,
    project_out,
    resample,
    selected,
    transplant,
    zero,
)
from mlxroles.engine import Row, Shape, Spot
from mlxroles.engine.caches import LayerCache, attend_shared
from mlxroles.engine.rows import batches
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import Start, forward
from mlxroles.models.load import load, wrap
from mlxroles.taps import AttentionCall, Frame

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


class Place(NamedTuple):
    """Where a patch goes in."""

    site: str
    layer: int
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


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


def clean(model, ids, **options):
    """Clean run of one prompt."""
    return engine.clean(model.network, [list(ids)], **options)


def patch(donor, place, prompt=0, value=None, into=None):
    """The row that puts a donor's array in at a place."""
    where = {"positions": place.positions, "heads": place.heads, "value": value, "into": into}
    edit = engine.transplant(donor, place.site, place.layer, prompt=prompt, **where)
    return Row((edit,), prompt)


def put_in(place, array):
    """The row that puts a part of a given array in at a place."""
    edit = Edit(place.site, place.layer, 0.0, positions=place.positions, heads=place.heads)
    value = selected(edit, array)
    return Row((Edit(*place[:2], value, positions=place.positions, heads=place.heads),))


def probability(logits):
    e = np.exp(np.asarray(logits, np.float64) - logits.max())
    return e[TOOL] / e.sum()


def compare(recipient, donor, ids, places, read):
    """Largest difference in a logit between the engine and plain runs, over the places.

    With clean runs that know the edited sites, and with one that knows no site.
    """
    given, _ = plain_states(donor, ids)
    sites, layers = sorted({p.site for p in places}), sorted({p.layer for p in places})
    theirs = clean(donor, ids, site=sites, layers=layers, read=read, recipient=False)
    for p in places:
        assert off(theirs.value(p.site, p.layer), given[p.site, p.layer]) <= 5e-5
    worst = 0.0
    wanted = [
        plain_patched(recipient, ids, given[place.site, place.layer], place)[list(read)]
        for place in places
    ]
    for known in (sites, None):
        own = clean(recipient, ids, site=known, layers=layers, read=read)
        scale = max(1.0, float(np.abs(own.logits).max()))
        answers = engine.run(recipient.network, own, [patch(theirs, place) for place in places])
        for want, answer in zip(wanted, answers, strict=True):
            assert answer.logits.shape == (len(read), recipient.vocab)
            assert answer.logits.dtype == np.float32
            worst = max(worst, float(np.abs(answer.logits - want).max()) / scale)
            assert off(recipient.unembed(answer.final[None])[0], answer.logits) <= 1e-4
    return worst


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("direction", ["base_to_chat", "chat_to_base"])
def test_patched_runs_of_trained_models_equal_plain_loops(stories, site, direction):
    """Rows of three layers in one batch."""
    donor, recipient = stories if direction == "base_to_chat" else stories[::-1]
    places = [Place(site, layer, p) for layer in (0, 2, 4) for p in POSITIONS.values()]
    if site == "z":
        places += [Place(site, 2, None, (3,)), Place(site, 4, (27, 5), (0, 6))]
    assert compare(recipient, donor, PUPPY, places, [27, 12]) <= 2e-5


@pytest.mark.parametrize("site", [*SITES, "q", "k", "v", "pattern"])
def test_patched_runs_of_random_models_equal_plain_loops(random_pair, site):
    """Rows of all layers in one batch; the last one holds two positions before it is read."""
    ids = tuple(tokens(1, 13, seed=5)[0].tolist())
    places = [Place(site, i, p) for i in range(4) for p in (None, (12,), (0, 1, 2))]
    if site not in SITES[:4]:
        places += [Place(site, i, (4, 9), (1,)) for i in range(4)]
    for donor, recipient in (random_pair, random_pair[::-1]):
        assert compare(recipient, donor, ids, places, [12]) <= 2e-5


def test_rows_of_all_sites_and_layers_run_as_one_batch(random_pair):
    donor, recipient = random_pair
    ids = tuple(tokens(1, 13, seed=6)[0].tolist())
    sites = [*SITES, "q", "k", "v"]
    places = [Place(s, i, p) for s in sites for i in range(4) for p in (None, (7, 12))]
    assert compare(recipient, donor, ids, places[::-1], [12, 9]) <= 2e-5


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "gpt_oss", "deepseek_v3"])
def test_patched_runs_of_other_architectures_equal_whole_runs(name):
    model, ids = tiny(name), tokens(1, 10, seed=1)[0].tolist()
    other = tokens(1, 10, seed=2)[0].tolist()
    own = clean(model, ids, site=SITES, layers=[1], read=[9])
    donor = clean(model, other, site=SITES, layers=[1], read=[9])
    places = [Place(site, 1, p) for site in SITES for p in (None, (9,), (2, 5))]
    answers = engine.run(model.network, own, [patch(donor, place) for place in places])
    for (site, _, positions, _), answer in zip(places, answers, strict=True):
        given = donor.value(site, 1)
        chosen = given if positions is None else given[:, mx.array(positions)]

        def touch(at, layer, array, site=site, positions=positions, chosen=chosen):
            if (at, layer) != (site, 1):
                return array
            mixed = mx.array(array)
            mixed[:, mx.array([*(positions or range(10))])] = chosen
            return mixed

        want = plain_loops.run(name, model.module, mx.array([ids]), touch)[0, 9:]
        assert off(answer.logits, want) <= 2e-4


def test_base_into_chat_falls_between_the_outputs_of_layers_1_and_2(stories):
    base, chat = stories
    donor, own = (clean(m, PUPPY, site="resid_post", read=[27]) for m in stories)
    assert probability(donor.logits[0, 0]) < 1e-6
    assert probability(own.logits[0, 0]) > 0.99
    places = [Place("resid_post", layer) for layer in range(5)]
    answers = engine.run(chat.network, own, [patch(donor, place) for place in places])
    given, _ = plain_states(base, PUPPY)
    curve = [probability(answer.logits[0]) for answer in answers]
    for place, found in zip(places, curve, strict=True):
        want = plain_patched(chat, PUPPY, given["resid_post", place.layer], place)
        assert found == pytest.approx(probability(want[27]), rel=1e-3)
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
        for late in (False, True):
            options = {"site": "resid_post", "layers": [4], "read": [27, 3], "late": late}
            own, theirs = (clean(m, PUPPY, **options) for m in (recipient, donor))
            place = Place("resid_post", 4)
            [answer] = engine.run(recipient.network, own, [patch(theirs, place, into=own)])
            assert off(answer.logits, want[0, mx.array([27, 3])]) <= 1e-4
            assert off(answer.final, stream[0, mx.array([27, 3])]) <= 1e-4


def test_a_donor_that_was_read_late_serves_no_recipient_that_reads_earlier(stories):
    base, chat = stories
    donor = clean(base, PUPPY, site="z", read=[27], late=True)
    place, early = Place("z", 4), clean(chat, PUPPY, site="z", read=[27, 3])
    for into in (None, early):
        with pytest.raises(ValueError, match="kept from position 27 on"):
            patch(donor, place, into=into)
    same_read = clean(chat, PUPPY, site="z", read=[27], late=True)
    whole = clean(base, PUPPY, site="z", read=[27])
    rows = [patch(donor, place, into=same_read), patch(whole, place)]
    late, full = engine.run(chat.network, same_read, rows)
    assert off(late.logits, full.logits) <= 1e-5


def test_a_hybrid_keeps_a_site_where_its_layers_have_it():
    for name in ("qwen3_next", "recurrent_gemma"):
        network = tiny(name).network
        ids = tokens(1, 9, vocab=30)
        for site in ("z", "attn_out"):
            has = [i for i, b in enumerate(network.anatomy.blocks) if site not in b.missing]
            own = engine.clean(network, ids, read=[8], site=site)
            assert 0 < len(has) < len(network.layers)
            assert sorted(own.sites[site]) == has
            edit = Edit(site, has[0], 0.0, positions=[4])
            [answer] = engine.run(network, own, [Row((edit,))])
            assert (
                off(answer.logits, forward(network, ids, edits=[edit], read=[8]).logits[0]) <= 1e-5
            )
            with pytest.raises(ModelError, match=f"{site} cannot be captured"):
                engine.run(network, own, [Row((Edit(site, min({*range(4)} - {*has}), 0.0),))])


def test_patch_of_the_embedding_is_the_donors_text_through_the_recipient(stories):
    """With one model's embedding of another text, the recipient answers that text."""
    chat = stories[1]
    other = tuple(tokens(1, 28, vocab=500, seed=3)[0].tolist())
    want = chat.module(mx.array([other]))[0, -1:]
    place = Place("resid_pre", 0)
    own = clean(chat, PUPPY, site="resid_pre", layers=[0], read=[27])
    donor = clean(chat, other, site="resid_pre", layers=[0], read=[27])
    [answer] = engine.run(chat.network, own, [patch(donor, place)])
    assert off(answer.logits, want) <= 1e-4
    embedded = stories[0].module.model.embed_tokens(mx.array([PUPPY]))
    [answer] = engine.run(chat.network, own, [patch(donor, place, value=embedded)])
    h = embedded
    for layer in chat.module.layers:
        h = layer(h, "causal", None)
    body = chat.module.model
    want = np.array(body.embed_tokens.as_linear(body.norm(h))[0, -1:])
    # each logit sums d_model products; in another order every sum may round anew
    assert off(answer.logits, want) <= chat.d_model * np.finfo(np.float32).eps * np.abs(want).max()


@pytest.mark.parametrize("site", [*SITES, "q", "k", "v", "pattern"])
def test_self_patch_gives_the_clean_logits_bit_for_bit_in_every_batch(random_pair, site):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = clean(model, ids, site=site, read=[8, 2])
    assert off(own.logits[0], model.module(mx.array([ids]))[0, mx.array([8, 2])]) <= 1e-5
    places = [Place(site, i, p) for i in range(4) for p in (None, (8,), ())]
    if site not in SITES[:4]:
        places += [Place(site, i, None, (0, 1)) for i in range(4)]
    rows = [patch(own, place) for place in places]
    for batch in (rows, *([row] for row in rows)):
        for answer in engine.run(model.network, own, batch):
            assert same(answer.logits, own.logits[0])
            assert same(answer.final, own.final[0])


def test_self_patch_beside_other_rows_changes_neither(random_pair):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = clean(model, ids, site="z", read=[8])
    moved = Row((Edit("z", 1, 0.0, heads=(2,)),))
    alone = engine.run(model.network, own, [moved])[0]
    both = engine.run(model.network, own, [patch(own, Place("z", 2)), moved])
    assert same(both[0].logits, own.logits[0])
    assert off(both[1].logits, own.logits[0]) > 1e-3
    assert same(both[1].logits, alone.logits)


@pytest.fixture
def counter(random_pair):
    """Calls of every MLP but the last, of the final norm and the head: (what, rows, positions)."""
    model, calls, undo = random_pair[0], Counter(), []

    def watch(module, name):
        cls = type(module)

        def __call__(self, x, *args, **kwargs):
            calls[name, *x.shape[:2]] += 1
            return cls.__call__(self, x, *args, **kwargs)

        module.__class__ = type(cls.__name__, (cls,), {"__call__": __call__})
        undo.append((module, cls))

    for i, layer in enumerate(model.module.layers[:-1]):
        watch(layer.mlp, i)
    watch(model.module.model.norm, "norm")
    watch(model.module.lm_head, "head")
    yield calls
    for module, cls in undo:
        module.__class__ = cls


@pytest.mark.parametrize("site", SITES)
def test_layers_run_from_the_edit_and_its_first_position_on(random_pair, site, counter):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = clean(model, ids, site=site, read=[8, 7])
    wanted = {(i, 1, 9): 1 for i in range(3)} | {("norm", 1, 2): 1, ("head", 1, 2): 1}
    assert counter == Counter(wanted)
    for layer in range(3):
        for places, start in (([(8,), (7, 3), (4,)], 3), ([None, (5,)], 0), ([(8,)], 7)):
            counter.clear()
            rows = [Row((Edit(site, layer, 0.1, "add", p),)) for p in places]
            engine.run(model.network, own, rows)
            first = layer + 1 if site == "resid_post" else layer
            ran = {(i, len(rows), 9 - start): 1 for i in range(first, 3)}
            read = {("norm", len(rows), 2): 1, ("head", len(rows), 2): 1}
            assert counter == Counter(ran | read)


def poison(module):
    """NaN in every weight: what is computed of it would show."""
    for name, weight in module.parameters().items():
        if isinstance(weight, mx.array):
            module[name] = weight * mx.nan
    for child in module.children().values():
        if not isinstance(child, list):
            poison(child)


BEFORE = {
    "resid_pre": (),
    "q": ("q_proj", "k_proj", "v_proj"),
    "k": ("q_proj", "k_proj", "v_proj"),
    "v": ("q_proj", "k_proj", "v_proj"),
    "z": ("q_proj", "k_proj", "v_proj"),
    "attn_out": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_out": ("q_proj", "k_proj", "v_proj", "o_proj", "mlp"),
    "resid_post": ("q_proj", "k_proj", "v_proj", "o_proj", "mlp"),
}
"""Parts of a block that come before a site."""


@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("site", BEFORE)
def test_nothing_that_precedes_an_edit_is_computed(site, layer):
    """Neither layers before it nor the parts of its own block that come before the site."""
    model, ids = wrap(tiny_llama(2)), tokens(1, 9)[0].tolist()
    own = clean(model, ids, site=site, layers=[layer], read=[8])
    rows = [Row((Edit(site, layer, 0.5, "scale", p),)) for p in (None, (5, 8), (8,))]
    want = [engine.run(model.network, own, [row])[0].logits for row in rows]
    body = model.module.model
    poison(body.embed_tokens)
    for block in body.layers[:layer]:
        poison(block)
    block = body.layers[layer]
    for name in BEFORE[site]:
        poison(block.mlp if name == "mlp" else block.self_attn[name])
    if BEFORE[site]:
        poison(block.input_layernorm)
    for row, logits in zip(rows, want, strict=True):
        [answer] = engine.run(model.network, own, [row])
        assert np.isfinite(answer.logits).all()
        assert same(answer.logits, logits)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "z", "mlp_out"])
def test_positions_before_the_first_edited_one_are_not_computed(random_pair, site):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own, poisoned = (clean(model, ids, site=site, read=[8]) for _ in range(2))
    early = (mx.arange(9) < 4)[None, :, None]
    for i in range(4):
        poisoned.streams[i] = mx.where(early, mx.nan, poisoned.streams[i])
    rows = [Row((Edit(site, i, 0.5, "scale", (4, 6)),)) for i in range(3)]
    wanted = engine.run(model.network, own, rows)
    for answer, want in zip(engine.run(model.network, poisoned, rows), wanted, strict=True):
        assert same(answer.logits, want.logits)


def test_last_layers_mlp_sees_the_positions_from_the_first_read_one_on(random_pair):
    """Whatever it is handed beyond them becomes NaN, and no answer depends on it."""
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    mlp = model.module.layers[-1].mlp
    cls = type(mlp)
    rows = [Row((Edit(s, i, 0.5, "scale"),)) for s in ("resid_pre", "z") for i in (0, 3)]

    def both():
        own = clean(model, ids, read=[8, 7], layers=range(4))
        return own, engine.run(model.network, own, rows)

    own, wanted = both()

    def __call__(self, x):
        return cls.__call__(self, x) if x.shape[1] <= 2 else x * mx.nan

    mlp.__class__ = type(cls.__name__, (cls,), {"__call__": __call__})
    try:
        again, answers = both()
    finally:
        mlp.__class__ = cls
    assert same(again.logits, own.logits)
    for answer, want in zip(answers, wanted, strict=True):
        assert same(answer.logits, want.logits)


def test_rows_of_several_prompts_donors_strengths_and_layers_run_together(random_pair):
    donor, recipient = random_pair
    ids = tokens(3, 9, seed=4)
    own = engine.clean(recipient.network, ids, site="resid_pre", read=[2, 8, 5])
    theirs = engine.clean(donor.network, ids, site="resid_pre", read=[8], recipient=False)
    rng = np.random.default_rng(0)
    rows, wanted = [], []
    for n in rng.permutation(24):
        prompt, layer, strength = n % 3, int(n) % 4, (0.5, 2.0)[n % 2]
        mixed = strength * theirs.value("resid_pre", layer, int(rng.integers(3)))
        place = Place("resid_pre", layer, (None, (3, 6))[n // 12])
        rows.append(patch(theirs, place, int(prompt), mixed))
        whole = plain_patched(recipient, ids[int(prompt)].tolist(), mixed, place)
        wanted.append(whole[[2, 8, 5]])
    for batch in (engine.run(recipient.network, own, rows), swept(recipient, own, rows)):
        for answer, want in zip(batch, wanted, strict=True):
            assert off(answer.logits, want) <= 5e-5


def swept(model, own, rows):
    """Answers of a sweep in the order of the rows."""
    answers = dict(engine.sweep(model.network, own, rows))
    return [answers[n] for n in range(len(rows))]


def test_positions_are_read_in_the_order_asked(random_pair):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    row, orders = Row((Edit("z", 1, 0.0),)), ([8, 2, 5], [2, 5, 8], [5])
    found = {}
    for order in orders:
        own = clean(model, ids, read=order)
        [answer] = engine.run(model.network, own, [row])
        for logits, p in ((answer.logits, "edited"), (own.logits[0], "clean")):
            for n, position in enumerate(order):
                found.setdefault((p, position), []).append(logits[n])
    for rows in found.values():
        assert all(off(row, rows[0]) <= 1e-5 for row in rows)


@pytest.mark.parametrize("name", ["hunyuan", "gemma4_text", "rwkv7"])
def test_architectures_that_cannot_start_run_whole_with_the_same_numbers(name):
    model = tiny(name)
    assert not model.network.anatomy.resumable
    ids, other = tokens(1, 9)[0].tolist(), tokens(1, 9, seed=8)[0].tolist()
    missing = model.network.block(1).missing
    sites = [s for s in ("resid_post", "resid_pre", "z") if s not in missing]
    own = clean(model, ids, site=sites, layers=[1], read=[8])
    donor = clean(model, other, site=sites, layers=[1], read=[8])
    places = [Place(site, 1, p) for site in sites for p in (None, (3,))]
    answers = swept(model, own, [patch(donor, place) for place in places])
    for (site, _, positions, _), answer in zip(places, answers, strict=True):
        given = donor.value(site, 1)
        edit = Edit(site, 1, given if positions is None else given[:, 3:4], positions=positions)
        want = forward(model.network, mx.array([ids]), edits=[edit]).logits[0, 8:]
        assert off(answer.logits, want) <= 1e-5


def test_a_full_precision_donor_does_not_change_the_recipients_precision():
    """Patched at all positions or at one, a bf16 recipient stays bf16."""
    full = wrap(tiny_llama(0))
    half = wrap(in_dtype(tiny_llama(1), mx.bfloat16))
    ids = tokens(1, 9)[0].tolist()
    for site in SITES:
        own = clean(half, ids, site=site, layers=[1], read=[8])
        donor = clean(full, ids, site=site, layers=[1], read=[8])
        rounded = donor.value(site, 1).astype(mx.bfloat16)
        for positions in (None, tuple(range(9)), (4,)):
            place = Place(site, 1, positions)
            [answer] = engine.run(half.network, own, [patch(donor, place)])
            assert answer.final.dtype == mx.bfloat16
            [again] = engine.run(half.network, own, [patch(donor, place, value=rounded)])
            assert same(answer.logits, again.logits)


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
    late = engine.matched_noise(donor[:, 20:], np.random.default_rng(1), begins=20)
    assert off(late, made[0][:, 20:]) <= 1e-5


def test_what_does_not_fit_is_refused(random_pair):
    model, ids = random_pair[0], [3, 1, 4, 1, 5]
    network = model.network

    def made(tokens=(ids,), **changes):
        return engine.clean(
            network, list(tokens), **{"site": "z", "layers": [1], "read": [4]} | changes
        )

    own = made()
    bare = made(recipient=False)

    def ran(edit, *, states=own):
        return engine.run(network, states, [Row((edit,))])

    for call, error, match in (
        (lambda: made(layers=[4]), ValueError, "layer 4 is outside"),
        (lambda: made(layers=[-1]), ValueError, "layer -1 is outside"),
        (lambda: made(read=[5]), ValueError, r"position 5 is outside 0\.\.4"),
        (lambda: made(read=[]), ValueError, "positions to read"),
        (lambda: made(site="resid"), ModelError, "no site 'resid'"),
        (lambda: made([[64]], layers=[0], read=[0]), PromptError, "token id 64 is outside"),
        (lambda: made([ids, ids[1:]]), ValueError, "have one length"),
        (lambda: patch(own, Place("z", 2)), ValueError, r"kept z at layers \[1\], not at 2"),
        (lambda: patch(own, Place("q", 1)), ValueError, r"kept q at layers \[\], not at 1"),
        (lambda: patch(own, Place("z", 1, (5,))), ValueError, r"position 5 is outside 0\.\.4"),
        (lambda: patch(own, Place("z", 1, (-1,))), ValueError, "position -1 is outside"),
        (lambda: patch(own, Place("z", 1, None, (4,))), ValueError, r"head 4 is outside 0\.\.3"),
        (
            lambda: patch(own, Place("z", 1), value=own.value("z", 1)[:, :4]),
            ValueError,
            "donor's z has shape",
        ),
        (
            lambda: ran(Edit("z", 1, 0.0, positions=(5,))),
            ValueError,
            r"position 5 is outside 0\.\.4",
        ),
        (lambda: ran(Edit("z", 1, 0.0, positions=(-1,))), ValueError, "position -1 is outside"),
        (lambda: ran(Edit("z", 1, 0.0, heads=(4,))), ValueError, r"head 4 is outside 0\.\.3"),
        (lambda: ran(Edit("z", 4, 0.0)), ValueError, "layer 4 is outside"),
        (lambda: ran(Edit("resid_pre", 3, 0.0)), ValueError, r"enters layers .*, not 3"),
        (lambda: ran(Edit("z", 1, 0.5), states=bare), ValueError, r"enters layers \[\], not 1"),
        (
            lambda: ran(Edit("z", 1, mx.zeros((1, 4, 4, 8)))),
            ValueError,
            r"\(1, 4, 4, 8\).*\(1, 5, 4, 8\)",
        ),
        (
            lambda: ran(Edit("resid_post", 3, mx.zeros((1, 4, 32)))),
            ValueError,
            r"resid_post of layer 3",
        ),
        (lambda: engine.run(network, own, [Row(())]), ValueError, "needs an edit"),
        (lambda: [*engine.sweep(network, own, [Row(())])], ValueError, "needs an edit"),
    ):
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("site", ["z", "resid_post", "mlp_out"])
@pytest.mark.parametrize("position", [9, -1])
def test_a_position_that_does_not_exist_is_refused_wherever_it_is(random_pair, site, position):
    """Also where the clean run keeps no site, and in the last layer, which is read late."""
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = clean(model, ids, read=[8])
    for layer in (1, 3):
        with pytest.raises(ValueError, match=f"position {position} is outside"):
            engine.run(model.network, own, [Row((Edit(site, layer, 0.0, positions=(position,)),))])


@pytest.mark.parametrize("prompt", [1, -1])
def test_a_prompt_that_does_not_exist_is_refused(random_pair, prompt):
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    own = clean(model, ids, read=[8])
    with pytest.raises(ValueError, match=f"prompt {prompt} is outside"):
        engine.run(model.network, own, [Row((Edit("z", 1, 0.0),), prompt)])


def test_start_and_head_agree_on_what_was_read(random_pair):
    """The engine's rows equal runs that start by hand, at every layer."""
    model, ids = random_pair[0], tokens(1, 9)[0].tolist()
    seen, _ = plain_states(model, ids)
    own = clean(model, ids, site="resid_pre", read=[8])
    for layer in range(4):
        stream = seen["resid_pre", layer] + 0.3
        place = Place("resid_pre", layer)
        [answer] = engine.run(model.network, own, [put_in(place, stream)])
        by_hand = forward(model.network, mx.array([ids]), start=Start(layer, stream), read=[8])
        assert off(answer.logits, by_hand.logits[0]) <= 1e-5
        assert off(answer.logits, plain_patched(model, ids, stream, place)[8:]) <= 5e-5


# --- rows: where they join, and which run together -------------------------------------------

SHAPES = [
    Shape(n, length, read, late)
    for n in (1, 4)
    for length, read in ((1, (0,)), (10, (9,)), (10, (7, 9, 2)), (100, (99,)))
    for late in (True, False)
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batches_hold_every_row_once_within_the_budget(shape):
    rng = np.random.default_rng(0)
    spots = []
    for _ in range(200):
        site = EDITABLE[rng.integers(len(EDITABLE))]
        positions = rng.permutation(shape.length)[: rng.integers(1, 3)].tolist()
        edit = Edit(site, int(rng.integers(shape.n_layers)), 0.0, positions=positions)
        found = engine.spot(Row((edit,), int(rng.integers(3))), shape)
        spots += [] if found is None else [found]
    for budget, most in ((1, 50), (40, 50), (512, 7), (4096, 50)):
        made = batches(spots, shape, tokens=budget, fits=lambda _, most=most: most)
        assert sorted(n for batch in made for n in batch) == list(range(len(spots)))
        for batch in made:
            starts = [spots[n].start for n in batch]
            span = shape.length - min(starts)
            assert len(batch) <= max(1, most)
            assert len(batch) == 1 or len(batch) * span <= budget
            assert max(starts) - min(starts) <= max(1, span // 8)
            assert [spots[n].order for n in batch] == sorted(spots[n].order for n in batch)


def test_a_row_joins_at_its_first_site_and_first_position():
    shape = Shape(4, 10, (9, 6), late=True)

    def joins(*edits, shape=shape):
        return engine.spot(Row(edits, 2), shape)

    assert joins(Edit("resid_pre", 2, 0.0, positions=(3, 8))) == Spot(2, None, 3, 2)
    assert joins(Edit("resid_post", 2, 0.0, positions=(3,))) == Spot(3, None, 3, 2)
    assert joins(Edit("z", 1, 0.0)) == Spot(1, "z", 0, 2)
    late, early = Edit("mlp_out", 1, 0.0, positions=(2,)), Edit("z", 1, 0.0, positions=(5,))
    assert joins(late, early) == joins(early, late) == Spot(1, "z", 2, 2)
    assert joins(Edit("z", 1, 0.0, positions=(8,))) == Spot(1, "z", 6, 2)
    assert joins(Edit("z", 1, 0.0, positions=(5,)), shape=replace(shape, late=False)).start == 0
    for site in ("q", "z", "attn_out", "mlp_out", "resid_post"):
        assert joins(Edit(site, 3, 0.0, positions=(7, 2))) is None
    for site in ("resid_pre", "k", "v"):
        assert joins(Edit(site, 3, 0.0, positions=(7, 2))).start == 2
    assert joins(Edit("z", 1, 0.0, positions=())) is None


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 7])
def test_least_calls_have_closed_forms(n, length):
    """Layers after the join from its position on; the last one at the last position only."""
    shape = Shape(n, length, (length - 1,), late=True)
    for start in range(length):
        each = (length - start) / length
        total = sum(engine.least_calls(Spot(i, None, start), shape) for i in range(n + 1))
        assert total == pytest.approx(n * (n - 1) / 2 * each + n / length)
    assert engine.clean_calls(shape) == pytest.approx(n - 1 + 1 / length)
    whole = Shape(n, length, (length - 1,), late=False)
    assert engine.clean_calls(whole) == n
    assert engine.least_calls(Spot(0, None, 0), whole) == n


# --- caches: one prefix for all rows ------------------------------------------------------------

BOOL = np.arange(11)[None] <= np.arange(8, 11)[:, None]
BOOL[1, 2:5] = False
MASKS = {
    "none": None,
    "causal": "causal",
    "bool": mx.array(BOOL),
    "bool 4 axes": mx.array(BOOL[None, None]),
    "additive": mx.array(np.where(BOOL, 0.25, -1e9).astype(np.float32)),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_shared_prefix_gives_what_the_kernel_gives_on_whole_keys(kv_heads, mask, sinks, dtype):
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)

    q, before = drawn(3, 4, 3, 16), (drawn(1, kv_heads, 8, 16), drawn(1, kv_heads, 8, 16))
    cache = LayerCache(8)
    cache.put(before)
    k, v = cache.update_and_fetch(drawn(3, kv_heads, 3, 16), drawn(3, kv_heads, 3, 16))
    given = MASKS[mask]
    if mask == "additive":
        given = given.astype(dtype)
    extra = drawn(4) if sinks else None
    call = AttentionCall(q, k, v, 0.3, given, extra, cache, lambda *_: q, Frame(0, 0))
    kernel = mx.fast.scaled_dot_product_attention
    want = kernel(q, k, v, scale=0.3, mask=given, sinks=extra)
    z = attend_shared(call, cache)
    assert z.dtype == dtype
    assert off(z, want) <= (2e-6 if dtype == mx.float32 else 0.02)


# --- edits of a part of the positions -----------------------------------------------------------

AXES = dict.fromkeys(STREAM_SITES, (2, 6, 5)) | {"pattern": (2, 4, 6, 6)}


@pytest.mark.parametrize("site", EDITABLE)
def test_an_edit_of_later_positions_is_the_later_part_of_the_whole_edit(site):
    rng = np.random.default_rng(0)
    shape = AXES.get(site, (2, 6, 4, 5))
    axis = 2 if site == "pattern" else 1
    array = mx.array(rng.standard_normal(shape, dtype=np.float32))
    for _ in range(60):
        start = int(rng.integers(6))
        where = {}
        if rng.random() < 0.7:
            where["positions"] = rng.permutation(6)[: rng.integers(7)].tolist()
        if site not in STREAM_SITES and rng.random() < 0.5:
            where["heads"] = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        part = selected(Edit(site, 0, 0.0, **where), array)
        value = mx.array(rng.standard_normal(part.shape, dtype=np.float32))
        if part.size:
            value = value[tuple(slice(None, [1, None][rng.integers(2)]) for _ in part.shape)]
        op = ("replace", "add", "scale")[rng.integers(3)]
        edits = [Edit(site, 0, value, op, **where), zero(site, 0, **where)]
        edits += [transplant(site, 0, array[:1] * 2, **where), mean(site, 0, array, **where)]
        edits += [project_out(site, 0, rng.standard_normal(shape[-1]), **where)]
        for edit in edits:
            want = apply(edit, array)[(slice(None),) * axis + (slice(start, None),)]
            late = array[(slice(None),) * axis + (slice(start, None),)]
            moved = onto(edit, start, 6)
            assert off(late if moved is None else apply(moved, late), want) <= 1e-6


def test_ablations_put_in_zeros_means_draws_and_what_lies_across_a_direction():
    rng = np.random.default_rng(0)
    array, reference = (rng.standard_normal((n, 6, 4, 5)).astype(np.float32) for n in (2, 3))
    given, where = mx.array(reference), {"positions": (4, 1), "heads": (2,)}
    direction = rng.standard_normal(5)
    drawn = int(np.random.default_rng(7).integers(3))
    cases = {
        "zero": (zero("z", 0, **where), lambda _x, _p: 0.0),
        "mean": (mean("z", 0, given, **where), lambda _x, p: reference[:, p, 2].mean(axis=0)),
        "resample": (
            resample("z", 0, given, np.random.default_rng(7), **where),
            lambda _x, p: reference[drawn, p, 2],
        ),
        "transplant": (transplant("z", 0, given[1:2], **where), lambda _x, p: reference[1, p, 2]),
        "project": (
            project_out("z", 0, direction, **where),
            lambda x, _p: x - (x @ direction) / (direction @ direction) * direction,
        ),
    }
    for edit, value in cases.values():
        want = array.copy()
        for n in range(2):
            for p in (4, 1):
                want[n, p, 2] = value(array[n, p, 2].astype(np.float64), p)
        assert off(apply(edit, mx.array(array)), want) <= 1e-6
    for bad in (np.zeros(5), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="longer than 0"):
            project_out("z", 0, bad)
