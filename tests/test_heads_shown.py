"""What is shown of a study of heads: figures, page and tables hold the document's own numbers."""

import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from head_docs import NAMES, head_doc
from rich.console import Console

from mlxroles.dashboard.heads_tables import heads_tables
from mlxroles.plots import canvas
from mlxroles.plots.heads import head_figures
from mlxroles.plots.heads.causal import causal
from mlxroles.plots.heads.overview import overview
from mlxroles.plots.heads.patterns import patterns as pattern_figure
from mlxroles.plots.heads.profile import profile
from mlxroles.plots.heads.scores import figure_of
from mlxroles.report.heads import board, html, rows, scores
from mlxroles.report.heads.wording import KINDS, NONE

HOSTILE = "<script>alert(1)</script>\x1b[31m$\\frac$[bold]"


@pytest.fixture(scope="module")
def pair():
    doc, patterns = head_doc()
    return json.loads(json.dumps(doc)), patterns


@pytest.fixture(scope="module")
def large():
    return head_doc(80, 64, pair=False, offsets=8)[0]


def printed(doc, width=80, **options):
    console = Console(width=width, record=True, file=io.StringIO(), **options)
    console.print(heads_tables(doc))
    return console.export_text()


class Page(HTMLParser):
    """Cells of the maps of a page, row by row, and what other tags there are."""

    def __init__(self, text):
        super().__init__()
        self.boards, self.tags, self.cell, self.is_board = [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self.is_board = "board" in (given.get("class") or "")
            self.boards += [[]] * self.is_board
        if tag == "tr" and self.is_board:
            self.boards[-1] = [*self.boards[-1], []]
        self.cell = None
        if tag == "td" and self.is_board:
            self.cell = [given, ""]
            self.boards[-1][-1].append(self.cell)

    def handle_endtag(self, tag):
        self.cell = None
        if tag == "table":
            self.is_board = False

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[1] += data.strip()


# --- numbers ----------------------------------------------------------------------------------


def test_parsing_changes_no_number(pair):
    doc, _ = pair
    parsed = scores.parsed(doc)
    for side in scores.sides(doc):
        for name in NAMES:
            for key in ("score", "low", "high", "uniform", "control", "marked"):
                given = doc["models"][side]["detectors"][name][key]
                plain = np.array([[np.nan if v is None else v for v in row] for row in given])
                for one in (doc, parsed):
                    assert np.array_equal(scores.grid(one, side, name, key), plain, equal_nan=True)
        assert scores.classes(parsed, side) == doc["models"][side]["classes"]
    assert parsed is not doc
    assert isinstance(doc["models"]["base"]["detectors"]["self"]["score"], list)


def test_heads_of_a_kind_are_those_of_the_document(pair):
    doc, _ = pair
    for side in scores.sides(doc):
        known = np.array(doc["models"][side]["classes"])
        counted = scores.counts(doc, side)
        assert counted == {name: int((known == name).sum()) for name in counted}
        assert sum(counted.values()) == 48
        for name in counted:
            own = scores.of_kind(doc, side, name)
            assert sorted(own) == [tuple(at) for at in np.argwhere(known == name).tolist()]
            values = [scores.grid(doc, side, name)[at] for at in own] if name != NONE else []
            assert values == sorted(values, key=lambda v: -abs(v))
            every = scores.of_class(doc, side, name)
            also = [
                (i, j)
                for i, row in enumerate(doc["models"][side]["also"])
                for j, cell in enumerate(row)
                if name in cell
            ]
            assert set(every) == {*own, *also}


def test_strength_is_the_weight_or_a_share_of_the_largest_score(pair):
    doc, _ = pair
    copies = [np.array(doc["models"][s]["detectors"]["copying"]["score"]) for s in doc["models"]]
    found = scores.strength(doc, "instruct")
    for i, row in enumerate(doc["models"]["instruct"]["classes"]):
        for j, name in enumerate(row):
            if name == NONE:
                assert np.isnan(found[i, j])
                continue
            score = doc["models"]["instruct"]["detectors"][name]["score"][i][j]
            if name == "copying":
                assert found[i, j] == pytest.approx(abs(score) / np.abs(copies).max())
            elif not name.startswith(("previous", "duplicate")):
                assert found[i, j] == score


def test_scores_made_of_several_maps(pair):
    doc, _ = pair
    raw, ratio = scores.maps(doc, "base", "delimiter")
    assert np.allclose(ratio.values, raw.values / 0.03)
    ordinal, control, difference = scores.maps(doc, "base", "successor")
    assert np.allclose(difference.values, ordinal.values - control.values)
    assert difference.look == "signed"
    weight, copies = scores.maps(doc, "base", "s_inhibition")
    assert weight.threshold == 0.1
    assert np.array_equal(copies.values, scores.grid(doc, "base", "copying"))
    for name in KINDS.keys() - {"delimiter", "successor", "s_inhibition"}:
        assert len(scores.maps(doc, "base", name)) == 1


def test_the_peak_offset_is_that_of_the_mean_profile(pair):
    doc, _ = pair
    mean = np.array(doc["models"]["base"]["profile"]["mean"])
    assert np.array_equal(scores.peak_offset(doc, "base"), mean[..., 1:].argmax(axis=-1) + 1)


# --- figures ----------------------------------------------------------------------------------


def test_maps_and_dots_hold_the_scores(pair):
    doc, _ = pair
    with canvas.style():
        figure = figure_of(doc, "induction")
    maps = [axes for axes in figure.axes if axes.images]
    wanted = [scores.grid(doc, side, "induction") for side in ("base", "instruct")]
    wanted.append(scores.difference(doc, "induction"))
    for axes, grid in zip(maps, wanted, strict=True):
        assert np.allclose(np.asarray(axes.images[0].get_array()), grid)
    texts = {(t.get_position()): t.get_text() for t in maps[0].texts}
    assert {(h, i): scores.short(wanted[0][i, h]) for i in range(6) for h in range(8)} == texts
    low, high = maps[2].images[0].get_clim()
    assert low == -high
    dots = {line.get_label(): line.get_xdata() for line in figure.axes[-1].lines}
    listed = figure.axes[-1].get_yticklabels()[::-1]
    places = [re.fullmatch(r"L(\d+)H(\d+)", text.get_text()).groups() for text in listed]
    for side, grid in zip(("base", "instruct"), wanted, strict=False):
        assert np.allclose(dots[side], [grid[int(i), int(h)] for i, h in places])


def test_a_map_without_a_head_looks_like_one(pair):
    doc, _ = pair
    doc = copy.deepcopy(doc)
    weak = np.full((6, 8), 0.01)
    for side in doc["models"]:
        doc["models"][side]["detectors"]["induction"]["score"] = weak.tolist()
    with canvas.style():
        figure = figure_of(doc, "induction")
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0.0, 0.3)


