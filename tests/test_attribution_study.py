"""An attribution run against plain forwards, finite differences and scipy, cell by cell."""

import io
import json

import h5py
import numpy as np
import pytest
import scipy.stats
import stories
from rich.console import Console
from stories import TEXT, TOOL, Plain, softmax

from mlxroles import attribution, stats
from mlxroles.backend import mx
from mlxroles.cli.patch import METRICS
from mlxroles.dashboard.attribution_tables import attribution_tables
from mlxroles.documents import DIRECTIONS, donor, recipient
from mlxroles.edits import transplant
from mlxroles.errors import SpecError
from mlxroles.events import CellDone
from mlxroles.forward import forward
from mlxroles.plots import attribution as plots
from mlxroles.plots import canvas
from mlxroles.prompts import Prompt
from mlxroles.report import attribution as attribution_report
from mlxroles.store.folder import RunFolder
from mlxroles.studies.attribution import document as attribution_document
from mlxroles.studies.attribution import results as attribution_results
from mlxroles.studies.attribution.document import document
from mlxroles.studies.attribution.grid import HEAD_SITES, SITES, STREAM_SITES
from mlxroles.studies.attribution.stored import Stored
from mlxroles.studies.attribution.sweep import AttributionOptions, AttributionSweep
from mlxroles.studies.attribution.verify import agreement, choose
from mlxroles.studies.place import RunPlace

LAYERS = range(5)
SIDES = ("base", "instruct")
IDS = [1, 403, 407, 261, 378, 410]
SEVERAL = ([1, 403, 407, 261, 410], [1, 300, 301, 302, 410], [1, 17, 350, 261, 410])


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Figures have tests of their own and take longer than everything here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution_results, "attribution_figures", lambda doc, maps, folder: {})
        yield


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module")
def plain(models):
    names = ("stories260K", "stories260K-chat")
    return {s: Plain(models / n) for s, n in zip(SIDES, names, strict=True)}


def planned(models, prompts=(IDS,), **options):
    subject = stories.subject(models, resident=options.pop("resident", 2))
    options = {"token_ids": (TOOL,)} | options
    found = [
        Prompt(f"p{n:03d}", text=p) if isinstance(p, str) else Prompt(f"p{n:03d}", ids=tuple(p))
        for n, p in enumerate(prompts)
    ]
    return AttributionSweep(subject, found, AttributionOptions(**options))


@pytest.fixture(scope="module")
def verified(models, tmp_path_factory):
    """One prompt, all sites, ten cells of each verified: document, study, folder."""
    study = planned(models, verify=10)
    folder = tmp_path_factory.mktemp("verified")
    return stories.run(study, folder), study, folder


@pytest.fixture(scope="module")
def several(models, tmp_path_factory):
    """Three prompts of one length."""
    study = planned(models, SEVERAL)
    folder = tmp_path_factory.mktemp("several")
    return stories.run(study, folder), study, folder


def packed(folder, site):
    """Estimates of base into instruct [prompt, layer, (head,) position]."""
    with h5py.File(folder / "run.h5") as file:
        assert file["direction"][0].decode() == "base_to_instruct"
        return file[site][:, 0]


def summed(study, folder):
    """The document of a stored run as if the models disagreed enough for shares of their gap."""
    with pytest.MonkeyPatch.context() as patch, RunFolder.reopen(folder) as stored:
        patch.setattr(attribution_document, "SMALL_LEVEL", 0.0)
        found = Stored(study.grid, stored.records().values(), stored.arrays)
        about = {"n_layers": 5, "run_id": "x", "failed_cells": []}
        return document(found, metric="log_odds", ig=1, tokens=[], about=about)


def odds(row):
    p = softmax(row)
    return np.log(p[TOOL]) - np.log(np.delete(p, TOOL).sum())


def arrays(study, side, ids, site):
    """The model's own arrays at a site, by layer."""
    network = study.subject.model(side).network
    return forward(network, mx.array([ids]), keep=[site], read=[len(ids) - 1]).sites[site]


def patched_odds(study, side, ids, edit):
    run = forward(
        study.subject.model(side).network, mx.array([ids]), edits=[edit], read=[len(ids) - 1]
    )
    return odds(np.array(run.logits)[0, 0])


