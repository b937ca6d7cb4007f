"""The report on role metrics: what it claims, what it refuses to claim, an inert page."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import patch_docs
import pytest
from role_docs import LAYERS, built, candidates, role_doc, set_track

from mlxroles.errors import StoreError
from mlxroles.report import html, markdown, sentence
from mlxroles.report.roles import captions, rows, sorting, tracks
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
        "In base and instruct, no difference in attention entropy between self_referent and "
        "neutral prompts (RFC) survives correction in any of 4 layers. From base to instruct no "
        "change of RFC or RSI survives correction in any of 4 layers. Of 16 heads none differs "
        "after correction. Prompts: 12 self_referent, 12 neutral, 12 confounder; correction: "
        "Benjamini-Hochberg over layers or heads."
    )


def test_a_result_that_holds_is_said_with_its_numbers():
    doc = role_doc()
    set_track(
        doc, BOTH, "difference", "rfc", [0.05, 0.02, -0.07, 0.0], q=0.01, same=[0.01, 1, 1, 1]
    )
    assert (
        "From base to instruct RFC rises in 2 and falls in 1 of 4 layers, length-normalised (most "
        "in layer 2: RFC -0.070 [-0.080, -0.060]); 1 of these holds among prompts of equal length. "
        "Of 16" in sentence(doc)
    )
    assert sentence(doc).endswith("brackets: 95 % bootstrap intervals.")


def test_one_layer_is_told_as_one():
    doc = set_track(
        role_doc(), ["normalised"], "base", "rfc", [0, 0, -0.05, 0], q=[1, 1, 0.01, 1], same=0.01
    )
    assert (
        "In base, attention entropy is higher on self_referent than on neutral prompts in 1 of 4 "
        "layers, length-normalised (layer 2: RFC -0.050 [-0.060, -0.040]), in none on the raw "
        "scale; this holds among prompts of equal length." in sentence(doc)
    )


def test_layers_that_reverse_among_prompts_of_equal_length_are_named_everywhere():
    doc = role_doc()
    turned = [True, False, True, False]
    set_track(doc, BOTH, "difference", "rfc", [0.05] * 4, q=0.01, same=0.01, turned=turned)
    assert (
        "2 of these hold among prompts of equal length, and 2 reverse among prompts of equal "
        "length (layers 0 and 2)" in sentence(doc)
    )
    assert (
        "RFC, instruct − base, raw and length-normalised: layers 0 and 2 reverse among prompts of "
        "equal length." in read(doc)
    )
    grid = rows.layer_grid(doc, "rfc", "normalised")
    assert grid.head[-1] == "among prompts of equal length"
    assert [row[-1] for row in grid.rows] == ["reverses", "holds", "reverses", "holds"]
    assert [row[3].split()[-1] for row in grid.rows] == ["*‡", "*†", "*‡", "*†"]
    glance = rows.glance_grid(doc)
    assert dict(zip(glance.head, glance.rows[4], strict=True))["reverses at equal lengths"] == (
        "2 / 0"
    )
    assert "reverses at equal lengths" not in rows.glance_grid(role_doc()).head
    one = [True, False, False, False]
    set_track(doc, BOTH, "difference", "rfc", [0.05, 0, 0, 0], q=0.01, turned=one)
    assert "; this reverses among prompts of equal length." in sentence(doc)
    set_track(doc, ["normalised"], "difference", "rfc", [0.0] * 4)
    assert "may be all there is to it; this reverses among prompts of" in sentence(doc)


def test_what_only_the_raw_scale_shows_is_put_down_to_length():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.05] * 4, q=0.01)
    assert (
        "In base, attention entropy is lower on self_referent than on neutral prompts in 4 of 4 "
        "layers on the raw scale, but in none once entropies are length-normalised: prompt length "
        "may be all there is to it." in sentence(doc)
    )


def test_what_prompts_of_equal_length_do_not_confirm_is_said():
    doc = set_track(role_doc(), BOTH, "base", "rfc", [-0.05] * 4, q=0.01)
    text = sentence(doc)
    assert "higher on self_referent than on neutral prompts in 4 of 4 layers" in text
    assert "none of these hold among prompts of equal length" in text
    doc = set_track(doc, BOTH, "base", "rfc", [-0.05] * 4, q=0.01, same=float("nan"))
    assert "no prompts of equal length allow a check" in sentence(doc)


def test_scales_that_disagree_in_sign_are_named():
    doc = set_track(role_doc(), ["raw"], "base", "rfc", [0.05] * 4, q=0.01)
    set_track(doc, ["normalised"], "base", "rfc", [-0.05] * 4, q=0.01)
    assert "so the sign depends on the scale" in sentence(doc)
    assert "significant on both scales, with opposite signs" in read(doc)


def test_too_few_prompts_for_any_p_are_said_from_what_was_permuted():
    doc = role_doc(n=3)
    assert smallest_p(doc, "rfc") == pytest.approx(1 / 10_001)
    for metric in ("rfc", "rsi"):
        doc["raw"]["models"]["base"][f"{metric}_test"] |= {"n_permutations": 20, "exact": True}
    assert smallest_p(doc, "rfc") == pytest.approx(2 / 20)
    assert sentence(doc).endswith("With so few prompts no test can reach p < .05.")
    assert "that nothing is significant for RFC says nothing" in read(doc)
    assert "With so few" not in read(role_doc())
    doc["lengths"]["neutral"]["n"] = 4
    assert smallest_p(doc, "rfc") == pytest.approx(1 / 20)


def test_one_model_is_not_called_model():
    doc = role_doc(models=("model",))
    assert sentence(doc).startswith(
        "No difference in attention entropy between self_referent and neutral or confounder "
        "prompts (RFC, RSI) survives correction in any of 4 layers. Of 16 heads"
    )
    set_track(doc, BOTH, "model", "rsi", [0.05] * 4, q=0.01, same=0.01)
    assert (
        "Attention entropy is lower on self_referent than on confounder prompts in 4 of 4 layers"
        in sentence(doc)
    )
    assert "In model" not in sentence(doc)
    assert "4 heads each in the model, 48 prompts" in read(doc)
    assert rows.glance_grid(doc).rows[0][-1] == "the model"
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
    assert (row["p < .05, uncorrected"], row["by chance"]) == ("1", "0.2")
    heads = rows.head_counts_grid(doc)
    assert heads.rows[0] == ["16", "1", "0.8", "0", "0", "0", "base"]
    assert [row[-1] for row in heads.rows] == ["base", "instruct", "instruct − base"]


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
    assert "2 of 16 heads are beyond what the best of all heads reaches by chance" in read(
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
    assert text.count("survives correction in any of 4 layers") == 2
    assert "none differs" in text


def test_a_planted_effect_is_read_as_one():
    doc = built(seed=2, effect=0.8)
    assert found(doc).standing == "holds"
    assert found(doc, "base").standing == "nothing"
    assert (
        "In instruct, attention entropy is lower on self_referent than on neutral prompts in 4 of 4"
        in sentence(doc)
    )
    assert "From base to instruct RFC rises in 4 of 4 layers" in sentence(doc)


def test_a_document_with_one_prompt_per_category_claims_nothing():
    doc = built(per_category=1)
    assert "survives correction in any of 4 layers" in sentence(doc)
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
        "instruct",
        "instruct − base",
        "p",
        "q",
        "q, equal lengths",
        "among prompts of equal length",
    ]
    assert grid.title.endswith("(uniform attention on these lengths: -0.044)")
    assert grid.rows[0][3] == "+0.050 [+0.040, +0.060] *"
    assert grid.rows[0][4:] == ["0.010", "0.010", "1.000", "not confirmed"]
    assert grid.rows[1][3] == "+0.000 [-0.010, +0.010]"
    assert (grid.rows[3][3][-2:], grid.rows[3][-1]) == ("*†", "holds")


def test_every_question_has_one_row_at_a_glance():
    doc = set_track(role_doc(), BOTH, "difference", "rsi", [0.05, -0.05, 0, 0], q=0.01)
    grid = rows.glance_grid(doc)
    assert [(row[0], row[-1]) for row in grid.rows] == [
        (metric, who)
        for who in ("base", "instruct", "instruct − base")
        for metric in ("RFC", "RSI")
    ]
    assert grid.rows[0][2] == "-0.044"
    assert grid.rows[5] == [
        "RSI",
        "+0.000",
        "–",
        "+0.000",
        "4",
        "0.2",
        "1 / 1",
        "1 / 1",
        "0 / 0",
        "instruct − base",
    ]


def test_all_heads_of_every_model_are_listed_with_the_smallest_p():
    grid = rows.head_grid(role_doc(), "difference")
    assert grid.rows[0][:2] == ["3", "1"]
    assert "-1.00 [-1.50, -0.50]" in grid.rows[0]


# ---- Markdown


def test_the_markdown_summary_holds_sentence_reading_and_tables():
    doc = role_doc(candidates=candidates())
    text = markdown(doc)
    assert text.startswith("# Role metrics of Tiny\n\nIn base and instruct, no difference")
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
    assert page.links == ["data:image/png;base64,iVBORw0KGgo="] * 6
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
    order = ["Together", "Bands: 95 % bootstrap", "Instruct minus base per layer", "base: Mean att"]
    order += [
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


def hostile_doc():
    names = {
        "self_referent": f"<script>{HOSTILE}",
        "neutral": '"><img src=x>',
        "confounder": "\x1b]0;",
    }
    doc = role_doc(candidates=candidates(), display=HOSTILE, run_id=HOSTILE, notes=[HOSTILE])
    for part in (doc["lengths"], doc["null"]["raw"]["category"]):
        for old, new in names.items():
            part[new] = part.pop(old)
    doc["contrast"] = {key: names[value] for key, value in doc["contrast"].items()}
    for prompt in doc["prompts"]:
        prompt["category"] = names.get(prompt["category"], prompt["category"])
        prompt["id"] = f"</td><script>alert(1)</script>{HOSTILE}"
    doc["versions"] = {"<b>": "\x1b\ud800"}
    return doc


def test_hostile_text_stays_text(figures):
    figures["</figcaption><script>"] = figures.pop("extra")
    text = html(hostile_doc(), figures)
    plain = html(role_doc(candidates=candidates(), notes=["x"]), figures)
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
    assert grid.rows[0][:4] == ["RFC", "raw", "+0.000 (0)", "+0.150 (2)"]
    assert len(grid.rows) == 12
    doc["null"]["raw"]["forms"] = {"head_form": {"rfc": -0.03, "rsi": None}}
    uniform = rows.form_grid(doc).rows[6]
    assert uniform == ["RFC", "raw", "–", "-0.030", "–", "–", "–", "uniform attention"]


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
    assert "though 1 by the maximum statistic" in sentence(doc)
