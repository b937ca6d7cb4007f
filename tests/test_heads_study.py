"""The study of heads: tasks against plain loops, random sets, and `mlxroles heads` end to end."""

import csv
import functools
import json

import numpy as np
import pytest
from scipy.stats import t as student
from tiny_models import tiny

from mlxroles import stats
from mlxroles.backend import mx
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import axes, read
from mlxroles.studies.heads import behaviours, causal, document

ROWS = np.random.default_rng(0).integers(1, 60, (3, 8))


def log_probs_of(model, ids):
    """A plain run: log-softmax of the logits in float64 [position, vocab]."""
    logits = np.array(model.module(mx.array([ids]))[0].astype(mx.float32)).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def plain_gain(said, ids, start):
    ids, said = ids[start:], said[start:]
    half = len(ids) // 2
    loss = [-said[p - 1, ids[p]] for p in range(1, len(ids))]
    return np.mean(loss[: half - 1]) - np.mean(loss[half:])


def plain_seen(said, ids, other, start):
    ids, other, said = ids[start:], other[start:], said[start:]
    return np.mean(
        [
            np.mean([row[i] for i in ids[: q + 1]]) - np.mean([row[i] for i in other[: q + 1]])
            for q, row in enumerate(said)
        ]
    )


def test_every_task_is_what_a_plain_loop_gives():
    model = tiny("llama")
    repeated = [[5, *row, *row] for row in ROWS.tolist()]
    drawn = [[5, *row] for row in ROWS.tolist()]
    elements = [[(1, 2), (2, 3), (3, 4), (5, 7)], [(1, 2), (2, 4), (4, 6)], [(1, 2)] * 2 + [(2, 3)]]
    made = {
        "gain": behaviours.on_repeats(repeated, 1),
        "text_loss": behaviours.on_text(ROWS.tolist()),
        "seen": behaviours.on_seen(drawn, 1),
        "next_element": behaviours.on_elements(ROWS.tolist(), elements),
        "name_difference": behaviours.on_two([[1, 2], [3, 4, 5], [6, 7]], [9, 8, 7], [1, 2, 3]),
    }
    zeroing = causal.Zeroing(model, made)
    found = {name: zeroing.clean(name) for name in made}
    for n, row in enumerate(ROWS.tolist()):
        said = log_probs_of(model, row)
        loss = np.mean([-said[p - 1, row[p]] for p in range(1, len(row))])
        np.testing.assert_allclose(found["text_loss"][n], loss, atol=1e-5)
        following = np.mean(
            [sum(said[p - 1, row[p]] for p in range(*span)) for span in elements[n][2:]]
        )
        np.testing.assert_allclose(found["next_element"][n], following, atol=1e-5)
        gain = plain_gain(log_probs_of(model, repeated[n]), repeated[n], 1)
        np.testing.assert_allclose(found["gain"][n], gain, atol=1e-5)
        seen = plain_seen(log_probs_of(model, drawn[n]), drawn[n], drawn[(n + 1) % 3], 1)
        np.testing.assert_allclose(found["seen"][n], seen, atol=1e-5)
    rows, ids = ([1, 2], [3, 4, 5], [6, 7]), ((9, 1), (8, 2), (7, 3))
    for n, (row, (right, wrong)) in enumerate(zip(rows, ids, strict=True)):
        last = log_probs_of(model, row)[-1]
        np.testing.assert_allclose(
            found["name_difference"][n], last[right] - last[wrong], atol=1e-5
        )


