"""entropy, pipeline, compare, candidates, correlate and report as a user types them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mlxroles
from mlxroles.roles.tables_csv import CANDIDATE_COLUMNS, COMPARISON_COLUMNS
from mlxroles.store.folder import RunFolder
from mlxroles.studies import role_results

NAMES = ("self_referent", "confounder", "neutral", "third_person")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Few resamples and no figures: both have tests of their own."""
    monkeypatch.chdir(tmp_path)
    own = role_results.Analysis
    few = {"n_resamples": 100, "n_permutations": 100}
    monkeypatch.setattr(role_results, "Analysis", lambda *args: own(*args, **few))
    monkeypatch.setattr(role_results, "role_figures", lambda doc, tables, folder: {})


def prompts(path, per_category=3, categories=NAMES):
    rng = np.random.default_rng(0)
    ids = {
        name: [rng.integers(5, 900, size=5 + n % 2).tolist() for n in range(per_category)]
        for name in categories
    }
    path.write_text(json.dumps(ids))
    return path


@pytest.fixture
def tiny_run(call, tmp_path):
    status, out, _ = call(
        "entropy", "--family", "tiny", "--prompts", prompts(tmp_path / "p.json"), "--json"
    )
    assert status == 0
    return json.loads(out)


def test_json_is_one_document_and_the_folder_holds_what_it_names(tiny_run, tmp_path):
    run = tmp_path / tiny_run["run"]
    assert tiny_run["schema"] == "mlxroles/entropy/1"
    assert tiny_run["models"] == ["base", "instruct"]
    for name in ("run.h5", "summary.json", "report.html", "summary.md", "comparison.csv"):
        assert (run / name).stat().st_size > 0
    rows = list(csv.DictReader((run / "heads.csv").read_text().splitlines()))
    assert len({(row["layer"], row["head"]) for row in rows}) == 48
    assert tiny_run["sentence"].split(": ")[0] in (run / "report.html").read_text()


def test_a_second_call_computes_nothing(tiny_run, call, tmp_path):
    _, out, err = call("entropy", "--family", "tiny", "--prompts", tmp_path / "p.json", "--json")
    again = json.loads(out)
    assert again["timestamp"] == tiny_run["timestamp"]
    assert "24 cells, 24 done" in err


def test_the_terminal_summary_fits_80_columns_and_names_the_report(call, tmp_path):
    status, out, _ = call(
        "entropy", "--family", "tiny", "--prompts", prompts(tmp_path / "p.json"), "--plain"
    )
    assert status == 0
    assert "report.html" in out
    assert "RFC" in out
    assert "\x1b" not in out


def test_one_variant_needs_only_that_model(call, tmp_path, monkeypatch):
    own = tmp_path / "pairs.toml"
    own.write_text('[mine]\nbase = "package:tiny/base"\ninstruct = "/nowhere/at/all"\n')
    monkeypatch.setenv("MLXROLES_PAIRS", str(own))
    source = prompts(tmp_path / "p.json")
    status, out, _ = call(
        "entropy", "--family", "mine", "--variant", "base", "--prompts", source, "--json"
    )
    assert status == 0
    doc = json.loads(out)
    assert doc["models"] == ["base"]
    assert doc["candidates"] is None
    status, _, err = call("entropy", "--family", "mine", "--prompts", source)
    assert (status, err.count("\n")) == (1, 1)


def test_a_dry_run_shows_batches_and_loads_nothing(call, tmp_path):
    status, out, _ = call("entropy", "--family", "tiny", "--dry-run")
    assert status == 0
    assert "240 in" in out
    assert "self_referent: 30 prompts of 5 to 17, mean 10.33" in out
    assert not (tmp_path / "results").exists()


def test_compare_of_a_run_equals_its_own_table(tiny_run, call, tmp_path):
    status, out, _ = call("compare", "tiny", "--json", "--csv", "mine.csv")
    doc = json.loads(out)
    assert status == 0
    assert [row["layer"] for row in doc["rows"]] == list(range(6))
    for layer, row in enumerate(doc["rows"]):
        stated = tiny_run["raw"]["difference"]["rfc"]["ratio_of_means"]["value"][layer]
        assert row["rfc_diff"] == stated
    stored = (tmp_path / tiny_run["run"] / "comparison.csv").read_text()
    assert (tmp_path / "mine.csv").read_text() == stored


