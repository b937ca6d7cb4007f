"""What a run on role metrics shows in a terminal: curves, tables, marks, and the finding."""

import csv
import io

import patch_docs
import pytest
from rich.console import Console
from rich.measure import Measurement
from role_docs import built, candidate, candidates, role_doc, set_track
from told import printed

from mlxroles.dashboard import (
    candidates_table,
    comparison_table,
    correlation_table,
    paragraphs,
    roles_table,
)
from mlxroles.dashboard.adapt import Screen, grid_table
from mlxroles.dashboard.sparks import sparks
from mlxroles.report import sentence
from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import findings
from mlxroles.report.rows import Grid
from mlxroles.roles import compare, correlate

HOSTILE = "".join(patch_docs.HOSTILE)


def printed_ascii(renderable, width=80):
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as file:
        Console(file=file, width=width, color_system=None, _environ={}).print(renderable)
        file.flush()
        return file.buffer.getvalue().decode("ascii")


def words(text):
    """The text without the breaks that a narrow terminal makes."""
    return " ".join(text.split())


def curves(doc, metric="rfc", width=80):
    screen = Screen(width, is_ascii=False)
    return [line.plain for line in sparks(findings(doc), metric, screen)]


# ---- curves over layers


def test_values_of_all_models_and_scales_share_one_scale():
    doc = role_doc()
    doc["null"]["raw"]["rfc"] = 0.35
    set_track(doc, ["raw"], "base", "rfc", [0.0, 0.1, 0.35, 0.7])
    set_track(doc, ["normalised"], "instruct", "rfc", [0.7, 0.35, 0.0, -0.1])
    lines = curves(doc)
    assert lines[0] == "RFC over layers  raw                   length-normalised"
    assert lines[1] == "base             ▂▃▅█ +0.287  0/0      ▂▂▂▂ +0.000  0/0"
    assert lines[2] == "instruct         ▂▂▂▂ +0.000  0/0      █▅▂▁ +0.237  0/0"
    assert lines[4] == "▁ -0.100 to █ +0.700 · 0 is ▂ · uniform attention +0.350 raw is ▅"


def test_layers_without_a_number_are_dots_and_equal_values_lie_in_the_middle():
    doc = role_doc()
    doc["null"]["raw"]["rfc"] = 0.0
    doc["raw"]["models"]["base"]["rfc"]["ratio_of_means"]["value"][1] = None
    assert curves(doc)[1].startswith("base             ▅·▅▅ +0.000")


def test_scales_that_do_not_fit_side_by_side_stand_below_each_other():
    lines = curves(role_doc(layers=32), width=80)
    assert [line.split()[-1] for line in lines[::4][:2]] == ["raw", "length-normalised"]
    assert lines[1].count("█") == 32
    assert len(lines) == 9
    assert len(curves(role_doc(layers=32), width=120)) == 5


def test_many_layers_share_marks_and_this_is_said():
    lines = curves(role_doc(layers=90), width=80)
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1].endswith("each mark: 2 layers")
    assert lines[1].count("█") == 45


def test_layers_beyond_zero_after_correction_are_counted_both_ways():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.5, -0.5, 0.5, 0.001], q=0.01)
    assert curves(doc)[1].split()[1:] == ["█▁█▅", "+0.125", "2/1", "▅▅▅▅", "+0.000", "0/0"]


# ---- the summary


def test_the_summary_fits_80_columns_and_cuts_nothing():
    doc = built(layers=32, heads=4, effect=0.6, n=99)
    doc["candidates"]["rows"][0]["layer"] = 31
    text = printed(roles_table(doc))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert words(text).endswith(words(sentence(doc)))


def test_the_summary_of_a_small_pair_is_short():
    doc = built(layers=6, heads=8, n=99)
    assert len(printed(roles_table(doc)).splitlines()) <= 45


def test_marks_are_text_and_need_no_colour():
    doc = set_track(
        role_doc(), tracks.SCALES, "difference", "rfc", [0.05, 0.05, 0, 0], same=[0.01] * 4, q=0.01
    )
    set_track(doc, tracks.SCALES, "difference", "rsi", [0.05, 0, 0, 0], q=0.01, turned=True)
    text = printed(roles_table(doc))
    assert text.count("+0.050 [+0.040, +0.060] *†") == 4
    assert text.count("+0.050 [+0.040, +0.060] *‡") == 2
    assert "* q < .05, interval without 0 · † holds, ‡ reverses at equal prompt length" in text