def test_zeroing_is_the_model_without_the_columns_of_its_output_matrix():
    from tiny_models import LLAMA, tiny_llama

    from mlxroles.models.load import wrap

    module = tiny_llama(3)
    heads = [(1, 2), (3, 0)]
    zeroing = causal.Zeroing(wrap(module, LLAMA), {"text_loss": behaviours.on_text(ROWS.tolist())})
    random = [((0, 1), (3, 2)), ((1, 0), (3, 1))]
    found = zeroing.change(heads, "text_loss", random)
    width = 32 // 4
    for sets, change in ((heads, found.change), *zip(random, found.random, strict=True)):
        edited = tiny_llama(3)
        for layer, head in sets:
            o = edited.model.layers[layer].self_attn.o_proj
            columns = (np.arange(32) // width) != head
            o.weight = o.weight * mx.array(columns.astype(np.float32))
        losses = []
        for row in ROWS.tolist():
            said = log_probs_of(wrap(edited, LLAMA), row)
            losses.append(np.mean([-said[p - 1, row[p]] for p in range(1, len(row))]))
        expected = np.array(losses) - found.clean
        np.testing.assert_allclose(
            change, expected if sets is heads else expected.mean(), atol=1e-5
        )


def test_random_sets_have_as_many_heads_of_the_same_layers_and_none_that_is_marked():
    rng = np.random.default_rng(0)
    heads, marked = [(0, 1), (2, 3), (2, 5)], {(0, 2), (2, 0)}
    n_heads = dict.fromkeys(range(4), 8)
    found = causal.unmarked_sets(heads, marked, n_heads, rng, count=20)
    assert len(found) == len(set(found)) == 20
    for drawn in found:
        assert sorted(layer for layer, _ in drawn) == [0, 2, 2]
        assert not {*drawn} & {*heads, *marked}


def test_where_a_layer_is_full_of_marked_heads_unmarked_ones_of_others_stand_in():
    marked = [(0, h) for h in range(4)]
    found = causal.unmarked_sets(
        marked[:2], marked, {0: 4, 1: 3, 2: 0}, np.random.default_rng(0), count=9
    )
    assert sorted(found) == [((1, 0), (1, 1)), ((1, 0), (1, 2)), ((1, 1), (1, 2))]
    assert (
        causal.unmarked_sets(marked, marked, {0: 4, 1: 3}, np.random.default_rng(0), count=1) == []
    )


@pytest.mark.parametrize(
    ("ranked", "expected"),
    [
        ([], [(), (), (), ()]),
        ([(1, 2)], [((1, 2),), (), (), ()]),
        ([(1, 2), (0, 0)], [((1, 2), (0, 0)), ((1, 2),), ((0, 0),), ()]),
    ],
)
def test_a_set_that_would_repeat_another_is_left_out(ranked, expected):
    assert [causal.of_set(ranked, name) for name in causal.SETS] == expected


def test_a_class_is_confirmed_beyond_all_random_sets_and_with_an_interval_on_its_side_alone():
    def confirmed(found, drawn, behaviour=behaviours.GAIN):
        return document.judged(behaviour, found, drawn)["confirmed"]

    few = [-0.1, 0.1, 0.0, -0.2, 0.05]
    assert confirmed((-1.0, -1.2, -0.8), few)
    assert not confirmed((-1.0, -2.2, 0.1), few)
    assert not confirmed((-0.15, -0.18, -0.1), few)
    assert not confirmed((1.0, 0.8, 1.2), few)
    assert not confirmed((-1.0, -1.2, -0.8), few[:4])
    assert confirmed((1.0, 0.8, 1.2), few, behaviours.LOSS)
    judged = document.judged(behaviours.GAIN, (-0.15, -0.18, -0.1), few)
    assert judged["p"] == pytest.approx(2 / 6)
    assert document.judged(behaviours.GAIN, (-1.0, -1.2, -0.8), [])["p"] is None


def test_a_difference_is_clear_where_one_head_of_many_moved():
    rng = np.random.default_rng(1)
    base = rng.normal(0.2, 0.05, (16, 3, 4))
    moved = base + rng.normal(0, 0.01, base.shape)
    moved[:, 1, 2] += 0.1
    base[:, 2, 3] = np.nan
    still = base + rng.normal(0, 0.01, base.shape)
    both = document.differences({"still": still - base, "moved": moved - base}, 0)
    assert not np.any(both["still"]["clear"])
    found = both["moved"]
    assert np.argwhere(found["clear"]).tolist() == [[1, 2]]
    assert found["value"][1][2] == pytest.approx(np.mean(moved - base, axis=0)[1, 2])
    assert found["value"][2][3] is None
    low, high = np.quantile(
        [
            (moved - base)[np.random.default_rng(k).integers(0, 16, 16), 1, 2].mean()
            for k in range(4000)
        ],
        [0.025, 0.975],
    )
    np.testing.assert_allclose([found["low"][1][2], found["high"][1][2]], [low, high], atol=6e-4)
    first, second = (np.array(both[name]["q"], float) for name in ("still", "moved"))
    p = [stats.sign_flip_test(x - base, np.random.default_rng(5)) for x in (still, moved)]
    known = np.sort(np.concatenate([x[np.isfinite(x)] for x in p]))
    assert len(known) == 22
    assert second[1, 2] == pytest.approx(known[0] * 22, rel=0.2)
    assert np.nanmax([first, second]) <= 1


def test_q_of_the_sets_is_p_times_their_number_over_its_rank():
    rows = [{"p": p} for p in (0.04, None, 0.01, 0.5)]
    found = [row["q"] for row in document.corrected(rows)]
    assert found == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.5)]


