"""Taps leave no trace: after exceptions, with two models of one file, in threads and in tasks."""

import asyncio
import importlib.util
import sys
import threading
from pathlib import Path

import mlx_lm.models.gemma2 as gemma2
import mlx_lm.models.llama as llama
import pytest
from tiny_models import off, same, tiny, tiny_llama, tokens

from mlxroles import taps
from mlxroles.backend import mx, nn
from mlxroles.edits import Edit
from mlxroles.forward import forward
from mlxroles.models.load import wrap
from mlxroles.taps import Tap, home_namespaces, real_class

X = tokens(2, 9)
HEADS = 4


class Boom(BaseException):
    """No Exception: nothing may catch it."""


@pytest.fixture(scope="module")
def pair():
    return tiny_llama(0), tiny_llama(1)


@pytest.fixture(autouse=True)
def clean(pair):
    """Every test ends with classes, names and context variables as they were, and equal logits."""
    before = [m(X) for m in pair]
    mx.eval(before)
    names = (llama.scaled_dot_product_attention, llama.mx)
    yield
    assert (llama.scaled_dot_product_attention, llama.mx) == names
    assert not taps._RECLASSED
    assert not taps._RENAMED
    assert taps._TAPS.get() == ()
    assert taps._FRAME.get() is None
    for model, want in zip(pair, before, strict=True):
        assert all(type(m) is real_class(m) for m in model.modules())
        assert type(model.layers[0]) is llama.TransformerBlock
        assert same(model(X), want)


def tap(model, **callbacks):
    return Tap(model.layers, home_namespaces(model), **callbacks)


def without_head(head):
    """An attention callback that ablates a head."""
    keep = (mx.arange(HEADS) != head)[None, :, None, None].astype(mx.float32)
    return lambda call: call.fused() * keep


