"""The report on role metrics: what it claims, what it refuses to claim, an inert page."""

import base64
import hashlib
import re
import textwrap
from html.parser import HTMLParser

import patch_docs
import pytest
from role_docs import LAYERS, built, candidates, role_doc, set_track

from mlxroles.errors import StoreError
from mlxroles.report import html, markdown, sentence
from mlxroles.report.roles import box, captions, rows, sorting, tracks
from mlxroles.report.roles.findings import exchange, findings, forms, smallest_p
from mlxroles.report.roles.reading import reading
from mlxroles.report.roles.tracks import track

PIXEL = bytes.fromhex("89504e470d0a1a0a")
BOTH = tracks.SCALES
HOSTILE = "".join(patch_docs.HOSTILE)


def read(doc):
    """The reading as text, a point per line."""
    return "\n".join(point for section in reading(doc) for point in section.points)


def found(doc, who="instruct", metric="rfc"):
    return next(each for each in findings(doc) if (each.who, each.metric) == (who, metric))


# ---- what counts


def test_what_counts_is_read_from_the_document_whatever_q_and_interval_say():
    doc = role_doc()
    set_track(doc, BOTH, "base", "rfc", [0.05, 0.05, -0.05, 0.005], q=[0.04, 1.0, 0.01, 0.001])
    test = doc["raw"]["models"]["base"]["rfc_test"]
    test["significant"] = [False, True, True, True]
    test["holds_at_equal_length"] = [False, False, True, False]
    test["reverses_at_equal_length"] = [False, True, False, False]
    own = track(doc, "base", "rfc")
    assert (own.up, own.down) == ({1, 3}, {2})
    assert (own.same_length, own.reversed) == ({2}, {1})
    assert own.uncorrected == 3
    assert own.expected == pytest.approx(0.05 * LAYERS)
    assert own.excludes_zero == 3
    assert track(doc, "base", "rfc", form="log_ratio").significant == frozenset()


def test_numbers_that_are_null_count_nowhere():
    doc = role_doc()
    set_track(doc, BOTH, "base", "rfc", [0.05] * 4, q=0.001)
    one = doc["raw"]["models"]["base"]["rfc"]["ratio_of_means"]
    one["value"][0], one["ci"][0], one["ci"][1] = None, [None, None], None
    doc["raw"]["models"]["base"]["rfc_test"]["p"][2] = None
    own = track(doc, "base", "rfc")
    assert own.uncorrected == 3
    assert own.expected == pytest.approx(0.05 * 3)
    assert own.mean == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("raw", "normalised", "same", "standing"),
    [
        (1.0, 1.0, 1.0, "nothing"),
        (0.01, 1.0, 1.0, "length"),
        (0.01, 0.01, 1.0, "unconfirmed"),
        (0.01, 0.01, float("nan"), "untested"),
        (0.01, 0.01, 0.01, "holds"),
        (1.0, 0.01, 0.01, "holds"),
    ],
)
def test_how_far_a_result_carries(raw, normalised, same, standing):
    doc = role_doc()
    set_track(doc, ["raw"], "instruct", "rfc", [0.05] * 4, q=raw, same=same)
    set_track(doc, ["normalised"], "instruct", "rfc", [0.05] * 4, q=normalised, same=same)
    assert found(doc).standing == standing


# ---- the sentence


def test_nothing_is_said_to_be_nothing():
    assert sentence(role_doc()) == (
        "No sign of a separate kind: in no layer of base or instruct does attention entropy on "
        "self_referent prompts differ significantly from neutral (RFC) or confounder (RSI). From "
        "base to instruct no significant change of RFC or RSI. Of 16 heads, self_referent against "
        "neutral, length-normalised, none differs after correction. Prompts: 12 self_referent, 12 "
        "neutral, 12 confounder; length-normalised unless said otherwise; 12 families of tests (6 "
        "questions × 2 scales), each corrected on its own."
    )


