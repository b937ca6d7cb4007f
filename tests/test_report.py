"""The finding in words, the Markdown summary and the page: what they say and what they refuse."""

import re
from html.parser import HTMLParser

import patch_docs
import pytest

from mlxroles import documents
from mlxroles.errors import StoreError
from mlxroles.report import brief, html, markdown, sentence
from mlxroles.report.rows import facts, layer_grid
from mlxroles.report.summary import escape
from mlxroles.report.wording import next_step

PIXEL = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture
def one_direction():
    doc = patch_docs.patch_doc(6)
    doc["base_to_instruct"] = {}
    return doc


# ---- the finding


def test_ties_and_gaps_do_not_move_the_peak():
    doc = patch_docs.patch_doc(4)
    cells = doc["instruct_to_base"]
    cells["0"]["effect"] = None
    cells["1"]["effect"] = cells["3"]["effect"] = -0.99
    assert documents.finding(doc, "instruct_to_base").peak_layer == 1


def test_a_document_without_numbers_has_a_finding_without_layers():
    doc = patch_docs.patch_doc(2)
    for values in doc["instruct_to_base"].values():
        values.update(dict.fromkeys(("effect", "recovery")))
    found = documents.finding(doc, "instruct_to_base")
    assert (found.peak_layer, found.half_layer, found.deciding_layer) == (None, None, None)
    assert "yielded no numbers" in sentence(doc)


def test_layers_come_in_numeric_order():
    doc = patch_docs.patch_doc(12)
    del doc["layers_tested"]
    doc["instruct_to_base"] = dict(sorted(doc["instruct_to_base"].items()))  # 0, 1, 10, 11, 2
    assert list(documents.cells(doc, "instruct_to_base")) == list(range(12))
    assert documents.layers(doc) == list(range(12))


# ---- the sentence


def test_one_prompt():
    assert sentence(patch_docs.patch_doc(6)) == (
        "Patching instruct's residual stream into base first restores half of the tool decision "
        "at the output of layer 3 of 0..5 (R = 0.65); up to there the controls reach at most "
        "R = 0.08 (other prompt). Patching base's residual stream into instruct first removes "
        "half of the tool decision at the output of layer 3 of 0..5 (R = 0.65); up to there the "
        "controls reach at most R = 0.08 (other prompt). One prompt: no interval."
    )


def test_half_a_line_for_lists_of_runs():
    doc = patch_docs.patch_doc(6)
    assert brief(doc) == (
        "i→b half at layer 3 (R 0.65, control 0.08) · b→i half at layer 3 (R 0.65, control 0.08)"
    )
    kept = doc["instruct_to_base"]["2"].copy()
    doc["instruct_to_base"]["2"].update(dict.fromkeys(("effect", "recovery")))
    assert brief(doc).startswith("i→b half by layer 3, some before it not run (R 0.65")
    doc["instruct_to_base"]["2"] = kept
    doc["controls"]["other_prompt"]["instruct_to_base"]["3"]["recovery"] = 0.7
    assert brief(doc).startswith("i→b half at layer 3 (R 0.65, control 0.70, not specific)")
    for values in doc["instruct_to_base"].values():
        values["recovery"] = min(values["recovery"], 0.3)
    assert brief(doc).startswith("i→b never half, most at layer 3 (R 0.30, control 0.70")
    for values in doc["instruct_to_base"].values():
        values.update(dict.fromkeys(("effect", "recovery")))
    assert brief(doc) == "b→i half at layer 3 (R 0.65, control 0.08)"
    assert brief({"schema": "mlxroles/entropy/1"}) == ""


def test_several_prompts_carry_their_interval(one_direction):
    doc = patch_docs.patch_doc(6, prompts=8)
    doc["base_to_instruct"] = {}
    assert sentence(doc) == (
        "Patching instruct's residual stream into base first restores half of the tool decision "
        "at the output of layer 3 of 0..5 (R = 0.65 [0.57, 0.73]); up to there the controls reach "
        "at most R = 0.08 (other prompt). Means over 8 prompts; brackets are 95 % bootstrap "
        "intervals over prompts."
    )
    doc["instruct_to_base"]["3"]["recovery_ci"] = [0.41, 0.8]
    assert "interval reaches below one half, so the layer is not settled." in sentence(doc)


def test_half_is_never_reached(one_direction):
    doc = patch_docs.patch_doc(6, layers=[0, 2], controls=())
    doc["base_to_instruct"] = {}
    assert sentence(doc) == (
        "Patching instruct's residual stream into base never restores half of the tool decision: "
        "the most is R = 0.20 at the output of layer 2; no controls were run. One prompt: no "
        "interval."
    )


