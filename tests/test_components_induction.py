"""The characterisation of an induction head against models with changed weights."""

import csv
import json
from dataclasses import replace
from functools import cache
from itertools import product

import architectures
import numpy as np
import pytest
from tiny_models import LLAMA, tiny_llama

from mlxroles.backend import mx
from mlxroles.components import induction_text
from mlxroles.components.decomposition import Components, Name, parse
from mlxroles.components.file import fitted, write
from mlxroles.components.harvest import Harvester
from mlxroles.components.harvest_file import read_harvest
from mlxroles.components.induction import Induction, Settings, turned
from mlxroles.components.induction_document import characterise
from mlxroles.components.svd import svd
from mlxroles.errors import SpecError
from mlxroles.models.load import load, wrap

LENGTH = 6
SETTINGS = Settings(sequences=4, length=LENGTH, random=3, seed=1)


@cache
def model():
    """Four query heads read two key-value heads."""
    config = LLAMA | {"num_hidden_layers": 2}
    return wrap(tiny_llama(5, num_hidden_layers=2), config, name="gqa")


@cache
def components() -> Components:
    return svd(model(), "qk", rank=5)


@cache
def made() -> Induction:
    return Induction(model(), components(), (1, 2), SETTINGS)


@cache
def document():
    return characterise(made())


def weights_by_hand(module, rows) -> np.ndarray:
    """First position, induction target and rest, by plain loops over layer 1's pattern."""
    pattern = np.array(wrap(module, LLAMA).run(rows, keep=["pattern"], layers=[1])["pattern", 1])
    found = np.zeros((*pattern.shape[:2], 3))
    for s, h in np.ndindex(found.shape[:2]):
        for k in range(LENGTH - 1):
            row = pattern[s, h, LENGTH + k]
            found[s, h] += np.array([row[0], row[k + 1], row.sum() - row[0] - row[k + 1]])
    return found / (LENGTH - 1)


def less(name: Name, u=None):
    """The model with the component's rank-one matrix taken from the weight."""
    module = tiny_llama(5, num_hidden_layers=2)
    d = components().maps[name.key]
    u = d.U[name.index] if u is None else u
    attention = module.layers[1].self_attn
    leaf = attention.q_proj if d.kind == "q" else attention.k_proj
    leaf.weight = leaf.weight - mx.array(np.outer(u, d.V[:, name.index]).astype(np.float32))
    return module


def test_the_weights_without_a_component_are_those_of_a_changed_model():
    of = made()
    expected = weights_by_hand(model().module, of.measured.rows)
    np.testing.assert_allclose(of.measured.before, expected, atol=1e-6)
    # without a preference each query gives 1 / (what it sees) to every key
    even = np.mean([1 / (LENGTH + k + 1) for k in range(LENGTH - 1)])
    np.testing.assert_allclose(of.measured.uniform, [even, even, 1 - 2 * even], atol=1e-6)
    for name in (Name("L1.q", 0), Name("L1.k", 1), Name("L1.k", 4)):
        expected = weights_by_hand(less(name), of.measured.rows)
        np.testing.assert_allclose(of.without([name]), expected, atol=1e-6)
        lost = (of.measured.before - expected)[:, 2, 1]
        np.testing.assert_allclose(of.effect(of.without([name])), lost, atol=1e-6)


def test_several_components_go_at_once():
    of = made()
    first, second = Name("L1.q", 0), Name("L1.q", 2)
    d = components().maps["L1.q"]
    module = less(first)
    leaf = module.layers[1].self_attn.q_proj
    leaf.weight = leaf.weight - mx.array(np.outer(d.U[2], d.V[:, 2]).astype(np.float32))
    expected = weights_by_hand(module, of.measured.rows)
    np.testing.assert_allclose(of.without([first, second]), expected, atol=1e-6)


def test_shares_of_k_are_those_of_the_key_value_head():
    """Query head 2 of 4 reads key-value head 1 of 2."""
    found = {name: share for name, share, _ in made().candidates()}
    for name, share in found.items():
        d = components().maps[name.key]
        heads = 2 if d.kind == "k" else 4
        assert d.n_heads == heads
        norms = [np.linalg.norm(d.U[name.index].reshape(heads, -1)[h]) for h in range(heads)]
        assert share == pytest.approx(norms[1 if d.kind == "k" else 2] / sum(norms), rel=1e-5)