# --- estimates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [*STREAM_SITES, "z", "v", "pattern"])
def test_estimates_are_the_slope_of_a_small_patch(verified, site):
    """A hundredth of the way to the donor changes the metric by a hundredth of the estimate."""
    _, study, folder = verified
    ours, own = (arrays(study, side, IDS, site) for side in SIDES)
    found, share = packed(folder, site)[0], 0.01
    for layer, position in ((0, 2), (2, 5), (4, 5)):
        head = None if site in STREAM_SITES else 1
        where = {"positions": [position], "heads": None if head is None else [head]}
        change = []
        for step in (share, -share):
            array = own[layer] + step * (ours[layer] - own[layer])
            edit = transplant(site, layer, array, **where)
            change.append(patched_odds(study, "instruct", IDS, edit))
        slope = (change[0] - change[1]) / (2 * share)
        at = (layer, position) if head is None else (layer, head, position)
        assert found[at] == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_levels_are_those_of_both_models_and_recovery_is_the_share_of_their_gap(verified, plain):
    doc, _, _ = verified
    for direction in DIRECTIONS:
        entry = doc[direction]
        levels = {s: odds(plain[s].logits(IDS)[-1]) for s in SIDES}
        assert entry["recipient"] == pytest.approx(levels[recipient(direction)], abs=1e-4)
        assert entry["donor"] == pytest.approx(levels[donor(direction)], abs=1e-4)
        gap = entry["donor"] - entry["recipient"]
        assert entry["gap"] == pytest.approx(gap, abs=1e-9)
        for model, measures in entry["models"].items():
            row = softmax(plain[model].logits(IDS)[-1])
            assert measures["p_first_token"] == pytest.approx(row[TOOL], rel=1e-4, abs=1e-12)


def test_the_document_sums_what_is_packed(verified):
    doc, _, folder = verified
    entry = doc["base_to_instruct"]
    for site in HEAD_SITES:
        whole = packed(folder, site)[0].astype(np.float64)
        heads = np.array(entry["sites"][site]["grid"]["estimate"])
        assert heads == pytest.approx(whole[:, : heads.shape[1]].sum(axis=-1), abs=1e-6)
    for site in STREAM_SITES:
        whole = packed(folder, site)[0].astype(np.float64)
        assert entry["sites"][site]["axes"] == ["layer", "position"]
        assert entry["sites"][site]["by_layer"]["estimate"] == pytest.approx(
            whole.sum(axis=-1), abs=1e-6
        )
        flat = np.abs(whole[np.isfinite(whole)])
        assert abs(entry["sites"][site]["top"][0]["estimate"]) == pytest.approx(flat.max())
        # of the last layer only the position that is read is a cell
        assert entry["sites"][site]["cells"] == 4 * len(IDS) + 1
    assert packed(folder, "k").shape == (1, 5, 4, len(IDS))
    assert packed(folder, "q").shape == (1, 5, 8, len(IDS))


def test_the_positions_that_count_are_summed_and_the_layers_chosen(models, verified, tmp_path):
    _, _, folder = verified
    study = planned(models, layers="1,3", positions="2-3")
    doc = stories.run(study, tmp_path / "run")
    assert doc["positions"] == dict.fromkeys(SITES, "2-3")
    assert doc["layers_tested"] == [1, 3]
    for site in SITES:
        whole = packed(folder, site)[0].astype(np.float64)[[1, 3]][..., 2:4].sum(axis=-1)
        ours = np.array(doc["base_to_instruct"]["sites"][site]["grid"]["estimate"])
        assert ours == pytest.approx(whole[:, : ours.shape[-1]] if ours.ndim > 1 else whole)
    assert {row["layer"] for row in doc["base_to_instruct"]["sites"]["z"]["top"]} == {1, 3}


def test_one_site_with_a_cell_per_position_also_has_heads_by_position(models, verified, tmp_path):
    _, _, folder = verified
    doc = stories.run(planned(models, site="z", positions="each"), tmp_path / "run")
    entry = doc["base_to_instruct"]["sites"]
    assert list(entry) == ["z"]
    row = entry["z"]["top"][0]
    whole = packed(folder, "z")[0]
    assert row["estimate"] == pytest.approx(whole[row["layer"], row["head"], row["position"]])
    assert len(row["token"]) > 0


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("kl", "p_chain")])
def test_every_metric_reads_what_the_probes_measure(models, tmp_path, metric):
    doc = stories.run(planned(models, metric=metric, site="z"), tmp_path / "run")
    for direction in DIRECTIONS:
        entry = doc[direction]
        assert np.isfinite(entry["gap"])
        if metric in ("log_odds", "entropy", "p_first_token"):
            assert entry["recipient"] == pytest.approx(
                entry["models"][recipient(direction)][metric], rel=1e-4, abs=1e-5
            )
    assert doc["metric"] == metric


