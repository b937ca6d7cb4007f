"""The harvest against a plain twin that sees the whole text at once, cell by cell."""

import csv
import json
import math
from dataclasses import replace
from functools import cache

import architectures
import h5py
import numpy as np
import pytest
from scipy.stats import kstest, norm, pearsonr
from tiny_models import LLAMA, tiny_llama

from mlxroles.backend import mx
from mlxroles.backend import nn as mx_nn
from mlxroles.components.counts import coactivation
from mlxroles.components.decomposition import Components
from mlxroles.components.file import fitted, write
from mlxroles.components.harvest import Harvester, Settings
from mlxroles.components.harvest_file import read_harvest
from mlxroles.components.harvest_sums import WINDOW
from mlxroles.components.harvest_text import text_rows
from mlxroles.components.harvest_tokens import wilson_low
from mlxroles.components.importance import importance_of
from mlxroles.components.maps import inputs
from mlxroles.components.svd import svd
from mlxroles.errors import ModelError, PromptError, SpecError, StoreError
from mlxroles.models.load import load, wrap

LENGTHS = [200, 310, 37, 512, 44, 300, 1, 90]


@cache
def model():
    """Four query heads read two key-value heads."""
    config = LLAMA | {"num_hidden_layers": 2}
    return wrap(tiny_llama(3, num_hidden_layers=2), config, name="gqa")


@cache
def components() -> Components:
    return svd(model(), rank=6)


@cache
def rows() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(t) for t in rng.zipf(1.4, n) % 64] for n in LENGTHS]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory):
    path = tmp_path_factory.mktemp("harvest") / "harvest.h5"
    harvester = Harvester(model(), components(), rows(), Settings(examples=5, seed=4))
    harvester.run(path)
    with read_harvest(path) as harvest:
        yield harvest


@cache
def plain():
    """Map -> (g, a |U|) at every position, and the model's probabilities, row by row in numpy."""
    of = importance_of(components())
    found = {key: ([], []) for key in components().maps}
    probs = []
    for row in rows():
        entering = inputs(model(), fitted(components(), model()).values(), mx.array([row]))
        probs.append(np.array(mx.softmax(model().run([row]).logits[0], axis=-1), dtype=np.float64))
        for key, d in components().maps.items():
            x = np.array(entering[key][0], dtype=np.float64)
            a = x @ d.V.astype(np.float64)
            whole = np.linalg.norm(a @ d.U, axis=1, keepdims=True)
            g = np.minimum(1, np.abs(a) * np.linalg.norm(d.U, axis=1) / np.maximum(whole, 1e-12))
            found[key][0].append(g)
            found[key][1].append(a * np.linalg.norm(d.U, axis=1))
    assert not of.trained
    joined = {k: (np.concatenate(g), np.concatenate(a)) for k, (g, a) in found.items()}
    return joined, np.concatenate(probs)


def test_sums_are_those_of_the_whole_text(harvested):
    numbers, _ = plain()
    n = sum(LENGTHS)
    assert harvested.n_tokens == n
    assert harvested.measure == "share of the output"
    assert harvested.keys == list(components().maps)
    for key, (g, a) in numbers.items():
        found, fires = harvested.map(key), g > 0.1
        assert np.abs(g - 0.1).min() > 1e-7, "no value so near to the threshold"
        np.testing.assert_array_equal(found.firing, fires.sum(axis=0))
        np.testing.assert_allclose(found.mean_importance, g.mean(axis=0), atol=5e-6)
        np.testing.assert_allclose(found.mean_activation, a.mean(axis=0), atol=5e-6)
        size = [np.abs(a[f, c]).mean() for c, f in enumerate(fires.T)]
        np.testing.assert_allclose(found.mean_abs_activation, size, rtol=1e-5)
        assert found.firing.dtype == np.int64
        assert found.mean_importance.dtype == np.float64