def test_random_directions_keep_the_length_in_every_head():
    of, name = made(), Name("L1.k", 1)
    d = components().maps["L1.k"]
    u = turned(d, 1, np.random.default_rng(0))
    norms = [np.linalg.norm(part.reshape(2, -1), axis=1) for part in (u, d.U[1])]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    rng = np.random.default_rng([1, 8, *str(name).encode()])
    expected = []
    for _ in range(3):
        after = weights_by_hand(less(name, turned(d, 1, rng)), of.measured.rows)
        expected.append((of.measured.before - after)[:, 2, 1].mean())
    np.testing.assert_allclose(of.random_directions(name), expected, atol=1e-6)


def test_the_document_holds_what_was_measured():
    of, doc = made(), document()
    assert json.loads(json.dumps(doc)) == doc
    assert (doc["head"], doc["kv_head"], doc["n_kv_heads"]) == ("L1H2", 1, 2)
    assert len(doc["components"]) == 10
    rows = {row["component"]: row for row in doc["components"]}
    left_out = clear = 0
    for name, row in rows.items():
        after = weights_by_hand(less(parse(name)), of.measured.rows)
        lost = (of.measured.before - after)[..., 1]
        mean = lost.mean(axis=0)
        assert row["effect"] == pytest.approx(mean[2], abs=1e-6)
        assert lost[:, 2].min() <= row["low"] <= mean[2] <= row["high"] <= lost[:, 2].max()
        for place, value in zip(("first", "target", "rest"), after[:, 2].mean(0), strict=True):
            assert row["after"][place] == pytest.approx(value, abs=1e-6)
        # all 4 ** 4 resamples of four sequences
        means = np.array(
            [lost[list(chosen)].mean(axis=0) for chosen in product(range(4), repeat=4)]
        )
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
        large = [h for h in (0, 1, 3) if abs(mean[h]) > 0.005]
        surely = {f"L1H{h}": mean[h] for h in large if low[h] > 0 or high[h] < 0}
        assert row["elsewhere"] == pytest.approx(surely, abs=1e-6)
        assert row["rises"] == [head for head, value in surely.items() if value < 0]
        clear, left_out = clear + len(surely), left_out + len(large) - len(surely)
        within = row["low"] > -0.01 and row["high"] < 0.01
        assert row["idle"] == (row["share"] > 0.1 and within)
    assert clear
    assert left_out


def test_the_ten_are_chosen_on_sequences_of_their_own():
    of, doc = made(), document()
    rows = {row["component"]: row for row in doc["components"]}
    ten = [rows[name] for name in doc["top"]]
    first = []
    for name in map(parse, doc["top"]):
        after = weights_by_hand(less(name), of.choice.rows)
        first.append((of.choice.before - after)[:, 2, 1].mean())
    np.testing.assert_allclose([row["first"] for row in ten], first, atol=1e-6)
    assert first == sorted(first, reverse=True), "chosen on sequences of its own"
    assert not {*map(tuple, of.choice.rows)} & {*map(tuple, of.measured.rows)}
    joint = of.effect(of.without([parse(name) for name in doc["top"]]))
    assert doc["joint"]["mean"] == pytest.approx(joint.mean())
    largest = np.max([row["random"] for row in ten], axis=0)
    for row in ten:
        assert row["p"] == (1 + (largest >= row["effect"]).sum()) / 4
    assert doc["joint"]["random"] == [], "no others are left to be drawn"


def test_the_text_tells_the_document():
    doc = document()
    text = induction_text.text(doc)
    assert "key-value head 1 of 2" in text
    assert "is no induction head" in text
    assert max(map(len, text.splitlines())) <= 79
    table = induction_text.rows(doc)
    assert {row["component"] for row in table} == set(doc["top"])


def test_random_sets_are_different_ones_of_each_map():
    """Two of q and one of k among three others of q and one of k: three sets, not 20."""
    of = Induction(model(), components(), (1, 2), replace(SETTINGS, random=20))
    names = {key: [Name(key, c) for c in range(5)] for key in ("L1.q", "L1.k")}
    top = [*names["L1.q"][:2], names["L1.k"][0]]
    found = of.random_sets(top, [*names["L1.q"][2:], names["L1.k"][3]])
    expected = []
    for a, b in ((2, 3), (2, 4), (3, 4)):
        chosen = [Name("L1.q", a), Name("L1.q", b), Name("L1.k", 3)]
        expected.append((of.measured.before - of.without(chosen))[:, 2, 1].mean())
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-7)
    assert not len(of.random_sets(top, names["L1.k"][1:])), "none of q is left"