def test_only_significant_layers_are_listed_and_where_there_are_none_that_is_said():
    doc = role_doc()
    assert "No layer is significant after correction: RFC or RSI, instruct − base." in printed(
        roles_table(doc)
    )
    set_track(doc, ["raw"], "difference", "rsi", [0, 0, 0.05, 0], q=0.01)
    text = printed(roles_table(doc))
    assert "RSI 2  +0.050 [+0.040, +0.060] *  0.010  +0.000 [-0.010, +0.010]  1.000" in text
    assert "RSI 1" not in text


def test_of_a_deep_model_the_five_largest_layers_of_a_metric_are_listed():
    doc = role_doc(layers=20)
    values = [0.01 * (n + 2) for n in range(20)]
    set_track(doc, tracks.SCALES, "difference", "rfc", values, q=0.01)
    text = printed(roles_table(doc))
    assert "after correction, instruct − base: the largest 5 of 20" in words(text)
    listed = [line.split()[1] for line in text.splitlines() if line.startswith("RFC ")]
    assert listed[2:] == ["15", "16", "17", "18", "19"]


def test_heads_and_candidates_stand_with_what_survives():
    text = printed(roles_table(role_doc(candidates=candidates())))
    assert " 3.1      -0.100  -1.00 [-1.50, -0.50]  0.002  0.300  0.400   0.100" in text
    assert "2.3  -0.080 [-0.100, +0.010]      0.90    0.50   5.25  2.75  0.001  0.300" in text
    assert "Candidates for patching: none of 16 heads beyond chance" in text
    assert "consist.: 0.57 by chance" in text


def test_where_forms_or_scales_disagree_it_is_said_before_the_finding():
    doc = set_track(role_doc(), ["raw"], "difference", "rfc", [0.05] * 4, q=0.01)
    set_track(doc, ["normalised"], "difference", "rfc", [-0.05] * 4)
    assert "raw and length-normalised disagree in sign" in words(printed(roles_table(doc)))


def test_a_terminal_without_utf_8_gets_ascii():
    doc = role_doc(candidates=candidates(), display="星座を保存 – x")
    text = printed_ascii(roles_table(doc))
    assert "instruct - base" in text
    assert "\\u661f" in text
    for table in (comparison_table(compare.rows(built())), candidates_table([candidate()])):
        assert "layer" in printed_ascii(table)


@pytest.mark.parametrize(
    "doc",
    [
        role_doc(models=("model",)),
        role_doc(contrast=None, raw={"models": {}, "difference": None}),
        {"schema": "mlxroles/entropy/1"},
        built(one=True),
        built(contrast=None),
        built(per_category=1),
    ],
    ids=["one model", "no contrast", "empty", "one model built", "no contrast built", "one prompt"],
)
def test_documents_with_less_in_them_have_a_summary(doc):
    text = printed(roles_table(doc))
    assert words(text).endswith(words(sentence(doc)))
    assert max(map(len, text.splitlines())) <= 80


def test_hostile_text_is_inert():
    doc = role_doc(display=HOSTILE, models=("[red]base\x1b[2J", "instruct"), notes=[HOSTILE])
    doc["contrast"]["focus"] = f"[b]<script>\x1b[2J{HOSTILE}"
    for who in (doc["heads"]["what"], doc["raw"]["models"], doc["normalised"]["models"]):
        assert "[red]base\x1b[2J" in who
    text = printed(roles_table(doc))
    assert all(line.isprintable() for line in text.splitlines())
    assert "[red]base\\x1b[2J" in text
    assert "\x1b" not in printed(correlation_table(families("[b]\x1b[2J", "x")))


def test_the_summary_asks_for_no_more_than_it_needs_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    assert Measurement.get(console, console.options, roles_table(role_doc())).maximum <= 100
    assert Measurement.get(console, console.options, candidates_table([candidate()])).maximum < 90
    assert max(map(len, printed(roles_table(role_doc(), width=80), 200).splitlines())) <= 80


# ---- compare, candidates, correlate


def test_the_comparison_holds_every_layer_and_the_null():
    doc = built(seed=3)
    rows = compare.rows(doc)
    text = printed(comparison_table(rows))
    assert max(map(len, text.splitlines())) <= 80
    assert f"RFC (uniform attention: {doc['null']['raw']['rfc']:+.3f})" in text
    row = rows[2]
    want = f"{row['rfc_diff']:+.3f} [{row['rfc_diff_low']:+.3f}, {row['rfc_diff_high']:+.3f}]"
    assert f"    2  {row['rfc_base']:+.3f}    {row['rfc_instruct']:+.3f}  {want}" in text
    assert "RSI" in printed(comparison_table(rows), 200).splitlines()[0]