def test_a_separate_kind_differs_from_both_others_in_one_layer_and_direction():
    doc = role_doc()
    set_track(doc, BOTH, "base", "rfc", [0.05, 0.06, 0, 0], q=0.01, same=0.01)
    assert sentence(doc).startswith(
        "No sign of a separate kind: in layers 0 and 1 of base self_referent differs from neutral "
        "(most in layer 1: RFC +0.060 [+0.050, +0.070]; all also at equal lengths) but not "
        "significantly from confounder (RSI +0.000 [-0.010, +0.010]); in instruct from neither."
    )
    set_track(doc, BOTH, "base", "rsi", [0, -0.06, 0.04, 0], q=0.01, same=0.01)
    assert sentence(doc).startswith(
        "No sign of a separate kind: in layers 0 and 1 of base self_referent differs from neutral "
        "(most in layer 1: RFC +0.060 [+0.050, +0.070]), in layers 1 and 2 from confounder, in "
        "none from both in one direction; in instruct from neither."
    )
    set_track(doc, BOTH, "base", "rsi", [0, 0.03, 0, 0], q=0.01)
    assert sentence(doc).startswith("Unconfirmed sign of a separate kind: in layer 1 of base")
    set_track(doc, BOTH, "base", "rsi", [0, 0.03, 0, 0], q=0.01, same=0.01)
    assert sentence(doc).startswith(
        "Sign of a separate kind: in layer 1 of base entropy is lower on self_referent than on "
        "both neutral and confounder (RFC +0.060, RSI +0.030), also at equal lengths; in instruct "
        "from neither. In base RFC is above 0 in 2 of 4 layers"
    )


def test_rsi_alone_of_one_model_is_in_the_verdict():
    doc = set_track(role_doc(), BOTH, "base", "rsi", [-0.05, 0, 0, 0], q=0.01)
    assert (
        "in layer 0 of base self_referent differs from confounder (RSI -0.050 [-0.060, -0.040]; "
        "not confirmed at equal lengths) but not significantly from neutral (RFC +0.000"
        in sentence(doc)
    )


def test_two_categories_cannot_show_a_separate_kind():
    doc = role_doc(models=("model",))
    doc["contrast"]["confounder"] = None
    for scale in BOTH:
        del doc[scale]["models"]["model"]["rsi"], doc[scale]["models"]["model"]["rsi_test"]
    assert "two categories cannot show a separate kind" in sentence(doc)
    assert "2 families of tests (1 question × 2 scales)" in sentence(doc)


def test_models_alike_are_told_together():
    doc = role_doc()
    for who, value in (("base", -0.05), ("instruct", -0.06)):
        set_track(doc, BOTH, who, "rfc", [value, 0, 0, 0], q=0.01, same=0.01)
    assert sentence(doc).startswith(
        "No sign of a separate kind: in layer 0 of base and instruct self_referent differs from "
        "neutral (RFC -0.050 and -0.060; also at equal lengths) but"
    )


def test_the_box_is_short_whatever_is_found():
    doc = built(seed=2, effect=0.8)
    lines = [line for text in box.said(doc) for line in textwrap.wrap(text, 100)]
    assert len(lines) <= 12
    assert len(textwrap.wrap(box.said(doc)[0], 100)) <= 3
    assert len([x for text in box.said(role_doc()) for x in textwrap.wrap(text, 100)]) <= 8


def test_a_result_that_holds_is_said_with_its_numbers():
    doc = role_doc()
    set_track(
        doc, BOTH, "difference", "rfc", [0.05, 0.02, -0.07, 0.0], q=0.01, same=[0.01, 1, 1, 1]
    )
    assert (
        "From base to instruct RFC rises in 2 and falls in 1 of 4 layers (most in layer 2: -0.070 "
        "[-0.080, -0.060]), 1 also at equal lengths; no significant change of RSI. Of 16"
        in sentence(doc)
    )
    assert sentence(doc).endswith("brackets: 95 % intervals.")


def test_one_layer_is_told_as_one():
    doc = set_track(
        role_doc(), ["normalised"], "base", "rfc", [0, 0, -0.05, 0], q=[1, 1, 0.01, 1], same=0.01
    )
    assert (
        "in layer 2 of base self_referent differs from neutral (RFC -0.050 [-0.060, -0.040]; also "
        "at equal lengths, not on the raw scale) but" in sentence(doc)
    )


