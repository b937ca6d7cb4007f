"""The engine under random edits of random tiny models: every row equals its own plain run.

Oracles are ``forward`` on the one prompt, and loops over mlx_lm's layers without any taps. Bounds
are absolute on logits up to 1 and relative above.
"""

import importlib
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
import plain_loops
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import in_dtype, same, tiny, tiny_llama, to_numpy, tokens

from mlxroles import engine
from mlxroles.backend import mx, nn
from mlxroles.edits import (
    EDITABLE,
    LINEAR,
    STREAM_SITES,
    Edit,
    LowRank,
    mean,
    project_out,
    resample,
    selected,
    zero,
)
from mlxroles.engine import Row
from mlxroles.forward import forward
from mlxroles.models import weights
from mlxroles.models.load import wrap

BOUND = 1e-5
ROUNDING = {"muse_spark": 4e-3}
"""Bounds of models that round their stream to bfloat16 on the way, whatever their weights are in: a
last digit may tip a rounding, which is 2**-8 of the value."""
LLAMAS = {
    "one layer": {"num_hidden_layers": 1},
    "two layers": {"num_hidden_layers": 2, "num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1, "num_hidden_layers": 3},
    "grouped": {},
}
SHORTCUTS = ("qwen3", "gemma2", "gemma3_text", "gpt_neox", "gpt_oss", "deepseek_v3", "llama4")
WITHOUT = ("mamba", "jamba", "rwkv7", "gemma4_text", "hunyuan", "muse_spark", "longcat_flash")
"""Architectures that forbid a shortcut: runs begin at the first position, or at the first layer."""
MODELS = (*LLAMAS, *SHORTCUTS, *WITHOUT)
HALF = {
    "llama bf16": lambda: in_dtype(tiny_llama(5), mx.bfloat16),
    "gemma2 bf16": lambda: in_dtype(tiny("gemma2").module, mx.bfloat16),
    "llama 4-bit": lambda: quantised(tiny_llama(6, **WIDE)),
    "llama 4-bit bf16": lambda: quantised(in_dtype(tiny_llama(6, **WIDE), mx.bfloat16)),
}
WIDE = {"hidden_size": 64, "intermediate_size": 128}
LOOPED = ("grouped", "qwen2", *SHORTCUTS[:-1])
BUILT: dict = {}


def model_of(name):
    if name not in LLAMAS and name not in HALF:
        return tiny(name)
    if name not in BUILT:
        module = HALF[name]() if name in HALF else tiny_llama(5, **LLAMAS[name])
        BUILT[name] = wrap(module, name=name)
    return BUILT[name]


def quantised(module):
    nn.quantize(module, group_size=32, bits=4)
    return module


class Case(NamedTuple):
    """Prompts of one length, and what is run of them."""

    name: str
    tokens: mx.array
    read: tuple[int, ...]
    rows: list[Row]

    @property
    def model(self):
        return model_of(self.name)

    @property
    def bound(self):
        return ROUNDING.get(self.name, BOUND)

    def clean(self, known="none"):
        """The clean run that keeps no site, or the first edits' where all layers have them.

        Of all layers, or of the edited ones alone, the last of which then reads late.
        """
        network = self.model.network
        if known == "none":
            return engine.clean(network, self.tokens, read=self.read)
        sites = {row.edits[0].site for row in self.rows} - {LINEAR}
        layers = sorted({edit.layer for row in self.rows for edit in row.edits})
        layers = layers if known == "edited" else [*range(self.model.n_layers)]
        missing = [network.block(i).missing for i in layers]
        kept = [site for site in sites if all(site not in m for m in missing)]
        options = {"layers": layers, "late": True} if known == "edited" else {}
        return engine.clean(network, self.tokens, read=self.read, site=kept, **options)

    def plain(self, row):
        """Logits [n_read, vocab] of a run of its own."""
        prompt = self.tokens[row.prompt : row.prompt + 1]
        return logits_of(forward(self.model.network, prompt, edits=row.edits, read=self.read))[0]

    def __repr__(self):
        rows = "; ".join(f"{r.prompt}: {', '.join(map(shown, r.edits))}" for r in self.rows)
        return f"{self.name} {self.tokens.tolist()} read {self.read}: {rows}"


def shown(e):
    size = getattr(e.value, "shape", e.value)
    return f"{e.op} {e.site}.{e.layer} at {e.positions} heads {e.heads} value {size}"


def logits_of(run):
    return np.array(run.logits.astype(mx.float32))


def offered(name, layer, length):
    """Sites that can be edited in a layer of a prompt of this length."""
    network = model_of(name).network
    latent = ("q", "k", "v", "z") if length < network.anatomy.shortest else ()
    missing = network.block(layer).missing
    return [site for site in EDITABLE if site not in missing and site not in latent]


@cache
def leaves(name, layer):
    """Linear leaves that are handed every position, with their widths (d_in, d_out)."""
    found = weights.inputs(model_of(name).network, [layer], tokens(1, 5, vocab=60))[layer]
    return {
        path: (x.shape[-1], module["weight"].shape[0])
        for path, (module, x) in found.items()
        if x.shape[:-1] == (1, 5) and weights.is_plain_map(module, x)
    }


def map_of(draw, name, layer, positions):
    """A random map of low rank at one of the layer's leaves."""
    path = draw(st.sampled_from([*leaves(name, layer)]))
    (d_in, d_out), rng = leaves(name, layer)[path], np.random.default_rng(draw(st.integers(0, 9)))
    rank = draw(st.integers(1, 2))
    v = rng.standard_normal((d_in, rank)) / d_in**0.5
    u = rng.standard_normal((rank, d_out)) * 0.2
    low = LowRank(path, *(mx.array(a.astype(np.float32)) for a in (v, u)))
    return Edit(LINEAR, layer, low, "add", positions)


def donors(name, site, layer, prompts):
    """A site's arrays in plain runs of other prompts [prompt, ...]."""
    kept = forward(model_of(name).network, prompts, keep=[site], layers=[layer])
    return kept[site, layer]


@st.composite
def edits(draw, name, length):
    """One edit that the model can carry out on a prompt of this length."""
    model = model_of(name)
    layer = draw(st.integers(0, model.n_layers - 1))
    more = [LINEAR] * 2 if leaves(name, layer) else []
    site = draw(st.sampled_from([*offered(name, layer, length), *more]))
    where = {"positions": draw(st.none() | subset(length) | st.just([length - 1]))}
    if site == LINEAR:
        return map_of(draw, name, layer, where["positions"])
    if site not in STREAM_SITES:
        block = model.network.block(layer)
        heads = block.kv_heads if site in ("k", "v") else block.heads
        where["heads"] = draw(st.none() | subset(heads))
    kind = draw(st.sampled_from(KINDS))
    if kind == "zero":
        return zero(site, layer, **where)
    if kind == "scale":
        return Edit(site, layer, draw(st.sampled_from([-1.0, 0.5, 2.0])), "scale", **where)
    if kind == "number":
        return Edit(site, layer, 0.3, "add", **where)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    arrays = donors(name, site, layer, tokens(3, length, vocab=60, seed=int(rng.integers(99))))
    if kind == "mean":
        return mean(site, layer, arrays, **where)
    if kind == "resample":
        return resample(site, layer, arrays, rng, **where)
    if kind == "project" and site != "pattern":
        return project_out(site, layer, rng.standard_normal(arrays.shape[-1]), **where)
    value = selected(Edit(site, layer, 0.0, **where), arrays[:1])
    if kind == "part" and value.size:  # leaves the broadcasting of some axes to the edit
        value = value[tuple(slice(None, draw(st.sampled_from([1, None]))) for _ in value.shape)]
        value = np.array(value.astype(mx.float32))[0]
    op = draw(st.sampled_from(["replace", "add"]))
    return Edit(site, layer, value * 0.5 if op == "add" else value, op, **where)


KINDS = ("donor", "part", "number", "scale", "zero", "mean", "resample", "project")


def subset(count):
    """Some of the numbers below ``count``, in any order; seldom none."""
    return st.lists(st.integers(0, count - 1), max_size=3, unique=True)


@st.composite
def cases(draw, names, most_rows=4, longest=14):
    name, prompts = draw(st.sampled_from(names)), draw(st.integers(1, 3))
    length = draw(st.integers(1, longest) | st.just(longest))
    ids = tokens(prompts, length, vocab=60, seed=draw(st.integers(0, 5)))
    read = draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3))
    row = st.builds(
        Row,
        st.lists(edits(name, length), min_size=1, max_size=3).map(tuple),
        st.integers(0, prompts - 1),
    )
    return Case(name, ids, tuple(read), draw(st.lists(row, min_size=1, max_size=most_rows)))