def test_the_error_of_a_mean_is_that_of_rows(harvested):
    key = "L1.v"
    g = plain()[0][key][0]
    of = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    mean, n, rows_ = g.mean(axis=0), len(g), len(LENGTHS)
    rest = sum((g[of == r].sum(axis=0) - mean * (of == r).sum()) ** 2 for r in range(rows_))
    error = np.sqrt(rows_ / (rows_ - 1) * rest) / n
    np.testing.assert_allclose(harvested.map(key).mean_importance_error, error, rtol=1e-4)


def test_pairs_are_counted_within_attention_and_within_the_mlp(harvested):
    numbers = plain()[0]
    fires = {key: g > 0.1 for key, (g, _) in numbers.items()}
    for first, second in [("L0.q", "L0.k"), ("L0.k", "L0.v"), ("L1.v", "L1.o"), ("L1.q", "L1.q")]:
        both = (fires[first][:, :, None] & fires[second][:, None]).sum(axis=0)
        np.testing.assert_array_equal(harvested.pairs(first, second), both)
        np.testing.assert_array_equal(harvested.pairs(second, first), both.T)
    diagonal = harvested.pairs("L1.q", "L1.q").diagonal()
    np.testing.assert_array_equal(diagonal, harvested.map("L1.q").firing)
    assert harvested.pairs("L0.q", "L1.q") is None
    assert harvested.pairs("L0.q", "L0.mlp.up_proj") is None
    assert harvested.pairs("L0.mlp.up_proj", "L0.mlp.down_proj").dtype == np.int64


def test_examples_are_the_strongest_and_show_what_is_around_them(harvested):
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    for key in ("L0.q", "L1.mlp.down_proj"):
        g, a = plain()[0][key]
        found = harvested.map(key)
        strongest = found.examples["strongest"]
        for c in range(found.n):
            at = np.flatnonzero(g[:, c] > 0.1)
            best = at[np.argsort(-np.abs(a[at, c]), kind="stable")][:5]
            shown = starts[strongest.row[c]] + strongest.position[c]
            np.testing.assert_array_equal(shown[: len(best)], best)
            for kind in ("random", "strongest"):
                for n, window in enumerate(harvested.windows(found, c, kind)):
                    row = found.examples[kind].row[c, n]
                    position = found.examples[kind].position[c, n]
                    low = max(0, position - WINDOW)
                    high = min(LENGTHS[row], position + WINDOW + 1)
                    here = slice(starts[row] + low, starts[row] + high)
                    np.testing.assert_allclose(window.importance, g[here, c], atol=1e-5)
                    np.testing.assert_allclose(window.activation, a[here, c], atol=2e-5)
                    assert window.text == tuple(str(t) for t in rows()[row][low:high])
                    assert window.at == position - low
                    assert g[starts[row] + position, c] > 0.1


def test_random_examples_are_drawn_evenly_among_firings():
    """Two seeds choose other positions, and all of few firings are shown."""
    chosen = []
    for seed in range(2):
        harvester = Harvester(model(), components(), rows(), Settings(seed=seed))
        spans = [harvester.batch(n).span for n in range(len(harvester.cuts))]
        chosen.append(np.concatenate([span.priority for span in spans]))
        assert len(np.unique(chosen[-1])) == sum(LENGTHS)
        assert kstest(chosen[-1], "uniform").pvalue > 0.01
    assert not np.isin(*chosen).any()


