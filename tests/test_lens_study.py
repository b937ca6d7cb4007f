"""Runs of `mlxroles lens` on the small real models: what they store, say, draw and make again."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import stories
from stories import TEXT, TOOL

from mlxroles import lens
from mlxroles.errors import PromptError, SpecError
from mlxroles.lens import Settings
from mlxroles.prompts import Prompt
from mlxroles.report import lens as report
from mlxroles.report.lens.grids import TokenGrid
from mlxroles.studies.lens import results
from mlxroles.studies.lens.fitting import LensFit
from mlxroles.studies.lens.positions import Where
from mlxroles.studies.lens.reading import LensStudy, View
from mlxroles.studies.probe import Probe, variants
from mlxroles.studies.subject import Subject

PLAIN = variants(no_tools=False, system=None)
PROMPTS = [Prompt("a", text=TEXT), Prompt("b", text="The cat sat. "), Prompt("c", text="One day ")]


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module", autouse=True)
def few_grids():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxroles.plots.lens.MOST_GRIDS", 1)
        yield


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    path = tmp_path_factory.mktemp("edits") / "edits.toml"
    path.write_text('[[edit]]\nsite = "attn_out"\nlayers = [1, 2]\nvalue = 0.0\n')
    return path


@pytest.fixture(scope="module")
def fitted(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "run"
    rows = np.random.default_rng(0).integers(3, 500, (12, 10)).tolist()
    prompts = [Prompt(f"t{n}", ids=tuple(row)) for n, row in enumerate(rows)]
    study = LensFit(stories.subject(models), prompts, settings=Settings(steps=6, batch=32))
    return study, stories.run(study, folder)


@pytest.fixture(scope="module")
def ran(models, edits, fitted, tmp_path_factory):
    """A pair, three prompts, clean and edited, plain and tuned, with parts."""
    study = LensStudy(
        stories.subject(models),
        PROMPTS,
        PLAIN,
        View(tuned=(stories_folder(fitted)), edits=edits, parts=True, where=Where("last 4")),
        strings=("[", "the"),
    )
    return study, stories.run(study, tmp_path_factory.mktemp("lens") / "run")


def stories_folder(fitted):
    return results.Path(fitted[1]["run"])


def folder_of(ran):
    return results.Path(ran[1]["run"])


def test_the_last_layer_measures_what_a_probe_measures(models, ran, tmp_path):
    probe = Probe(stories.subject(models), PROMPTS, PLAIN, strings=("[", "the"))
    doc = stories.run(probe, tmp_path / "probe")
    for row in doc["rows"]:
        ours = [
            r for r in ran[1]["rows"] if (r["model"], r["prompt"]) == (row["model"], row["prompt"])
        ]
        clean = [r for r in ours if r["run"] == "clean"]
        assert [r["lens"] for r in clean] == ["plain", "tuned"]
        for found in clean:
            assert found["log_odds"] == pytest.approx(row["log_odds"], abs=1e-4)
            assert found["end_p"] == pytest.approx(row["top5"][0]["prob"], abs=1e-5)
            assert found["end_id"] == row["top5"][0]["id"]


def test_curves_are_means_over_prompts_with_their_intervals(ran):
    doc = ran[1]
    assert len(doc["curves"]) == 2 * 2 * 2
    arrays = results.arrays_of(results.RunFolder.read(folder_of(ran)), doc)
    for entry in doc["curves"]:
        key = tuple(entry[n] for n in ("model", "run", "lens"))
        ours = [
            found
            for row, found in zip(doc["rows"], arrays, strict=True)
            if (row["model"], row["run"], row["lens"]) == key
        ]
        assert entry["n_prompts"] == len(ours) == 3
        column = np.stack([found["log_odds"] for found in ours])
        assert np.allclose(entry["log_odds"], column.mean(0), atol=1e-6)
        low, high = np.array(entry["log_odds_ci"])
        assert (column.min(0) - 1e-6 <= low).all()
        assert (low <= high).all()
        ranks = np.stack([found["rank"] for found in ours])
        assert np.allclose(entry["rank"], np.expm1(np.log1p(ranks).mean(0)), atol=1e-6)


def test_stored_numbers_are_those_of_the_lens(ran, edits):
    study, doc = ran
    arrays = results.arrays_of(results.RunFolder.read(folder_of(ran)), doc)
    from mlxroles.edit_file import read_edits

    for row, found in list(zip(doc["rows"], arrays, strict=True))[:6]:
        model = study.subject.model(row["model"])
        ids = study.variants["default"]["abc".index(row["prompt"])].ids
        here = read_edits(edits, model, len(ids)).in_prompt if row["run"] == "edited" else ()
        tuned = study.tuned[row["model"]] if row["lens"] == "tuned" else None
        own = lens.read(model, ids, edits=here, tuned=tuned, asked=[TOOL])
        assert found["position"].tolist() == list(own.positions[-4:])
        assert np.array_equal(found["top_ids"], own.top_ids[:, -4:])
        assert np.allclose(found["kl"], own.kl[:, -4:], rtol=1e-5, atol=1e-5)
        rows = own.last_logits.astype(np.float64)
        first, second = study.targets.strings
        sides = [{*t.variants} for t in (first, second)]
        up, down = (
            np.logaddexp.reduce(rows[:, sorted(a - b)], axis=1)
            for a, b in ((sides[0], sides[1]), (sides[1], sides[0]))
        )
        assert np.abs(found["contrast"] - (up - down)).max() <= 1e-4


def test_parts_add_up_to_the_difference_of_the_two_strings(ran):
    doc = ran[1]
    assert len(doc["parts"]) == 2 * 3 * 2
    for entry in doc["parts"]:
        assert sum(entry["values"]) == pytest.approx(entry["logit"], abs=1e-3)
        assert (entry["plus"], entry["minus"]) == (["["], [" the"]) or entry["minus"] == ["the"]


def test_everything_is_written_and_made_again_from_what_is_stored(ran, call):
    doc = ran[1]
    folder = folder_of(ran)
    with (folder / "lens.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(doc["rows"]) * doc["n_layers"]
    assert {line["lens"] for line in lines} == {"plain", "tuned"}
    names = sorted(p.name for p in (folder / "figures").glob("*.png"))
    assert names == ["changes.png", "curves.png", "grid_1.png", "parts.png"]
    before = {folder / name: (folder / name).read_bytes() for name in ("report.html", "lens.csv")}
    for path in before:
        path.unlink()
    status, out, _ = call("report", folder, "--json")
    assert status == 0
    assert {p: p.read_bytes() for p in before} == before
    assert json.loads(out)["sentence"] == doc["sentence"]
    assert "log of the odds" in doc["sentence"]


def test_a_second_run_computes_nothing_and_says_the_same(models, edits, fitted, ran, monkeypatch):
    view = View(tuned=stories_folder(fitted), edits=edits, parts=True, where=Where("last 4"))
    again = LensStudy(stories.subject(models), PROMPTS, PLAIN, view, strings=("[", "the"))
    again.compute = None
    monkeypatch.setattr(results, "lens_figures", lambda *_: {})
    doc = stories.run(again, folder_of(ran))
    same = ("rows", "curves", "parts", "texts", "edits", "sentence", "tuned", "notes")
    assert {n: doc[n] for n in same} == {n: ran[1][n] for n in same}
    assert "set attn_out of layers 1-2 to 0" in doc["edits"]["base"][0]


def test_a_fit_writes_a_lens_whose_gain_is_that_of_its_maps(fitted):
    study, doc = fitted
    assert [(r["model"], r["layer"]) for r in doc["rows"]] == [
        (m, layer) for m in ("base", "instruct") for layer in range(doc["n_layers"] - 1)
    ]
    tuned = lens.read_tuned(results.Path(doc["files"]["base"]))
    model = study.subject.model("base")
    plain, mapped = ([], [])
    others = [*study.split.train, *study.split.stop]
    for text in study.split.held_out:
        ids = study.texts[text].ids
        seen = sum(any(study.texts[n].ids[:k] == ids[:k] for n in others) for k in range(1, 11))
        plain.append(lens.read(model, ids).kl[0, max(1, seen) :].mean())
        mapped.append(lens.read(model, ids, tuned=tuned).kl[0, max(1, seen) :].mean())
    row = doc["rows"][0]
    assert row["kl_plain"] == pytest.approx(np.mean(plain), abs=1e-4)
    assert row["kl_tuned"] == pytest.approx(np.mean(mapped), abs=1e-4)
    assert row["gain"] == pytest.approx(row["kl_plain"] - row["kl_tuned"], abs=1e-9)
    assert row["gain_ci"][0] <= row["gain"] <= row["gain_ci"][1]
    assert "positions are few" in " ".join(doc["notes"])
    assert "above 0 at" in doc["sentence"]


def test_the_grids_that_are_shown_have_the_texts_of_their_tokens(models, tmp_path, monkeypatch):
    monkeypatch.setattr("mlxroles.studies.lens.document.SHOWN_GRIDS", 2)
    subject = stories.subject(models)
    study = LensStudy(subject, PROMPTS, PLAIN, View(where=Where("last 3")), strings=("the",))
    doc = stories.run(study, tmp_path / "run")
    shown = report.chosen_grids(results.stored_grids(doc), 2)
    assert [(g.model, g.prompt) for g in shown] == [("base", "a"), ("instruct", "a")]
    for grid in shown:
        assert not any(
            text.isdigit() and len(text) > 1 for row in grid.top for c in row for text in c
        )


def test_all_pieces_of_a_text_serve_for_the_same(models):
    def planned(n_texts):
        rows = np.random.default_rng(0).integers(3, 500, (n_texts, 300)).tolist()
        prompts = [Prompt(f"t{n}", ids=tuple(row)) for n, row in enumerate(rows)]
        return LensFit(Subject.of_model(str(models / "stories260K")), prompts)

    study = planned(10)
    assert study.units == [n for n in range(10) for _ in range(3)]
    assert len(study.split.held_out) == 2
    assert "same texts" not in " ".join(study.subject.notes)
    few = planned(4)
    assert few.units == list(range(12))
    assert "other pieces of the same texts" in " ".join(few.subject.notes)
    assert "2 texts are held out: too few" in " ".join(few.subject.notes)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_no_table_is_wider_than_the_terminal(ran, fitted, width):
    from rich.console import Console

    from mlxroles.dashboard.lens_tables import lens_tables

    entry = {**ran[1]["differences"][0], "variant": "no-tools", "axis": "run", "run": "edited"}
    wide = {**ran[1], "differences": [entry] * 3}
    for doc in (wide, fitted[1]):
        console = Console(width=width, record=True, file=results.io.StringIO())
        console.print(lens_tables(doc, width=width))
        text = console.export_text()
        assert max(len(line) for line in text.splitlines()) <= width
        if doc is wide:  # the numbers of all columns, whole
            assert text.count(f"{entry['mean'][-1]:+.2f} [{entry['ci'][0][-1]:.2f}, ") >= 3
        else:
            assert f"{doc['rows'][-1]['kl_constant']:.3f}" in text
            assert f"{doc['rows'][-1]['loss_gain_ci'][1]:+.3f}]" in text


def test_another_models_lens_is_used_and_said(models, fitted, tmp_path):
    subject = Subject.of_model(str(models / "stories260K"))
    file = results.Path(fitted[1]["files"]["instruct"])
    study = LensStudy(subject, PROMPTS[:1], PLAIN, View(tuned=file), strings=("[",))
    assert "fitted on another model (stories260K-chat)" in subject.notes[-1]
    with pytest.raises(SpecError, match="fitted on resid_post; read that site"):
        LensStudy(subject, PROMPTS[:1], PLAIN, View("mlp_out", tuned=file), strings=("[",))
    with pytest.raises(SpecError, match=r"holds no tuned lens tuned_model\.safetensors"):
        LensStudy(subject, PROMPTS[:1], PLAIN, View(tuned=tmp_path), strings=("[",))
    assert study.identity()["tuned"].keys() == {"model"}


def test_positions_as_they_are_named():
    assert Where().of(100, "p") == list(range(36, 100))
    assert Where("all").of(3, "p") == [0, 1, 2]
    assert Where("last").of(3, "p") == [2]
    assert Where("3-5, -1,0").of(9, "p") == [0, 3, 4, 5, 8]
    assert Where("-3--1").of(9, "p") == [6, 7, 8]
    with pytest.raises(PromptError, match=r"prompt 'p' has no position 9; it has 9 tokens, 0\.\.8"):
        Where("9").of(9, "p")
    for wrong in ("middle", "last 0", ""):
        with pytest.raises(SpecError, match=f"'{wrong}' is none of all, last"):
            Where(wrong)


def test_what_a_user_types_wrong_is_named(call, models, tmp_path, edits):
    model = ("lens", "--model", models / "stories260K", "--tokens", "the", "--prompt", "A cat ")
    for args, status, said in (
        ((*model, "--positions", "99"), 1, "no position 99"),
        ((*model, "--tuned", tmp_path / "no.safetensors"), 1, "does not exist"),
        ((*model, "--tuned", edits), 1, "no readable safetensors"),
        ((*model, "--edits", tmp_path / "no.toml"), 1, "no.toml"),
        ((*model, "--no-tools"), 1, "offers no tools"),
        ((*model, "--site", "q"), 2, "'q' is not one of"),
        ((*model, "--pair", "tiny"), 2, "exclude each other"),
        ((*model, "--fit"), 2, "takes no --tokens"),
        ((*model[:3], "--fit", "--positions", "all"), 2, "takes no --positions"),
        ((*model[:3], "--fit", "--prompt", "A cat "), 1, "needs 10 texts"),
        ((*model[:3], "--fit", "--site", "attn_out"), 1, "attn_out is not"),
    ):
        found, _, err = call(*args)
        assert (found, said in err) == (status, True), err


def test_the_plan_needs_no_weights(call, models):
    status, out, _ = call(
        "lens", "--model", models / "stories260K", "--prompt", "A cat ", "--tokens", "the",
        "--dry-run", "--json",
    )  # fmt: skip
    plan = json.loads(out)
    assert (status, plan["cells"], plan["prompts"][0]["read"]) == (0, 1, 6)
    status, out, _ = call("lens", "--pair", "tiny", "--fit", "--dry-run")
    assert status == 0
    assert "cells         10, on 120 texts, 24 of them held out" in out


def test_the_tool_decision_of_the_packaged_pair_falls_at_layer_three(call, tmp_path):
    status, out, _ = call(
        "lens", "--pair", "tiny", "--no-tools", "--positions", "last", "--out", tmp_path / "run",
        "--json",
    )  # fmt: skip
    doc = json.loads(out)
    assert status == 0
    rows = {(r["model"], r["variant"]): r for r in doc["rows"]}
    assert rows["instruct", "default"]["decided"] == 3
    assert rows["instruct", "no-tools"]["decided"] is None
    assert rows["base", "default"]["decided"] is None
    assert "instruct: on top from layer 3 on" in doc["sentence"]
    assert max(r["end_error"] for r in doc["rows"]) < 1e-4


class Seen(HTMLParser):
    """Tags and the texts of scripts of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.events = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.events += [name for name, _ in attrs if name.startswith("on")]


