"""Training of components: every loss against torch, masks against twins, resumed to the same."""

import copy
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import LLAMA, off, tiny, tiny_llama, to_numpy, tokens
from torch.nn import functional as torch_nn

from mlxroles.backend import mx, nn
from mlxroles.components import train_losses as losses
from mlxroles.components.decomposition import Components, Decomposition
from mlxroles.components.file import read
from mlxroles.components.importance import (
    CAUSAL,
    KINDS,
    SHARE,
    importance_of,
    lower_leaky,
    upper_leaky,
)
from mlxroles.components.maps import decomposable
from mlxroles.components.svd import svd
from mlxroles.components.train import IMPORTANCE, TERMS, Recipe, Seen, Trainer, parts_of, random_key
from mlxroles.components.train_data import Windows, cut
from mlxroles.components.train_losses import Mask
from mlxroles.components.train_measures import DISTANCES, measure
from mlxroles.components.train_target import Target
from mlxroles.errors import PromptError, SpecError, StoreError
from mlxroles.models.load import wrap
from mlxroles.plots.components.training import NAMES, training_figures
from mlxroles.report.components.training import LEFT
from mlxroles.studies.component_training.document import sentence
from mlxroles.studies.component_training.results import COLUMNS
from mlxroles.studies.component_training.study import STATE, Training, Wishes
from mlxroles.studies.place import RunPlace
from mlxroles.studies.subject import Subject

RNG = np.random.default_rng(0)
SIZES = {"read": 7, "write": 5}


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


class Net(nn.Module):
    """Two maps with a bias and a ReLU between them."""

    def __init__(self, rng):
        super().__init__()
        self.read, self.write = nn.Linear(6, 4), nn.Linear(4, 3)
        for leaf in (self.read, self.write):
            for name, value in leaf.parameters().items():
                leaf[name] = mx.array(rng.standard_normal(value.shape).astype(np.float32))

    def __call__(self, x):
        return self.write(nn.relu(self.read(x)))


def target(rng=RNG):
    return Target.of_module(Net(rng), {"read": "read", "write": "write"})


def t(array, *, grad=False):
    made = torch.from_numpy(np.array(array, dtype=np.float32))
    return made.requires_grad_() if grad else made


# --- importance ----------------------------------------------------------------------------------


