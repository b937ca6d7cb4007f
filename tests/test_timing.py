"""Estimates of time: work counted against what the engine counts, rates kept, ratios learned."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import stories

from mlxroles import cache, engine, timing
from mlxroles.engine import calibration
from mlxroles.engine.amounts import of_batch
from mlxroles.events import RunFinished, RunStarted
from mlxroles.studies import patch_sweep, timed
from mlxroles.studies.subject import Subject
from mlxroles.timing import Kind, Parts, Rates, Record, Sizes, Work, rates
from mlxroles.timing.work import passes, seen

KIND = Kind("cpu", "float32", width=64, hidden=128)
RATES = Rates(
    multiply=1e-10,
    read=1e-9,
    attend=1e-9,
    dispatch=1e-6,
    bandwidth=1e10,
    load=1e9,
    sync=1e-3,
    pace=1.0,
)
SIZES = Sizes(
    n_layers=4, d_model=8, queries=8, heads=2, weights=1000, numbers=100, vocab=16, itemsize=4
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Calibrations that were made, without making them."""
    made = []
    monkeypatch.setattr(calibration, "measure", lambda kind: made.append(kind) or RATES)
    monkeypatch.setattr(calibration, "_is_busy", lambda: False)
    return made


@pytest.fixture
def models(shared, monkeypatch):
    monkeypatch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
    monkeypatch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)
    return shared / "models"


# --- amounts --------------------------------------------------------------------------------------


def tokens_of(calls, length):
    return pytest.approx(calls * length)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"positions": "last"},
        {"positions": "each", "layers": "1,4", "controls": ()},
        {"site": "z", "heads": "each", "layers": "0,4", "controls": ()},
        {"site": "q", "controls": ("other_prompt",)},
        {"site": "k", "layers": "2-4"},
        {"site": "v", "positions": "1-2", "layers": "4"},
        {"site": "resid_pre", "positions": "last"},
        {"site": "mlp_out", "layers": "4"},
    ],
)
def test_tokens_of_a_patch_are_those_that_the_engine_counts(models, tmp_path, how):
    study = stories.sweep(models, **how)
    work = study.task().work
    engine.reset_calls()
    stories.run(study, tmp_path / "run")
    length = study.grid.prompts[0].n_tokens
    assert work.tokens == tokens_of(engine.calls().made, length)
    assert work.cells == len(study.cells)


def test_what_is_left_of_a_patch_takes_its_batches_alone(models):
    study = stories.sweep(models, controls=())
    whole = study.task().work
    left = study.task(pending=study.cells[-1:]).work
    assert study.task(pending=study.cells).work == whole
    assert 0 < left.tokens < whole.tokens
    assert left.measures == 1
    assert study.task(pending=()).work == timing.NOTHING


def test_rows_of_an_architecture_that_cannot_be_resumed_run_whole():
    shape = engine.Shape(4, 10, (9,), late=False)
    spots = [engine.Spot(3, None, 0), None, engine.Spot(1, "z", 0)]
    work = of_batch(SIZES, shape, spots, whole=True)
    assert (work.blocks, work.tokens, work.reads) == (8, 80, 2)


def test_pairs_are_those_that_a_causal_model_sees():
    assert seen(0, 3) == 1 + 2 + 3
    assert seen(2, 4) == 3 + 4
    assert passes(SIZES, rows=2, length=3) == Work(blocks=4, tokens=24, pairs=48)


def test_sizes_are_those_of_the_loaded_model(shared):
    subject = Subject.of_model(str(shared / "models" / "stories260K"))
    found = timed.sizes(subject)
    layer = subject.model("model").network.layers[0]
    matrices = [
        part["weight"]
        for _, part in layer.named_modules()
        if "weight" in part and part["weight"].ndim > 1
    ]
    assert found.weights == sum(w.size for w in matrices)
    assert found.n_layers == 5
    assert found.vocab == 512