def few(n):
    return settings(max_examples=n, suppress_health_check=list(HealthCheck))


def check(got, wanted, bound=BOUND):
    got, wanted = to_numpy(got), to_numpy(wanted)
    assert got.shape == wanted.shape
    off = np.abs(got - wanted).max(initial=0.0)
    assert off <= bound * max(1.0, np.abs(wanted).max(initial=0.0)), off


def swept(case, own, rows=None, **options):
    """Answers in the order of the rows."""
    rows = case.rows if rows is None else rows
    answers = dict(engine.sweep(case.model.network, own, rows, **options))
    assert sorted(answers) == list(range(len(rows)))
    return [answers[n] for n in range(len(rows))]


def test_every_kind_of_model_is_tried():
    anatomies = {name: model_of(name).network.anatomy for name in MODELS}
    forbidden = {name for name, a in anatomies.items() if a.forbidden}
    assert forbidden == {*WITHOUT}
    assert {b.kind for a in anatomies.values() for b in a.blocks} == {"sdpa", "softmax", "none"}


@few(100)
@given(cases(MODELS), st.sampled_from(["none", "all", "edited"]))
def test_rows_equal_plain_runs(case, known):
    own = case.clean(known)
    for prompt in range(case.tokens.shape[0]):
        plain = forward(case.model.network, case.tokens[prompt : prompt + 1], read=case.read)
        check(own.logits[prompt], logits_of(plain)[0], case.bound)
    for row, answer in zip(case.rows, swept(case, own), strict=True):
        check(answer.logits, case.plain(row), case.bound)
        assert answer.logits.dtype == np.float32
        check(case.model.unembed(answer.final[None])[0], answer.logits, 2 * case.bound)