def test_values_are_left_out_of_small_cells(large):
    with canvas.style():
        figure = figure_of(large, "previous")
    assert not figure.axes[0].texts
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (80, 64)


def test_tiles_of_the_overview_are_the_kinds(pair):
    from matplotlib.colors import to_hex

    doc, _ = pair
    with canvas.style():
        figure = overview(doc)
    axes = figure.axes[0]
    letters = {t.get_position(): t.get_text() for t in axes.texts}
    known = doc["models"]["base"]["classes"]
    wanted = {
        (h, i): KINDS[name].letter
        for i, row in enumerate(known)
        for h, name in enumerate(row)
        if name != NONE
    }
    assert letters == wanted
    colors = [to_hex(c) for c in axes.collections[0].get_facecolors()]
    flat = [name for row in known for name in row if name != NONE]
    assert sorted(c for c in colors if c != "#eceff1") == sorted(KINDS[n].color for n in flat)


def test_profiles_patterns_and_checks_hold_their_numbers(pair):
    doc, patterns = pair
    with canvas.style():
        lines = profile(doc).axes[0].lines
        mean = scores.profile(doc, "base")[1]
        named = {line.get_label().partition(":")[0]: line.get_ydata() for line in lines}
        assert np.allclose(named["L1H4"], mean[1, 4])
        shown = pattern_figure(doc, "base", patterns["base"])
        repeated = next(a for a in shown.axes if a.get_title("left").startswith("L2H5"))
        weights = np.asarray(repeated.images[0].get_array())
        assert np.allclose(np.tril(weights), np.tril(patterns["base"]["L2H5"]))
        reds = [line for line in repeated.lines if line.get_color() == canvas.RED]
        assert [line.get_ydata()[0] for line in reds[:1]] == [31.5]
        bars = causal(doc).axes[0].patches
        wanted = [r["change"] for r in doc["causal"]["base"] if r["measure"] == "gain"]
        assert [bar.get_width() for bar in bars] == pytest.approx(wanted)
        assert pattern_figure(doc, "base", {}) is None
        assert causal(doc | {"causal": {}}) is None