def test_layers_that_reverse_among_prompts_of_equal_length_are_named_everywhere():
    doc = role_doc()
    turned = [True, False, True, False]
    set_track(doc, BOTH, "difference", "rfc", [0.05] * 4, q=0.01, same=0.01, turned=turned)
    assert (
        "RFC rises in 4 of 4 layers (most in layer 0: +0.050 [+0.040, +0.060]), 2 also at equal "
        "lengths (layers 0 and 2 reversed)" in sentence(doc)
    )
    assert (
        "RFC, instruct − base, raw and length-normalised: layers 0 and 2 reverse among prompts of "
        "equal length." in read(doc)
    )
    grid = rows.layer_grid(doc, "rfc", "normalised")
    at = grid.head.index("instruct − base")
    assert [row[at].split()[-1] for row in grid.rows] == ["*‡", "*†", "*‡", "*†"]
    glance = rows.glance_grid(doc)
    assert (
        dict(zip(glance.head, glance.rows[4], strict=True))["reverses at equal lengths, normalised"]
        == "2 / 0"
    )
    assert "reverses at equal lengths, normalised" not in rows.glance_grid(role_doc()).head
    one = [True, False, False, False]
    set_track(doc, BOTH, "difference", "rfc", [0.05, 0, 0, 0], q=0.01, turned=one)
    assert ", reversed at equal lengths;" in sentence(doc)
    set_track(doc, ["normalised"], "difference", "rfc", [0.0] * 4)
    assert "may be all there is to it, layer 0 reversed at equal lengths" in sentence(doc)


def test_what_only_the_raw_scale_shows_is_put_down_to_length_where_it_shrinks():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.05] * 4, q=0.01)
    assert (
        "In base RFC is on the raw scale alone above 0 in 4 of 4 layers (most in layer 0: +0.050): "
        "prompt length may be all there is to them." in sentence(doc)
    )
    assert "(RSI), once length-normalised." in sentence(doc)


def test_what_keeps_its_size_without_being_significant_is_not_put_down_to_length():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0, 0.05, 0, 0], q=0.01)
    for value, said in ((0.05, "as large"), (0.03, "60 % as large")):
        set_track(doc, ["normalised"], "base", "rfc", [0, value, 0, 0], q=0.053)
        assert (
            "on the raw scale alone above 0 in layer 1 (+0.050), not significant after "
            f"normalising (q 0.053), though {said}." in sentence(doc)
        )
    for value in (0.02, 0.005, -0.05):
        set_track(doc, ["normalised"], "base", "rfc", [0, value, 0, 0], q=0.053)
        assert "(+0.050): prompt length may be all there is to it." in sentence(doc)


def test_a_layer_of_the_raw_scale_alone_is_said_beside_those_of_both():
    doc = set_track(role_doc(), ["raw"], "difference", "rsi", [-0.04, 0, 0, 0.05], q=0.01)
    set_track(doc, ["normalised"], "difference", "rsi", [-0.04, 0, 0, 0.05], q=[0.01, 1, 1, 0.1])
    assert (
        "RSI falls in layer 0 (-0.040 [-0.050, -0.030]), not confirmed at equal lengths; on the "
        "raw scale alone rises in layer 3 (+0.050), not significant after normalising (q 0.100), "
        "though as large; no significant change of RFC." in sentence(doc)
    )


def test_what_prompts_of_equal_length_do_not_confirm_is_said():
    doc = set_track(role_doc(), BOTH, "base", "rfc", [-0.05] * 4, q=0.01)
    text = sentence(doc)
    assert "; none confirmed at equal lengths) but not" in text
    doc = set_track(doc, BOTH, "base", "rfc", [-0.05] * 4, q=0.01, same=float("nan"))
    assert "untested at equal lengths" in sentence(doc)


def test_scales_that_disagree_in_sign_are_named():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.05] * 4, q=0.01)
    set_track(doc, ["normalised"], "base", "rfc", [-0.05] * 4, q=0.01)
    assert "the scales have opposite signs in layers 0, 1, 2 and 3." in sentence(doc)
    assert "significant on both scales, with opposite signs" in read(doc)