@few(40)
@given(cases(LOOPED, most_rows=3))
def test_rows_equal_loops_without_taps(case):
    module, own = case.model.module, case.clean()
    for row, answer in zip(case.rows, swept(case, own), strict=True):
        prompt = case.tokens[row.prompt : row.prompt + 1]
        house = "llama" if case.name in LLAMAS else case.name
        with plain_loops.beside(module, row.edits):
            want = plain_loops.run(house, module, prompt, plain_loops.touching(row.edits))
        check(answer.logits, want[0, mx.array(case.read)], 2 * BOUND)


@few(40)
@given(cases(MODELS, most_rows=6), st.randoms())
def test_neither_order_nor_company_of_a_row_matters(case, random):
    own = case.clean("all")
    together = engine.run(case.model.network, own, case.rows)
    order = [*range(len(case.rows))]
    random.shuffle(order)
    shuffled = swept(case, own, [case.rows[n] for n in order])
    for n, row in enumerate(case.rows):
        [alone] = engine.run(case.model.network, own, [row])
        check(together[n].logits, alone.logits, case.bound)
        check(shuffled[order.index(n)].logits, alone.logits, case.bound)
        check(together[n].final, alone.final, case.bound)


@few(30)
@given(cases(MODELS, most_rows=6))
def test_cutting_rows_into_batches_by_memory_changes_nothing(case):
    own = case.clean("all")
    free = swept(case, own)
    for answer, tight in zip(free, swept(case, own, memory=1), strict=True):
        check(tight.logits, answer.logits, case.bound)