def test_no_token_becomes_a_tag_or_a_script(ran):
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x1b[31m'
    doc = dict(ran[1])
    doc["texts"] = dict.fromkeys(doc["texts"], hostile)
    doc |= {"headline": hostile, "display": hostile, "notes": [hostile], "contrast": [hostile] * 2}
    n = len(doc["layers"])
    grid = TokenGrid(
        hostile, hostile, hostile, "clean", "plain", tuple(range(n)), (0, 1), (hostile,) * 2,
        (hostile,) * 2, (((hostile,) * 2,) * 2,) * n, np.full((n, 2, 2), 0.5),
        np.zeros((n, 2), int), np.zeros((n, 2), int), np.zeros((n, 2)),
    )  # fmt: skip
    page = report.html(doc, [grid], {})
    seen = Seen()
    seen.feed(page)
    assert seen.tags.count("script") == 1
    assert "img" not in seen.tags
    assert not seen.events
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "script-src 'sha256-" in page


def test_differences_are_paired_by_prompt(ran):
    doc = ran[1]
    arrays = results.arrays_of(results.RunFolder.read(folder_of(ran)), doc)
    keys = [tuple(row[n] for n in ("model", "prompt", "run", "lens")) for row in doc["rows"]]
    by_key = dict(zip(keys, arrays, strict=True))
    assert len(doc["differences"]) == 2 * 2 + 2 * 2
    for entry in doc["differences"]:
        rows = []
        for prompt in "abc":
            here = [entry["model"], prompt, entry["run"], entry["lens"]]
            there = list(here)
            there[{"model": 0, "run": 2}[entry["axis"]]] = entry["change"].split(" - ")[1]
            rows.append(by_key[tuple(here)]["contrast"] - by_key[tuple(there)]["contrast"])
        assert np.allclose(entry["mean"], np.mean(rows, axis=0), atol=1e-6)
        low, high = np.array(entry["ci"])
        assert (np.min(rows, axis=0) - 1e-6 <= low).all()
        assert (high <= np.max(rows, axis=0) + 1e-6).all()
        same = entry["axis"] == "run"  # an edit of layers 1 and 2 leaves layer 0 as it was
        assert (np.abs(entry["mean"][0]) <= 1e-6) == same


def test_the_layer_from_which_an_interval_excludes_0_to_the_end():
    from mlxroles.studies.lens.differences import _since

    def since(low, high):
        return _since(np.array(low), np.array(high))

    assert since([-1, 1, -1, 2], [1, 2, 3, 4]) == 3
    assert since([1, 1], [2, 2]) == 0
    assert since([-2, 1], [-1, 2]) == 1
    assert since([1, -1], [2, 1]) is None
    assert since([np.nan, np.nan], [np.nan, np.nan]) is None


def test_parts_of_a_layer_are_not_told_as_if_they_built_on_each_other(models, tmp_path):
    subject = Subject.of_model(str(models / "stories260K"))
    prompts = [Prompt("a", ids=(1, 403, 407, 261))]
    study = LensStudy(subject, prompts, PLAIN, View("attn_out", Where("last")), token_ids=(508, 5))
    doc = stories.run(study, tmp_path / "run")
    assert doc["sentence"].startswith("tokens 508 5 in what each attention writes: model: at best")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "as if it were the whole stream" in page
    assert "◆" not in page
    assert doc["rows"][0]["end_error"] is None