def test_one_resident_model_is_loaded_at_every_turn(models):
    subject = stories.subject(models)
    one = next(iter(subject.sides.values())).n_bytes
    turns = ["base", "instruct", "instruct", "base"]
    assert timed.loads(subject, turns).loads == pytest.approx(2 * one, rel=0.01)
    subject.resident = 1
    assert timed.loads(subject, turns).loads == pytest.approx(3 * one, rel=0.01)


# --- seconds --------------------------------------------------------------------------------------


def test_more_work_and_slower_rates_take_longer():
    work = Work(loads=1e6, blocks=10, tokens=100, pairs=500, unembeds=1, reads=2, cells=3)
    base = timing.predict(work, SIZES, RATES, results=1.0)
    assert base.results == 1.0
    twice = timing.predict(work * 2, SIZES, RATES, results=1.0)
    assert base.cells < twice.cells <= 2 * base.cells
    for name in ("multiply", "read", "attend", "dispatch"):
        slow = replace(RATES, **{name: 10 * getattr(RATES, name)})
        assert timing.predict(work, SIZES, slow, results=1.0).cells > base.cells
    assert timing.predict(timing.NOTHING, SIZES, RATES, results=0.0).cells == 0


# --- rates ----------------------------------------------------------------------------------------


def test_rates_are_measured_once_and_kept(measured):
    assert calibration.rates(KIND) == RATES
    assert calibration.rates(KIND) == RATES
    assert measured == [KIND]
    calibration.rates(replace(KIND, dtype="bfloat16"))
    assert len(measured) == 2


def test_rates_of_a_busy_machine_are_measured_again_and_the_best_are_kept(monkeypatch, measured):
    load = iter([True, True, False])
    monkeypatch.setattr(calibration, "_is_busy", lambda: next(load))
    calibration.rates(KIND)
    timing.record(rates.machine("cpu"), "patch", record(1, 2))
    quick = replace(RATES, multiply=1e-11, load=2e9, attend=1.0)
    monkeypatch.setattr(calibration, "measure", lambda kind: quick)
    assert calibration.rates(KIND) == replace(quick, attend=RATES.attend)
    assert timing.recall(rates.machine("cpu"), "patch") == []
    timing.record(rates.machine("cpu"), "patch", record(1, 2))
    for _ in range(3):  # the third measurement met a quiet machine
        assert calibration.rates(KIND) == replace(quick, attend=RATES.attend)
    timing.record(rates.machine("cpu"), "patch", record(1, 2))
    assert timing.recall(rates.machine("cpu"), "patch") == [record(1, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1]",
        json.dumps({KIND.key: "fast"}),
        json.dumps({KIND.key: RATES.document() | {"multiply": None}}),
        json.dumps({KIND.key: RATES.document() | {"multiply": -1.0}}),
        json.dumps({KIND.key: RATES.document() | {"load": 0}}),
        json.dumps({KIND.key: RATES.document() | {"read": math.nan}}),
    ],
)
def test_damaged_rates_are_measured_anew(own_cache, measured, text):
    own_cache.mkdir()
    (own_cache / f"{rates.SUBJECT}.json").write_text(text)
    assert timing.kept(KIND) is None
    assert calibration.rates(KIND) == RATES
    assert timing.kept(KIND) == RATES


def test_another_mlx_or_host_has_rates_of_its_own(monkeypatch):
    timing.keep(KIND, RATES)
    monkeypatch.setattr(rates, "versions", lambda: {"mlx": "99.0"})
    assert timing.kept(KIND) is None
    monkeypatch.undo()
    monkeypatch.setattr(rates.platform, "node", lambda: "elsewhere")
    assert timing.kept(KIND) is None


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, measured, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "file" / "cache"))
    assert calibration.rates(KIND) == RATES
    assert calibration.rates(KIND) == RATES
    assert len(measured) == 2
    timing.record("machine", "patch", record(1, 2))
    assert timing.recall("machine", "patch") == []