def test_too_few_prompts_for_any_p_are_said_from_what_was_permuted():
    doc = role_doc(n=3)
    assert smallest_p(doc, "rfc") == pytest.approx(1 / 10_001)
    for metric in ("rfc", "rsi"):
        doc["raw"]["models"]["base"][f"{metric}_test"] |= {"n_permutations": 20, "exact": True}
    assert smallest_p(doc, "rfc") == pytest.approx(2 / 20)
    assert sentence(doc).startswith("Too few prompts for any conclusion (3 self_referent, 3 neu")
    sections = [section.heading for section in reading(doc)]
    assert sections == ["What was asked", "What the data do not show"]
    assert "Too few" not in sentence(role_doc(n=5))
    doc["lengths"]["neutral"]["n"] = 4
    assert smallest_p(doc, "rfc") == pytest.approx(1 / 20)


def test_one_model_is_not_called_model():
    doc = role_doc(models=("model",))
    assert sentence(doc).startswith(
        "No sign of a separate kind: in no layer does attention entropy on self_referent prompts "
        "differ significantly from neutral (RFC) or confounder (RSI). Of 16 heads"
    )
    set_track(doc, BOTH, "model", "rsi", [0.05] * 4, q=0.01, same=0.01)
    assert (
        "in layers 0, 1, 2 and 3 self_referent differs from confounder (most in layer 0: RSI"
        in sentence(doc)
    )
    assert "In model" not in sentence(doc)
    assert "4 heads each in the model, 48 prompts" in read(doc)
    assert rows.glance_grid(doc).rows[0][0] == "the model"
    assert captions.caption("entropy_model").startswith("Mean attention entropy")
    assert sentence(role_doc(contrast=None)).startswith("Entropies were measured, but no two")


# ---- the reading


def test_what_lengths_alone_give_is_held_against_the_mean():
    doc = role_doc()
    doc["null"]["raw"] |= {"rfc": 0.03, "rsi": 0.2}
    set_track(doc, BOTH, "base", "rfc", [0.05, 0.07, 0.05, 0.07])
    set_track(doc, BOTH, "base", "rsi", [0.1] * 4)
    set_track(doc, BOTH, "instruct", "rfc", [-0.1] * 4)
    assert (
        "RFC: uniform attention on these lengths alone gives +0.030, 50 % of the raw mean over "
        "layers of base (+0.060), opposite in sign to the raw mean over layers of instruct "
        "(-0.100)." in read(doc)
    )
    set_track(doc, BOTH, "instruct", "rsi", [0.15] * 4)
    assert (
        "RSI: uniform attention on these lengths alone gives +0.200, at least as far from 0 as the "
        "raw mean over layers of base (+0.100) and of instruct (+0.150)." in read(doc)
    )


def test_chance_stands_beside_what_is_uncorrected():
    doc = set_track(role_doc(), BOTH, "base", "rfc", [0.0, 0.0, 0.0, 0.0], q=[0.03, 1, 1, 1])
    row = dict(zip(rows.glance_grid(doc).head, rows.glance_grid(doc).rows[0], strict=True))
    assert (row["p < .05, uncorrected, normalised"], row["of these by chance"]) == ("1", "0.20")
    heads = rows.head_counts_grid(doc)
    assert heads.rows[0] == ["base", "16", "1", "0.80", "0", "0", "0"]
    assert [row[0] for row in heads.rows] == ["base", "instruct", "instruct − base"]


def test_forms_that_disagree_are_named_and_forms_that_agree_are_not():
    doc = role_doc()
    set_track(doc, BOTH, "difference", "rfc", [0.05] * 4)
    assert "disagree in sign" not in read(doc)
    set_track(doc, BOTH, "difference", "rfc", [-0.05, 0.04, 0.04, -0.9], form="head_form")
    (form,) = [each for each in forms(doc, "difference", "rfc") if each.name == "head_form"]
    assert (form.opposed_layers, form.opposed_firmly) == (2, 2)
    assert (
        "RFC, instruct − base: ratio of means and head form disagree in sign in 2 of 4 layers, in "
        "2 with both intervals excluding 0; their means over layers are +0.050 and -0.217"
        in read(doc)
    )