class Leaky(torch.autograd.Function):
    """The published program's lower leaky hard sigmoid."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        below = torch.where(g < 0, 0.01 * g, torch.zeros_like(g))
        return torch.where(x <= 0, below, torch.where(x <= 1, g, torch.zeros_like(g)))


def test_leaky_sigmoids_have_the_published_gradients():
    x, weight = 2 * drawn(400), drawn(400)
    x[:40], x[40:80] = 0, 1  # where they bend
    twin = t(x, grad=True)
    (Leaky.apply(twin) * t(weight)).sum().backward()
    value, gradient = mx.value_and_grad(lambda x: (lower_leaky(x) * mx.array(weight)).sum())(
        mx.array(x)
    )
    np.testing.assert_array_equal(np.array(gradient), twin.grad.numpy())
    assert float(value) == pytest.approx(float((np.clip(x, 0, 1) * weight).sum()), abs=1e-4)
    twin = t(x, grad=True)
    above = torch.where(twin > 1, 1 + 0.01 * (twin - 1), twin.clamp(0, 1))
    (above * t(weight)).sum().backward()
    gradient = mx.grad(lambda x: (upper_leaky(x) * mx.array(weight)).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(upper_leaky(mx.array(x))), above.detach(), atol=1e-6)
    np.testing.assert_allclose(np.array(gradient), twin.grad, atol=1e-6)


def twin_importance(kind, p, key, x, a):
    """One position after the other, one component after the other."""

    def mlp(owner, value, c=None):
        for n in range(2):
            w, b = p[f"{owner}.{n}.W"], p[f"{owner}.{n}.b"]
            w, b = (w, b) if c is None else (w[c], b[c])
            value = (torch_nn.gelu(value) if n else value) @ t(w) + t(b)
        return value

    if kind == "shared":
        return mlp(key, t(x[key]))
    if kind == "global":
        joined = torch.cat([t(x[k]) for k in SIZES], -1)
        return torch.split(mlp("all", joined), list(SIZES.values()), -1)[list(SIZES).index(key)]
    inputs = [
        t(a[key][..., c : c + 1]) if kind == "activation" else t(x[key]) for c in range(SIZES[key])
    ]
    return torch.cat([mlp(key, value, c) for c, value in enumerate(inputs)], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_functions_are_those_of_torch(kind):
    trainer = Trainer(target(), SIZES, Recipe(importance=kind, hidden=(5,)))
    own = {k: np.array(v) for k, v in trainer.parameters.items()}
    p = {k.removeprefix(IMPORTANCE): v for k, v in own.items() if k.startswith(IMPORTANCE)}
    p = {k: v + 0.3 * drawn(*v.shape) for k, v in p.items()}  # biases begin at 0
    x = {"read": 2 * drawn(3, 2, 6), "write": 2 * drawn(3, 2, 4)}
    a = {k: x[k] @ own[f"{k}/V"] for k in SIZES}
    maps = {k: Decomposition(k, 0, "mlp", own[f"{k}/V"], own[f"{k}/U"]) for k in SIZES}
    importance = importance_of(Components(maps, p))
    assert (importance.name, importance.kind, importance.threshold) == (CAUSAL, kind, 0.0)
    arrays = [{k: mx.array(v) for k, v in one.items()} for one in (x, a)]
    both = importance.of_all(*arrays)
    for key in SIZES:
        wanted = twin_importance(kind, p, key, x, a).clamp(0, 1)
        np.testing.assert_allclose(np.array(both[key]), wanted, atol=2e-6)
        if kind != "global":
            alone = importance(key, arrays[0][key], arrays[1][key])
            np.testing.assert_array_equal(np.array(alone), np.array(both[key]))
    if kind == "global":
        with pytest.raises(ValueError, match="of_all"):
            importance("read", arrays[0]["read"], arrays[1]["read"])
    missing = {k: v for k, v in p.items() if not k.startswith(("write", "all"))}
    if missing:
        with pytest.raises(StoreError, match="no parameters for write"):
            importance_of(Components(maps, missing))
    wrong = p | {k: np.zeros((*v.shape[:-2], v.shape[-2] + 1, v.shape[-1])) for k, v in p.items()
                 if k.endswith(".0.W")}  # fmt: skip
    with pytest.raises(StoreError, match="was expected"):
        importance_of(Components(maps, wrong))


def test_the_share_of_the_output_stands_in_and_says_so():
    components = svd(wrap(tiny_llama(1), LLAMA, name="x"), ("q",), layers=[0])
    importance, own = importance_of(components), components.maps["L0.q"]
    assert (importance.name, importance.trained) == (SHARE, False)
    x = drawn(3, own.d_in)
    a = x @ own.V
    found = np.array(importance("L0.q", mx.array(x), mx.array(a)))
    for n in range(3):
        whole = np.linalg.norm(sum(a[n, c] * own.U[c] for c in range(own.n)))
        for c in range(own.n):
            wanted = min(1.0, np.linalg.norm(a[n, c] * own.U[c]) / whole)
            assert found[n, c] == pytest.approx(wanted, rel=1e-4, abs=1e-7)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "beta"), [(1.0, 0.0), (2.0, 0.5), (0.7, 0.2)])
def test_minimality_is_that_of_torch_with_its_gradient(p, beta):
    g = {k: np.abs(drawn(3, 4, n)) for k, n in SIZES.items()}
    twins = {k: t(v, grad=True) for k, v in g.items()}
    total = torch.zeros(())
    for value in twins.values():
        sums = ((value + 1e-12) ** p).sum(dim=(0, 1))
        total = total + (sums / 12 * (1 + beta * torch.log2(1 + sums))).sum()
    total.backward()
    made = mx.value_and_grad(lambda g: losses.minimality(g, p, beta))
    value, gradient = made({k: mx.array(v) for k, v in g.items()})
    assert float(value) == pytest.approx(float(total.detach()), rel=1e-5)
    for key in g:
        np.testing.assert_allclose(np.array(gradient[key]), twins[key].grad, rtol=2e-4, atol=1e-6)


def test_distances_are_those_of_torch():
    a, b = 3 * drawn(2, 5, 11), 3 * drawn(2, 5, 11)
    log_q, log_p = (torch.log_softmax(t(v), -1) for v in (a, b))
    kl = torch_nn.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    assert float(losses.divergence(mx.array(a), mx.array(b))) == pytest.approx(float(kl), rel=1e-5)
    mse = torch_nn.mse_loss(t(a), t(b))
    found = losses.squared_error(mx.array(a), mx.array(b))
    assert float(found) == pytest.approx(float(mse), rel=1e-5)


def twin_output(net, own, masks, x):
    """The published forward: masked components, the delta term, routing, bias."""
    for key, leaf in (("read", net.read), ("write", net.write)):
        w, b, mask = t(leaf.weight), t(leaf.bias), masks.get(key)
        y = x @ w.T + b
        if mask is not None:
            V, U = own[f"{key}/V"], own[f"{key}/U"]
            out = ((x @ V) * mask["m"]) @ U + b
            if mask["rest"] is not None:
                out = out + mask["rest"][..., None] * (x @ (w - (V @ U).T).T)
            y = out if mask["route"] is None else torch.where(mask["route"][..., None], out, y)
        x = torch.relu(y) if key == "read" else y
    return x


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("route", [True, False])
def test_masked_forwards_and_their_gradients_are_those_of_torch(rest, route):
    goal = target()
    net = goal.forward
    own = {
        k: np.array(v)
        for k, v in Trainer(goal, SIZES, Recipe()).parameters.items()
        if k[-1] in "UV"
    }
    x = drawn(4, 3, 6)
    raw = {
        k: {
            "m": RNG.random((4, 3, c), dtype=np.float32),
            "rest": RNG.random((4, 3), dtype=np.float32) if rest else None,
            "route": RNG.random((4, 3)) < 0.5 if route else None,
        }
        for k, c in SIZES.items()
    }
    twins = {k: t(v, grad=True) for k, v in own.items()}
    for chosen in (["read", "write"], ["write"]):
        for twin in twins.values():
            twin.grad = None
        as_torch = {
            k: {n: None if v is None else torch.from_numpy(v) for n, v in raw[k].items()}
            for k in chosen
        }
        wanted = twin_output(net, twins, as_torch, t(x))
        clean = twin_output(net, twins, {}, t(x))
        ((wanted - clean) ** 2).mean().backward()
        masks = {
            k: Mask(*(None if v is None else mx.array(v) for v in raw[k].values())) for k in chosen
        }

        def apart(p, masks=masks):
            output = goal.masked(mx.array(x), parts_of(p, SIZES), masks)
            return losses.squared_error(output, goal.forward(mx.array(x)))

        parameters = {k: mx.array(v) for k, v in own.items()}
        output = goal.masked(mx.array(x), parts_of(parameters, SIZES), masks)
        np.testing.assert_allclose(np.array(output), wanted.detach(), atol=3e-5)
        gradient = mx.grad(apart)(parameters)
        for key, twin in twins.items():
            if twin.grad is not None:
                np.testing.assert_allclose(np.array(gradient[key]), twin.grad, rtol=2e-3, atol=2e-4)


def test_faithfulness_is_the_mean_square_of_what_is_left_over():
    goal = target()
    trainer = Trainer(goal, SIZES, Recipe())
    left, n = 0.0, 0
    for key, leaf in goal.leaves.items():
        V, U = (np.array(trainer.parameters[f"{key}/{x}"], dtype=float) for x in "VU")
        for i in range(leaf.weight.shape[0]):
            for j in range(leaf.weight.shape[1]):
                left += (
                    float(leaf.weight[i, j]) - sum(V[j, c] * U[c, i] for c in range(SIZES[key]))
                ) ** 2
                n += 1
    found = losses.faithfulness(goal.weights, parts_of(trainer.parameters, SIZES))
    assert float(found) == pytest.approx(left / n, rel=1e-5)


def test_masks_leave_the_important_alone():
    g = {k: mx.array(RNG.random((2000, n), dtype=np.float32)) for k, n in SIZES.items()}
    for sampling in losses.SAMPLINGS:
        masks = losses.stochastic(g, sampling, random_key(1))
        for key, mask in masks.items():
            low, m = np.array(g[key]), np.array(mask.components)
            assert (m >= low - 1e-6).all()
            assert (m <= 1 + 1e-6).all()
            r = (m - low) / np.maximum(1 - low, 1e-3)
            assert np.mean(r) == pytest.approx(0.5, abs=0.02)
            if sampling != "uniform":
                assert np.isclose(m, low, atol=1e-6).__or__(np.isclose(m, 1, atol=1e-6)).all()
            assert mask.rest.shape == (2000,)
    routes = losses.routed({str(n): masks["read"] for n in range(4)}, random_key(2))
    count = np.sum([np.array(mask.route) for mask in routes.values()], axis=0)
    assert np.bincount(count, minlength=5)[1:] / 2000 == pytest.approx([0.25] * 4, abs=0.04)
    x = mx.array(drawn(4000))
    binomial = np.array(losses.sampled_importance(x, "binomial", random_key(3)))
    u = (1.05 * np.array(x) - binomial) / 0.05
    assert u.min() > -1e-4
    assert u.max() < 1 + 1e-4
    assert u.mean() == pytest.approx(0.5, abs=0.02)


def test_the_ascent_finds_worse_masks_within_bounds():
    recipe = Recipe(importance="shared", hidden=(5,), adversarial=1.0, ascents=6, warmup=0)
    trainer = Trainer(target(), SIZES, recipe)
    batch = mx.array(drawn(16, 6))
    seen = Seen(batch, *trainer.target.watched(batch), random_key(5))
    worst = trainer._adversary(seen)
    assert all(float(r.min()) >= 0 and float(r.max()) <= 1 for r in worst.values())
    _, said = trainer._loss(trainer.parameters, seen, worst, 0.0)
    chance = [
        float(
            trainer._loss(trainer.parameters, seen._replace(key=random_key(n)), worst, 0.0)[1][
                "stochastic"
            ]
        )
        for n in range(20)
    ]
    assert float(said["adversarial"]) > max(chance)


# --- any model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gemma2", "llama 4-bit"])
def test_replaced_maps_are_a_model_with_other_weights(name):
    """All left over: the model itself. Nothing left over: a model whose weights are V U."""
    if name == "llama 4-bit":
        module = tiny_llama(6, hidden_size=64, intermediate_size=128)
        nn.quantize(module, group_size=32, bits=4)
        model = wrap(module, name=name)
    else:
        model = tiny(name)
    maps = decomposable(model, layers=[0, 1])
    goal = Target.of_model(model, maps)
    rows = tokens(2, 7)
    clean, x = goal.watched(rows)
    assert {k: v.shape[-1] for k, v in x.items()} == {k: m.d_in for k, m in maps.items()}
    sizes = dict.fromkeys(maps, 3)
    trainer = Trainer(goal, sizes, Recipe(hidden=(4,)))
    parts = parts_of(trainer.parameters, sizes)
    ones = {k: mx.ones((*v.shape[:-1], 3)) for k, v in x.items()}
    whole = {k: Mask(v, mx.ones(v.shape[:-1])) for k, v in ones.items()}
    assert off(goal.masked(rows, parts, whole), clean) < 2e-5
    nowhere = {k: Mask(v, None, mx.zeros(v.shape[:-1]) > 0) for k, v in ones.items()}
    assert off(goal.masked(rows, parts, nowhere), clean) == 0
    found = goal.masked(rows, parts, {k: Mask(v) for k, v in ones.items()})
    if name == "llama 4-bit":
        return
    other = copy.deepcopy(model.module)
    for key, m in maps.items():
        leaf = dict(other.layers[m.layer].named_modules())[m.path]
        weight = to_numpy(leaf.weight).copy()
        made = np.array((parts[key]["V"] @ parts[key]["U"]).T)
        weight[slice(None) if m.rows is None else m.rows] = made
        leaf.weight = mx.array(weight)
    assert off(found, other(rows)) < 5e-4
    assert off(found, clean) > 0.05


# --- training ------------------------------------------------------------------------------------


def quick(**changes):
    full = {"steps": 6, "warmup": 3, "hidden": (4,), "rate": 1e-2, "subset": 1.0, "masked": 1.0,
            "adversarial": 0.5, "ascents": 1, "faithfulness": 1.0, "p_last": 0.5,
            "sampling": "binomial", "layerwise_maps": 1}  # fmt: skip
    return Recipe(**(full | changes))


def batch(step):
    return mx.array(np.random.default_rng(step).standard_normal((8, 6)).astype(np.float32))


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_training_has_the_same_numbers(stop):
    goal, recipe = target(), quick()
    whole = Trainer(goal, SIZES, recipe, seed=3)
    said = [whole.advance(batch) for _ in range(recipe.length)]
    first = Trainer(goal, SIZES, recipe, seed=3)
    again = [first.advance(batch) for _ in range(stop)]
    second = Trainer(goal, SIZES, recipe, seed=3).restored(first.state())
    again += [second.advance(batch) for _ in range(recipe.length - stop)]
    assert again == said
    state, wanted = second.state(), whole.state()
    assert state.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(state[name], wanted[name])
    assert said[-1].keys() == {"loss", "faithfulness", "minimality", "stochastic", "layerwise",
                               "subset", "masked", "adversarial", "active"}  # fmt: skip


class Drawn:
    """Stands for all that is random in a loss, and remembers it."""

    def __init__(self):
        self.rng, self.masks, self.routes, self.noise = np.random.default_rng(7), [], [], []

    def stochastic(self, g, _sampling, _key):
        self.masks.append(
            {k: (self.rng.random(v.shape), self.rng.random(v.shape[:-1])) for k, v in g.items()}
        )
        r = {k: [mx.array(x.astype(np.float32)) for x in own] for k, own in self.masks[-1].items()}
        return {k: Mask(losses.between(v, r[k][0]), r[k][1]) for k, v in g.items()}

    def routed(self, masks, _key):
        self.routes.append(
            {k: self.rng.random(m.components.shape[:-1]) < 0.6 for k, m in masks.items()}
        )
        return {k: m._replace(route=mx.array(self.routes[-1][k])) for k, m in masks.items()}

    def sampled(self, before, _sampling, _key):
        self.noise.append(self.rng.random(before.shape))
        return 1.05 * before - 0.05 * mx.array(self.noise[-1].astype(np.float32))


def twin_step(net, p, recipe, x, drawn, worst):
    """The terms of the loss in torch, and how many components are important."""
    x = torch.from_numpy(np.array(x)).double()
    entered = {"read": x, "write": torch.relu(x @ t(net.read.weight).T.double()
                                              + t(net.read.bias).double())}  # fmt: skip
    lower, upper, active = {}, {}, 0.0
    for n, key in enumerate(SIZES):
        hidden = entered[key] @ p[f"importance/{key}.0.W"] + p[f"importance/{key}.0.b"]
        said = torch_nn.gelu(hidden) @ p[f"importance/{key}.1.W"] + p[f"importance/{key}.1.b"]
        lower[key] = Leaky.apply(1.05 * said - 0.05 * torch.from_numpy(drawn.noise[n]))
        upper[key] = torch.where(said > 1, 1 + 0.01 * (said - 1), said.clamp(0, 1))
        active += float((said > 0).double().sum(-1).mean())

    def apart(chosen):
        y = x
        for key, leaf in (("read", net.read), ("write", net.write)):
            w, b = t(leaf.weight).double(), t(leaf.bias).double()
            own = y @ w.T + b
            if key in chosen:
                m, rest, route = chosen[key]
                V, U = p[f"{key}/V"], p[f"{key}/U"]
                new = ((y @ V) * m) @ U + b + rest[..., None] * (y @ (w - (V @ U).T).T)
                own = new if route is None else torch.where(route[..., None], new, own)
            y = torch.relu(own) if key == "read" else own
        clean = entered["write"] @ t(net.write.weight).T.double() + t(net.write.bias).double()
        return ((y - clean) ** 2).mean()

    def masks(n, route=None):
        found = {}
        for key, g in lower.items():
            r, rest = (torch.from_numpy(v) for v in drawn.masks[n][key])
            way = None if route is None else torch.from_numpy(route[key])
            found[key] = (g + (1 - g) * r, rest, way)
        return found

    r = {k: torch.from_numpy(np.array(v)).double() for k, v in worst.items()}
    none = torch.zeros(x.shape[:-1], dtype=torch.float64)
    left = {k: t(leaf.weight).double() - (p[f"{k}/V"] @ p[f"{k}/U"]).T
            for k, leaf in (("read", net.read), ("write", net.write))}  # fmt: skip
    powers = {k: (g + 1e-12) ** recipe.p for k, g in upper.items()}
    terms = {
        "faithfulness": sum((d**2).sum() for d in left.values()) / sum(d.numel()
                                                                       for d in left.values()),
        "minimality": sum((v.mean(0) * (1 + recipe.beta * torch.log2(1 + v.sum(0)))).sum()
                          for v in powers.values()),
        "stochastic": apart(masks(0)),
        "layerwise": (apart({"read": masks(1)["read"]}) + apart({"write": masks(1)["write"]})) / 2,
        "subset": apart(masks(2, drawn.routes[0])),
        "masked": apart({k: (g, none, None) for k, g in lower.items()}),
        "adversarial": apart({k: (g + (1 - g) * r[k][..., :-1], r[k][..., -1], None)
                              for k, g in lower.items()}),
    }  # fmt: skip
    return terms, active


class TwinAdam:
    """Kingma and Ba 2015, with decoupled weight decay; torch's own takes seconds to import."""

    def __init__(self, p, decay=0.0):
        self.p, self.decay, self.n = p, decay, 0
        self.moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in p.items()}

    def step(self, loss, rate):
        self.n += 1
        gradients = torch.autograd.grad(loss, list(self.p.values()))
        for (name, p), g in zip(self.p.items(), gradients, strict=True):
            m, v = self.moments[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            ahead = (m / (1 - 0.9**self.n)) / ((v / (1 - 0.999**self.n)).sqrt() + 1e-8)
            with torch.no_grad():
                p.sub_(rate * (ahead + self.decay * p))


def test_training_steps_are_those_of_torch(monkeypatch):
    """All terms at once, their coefficients, which sigmoid goes where, Adam, the learning rate."""
    recipe = Recipe(
        steps=4, warmup=2, rate=1e-2, hidden=(5,), faithfulness=0.3, minimality=0.05,
        stochastic=1.1, layerwise=0.7, subset=0.6, masked=0.4, adversarial=0.5, ascents=1,
        p=0.9, p_last=0.9, beta=0.3, sampling="binomial",
    )  # fmt: skip
    trainer = Trainer(target(np.random.default_rng(4)), SIZES, recipe, seed=3)
    net = trainer.target.forward
    p = {k: torch.from_numpy(np.array(v)).double().requires_grad_()
         for k, v in trainer.parameters.items()}  # fmt: skip
    warm = TwinAdam({k: v for k, v in p.items() if k[-1] in "UV"}, decay=0.1)
    for _ in range(2):
        left = [(t(leaf.weight).double() - (p[f"{k}/V"] @ p[f"{k}/U"]).T).flatten()
                for k, leaf in (("read", net.read), ("write", net.write))]  # fmt: skip
        warm.step((torch.cat(left) ** 2).mean(), 1e-2)
        trainer.advance(batch)
    adam, ascend, worst = TwinAdam(p), trainer._adversary, {}
    for n in range(3):
        drawn = Drawn()
        for name in ("stochastic", "routed"):
            monkeypatch.setattr(losses, name, getattr(drawn, name))
        monkeypatch.setattr(losses, "sampled_importance", drawn.sampled)
        monkeypatch.setattr(trainer, "_adversary", lambda s: worst.update(ascend(s)) or worst)
        said = trainer.advance(batch)
        terms, active = twin_step(net, p, recipe, batch(n), drawn, worst)
        total = sum(getattr(recipe, name) * value for name, value in terms.items())
        wanted = {"loss": total} | terms
        assert said == pytest.approx(
            {k: float(v.detach()) for k, v in wanted.items()} | {"active": active}, rel=2e-4
        )
        adam.step(total, 1e-2 * (1 + np.cos(np.pi * n / 4)) / 2)
    for name, value in trainer.parameters.items():
        np.testing.assert_allclose(np.array(value), p[name].detach(), atol=2e-4, err_msg=name)


def test_the_ascent_takes_signed_steps():
    recipe = Recipe(hidden=(5,), adversarial=1.0, ascents=0, ascent=0.3, warmup=0)
    trainer = Trainer(target(), SIZES, recipe)
    net, x = trainer.target.forward, batch(0)
    seen = Seen(x, *trainer.target.watched(x), random_key(5))
    start = {k: np.array(v) for k, v in trainer._adversary(seen).items()}
    assert all(0 < v.mean() < 1 and v.std() > 0.2 for v in start.values())
    p = {k: torch.from_numpy(np.array(v)).double() for k, v in trainer.parameters.items()}
    before = trainer.importances(trainer.parameters, seen.x)
    g = {k: torch.from_numpy(np.clip(np.array(v), 0, 1)).double() for k, v in before.items()}
    r = {k: torch.from_numpy(v).double().requires_grad_() for k, v in start.items()}
    masks = {k: {"m": g[k] + (1 - g[k]) * r[k][..., :-1], "rest": r[k][..., -1], "route": None}
             for k in SIZES}  # fmt: skip
    single = {k: v.float() for k, v in p.items()}
    masks = {k: {n: None if v is None else v.float() for n, v in m.items()}
             for k, m in masks.items()}  # fmt: skip
    moved = twin_output(net, single, masks, t(x)) - t(trainer.target.forward(x))
    (moved**2).mean().backward()
    trainer.recipe = replace(recipe, ascents=1)
    for key, found in trainer._adversary(seen).items():
        wanted = (r[key] + 0.3 * r[key].grad.sign()).clamp(0, 1).detach()
        np.testing.assert_allclose(np.array(found), wanted, atol=1e-5)


def test_known_parts_of_a_toy_are_found():
    """Those of one seed; the example runs more, harder toys, and controls."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
    from example_components import decompose, orthonormal

    toy = orthonormal(0)
    found = decompose(toy, 0)
    assert found.scores.min() > 0.99
    assert toy.by_singular_values().mean() < 0.7


def test_losses_that_are_not_finite_end_the_training():
    trainer = Trainer(target(), SIZES, quick(warmup=0))
    trainer.parameters["read/V"] = trainer.parameters["read/V"] * float("nan")
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        trainer.advance(batch)


def test_measures_of_perfect_components():
    rng = np.random.default_rng(2)  # here, the first half matters
    goal = target(rng)
    exact = {}
    for key, leaf in goal.leaves.items():
        left, s, right = np.linalg.svd(np.array(leaf.weight), full_matrices=False)
        exact |= {f"{key}/V": mx.array(right.T), f"{key}/U": mx.array((left * s).T)}
    sizes = {key: exact[f"{key}/U"].shape[0] for key in SIZES}
    trainer = Trainer(goal, sizes, Recipe(hidden=(4,)))
    trainer.parameters |= exact
    for key in sizes:  # all of the first half are important, none of the others
        last = mx.where(mx.arange(sizes[key]) < 2, 1.0, -1.0)
        trainer.parameters |= {
            f"{IMPORTANCE}{key}.1.W": mx.zeros((4, sizes[key])),
            f"{IMPORTANCE}{key}.1.b": last,
        }
    x = rng.standard_normal((32, 6)).astype(np.float32)
    found = measure(trainer, mx.array(x), random_key(1))
    assert found.distances["unmasked"] < 1e-10
    assert found.distances["unmasked"] < found.distances["stochastic"] < found.distances["none"]
    assert found.distances["masked"] < found.distances["shuffled"]
    goal_x = {k: np.array(v) for k, v in goal.watched(mx.array(x))[1].items()}
    masks = {}  # the same two importances on the two largest outputs of each position
    for key in sizes:
        size = np.abs(goal_x[key] @ np.array(exact[f"{key}/V"])) * np.linalg.norm(
            np.array(exact[f"{key}/U"]), axis=1
        )
        top = np.argsort(size, axis=1, kind="stable")[:, -2:]
        masks[key] = Mask(mx.array((np.arange(sizes[key]) == top[..., None]).any(axis=1) * 1.0))
    output = goal.masked(mx.array(x), parts_of(trainer.parameters, sizes), masks)
    wanted = float(((output - goal.forward(mx.array(x))) ** 2).mean())
    assert found.distances["largest"] == pytest.approx(wanted, rel=1e-4)
    assert found.active == {"read": 2.0, "write": 2.0}
    for key, value in found.importance.items():
        np.testing.assert_array_equal(value, np.arange(sizes[key]) < 2)


def test_windows_begin_with_the_bos_and_none_is_held_out_twice():
    rows = [[1, *range(100 * n, 100 * n + 30)] for n in range(1, 41)]
    windows = Windows(rows, 1, 12, 3, 0)
    assert (windows.width, windows.n_held_out) == (12, 8)
    trained, seen = set(), []
    batches = windows.held_out()
    for ids in map(np.array, (*(windows.training(step) for step in range(80)), *batches)):
        assert ids.shape[1] == 12
        assert (ids[:, 0] == 1).all()
        assert (np.diff(ids[:, 1:], axis=1) == 1).all()
    for step in range(80):
        trained |= {*(np.array(windows.training(step))[:, 1] // 100).tolist()}
    for ids in batches:
        seen += (np.array(ids)[:, 1] // 100).tolist()
    assert trained == set(range(1, 33))
    assert sorted(seen) == list(range(33, 41))
    many = Windows(rows * 10, 1, 12, 3, 0).held_out()
    assert [len(ids) for ids in many] == [3] * 3
    assert cut(rows, 1, 12) == rows
    assert cut(rows[:2], 1, 11) == [[1, *range(n, n + 10)] for n in (100, 110, 120, 200, 210, 220)]
    with pytest.raises(PromptError, match="15 rows of 12 tokens; training needs 16"):
        Windows(rows[:15], 1, 12, 3, 0)


# --- the study -----------------------------------------------------------------------------------


def training(**changes):
    recipe = Recipe(steps=6, warmup=2, hidden=(4,), layerwise_maps=1)
    wishes = Wishes(("q", "k"), (1,), 0.2, None, 8, 2, 0)
    return Training(Subject.of_model("tiny/base"), recipe, wishes)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Little text, and no figures: drawing takes longer than all the rest."""
    study = "mlxroles.studies.component_training"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{study}.study.ROWS", 20)
        patch.setattr("mlxroles.components.train_data.MOST", 3)
        patch.setattr(f"{study}.results.training_figures", lambda doc, folder: {})
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    doc, finished = training().run(lambda _: None, RunPlace(tmp_path_factory.mktemp("whole")))
    assert finished.interrupted is None
    return doc


def test_a_killed_run_goes_on_to_the_same_file(ran, tmp_path):
    study = training()
    keep, count = study._keep, []

    def killed(trainer):
        keep(trainer)
        count.append(1)
        if len(count) == 5:
            raise Killed  # after the state is written and before the cell is

    study._keep = killed
    with pytest.raises(Killed):
        study.run(lambda _: None, RunPlace(tmp_path))
    (state,) = tmp_path.rglob(STATE)
    whole = state.read_bytes()
    state.write_bytes(whole[:-9])
    with pytest.raises(StoreError, match="begin anew with --fresh"):
        training().run(lambda _: None, RunPlace(tmp_path))
    state.write_bytes(whole)
    doc, _ = training().run(lambda _: None, RunPlace(tmp_path))
    assert not state.exists()
    assert doc["log"] == ran["log"]
    assert doc["learned"] == ran["learned"]
    again, _ = training().run(lambda _: None, RunPlace(tmp_path))
    assert again["learned"] == ran["learned"]
    files = [read(one["run"]) for one in (doc, ran)]
    for key in files[0].maps:
        np.testing.assert_array_equal(files[0].maps[key].V, files[1].maps[key].V)
        np.testing.assert_array_equal(files[0].maps[key].U, files[1].maps[key].U)


def test_a_training_that_goes_apart_is_told(ran, tmp_path, monkeypatch):
    def apart(*_):
        raise FloatingPointError("the loss of step 1 is nan; use a lower learning rate")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", apart)
        with pytest.raises(SpecError, match="step 1 is nan; use a lower learning rate"):
            training().run(lambda _: None, RunPlace(tmp_path))
    assert not list(tmp_path.rglob("summary.json"))
    assert "do not stand for base" in ran["sentence"]  # it has hardly begun
    measures = dict(ran["learned"]["measures"])
    for null in ("largest", "shuffled"):
        apart = measures[null]["mean"] - measures["masked"]["mean"]
        assert measures[f"{null} - masked"]["mean"] == pytest.approx(apart)
    measures["largest - masked"] = {"low": -0.1}
    measures["shuffled - masked"] = {"low": 0.1}
    said = sentence(ran | {"unexplained": 0.5, "learned": ran["learned"] | {"measures": measures}})
    assert "nats from the model's, not clearly less than" in said
    assert ", less than on random ones" in said


def test_names_that_are_kept_where_no_model_is_needed():
    assert list(LEFT) == list(NAMES) == list(DISTANCES)
    assert COLUMNS[2:-1] == TERMS


def test_what_a_training_leaves_behind(ran, call, monkeypatch):
    folder = Path(ran["run"])
    name = "mlxroles.studies.component_training.results.training_figures"
    monkeypatch.setattr(name, training_figures)
    assert call("report", folder)[0] == 0
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "training.png", "training.svg", "learned.png", "learned.svg"}  # fmt: skip
    components = read(folder)
    assert components.meta["made"] == "trained"
    assert list(components.maps) == ["L1.q", "L1.k"]
    assert importance_of(components).kind == "shared"
    lines = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(line["step"]) for line in lines] == list(range(1, 9))
    assert lines[0]["stochastic"] == "" != lines[-1]["stochastic"]
    table = list(csv.DictReader((folder / "learned.csv").read_text().splitlines()))
    assert {row["measure"] for row in table} >= {"masked", "shuffled", "alive", "missing"}
    masked = ran["learned"]["measures"]["masked"]
    assert masked["low"] <= masked["mean"] <= masked["high"]
    assert json.loads((folder / "summary.json").read_text())["sentence"] == ran["sentence"]
    assert "do not stand for base" in call("show", folder)[1].replace("\n", " ")


def test_the_command_plans_and_names_what_was_typed_wrong(call, tmp_path):
    train = ("components", "train", "--model", "tiny/base")
    status, out, _ = call(*train, "--layers", "1", "--steps", "50", "--dry-run", "--json")
    plan = json.loads(out)
    assert (status, plan["steps"], plan["cells"]) == (0, 100, 41)
    for words, told in (
        (("--maps", "q,w"), "'w' is none of q,k,v,o,mlp"),
        (("--layers", "9"), "outside 0..5"),
        (("--rate", "nan"), "nan is no finite number"),
        (("--minimality", "inf"), "inf is no finite number"),
        (("--text", tmp_path / "none.txt"), "none.txt cannot be read"),
    ):
        status, _, err = call(*train, *words)
        assert status
        assert told in err
