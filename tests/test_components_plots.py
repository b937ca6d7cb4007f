"""The report on components: what is told of a layer, pages and figures, hostile text too."""

import csv
import json
import math
import re
from dataclasses import replace
from html import unescape
from itertools import product

import numpy as np
import pytest
from rich.console import Console
from tiny_models import LLAMA, tiny, tiny_llama

from mlxroles.circuits import rotary
from mlxroles.components import offsets, write
from mlxroles.components.harvest import Harvester, Settings
from mlxroles.components.harvest_file import read_harvest
from mlxroles.components.maps import decomposable
from mlxroles.components.svd import svd
from mlxroles.dashboard.components_tables import components_tables
from mlxroles.errors import SpecError
from mlxroles.models.load import wrap
from mlxroles.plots import canvas
from mlxroles.plots.components import QK, layer_figures, overview_figures
from mlxroles.report.components import layer_page, missing, sentence
from mlxroles.report.components.story import story
from mlxroles.report.components.views import Partner, Story, Tokens, Value, Window
from mlxroles.studies.component_report import ComponentReport, results
from mlxroles.studies.component_report.document import layer as entry
from mlxroles.studies.component_report.document import table as tabled
from mlxroles.studies.component_report.layers import Sources, layer_view, map_view, pooled
from mlxroles.studies.component_report.story import PEAK_OFFSETS
from mlxroles.studies.component_report.turning import LEFT_OUT, left_out

HOSTILE = ("<script>alert(1)</script>", "\x1b[31m", "\u202eabc", r"$\frac{", "`|[a](b)")


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_llama(3, num_hidden_layers=2), LLAMA | {"num_hidden_layers": 2}, name="gqa")


@pytest.fixture(scope="module")
def components(model):
    """Of an MLP only one map, to draw less."""
    found = svd(model, rank=7)
    left_out = ("gate_proj", "up_proj")
    return replace(found, maps={k: d for k, d in found.maps.items() if not k.endswith(left_out)})


@pytest.fixture(scope="module")
def harvest(model, components, tmp_path_factory):
    path = tmp_path_factory.mktemp("harvest") / "harvest.h5"
    rng = np.random.default_rng(0)
    rows = [[int(t) for t in rng.zipf(1.4, n) % 64] for n in (200, 90, 150)]
    Harvester(model, components, rows, Settings(examples=5, seed=4)).run(path)
    with read_harvest(path) as found:
        yield found


@pytest.fixture(scope="module")
def small_figures():
    """Figures are built whole; written small, as PNG only and without being laid out."""

    def save(figure, png, vector):
        canvas.FigureCanvasAgg(figure)
        figure.set_layout_engine("none")
        figure.savefig(png, dpi=20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save", save)
        yield


@pytest.fixture(scope="module")
def whole(model, components, harvest, small_figures, tmp_path_factory):
    """The report with everything: its folder and its document; figures of the last layer alone."""
    folder = tmp_path_factory.mktemp("report") / "whole"
    made = ComponentReport(folder / "c.safetensors", components, harvest, model)

    def last_alone(doc, view, figures):
        return layer_figures(doc, view, figures) if view.layer else {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "layer_figures", last_alone)
        return folder, made.run(folder), made


@pytest.fixture(scope="module")
def alone(components, tmp_path_factory):
    """The report of the file alone, on one layer, without figures."""
    folder = tmp_path_factory.mktemp("report") / "alone"
    made = ComponentReport(folder / "c.safetensors", components, layers=(1,))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("layer_figures", "overview_figures"):
            patch.setattr(results, name, lambda *_: {})
        return folder, made.run(folder), made


def test_a_report_has_a_page_per_layer_that_needs_nothing_else(whole):
    folder, doc, _ = whole
    pages = sorted((folder / "layers").glob("*.html"))
    assert [page.name for page in pages] == ["L00.html", "L01.html"]
    for page in [*pages, folder / "report.html"]:
        text = page.read_text()
        assert len(text) < 3e6
        assert "default-src 'none'" in text
        assert "<script" not in text
        for link in re.findall(r'href="([^"]+)"', text):
            assert (page.parent / link).resolve().is_file()
        assert not re.findall(r'src="(?!data:)', text)
    assert "L00.html" in (folder / "report.html").read_text()
    assert doc["missing"] == []
    assert json.loads((folder / "summary.json").read_text())["sentence"] == doc["sentence"]


def test_every_kind_of_figure_is_drawn_where_there_is_everything(
    whole, alone, monkeypatch, tmp_path
):
    folder, doc, _ = whole
    kinds = {"heads", "weights", "likeness", "together", *(f"qk_{kind}" for kind in QK)}
    assert {path.stem for path in (folder / "figures/L01").glob("*.png")} == kinds
    assert len(QK) == 7
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"importance", "spread"}
    bare = layer_view(alone[2]._sources(), 1)._replace(matrices=())
    monkeypatch.setattr(canvas, "save", lambda *_: None)
    drawn = layer_figures(doc, bare, tmp_path)
    assert {name for name in drawn if not name.endswith("_svg")} == {"heads", "likeness"}