def test_tokens_are_ranked_by_the_lower_end_of_their_information(harvested):
    key, c = "L1.k", 2
    g, probs = plain()[0][key][0][:, c], plain()[1]
    fires, tokens, n = g > 0.1, np.concatenate(rows()), len(g)
    base = fires.mean()
    for kind in ("input", "output"):
        weights = np.eye(64)[tokens] if kind == "input" else probs
        both, total = weights[fires].sum(axis=0), weights.sum(axis=0)
        low = np.full(64, -np.inf)
        for t in np.flatnonzero(both > 0):
            p, m, z = both[t] / total[t], total[t], norm.ppf(1 - 0.025 / (total > 0).sum())
            end = p + z * z / (2 * m) - z * math.sqrt(p * (1 - p) / m + z * z / (4 * m * m))
            end /= 1 + z * z / m
            low[t] = math.log(end / base) if end > 0 else -np.inf
        found = getattr(harvested.map(key), f"{kind}_tokens")
        order = np.argsort(-low, kind="stable")[:10]
        np.testing.assert_allclose(found.low[c], low[order], atol=1e-5)
        np.testing.assert_array_equal(found.id[c], order)
        pmi = np.log(both[order] * n / (total[order] * fires.sum()))
        np.testing.assert_allclose(found.pmi[c], pmi, atol=1e-5)
        np.testing.assert_allclose(found.count[c], both[order], rtol=1e-5)
    assert wilson_low(np.array([0.0]), np.array([0.0]), 2.0) == 0