def plain_without_head(model, head):
    """The same by hand: the head's columns of every output projection are zeroed."""
    kept = [layer.self_attn.o_proj.weight for layer in model.layers]
    d = kept[0].shape[1] // HEADS
    mask = (mx.arange(kept[0].shape[1]) // d != head)[None]
    for layer, weight in zip(model.layers, kept, strict=True):
        layer.self_attn.o_proj.weight = weight * mask
    out = model(X)
    mx.eval(out)
    for layer, weight in zip(model.layers, kept, strict=True):
        layer.self_attn.o_proj.weight = weight
    return out


def boom(*_):
    raise Boom


@pytest.mark.parametrize("where", ["layer", "attention", "submodule", "layer after its run"])
def test_exception_in_a_callback_leaves_nothing_behind(where, pair):
    model = pair[0]

    def late(call):
        call.run()
        raise Boom

    callbacks = {
        "layer": {"layer": boom},
        "attention": {"attention": boom},
        "submodule": {"modules": [(model.layers[2].mlp.up_proj, boom)]},
        "layer after its run": {"layer": late, "attention": lambda call: call.fused()},
    }
    with pytest.raises(Boom), tap(model, **callbacks[where]):
        model(X)


def test_exception_in_a_softmax_callback_leaves_nothing_behind():
    model = tiny("gemma2").module
    before, want = gemma2.mx, model(X)
    with pytest.raises(Boom), tap(model, softmax=boom, direct=True):
        model(X)
    assert gemma2.mx is before
    assert same(model(X), want)


def test_exception_in_the_model_leaves_nothing_behind(pair):
    with (
        pytest.raises((AttributeError, TypeError, IndexError)),
        tap(pair[0], attention=lambda call: call.fused()),
    ):
        pair[0](X, cache="nonsense")


def test_exception_while_entering_leaves_nothing_behind(pair):
    broken = Tap([pair[0].layers[0], object()], home_namespaces(pair[0]), attention=boom)
    with pytest.raises(TypeError), broken:
        pytest.fail("the block must not run")


def test_a_tap_can_be_entered_again_but_not_while_it_is_active(pair):
    seen = []
    reused = tap(pair[0], layer=lambda call: seen.append(call.frame) or call.run())
    for _ in range(2):
        with reused:
            pair[0](X)
    assert seen == [(i, 0) for i in range(4)] * 2
    with reused, pytest.raises(RuntimeError, match="active already"), reused:
        pytest.fail("the block must not run")


def test_nested_taps_on_two_models_of_one_file(pair):
    base, other = pair
    with tap(base, attention=without_head(0)), tap(other, attention=without_head(3)):
        got = base(X), other(X)
    want = plain_without_head(base, 0), plain_without_head(other, 3)
    assert off(got[0], want[0]) <= 1e-5
    assert off(got[1], want[1]) <= 1e-5
    assert off(got[0], base(X)) > 1e-3
    assert off(got[1], other(X)) > 1e-3


def test_model_outside_a_tap_is_untouched(pair):
    want = pair[1](X)
    with tap(pair[0], attention=without_head(0), layer=lambda call: call.run() * 2):
        assert same(pair[1](X), want)


def test_the_inner_of_two_taps_on_one_model_gets_the_calls(pair):
    seen = []
    outer = tap(pair[0], layer=lambda call: seen.append("outer") or call.run())
    inner = tap(pair[0], layer=lambda call: seen.append("inner") or call.run())
    with outer:
        with inner:
            pair[0](X)
        assert seen == ["inner"] * 4
        pair[0](X)
    assert seen[4:] == ["outer"] * 4


def test_threads_with_different_taps_do_not_meet(pair):
    base, other = pair
    jobs = [(base, 0), (other, 3), (base, None), (other, None)]
    want = [m(X) if head is None else plain_without_head(m, head) for m, head in jobs]
    mx.eval(want)
    differences, errors = [], []

    def work(model, head, wanted):
        try:
            for _ in range(12):
                if head is None:
                    out = model(X)
                else:
                    with tap(model, attention=without_head(head)):
                        out = model(X)
                differences.append(off(out, wanted))
        except Exception as error:  # noqa: BLE001  (a thread's error would be lost)
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(*job, wanted))
        for job, wanted in zip(jobs, want, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(differences) == 48
    assert max(differences) <= 1e-5


def test_forwards_in_threads_equal_forwards_one_by_one(pair):
    models = [wrap(m) for m in pair]
    edits = [[Edit("z", 1, 0.0, heads=[0])], [Edit("resid_post", 2, 0.5, "add", [3])]]
    jobs = [(m.network, e) for m in models for e in edits]
    want = [forward(n, X, keep=["pattern", "resid_post"], edits=e) for n, e in jobs]
    got = {}

    def work(i):
        network, e = jobs[i]
        got[i] = [forward(network, X, keep=["pattern", "resid_post"], edits=e) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(want):
        for run in got[i]:
            assert same(run.logits, wanted.logits)
            assert same(run["pattern"], wanted["pattern"])


def test_interleaved_tasks_do_not_meet(pair):
    async def task(model, head):
        with tap(model, attention=without_head(head)):
            await asyncio.sleep(0)
            out = model(X)
            await asyncio.sleep(0)
            return out

    async def both():
        return await asyncio.gather(task(pair[0], 0), task(pair[1], 3), task(pair[0], 2))

    got = asyncio.run(both())
    for out, (model, head) in zip(got, [(pair[0], 0), (pair[1], 3), (pair[0], 2)], strict=True):
        assert off(out, plain_without_head(model, head)) <= 1e-5


def test_a_tapped_module_stays_what_it_is(pair):
    layer = pair[0].layers[1]
    parameters = layer.parameters()
    with tap(pair[0], layer=lambda call: call.run()):
        assert isinstance(layer, llama.TransformerBlock)
        assert type(layer) is not llama.TransformerBlock
        assert type(layer).__name__ == "TransformerBlock"
        assert type(layer).__module__ == "mlx_lm.models.llama"
        assert layer is pair[0].layers[1]
        assert layer.num_attention_heads == 4
        assert layer.parameters().keys() == parameters.keys()
        assert real_class(layer) is llama.TransformerBlock
    assert type(layer) is llama.TransformerBlock


def test_frames_count_layers_and_submodules_know_their_layer(pair):
    model, frames, inside = pair[0], [], []

    def part(call):
        inside.append(call.frame)
        return call.run()

    def layer(call):
        frames.append(call.frame)
        return call.run()

    with tap(model, layer=layer, modules=[(model.layers[2].mlp, part), (model.model.norm, part)]):
        model(X)
    assert frames == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert inside == [(2, 0), None]


def test_a_callback_may_leave_out_a_layer_or_change_what_it_is_handed(pair):
    model = pair[0]

    def skip(call):
        return call.args[0] if call.frame.layer == 1 else call.run()

    def double(call):
        if call.frame.layer == 1:
            call.args = (call.args[0] * 2, *call.args[1:])
        return call.run()

    embedded = model.model.embed_tokens(X)
    for hook, scale, left_out in ((skip, 1, {1}), (double, 2, set())):
        with tap(model, layer=hook):
            got = model(X)
        h = embedded
        for i, layer in enumerate(model.layers):
            if i not in left_out:
                h = layer(h * (scale if i == 1 else 1), "causal", None)
        assert same(got, model.lm_head(model.model.norm(h)))


class InPlace(nn.Module):
    """A layer that changes in place what it was handed, as a few files of mlx_lm do."""

    def __init__(self):
        super().__init__()
        self.layers = [InPlaceLayer(), InPlaceLayer(), InPlaceLayer()]
        self.embedding = nn.Embedding(16, 8)

    def __call__(self, inputs, cache=None):
        h = self.embedding(inputs)
        for layer in self.layers:
            h = layer(h)
            h[:, 1:] = h[:, 1:] * 3
        return h @ self.embedding.weight.T


class InPlaceLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def __call__(self, x):
        out = x + self.proj(x)
        x *= 0
        return out


def test_in_place_operations_change_no_capture_and_no_donor():
    mx.random.seed(1)
    net = InPlace()
    model = wrap(net)
    x, seen = mx.array([[1, 2, 3]]), []
    h = net.embedding(x)
    for layer in net.layers:
        entering = mx.array(h)
        h = layer.proj(h) + h
        seen.append((entering, mx.array(h)))
        h = mx.concatenate([h[:, :1], h[:, 1:] * 3], axis=1)
    run = forward(model.network, x, keep=["resid_pre", "resid_post"])
    assert same(run.logits, net(x))
    for i, (pre, post) in enumerate(seen):
        assert off(run["resid_pre", i], pre) <= 1e-6
        assert off(run["resid_post", i], post) <= 1e-6
    donor = mx.ones((1, 3, 8))
    edits = [Edit("resid_post", 0, donor), Edit("resid_pre", 2, donor)]
    first = forward(model.network, x, edits=edits).logits
    assert same(donor, mx.ones((1, 3, 8)))
    assert same(forward(model.network, x, edits=edits).logits, first)
    donor = mx.ones((1, 3, 8))
    by_hand = net.layers[2].proj(donor) + donor
    by_hand = mx.concatenate([by_hand[:, :1], by_hand[:, 1:] * 3], axis=1)
    assert off(first, by_hand @ net.embedding.weight.T) <= 1e-5


def test_attention_of_a_file_that_is_no_importable_module_is_seen(tmp_path, pair):
    """mlx_lm runs the Python file that a model brings along without registering it."""
    file = tmp_path / "brought.py"
    source = Path(llama.__file__).read_text(encoding="utf-8")
    file.write_text(source.replace("from .", "from mlx_lm.models."), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("custom_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "custom_model" not in sys.modules
    own = tiny_llama(0)
    brought = module.Model(module.ModelArgs.from_dict(vars(own.args)))
    brought.update(own.parameters())
    got = forward(wrap(brought).network, X, keep=["pattern"])
    want = forward(wrap(own).network, X, keep=["pattern"])
    assert same(got.logits, want.logits)
    assert same(got["pattern"], want["pattern"])


def test_namespaces_are_those_of_the_models_files():
    names = {space["__name__"] for space in home_namespaces(tiny("smollm3").module)}
    assert {"mlx_lm.models.smollm3", "mlx_lm.models.llama"} <= names
    assert not {n for n in names if n.startswith("mlx.")}
    assert "mlx_lm.models.base" not in names