def test_the_comparison_of_the_original_study_is_shown_without_tests(shared):
    path = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    text = printed(comparison_table([row | {"layer": int(row["layer"])} for row in rows]))
    assert "    1  -0.128    -0.108  +0.019 [-0.146, +0.185]" in text
    assert "p =len" not in text
    assert "intervals over heads, as in the original study" in text


def test_candidates_of_the_original_study_have_no_p():
    row = {"layer": 27, "head": 5, "rank": 1, "did_median": -0.1, "did_log_ratio_median": -1.028}
    row |= {"did_consistency": 0.9, "baseline_entropy": 0.2, "composite_score": 9.5}
    text = printed(candidates_table([row]))
    assert "27.5      -0.100      0.90    0.20   9.50" in text
    assert "p max" not in text


def families(*names):
    profiles = {}
    for seed, name in enumerate(names):
        rows = compare.rows(built(seed=seed, layers=8 + seed, heads=3, n=50))
        profiles[name] = correlate.from_rows(rows, "rfc")
    return correlate.correlate(profiles, "rfc")


def test_correlations_stand_beside_every_way_of_testing_them():
    doc = families("llama", "mistral")
    pair = doc["pairs"][0]
    text = printed(correlation_table(doc))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "llama and mistral: 8 layers by relative depth" in text
    for name in ("pearson_r", "detrended_r", "spearman_r", "r_without_it"):
        assert f"{pair[name]:+.3f}" in text
    for name in ("pearson_p", "n_eff_p", "shift_p", "detrended_p"):
        assert f"{pair[name]:.3f}" in text
    assert words(pair["verdict"]) in words(text)


def test_the_correlations_of_the_original_study_are_shown_as_its_document_has_them():
    stats = {"mean": -0.023, "std": 0.03, "min": -0.081, "max": 0.041, "total_layers": 32}
    stats |= {"significant_positive": 5, "near_zero": 6, "significant_negative": 21}
    pair = {"pearson_r": 0.5, "pearson_p": 0.004, "spearman_r": 0.4, "spearman_p": 0.02}
    doc = {
        "summary_stats": {"llama": stats, "[b]\x1b[2J": stats},
        "correlations": {"llama_vs_[b]\x1b[2J": pair | {"layers_compared": 32}},
    }
    text = printed(correlation_table(doc))
    assert "llama           32  -0.023  0.030  -0.081  +0.041      5        6      21" in text
    assert "llama and [b]\\x1b[2J      32     +0.500  0.004      +0.400  0.020" in text
    assert "as in the original study" in text
    assert "p max" not in text
    assert "Correlation" not in printed(correlation_table(doc | {"correlations": {}}))


def test_cells_that_do_not_fit_are_cut_with_what_the_terminal_has():
    grid = Grid("t", ["a"], [["long text" * 9]])
    assert "…" in printed(grid_table(grid, Screen(20, is_ascii=False)), 20)
    assert printed_ascii(grid_table(grid, Screen(20, is_ascii=True)), 20)


def test_paragraphs_break_between_words_and_are_inert():
    text = "several ordinary words " * 9
    lines = printed(paragraphs([text, "[b]x\x1b[2J"]), 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert set(" ".join(lines[:-1]).split()) == {"several", "ordinary", "words"}
    assert lines[-1] == "[b]x\\x1b[2J"
    assert "\\u2212" not in printed_ascii(paragraphs(["instruct − base"]))


def test_a_wide_terminal_shows_the_tests_of_each_model():
    rows = compare.rows(built(seed=3))
    wide, narrow = (printed(comparison_table(rows), width) for width in (100, 80))
    head = next(line for line in wide.splitlines() if "layer" in line).split()
    assert head.count("q") == 4
    assert f"{rows[0]['rfc_base']:+.3f}  {rows[0]['rfc_base_q']:.3f}" in wide
    assert max(map(len, wide.splitlines())) <= 100
    assert "…" not in wide + narrow


def test_the_interval_of_a_correlation_stands_beside_the_effective_number_of_layers():
    lines = printed(correlation_table(families("llama", "mistral"))).splitlines()
    assert [("[" in line) for line in lines if "effective layers" in line] == [True]
    assert [("[" in line) for line in lines if "as if independent" in line] == [False]


def test_too_few_prompts_show_neither_heads_nor_candidates():
    text = printed(roles_table(role_doc(n=3, candidates=candidates())))
    assert "Too few prompts for any conclusion" in text
    assert "Cohen" not in text
    assert "Candidates" not in text
