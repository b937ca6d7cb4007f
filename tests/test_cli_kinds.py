"""What the commands for stored runs say of kinds that they know nothing of, on made-up folders."""

import json
from pathlib import Path

import pytest

from mlxroles.events import Cell
from mlxroles.runs.command import command_of
from mlxroles.store.folder import RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable

SENTENCE = "Without them \x1b[31mnothing [b]remains[/b]."


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a run of a kind: two cells of two prompts, and a summary where it is finished."""
    monkeypatch.chdir(tmp_path)

    def run(kind, *, finished=True, **more):
        prompts = {"default": [["one", "d1"], ["two", "d2"]]}
        identity = {"kind": kind, "models": {"base": {}}, "prompts": prompts} | more
        manifest = {"argv": [kind, "--pair", "tiny"], "about": {"view": {"kind": kind}}}
        with RunFolder.open(
            tmp_path / "results", experiment=f"{kind}_x", identity=identity, manifest=manifest
        ) as folder:
            for n in range(2):
                coords = {"model": "base", "variant": "default", "prompt": n}
                folder.record(Cell(f"base/p{n:03d}", coords), {"gain": n + 0.5}, None)
            if finished:
                doc = {"schema": f"mlxroles/{kind}/1", "rows": [{"gain": 0.5}]}
                folder.write_json("summary.json", doc | {"sentence": SENTENCE, "run": "elsewhere"})
        return folder.path

    return run


@pytest.mark.parametrize("kind", ["novel", "ablate", "inject", "lens", "lens-fit", "heads"])
def test_a_summary_that_holds_no_table_is_shown_by_its_sentence(made, call, kind):
    run = made(kind)
    status, out, err = call("show", run)
    assert status == 0, err
    assert "nothing [b]remains[/b]." in out
    assert "\x1b" not in out + err
    assert "summary.json" in out
    assert json.loads(call("show", run, "--json")[1])["rows"] == [{"gain": 0.5}]


@pytest.mark.parametrize("kind", ["novel", "ablate", "inject", "lens", "heads"])
def test_a_run_without_a_summary_says_how_far_it_is(made, call, kind):
    run = made(kind, finished=False)
    status, out, err = call("show", run)
    assert (status, "2 of ? cells are stored" in err) == (0, True)
    assert out.startswith("What it finds is worked out when all of its cells are stored.")
    doc = json.loads(call("show", run, "--json")[1])
    assert (doc["schema"], doc["rows"], doc["show"]["from"]) == (
        f"mlxroles/{kind}/1",
        [],
        "journal",
    )


def test_every_other_command_takes_it(made, call):
    run = made("novel", finished=False)
    other = made("novel", seed=1)
    assert call("status", run)[0] == call("verify", run)[0] == 0
    assert json.loads(call("status", "--json")[1])["runs"][0]["kind"] == "novel"
    assert call("export", run, "--out", "x.csv")[0] == 0
    text = Path("x.csv").read_text()
    assert ",one," in text
    assert ",gain,1.5" in text
    status, out, _ = call("diff", run, other)
    assert status == 0
    assert "seed" in out
    status, _, err = call("report", other)
    assert (status, "is a run of `novel`, which has no report" in err) == (1, True)


@pytest.mark.parametrize("kind", ["ablate", "inject", "lens", "heads"])
def test_a_run_goes_on_in_its_own_folder(made, kind):
    run = made(kind, finished=False)
    assert command_of(run).argv == [kind, "--pair", "tiny", "--out", str(run)]


def test_a_packed_file_may_count_its_prompts(made, call):
    run = made("novel")
    with RunFolder.reopen(run) as folder:
        axes = {"model": ["base"], "variant": ["default"], "prompt": [0, 1]}
        pack(folder, [Variable("gain", tuple(axes), "f4")], axes)
    [found] = json.loads(call("verify", run, "--json")[1])["runs"]
    assert (found["ok"], found["counts"]["packed_numbers"]) == (True, 2)