def test_a_string_of_several_tokens_is_measured_whole(models, plain, tmp_path):
    study = planned(
        models, [TEXT], metric="p_chain", strings=("the puppy",), token_ids=(), site="attn_out"
    )
    chain = study.targets.head.chain
    assert len(chain) > 1
    doc = stories.run(study, tmp_path / "run")
    ids = [*study.grid.prompts[0].ids, *chain[:-1]]
    n = study.grid.prompts[0].n_tokens
    for side in SIDES:
        rows = plain[side].logits(ids)[n - 1 :]
        whole = np.prod([softmax(row)[i] for row, i in zip(rows, chain, strict=True)])
        direction = next(d for d in DIRECTIONS if recipient(d) == side)
        assert doc[direction]["recipient"] == pytest.approx(whole, rel=1e-3)
    # what is packed reaches to the end of the string, cells end with the prompt
    assert packed(tmp_path / "run", "attn_out").shape[-1] == len(ids)
    assert max(r["position"] for r in doc[DIRECTIONS[0]]["sites"]["attn_out"]["top"]) < n


def test_more_gradients_come_nearer_to_the_exact_effect(models, verified, tmp_path):
    doc, _, _ = verified
    finer = stories.run(planned(models, ig=8, verify=10, site="z"), tmp_path / "run")
    assert finer["ig"] == 8

    def miss(found):
        rows = [r for d in DIRECTIONS for r in found[d]["verify"]["z"]["rows"]]
        return np.mean([abs(r["difference"]) for r in rows if r["kind"] == "largest"])

    assert miss(finer) < 0.8 * miss(doc)
    assert finer["base_to_instruct"]["passes"] > doc["base_to_instruct"]["passes"]


def test_integrated_sites_are_cells_of_their_own_and_heads_take_one_gradient(
    models, verified, tmp_path
):
    _, _, folder = verified
    study = planned(models, ig=2)
    assert len(study.cells) == 2 * len(SITES)
    assert any("heads come from one gradient" in text for text in study.subject.notes)
    doc = stories.run(study, tmp_path / "run")
    assert doc["integrated"] == list(STREAM_SITES)
    for site in HEAD_SITES:
        assert packed(tmp_path / "run", site) == pytest.approx(packed(folder, site), abs=1e-6)
    for site in STREAM_SITES:
        assert packed(tmp_path / "run", site) != pytest.approx(packed(folder, site), abs=1e-3)
    assert "of z, q, k, v, pattern one at the recipient" in attribution_report.html(doc, {})
    # 8 cells, and 2 points in each of the ways that the 6 positions of a stream move
    layers = len(SITES) * 5 + len(STREAM_SITES) * 2 * len(IDS) * sum(5 - n for n in LAYERS)
    assert doc["base_to_instruct"]["gradients"] == pytest.approx(layers / 5)
    assert study.plan()["layer_calls"] == 2 * 5 + 3 * 2 * layers
    alone = planned(models, ig=2, site="z")
    assert alone.grid.integrated == ("z",)
    assert planned(models, ig=2, metric="kl").grid.sites == STREAM_SITES


def test_a_run_that_ended_between_two_sites_shows_what_there_is(models, tmp_path):
    study = planned(models, ig=2)
    stories.run(study, tmp_path / "run")
    with RunFolder.reopen(tmp_path / "run") as folder:
        records = list(folder.records().values())
        stored = Stored(study.grid, records[:2], folder.arrays)
        about = {"n_layers": 5, "run_id": "x", "failed_cells": []}
        doc = document(stored, metric="log_odds", ig=2, tokens=[], about=about)
    assert doc["sites"] == ["resid_post", "attn_out"]
    assert "not verified" in attribution_report.html(doc, {})


def test_points_beyond_use_are_refused_and_a_dear_run_says_so(models):
    with pytest.raises(SpecError, match="--ig 100000: gradients are taken at 64 points at most"):
        planned(models, ig=100_000)
    notes = planned(models, ig=8).subject.notes
    assert any("--ig 8 costs more" in text and "--method exact" in text for text in notes)
    assert not any("costs more" in text for text in planned(models).subject.notes)


