"""Figures of entropy documents: which are drawn, what they show, that any text and number is fine.

What is drawn is compared with plain loops over the table, or with the document's own rows.
"""

import json
import logging
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import patch_docs
import pytest
from matplotlib.colors import to_rgba
from role_tables import CATEGORIES, random_tables

from mlxroles.plots import canvas, family_figures, lines, maps, role_figures
from mlxroles.plots.canvas import style
from mlxroles.plots.lines import Mark, Series
from mlxroles.plots.roles import drawn
from mlxroles.plots.roles.candidates import candidates
from mlxroles.plots.roles.families import families, family_pairs
from mlxroles.plots.roles.keys import first_keys, first_last
from mlxroles.plots.roles.layers import entropy, roles
from mlxroles.plots.roles.looks import category_looks, model_look
from mlxroles.plots.roles.models import differences
from mlxroles.plots.roles.subject import Subject
from mlxroles.roles.correlate import Profile, correlate
from mlxroles.roles.document import build, contrast_of
from mlxroles.roles.table import Reading

PER_MODEL = [
    "entropy", "heads", "first_keys", "violins", "contrasts",
    "top_heads", "first_last", "confounder", "roles",
]  # fmt: skip
PER_DOCUMENT = ["comparison", "differences", "candidates"]


@pytest.fixture(autouse=True)
def styled():
    with style():
        yield


def made(tables, **reading):
    """The document of the tables, with few resamples."""
    contrast, _ = contrast_of(next(iter(tables.values())).categories)
    doc = build(
        tables,
        reading=Reading(**reading),
        contrast=contrast,
        n_resamples=200,
        n_permutations=200,
    )
    return doc | {"display": "Tiny", "run_id": "0123abcd", "versions": {"mlxroles": "0.1.0"}}


@pytest.fixture(scope="module")
def tables():
    return random_tables(3, layers=5, heads=7, per_category=8, effect=0.8)


@pytest.fixture(scope="module")
def doc(tables):
    return made(tables)


@pytest.fixture(scope="module")
def figures(doc, tables):
    with style():
        return dict(drawn(doc, tables))


def panels(figure):
    return [axes for sub in figure.subfigs for axes in sub.axes if axes.get_visible()]