def test_the_layer_that_decides_a_mean_is_named():
    doc = set_track(role_doc(), BOTH, "difference", "rfc", [1.39, -0.01, -0.02, 0.0])
    assert (
        "RFC, instruct − base: layer 0 alone decides the raw mean over layers: +0.340 with it, "
        "-0.010 without." in read(doc)
    )
    even = set_track(role_doc(), BOTH, "difference", "rfc", [0.1, 0.11, 0.12, 0.13])
    assert "alone decides" not in read(even)


def test_candidates_stand_against_their_null_in_text_and_table():
    doc = role_doc(candidates=candidates())
    assert (
        "Against shuffled labels none of 16 heads is beyond what the best of them reaches by "
        "chance: the largest z of those listed is 2.75, and in 95 % of shuffles the largest of all "
        "heads stays below 3.50." in read(doc)
    )
    assert "2 of 16 heads have scores beyond what the best of all heads reaches by chance" in read(
        role_doc(candidates=candidates(2))
    )
    grid = rows.candidate_grid(doc)
    assert "q" not in grid.head
    assert grid.rows[0][3:] == [
        "-0.080 [-0.100, +0.010]",
        "0.90",
        "0.500",
        "5.25",
        "2.75",
        "0.001",
        "0.300",
    ]
    assert "0.57 by chance" in html(doc, {})


def test_a_threshold_is_not_taken_for_significance():
    doc = set_track(role_doc(), BOTH, "difference", "rfc", [0.05, 0.05, -0.05, 0.0])
    doc["difference_summary"] = {"rfc": {"significant_positive": 2, "significant_negative": 1}}
    assert (
        "A threshold is not significance: RFC changes by more than .01 in 3 of 4 layers, "
        "significantly in none (raw scale)." in read(doc)
    )


def test_lengths_that_no_two_categories_share_are_said():
    doc = role_doc()
    for prompt in doc["prompts"]:
        prompt["n_tokens"] += 10 * (prompt["category"] == "neutral")
    assert exchange(doc, "self_referent", "neutral").prompts == 0
    text = read(doc)
    assert "No length occurs in both self_referent and neutral prompts: for RFC" in text
    assert "No length occurs in both self_referent and confounder" not in text


def test_few_confounders_leave_what_rfc_shows():
    doc = role_doc()
    set_track(doc, ["raw", "normalised"], "base", "rfc", [-0.05] * 4, q=0.01)
    doc["lengths"]["confounder"]["n"] = 3
    said = sentence(doc)
    assert "Too few prompts for any conclusion" not in said
    assert "3 prompts of confounder are too few for RSI" in said
    assert "RFC is below 0 in 4 of 4 layers" in said


def test_few_partners_of_equal_length_are_said():
    doc = role_doc()
    for i, prompt in enumerate(doc["prompts"]):
        prompt["n_tokens"] = 100 + i
    doc["prompts"][0]["n_tokens"] = doc["prompts"][24]["n_tokens"]
    assert exchange(doc, "self_referent", "neutral")[:2] == (2, 24)
    assert "Only 2 of the 24 self_referent and neutral prompts have a length" in read(doc)


def test_made_up_attention_without_an_effect_is_read_as_nothing():
    doc = built(seed=1)
    text = sentence(doc)
    assert text.startswith("No sign of a separate kind: in no layer of base or instruct does")
    assert "From base to instruct no significant change of RFC or RSI." in text
    assert "none differs" in text


def test_a_planted_effect_is_read_as_one():
    doc = built(seed=2, effect=0.8)
    assert found(doc).standing == "holds"
    assert found(doc, "base").standing == "nothing"
    assert (
        "Sign of a separate kind: in layers 0, 1, 2 and 3 of instruct entropy is lower on "
        "self_referent than on both neutral and confounder" in sentence(doc)
    )
    assert "From base to instruct RFC rises in 4 of 4 layers" in sentence(doc)


def test_a_document_with_one_prompt_per_category_claims_nothing():
    doc = built(per_category=1)
    assert sentence(doc).startswith("Too few prompts for any conclusion (1 self_referent")
    html(doc, {})


# ---- tables