def test_candidates_of_a_run_come_with_chance_and_null(tiny_run, call):
    status, out, _ = call("candidates", tiny_run["run"], "--top-k", "4", "--json")
    doc = json.loads(out)
    assert (status, len(doc["rows"])) == (0, 4)
    assert doc["rows"] == tiny_run["candidates"]["rows"][:4]
    _, out, err = call("candidates", tiny_run["run"], "--top-k", "4")
    assert f"from {tiny_run['run']}\n" in err
    assert "consistency by chance alone" in out
    assert "shuffles of the categories" in out.replace("\n", " ")


def test_compat_prints_the_columns_of_the_study(shared, call):
    golden = shared / "data" / "golden"
    sides = ["--base", golden / "attn_base.npz", "--instruct", golden / "attn_instruct.npz"]
    wanted = json.loads((golden / "expected.json").read_text())
    _, out, _ = call("compare", "--compat", *sides, "--json")
    rows = json.loads(out)["rows"]
    assert [list(row) for row in rows] == [list(COMPARISON_COLUMNS)] * len(rows)
    for row, one in zip(rows, wanted["comparison_first28heads"], strict=True):
        assert {k: row[k] for k in one} == pytest.approx(one, abs=1e-6)
    _, out, _ = call("candidates", "--compat", *sides, "--top-k", "10", "--json")
    rows = json.loads(out)["rows"]
    assert list(rows[0]) == list(CANDIDATE_COLUMNS)
    for row, one in zip(rows, wanted["candidates_top10"], strict=True):
        assert {k: row[k] for k in one} == pytest.approx(one, abs=1e-6)


def test_the_published_table_says_of_itself_what_the_study_said(shared, call):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    _, out, _ = call("compare", "--compat", table, "--json")
    summary = json.loads(out)["summary"]["rfc"]
    assert summary["mean"] == pytest.approx(-0.023269, abs=1e-6)
    assert (summary["significant_negative"], summary["near_zero"]) == (22, 5)
    _, out, _ = call("compare", table)
    assert "22 of 32" in out


def test_correlate_takes_every_kind_of_source(tiny_run, shared, call, tmp_path):
    study = shared / "data" / "self-referent-study"
    golden = shared / "data" / "golden"
    apart = f"{golden / 'attn_base.npz'}:{golden / 'attn_instruct.npz'}"
    tables = [
        study / "llama_detailed_comparison.csv",
        study / "llama_detailed_comparison_20251019.csv",
    ]
    status, out, _ = call("correlate", *tables, "tiny", apart, "--json", "--out", "together")
    doc = json.loads(out)
    assert status == 0
    assert len(doc["families"]) == 4
    assert len(doc["pairs"]) == 6
    first = next(p for p in doc["pairs"] if {p["a"], p["b"]} == {"llama", "llama_20251019"})
    assert first["pearson_r"] == pytest.approx(0.97517, abs=1e-5)
    assert (tmp_path / "together" / "figures" / "families.png").exists()
    _, out, _ = call("correlate", "--compat", *tables, "--json")
    stated = json.loads(out)
    assert stated["correlations"]["llama_vs_llama_20251019"]["layers_compared"] == 32


def test_a_report_is_made_again_and_another_reading_has_a_place_of_its_own(
    tiny_run, call, tmp_path
):
    run = tmp_path / tiny_run["run"]
    (run / "report.html").unlink()
    status, out, _ = call("report", tiny_run["run"])
    assert (status, out.strip()) == (0, f"{tiny_run['run']}/report.html")
    page = (run / "report.html").read_bytes()
    reading = ["--queries", "last", "--contrast", "third_person/neutral"]
    status, out, _ = call("report", "tiny", *reading)
    other = tmp_path / out.strip()
    assert other.parent.parent == run / "readings"
    doc = json.loads((other.parent / "summary.json").read_text())
    assert doc["reading"]["queries"] == "last"
    assert doc["contrast"] == {
        "focus": "third_person",
        "reference": "neutral",
        "confounder": None,
    }
    assert (run / "report.html").read_bytes() == page
    _, out, _ = call("compare", "tiny", "--json")
    assert (
        json.loads(out)["rows"][0]["rfc_diff"]
        == (tiny_run["raw"]["difference"]["rfc"]["ratio_of_means"]["value"][0])
    )