@few(30)
@given(cases(MODELS, most_rows=6), st.integers(1, 3), st.sampled_from([RuntimeError, MemoryError]))
def test_a_batch_that_does_not_fit_is_halved(case, most, error):
    own, network, tried = case.clean(), case.model.network, []
    module = importlib.import_module("mlxroles.engine.sweep")
    whole = module.run_batch

    def small(network, own, rows):
        tried.append(len(rows))
        if len(rows) > most:
            raise error("[malloc] Unable to allocate 1 bytes.")
        return whole(network, own, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_batch", small)
        answers = engine.run(network, own, case.rows)
    for row, answer in zip(case.rows, answers, strict=True):
        check(answer.logits, case.plain(row), case.bound)
    assert tried[0] == len(case.rows)
    assert sum(n for n in tried if n <= most) == len(case.rows)


@few(40)
@given(cases(tuple(HALF)))
def test_rows_of_rounded_models_stay_within_their_rounding(case):
    own = case.clean("all")
    bound = 0.05 if "bf16" in case.name else BOUND
    for row, answer in zip(case.rows, swept(case, own), strict=True):
        check(answer.logits, case.plain(row), bound)
        assert answer.final.dtype == case.model.dtype


@few(40)
@given(st.data())
def test_an_edit_that_replaces_by_the_same_value_changes_no_bit(data):
    name = data.draw(st.sampled_from(MODELS))
    length = data.draw(st.integers(2, 9))
    case = Case(name, tokens(1, length, vocab=60, seed=2), tuple(range(length)), [])
    network = case.model.network
    layer = data.draw(st.integers(0, case.model.n_layers - 1))
    site = data.draw(st.sampled_from(offered(name, layer, length)))
    own = engine.clean(network, case.tokens, read=case.read, site=site, layers=[layer])
    [answer] = engine.run(network, own, [Row((Edit(site, layer, own.value(site, layer)),))])
    assert same(answer.logits, own.logits[0])
    some = [length - 1, 0]
    edit = Edit(site, layer, 0.0, positions=some)
    edit = Edit(site, layer, selected(edit, own.value(site, layer)), positions=some)
    [answer] = engine.run(network, own, [Row((edit,))])
    check(answer.logits, own.logits[0], case.bound)


@few(40)
@given(cases(MODELS), st.data())
def test_positions_after_the_last_one_read_have_no_effect_at_all(case, data):
    """Not a rounding: the answer is the clean run's, but where every row runs whole."""
    length, prompt = case.tokens.shape[1], case.rows[0].prompt
    longer = mx.concatenate([case.tokens, case.tokens[:, :1], case.tokens[:, :1]], axis=1)
    network = case.model.network
    layer = data.draw(st.integers(0, case.model.n_layers - 1))
    site = data.draw(st.sampled_from(offered(case.name, layer, length + 2)))
    edit = Edit(site, layer, 0.7, "add", [length + 1, length])
    own = engine.clean(network, longer, read=case.read)
    [answer] = engine.run(network, own, [Row((edit,), prompt)])
    check(answer.logits, own.logits[prompt], case.bound)
    if network.anatomy.resumable:
        assert same(answer.logits, own.logits[prompt])


LAYERS, LENGTH, HEADS = 4, 10, 4
SWEEPS = {
    "W4": (
        [Edit("resid_post", i, 0.1, "add") for i in range(LAYERS)],
        (LAYERS - 1) * (LAYERS - 2) / 2 + (LAYERS - 1) / LENGTH,
    ),
    "W5": (
        [Edit("resid_post", i, 0.1, "add", [LENGTH - 1]) for i in range(LAYERS)],
        LAYERS * (LAYERS - 1) / 2 / LENGTH,
    ),
    "W6": (
        [Edit("resid_post", i, 0.1, "add", [p]) for i in range(LAYERS) for p in range(LENGTH)],
        (LAYERS - 1) * (LAYERS - 2) / 2 * (LENGTH + 1) / 2 + (LAYERS - 1) * LENGTH / LENGTH,
    ),
    "W7": (
        [zero("z", i, heads=[h]) for i in range(LAYERS) for h in range(HEADS)],
        HEADS * (LAYERS * (LAYERS - 1) / 2 + LAYERS / LENGTH),
    ),
}
"""Edits of one row each, and the row-layers that they need: the last layer at one position."""


@pytest.fixture
def work():
    """Positions that the MLPs of the layers before the last one were handed."""
    model, seen = model_of("grouped"), Counter()
    layers = model.module.layers[:-1]
    own = type(layers[0].mlp)

    class Counting(own):
        def __call__(self, x):
            seen["positions"] += x.shape[0] * x.shape[1]
            return super().__call__(x)

    for layer in layers:
        layer.mlp.__class__ = Counting
    yield seen
    for layer in layers:
        layer.mlp.__class__ = own


@pytest.mark.parametrize("name", SWEEPS)
def test_no_layer_is_called_that_a_sweep_does_not_need(name, work):
    made_of, least = SWEEPS[name]
    model, ids = model_of("grouped"), tokens(1, LENGTH, vocab=60)
    own = engine.clean(model.network, ids, read=[LENGTH - 1], site="z")
    engine.reset_calls()
    work.clear()
    rows = [Row((edit,)) for edit in made_of]
    answers = dict(engine.sweep(model.network, own, rows))
    calls = engine.calls()
    assert calls.least == pytest.approx(least)
    assert least <= calls.made + 1e-9
    assert calls.made <= 1.15 * least
    reaching = sum(e.layer < LAYERS - 1 or e.site == "z" for e in made_of)
    assert work["positions"] / LENGTH + reaching / LENGTH == pytest.approx(calls.made)
    for n, row in enumerate(rows):
        plain = forward(model.network, ids, edits=row.edits, read=[LENGTH - 1])
        check(answers[n].logits, logits_of(plain)[0])