def test_an_interrupted_run_does_not_say_never(one_direction):
    for layer in "345":
        del one_direction["instruct_to_base"][layer]
    assert sentence(one_direction) == (
        "Patching instruct's residual stream into base restores less than half of the tool "
        "decision so far: the most is R = 0.20 at the output of layer 2; up to there the controls "
        "reach at most R = 0.02 (other prompt). One prompt: no interval. Layers without a number: "
        "3 from instruct to base."
    )


def test_a_gap_before_the_first_half_is_said(one_direction):
    one_direction["instruct_to_base"]["2"]["recovery"] = None
    assert "(R = 0.65), though an earlier layer has no number; up to" in sentence(one_direction)


def test_nothing_to_recover():
    assert sentence(patch_docs.patch_doc(6, baselines=(0.51, 0.5))) == (
        "There is nothing to recover: unpatched, base and instruct already agree on <tool_call> "
        "(log-odds +0.00 and +0.04 nats)."
    )
    doc = patch_docs.patch_doc(6)
    doc["baselines"]["base"]["log_odds"] = None
    assert sentence(doc) == "Recovery is undefined: a baseline has no number."
    assert sentence({"baselines": {}}) == "No layer was measured."


def test_a_control_that_does_as_much_is_said(one_direction):
    control = one_direction["controls"]["other_prompt"]["instruct_to_base"]
    control["3"]["recovery"] = 0.63
    assert (
        "but the control 'other prompt' recovers as much there (R = 0.63): the effect is not "
        "specific to this patch." in sentence(one_direction)
    )


def test_failed_cells_and_other_sites_are_named(one_direction):
    text = sentence(one_direction | {"site": "mlp_out", "failed_cells": ["a", "b"]})
    assert text.startswith("Patching instruct's MLP output into base first restores")
    assert "at layer 3 of 0..5" in text
    assert text.endswith("2 cells failed and are left out.")


@pytest.mark.parametrize("axis", ["by_head", "by_position"])
def test_of_heads_and_positions_the_strongest_is_named(axis):
    text = sentence(patch_docs.by_part(axis, 8))
    what = axis.removeprefix("by_")
    assert re.search(rf"one {what} at a time does most at layer \d, {what} \d \(R = [+-]0\.", text)


def test_tested_layers_with_gaps_are_counted():
    doc = patch_docs.patch_doc(6, layers=[0, 3, 5])
    assert "of the 3 tested" in sentence(doc)
    assert dict(facts(doc))["layers tested"] == "0, 3, 5 (3 of 6)"
    assert "of the one tested" in sentence(patch_docs.patch_doc(6, layers=[4]))


# ---- Markdown


def test_the_markdown_summary_holds_sentence_facts_and_tables():
    doc = patch_docs.patch_doc(4, layers=[0, 2], controls=("random",))
    text = markdown(doc)
    title = "# Patching Tiny \\(6 layers\\): resid\\_post at all positions, layers 0, 2, notepad0"
    assert text.startswith(f"{title}\n\nPatching instruct's residual stream")
    assert "- layers tested: 0, 2 \\(2 of 4\\)" in text
    assert "recovery tends to 1 at the last layer by construction" in text
    (table,) = re.findall(r"## base → instruct\n\n(?:\|.*\n)+", text)
    assert table == (
        "## base → instruct\n\n"
        "| layer | P | effect | R | increment | KL | R, random | likeliest token |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 0 | 0.928 | -0.002 | 0.00 | \\+0.00 | 0.002 | 0.00 | &lt;tool\\_call\\> 0.928 |\n"
        "| 2 ◆ ½ | 0.066 | -0.864 \\*\\*\\* | 0.65 | \\+0.64 | 0.864 | 0.08 | save 0.467 |\n"
    )


def test_markdown_marks_in_tokens_are_escaped():
    assert escape("a|b `c` [d](e) <f> _g_ &amp;") == (
        "a\\|b \\`c\\` \\[d\\]\\(e\\) &lt;f\\> \\_g\\_ &amp;amp;"
    )
    text = markdown(patch_docs.patch_doc(2, tokens=patch_docs.HOSTILE))
    assert "<script>" not in text
    assert all(line.isprintable() for line in text.splitlines())


# ---- the page