def test_of_a_large_vocabulary_the_commonest_ids_have_information(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxroles.components.harvest_plan.COLUMNS", 7)
    key = "L1.k"
    one = Components({key: components().maps[key]})
    path = Harvester(model(), one, rows()).run(tmp_path / "few.h5")
    tokens, fires = np.concatenate(rows()), plain()[0][key][0] > 0.1
    common = np.sort(np.argsort(-np.bincount(tokens, minlength=64), kind="stable")[:7])
    with read_harvest(path) as harvest:
        for kind, weights in (("input", np.eye(64)[tokens]), ("output", plain()[1])):
            found = getattr(harvest.map(key), f"{kind}_tokens")
            for c in range(6):
                shown = found.id[c][found.id[c] >= 0]
                assert np.isin(shown, common).all()
                both = weights[fires[:, c]].sum(axis=0)[shown]
                np.testing.assert_allclose(found.count[c][: len(shown)], both, rtol=1e-5)
        assert (harvest.map(key).input_tokens.id >= 0).any()


def test_a_killed_harvest_goes_on_to_the_same_numbers(harvested, tmp_path, monkeypatch):
    # a pass for each layer, and room for three of its pairs of 6 by 6
    monkeypatch.setattr("mlxroles.components.harvest_plan.AT_ONCE", 3 * 6 * 6 * 8)
    path = tmp_path / "killed.h5"
    settings = Settings(examples=5, seed=4)
    n_batches = len(Harvester(model(), components(), rows()).cuts)
    seen = []

    def kill(done: int, of: int) -> None:
        assert of == 2 * n_batches
        seen.append(done)
        if len(seen) in (2, 5):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Harvester(model(), components(), rows(), settings).run(path, told=kill, every=0)
        assert not path.exists()
    assert seen == [1, 2, 2, 3, 4], "what is stored is not run again"
    Harvester(model(), components(), rows(), settings).run(path, every=0)
    assert not (tmp_path / "killed.h5.parts").exists()
    with read_harvest(path) as again:
        for key in harvested.keys:
            first, second = harvested.map(key), again.map(key)
            for name in ("firing", "mean_importance", "mean_activation", "mean_abs_activation"):
                np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
            for name in ("input_tokens", "output_tokens"):
                for a, b in zip(getattr(first, name), getattr(second, name), strict=True):
                    np.testing.assert_array_equal(a, b)
            for kind in ("random", "strongest"):
                for a, b in zip(first.examples[kind], second.examples[kind], strict=True):
                    np.testing.assert_array_equal(a, b)
        # of layers that need more room than there is, only q, k and v are counted together
        np.testing.assert_array_equal(again.pairs("L1.k", "L1.v"), harvested.pairs("L1.k", "L1.v"))
        assert again.pairs("L1.o", "L1.o") is None
        assert ("L1.o", "L1.o") in again.left_out
        assert len(again.left_out) == 2 * (10 + 6 - 3)
        assert harvested.left_out == []
        assert "co-activation of 26 pairs of maps is left out" in again.about["notes"][0]


def test_another_harvest_is_not_continued(harvested, tmp_path):
    path = tmp_path / "small.h5"
    small = [rows()[2], rows()[4]]
    Harvester(model(), components(), small).run(path)
    before = path.stat().st_mtime_ns
    Harvester(model(), components(), small).run(path)
    assert path.stat().st_mtime_ns == before, "what is there is not made again"
    with pytest.raises(StoreError, match="another harvest"):
        Harvester(model(), components(), small, Settings(threshold=0.2)).run(path)
    Harvester(model(), components(), small, Settings(threshold=0.2)).run(path, fresh=True)
    with read_harvest(path) as harvest:
        assert harvest.about["threshold"] == 0.2


def test_what_fresh_began_goes_on_without_it(tmp_path):
    path, small = tmp_path / "small.h5", [rows()[2], rows()[4]] * 15
    made = [Harvester(model(), components(), small, Settings(seed=seed)) for seed in (0, 1)]
    made[0].run(path)
    assert len(made[1].cuts) > 1

    def kill(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made[1].run(path, fresh=True, told=kill, every=0)
    with read_harvest(path) as harvest:
        assert harvest.about["seed"] == 0, "what was there stays until the new one is whole"
    (tmp_path / "small.h5.parts" / "group_000.npz").write_bytes(b"no")  # as after a full disk
    made[1].run(path)
    with read_harvest(path) as harvest:
        assert harvest.about["seed"] == 1
        assert harvest.map("L0.q").firing.max() <= harvest.n_tokens


def test_what_cannot_be_harvested_is_refused(tmp_path):
    with pytest.raises(PromptError, match="no text"):
        Harvester(model(), components(), [])
    with pytest.raises(PromptError, match="outside"):
        Harvester(model(), components(), [[99]])
    with pytest.raises(SpecError, match="does not exist"):
        read_harvest(tmp_path / "none.h5")
    row = [[1, 2, 3]]
    huge = {k: replace(d, V=d.V * np.float32(1e38)) for k, d in components().maps.items()}
    with pytest.raises(ModelError, match="not all finite"):
        Harvester(model(), Components(huge), row).run(tmp_path / "huge.h5")
    for damage in ("maps", "maps/L0.q/firing", "vocabulary"):
        path = tmp_path / "damaged.h5"
        Harvester(model(), components(), row).run(path, fresh=True)
        with h5py.File(path, "r+") as raw:
            del raw[damage]
        with pytest.raises(StoreError, match="damaged"), read_harvest(path) as harvest:
            harvest.map("L0.q")
        path.unlink()
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(SpecError, match="no readable HDF5"):
        read_harvest(tmp_path / "text.h5")


# --- other functions and models -----------------------------------------------------------------


def trained(kind: str, maps: dict) -> dict[str, np.ndarray]:
    """Random parameters of a causal-importance function with one hidden layer."""
    rng = np.random.default_rng(6)
    joint = kind == "global"
    widths = {key: d.d_in for key, d in maps.items()}
    sizes = {key: d.n for key, d in maps.items()}
    if joint:
        widths, sizes = {"all": sum(widths.values())}, {"all": sum(sizes.values())}
    found = {}
    for key, n in sizes.items():
        first = {"activation": 1}.get(kind, widths[key])
        each = (n,) if kind in ("activation", "input") else ()
        for layer, (a, b) in enumerate([(first, 7), (7, 1 if each else n)]):
            found[f"{key}.{layer}.W"] = rng.normal(0, a**-0.5, (*each, a, b))
            found[f"{key}.{layer}.b"] = rng.normal(0, 0.5, (*each, b))
    return {name: array.astype(np.float32) for name, array in found.items()}


@cache
def other(name: str):
    """Fused q, k and v; 8 bits; bfloat16."""
    if name == "gpt2":
        return wrap(architectures.build(name), architectures.config(name), name=name)
    module = tiny_llama(3, num_hidden_layers=2, intermediate_size=64)
    if name == "quantised":
        mx_nn.quantize(module, group_size=32, bits=8)
    else:
        module.set_dtype(mx.bfloat16)
    return wrap(module, LLAMA | {"num_hidden_layers": 2}, name=name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt2", "global"), ("quantised", "shared"), ("bfloat16", "input"), ("gpt2", "activation")],
)
def test_trained_functions_fire_above_zero_on_any_model(name, kind, tmp_path):
    of = other(name)
    maps = svd(of, rank=4, layers=[0, 1]).maps
    found = Components(maps, trained(kind, maps))
    function, fitting = importance_of(found), fitted(found, of)
    assert function.kind == kind
    short = [row[:40] for row in rows()[:3]]
    numbers = {key: ([], []) for key in maps}
    for row in short:
        entering = inputs(of, fitting.values(), mx.array([row]))
        x = {key: array.astype(mx.float32) for key, array in entering.items()}
        a = {key: x[key] @ mx.array(d.V) for key, d in maps.items()}
        g = function.of_all(x, a)
        for key, d in maps.items():
            numbers[key][0].append(np.array(g[key][0]))
            numbers[key][1].append(np.array(a[key][0]) * np.linalg.norm(d.U, axis=1))
    Harvester(of, found, short).run(tmp_path / "trained.h5")
    # a row beside others is rounded otherwise than alone: visible in bfloat16
    close = 2e-3 if name == "bfloat16" else 2e-6
    with read_harvest(tmp_path / "trained.h5") as harvest:
        assert harvest.measure == "causal importance"
        assert harvest.about["threshold"] == 0
        for key, (g, a) in numbers.items():
            g, a = np.concatenate(g), np.concatenate(a)
            here = harvest.map(key)
            np.testing.assert_allclose(here.mean_importance, g.mean(axis=0), atol=close)
            scale = max(1, np.abs(a).max())
            np.testing.assert_allclose(here.mean_activation / scale, a.mean(0) / scale, atol=close)
            if name != "bfloat16":
                np.testing.assert_array_equal(here.firing, (g > 0).sum(axis=0))


# --- text and commands --------------------------------------------------------------------------


def test_text_is_cut_into_rows_that_begin_as_the_tokenizer_begins_a_text(tmp_path):
    packaged = load("tiny/base")
    text = text_rows(packaged, None, tokens=1000, seed=0)
    assert [len(row) for row in text_rows(packaged, None, tokens=16, seed=0).rows] == [8, 8]
    assert {len(row) for row in text.rows} == {256}
    assert all(row[0] == 0 and 0 not in row[1:] for row in text.rows)
    assert text.about["tokens"] == sum(map(len, text.rows)) == 768
    assert text_rows(packaged, None, tokens=1000, seed=1).about != text.about
    file = tmp_path / "short.txt"
    file.write_text("The cat sat on the mat. " * 8)
    short = text_rows(packaged, file, tokens=1000, seed=0)
    assert len(short.rows) == 2
    assert "less than 1,000" in short.notes[0]
    file.write_text("The cat.")
    with pytest.raises(PromptError, match="16 are needed at least"):
        text_rows(packaged, file, tokens=1000, seed=0)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="no text in UTF-8"):
        text_rows(packaged, file, tokens=1000, seed=0)
    random = text_rows(model(), None, tokens=600, seed=0)
    assert "no tokenizer" in random.notes[0]
    with pytest.raises(PromptError, match="has no tokenizer"):
        text_rows(model(), file, tokens=1000, seed=0)


@cache
def of_packaged() -> Components:
    """Components of two maps of the packaged model."""
    return svd(load("tiny/base"), "qk", layers=[2], rank=6)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "tiny.safetensors", of_packaged())