@pytest.mark.parametrize(
    "kind",
    [
        KIND,
        replace(KIND, dtype="bfloat16", bits=4, group=64, mode="affine"),
        replace(KIND, dtype="float16", bits=4, group=64, mode="affine", widened=True),
    ],
)
def test_measured_rates_make_sense(kind):
    found = calibration.measure(kind)
    assert Rates.read_from(json.loads(json.dumps(found.document()))) == found
    assert 1e-15 < found.multiply < 1e-5


def test_a_model_that_this_machine_cannot_compute_has_no_estimate(models, monkeypatch):
    assert calibration.rates(replace(KIND, bits=7, group=33, mode="affine")) is None
    monkeypatch.setattr(calibration, "measure", lambda kind: (_ for _ in ()).throw(RuntimeError))
    assert stories.sweep(models, layers="2").plan()["seconds"] is None


def test_rates_are_measured_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "file" / "cache"))
    assert calibration.measure(KIND).sync == calibration.WITHOUT_DISK
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- learning -------------------------------------------------------------------------------------


def record(predicted, actual, size="small"):
    return Record(size, Parts(1.0, predicted, 1.0), Parts(1.0, actual, 1.0))


def test_without_records_the_interval_is_wide():
    found = timing.estimate(Parts(1.0, 2.0, 1.0), [], "small")
    assert found == timing.Estimate(4.0, 4.0 / 3, 12.0, "calibrated here")


def test_one_run_corrects_and_several_narrow_the_interval():
    one = timing.estimate(Parts(1.0, 10.0, 1.0), [record(10, 30)], "small")
    assert one.likely == pytest.approx(32.0)
    assert one.high / one.likely == pytest.approx(2.0)
    assert one.basis == "measured here on 1 run"
    many = [record(10, 30) for _ in range(4)]
    found = timing.estimate(Parts(1.0, 10.0, 1.0), many, "small")
    assert found.likely == pytest.approx(32.0)
    assert found.high / found.likely == pytest.approx(1.2)
    assert found.basis == "measured here on 4 runs"


def test_runs_that_differ_widen_the_interval_up_to_ignorance():
    runs = [record(10, seconds) for seconds in (20, 30, 45)]
    found = timing.estimate(Parts(1.0, 10.0, 1.0), runs, "small")
    assert found.likely == pytest.approx(32.0)
    assert found.low < 22
    assert found.high > 47
    wild = [record(10, seconds) for seconds in (1, 30, 900)]
    found = timing.estimate(Parts(1.0, 10.0, 1.0), wild, "small")
    assert found.high / found.likely == pytest.approx(3.0)


def test_runs_alike_in_size_and_length_count_first():
    runs = [record(10, 30), record(100, 100), *[record(1000, 1000)] * 5, record(1, 9, size="big")]
    assert timing.estimate(Parts(1.0, 10.0, 1.0), runs[:1], "small").likely == pytest.approx(32.0)
    assert timing.estimate(Parts(1.0, 900.0, 1.0), runs, "small").likely == pytest.approx(902.0)
    foreign = timing.estimate(Parts(1.0, 1.0, 1.0), runs[-1:] * 4, "small")
    assert foreign.likely == pytest.approx(11.0)
    assert foreign.high / foreign.likely >= 2
    assert foreign.basis == "measured here on 4 runs with other models"


def test_records_are_kept_per_machine_and_study_the_last_ones_only(own_cache):
    for n in range(40):
        timing.record("here", "patch", record(1, n))
    kept = timing.recall("here", "patch")
    assert len(kept) < 40
    assert kept[-1] == record(1, 39)
    assert timing.recall("here", "probe") == timing.recall("there", "patch") == []
    path = own_cache / "runs.json"
    found = json.loads(path.read_text())
    found["here patch"] += [None, {"size": 1}, {"size": "small", "start": [1, math.nan]}]
    path.write_text(json.dumps(found))
    assert timing.recall("here", "patch") == kept


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "likely", "high", "text"),
    [
        (120, 240, 480, "about 4 min (2 to 8 min; x)"),
        (40, 80, 160, "about 80 s (40 s to 3 min; x)"),
        (0.4, 0.8, 1.2, "about 0.8 s (0.4 to 1.2 s; x)"),
        (3600, 7200, 14400, "about 2.0 h (60 min to 4.0 h; x)"),
        (1e5, 4e5, 9e5, "about 4.6 d (28 h to 10 d; x)"),
    ],
)
def test_an_estimate_reads_like_this(low, likely, high, text):
    seconds = {"likely": likely, "low": low, "high": high, "basis": "x"}
    assert timing.span(seconds) == text


