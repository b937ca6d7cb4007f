"""Figures of patch documents: which are drawn, what they say, that any text and number is fine."""

import logging
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import patch_docs
import pytest
from matplotlib.figure import Figure

from mlxroles.plots import patch_figures
from mlxroles.plots.canvas import label, save, style
from mlxroles.plots.curves import effects, recovery
from mlxroles.plots.grids import parts
from mlxroles.plots.tokens import top_tokens


@pytest.fixture(autouse=True)
def styled():
    with style():
        yield


def texts(figure: Figure) -> list[str]:
    """Everything written in the figure, tick labels included."""
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        found += [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        if axes.get_legend() is not None:
            found += [text.get_text() for text in axes.get_legend().get_texts()]
    return found


def drawn(figure: Figure | None, folder: Path) -> bytes:
    assert figure is not None
    save(figure, folder / "a.png", folder / "a.svg")
    ET.parse(folder / "a.svg")
    return (folder / "a.png").read_bytes()


def lines(figure: Figure, name: str) -> list[list[float]]:
    return [
        list(line.get_ydata()) for axes in figure.axes for line in axes.lines
        if str(line.get_label()).startswith(name)
    ]  # fmt: skip


def test_all_figures_of_a_run_come_as_png_and_svg_and_repeat_to_the_byte(tmp_path):
    doc = patch_docs.patch_doc(2, prompts=2)
    first, second = (patch_figures(doc, tmp_path / name / "figures") for name in "ab")
    assert list(first) == [
        "effects",
        "effects_svg",
        "recovery",
        "recovery_svg",
        "top_tokens",
        "top_tokens_svg",
    ]
    for name, path in first.items():
        data = Path(path).read_bytes()
        assert data == Path(second[name]).read_bytes()
        assert data.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG")
        assert b"2026" not in data[:2000]


def test_the_effects_show_both_baselines_and_every_control():
    figure = effects(patch_docs.patch_doc(6))
    said = texts(figure)
    assert figure.get_suptitle() == (
        "Probability after patching: Tiny (6 layers)\nresid_post at all positions, prompt notepad0"
    )
    assert "run 0123abcd  ·  mlxroles 0.1.0" in figure.get_supxlabel()
    for expected in (
        "instruct → base",
        "base → instruct",
        "P(<tool_call>)",
        "instruct, unpatched: 0.930",
        "base, unpatched: 0.004",
        "control: other prompt",
        "control: random",
        "patched with instruct",
    ):
        assert expected in said
    for axes in figure.axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list("012345")
    doc = patch_docs.patch_doc(6)
    assert lines(figure, "patched with")[0] == [
        doc["instruct_to_base"][str(layer)]["tool_call_prob"] for layer in range(6)
    ]


def test_the_recovery_names_the_first_half_with_its_interval():
    said = texts(recovery(patch_docs.patch_doc(6, prompts=4)))
    assert "layer 3: R = 0.65\n[0.57, 0.73]" in said
    assert "recovery R (log-odds)" in said
    assert "increment" in said


def test_bands_are_drawn_only_for_intervals():
    bands = [len(effects(patch_docs.patch_doc(3, prompts=n)).axes[0].collections) for n in (1, 4)]
    assert bands == [0, 1]


def test_equal_baselines_are_named_instead_of_a_layer(tmp_path):
    doc = patch_docs.patch_doc(3, baselines=(0.5, 0.51))
    assert any("hardly differ" in text for text in texts(recovery(doc)))
    doc = patch_docs.patch_doc(3, baselines=(0.5, 0.5))
    assert recovery(doc) is None
    drawn(effects(doc), tmp_path)


def test_missing_numbers_leave_a_gap_and_a_mark(tmp_path):
    doc = patch_docs.patch_doc(4)
    doc["instruct_to_base"]["2"] |= {"tool_call_prob": None, "recovery": None, "top5": []}
    doc["base_to_instruct"] = {}
    figure = effects(doc)
    (values,) = lines(figure, "patched with")
    assert math.isnan(values[2])
    assert "no number" in texts(figure)
    assert len(figure.axes) == 1
    for each in (figure, recovery(doc), top_tokens(doc)):
        drawn(each, tmp_path)


def test_recoveries_far_outside_stay_in_the_view(tmp_path):
    doc = patch_docs.patch_doc(3)
    doc["instruct_to_base"]["0"]["recovery"] = -1e6
    doc["instruct_to_base"]["2"] |= {"recovery": 57.25, "increment": 60.0}
    figure = recovery(doc)
    assert figure.axes[0].get_ylim() == pytest.approx((-1.08, 2.08))
    assert {"-1e+06", "57.2"} <= set(texts(figure))
    drawn(figure, tmp_path)


def test_tiny_probabilities_fill_the_panel():
    figure = effects(patch_docs.patch_doc(3, baselines=(2e-6, 1e-7)))
    assert figure.axes[0].get_ylim()[1] == pytest.approx(2.4e-6)


def test_a_single_layer_has_room(tmp_path):
    doc = patch_docs.patch_doc(32, layers=[7], prompts=2)
    for figure in (effects(doc), recovery(doc)):
        low, high = figure.axes[0].get_xlim()
        assert low < 7 < high
        assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["7"]
    drawn(recovery(doc), tmp_path)


def test_the_ticks_of_many_layers_are_whole_numbers(tmp_path):
    doc = patch_docs.patch_doc(80)
    figure = recovery(doc)
    drawn(figure, tmp_path)
    assert all(tick == int(tick) for tick in figure.axes[2].get_xticks())


def test_hostile_text_is_drawn_as_it_is_without_a_warning(tmp_path, caplog):
    doc = patch_docs.patch_doc(
        2,
        tokens=patch_docs.HOSTILE,
        display="".join(patch_docs.HOSTILE[2:6]),
        headline=patch_docs.HOSTILE[2],
        run_id=patch_docs.HOSTILE[1],
        site=patch_docs.HOSTILE[6],
        controls=(patch_docs.HOSTILE[7], "$x^"),
        versions={"$a$": "\ud800"},
    )
    doc["prompts"][0]["id"] = patch_docs.HOSTILE[4]
    with caplog.at_level(logging.WARNING):
        paths = patch_figures(doc, tmp_path)
    assert len(paths) == 6
    assert not caplog.records
    said = texts(top_tokens(doc))
    assert "$\\frac$" in said
    assert all(text.replace("\n", "").isprintable() for text in said)


def test_a_label_holds_only_what_can_be_drawn():
    assert label("a\x1b\ud800$x$ é→") == r"a\x1b\ud800$x$ é→"
    assert label("\U000e1000") == r"\U000e1000"
    assert len(label("x" * 99, 10)) == 10


@pytest.mark.parametrize(("axis", "count"), [("by_head", 8), ("by_position", 40), ("by_head", 1)])
def test_heads_and_positions_are_maps_of_layer_by_part(axis, count, tmp_path):
    doc = patch_docs.by_part(axis, count, 3)
    doc["instruct_to_base"]["1"][axis]["0"]["recovery"] = None
    figure = parts(doc, axis)
    drawn(figure, tmp_path)
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (3, count)
    assert bool(image.get_array().mask[1, 0])
    low, high = image.get_clim()
    assert low == -high
    assert effects(doc) is None
    assert recovery(doc) is None
    assert top_tokens(doc) is None


def test_the_map_comes_first_and_lines_say_which_part_stands_for_a_layer(tmp_path):
    doc = patch_docs.by_part("by_head", 3, 2)
    for direction in ("instruct_to_base", "base_to_instruct"):
        for values in doc[direction].values():
            values |= values["by_head"]["2"] | {"strongest": 2}
    found = patch_figures(doc, tmp_path)
    assert [name for name in found if not name.endswith("_svg")] == ["heads", "top_tokens"]
    said = texts(top_tokens(doc))
    assert "layer, head patched" in said
    assert "1, 2" in said


def test_of_many_positions_the_strongest_are_drawn_with_their_tokens():
    doc = patch_docs.by_part("by_position", 60, 2) | {"tokens": [f"t{at}" for at in range(60)]}
    for direction in ("instruct_to_base", "base_to_instruct"):
        for values in doc[direction].values():
            for at, each in values["by_position"].items():
                each["recovery"] = {"59": 0.9, "57": 0.04}.get(at, 1e-4)
    figure = parts(doc, "by_position")
    assert [axes.images[0].get_array().shape for axes in figure.axes[:2]] == [(2, 8), (2, 8)]
    said = texts(figure)
    assert "t57 57" in said
    assert "the 8 strongest of 60 positions; others: |R| up to 0.0001" in said
    assert "recovery R (logarithmic beyond 0.009)" in said
    even = parts(patch_docs.by_part("by_position", 40, 2), "by_position")
    assert "position" in texts(even)
    assert "recovery R" in texts(even)


def test_only_the_stream_has_increments():
    assert "increment" in texts(recovery(patch_docs.patch_doc(3)))
    assert "increment" not in texts(recovery(patch_docs.patch_doc(3, site="attn_out")))


def test_a_map_without_recovery_shows_the_effect():
    doc = patch_docs.by_part("by_head", 2, 2)
    for direction in ("instruct_to_base", "base_to_instruct"):
        for values in doc[direction].values():
            for each in values["by_head"].values():
                each["recovery"] = None
    assert "effect on the probability" in texts(parts(doc, "by_head"))


def test_matplotlib_is_not_loaded_before_a_figure_is_asked_for():
    code = "import sys, mlxroles.plots; raise SystemExit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