# --- exact runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", SITES)
def test_verified_cells_are_those_of_plain_patched_forwards(verified, direction, site):
    doc, study, _ = verified
    side = recipient(direction)
    given = arrays(study, donor(direction), IDS, site)
    entry = doc[direction]["verify"][site]
    assert [row["kind"] for row in entry["rows"]].count("largest") == 10
    for row in entry["rows"]:
        where = {
            "positions": [row["position"]] if "position" in row else None,
            "heads": [row["head"]] if "head" in row else None,
        }
        edit = transplant(site, row["layer"], given[row["layer"]], **where)
        exact = patched_odds(study, side, IDS, edit) - doc[direction]["recipient"]
        assert row["exact"] == pytest.approx(exact, abs=2e-4)
        assert row["difference"] == pytest.approx(row["estimate"] - row["exact"], abs=1e-9)


def test_the_verified_cells_are_the_largest_and_a_seeded_draw_of_the_rest(verified):
    doc, _, _ = verified
    entry = doc["base_to_instruct"]
    for site in SITES:
        rows = entry["verify"][site]["rows"]
        names = ("layer", "head", "position")
        places = [tuple(row.get(name) for name in names) for row in rows]
        assert len(set(places)) == len(rows)
        top = [tuple(row.get(name) for name in names) for row in entry["sites"][site]["top"]]
        assert places[:10] == top[:10]
        least = min(abs(row["estimate"]) for row in rows[:10])
        assert all(abs(row["estimate"]) <= least for row in rows[10:])


def test_choosing_passes_over_what_has_no_number_and_ends_where_cells_end():
    values = np.array([[1.0, -5.0, np.nan], [0.5, 3.0, 0.0]])
    found = choose(values, 2, np.random.default_rng(0))
    assert found[:2] == [((0, 1), "largest"), ((1, 1), "largest")]
    assert {kind for _, kind in found[2:]} == {"random"}
    assert {at for at, _ in found[2:]} <= {(0, 0), (1, 0), (1, 2)}
    assert len(choose(values, 9, np.random.default_rng(0))) == 5
    assert choose(values, 2, np.random.default_rng(0)) == found


def test_agreement_is_scipys_and_names_the_largest_misses():
    rng = np.random.default_rng(1)
    exact = rng.standard_normal(30)
    estimate = exact + 0.5 * rng.standard_normal(30)
    estimate[4] += 9
    rows = [
        {"estimate": a, "exact": b, "kind": "largest" if n < 10 else "random"}
        for n, (a, b) in enumerate(zip(estimate, exact, strict=True))
    ]
    found = agreement(rows, np.random.default_rng(0), 40)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(estimate, exact).statistic)
    part = scipy.stats.spearmanr(estimate[10:], exact[10:]).statistic
    assert found["random"]["spearman"] == pytest.approx(part)
    assert (found["n"], found["random"]["n"]) == (30, 20)
    low, high = found["spearman_ci"]
    assert low < found["spearman"] < high
    assert found["sign_agreement"] == np.mean(np.sign(estimate) == np.sign(exact))
    assert found["misses"][0] == 4
    assert found["largest_difference"] == estimate[4] - exact[4]
    assert not found["complete"]
    assert agreement(rows, np.random.default_rng(0), 30)["complete"]
    few = agreement(rows[:3], np.random.default_rng(0), 30)
    assert np.isnan(few["spearman"])
    assert few["spearman_ci"] is None


# --- several prompts ------------------------------------------------------------------------------


def test_means_intervals_and_p_values_are_over_prompts(several):
    _, study, folder = several
    doc = summed(study, folder)
    whole = packed(folder, "z").astype(np.float64).sum(axis=-1)
    entry = doc["base_to_instruct"]["sites"]["z"]
    grid = {name: np.array(values, dtype=float) for name, values in entry["grid"].items()}
    assert grid["estimate"] == pytest.approx(whole.mean(axis=0), abs=1e-6)
    assert (grid["low"] <= grid["estimate"]).all()
    assert (grid["estimate"] <= grid["high"]).all()
    assert grid["low"] == pytest.approx(whole.min(axis=0), abs=1e-5)  # of 3 prompts, 1 in 27
    assert np.isin(grid["p"], [0.25, 0.5, 0.75, 1.0]).all()  # 2^3 signs, two-sided
    assert grid["q"] == pytest.approx(stats.benjamini_hochberg(grid["p"]))
    row = entry["top"][0]
    assert row["p"] == grid["p"][row["layer"], row["head"]]
    assert row["estimate_ci"][0] <= row["estimate"] <= row["estimate_ci"][1]
    with h5py.File(folder / "run.h5") as file:
        gap = (file["donor"][:, 0] - file["recipient"][:, 0]).astype(np.float64)
    at = row["layer"], row["head"]
    assert row["recovery"] == pytest.approx((whole[:, *at] / gap).mean(), abs=1e-6)
    assert "3 prompts cannot give a p below 0.25" in attribution_report.sentence(doc)