def test_figures_are_the_same_every_time_and_stand_any_text(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "_DPI", 40)
    doc, patterns = head_doc(2, 3, pair=False, offsets=4, planted={(0, 1): ("previous", 0.9)})
    doc |= {"display": HOSTILE, "sentence": HOSTILE, "causal": {}, "notes": [HOSTILE]}
    model = doc["models"]["model"]
    model["detectors"] = dict.fromkeys(("previous", HOSTILE), model["detectors"]["previous"])
    model["profile"] = {}
    model["classes"][1][1] = HOSTILE
    doc["examples"]["model"] = {HOSTILE: {"set": HOSTILE, "tokens": [HOSTILE] * 4}}
    patterns = {"model": {HOSTILE: np.tril(np.ones((4, 4)))}}
    first = head_figures(doc, patterns, tmp_path / "a")
    assert first.keys() >= {"overview", "previous", "patterns_model", "patterns_model_svg"}
    few = copy.deepcopy(doc) | {"examples": {}}
    few["models"]["model"]["detectors"].pop(HOSTILE)
    second = head_figures(few, {}, tmp_path / "b")
    assert second.keys() == {"overview", "overview_svg", "previous", "previous_svg"}
    for name in ("previous", "previous_svg"):
        assert Path(first[name]).read_bytes() == Path(second[name]).read_bytes()
    assert "<script" not in Path(first["overview_svg"]).read_text(encoding="utf-8")
    text = html(doc, first)
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\x1b[31m" not in printed(doc)
    assert "<script>" in printed(doc)


# --- the page ---------------------------------------------------------------------------------


def test_the_page_holds_every_kind_and_score(pair):
    doc, _ = pair
    page = Page(html(doc, {}))
    kinds = page.boards[0][:-1][::-1]  # layers upwards; the last row are the heads' numbers
    for i, row in enumerate(doc["models"]["base"]["classes"]):
        for (given, text), name in zip(kinds[i], row, strict=True):
            assert text == ("" if name == NONE else KINDS[name].letter)
            if name != NONE:
                assert board.style_of(name) in given["class"]
                at = i, kinds[i].index([given, text])
                assert rows.score_text(doc, "base", name, at) in given["data-t"]
    assert {t for t, given in page.tags if given.get("href", "").startswith("http")} == set()
    ids = [given["id"] for tag, given in page.tags if tag == "section"]
    found = {c for s in doc["models"].values() for row in s["classes"] for c in row} - {NONE}
    assert {board.style_of(name) for name in found} <= set(ids)
    links = {given["href"][1:] for tag, given in page.tags if tag == "a"}
    assert links <= set(ids)
    told = [[[given.get("data-t") for given, _ in row] for row in b[:-1]] for b in page.boards]
    wanted = np.round(scores.grid(doc, "base", "induction"), 3)[::-1]
    assert [[f"{v:.3f}" for v in row] for row in wanted] in told


def test_a_large_model_has_a_small_page(large, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"\0" * 400_000)
    figures = {name: str(path) for name in [*NAMES, "profile", "causal", "patterns_model"]}
    text = html(large, figures)
    assert len(text) < 3_000_000
    assert "Too large for this page" in text
    assert len(Page(text).boards[0]) == 81


def test_what_was_not_found_is_said(pair):
    doc, _ = pair
    grid = rows.nearest_grid(doc)
    marked = {
        (name, side): scores.marked(doc, side, name).any()
        for name in NAMES
        for side in doc["models"]
    }
    assert len(grid.rows) == sum(not found for found in marked.values())
    at = rows.causal_sentence(doc["causal"]["base"][0], "base")
    assert at.startswith(
        "base: zeroing L0H1, L1H4 moves the repetition gain by -1.90 [-1.95, -1.84]"
    )
    assert "20 random sets" in at
    assert at.endswith("confirmed.")


# --- the terminal -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit(pair, large, width):
    for doc in (pair[0], large):
        lines = printed(doc, width).splitlines()
        assert max(map(len, lines)) <= width
    assert any(
        line.startswith(" 5  L") or " 5 " in line[:4] for line in printed(pair[0]).splitlines()
    )


def test_a_terminal_shows_the_kinds_and_their_numbers(pair):
    doc, _ = pair
    text = printed(doc, 120)
    for side in doc["models"]:
        for at in scores.of_kind(doc, side, "previous"):
            assert rows.score_text(doc, side, "previous", at) in text
    colored = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    colored.print(heads_tables(doc))
    assert "48;2;63;144;218" in colored.file.getvalue()  # the blue of previous-token heads


def test_layers_without_attention_are_left_out(pair, tmp_path):
    doc = copy.deepcopy(pair[0])
    for model in doc["models"].values():
        for values in model["detectors"].values():
            for key in ("score", "low", "high", "uniform", "control"):
                values[key][2] = [None] * 8
            values["marked"][2] = [False] * 8
        model["classes"][2] = [None] * 8
        model["profile"] = {k: v for k, v in model["profile"].items() if k == "offsets"}
    for values in doc["difference"].values():
        values["value"][2] = values["low"][2] = values["high"][2] = [None] * 8
    assert not scores.is_seen(doc, "base")[2].any()
    assert sum(scores.counts(doc, "base").values()) == 40
    cells = Page(html(doc, {})).boards[0][3]
    assert [given["class"] for given, _ in cells] == ["x"] * 8
    assert " 2                          " in printed(doc)
    with canvas.style():
        grid = figure_of(doc, "self").axes[0].images[0].get_array()
        assert np.ma.getmaskarray(grid)[2].all()
        assert profile(doc) is None


def test_a_model_without_attention_is_no_error(tmp_path):
    doc, _ = head_doc(2, 1, pair=False, offsets=2, planted={})
    doc["models"]["model"] |= {"detectors": {}, "classes": [[], []], "n_heads": 0, "profile": {}}
    doc |= {"examples": {}, "causal": {}}
    assert head_figures(doc, {}, tmp_path) == {}
    assert "What each head does" in html(doc, {})
    assert printed(doc)