def test_the_table_of_layers_holds_value_interval_and_marks():
    doc = set_track(
        role_doc(), BOTH, "difference", "rfc", [0.05, 0, 0, 0.05], q=0.01, same=[1, 1, 1, 0.01]
    )
    grid = rows.layer_grid(doc, "rfc", "raw")
    assert grid.head == [
        "layer",
        "base",
        "q",
        "q =len",
        "instruct",
        "q",
        "q =len",
        "instruct − base",
        "q",
        "q =len",
    ]
    assert grid.title.endswith("(uniform attention on these lengths: -0.044)")
    assert grid.rows[0][7:] == ["+0.050 [+0.040, +0.060] *", "0.010", "1.000"]
    assert grid.rows[1][7] == "+0.000 [-0.010, +0.010]"
    assert grid.rows[3][7:] == ["+0.050 [+0.040, +0.060] *†", "0.010", "0.010"]
    assert grid.rows[0][1:4] == ["+0.000 [-0.010, +0.010]", "1.000", "1.000"]


def test_every_question_has_one_row_at_a_glance():
    doc = set_track(role_doc(), BOTH, "difference", "rsi", [0.05, -0.05, 0, 0], q=0.01)
    grid = rows.glance_grid(doc)
    assert [(row[1], row[0]) for row in grid.rows] == [
        (metric, who)
        for who in ("base", "instruct", "instruct − base")
        for metric in ("RFC", "RSI")
    ]
    assert grid.rows[0][3] == "-0.044"
    assert grid.rows[5] == [
        "instruct − base",
        "RSI",
        "+0.000",
        "–",
        "+0.000",
        "4",
        "0.20",
        "1 / 1",
        "1 / 1",
        "0 / 0",
    ]


def test_all_heads_of_every_model_are_listed_with_the_smallest_p():
    grid = rows.head_grid(role_doc(), "difference")
    assert grid.rows[0][:2] == ["3", "1"]
    assert "-1.00 [-1.50, -0.50]" in grid.rows[0]


# ---- Markdown


def test_the_markdown_summary_holds_sentence_reading_and_tables():
    doc = role_doc(candidates=candidates())
    text = markdown(doc)
    assert text.startswith("# Role metrics of Tiny\n\nNo sign of a separate kind")
    for heading in ("What was asked", "What the data do not show", "Candidates for patching"):
        assert f"## {heading}\n" in text
    assert "| 2 | \\+0.000 \\[-0.010, \\+0.010\\] |" in text


def test_a_patch_document_keeps_its_report():
    assert markdown(patch_docs.patch_doc(2)).startswith("# Patching Tiny")
    assert "<script" not in html(patch_docs.patch_doc(2), {})


# ---- the page


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.links, self.words, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def figures(tmp_path):
    names = (
        "violins_base",
        "entropy_base",
        "differences",
        "top_heads_instruct",
        "comparison",
        "extra",
    )
    paths = {name: tmp_path / f"{name}.png" for name in names}
    for path in paths.values():
        path.write_bytes(PIXEL)
    found = {name: str(path) for name, path in paths.items()}
    return found | {"comparison_svg": str(tmp_path / "comparison.svg")}


def test_the_page_is_self_contained(figures):
    text = html(role_doc(candidates=candidates()), figures)
    page = Page(text)
    assert page.open == []
    links = [link for link in page.links if not link.startswith("#")]
    assert links == ["data:image/png;base64,iVBORw0KGgo="] * 6
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {link[1:] for link in page.links if link.startswith("#")} == targets
    assert "http:" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "https:" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert not set(page.tags) & {"link", "iframe", "object", "form"}
    assert page.tags.count("script") == 1
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_only_the_one_script_may_run(figures):
    text = html(role_doc(), figures)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        f"script-src 'sha256-{digest}'",
    ]
    assert script == sorting.SCRIPT
    assert "innerHTML" not in script
    assert "eval" not in script