@cache
def planted() -> Components:
    """Of the layer of the packaged base model in which head 5 was planted."""
    return svd(load("tiny/base"), "qk", layers=[2], rank=16)


def test_it_finds_the_planted_head_and_what_makes_it():
    of = Induction(load("tiny/base"), planted(), None, Settings(4, length=24, random=2))
    assert of.head == (2, 5)
    assert not any("no induction head" in note for note in of.notes)
    doc = characterise(of)
    assert doc["joint"]["mean"] > 0.5 * doc["score"]["mean"] > max(doc["joint"]["random"])
    assert doc["score"]["low"] > 0.3 > 0.05 > doc["uniform"]


def test_a_harvest_says_which_components_are_alive(tmp_path):
    rows = np.random.default_rng(0).integers(0, 64, (3, 20)).tolist()
    path = Harvester(model(), components(), rows).run(tmp_path / "harvest.h5")
    with read_harvest(path) as harvest:
        of = Induction(model(), components(), (1, 2), SETTINGS, harvest)
        means = {key: harvest.map(key).mean_importance for key in ("L1.q", "L1.k")}
        told = {name: mean for name, _, mean in of.candidates()}
        with pytest.raises(SpecError, match="harvest of other components"):
            Induction(model(), svd(model(), "qk", rank=3), (1, 2), SETTINGS, harvest).candidates()
    assert told == {Name(k, c): m for k, v in means.items() for c, m in enumerate(v) if m > 0.01}


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3"])
def test_other_architectures_have_their_induction_heads_too(name):
    """Fused q and k, soft-caps and windows, norms of q and k."""
    other = wrap(architectures.build(name), architectures.config(name), name=name)
    found = svd(other, "qk", layers=[1], rank=3)
    of = Induction(other, found, None, replace(SETTINGS, random=0))
    key = next(iter(fitted(found, other)))
    after = of.without([Name(key, 0)])
    assert np.isfinite(after).all()
    assert np.abs(after - of.measured.before).max() > 1e-5
    np.testing.assert_allclose(after.sum(axis=-1), 1, atol=1e-5)


def test_the_command_tells_and_writes_the_characterisation(tmp_path, call):
    maps = {k: replace(d, V=d.V[:, :3], U=d.U[:3]) for k, d in planted().maps.items()}
    file = write(tmp_path / "t.safetensors", Components(maps))
    words = ("components", "induction", file, "--model", "tiny/base")
    few = ("--sequences", "4", "--random", "2")
    status, out, _ = call(*words, *few)
    assert status == 0
    assert "L2H5 has the induction score" in out
    doc = json.loads((tmp_path / "t_induction_L2H5.json").read_text())
    assert doc["sentence"].replace(" ", "") in out.replace("\n", "").replace(" ", "")
    assert (tmp_path / "t_induction_L2H5.txt").read_text() in out
    table = list(csv.DictReader((tmp_path / "t_induction_L2H5.csv").read_text().splitlines()))
    assert len(table) == len(doc["components"]) == 6
    status, out, _ = call(*words, *few, "--head", "L2H1", "--json")
    assert json.loads(out)["head"] == "L2H1"
    about = {"components": {"name": "u.safetensors", "sha256": "0"}}
    of = Harvester(load("tiny/base"), Components(maps), [[1, 2, 3]], about=about)
    harvest = of.run(tmp_path / "u_harvest.h5")
    status, out, _ = call(*words, "--sequences", "4", "--random", "0", "--harvest", harvest)
    assert "Note: the harvest is of another component file." in out
    before = file.read_bytes()
    status, _, err = call(*words, "--out", file)
    assert "is no .json file" in err
    assert file.read_bytes() == before
    for wrong, told in (("L9H1", "layers 2 only"), ("L2H8", "outside 0..7"), ("x", "no head")):
        status, _, err = call(*words, "--head", wrong)
        assert status == 1
        assert told in err


def test_what_cannot_be_characterised_is_refused():
    with pytest.raises(SpecError, match="layers 0, 1 only"):
        Induction(model(), components(), (2, 0), SETTINGS)
    with pytest.raises(SpecError, match=r"head 4 is outside 0\.\.3"):
        Induction(model(), components(), (1, 4), SETTINGS)
    with pytest.raises(SpecError, match="no q or k"):
        Induction(model(), svd(model(), "v", rank=1), None, SETTINGS)
