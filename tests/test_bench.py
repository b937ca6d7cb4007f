"""``mlxroles bench``: every work against its plain twin, what it counts, and what it refuses."""

import json

import numpy as np
import pytest
import tiny_models
from mlx.utils import tree_flatten

from mlxroles import bench as package
from mlxroles.backend import mx
from mlxroles.bench import NAMES, Ground, bench, measure, parse_works, sweeps
from mlxroles.bench.work import evenly
from mlxroles.cli import bench as command
from mlxroles.errors import PairError, SpecError
from mlxroles.models.load import wrap

KEYS = {
    *("work", "seconds", "cpu_seconds", "ratio", "twin_ratio", "layer_calls"),
    *("least_layer_calls", "peak_memory", "error", "cells", "twin_cells", "goal", "reference"),
}
TOKENS = 16
LAYERS, HEADS = 4, 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One run of everything: how long it takes is not tested."""
    monkeypatch.setattr(measure, "FEWEST", 1)
    monkeypatch.setattr(measure, "PATIENCE", 0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random Llamas without a tokenizer, and one with another vocabulary."""
    made = []
    for seed, vocab in ((0, 64), (1, 64), (2, 72)):
        folder = tmp_path_factory.mktemp(f"llama{seed}")
        weights = tree_flatten(tiny_models.tiny_llama(seed, vocab_size=vocab).parameters())
        mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "mlx"})
        config = tiny_models.LLAMA | {"vocab_size": vocab}
        (folder / "config.json").write_text(json.dumps(config))
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def doc(folders, tmp_path_factory):
    """The document of all works on the pair, by the command."""
    from mlxroles import cli

    base, instruct, _ = folders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FEWEST", 1)
        patch.setattr(measure, "PATIENCE", 0.0)
        printed = []
        patch.setattr(command, "print_json", printed.append)
        args = ["bench", "--model", base, "--donor", instruct, "--tokens", TOKENS, "--json"]
        assert cli.run([str(a) for a in args]) == 0
    return json.loads(json.dumps(printed[0]))


@pytest.fixture(scope="module")
def items(doc):
    return {item["work"]: item for item in doc["items"]}


def test_every_work_has_its_figures(doc, items):
    assert doc["schema"] == "mlxroles/bench/1"
    assert list(items) == [*NAMES[:6], "W6 attribution", *NAMES[6:]]
    for name, item in items.items():
        assert set(item) >= KEYS
        assert item["possible"]
        assert item["cpu_seconds"] > 0
        assert item["seconds"] > 0
        assert item["peak_memory"] > 0
        if name == "W10":
            assert item["ratio"] is None
        else:
            assert item["ratio"] > 0
            assert item["twin_ratio"] > 0
    assert {"chip", "device", "cores", "memory", "os"} <= set(doc["machine"])
    assert doc["models"]["recipient"]["vocab"] == 64
    assert doc["tokens"] == TOKENS


def test_the_engine_gives_what_the_plain_twin_gives(items):
    for name, item in items.items():
        if name != "W6 attribution":
            assert item["error"] <= 1e-5, name
            assert 1 <= item["twin_cells"] <= item["cells"]
    assert items["W6 attribution"]["error"] is None
    assert "rank correlation" in items["W6 attribution"]["note"]


def test_cells_are_those_of_the_works(items):
    cells = {name: item["cells"] for name, item in items.items()}
    assert cells["W4"] == 2 * LAYERS
    assert cells["W5"] == LAYERS
    assert cells["W6"] == LAYERS * TOKENS // 4
    assert cells["W7"] == LAYERS * HEADS
    assert cells["W8"] == 120
    assert cells["W9"] == 2 * LAYERS * 30
    assert items["W6"]["tokens"] == TOKENS // 4
    assert items["W10"]["tokens"] == 32 * TOKENS


def test_least_layer_calls_are_those_of_the_definition(items):
    """Summed cell by cell: what lies behind the edit, from its position on, the last when read."""

    def after(join, share, length):
        return 0 if join == LAYERS else (LAYERS - 1 - join) * share + 1 / length

    def clean(length):
        return LAYERS - 1 + 1 / length

    t, short = TOKENS, TOKENS // 4
    layers = range(LAYERS)
    least = {name: item["least_layer_calls"] for name, item in items.items()}
    assert least["W1"] == least["W2"] == least["W3"] == least["W10"] == LAYERS
    assert least["W4"] == pytest.approx(2 * (clean(t) + sum(after(i + 1, 1, t) for i in layers)))
    assert least["W5"] == pytest.approx(2 * clean(t) + sum(after(i + 1, 1 / t, t) for i in layers))
    cells = [after(i + 1, (short - p) / short, short) for i in layers for p in range(short)]
    assert least["W6"] == pytest.approx(2 * clean(short) + sum(cells))
    assert least["W7"] == pytest.approx(clean(t) + HEADS * sum(after(i, 1, t) for i in layers))
    assert least["W8"] == 120 * LAYERS
    whole = 2 * (clean(8) + sum(after(i + 1, 1, 8) for i in layers))
    assert least["W9"] == pytest.approx(30 * whole)
    for name, item in items.items():
        assert item["layer_calls"] >= item["least_layer_calls"] - 1e-6, name