def test_prompts_of_one_length_keep_their_positions_and_others_are_summed(models, several):
    doc, study, _ = several
    assert doc["positions"]["resid_post"] == "each"
    assert doc["tokens"][0] == "<s>"
    assert doc["tokens"][1] is None
    assert study.grid.axes("resid_post") == ("layer", "position")
    uneven = planned(models, ([1, 403, 410], [1, 300, 301, 410]))
    assert uneven.grid.axes("resid_post") == ("layer",)
    with pytest.raises(SpecError, match="one length; these have 3 to 4 tokens"):
        planned(models, ([1, 403, 410], [1, 300, 301, 410]), positions="each")


def test_cells_of_several_prompts_are_verified_as_means(models, tmp_path):
    study = planned(models, ([1, 403, 410], [1, 300, 301, 410]), verify=3, site="attn_out")
    doc = stories.run(study, tmp_path / "run")
    found = doc["base_to_instruct"]["verify"]["attn_out"]["rows"]
    assert doc["base_to_instruct"]["verify"]["attn_out"]["complete"] == (len(found) == 5)
    assert {tuple(row) for row in found} == {
        ("site", "layer", "kind", "estimate", "exact", "exact_ci", "difference")
    }
    given = {side: {} for side in SIDES}
    for row in found:
        exact = []
        for prompt in study.grid.prompts:
            ids = list(prompt.ids)
            given = arrays(study, "base", ids, "attn_out")[row["layer"]]
            edit = transplant("attn_out", row["layer"], given)
            after = patched_odds(study, "instruct", ids, edit)
            before = forward(
                study.subject.model("instruct").network, mx.array([ids]), read=[len(ids) - 1]
            )
            exact.append(after - odds(np.array(before.logits)[0, 0]))
        assert row["exact"] == pytest.approx(np.mean(exact), abs=2e-4)


# --- edges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_edges(models, tmp_path_factory):
    study = planned(models, edges=True, verify=6, site="z")
    folder = tmp_path_factory.mktemp("edges")
    return stories.run(study, folder), folder