def test_the_notes_of_one_reading_do_not_reach_another(tiny_run, call, tmp_path):
    call("entropy", "--family", "tiny", "--prompts", tmp_path / "p.json", "--queries", "last")
    _, out, _ = call("entropy", "--family", "tiny", "--prompts", tmp_path / "p.json", "--json")
    assert json.loads(out)["notes"] == tiny_run["notes"]


def test_figures_of_an_earlier_reading_are_removed(tiny_run, tmp_path, monkeypatch):
    figures = tmp_path / tiny_run["run"] / "figures"
    figures.mkdir(exist_ok=True)
    (figures / "confounder_base.png").write_bytes(b"old")
    (figures / "mine.txt").write_text("kept")
    analysis = role_results.Analysis(role_results.Reading("last"))
    with RunFolder.reopen(tmp_path / tiny_run["run"]) as folder:
        role_results.finish(folder, analysis)
    assert [path.name for path in figures.iterdir()] == ["mine.txt"]


def test_correlate_reads_back_what_compare_wrote(tiny_run, call, tmp_path):
    run = tmp_path / tiny_run["run"]
    shutil.copy(run / "comparison.csv", "first.csv")
    shutil.copy(run / "comparison.csv", "second.csv")
    status, out, _ = call("correlate", "first.csv", "second.csv", "--json")
    assert status == 0
    assert json.loads(out)["pairs"][0]["pearson_r"] == pytest.approx(1)
    status, _, err = call("compare", "first.csv")
    assert status == 1
    assert "correlate" in err


def test_correlate_takes_the_differences_that_a_table_states(shared, call, tmp_path):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    stated = np.random.default_rng(0).normal(size=(2, len(rows)))
    for name, values in zip(("a.csv", "b.csv"), stated, strict=True):
        changed = [row | {"rfc_diff": repr(float(v))} for row, v in zip(rows, values, strict=True)]
        role_results.write_csv(tmp_path / name, changed)
    _, out, _ = call("correlate", "--compat", "a.csv", "b.csv", "--json")
    doc = json.loads(out)
    assert doc["summary_stats"]["a"]["mean"] == pytest.approx(stated[0].mean())
    r = np.corrcoef(stated)[0, 1]
    assert doc["correlations"]["a_vs_b"]["pearson_r"] == pytest.approx(r)
    _, out, _ = call("compare", "--compat", "a.csv", "--json")
    assert "contradict" in json.loads(out)["notes"][0]


def test_any_number_of_tables_of_one_name_is_told_apart(shared, call, tmp_path):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    paths = [tmp_path / name / "out" / "detailed_comparison.csv" for name in "abc"]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copy(table, path)
    _, out, _ = call("correlate", "--compat", *paths, "--json")
    assert list(json.loads(out)["sources"]) == ["a/out/out", "b/out/out", "c/out/out"]
    _, out, _ = call("correlate", "--compat", *paths[:1] * 3, "--json")
    assert len(json.loads(out)["correlations"]) == 3


def test_a_run_of_one_model_is_compared_with_nothing(call, tmp_path):
    args = ["--variant", "base", "--prompts", prompts(tmp_path / "p.json"), "--json"]
    _, out, _ = call("entropy", "--family", "tiny", *args)
    for command in ("compare", "candidates"):
        status, _, err = call(command, json.loads(out)["run"])
        assert (status, err.count("\n")) == (1, 1)
        assert "one model" in err