def texts(figure):
    """Everything written in the figure, tick labels included."""
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    for sub in figure.subfigs:
        found.append(sub.get_suptitle())
        found += [text.get_text() for legend in sub.legends for text in legend.get_texts()]
    for axes in panels(figure):
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        found += [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return found


def line(axes, name):
    """The curve of this name, with every point."""
    return next(
        each for each in axes.lines if each.get_label() == name and len(each.get_xdata()) > 0
    )


def marked(axes, values):
    """Face colours of the marked points of a curve, by position."""
    found = {}
    for each in axes.lines:
        if each.get_linestyle() == "None" and each.get_marker() != "None":
            for x, y in zip(each.get_xdata(), each.get_ydata(), strict=True):
                if y == pytest.approx(values[int(x)]):
                    found[int(x)] = each.get_markerfacecolor(), each.get_markeredgecolor()
    return found


def laid_out(doc, tables):
    """Names of the figures, each worked out up to what a file would hold."""
    found = []
    for name, figure in drawn(doc, tables):
        figure.draw_without_rendering()
        found.append(name)
    return found


def test_all_figures_come_as_png_and_svg_and_repeat_to_the_byte(doc, tables, tmp_path):
    first = role_figures(doc, tables, tmp_path / "a" / "figures")
    names = [f"{name}_{model}" for model in ("base", "instruct") for name in PER_MODEL]
    names += PER_DOCUMENT
    assert list(first) == [each for name in names for each in (name, f"{name}_svg")]
    assert sorted(path.name for path in (tmp_path / "a" / "figures").iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    )
    for name, path in first.items():
        if name.endswith("_svg"):
            ET.parse(path)
        else:
            assert Path(path).read_bytes().startswith(b"\x89PNG")
    read_back = json.loads(json.dumps(doc)) | {"models": ["instruct"]}
    again = role_figures(read_back, tables, tmp_path / "b")
    assert len(again) == 2 * (len(PER_MODEL) + 2)
    for name, path in again.items():
        assert Path(path).read_bytes() == Path(first[name]).read_bytes()


def test_the_entropies_are_those_of_a_plain_loop_with_bands_and_the_uniform_level(figures, tables):
    table = tables["instruct"]
    axes = panels(figures["entropy_instruct"])[0]
    assert axes.get_ylabel() == "entropy (nats)"
    expected = {}
    for name in CATEGORIES:
        rows, uniform = [], []
        for i, category in enumerate(table.category):
            if category == name:
                size = table.length[i]
                rows.append(table.entropy[i, :, :, :size].mean(axis=(1, 2)))
                uniform.append(np.mean([math.log(q + 1) for q in range(size)]))
        curve = line(axes, name)
        np.testing.assert_allclose(curve.get_ydata(), np.mean(rows, axis=0), rtol=1e-5)
        color = category_looks(CATEGORIES)[name].color
        expected[name] = np.mean(uniform)
        faces = {tuple(each.get_facecolor()[0]): each for each in axes.collections}
        band = faces[to_rgba(color, 0.16)]
        box = band.get_datalim(axes.transData)
        assert box.width == 4
        assert box.height > 0.02
    ends = min(expected.values()), max(expected.values())
    assert (
        axes.get_title("right") == f"uniform attention: {ends[0]:.2f} to {ends[1]:.2f}, not shown"
    )


def test_a_uniform_level_near_the_entropies_is_drawn_and_a_far_one_only_told(doc):
    altered = json.loads(json.dumps(doc))
    altered["null"]["raw"]["category"] = dict.fromkeys(CATEGORIES, 1.0)
    names = altered["raw"]["models"]["instruct"]["category"].values()
    for at, found in enumerate(names):
        found["value"] = [0.6 + 0.1 * layer + 0.02 * at for layer in range(5)]
        found["ci"] = [[value - 0.05, value + 0.05] for value in found["value"]]
    axes = panels(entropy(Subject(altered, "instruct", None)))[0]
    assert axes.get_title("right") == ""
    assert sum(set(each.get_ydata()) == {1.0} for each in axes.lines) == len(CATEGORIES)
    altered["null"]["raw"]["category"] = dict.fromkeys(CATEGORIES, 2.0)
    axes = panels(entropy(Subject(altered, "instruct", None)))[0]
    assert axes.get_title("right") == "uniform attention: 2.00, not shown"
    assert axes.get_ylim()[1] < 1.5


def test_the_maps_of_heads_show_differences_of_normalised_entropy(figures, doc, tables):
    table = tables["base"]
    sums = {name: np.zeros((5, 7)) for name in CATEGORIES}
    for i, category in enumerate(table.category):
        for query in range(1, table.length[i]):
            share = table.entropy[i, :, :, query] / math.log(query + 1)
            sums[category] += share / (table.length[i] - 1)
    means = {name: total / table.category.count(name) for name, total in sums.items()}
    figure = figures["heads_base"]
    for axes, other in zip(panels(figure), ("neutral", "confounder"), strict=False):
        assert axes.get_title(loc="left") == f"self_referent − {other}"
        grid = axes.images[0].get_array()
        np.testing.assert_allclose(grid, means["self_referent"] - means[other], atol=1e-6)
        low, high = axes.images[0].get_clim()
        assert low == -high
        assert axes.images[0].get_cmap().name == "PuOr_r"
    null = doc["null"]["raw"]["category"]
    assert any(
        f"({null['self_referent'] - null['neutral']:+.3f} and " in text for text in texts(figure)
    )


def test_the_top_heads_are_the_three_largest_of_every_layer(figures, tables):
    grid = np.array(panels(figures["heads_instruct"])[1].images[0].get_array())
    axes, bars, *_ = panels(figures["top_heads_instruct"])
    shown = {(int(y), int(x)) for x, y in axes.collections[0].get_offsets()}
    expected = {
        (row, head)
        for row, values in enumerate(np.abs(grid))
        for head in sorted(range(7), key=lambda head: -values[head])[:3]
    }
    assert shown == expected
    best = max(expected, key=lambda cell: abs(grid[cell]))
    assert bars.get_yticklabels()[0].get_text() == f"layer {best[0]}, head {best[1]}"
    assert bars.patches[0].get_width() == pytest.approx(grid[best])


def test_the_weight_on_the_first_keys_is_a_sum_over_queries_that_see_more(figures, tables):
    table = tables["base"]
    axes = panels(figures["first_keys_base"])[2]
    assert axes.get_title(loc="left") == "layer 2"
    rows = [
        np.mean([table.first_keys[i, 2, :, q].sum(axis=-1) for q in range(3, table.length[i])], 0)
        for i, category in enumerate(table.category)
        if category == "neutral" and table.length[i] > 3
    ]
    np.testing.assert_allclose(line(axes, "neutral").get_ydata(), np.mean(rows, 0), rtol=1e-5)
    assert axes.get_ylim() == (-0.03, 1.03)


def test_many_layers_give_eight_panels_from_the_first_to_the_last_that_exist():
    tables = random_tables(1, layers=31, heads=2, per_category=2)
    figure = first_keys(Subject(made({"model": tables["base"]}), "model", tables["base"]))
    titles = [axes.get_title(loc="left") for axes in panels(figure)]
    assert titles == [f"layer {layer}" for layer in (0, 4, 9, 13, 17, 21, 26, 30)]


def test_the_violins_are_of_the_smallest_p_and_hold_every_prompt(figures, doc, tables):
    figure = figures["violins_base"]
    top = doc["heads"]["what"]["base"]["normalised"]["top"][:6]
    shown = panels(figure)
    assert len(shown) == 6
    assert [row["p"] for row in top] == sorted(row["p"] for row in top)
    table = tables["base"]
    for axes, row in zip(shown, top, strict=True):
        assert axes.get_title(loc="left").startswith(
            f"layer {row['layer']}, head {row['head']}\n"
            f"d = {row['d']:+.2f} [{row['d_low']:+.2f}, {row['d_high']:+.2f}], q = "
        )
        values = table.entropy[:, row["layer"], row["head"]]
        for name in CATEGORIES:
            expected = [
                np.mean([values[i, q] / math.log(q + 1) for q in range(1, table.length[i])])
                for i in table.members(name)
            ]
            np.testing.assert_allclose(line(axes, name).get_ydata(), expected, rtol=1e-5)
    assert "Chosen out of 35 heads" in " ".join(texts(figure))


def test_the_contrasts_and_metrics_are_the_documents_rows(figures, doc):
    found = doc["raw"]["models"]["instruct"]
    axes = panels(figures["contrasts_instruct"])[0]
    for name, key in (
        ("self_referent − neutral", "reference_minus_focus"),
        ("self_referent − confounder", "confounder_minus_focus"),
    ):
        turned = [-value for value in found["contrast"][key]["value"]]
        assert list(line(axes, name).get_ydata()) == turned
    for scale, axes in zip(("raw", "normalised"), panels(figures["roles_instruct"]), strict=True):
        values = doc[scale]["models"]["instruct"]["rfc"]["ratio_of_means"]["value"]
        assert values in [list(each.get_ydata()) for each in axes.lines]
        low, high = axes.get_ylim()
        assert low < 0 < high
    level = doc["null"]["raw"]["rsi"]
    raw = panels(figures["roles_instruct"])[0]
    assert level in [each.get_ydata()[0] for each in raw.lines if len(set(each.get_ydata())) == 1]


def test_marks_are_the_flags_of_the_document_whatever_q_says(doc):
    altered = json.loads(json.dumps(doc))
    test = altered["raw"]["difference"]["rfc_test"]
    test["q"] = [0.5, 0.5, 0.001, 0.001, None]
    test["significant"] = [True, True, False, False, True]
    test["holds_at_equal_length"] = [False, True, False, False, False]
    test["reverses_at_equal_length"] = [False, False, False, False, True]
    figure = differences(altered)
    values = doc["raw"]["difference"]["rfc"]["ratio_of_means"]["value"]
    axes = panels(figure)[0]
    blue, ink = canvas.BLUE, canvas.INK
    assert marked(axes, values) == {
        0: (blue, blue), 1: (blue, ink), 2: ("white", blue), 3: ("white", blue), 4: (blue, ink)
    }  # fmt: skip
    half = [each for each in axes.lines if each.get_fillstyle() == "left" and len(each.get_xdata())]
    assert [list(each.get_xdata()) for each in half] == [[4.0]]
    said = texts(figure)
    assert "holds at equal prompt length" in said
    assert "reverses at equal prompt length" in said
    test["reverses_at_equal_length"] = [False] * 5
    assert "reverses at equal prompt length" not in texts(differences(altered))


def test_the_comparison_shows_both_models_and_the_null(figures, doc):
    axes = panels(figures["comparison"])
    assert [each.get_ylabel() for each in axes] == ["RFC", "", "RSI", ""]
    for row, metric in enumerate(("rfc", "rsi")):
        for column, scale in enumerate(("raw", "normalised")):
            found = axes[2 * row + column]
            for model in ("base", "instruct"):
                values = doc[scale]["models"][model][metric]["ratio_of_means"]["value"]
                color = model_look(model).color
                own = [list(each.get_ydata()) for each in found.lines if each.get_color() == color]
                assert values in own
                flags = doc[scale]["models"][model][f"{metric}_test"]["significant"]
                faces = {at: face for at, (face, _) in marked(found, values).items()}
                assert [faces[at] != "white" for at in sorted(faces)] == flags
            levels = [each.get_ydata()[0] for each in found.lines if len(each.get_ydata())]
            assert doc["null"][scale][metric] in levels


def test_candidates_beyond_the_null_are_told_from_those_within(doc):
    altered = json.loads(json.dumps(doc))
    rows = altered["candidates"]["rows"]
    for at, row in enumerate(rows):
        row["p_max"] = 0.02 if at < 2 else 0.4
    rows.reverse()
    figure = candidates(altered)
    left, right = panels(figure)
    assert (
        left.get_yticklabels()[0].get_text()
        == f"layer {rows[-1]['layer']}, head {rows[-1]['head']}"
    )
    colors = {patch.get_y() > 1.5: patch.get_facecolor() for patch in left.patches}
    assert colors[False] == to_rgba(canvas.VERMILION) != colors[True]
    bars = {round(patch.get_y() + patch.get_height() / 2): patch for patch in left.patches}
    assert [bars[at].get_width() for at in range(len(rows))] == pytest.approx(
        [row["z_null"] for row in reversed(rows)]
    )
    numbers = [text.get_text() for text in left.texts]
    assert numbers == [*(f"{row['composite_score']:.2f}" for row in reversed(rows)), "score"]
    limit = altered["candidates"]["null"]["max_z_95"]
    assert limit in [each.get_xdata()[0] for each in left.lines]
    assert [row["did_median"] for row in reversed(rows)] in [
        list(each.get_xdata()) for each in right.lines
    ]


def test_first_and_recent_keys_leave_out_prompts_where_they_overlap(tables):
    table = tables["base"]
    short = [i for i in range(len(table.length)) if table.length[i] <= 6]
    kept = [i for i in range(len(table.length)) if table.length[i] >= 6]
    figure = first_last(Subject(made({"base": table}), "base", table))
    means = {}
    for name in ("self_referent", "neutral"):
        rows = [
            np.mean([table.recent_keys[i, :, :, q].sum(-1) for q in range(5, table.length[i])], 0)
            for i in kept
            if table.category[i] == name
        ]
        means[name] = np.mean(rows, axis=0).mean(axis=1)
        assert f"{len(rows)} {name}" in " ".join(texts(figure))
    curve = line(panels(figure)[0], "3 most recent keys")
    np.testing.assert_allclose(
        curve.get_ydata(), means["self_referent"] - means["neutral"], atol=1e-6
    )
    shortened = table.chosen(short)
    shortened = replace(shortened, length=np.minimum(shortened.length, 5))
    assert first_last(Subject(made({"base": shortened}), "base", shortened)) is None


def test_one_category_leaves_the_entropies_and_keys():
    tables = random_tables(2, layers=3, heads=2, per_category=3, categories=("only",))
    assert laid_out(made(tables), tables) == [
        "entropy_base", "first_keys_base", "entropy_instruct", "first_keys_instruct"
    ]  # fmt: skip


def test_two_categories_have_no_confounder():
    tables = random_tables(2, layers=3, heads=2, per_category=4, categories=("a", "b"))
    del tables["instruct"]
    names = laid_out(made(tables), tables)
    assert "contrasts_base" in names
    assert "roles_base" in names
    assert not [name for name in names if name.startswith(("confounder", "top_heads"))]


def test_without_tables_what_the_document_holds_is_drawn(doc):
    names = laid_out(doc, {})
    kept = ["entropy", "contrasts", "confounder", "roles"]
    assert names == [f"{n}_{m}" for m in ("base", "instruct") for n in kept] + PER_DOCUMENT


@pytest.mark.parametrize(
    "reading", [{"queries": "last"}, {"queries": "no-first", "keys": "no-bos"}]
)
def test_single_prompts_one_layer_and_missing_heads_are_drawn(reading):
    tables = random_tables(4, layers=1, heads=3, per_category=1)
    for name, table in tables.items():
        entropy = table.entropy.copy()
        entropy[:, :, 2] = np.nan
        tables[name] = replace(table, entropy=entropy, entropy_no_first=entropy)
    found = made(tables, **reading)
    assert "roles_base" in laid_out(json.loads(json.dumps(found)), tables)
    said = texts(roles(Subject(found, "base", tables["base"])))
    assert "No intervals: a category has too few prompts." in said
    assert any("last query only" in text or "without query 0" in text for text in said)


def test_no_number_at_all_draws_nothing(doc, tables):
    def erased(value):
        if isinstance(value, dict):
            return {key: erased(each) for key, each in value.items()}
        if isinstance(value, list):
            return [erased(each) for each in value]
        return None if isinstance(value, float) else value

    empty = doc | {scale: erased(doc[scale]) for scale in ("raw", "normalised", "null")}
    empty |= {"candidates": erased(doc["candidates"]) | {"rows": []}}
    nothing = {
        name: replace(
            table, entropy=np.full_like(table.entropy, np.nan), first_keys=table.first_keys
        )
        for name, table in tables.items()
    }
    assert {name.rsplit("_", 1)[0] for name in laid_out(empty, nothing)} == {
        "first_keys",
        "first_last",
    }


def test_hostile_names_are_drawn_as_they_are_without_a_warning(tmp_path, caplog):
    names = (*patch_docs.HOSTILE, "$x^" * 40, *(f"more {i}" for i in range(12)))
    tables = random_tables(5, layers=2, heads=2, per_category=2, categories=names)
    del tables["instruct"]
    doc = made(tables) | {"display": "$\\frac$\x1b" * 20, "run_id": names[4]}
    with caplog.at_level(logging.WARNING):
        paths = role_figures(doc, tables, tmp_path)
    assert not caplog.records
    assert len(paths) == 2 * len(PER_MODEL)
    for figure in dict(drawn(doc, tables)).values():
        assert all(text.replace("\n", "").isprintable() for text in texts(figure))


def test_a_model_of_any_name_makes_safe_file_names(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "save", lambda figure, png, vector: None)

    table = random_tables(5, layers=2, heads=2, per_category=2)["base"]
    named = {"../../x\x00": table}
    paths = role_figures(made(named), named, tmp_path / "in")
    assert all(Path(path).parent == tmp_path / "in" for path in paths.values())


def test_categories_keep_their_colour_and_marker():
    all_four, two = category_looks(CATEGORIES), category_looks(["third_person", "neutral"])
    assert {name: all_four[name] for name in two} == two
    assert len({look.color for look in all_four.values()}) == 4
    assert len({look.marker for look in all_four.values()}) == 4
    many = category_looks(["neutral", *map(str, range(30))])
    assert many["neutral"] == two["neutral"]
    assert len(set(many.values())) == 31


def test_compared_categories_differ_in_colour_among_however_many():
    names = tuple(f"c{i:02d}" for i in range(25))
    table = random_tables(5, layers=2, heads=2, per_category=2, categories=names)["base"]
    subject = Subject(made({"base": table}), "base", table)
    assert list(subject.looks) == list(names)
    assert len({subject.looks[name].color for name in ("c00", "c01", "c24")}) == 3


def test_a_view_leaves_far_outliers_out_and_names_them():
    values = np.array([*np.linspace(0.0, 0.1, 20), 4.06])
    series = Series("a", "#000000", "o", values)
    low, high = lines.view([series], levels=[-0.2])
    assert low < -0.2
    assert high < 0.5
    figure = canvas.new_figure(3, 2)
    axes = figure.subplots()
    canvas.layer_axis(axes, range(21))
    lines.curve(axes, range(21), series, (low, high))
    assert [text.get_text() for text in axes.texts] == ["4.06"]


def test_a_view_shows_ordinary_intervals_in_full_and_is_never_empty():
    flat = Series("a", "k", "o", np.full(9, 1.0), np.full(9, -3.0), np.full(9, 5.0))
    assert lines.view([flat]) == pytest.approx((-3.56, 5.56))
    wild = replace(flat, high=np.array([5.0] * 8 + [1e9]))
    assert lines.view([wild])[1] < 50
    nothing = Series("a", "k", "o", np.full(3, np.nan))
    assert lines.view([nothing]) == (-1.0, 1.0)
    low, high = lines.view([Series("a", "k", "o", np.array([2.0]))])
    assert low < 2.0 < high


def test_an_interval_between_gaps_is_a_bar():
    values = np.array([1.0, np.nan, 2.0, np.nan])
    series = Series("a", "#ff0000", "o", values, values - 1, values + 1, marks=[Mark.FOUND] * 4)
    axes = canvas.new_figure(3, 2).subplots()
    lines.curve(axes, range(4), series, (-1.0, 4.0))
    bars = [each for each in axes.collections if hasattr(each, "get_segments")]
    assert [segment.tolist() for segment in bars[0].get_segments()] == [
        [[0.0, 0.0], [0.0, 2.0]], [[2.0, 1.0], [2.0, 3.0]]
    ]  # fmt: skip


def test_one_huge_head_does_not_make_the_others_pale():
    grid = np.full((32, 32), 0.01)
    grid[0, 0] = -5.0
    norm, is_cut = maps.centred([grid])
    assert is_cut
    assert norm.vmax == pytest.approx(0.01)
    assert maps.centred([np.full((2, 2), np.nan)])[0].vmax == 1.0


def profile(values, wide=0.01):
    return Profile(
        tuple(range(len(values))),
        tuple(values),
        tuple((value - wide, value + wide) for value in values),
    )


@pytest.fixture
def named():
    rng = np.random.default_rng(8)
    shared = rng.normal(size=24) * 0.02
    far = shared + rng.normal(size=24) * 0.01
    far[0] = 4.06
    return {
        "llama": profile(shared),
        "qwen\x1b$": profile(far),
        "short": Profile(tuple(range(12)), tuple(rng.normal(size=12))),
    }


def test_families_are_drawn_over_relative_depth_with_outliers_named(named, tmp_path):
    document = correlate(named, "rfc")
    paths = family_figures(document, named, tmp_path / "a")
    again = family_figures(document, named, tmp_path / "b")
    assert list(paths) == ["families", "families_svg", "family_pairs", "family_pairs_svg"]
    assert all(Path(paths[n]).read_bytes() == Path(again[n]).read_bytes() for n in paths)
    del named["short"]
    figure = families(correlate(named, "rfc"), named)
    (axes,) = panels(figure)
    np.testing.assert_allclose(line(axes, "llama").get_xdata(), np.arange(24) / 23)
    assert "4.06" in texts(figure)
    assert r"qwen\x1b$" in texts(figure)
    assert axes.get_ylabel() == "RFC, instruct − base"


def test_pairs_show_the_points_that_were_correlated(named):
    document = correlate(named, "rsi")
    figure = family_pairs(document, named)
    shown = [axes for axes in panels(figure) if axes.get_xlabel()]
    for axes, pair in zip(shown, document["pairs"], strict=True):
        x, y = np.array(axes.collections[0].get_offsets()).T
        assert len(x) == pair["n_layers"]
        if not axes.texts:  # nothing was moved to the edge
            assert np.corrcoef(x, y)[0, 1] == pytest.approx(pair["pearson_r"])
        title = axes.get_title(loc="left")
        assert f"r = {pair['pearson_r']:+.2f} [" in title
        assert f"effective {pair['n_eff']:.1f}, p = " in title
        assert f"detrended r = {pair['detrended_r']:+.2f}" in title
    assert any("layer 0: " in text for text in texts(figure))


def test_a_family_alone_has_no_pairs_and_one_without_numbers_no_figure(tmp_path):
    alone = {"only": profile([0.1, 0.2, 0.3])}
    assert list(family_figures(correlate(alone, "rfc"), alone, tmp_path)) == [
        "families", "families_svg"
    ]  # fmt: skip
    nothing = {"only": Profile((0, 1), (math.nan, math.nan))}
    assert family_figures(correlate(nothing, "rfc"), nothing, tmp_path) == {}


def test_matplotlib_is_not_loaded_before_a_figure_is_asked_for():
    code = (
        "import sys; from mlxroles.plots import family_figures, role_figures; "
        "raise SystemExit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