def test_figures_stand_together_first_then_per_model(figures):
    words = "".join(Page(html(role_doc(), figures)).words)
    order = ["RFC per layer, raw", "Together", "Bands: 95 % bootstrap", "Instruct minus base per"]
    order += [
        "base: 2 figures",
        "base: Mean att",
        "base: Entropy per prompt",
        "instruct: 1 figure",
        "instruct: Per layer the three",
        "Further figures",
        "extra",
    ]
    places = [words.index(text) for text in order]
    assert places == sorted(places)


def test_every_figure_has_a_caption_and_the_known_errors_a_footnote():
    for name in captions.TOGETHER:
        assert captions.caption(name) != name
    for kind in captions.PER_MODEL:
        assert captions.caption(f"{kind}_base").startswith("base: ")
    assert captions.split("top_heads_base") == ("top_heads", "base")
    said = {
        name: captions.footnote(f"{name}_base") or captions.footnote(name)
        for name in (*captions.TOGETHER, *captions.PER_MODEL)
    }
    for name, words in {
        "heads": "mean of 1/T",
        "violins": "arbitrary order",
        "entropy": "no width",
        "comparison": "heads 28 to 31",
        "differences": "not a test",
        "candidates": "by index",
    }.items():
        assert words in said[name]


def test_a_table_says_how_it_is_ordered():
    page = Page(html(role_doc(), {}))
    ordered = [value for tag, name, value in page.attributes if (tag, name) == ("th", "aria-sort")]
    assert set(ordered) == {"ascending"}
    assert ("table", "class", "sortable") in page.attributes


HOSTILE_NAMES = {
    "self_referent": f"<script>{HOSTILE}",
    "neutral": '"><img src=x>',
    "confounder": "\x1b]0;",
}


def renamed(doc, names):
    """The document with other names of its categories."""
    for part in (doc["lengths"], doc["null"]["raw"]["category"]):
        for old, new in names.items():
            part[new] = part.pop(old)
    doc["contrast"] = {key: names[value] for key, value in doc["contrast"].items()}
    for prompt in doc["prompts"]:
        prompt["category"] = names.get(prompt["category"], prompt["category"])
    return doc


def hostile_doc():
    doc = role_doc(candidates=candidates(), display=HOSTILE, run_id=HOSTILE, notes=[HOSTILE])
    renamed(doc, HOSTILE_NAMES)
    for prompt in doc["prompts"]:
        prompt["id"] = f"</td><script>alert(1)</script>{HOSTILE}"
    doc["versions"] = {"<b>": "\x1b\ud800"}
    return doc


def test_hostile_text_stays_text(figures):
    figures["</figcaption><script>"] = figures.pop("extra")
    text = html(hostile_doc(), figures)
    other = dict(zip(HOSTILE_NAMES, "abc", strict=True))
    plain = html(renamed(role_doc(candidates=candidates(), notes=["x"]), other), figures)
    assert Page(text).tags == Page(plain).tags
    assert all(line.isprintable() for line in text.splitlines())
    text.encode("utf-8")
    summary = markdown(hostile_doc())
    assert "<script>" not in summary
    assert all(line.isprintable() for line in summary.splitlines())


def test_a_figure_that_is_gone_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(StoreError, match="draw the figures again"):
        html(role_doc(), {"comparison": str(tmp_path / "none.png")})


@pytest.mark.parametrize(
    "doc",
    [
        role_doc(contrast=None, raw={"models": {}, "difference": None}),
        role_doc(models=("model",)),
        {"schema": "mlxroles/entropy/1"},
        built(one=True),
        built(contrast=None),
    ],
    ids=["no contrast", "one model", "empty", "one model built", "no contrast built"],
)
def test_documents_with_less_in_them_have_a_page(doc):
    assert Page(html(doc, {})).open == []
    assert markdown(doc).startswith("# Role metrics of")


def test_the_forms_stand_side_by_side_with_how_many_intervals_exclude_zero():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.5, 0.001, 0.1, 0.0], form="head_form")
    grid = rows.form_grid(doc)
    assert grid.rows[0][:5] == ["base", "RFC", "raw", "+0.000 (0)", "+0.150 (2)"]
    assert len(grid.rows) == 12
    doc["null"]["raw"]["forms"] = {"head_form": {"rfc": -0.03, "rsi": None}}
    uniform = rows.form_grid(doc).rows[6]
    assert uniform == ["uniform attention", "RFC", "raw", "–", "-0.030", "–", "–", "–"]