def test_edges_are_stored_named_and_ranked(with_edges):
    doc, folder = with_edges
    with h5py.File(folder / "run.h5") as file:
        sources = [name.decode() for name in file["source"][:]]
        targets = [name.decode() for name in file["target"][:]]
        scores = file["edges"][0, 0].astype(np.float64)
    assert {"L3H5", "MLP 4"} <= set(sources)
    assert {"L4H2.q", "L4 kv1.v", "L3 kv3.k", "MLP 2"} <= set(targets)
    assert "L4 kv4.v" not in targets  # four kv heads
    top = doc["base_to_instruct"]["edges"]["top"]
    sizes = [abs(row["estimate"]) for row in top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(np.nanmax(np.abs(scores)))
    for row in top:
        at = sources.index(row["source"]), targets.index(row["target"])
        assert scores[at] == pytest.approx(row["estimate"])
    assert np.isnan(scores[sources.index("L3H5"), targets.index("L2H0.q")])


def test_verified_edges_agree_about_the_largest(with_edges):
    doc, _ = with_edges
    for direction in DIRECTIONS:
        found = doc[direction]["edges"]["verify"]
        assert [row["kind"] for row in found["rows"]] == ["largest"] * 6 + ["random"] * 6
        assert all(np.isfinite(row["exact"]) for row in found["rows"])
        largest = found["rows"][0]
        assert largest["source"] == doc[direction]["edges"]["top"][0]["source"]
        assert found["sign_agreement"] > 0.5


# --- the run --------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_verification_joins_the_first(models, tmp_path):
    folder = tmp_path / "run"
    first = stories.run(planned(models, site="z"), folder)
    assert first["verified_cells"] == 0
    events = []
    second = stories.run(planned(models, site="z", verify=4), folder, events)
    done = [e for e in events if isinstance(e, CellDone)]
    assert [e.restored for e in done] == [True, True, False, False]
    assert second["run_id"] == first["run_id"]
    assert second["verified_cells"] == 16
    again = []
    third = stories.run(planned(models, site="z", verify=4), folder, again)
    assert all(e.restored for e in again if isinstance(e, CellDone))
    skipped = ("timestamp", "versions", "estimate")
    a, b = ({k: v for k, v in doc.items() if k not in skipped} for doc in (second, third))
    assert json.dumps(a) == json.dumps(b)


def exact_rows(doc):
    return {
        (d, site): [(row["estimate"], row["exact"]) for row in found["rows"]]
        for d in DIRECTIONS
        for site, found in doc[d]["verify"].items()
    }


def test_what_is_stored_stays_in_the_document_whatever_is_asked_for_next(models, tmp_path):
    folder = tmp_path / "run"
    first = stories.run(planned(models, site="z", verify=4), folder)
    second = stories.run(planned(models, site="z", edges=True), folder)
    third = stories.run(planned(models, site="z"), folder)
    for doc in (second, third):
        assert doc["run_id"] == first["run_id"]
        assert exact_rows(doc) == exact_rows(first)
        assert (doc["verified_cells"], doc["verify"]) == (16, 4)
        assert "16 cells run exactly" in doc["summary"]["certainty"]
        assert "not verified" not in (folder / "report.html").read_text()
        assert doc["base_to_instruct"]["edges"]["top"]
    assert json.dumps(third[DIRECTIONS[0]]) == json.dumps(second[DIRECTIONS[0]])
    with h5py.File(folder / "run.h5") as file:
        assert np.isfinite(file["edges"][:]).any()
    more = stories.run(planned(models, site="z", verify=6), folder)
    known = {estimate for estimate, _ in exact_rows(more)["base_to_instruct", "z"]}
    assert {estimate for estimate, _ in exact_rows(first)["base_to_instruct", "z"]} <= known
    kinds = [row["kind"] for row in more["base_to_instruct"]["verify"]["z"]["rows"]]
    assert kinds.count("largest") == 6
    assert kinds[:6] == ["largest"] * 6


def test_a_site_whose_cells_all_ran_is_no_estimate_any_more(models, tmp_path):
    doc = stories.run(planned(models, site="z", verify=1000, layers="0-2"), tmp_path / "run")
    assert doc["verified_cells"] == 2 * 3 * 8
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "All 48 cells run exactly" in text
    assert "Over all 48 cells" in text
    assert "Too few" not in text
    assert "First-order estimate" not in text


def test_models_that_agree_have_no_shares_of_their_gap(verified):
    doc, study, folder = verified
    assert doc["summary"]["sentence"].startswith("There is no decision to trace")
    for direction in DIRECTIONS:
        top = doc[direction]["sites"]["z"]["top"]
        assert doc[direction]["nothing_to_recover"]
        assert all(np.isnan(row["recovery"]) for row in top)
        told = summed(study, folder)[direction]
        for site in SITES:
            row = told["sites"][site]["top"][0]
            assert row["recovery"] == pytest.approx(row["estimate"] / told["gap"], abs=1e-9)
    assert "R est." not in (folder / "report.html").read_text()
    assert "R est." in attribution_report.html(summed(study, folder), {})


def test_edges_of_several_prompts_have_the_p_of_sign_flips(models, tmp_path):
    doc = stories.run(planned(models, SEVERAL, site="z", edges=True), tmp_path / "run")
    with h5py.File(tmp_path / "run" / "run.h5") as file:
        sources, targets = ([n.decode() for n in file[a][:]] for a in ("source", "target"))
        scores = file["edges"][:, 0].astype(np.float64)
    p = stats.sign_flip_test(scores, np.random.default_rng(0))
    q = stats.benjamini_hochberg(p)
    for row in doc["base_to_instruct"]["edges"]["top"]:
        at = sources.index(row["source"]), targets.index(row["target"])
        assert (row["p"], row["q"]) == (pytest.approx(p[at]), pytest.approx(q[at]))


def test_any_part_of_a_run_makes_a_document_and_a_report(models, tmp_path):
    study = planned(models, SEVERAL[:2], site="z", edges=True, verify=2)
    stories.run(study, tmp_path / "run")
    with RunFolder.reopen(tmp_path / "run") as folder:
        records = list(folder.records().values())
        assert len(records) == 2 * 2 * 4
        for count in range(len(records) + 1):
            stored = Stored(study.grid, records[:count], folder.arrays)
            about = {"n_layers": 5, "run_id": "x", "failed_cells": []}
            doc = document(stored, metric="log_odds", ig=1, tokens=[], about=about)
            page = attribution_report.html(doc, {})
            assert ("No estimate was finished" in page) == (count == 0)
            Console(file=io.StringIO(), width=80).print(attribution_tables(doc))
            assert doc["verified_cells"] > 0 or "not verified" in page or count == 0


def test_a_prompt_whose_numbers_are_not_finite_fails_alone(models, tmp_path, monkeypatch):
    real = attribution.estimate

    def failing(network, tokens, *args, **how):
        if tokens.tolist()[0] == SEVERAL[1]:
            raise FloatingPointError("not finite")
        return real(network, tokens, *args, **how)

    monkeypatch.setattr(attribution, "estimate", failing)
    study = planned(models, SEVERAL, site="z", verify=2)
    doc, finished = study.run(lambda event: None, RunPlace(tmp_path / "r", out=tmp_path / "r"))
    assert finished.failed == 4  # the estimate and the verification, both directions
    assert doc["base_to_instruct"]["n_prompts"] == 2
    assert "4 cells failed" in doc["summary"]["sentence"]


def test_one_model_at_a_time_gives_the_same_numbers(models, verified, tmp_path):
    _, _, folder = verified
    stories.run(planned(models, resident=1, site="z"), tmp_path / "run")
    assert packed(tmp_path / "run", "z") == pytest.approx(packed(folder, "z"), abs=1e-6)


def test_what_is_not_verified_says_so_everywhere(models, verified, tmp_path):
    doc = stories.run(planned(models, site="z"), tmp_path / "run")
    words = "irst-order estimate, not verified"
    assert words in doc["summary"]["sentence"]
    for name in ("summary.json", "summary.md", "report.html"):
        assert words in (tmp_path / "run" / name).read_text()
    known, _, folder = verified
    assert "cells run exactly" in known["summary"]["certainty"]
    assert "not verified" not in (folder / "report.html").read_text()
    assert "First-order estimate" in (folder / "summary.md").read_text()


def test_the_plan_says_passes_and_calls_against_the_exact_sweep(models):
    plan = planned(models, verify=10, edges=True).plan()
    n, tokens, heads = 5, len(IDS), 3 * 8 + 2 * 4
    assert plan["estimated_cells"] == 2 * n * (3 * tokens + heads)
    left = sum(n - layer for layer in LAYERS)
    late = (tokens + 1) / 2  # of all positions together, each from its own on
    exact = 2 * (late * (3 * left - n) + heads * left)
    assert plan["layer_calls_of_the_exact_sweep"] == round(exact) + 2 * n
    # both models once, then per direction two gradients of one forward and a backward for two
    assert plan["layer_calls"] == plan["passes"] * n == 2 * n + 2 * 2 * 3 * n
    assert plan["layer_calls"] < exact / 10
    assert plan["exact_runs"] == 2 * 10 * 2 * 9


def test_patterns_too_large_for_the_memory_are_left_out_with_a_note(models, monkeypatch):
    from mlxroles.studies.attribution import sweep

    monkeypatch.setattr(sweep, "memory_limit", lambda: 1000)
    study = planned(models)
    assert not {"q", "k", "pattern"} & {*study.grid.sites}
    assert any("q, k and pattern are left out" in text for text in study.subject.notes)
    assert planned(models, site="pattern").grid.sites == ("pattern",)


def test_the_metrics_of_the_command_are_those_that_exist():
    assert METRICS == attribution.METRICS


def test_figures_are_drawn_for_every_part_and_named_in_the_document(models, tmp_path, monkeypatch):
    monkeypatch.setattr(attribution_results, "attribution_figures", plots.attribution_figures)
    # drawing them takes longer than all else, and the tiny pair's are drawn elsewhere
    monkeypatch.setattr(canvas, "save", lambda figure, png, vector: png.write_bytes(b"PNG"))
    doc = stories.run(planned(models, edges=True, verify=3), tmp_path / "run")
    each = ("positions", "edges", "verify")
    names = {"layers", "heads", "attention", *(f"{n}_{d}" for n in each for d in DIRECTIONS)}
    assert set(doc["figures"]) == names | {f"{name}_svg" for name in names}
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img") == len(names)