def test_what_it_took_stands_beside_what_was_thought():
    found = {"likely": 240.0, "low": 120.0, "high": 480.0, "seconds": 192.0}
    assert timing.sentence(found) == "took 3 min 12 s; the estimate was 4 min (2 to 8 min)"


# --- studies --------------------------------------------------------------------------------------


def test_a_run_without_a_calibration_says_nothing_and_makes_none(models, tmp_path, measured):
    study = stories.sweep(models, layers="2", controls=())
    events = []
    doc = stories.run(study, tmp_path / "run", events)
    assert doc["estimate"] is None
    assert measured == []
    assert next(e for e in events if isinstance(e, RunStarted)).estimate is None


def test_a_finished_run_says_how_good_the_estimate_was_and_is_remembered(
    models, tmp_path, measured
):
    study = stories.sweep(models, layers="2", controls=())
    planned = study.plan()["seconds"]
    assert planned.keys() == {"likely", "low", "high", "basis"}
    events = []
    doc = stories.run(study, tmp_path / "run", events)
    assert doc["estimate"].keys() == {"likely", "low", "high", "seconds"}
    assert doc["estimate"]["likely"] == planned["likely"]
    assert next(e for e in events if isinstance(e, RunStarted)).estimate == planned
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["estimate"]
    of = timed.kind(study.subject)
    kept = timing.recall(rates.machine(of.device), "patch")
    assert [one.size for one in kept] == [of.size]
    assert "1 run" in stories.sweep(models, layers="2").plan()["seconds"]["basis"]
    # what is restored takes no time, and says nothing
    doc = stories.run(stories.sweep(models, layers="2", controls=()), tmp_path / "run")
    assert doc["estimate"] is None
    assert timing.recall(rates.machine(of.device), "patch") == kept


@pytest.mark.parametrize(
    "ended",
    [RunFinished(5, 0, 1.0, "SIGTERM"), RunFinished(9, 1, 1.0), RunFinished(8, 0, 1.0, None)],
)
def test_a_run_that_was_not_whole_is_not_remembered(models, measured, ended):
    study = stories.sweep(models, layers="2")
    task = study.task()
    task.seconds()
    watch = timed.Watch()
    assert watch.stop(RunFinished(10, 0, 1.0)) is None
    task = replace(task, work=replace(task.work, cells=10))
    watch.begin(task, SimpleNamespace(done=dict))
    assert watch.stop(ended) is None
    assert watch.stop(RunFinished(10, 0, 1.0)) is not None


def test_dry_runs_and_runs_show_the_time(models, tmp_path, measured, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    pair = ["--base", models / "stories260K", "--instruct", models / "stories260K-chat"]
    asked = ["--prompt-ids", "1,2,3", "--token-ids", "5"]
    model = ["--model", models / "stories260K"]
    for command in (
        ["patch", *pair, *asked, "--layers", "2"],
        ["patch", *pair, *asked, "--method", "attribution"],
        ["probe", *pair, *asked],
        ["capture", *model, "--ids", "1,2,3"],
    ):
        status, out, _ = call(*command, "--dry-run")
        assert status == 0
        assert out.count("\ntime          about ") == 1
    status, _, err = call("probe", *pair, *asked)
    assert status == 0
    assert err.count("took ") == 1
    assert "; the estimate was " in err
    assert cache.read("runs")