def test_a_reading_that_has_no_place_is_one_line(tiny_run, call, tmp_path):
    (tmp_path / tiny_run["run"] / "readings").write_text("x")
    status, _, err = call("report", tiny_run["run"], "--queries", "last")
    assert (status, err.count("\n")) == (1, 1)


def test_families_in_different_forms_are_said_to_be(tiny_run, shared, call):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    _, out, _ = call("correlate", "tiny", table, "--json")
    assert "mean over heads of ratios" in json.loads(out)["notes"][0]


def test_a_table_has_no_queries_to_choose(shared, call):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    status, _, err = call("compare", table, "--queries", "last")
    assert status == 1
    assert "--queries" in err


def test_a_place_that_cannot_be_written_is_one_line(shared, call, tmp_path):
    table = shared / "data" / "self-referent-study" / "llama_detailed_comparison.csv"
    (tmp_path / "file").write_text("x")
    for args in (["correlate", table, table, "--out"], ["compare", table, "--csv"]):
        status, _, err = call(*args, "file/below")
        assert (status, err.count("\n")) == (1, 1)


def test_a_run_outside_the_catalogue_is_named_by_its_folder(tiny_run, call, tmp_path):
    (tmp_path / "results" / "entropy_tiny").rename(tmp_path / "results" / "entropy_mine-chat-1f")
    status, out, _ = call("compare", "mine", "--json")
    assert (status, json.loads(out)["family"]) == (0, "tiny (embedded)")
    status, _, err = call("compare", "other")
    assert status == 1
    assert "mine-chat-1f" in err


def test_compat_has_no_readings(shared, call):
    golden = shared / "data" / "golden"
    sides = ["--base", golden / "attn_base.npz", "--instruct", golden / "attn_instruct.npz"]
    status, _, err = call("compare", "--compat", *sides, "--queries", "last")
    assert status == 2
    assert "--compat" in err


def test_more_prompts_than_are_run_are_mentioned(call, tmp_path):
    source = prompts(tmp_path / "p.json", per_category=5)
    args = ["entropy", "--family", "tiny", "--prompts", source, "--prompts-per-category", "2"]
    _, _, err = call(*args, "--dry-run")
    assert "12 others do not" in err


def test_a_dry_pipeline_shows_every_family(call, tmp_path):
    status, out, _ = call("pipeline", "--family", "tiny", "--dry-run", "--json")
    (plan,) = json.loads(out)["families"]
    assert (status, plan["cells"]) == (0, 240)
    assert not (tmp_path / "results").exists()


def test_a_family_that_cannot_run_does_not_stop_the_others(call, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(Path(mlxroles.__file__).parent / "data" / "tiny" / "base", broken)
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:5000])
    own = tmp_path / "pairs.toml"
    own.write_text(f'[bad]\nkind = "family"\nbase = "{broken}"\ninstruct = "package:tiny/base"\n')
    monkeypatch.setenv("MLXROLES_PAIRS", str(own))
    args = ["--family", "bad", "--family", "tiny", "--prompts", prompts(tmp_path / "p.json")]
    status, out, err = call("pipeline", *args, "--json")
    assert status == 3
    assert [one["family"] for one in json.loads(out)["families"]] == ["tiny"]
    assert "bad: " in err