def test_the_command_writes_a_harvest_and_a_table(file, call):
    words = ("components", "harvest", file, "--model", "tiny/base", "--tokens", "600")
    status, out, err = call(*words)
    assert status == 0
    assert "of 12 components of 2 maps fire at least once (share of the output > 0.1)" in out
    assert "2 of 2" not in err, "600 tokens are one batch"
    table = list(csv.DictReader(file.with_name("tiny_harvest.csv").read_text().splitlines()))
    assert [row["component"] for row in table[:2]] == ["L2.q:0", "L2.q:1"]
    with h5py.File(file.with_name("tiny_harvest.h5")) as raw:
        assert raw["maps/L2.q/input_tokens/pmi"].attrs["units"] == "nat"
        assert raw["pairs/L2.q/L2.k"].dtype == np.int64
    with read_harvest(file.with_name("tiny_harvest.h5")) as harvest:
        assert [int(row["firing"]) for row in table[6:]] == harvest.map("L2.k").firing.tolist()
        assert harvest.about["components"]["name"] == "tiny.safetensors"
        assert harvest.token(harvest.tokens[0, 0]) == "<|bos|>"
    status, out, _ = call(*words, "--json")
    doc = json.loads(out)
    assert doc["maps"][1]["components"] == 6
    assert doc["n_tokens"] == 512
    status, _, err = call(*words, "--seed", "3")
    assert status == 1
    assert "holds another harvest" in err
    assert call(*words, "--seed", "3", "--fresh")[0] == 0