def test_the_table_and_the_line_to_post(call, folders):
    base, instruct, _ = folders
    works = ["--work", "w10,W4", "--tokens", "8"]
    status, out, err = call("bench", "--model", base, "--donor", instruct, *works)
    lines = out.splitlines()
    assert status == 0
    columns = [c.lstrip("#") for c in command.COLUMNS if c != "#goal"]  # another model's
    assert lines[0].split("\t") == columns
    assert [line.split("\t")[0] for line in lines[1:3]] == ["W4", "W10"]
    assert lines[3].startswith("mlxroles ")
    assert "W4 " in lines[3]
    assert "W4  patch layers" in err
    assert "times 256" in err
    status, out, _ = call("bench", "--model", base, "--work", "W1", "--tokens", "8", "--plain")
    assert status == 0
    assert out.splitlines()[0] == "  ".join(columns)


def test_one_model_takes_its_activations_from_other_prompts(call, folders):
    works = ["--work", "W4,W5", "--tokens", "8", "--json"]
    status, out, _ = call("bench", "--model", folders[0], *works)
    found = json.loads(out)
    assert status == 0
    assert found["models"]["donor"] is None
    assert any("other prompts" in line for line in found["notes"])
    assert max(item["error"] for item in found["items"]) <= 1e-5


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--work", "W1,W44"], 1, "no work 'W44'; did you mean 'W4'?"),
        (["--work", ""], 1, "no work ''; there are W1, W2"),
        (["--tokens", "0"], 2, "0 is not in the range"),
        (["--donor", "x"], 2, "--donor needs --model"),
        (["--model", "x", "--pair", "tiny"], 2, "exclude each other"),
        (["--pair", "tinyy"], 1, "did you mean 'tiny'?"),
        (["--model", "nowhere/at/all"], 1, "no such folder"),
    ],
)
def test_wrong_use_is_one_clear_line(call, args, status, message):
    found, out, err = call("bench", *args)
    assert (found, out) == (status, "")
    assert message in err


def test_a_missing_donor_is_named_before_anything_is_measured(call, folders):
    status, out, err = call("bench", "--model", folders[0], "--donor", folders[0] / "gone")
    assert (status, out) == (1, "")
    assert "gone" in err
    assert "warming" not in err


def test_models_of_two_vocabularies_are_refused(call, folders):
    status, out, err = call("bench", "--model", folders[0], "--donor", folders[2])
    assert (status, out) == (1, "")
    assert "vocabulary of 64" in err
    assert "72" in err
    deep, flat = (wrap(tiny_models.tiny_llama(0, num_hidden_layers=n)) for n in (4, 3))
    with pytest.raises(PairError, match="layers: 4"):
        Ground(deep, flat, 8)


def test_prompts_are_cut_to_the_table_of_positions():
    model = tiny_models.tiny("gpt2")
    assert model.table_length is not None
    found = bench(model, None, works=["W2"], tokens=2 * model.table_length)
    assert found["tokens"] == model.table_length
    assert any(f"{model.table_length} tokens instead of" in line for line in found["notes"])
    assert found["items"][0]["error"] <= 1e-5


def test_what_an_architecture_forbids_is_an_entry_with_a_reason():
    found = bench(tiny_models.tiny("mamba"), None, works=["W3", "W4", "W7", "W10"], tokens=8)
    entropies, patches, heads, long = found["items"]
    for item in (entropies, heads, long):
        assert set(item) >= KEYS
        assert not item["possible"]
        assert item["ratio"] is None
        assert "mamba" in item["note"]
    assert patches["possible"]
    assert patches["error"] <= 1e-5
    assert patches["layer_calls"] > patches["least_layer_calls"]
    assert "shortcut" in patches["note"]


def test_a_long_w10_is_shortened_and_said_so_unless_asked_for(monkeypatch):
    model = wrap(tiny_models.tiny_llama(0))
    monkeypatch.setattr(package, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(package, "WORKS", {"W10": package.WORKS["W10"]})
    monkeypatch.setattr(package, "NAMES", ("W10",))
    short = bench(model, None, tokens=8)
    assert short["items"][0]["tokens"] == 32
    assert any("--work W10" in line for line in short["notes"])
    assert bench(model, None, works=["W10"], tokens=8)["items"][0]["tokens"] == 256


def test_works_come_in_their_own_order():
    assert parse_works(None) == NAMES
    assert parse_works(" w9, W1,w9") == ("W1", "W9")
    with pytest.raises(SpecError, match="no work 'X'"):
        parse_works("x")


def test_samples_are_spread_evenly():
    assert evenly(120, 4) == [15, 45, 75, 105]
    assert evenly(3, 8) == [0, 1, 2]
    ground = Ground(wrap(tiny_models.tiny_llama(0)), wrap(tiny_models.tiny_llama(1)), 128)
    work = sweeps.EveryPosition(ground)
    by_layer = np.array(work.sample).reshape(LAYERS, -1)
    assert (by_layer // 32 == np.arange(LAYERS)[:, None]).all()
    assert (by_layer % 32 == by_layer[0] % 32).all()