def test_a_pipeline_of_two_families_ends_in_their_correlation(call, tmp_path, monkeypatch):
    own = tmp_path / "pairs.toml"
    own.write_text(
        '[other]\nkind = "family"\nbase = "package:tiny/instruct"\ninstruct = "package:tiny/base"\n'
    )
    monkeypatch.setenv("MLXROLES_PAIRS", str(own))
    source = prompts(tmp_path / "p.json")
    both = ["--family", "tiny", "--family", "other"]
    status, out, _ = call("pipeline", *both, "--prompts", source, "--json")
    doc = json.loads(out)
    assert status == 0
    assert [one["family"] for one in doc["families"]] == ["tiny", "other"]
    (pair,) = doc["correlation"]["pairs"]
    assert pair["n_layers"] == 6
    status, out, err = call("pipeline", "--all", "--prompts", source, "--json")
    assert status == 0
    assert "run `mlxroles models pull llama`" in err
    assert [one["family"] for one in json.loads(out)["families"]] == ["other"]


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["entropy"], 2, "--family"),
        (["entropy", "--family", "tniy"], 1, "did you mean 'tiny'"),
        (["entropy", "--family", "tiny", "--model", "x"], 2, "excludes"),
        (["entropy", "--family", "tiny", "--prompts", "nothing.json"], 1, "no such file"),
        (["entropy", "--family", "tiny", "--prompts-per-category", "0"], 2, "0"),
        (["compare"], 2, "--base and --instruct"),
        (["compare", "llama"], 1, "mlxroles entropy --family llama"),
        (["compare", "nothing"], 1, "nothing"),
        (["compare", "tiny", "--base", "x", "--instruct", "y"], 2, "exclude"),
        (["candidates", "tiny"], 1, "mlxroles entropy --family tiny"),
        (["correlate", "a.csv"], 1, "two families"),
        (["report", "nowhere"], 1, "nowhere"),
        (["pipeline"], 2, "--family"),
        (["pipeline", "--family", "nope"], 1, "nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_one_line_with_what_to_do(args, status, said, call):
    found, out, err = call(*args)
    assert found == status
    assert said in err
    assert not out
    if status == 1:
        assert err.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "not HDF5"])
def test_a_run_without_its_packed_file_is_refused_and_made_whole_by_report(
    damage, tiny_run, call, tmp_path
):
    packed = tmp_path / tiny_run["run"] / "run.h5"
    before = packed.read_bytes()
    packed.unlink()
    if damage != "missing":
        packed.write_bytes(b"not a file")
    status, _, err = call("candidates", tiny_run["run"], "--json")
    assert (status, err.count("\n")) == (1, 1)
    assert "run.h5" in err
    if damage == "missing":
        assert call("report", tiny_run["run"])[0] == 0
        assert len(packed.read_bytes()) == len(before)


def test_a_contrast_that_does_not_exist_is_named(call, tmp_path):
    source = prompts(tmp_path / "p.json")
    args = [
        "entropy",
        "--family",
        "tiny",
        "--prompts",
        source,
        "--contrast",
        "slef_referent/neutral",
    ]
    status, _, err = call(*args)
    assert status == 1
    assert "self_referent" in err
    assert not (tmp_path / "results").exists()
    assert call(*args, "--dry-run")[0] == 1


def test_hostile_categories_are_inert_everywhere(call, tmp_path):
    names = ("<script>alert(1)</script>", "\x1b[31mred", "[b]x[/b]")
    source = prompts(tmp_path / "p.json", categories=names)
    status, out, err = call("entropy", "--family", "tiny", "--prompts", source)
    assert status == 0
    assert "\x1b[31m" not in out + err
    page = next((tmp_path / "results").rglob("report.html")).read_text()
    assert "<script>alert" not in page


def test_one_category_gives_entropies_and_no_claim(call, tmp_path):
    source = prompts(tmp_path / "p.json", categories=("only",))
    status, out, _ = call("entropy", "--family", "tiny", "--prompts", source, "--json")
    doc = json.loads(out)
    assert (status, doc["contrast"]) == (0, None)
    status, _, err = call("compare", doc["run"])
    assert status == 1
    assert "two categories" in err or "no contrast" in err


def test_the_study_s_own_prompts_load_as_they_are(shared, call, tmp_path):
    source = tmp_path / "prompts.json"
    shutil.copy(shared / "data" / "self-referent-study" / "prompts_120.json", source)
    status, out, _ = call("entropy", "--family", "tiny", "--prompts", source, "--dry-run", "--json")
    plan = json.loads(out)
    assert (status, plan["cells"]) == (0, 240)


def test_a_family_stands_for_its_newest_run_of_both_models(tiny_run, call, tmp_path):
    alone = ["--variant", "base", "--prompts", tmp_path / "p.json", "--json"]
    status, _, _ = call("entropy", "--family", "tiny", *alone)
    assert status == 0
    status, out, _ = call("compare", "tiny", "--json")
    assert status == 0
    assert json.loads(out)["base"] in tiny_run["run"]