class Page(HTMLParser):
    """Collects tags, references and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words, self.open = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def figures(tmp_path):
    path = tmp_path / "effects.png"
    path.write_bytes(PIXEL)
    return {"effects": str(path), "effects_svg": str(tmp_path / "effects.svg")}


def test_the_page_is_self_contained(figures):
    text = html(patch_docs.patch_doc(6, prompts=2), figures)
    page = Page(text)
    assert page.open == []
    assert page.links == ["data:image/png;base64,iVBORw0KGgo="]
    assert "http:" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "https:" not in text
    assert "url(" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert "prefers-color-scheme: dark" in text
    assert not page.tags & {"script", "link", "iframe", "object", "form"}
    said = "".join(page.words)
    assert sentence(patch_docs.patch_doc(6, prompts=2)) in said
    assert "0.425 [" in said


def test_hostile_text_stays_text(figures):
    hostile = "".join(patch_docs.HOSTILE)
    doc = patch_docs.patch_doc(
        3, tokens=patch_docs.HOSTILE, display=hostile, headline=hostile, controls=(hostile, "b")
    )
    doc["prompts"][0]["id"] = doc["site"] = doc["run_id"] = '"><script>x</script>'
    doc["versions"] = {"<b>": "\x1b\ud800"}
    text = html(doc, figures)
    plain = html(patch_docs.patch_doc(3), figures)
    assert Page(text).tags == Page(plain).tags
    assert all(line.isprintable() for line in text.splitlines())
    text.encode("utf-8")


def test_a_figure_that_is_gone_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(StoreError, match="draw the figures again"):
        html(patch_docs.patch_doc(1), {"effects": str(tmp_path / "none.png")})


@pytest.mark.parametrize("axis", ["by_head", "by_position"])
def test_the_table_of_parts_holds_the_largest_effects(axis):
    grid = layer_grid(patch_docs.by_part(axis, 10), "instruct_to_base")
    assert grid.title == "instruct → base (the 40 largest effects of 60)"
    assert len(grid.rows) == 40
    html(patch_docs.by_part(axis, 2), {})


def test_parts_stand_beside_their_controls():
    doc = patch_docs.by_part("by_head", 2, 2)
    doc["controls"] = {"random": {"instruct_to_base": doc["instruct_to_base"]}}
    grid = layer_grid(doc, "instruct_to_base")
    at = grid.head.index("R, random")
    assert [row[at] for row in grid.rows] == [row[grid.head.index("R")] for row in grid.rows]


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "z", "q", "k", "v", "pattern"])
def test_increments_are_for_the_stream(site, figures):
    stream, other = patch_docs.patch_doc(3), patch_docs.patch_doc(3, site=site)
    figures = {"recovery": figures["effects"]}
    assert "bars show what each layer adds" in html(stream, figures)
    assert "increment" in layer_grid(stream, "instruct_to_base").head
    assert "adds" not in html(other, figures)
    grid = layer_grid(other, "instruct_to_base")
    assert "increment" not in grid.head
    assert {len(row) for row in grid.rows} == {len(grid.head)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "resid_post at all positions, notepad0"),
        ({"positions": "each"}, "resid_post, one position at a time, notepad0"),
        ({"positions": "last", "seed": 3}, "resid_post at the last position, notepad0, seed 3"),
        ({"positions": "3-7"}, "resid_post at positions 3-7, notepad0"),
        ({"site": "z", "heads": "each"}, "z, one head at a time, notepad0"),
        ({"site": "z", "heads": "5"}, "z, head 5, notepad0"),
        ({"prompts": [{"id": "a"}, {"id": "b"}]}, "resid_post at all positions, 2 prompts"),
    ],
)
def test_the_title_tells_runs_of_a_pair_apart(more, said):
    doc = patch_docs.patch_doc(3) | more
    title = f"Patching Tiny (3 layers): {said}"
    text = html(doc | {"display": "Tiny (3 layers)"}, {})
    assert f"<title>{title}</title>" in text
    assert f"<h1>{title}</h1>" in text


def test_the_next_step_is_a_command_where_there_is_a_decision():
    plain = {"pair": "tiny", "prompts": [{"id": "notepad"}]}
    stream = patch_docs.patch_doc(6) | plain
    half = documents.finding(stream, "instruct_to_base").half_layer
    step = f"Next: mlxroles patch --pair tiny --site attn_out --layers {half}"
    assert next_step(stream) == [step]
    assert step in html(stream, {})
    parts = patch_docs.patch_doc(6, site="attn_out") | plain
    assert next_step(parts)[0].startswith("Next: mlxroles patch --pair tiny --site z --heads each")
    other = next_step(stream | {"prompts": [{"id": "mine"}]})
    assert other == [f"Next: the same command with --site attn_out --layers {half}"]
    agreed = patch_docs.patch_doc(6, baselines=(0.9, 0.9)) | plain
    for doc in (agreed, patch_docs.by_part("by_head", 2), stream | {"interrupted": "SIGINT"}):
        assert next_step(doc) == []