def test_a_file_alone_is_reported_on_and_what_would_add_is_said_in_a_line_each(alone):
    folder, doc, _ = alone
    assert doc["measure"] == "norm"
    assert [line.split(" ", 2)[1] for line in doc["missing"]] == ["harvest", "model"]
    assert all("\n" not in line for line in doc["missing"])
    page = unescape((folder / "report.html").read_text())
    assert all(line in page for line in missing(doc))
    assert not (folder / "offsets.h5").exists()


def test_the_finding_counts_components_in_one_head_beside_chance(alone):
    _, doc, _ = alone
    found = next(m for m in doc["layers"][0]["maps"] if m["kind"] == "q")
    by_hand = sum(each["share"] > found["chance_share"] for each in found["top"])
    assert found["in_one_head"] == by_hand == len(found["heads_of_those"])
    assert f"{by_hand} of the {found['shown']} leading query components" in sentence(doc)


def test_partners_are_those_with_the_largest_and_most_negative_peaks(whole, model, components):
    """Brute force over all pairs with explicit rotations; signs as components usually fire."""
    folder, doc, made = whole
    story_ = doc["layers"][1]["stories"][0]
    known = offsets.read(folder / "offsets.h5")[1]
    turned = rotary(model, 1)
    q_map, k_map = components.maps["L1.q"], components.maps["L1.k"]
    mean = {kind: made.harvest.map(f"L1.{kind}").mean_activation for kind in "qk"}
    peaks = {}
    for k in known.k.tolist():
        sums = []
        for offset in PEAK_OFFSETS:
            total = 0.0
            for h in range(4):
                u_q = q_map.head(story_["q"], h) * np.linalg.norm(q_map.V[:, story_["q"]])
                u_k = k_map.head(k, h // 2) * np.linalg.norm(k_map.V[:, k])
                at = np.array(turned.at(u_q, offset)) @ np.array(turned.at(u_k, 0))
                total += turned.scale * float(at)
            sums.append(total)
        sign = np.sign(mean["q"][story_["q"]] * mean["k"][k])
        peaks[k] = sign * max(sums, key=abs)
    best = sorted((k for k in peaks if peaks[k] > 0), key=lambda k: -peaks[k])[:5]
    worst = sorted((k for k in peaks if peaks[k] < 0), key=lambda k: peaks[k])[:5]
    assert [each["k"] for each in story_["raises"]] == best
    assert [each["k"] for each in story_["lowers"]] == worst
    for each in (*story_["raises"], *story_["lowers"]):
        assert each["peak"] == pytest.approx(peaks[each["k"]], rel=1e-4)


def phi_of(n, n_i, n_j, n_ij):
    """In whole numbers up to the root; 0 where one never or always fires."""
    n_i, n_j, n_ij = int(n_i), int(n_j), int(n_ij)
    squared = n_i * (n - n_i) * n_j * (n - n_j)
    return (n * n_ij - n_i * n_j) / math.sqrt(squared) if squared else 0.0


def test_a_layers_grids_are_of_the_components_that_they_name(whole, components):
    """Rows and columns are in the order of importance, not in that of the file."""
    _, _, made = whole
    view, harvest = layer_view(made._sources(), 1), made.harvest
    assert [(e.one, e.other) for e in view.together] == [("L1.k", "L1.v"), ("L1.q", "L1.k")]
    for each in view.together:
        one, other = harvest.map(each.one), harvest.map(each.other)
        both, n = harvest.pairs(each.one, each.other), harvest.n_tokens
        for (i, a), (j, b) in product(enumerate(each.rows), enumerate(each.columns)):
            n_a, n_b, n_ab = int(one.firing[a]), int(other.firing[b]), int(both[a, b])
            found = [measure[i, j] for measure in each.measures]
            expected = [
                phi_of(n, n_a, n_b, n_ab),
                n_ab / (n_a + n_b - n_ab),
                n_ab / n_a,
                n_ab / n_b,
            ]
            assert found == pytest.approx(expected, abs=1e-12)
    assert len(view.likeness) == 3
    for each in view.likeness:
        one, other = components.maps[each.one].V, components.maps[each.other].V
        for (i, a), (j, b) in product(enumerate(each.rows), enumerate(each.columns)):
            size = np.linalg.norm(one[:, a]) * np.linalg.norm(other[:, b])
            assert each.cosine[i, j] == pytest.approx(one[:, a] @ other[:, b] / size, abs=1e-6)


def test_a_maps_numbers_are_those_of_its_harvest(whole, components):
    _, _, made = whole
    harvest = made.harvest
    for each in layer_view(made._sources(), 1).maps:
        one, d = harvest.map(each.key), components.maps[each.key]
        np.testing.assert_array_equal(each.importance, one.mean_importance)
        np.testing.assert_array_equal(each.alive, one.mean_importance > 0.01)
        assert each.density is not None
        np.testing.assert_allclose(each.density, one.firing / harvest.n_tokens)
        assert each.signed is not None
        np.testing.assert_array_equal(each.signed, one.mean_activation)
        assert (each.activity is not None) == (each.kind in ("q", "k", "v"))
        if each.activity is not None:
            share = np.linalg.norm(d.head(2, 1)) / np.linalg.norm(d.U[2])
            assert each.activity[2, 1] == pytest.approx(one.mean_abs_activation[2] * share)


def test_a_component_of_zeros_does_not_count(components):
    d = components.maps["L1.q"]
    zero = replace(d, U=d.U * (np.arange(d.n) < 2)[:, None])
    assert map_view(Sources({d.key: zero}), zero).alive.sum() == 2
    assert not map_view(Sources({d.key: d}), replace(d, U=d.U * 0)).alive.any()


def test_weights_are_drawn_beside_vu_and_components_with_lines_where_heads_end(
    whole, model, components
):
    _, _, made = whole
    for each in layer_view(made._sources(), 1).matrices:
        d = components.maps[each.key]
        chosen = [int(name.split(":")[1]) for name in each.names[2:]]
        assert each.names[:2] == ("target", "VU")
        target = decomposable(model, layers=[1])[each.key].weight(model)
        for grid, whole_ in zip(
            each.grids, (target, d.weight(), *map(d.component, chosen)), strict=True
        ):
            np.testing.assert_allclose(grid, pooled(whole_, 48), atol=1e-6)
        pixels = each.grids[0].shape[int(each.is_by_column)]
        ends = [(line + 0.5) / pixels * d.n_heads for line in each.lines]
        assert ends == pytest.approx(range(1, d.n_heads))
        assert each.is_by_column == (d.kind == "o")


def test_partners_name_their_strongest_head_and_the_values_that_fire_with_them(whole):
    folder, doc, made = whole
    known, harvest = offsets.read(folder / "offsets.h5")[1], made.harvest
    k_map, v_map = harvest.map("L1.k"), harvest.map("L1.v")
    both, n = harvest.pairs("L1.k", "L1.v"), harvest.n_tokens
    told = 0
    for story_ in doc["layers"][1]["stories"]:
        for each in (*story_["raises"], *story_["lowers"]):
            q, k = known.q.tolist().index(story_["q"]), known.k.tolist().index(each["k"])
            column = known.values[each["offset"], :, q, k]
            assert each["head"] == np.abs(column).argmax()
            assert each["chance"] == known.chance.of_query[q]
            top = k_map.input_tokens
            clear = top.id[each["k"]][(top.id[each["k"]] >= 0) & (top.low[each["k"]] > 0)]
            assert each["tokens"] == [harvest.token(int(i)) for i in clear[:8]]
            for value in each["values"]:
                counts = (
                    k_map.firing[each["k"]],
                    v_map.firing[value["v"]],
                    both[each["k"], value["v"]],
                )
                assert value["measure"] == pytest.approx(phi_of(n, *counts))
                told += 1
    assert told


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_tables_hold_every_component_and_every_pair(whole, components):
    folder, _, made = whole
    rows = table(folder / "components.csv")
    norms = [row for row in rows if row["quantity"] == "norm"]
    assert len(norms) == components.n
    one = next(row for row in norms if row["map"] == "L1.mlp.down_proj" and row["component"] == "3")
    expected = np.linalg.norm(components.maps["L1.mlp.down_proj"].component(3))
    assert float(one["value"]) == pytest.approx(expected, rel=1e-5)
    pairs = table(folder / "pairs.csv")
    known = offsets.read(folder / "offsets.h5")
    assert len(pairs) == sum(each.values[0, 0].size for each in known.values())
    total = known[1].values.sum(axis=1)  # in the table turned as they usually fire
    first = next(row for row in pairs if row["layer"] == "1")
    assert abs(float(first["peak"])) == pytest.approx(np.abs(total).max(), rel=1e-5)
    assert made.chosen == [0, 1]


def test_contributions_are_kept_and_another_question_makes_others(whole, monkeypatch):
    folder, _, made = whole
    monkeypatch.setattr(
        "mlxroles.studies.component_report.contributions", lambda *_: pytest.fail("computed again")
    )
    known = made._contributions(folder, made._sources(), made.identity(), [])
    assert sorted(known) == [0, 1]
    assert replace(made, seed=1).identity() != made.identity()
    assert replace(made, harvest=None).identity() != made.identity()


def hostile_story() -> Story:
    tokens = Tokens(
        tuple((text, 1.0) for text in HOSTILE),
        tuple((text, 0.5) for text in HOSTILE),
        (Window(HOSTILE, np.array([0.0, 0.5, 1.0, np.nan, 0.2]), 2),),
    )
    curves = np.random.default_rng(0).standard_normal((17, 5))
    value = Value(2, 0.4, tokens)
    partner = Partner(3, 1.5, 1.2, 4, 1, curves, tokens, (value,))
    return Story(7, 0.2, 0.1, np.full(5, 0.2), np.log(5), tokens, (partner,), ())


def test_token_text_is_data_in_a_story():
    text = story(hostile_story(), "mean causal importance", is_open=True)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("<details") == text.count("</details>") == 1


def test_a_layers_page_holds_hostile_names_and_tokens(whole, model, components, harvest):
    folder, doc, made = whole
    view = layer_view(made._sources(), 0, offsets.read(folder / "offsets.h5")[0])
    hostile = {**doc, "display": HOSTILE[0], "measure": HOSTILE[0], "notes": list(HOSTILE)}
    named = tuple(m._replace(key=f"L0.{'|'.join(HOSTILE)}") for m in view.maps)
    text = layer_page(hostile, view._replace(maps=named, stories=(hostile_story(),)), {})
    for shown in (text, tabled(named)):
        assert not {"\x1b", "\u202e"} & {*shown}
    assert "<script" not in text


def test_figures_take_hostile_names(whole, small_figures, tmp_path):
    _, doc, made = whole
    view = layer_view(made._sources(), 0, None)
    renamed = tuple(m._replace(names=HOSTILE[: len(m.grids)]) for m in view.matrices[:1])
    hostile = {**doc, "display": HOSTILE[3] + HOSTILE[1]}
    bare = view._replace(matrices=renamed, together=(), likeness=(), maps=())
    assert "weights" in layer_figures(hostile, bare, tmp_path)


def test_pooling_keeps_the_largest_entry_of_each_block():
    grid = np.random.default_rng(3).standard_normal((10, 7))
    made = pooled(grid, 4)
    rows, columns = (np.linspace(0, n, 5).astype(int) for n in (10, 7))
    for i in range(4):
        for j in range(4):
            block = grid[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].ravel()
            assert made[i, j] == block[np.abs(block).argmax()]
    np.testing.assert_array_equal(pooled(grid, 20), grid)


def test_a_layer_without_living_components_is_no_error(whole, small_figures, tmp_path):
    """As after a training that silenced a map."""
    _, doc, made = whole
    view = layer_view(made._sources(), 0, None)
    dead = tuple(m._replace(alive=np.zeros_like(m.alive)) for m in view.maps)
    silent = view._replace(maps=dead, stories=(), likeness=(), together=(), qk=None)
    layer_figures(doc, silent, tmp_path)
    zero = tuple(m._replace(importance=np.zeros_like(m.importance)) for m in dead)
    overview_figures(doc, zero[:1], tmp_path)
    told = {**doc, "layers": [entry(silent)]}
    assert "none" in sentence(told)
    assert "Layer 0" in layer_page(told, silent, {})


def test_the_terminal_shows_the_finding_at_80_columns(whole):
    console = Console(width=80, force_terminal=False, record=True, file=None)
    with console.capture() as text:
        console.print(components_tables(whole[1]))
    lines = text.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "in 1" in text.get()
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"), [("qwen3", "q and k"), ("gpt2", "q and k"), ("llama", "")]
)
def test_what_stands_before_the_scores_besides_a_rotation_is_said(name, expected):
    """qwen3 norms queries and keys, gpt2 adds a bias; llama does neither."""
    found = tiny(name)
    maps = decomposable(found, ("q", "k"), layers=[0])
    told = left_out(found, rotary(found, 0), maps)
    assert told == (LEFT_OUT.format(expected) if expected else "")