def test_wrong_words_are_answered_in_one_line(file, call, tmp_path):
    given = file.rename(tmp_path / "own.h5")  # with the ending of a harvest
    write(given, of_packaged())
    write(file, of_packaged())
    book = tmp_path / "book.csv"
    book.write_text("The cat sat on the mat. " * 30)
    tiny = ("--model", "tiny/base", "--tokens", "32")
    before = given.read_bytes()
    for words, told in (
        ((given, *tiny, "--out", given, "--fresh"), "own.h5 is no harvest and stays as it is"),
        ((file, *tiny, "--text", book, "--out", tmp_path / "book.h5"), "in the place of the text"),
        ((file, *tiny, "--threshold", "nan"), "nan is no number"),
        ((tmp_path / "no.safetensors", "--model", "tiny/base"), "no component file"),
        ((file, "--model", "tiny"), "tiny is a pair; say which model"),
        ((file, "--model", "tiny/base", "--out", tmp_path), "is no .h5 file"),
        ((file, "--model", "tiny/base", "--text", tmp_path / "no.txt"), "cannot be read"),
    ):
        status, _, err = call("components", "harvest", *words)
        assert status != 0
        assert told in err
    assert given.read_bytes() == before
    assert book.read_text().startswith("The cat")
    assert not list(tmp_path.glob("*.parts"))


# --- co-activation ------------------------------------------------------------------------------


def test_coactivation_is_that_of_the_indicators():
    rng = np.random.default_rng(1)
    first, second = rng.random((500, 4)) < [0.02, 0.3, 0.9, 0], rng.random((500, 3)) < 0.4
    second[:, 0] = first[:, 1]
    found = coactivation(first.sum(0), second.sum(0), first.T.astype(int) @ second, 500)
    for i in range(3):
        for j in range(3):
            a, b = first[:, i], second[:, j]
            assert found.phi[i, j] == pytest.approx(pearsonr(a, b).statistic, abs=1e-12)
            assert found.jaccard[i, j] == pytest.approx((a & b).sum() / (a | b).sum())
            assert found.of_first[i, j] == pytest.approx(b[a].mean())
            assert found.of_second[i, j] == pytest.approx(a[b].mean())
    assert found.phi[1, 0] == pytest.approx(1)
    for measure in (found.phi, found.of_first):
        assert (measure[3] == 0).all(), "0 where a component never fires"


def test_coactivation_keeps_its_digits_at_large_counts():
    """float32 products, or int64 ones, lose them here."""
    n, ni, nj, nij = 4_000_000_007, 300_000_001, 300_000_003, 22_500_001
    exact = (n * nij - ni * nj) / (math.isqrt(ni * (n - ni)) * math.isqrt(nj * (n - nj)))
    found = coactivation([ni], [nj], [[nij]], n)
    assert found.phi[0, 0] == pytest.approx(exact, rel=1e-9)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="cannot be"):
        coactivation([3], [3], [[4]], 10)
    with pytest.raises(ValueError, match="pairs of"):
        coactivation([3], [3], [[1, 1]], 10)