# --- the command ----------------------------------------------------------------------------------


def test_heads_are_zeroed_on_other_rows_than_those_that_marked_them():
    from mlxroles.pairs import pair
    from mlxroles.studies.heads.study import Heads, Options
    from mlxroles.studies.subject import Subject

    study = Heads(Subject.of_pair(pair("tiny")), Options(sequences=4, causal=True))
    scored, zeroed = (material.sets for material in (study.material, study.work.held_out))
    for name in ("text", "random", "repeated"):
        known = {tuple(row) for row in scored[name].ids}
        starts = {row[:33] for row in known}
        assert not starts & {tuple(row)[:33] for row in zeroed[name].ids}, name


QUICK = ("--sequences", "8", "--length", "32", "--plain")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`heads --pair tiny --causal`, small, with five random sets and without figures."""
    from mlxroles import cli

    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SETS", ("all",)), ("CLASSES", ("previous", "induction"))):
            patch.setattr(f"mlxroles.studies.heads.study.{name}", value)
        patch.setattr("mlxroles.studies.heads.work.RANDOM", 5)
        few = functools.partial(stats.bootstrap_mean_ci, n_resamples=400)
        patch.setattr("mlxroles.stats.bootstrap_mean_ci", lambda x, rng, **_: few(x, rng))
        patch.setattr("mlxroles.plots.heads.head_figures", lambda *a: {})
        patch.chdir(folder)
        given = ("heads", "--pair", "tiny", "--causal", "--out", "run", *QUICK)
        assert cli.run(list(given)) == 0
        doc = json.loads((folder / "run" / "summary.json").read_text())
        yield doc, folder / "run", given


def stored_arrays(path, cell):
    return RunFolder.read(path).arrays(cell)


def test_the_planted_heads_are_found_and_confirmed_by_zeroing_them(run):
    doc, _, _ = run
    for side, of in doc["models"].items():
        assert {"L0H1", "L1H4"} <= {*of["by_class"]["previous"]}, side
        assert {"L2H5", "L3H2"} <= {*of["by_class"]["induction"]}, side
        rows = {(r["class"], r["set"], r["measure"]): r for r in doc["causal"][side]}
        for name in ("previous", "induction"):
            row = rows[name, "all", "gain"]
            assert row["confirmed"]
            assert row["high"] < min(row["random"])
            assert not {h for one in row["random_heads"] for h in one.split()} & {
                head for c in ("previous", "induction") for head in of["by_class"][c]
            }
    assert "induction heads" in doc["sentence"]


def test_every_number_of_the_document_is_that_of_the_stored_rows(run):
    doc, path, _ = run
    for side, of in doc["models"].items():
        arrays = stored_arrays(path, f"{side}/what=scores")
        assert len(of["detectors"]) == 13
        for name, found in of["detectors"].items():
            for key in ("score", "uniform", "control"):
                values = arrays[f"{key}_{name}"].astype(np.float64)
                for at in np.ndindex(values.shape[1:]):
                    rows = [x for x in values[:, *at] if np.isfinite(x)]
                    mean, told = sum(rows) / max(len(rows), 1), found[key][at[0]][at[1]]
                    assert told == pytest.approx(mean, rel=1e-5, abs=1e-9), (name, key, at)
                means = np.array(found[key], float)
                if key != "uniform":
                    start = "" if key == "score" else "control_"
                    low, high = (np.array(found[start + end], float) for end in ("low", "high"))
                    assert not np.any(low > means + 1e-6)
                    assert not np.any(high < means - 1e-6)
            rows = arrays[f"score_{name}"].astype(np.float64)
            n = np.isfinite(rows).sum(axis=0)
            error = np.nanstd(rows, axis=0, ddof=1) / np.sqrt(n)
            half = student.ppf(1 - 0.05 / 2 / of["tests"], n - 1) * error  # for all at once
            wide = np.array(found["high_all"], float) - np.array(found["low_all"], float)
            np.testing.assert_allclose(wide, 2 * half, rtol=1e-4, atol=1e-5)
    base, instruct = (stored_arrays(path, f"{s}/what=scores") for s in ("base", "instruct"))
    for name, found in doc["difference"].items():
        changed = (instruct[f"score_{name}"] - base[f"score_{name}"]).astype(np.float64)
        expected = np.nanmean(changed, axis=0)
        np.testing.assert_allclose(np.array(found["value"], float), expected, rtol=1e-4, atol=1e-8)


def test_tables_hold_every_score_and_every_set(run):
    doc, path, _ = run
    lines = list(csv.DictReader((path / "heads.csv").read_text().splitlines()))
    assert len(lines) == 3 * 13 * 48
    for line in lines[::17]:
        if line["model"] != "instruct - base":
            found = doc["models"][line["model"]]["detectors"][line["detector"]]
            i, h = int(line["layer"]), int(line["head"])
            assert float(line["score"]) == found["score"][i][h]
            assert int(line["marked"]) == found["marked"][i][h]
            assert line["class"] == doc["models"][line["model"]]["classes"][i][h]
    lines = list(csv.DictReader((path / "causal.csv").read_text().splitlines()))
    told = [row for rows in doc["causal"].values() for row in rows]
    assert [float(line["change"]) for line in lines] == [row["change"] for row in told]
    assert len(lines) == 8


def test_a_stored_run_is_shown_reported_verified_and_exported(run, call, tmp_path, monkeypatch):
    doc, path, _ = run
    monkeypatch.setattr("mlxroles.plots.heads.head_figures", lambda *a: {})
    status, out, _ = call("show", path)
    assert (status, "L3H2" in out) == (0, True)
    before = (path / "summary.json").read_bytes()
    assert call("report", path)[0] == 0
    assert (path / "summary.json").read_bytes() == before
    status, out, _ = call("verify", path, "--json")
    assert (status, json.loads(out)["runs"][0]["counts"]["packed_numbers"] > 10_000) == (0, True)
    status, _, _ = call("export", path, "--to", "npz", "--out", tmp_path / "e.npz")
    assert status == 0
    names = axes(path / "run.h5")
    assert names["score_induction"] == ("model", "sequence", "layer", "head")
    assert names["profile"] == ("model", "sequence", "layer", "head", "offset")
    assert names["gain"] == ("model", "class", "set", "case")
    head, example = next(iter(doc["examples"]["base"].items()))
    pattern = np.asarray(read(path / "run.h5", example["file"]))[0]
    length = len(example["tokens"])
    np.testing.assert_allclose(pattern[:length, :length].sum(-1), 1, atol=1e-4)
    assert head in example["file"]


def test_a_run_goes_on_from_what_is_stored_to_the_same_document(run, tmp_path, monkeypatch, capsys):
    import shutil

    from mlxroles import cli

    doc, path, given = run
    shutil.copytree(path, tmp_path / "run")
    journal = tmp_path / "run" / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"instruct/class=induction" in lines[-1]
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    monkeypatch.chdir(tmp_path)
    assert cli.run(list(given)) == 0
    capsys.readouterr()
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    for key in ("models", "difference", "causal", "examples", "sentence"):
        assert again[key] == doc[key], key


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--text", "nowhere.txt"), "no such file"),
        (("--text", "notepad"), "holds conversations or ids"),
        (("--text", "novel"), "there is no text file novel"),
        (("--text", "a few words"), "give a longer text"),
        (("--sequences", "2", "--length", "15"), "15 is not in the range"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("heads", "--pair", "tiny", *given, "--plain")
    assert status in (1, 2)
    assert words in err
    assert not (tmp_path / "results").exists()