def test_permutations_too_coarse_for_one_head_are_said_from_what_the_tests_stored():
    doc = role_doc(n_permutations=10)
    assert "before any survives" not in read(doc)
    found = doc["heads"]["what"]["difference"]["normalised"]
    found |= {"n": 1024, "smallest_q": 0.1024, "n_permutations": 9_999}
    assert (
        "With 9,999 permutations a head that differs alone reaches q = 0.1 at best: of 1,024 heads "
        "at least 3 must reach the smallest p before any survives Benjamini-Hochberg (more "
        "permutations lower it)." in read(doc)
    )
    found["exact"] = True
    assert "(these are all that there are)" in read(doc)


def test_an_instruct_model_without_its_template_is_said_as_the_study_writes_it():
    said = "The instruct model was read on raw text without its chat template"
    assert said in read(role_doc(chat_template=False))
    assert said in read(role_doc(models=("instruct",), chat_template=False))
    assert said not in read(role_doc(models=("base",), chat_template=False))
    for value in (True, None):
        assert said not in read(role_doc(chat_template=value))


def test_sinks_are_said():
    said = "the weights of real keys sum to less than 1, so that query 0 has an entropy above 0"
    assert said in read(role_doc(has_sinks=True))
    assert said not in read(role_doc())


def test_heads_that_only_the_maximum_statistic_keeps_are_not_hidden():
    doc = role_doc()
    doc["heads"]["what"]["difference"]["normalised"]["significant_max"] = 1
    for who in ("base", "instruct"):
        doc["heads"]["what"][who]["normalised"] = dict(doc["heads"]["what"][who]["raw"])
        doc["heads"]["what"][who]["normalised"]["significant_max"] = 0
    assert "none differs after Benjamini-Hochberg, 1 by the maximum statistic" in sentence(doc)


def test_no_candidate_is_called_beyond_chance_whose_difference_may_be_nothing():
    doc = role_doc(candidates=candidates(1, p_max=0.004))
    assert "to patch" not in sentence(doc)
    assert (
        "Not called candidates beyond chance, because the interval of their difference in "
        "differences holds 0: 2.3 (p max 0.004)." in read(doc)
    )
    doc = role_doc(candidates=candidates(1, p_max=0.004, did_high=-0.01))
    assert "; to patch, beyond chance: head 2.3 (p max 0.004)." in sentence(doc)
    assert "Not called" not in read(doc)


def test_the_next_command_is_given_for_a_known_pair_with_a_candidate():
    doc = role_doc(candidates=candidates(1, p_max=0.004, did_high=-0.01))
    want = "Next: mlxroles patch --pair tiny --site z --heads 3 --layers 2"
    assert sentence(doc).endswith(want)
    assert "Next:" not in sentence(doc | {"family": None})
    assert "Next:" not in sentence(role_doc(candidates=candidates()))


def test_what_was_read_stands_in_title_and_box():
    reading_ = {"queries": "last", "keys": "no-bos"}
    doc = role_doc(reading=reading_)
    assert "<h1>Role metrics of Tiny, last query only, without the begin token</h1>" in html(
        doc, {}
    )
    assert "confounder; last query only, without the begin token; length" in sentence(doc)
    doc = role_doc(contrast={"focus": "neutral", "reference": "confounder", "confounder": None})
    assert "Role metrics of Tiny, neutral against confounder</h1>" in html(doc, {})


def test_errors_of_the_original_study_are_told_beside_its_categories_alone(figures):
    assert "heads 28 to 31" in html(role_doc(), figures)
    other = {"focus": "neutral", "reference": "third_person", "confounder": None}
    assert "heads 28 to 31" not in html(role_doc(contrast=other), figures)


def test_figures_that_repeat_another_stay_files(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(PIXEL)
    names = {name: str(path) for name in ("confounder_base", "roles_base", "contrasts_base")}
    assert html(role_doc(), names).count("<img") == 1
    alone = {name.replace("base", "model"): each for name, each in names.items()}
    assert html(role_doc(models=("model",)), alone).count("<img") == 2
