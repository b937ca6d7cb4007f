"""Runs of `mlxroles circuits` on the small real models: what they store, say, draw, make again."""

import csv
import json

import h5py
import numpy as np
import pytest
import stories

from mlxroles import circuits
from mlxroles.circuits import composition
from mlxroles.errors import SpecError
from mlxroles.models.load import load
from mlxroles.runs.cells import source
from mlxroles.studies.circuits import results
from mlxroles.studies.circuits.document import _shares
from mlxroles.studies.circuits.study import Circuits
from mlxroles.studies.circuits.told import counts, sentence
from mlxroles.studies.circuits.work import CircuitsWork, Options

OPTIONS = Options(heads=((3, 6), (2, 0)), top=3, tokens=128, offsets=24, seed=3)


@pytest.fixture(scope="module")
def models(shared):
    return shared / "models"


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    """A pair, two heads named; the figures of base alone, and those small."""
    from mlxroles.plots import canvas
    from mlxroles.plots.circuits import composition as drawn
    from mlxroles.plots.circuits import heads

    study = Circuits(stories.subject(models), OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save", small)
        for module, name in ((drawn, "composition"), (heads, "curves"), (heads, "spectra")):
            patch.setattr(module, name, of_base(getattr(module, name)))
        return study, stories.run(study, tmp_path_factory.mktemp("circuits") / "run")


def small(figure, png, vector):
    figure.savefig(png, dpi=20)
    vector.write_text("<svg/>")


def of_base(draw):
    return lambda doc, model, *more: draw(doc, model, *more) if model == "base" else None


@pytest.fixture
def drawn(ran, monkeypatch):
    """What is made again has the figures that there are."""
    figures = dict(ran[1]["figures"])
    monkeypatch.setattr("mlxroles.plots.circuits.circuit_figures", lambda *_: figures)


@pytest.fixture(scope="module")
def model(models):
    return load(models / "stories260K")


def test_the_document_holds_what_the_functions_return(ran, model):
    doc = ran[1]
    of = doc["models"]["base"]
    found = circuits.copying(model, n=128, seed=3)
    for name in ("score", "low", "high", "null", "null_low", "null_high", "excess", "sign"):
        assert np.abs(np.array(of["copying"][name]) - getattr(found, name)).max() < 1e-5, name
    reduced = [composition.reduced(circuits.heads_of(model, i)) for i in range(5)]
    every = {
        (f"L{i}H{a}", f"L{j}H{b}"): float(table[a, b])
        for j in range(5)
        for i in range(j)
        for table in [composition.scores(reduced[i], reduced[j])["k"]]
        for a, b in np.ndindex(table.shape)
    }
    assert of["composition"]["k"]["pairs"] == len(every) == 640
    for row in of["composition"]["k"]["top"]:
        assert row["score"] == pytest.approx(every[row["from"], row["to"]], abs=1e-5)
    top = of["composition"]["k"]["top"]
    assert top[0]["score"] == pytest.approx(max(every.values()), abs=1e-5)
    bound = of["composition"]["k"]["bound"]
    assert of["composition"]["k"]["clear"] == sum(v > bound for v in every.values())
    turned = composition_turns(reduced, 3)
    assert bound > np.max(turned)  # of 19 turns, so chance passes it once in 20
    assert of["composition"]["k"]["null_mean"] == pytest.approx(1 / 8, abs=0.01)
    curve = of["curves"]["shown"][0]
    assert (curve["head"], int(np.argmax(curve["mean"]))) == ("L3H6", 1)
    assert of["curves"]["clear"][3][6]
    above = max(curve["mean"]) - np.median(curve["mean"])
    assert of["curves"]["peak"][3][6] == pytest.approx(above / np.median(curve["spread"]))


def composition_turns(reduced, seed):
    """Scores of keys with a turn of the stream of the run's first pair of layers, made again."""
    rng = np.random.default_rng([seed, 4, 1])
    turns = [composition.turn(64, rng) for _ in range(19)]
    return [composition.scores(reduced[0], reduced[1], turn)["k"] for turn in turns]


def test_tokens_of_the_named_heads_bear_their_texts(ran, model):
    entries = ran[1]["models"]["base"]["pairs"]
    assert [(e["head"], e["circuit"]) for e in entries] == [
        (head, circuit) for head in ("L3H6", "L2H0") for circuit in ("qk", "ov")
    ]
    first = entries[1]["top"][0]
    assert first["left_text"] == stories_text(model, first["left"])
    assert len(entries[0]["top"]) == len(entries[0]["bottom"]) == 3
    assert entries[0]["top"][0]["value"] > entries[0]["mean"] > entries[0]["bottom"][0]["value"]


def stories_text(model, token):
    from mlxroles.prompts import token_texts

    return token_texts([token], model.tokenizer)[0]


def test_a_difference_has_an_interval_and_is_clear_only_beyond_it(ran):
    doc = ran[1]
    found = doc["difference"]["copying"]
    value, low, high = (np.array(found[n], dtype=float) for n in ("value", "low", "high"))
    assert (low <= value).all()
    assert (value <= high).all()
    clear = np.array(found["clear"])
    assert ((low > 0) | (high < 0))[clear].all()
    both = [np.array(doc["models"][m]["copying"]["excess"]) for m in ("base", "instruct")]
    assert np.corrcoef(value.ravel(), (both[1] - both[0]).ravel())[0, 1] > 0.9
    heads, copying, against = counts(doc["models"]["base"])
    assert heads == 40
    assert f"{copying} of 40 heads make the tokens" in doc["sentence"]
    assert f"{against} less likely" in doc["sentence"]


def test_no_more_heads_are_named_than_copy(ran):
    of = ran[1]["models"]["base"]
    signs = np.zeros((5, 8), dtype=int)
    signs[np.unravel_index(np.argmax(of["copying"]["excess"]), signs.shape)] = 1
    one = of | {"copying": of["copying"] | {"sign": signs.tolist()}, "composition": {}}
    told = sentence({"models": {"base": one}})
    assert "1 of 40 heads" in told
    assert told.count("H") == 1
    assert told.endswith("0 less likely.")


def test_eigenvalue_scores_are_clear_beyond_what_random_heads_reach():
    """Of 300 heads like the random ones none, though one in twenty lies outside the middle 95 %."""
    rng = np.random.default_rng(0)
    real, imag = rng.standard_normal((2, 400, 32))
    real[:2] = np.abs(real[:2]) * np.array([[9.0], [-9.0]])
    shares = real.sum(-1) / np.hypot(real, imag).sum(-1)
    arrays = {"score": shares[:300], "ov_real": real[:300], "ov_imag": imag[:300]}
    found = _shares([(0, None, arrays | {"random_ov": shares[300:]})], (1, 300), "ov")
    assert np.flatnonzero(found["clear"][0]).tolist() == [0, 1]
    outside = (shares[2:300] < found["random_low"][0]) | (shares[2:300] > found["random_high"][0])
    assert outside.sum() > 5


def test_everything_is_written_and_made_again_from_what_is_stored(ran, drawn, call):
    doc = ran[1]
    folder = results.Path(doc["run"])
    page = (folder / "report.html").read_bytes()
    with (folder / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [r for r in rows if r["model"] == "base" and r["measure"] == "copying"]
    assert len(scores) == 40
    assert float(scores[3]["value"]) == doc["models"]["base"]["copying"]["score"][0][3]
    curves = doc["models"]["instruct"]["curves"]
    for measure, name in (("best_distance", "peak_offset"), ("best_distance_peak", "peak")):
        of = [r for r in rows if (r["model"], r["measure"]) == ("instruct", measure)]
        assert [float(r["value"]) for r in of] == [v for line in curves[name] for v in line]
    with h5py.File(folder / "run.h5") as file:
        assert file["composition_q"].shape == (2, 5, 4, 8, 8)
        assert file["curve_mean"].shape == (2, 5, 8, 24)
    for name in (
        "composition.csv",
        "curves.csv",
        "pairs.csv",
        "figures/copying.png",
        "figures/difference.png",
    ):
        assert (folder / name).stat().st_size > 100
    (folder / "report.html").unlink()
    assert call("report", folder)[0] == 0
    assert (folder / "report.html").read_bytes() == page
    assert b"<script" not in page
    assert len(page) < 3_000_000
    status, out, _ = call("show", folder)
    assert status == 0
    assert "L3H6" in out
    assert call("verify", folder)[0] == 0
    names = {a.name for row in source(folder).rows() for a in row.arrays()}
    assert {"score", "curve_mean", "ov_real", "composition_v", "pair_value"} <= names
    assert call("export", folder, "--to", "csv", "--out", folder.parent / "made")[0] == 0


def test_a_second_run_computes_nothing_and_says_the_same(models, ran, drawn, monkeypatch):
    monkeypatch.setattr(CircuitsWork, "compute", None)
    study = Circuits(stories.subject(models), OPTIONS)
    again = stories.run(study, results.Path(ran[1]["run"]))
    assert again["models"] == json.loads(json.dumps(ran[1]["models"]))
    assert again["sentence"] == ran[1]["sentence"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_table_is_wider_than_the_terminal(ran, width):
    from rich.console import Console

    from mlxroles.dashboard.circuits_tables import circuits_tables

    console = Console(width=width, force_terminal=False)
    with console.capture() as text:
        console.print(circuits_tables(ran[1], width=width))
    assert max(map(len, text.get().splitlines())) <= width


def test_the_plan_needs_no_weights_and_wrong_heads_are_named(call, models):
    folder = models / "stories260K"
    status, out, _ = call("circuits", "--model", folder, "--heads", "each", "--dry-run")
    assert status == 0
    assert "tokens of 40 heads" in out
    for heads, told in (("L9H0", "layer 9 is outside 0..4"), ("three", "names no head")):
        status, _, err = call("circuits", "--model", folder, "--heads", heads)
        assert status == 1
        assert told in err
    with pytest.raises(SpecError, match=r"head 8 is outside 0\.\.7"):
        Circuits(stories.subject(models), Options(heads=((0, 8),)))


def test_the_planted_induction_heads_read_the_previous_token_head():
    """In the packaged base model: keys of L2H5 and L3H2 read what L1H4 writes."""
    tiny = load(results.Path(circuits.__file__).parents[1] / "data" / "tiny" / "base")
    reduced = {i: composition.reduced(circuits.heads_of(tiny, i)) for i in (1, 2, 3)}
    rng = np.random.default_rng(0)
    for layer, head in ((2, 5), (3, 2)):
        got = composition.scores(reduced[1], reduced[layer])["k"][4, head]
        turned = composition.turn(tiny.d_model, rng)
        null = composition.scores(reduced[1], reduced[layer], turned)["k"]
        assert got > 1.5 * null.max()
    copies = circuits.copying(tiny, n=64, layers=[2, 3]).sign
    assert copies[2, 5] == copies[3, 2] == 1