def test_a_harvest_of_other_components_and_a_missing_layer_are_refused(
    components, harvest, monkeypatch, tmp_path
):
    with pytest.raises(SpecError, match="no map of layer 9 is decomposed"):
        ComponentReport(harvest.path, components, layers=(9,))
    other = replace(
        components, maps={"L9.q": replace(components.maps["L0.q"], key="L9.q", layer=9)}
    )
    with pytest.raises(SpecError, match="harvest of other components"):
        ComponentReport(tmp_path / "none", other, harvest)
    fewer = {key: replace(d, V=d.V[:, :5], U=d.U[:5]) for key, d in components.maps.items()}
    with pytest.raises(SpecError, match="harvest of other components"):
        ComponentReport(tmp_path / "none", replace(components, maps=fewer), harvest)
    file = write(tmp_path / "c.safetensors", components)
    monkeypatch.setitem(harvest.about, "components", {"sha256": "of another file"})
    with pytest.raises(SpecError, match="harvest of other components"):
        ComponentReport(file, components, harvest)


def test_the_command_writes_where_it_says(call, components, monkeypatch, tmp_path):
    for name in ("layer_figures", "overview_figures"):
        monkeypatch.setattr(results, name, lambda *_: {})
    path = write(tmp_path / "c.safetensors", components)
    status, out, err = call(
        "components", "report", path, "--layers", "1", "--out", tmp_path / "r", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["layers"][0]["layer"] == 1
    assert (tmp_path / "r/layers/L01.html").is_file()
    status, _, err = call("components", "report", path, "--layers", "7")
    assert status == 1
    assert "layer 7" in err
    status, _, err = call("components", "report", tmp_path / "none.safetensors")
    assert status == 1
    assert err.count("\n") == 1
