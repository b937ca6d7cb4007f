"""patch, probe and capture as commands: exact lines, one JSON document, bad inputs, signals."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import stories
from safetensors.numpy import load_file, save_file
from stories import TEXT, without_times
from zygote import NO_FIGURES

from mlxroles import cli
from mlxroles.studies import patch_sweep

CELL = {"tool_call_prob", "p_first_token", "log_odds", "recovery", "effect", "top5", "entropy"}
HOSTILE = {
    "unicode": "日本語 🙂 naïve",
    "nul": "a\0b",
    "ansi": "a\x1b]0;x\x07b\x1b[2J",
    "rtl": "\u202eabc",
    "html": "<script>alert(1)</script>&amp;",
    "markup": "[b]x[/b] [/] $\\frac$ `x` |",
    "formula": "=1+1",
}


@pytest.fixture
def models(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shared / "models"


@pytest.fixture(autouse=True)
def few_figures(request, monkeypatch):
    """Figures have tests of their own and take longer than everything here."""
    if "tiny" not in request.node.name:
        monkeypatch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
        monkeypatch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)


def pair(models, base=None, instruct=None):
    sides = (base or models / "stories260K", instruct or models / "stories260K-chat")
    return ["--base", sides[0], "--instruct", sides[1]]


def quick(models, **sides):
    return [
        "patch",
        *pair(models, **sides),
        "--prompt",
        TEXT,
        "--layers",
        "2",
        "--controls",
        "none",
    ]


PATHS = {"PYTHONPATH": str(Path(cli.__file__).parents[2])}


def program(*args, **how):
    """The command as a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "mlxroles.cli", *map(str, args)]
    return subprocess.Popen(command, **pipes | {"env": os.environ | PATHS} | how)


def refused(result, status=1):
    """The one line of a refusal; nothing on standard output."""
    found, out, err = result
    assert found == status, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


# --- the commands as they are promised ------------------------------------------------------------


@pytest.mark.slow
def test_tiny_patch_is_one_document_with_every_promised_key(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("patch", "--pair", "tiny", "--layers", "2-4", "--json")
    doc = json.loads(out)
    assert (status, out.count("\n")) == (0, 1)
    assert doc["schema"] == "mlxroles/patch/1"
    assert (doc["pair"], doc["layers_tested"], doc["headline"]) == (
        "tiny",
        [2, 3, 4],
        "<tool_call>",
    )
    assert Path(doc["run"]).is_relative_to(tmp_path / "results")
    assert doc["n_tokens"] > 100
    assert doc["n_layers"] >= 5
    for side in ("base", "instruct"):
        assert doc["baselines"][side].keys() >= CELL - {"recovery", "effect"}
    for direction in ("instruct_to_base", "base_to_instruct"):
        assert list(doc[direction]) == ["2", "3", "4"]
        for cell in doc[direction].values():
            assert cell.keys() >= CELL
            assert len(cell["top5"]) == 5
    for key in ("i2b", "b2i"):
        assert doc["summary"].keys() >= {
            f"{key}_peak_{x}" for x in ("layer", "effect", "depth_pct")
        }
    assert doc["summary"]["sentence"]
    assert doc["baselines"]["instruct"]["p_first_token"] >= 0.9
    assert doc["baselines"]["base"]["p_first_token"] <= 0.01
    assert "[" in err
    for path in doc["figures"].values():
        assert Path(path).is_file()
    for name in ("summary.json", "run.h5", "report.html", "cells.jsonl", "manifest.json"):
        assert (Path(doc["run"]) / name).is_file()
    stored = json.loads((Path(doc["run"]) / "summary.json").read_text())
    assert stored == doc


def test_a_raw_prompt_with_token_ids_writes_where_out_says(call, models, tmp_path):
    status, out, _ = call(
        "patch", *pair(models), "--prompt", TEXT, "--token-ids", "508", "--json", "--out", "my run"
    )
    doc = json.loads(out)
    assert status == 0
    assert Path(doc["run"]) == tmp_path / "my run"
    assert list(doc["instruct_to_base"]) == list("01234")
    assert doc["baselines"]["instruct"]["tool_call_prob"] > 0.99
    assert doc["controls"].keys() == {"other_prompt", "random"}
    with h5py.File(tmp_path / "my run" / "run.h5") as file:
        stored = file["tool_call_prob"][0, 0, 2, 0, 0]
        assert file["direction"][0].decode() == "base_to_instruct"
        assert stored == pytest.approx(doc["base_to_instruct"]["2"]["tool_call_prob"], rel=1e-6)


def test_open_shows_the_report_of_this_run(call, models, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("mlxroles.cli.report.open_page", shown.append)
    assert call(*quick(models), "--out", tmp_path / "seen")[0] == 0
    assert shown == []
    assert call(*quick(models), "--out", tmp_path / "seen", "--open")[0] == 0
    assert shown == [tmp_path / "seen" / "report.html"]


def test_a_run_that_cannot_keep_within_its_memory_says_so(call, models):
    command = ["patch", *pair(models), "--prompt-ids", "1,2,3", "--token-ids", "508", "--dry-run"]
    _, out, _ = call(*command, "--memory", "100kB")
    assert "more than the 100 kB that it may take" in out
    _, out, _ = call(*command, "--memory", "1GB")
    assert "may take" not in out


def test_prompts_of_ids_may_be_given_several_times(call, models):
    ids = ["--prompt-ids", "1,2,3", "--prompt-ids", "4,5"]
    command = ["patch", *pair(models), *ids, "--token-ids", "508", "--dry-run", "--json"]
    status, out, _ = call(*command)
    assert status == 0
    assert [p["n_tokens"] for p in json.loads(out)["prompts"]] == [3, 2]


def test_prompt_ids_of_a_file_are_one_prompt_per_row(call, models, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[1, 410, 471], [1, 410, 300]], dtype=np.int64))
    command = ["patch", *pair(models), "--prompt-ids", "ids.npy", "--token-ids", "508", "--json"]
    status, out, _ = call(*command, "--layers", "3", "--controls", "none")
    doc = json.loads(out)
    assert (status, doc["n_tokens_per_prompt"]) == (0, [3, 3])
    assert len(doc["base_to_instruct"]["3"]["log_odds_ci"]) == 2


def test_capture_of_ids_writes_the_promised_datasets(call, models, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[1, 410, 471, 5]]))
    keep = "resid_post,pattern,entropy,z,logits"
    command = ["capture", "--model", models / "stories260K", "--ids", "ids.npy", "--keep", keep]
    status, out, _ = call(*command, "--store", "f32", "--out", "c.h5", "--json")
    doc = json.loads(out)
    assert (status, doc["schema"], doc["file"]) == (0, "mlxroles/capture/1", "c.h5")
    with h5py.File("c.h5") as file:
        shapes = {name: file[name].shape for name in keep.split(",")}
    assert shapes == {
        "resid_post": (1, 5, 4, 64),
        "pattern": (1, 5, 8, 4, 4),
        "entropy": (1, 5, 8, 4),
        "z": (1, 5, 4, 8, 8),
        "logits": (1, 4, 512),
    }


def test_probe_prints_a_row_per_prompt(call, models):
    command = ["probe", "--model", models / "stories260K-chat", "--prompt", TEXT]
    status, out, _ = call(*command, "--tokens", "[", "--json")
    doc = json.loads(out)
    assert (status, doc["schema"]) == (0, "mlxroles/probe/1")
    assert doc["rows"][0]["p_first_token"] > 0.99
    status, out, _ = call(*command, "--tokens", "[")
    assert status == 0
    assert "0.995" in out


def test_check_gives_a_verdict_and_its_reasons(call, models):
    status, out, _ = call("models", "check", models / "stories260K", "--json")
    doc = json.loads(out)
    assert (status, doc["verdict"]) == (0, "works")
    assert all(c.keys() >= {"name", "value", "bound", "ok"} for c in doc["checks"])


@pytest.mark.parametrize("command", ["patch", "probe"])
def test_a_dry_run_loads_and_writes_nothing(call, models, tmp_path, command, monkeypatch):
    from mlxroles.studies import subject

    monkeypatch.setattr(subject, "load", None)
    args = [command, *pair(models), "--prompt", TEXT, "--token-ids", "508", "--dry-run"]
    status, out, err = call(*args, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["cells"] > 0
    assert call(*args)[0] == 0
    assert list(tmp_path.iterdir()) == []


# --- bad inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["patch"], "name a pair"),
        (["patch", "--base", "x"], "--instruct is missing"),
        (["patch", "--pair", "tiny", "--base", "x"], "exclude each other"),
        (["patch", "--pair", "tiny", "extra"], "unexpected extra argument"),
        (["patch", "--lairs", "3"], "--layers"),
        (["patch", "--pair", "tiny", "--site", "qq"], "resid_post"),
        (["patch", "--pair", "tiny", "--token-ids", "a"], "508 or 5,6"),
        (["patch", "--pair", "tiny", "--resident", "3"], "1<=x<=2"),
        (["probe"], "name a model with --model, a pair"),
        (["probe", "--model", "x", "--pair", "tiny"], "exclude each other"),
        (["capture"], "--model"),
        (["capture", "--model", "x"], "--ids"),
    ],
)
def test_wrong_usage_is_status_2_with_a_hint(call, args, words):
    status, out, err = call(*args)
    assert (status, out) == (2, "")
    assert words in err


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def flipped(path):
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + 403] ^= 0x40
    path.write_bytes(bytes(data))


def with_number(number):
    def change(path):
        tensors = load_file(path)
        name = sorted(tensors)[3]
        tensors[name].flat[5] = number
        save_file(tensors, path, metadata={"format": "mlx"})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.unlink(), "no weights; expected model.safetensors"),
        (lambda p: p.rename(p.with_name("pytorch_model.bin")), "only safetensors are read"),
        (lambda p: p.with_name("config.json").unlink(), "no config.json"),
        (lambda p: p.with_name("config.json").write_text("{"), "not valid JSON"),
        (lambda p: p.with_name("config.json").write_text("[]"), "expected a JSON object"),
        (lambda p: p.with_name("tokenizer.json").write_text("{"), "tokenizer cannot be read"),
        (lambda p: p.write_bytes(b""), "not a readable safetensors file"),
        (truncated, "not a readable safetensors file"),
        (flipped, "a weight of magnitude"),
        (with_number(np.nan), "NaN or infinite"),
        (with_number(np.inf), "NaN or infinite"),
    ],
)
def test_a_damaged_model_is_refused_before_anything_is_written(
    call, models, tmp_path, change, words
):
    base = stories.copied(models / "stories260K", tmp_path / "base")
    change(base / "model.safetensors")
    line = refused(call(*quick(models, base=base), "--token-ids", "508", "--out", "run"))
    assert words in line
    assert str(base) in line
    assert not (tmp_path / "run").exists()


# transformers warns about a model type that it does not know
@pytest.mark.filterwarnings("ignore:.rope_scaling.:FutureWarning")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vocab_size": 600}, "cannot load it"),
        ({"num_hidden_layers": 6}, "cannot load it"),
        ({"model_file": "evil.py"}, "--trust-remote-code"),
        ({"model_type": "nope"}, "nope"),
        ({"model_type": 5}, "model_type"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(call, models, tmp_path, config, words):
    sides = {
        side: stories.copied(models / name, tmp_path / side, **config)
        for side, name in (("base", "stories260K"), ("instruct", "stories260K-chat"))
    }
    (sides["base"] / "evil.py").write_text("raise SystemExit('ran')")
    line = refused(call(*quick(models, **sides), "--token-ids", "508", "--out", "run"))
    assert words in line


def swap_tokens(folder):
    path = folder / "tokenizer.json"
    doc = json.loads(path.read_text())
    vocab = doc["model"]["vocab"]
    one, two = list(vocab)[300:302]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    path.write_text(json.dumps(doc))


def other_template(folder):
    path = folder / "tokenizer_config.json"
    doc = json.loads(path.read_text()) | {"chat_template": "{{ messages[0]['content'] }}!"}
    path.write_text(json.dumps(doc))


@pytest.mark.parametrize(
    ("change", "words"),
    [(swap_tokens, "different tokenizers"), (other_template, "--template instruct")],
)
def test_models_that_read_text_differently_are_refused(call, models, tmp_path, change, words):
    base = stories.copied(models / "stories260K", tmp_path / "base")
    change(base)
    assert words in refused(call(*quick(models, base=base), "--token-ids", "508"))


def test_a_template_of_the_instruct_model_can_be_chosen(call, models, tmp_path):
    base = stories.copied(models / "stories260K", tmp_path / "base")
    other_template(base)
    command = [*quick(models, base=base), "--token-ids", "508", "--template", "instruct"]
    assert call(*command, "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pair", "tinny"], "did you mean 'tiny'"),
        (["--pair", "llama8b"], "mlxroles models pull llama8b"),
        (["--base", "/nowhere", "--instruct", "/nowhere"], "no such folder"),
        (["--base", __file__, "--instruct", __file__], "is a file"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_the_way_to_get_it(call, args, words):
    assert words in refused(call("patch", *args))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "no/such.txt"], "no such file"),
        (["--prompt", "notepod"], "did you mean 'notepad'"),
        (["--prompt", "a\ud800b"], "surrogate"),
        (["--prompt-ids", "1,2,512"], "0..511"),
        (["--prompt-ids", "1,-2"], "negative"),
        (["--prompt-ids", "1,x"], "not a token id"),
        (["--prompt-ids", ""], "no token ids"),
        (["--prompt-ids", "no.npy"], "no such file"),
        (["--prompt", "x", "--layers", "40"], "0..4"),
        (["--prompt", "x", "--positions", "99"], "position 99 is outside"),
        (["--prompt", "x", "--heads", "1"], "--site z"),
        (["--prompt", "x", "--token-ids", "512"], "0..511"),
        (["--prompt", "x", "--tokens", "a"], "exclude each other"),
        (["--prompt", "x", "--controls", "noise"], "other_prompt, random or none"),
    ],
)
def test_a_prompt_or_place_that_does_not_exist_is_refused(call, models, tmp_path, args, words):
    if "--token-ids" not in args:
        args = [*args, "--token-ids", "508"]
    assert words in refused(call("patch", *pair(models), *args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_comes_back_exactly_and_is_never_obeyed(call, models, tmp_path, name):
    text = HOSTILE[name]
    command = [*pair(models), "--prompt", f"{text} ", "--tokens", text, "--layers", "2"]
    status, out, err = call("patch", *command, "--controls", "none", "--json", "--out", "run")
    assert status == 0
    doc = json.loads(out)
    assert doc["headline"] == text
    assert text in doc["strings"]
    _, shown, _ = call("patch", *command, "--controls", "none", "--out", "run")
    page = (tmp_path / "run" / "report.html").read_text()
    for where in (err, shown, page):
        assert not any(c in where for c in "\x1b\x07\0\u202e")
    assert "<script>alert" not in page


def test_folders_that_cannot_take_a_run_are_refused(call, models, tmp_path):
    command = [*quick(models), "--token-ids", "508", "--out"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "is a file" in refused(call(*command, "file"))
    assert "is a file" in refused(call(*command, "file/run"))
    assert "thesis.tex" in refused(call(*command, "full"))
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "--out" in refused(call(*command, "closed/run"))


def test_the_folder_of_another_run_is_refused_and_the_field_named(call, models, tmp_path):
    command = [*quick(models), "--token-ids", "508", "--out", "run"]
    assert call(*command)[0] == 0
    before = (tmp_path / "run" / "cells.jsonl").read_bytes()
    line = refused(call(*command, "--layers", "3"))
    assert "layers is [2] there and [3] here" in line
    assert (tmp_path / "run" / "cells.jsonl").read_bytes() == before
    assert call(*command, "--layers", "3", "--allow-drift", "layers")[0] == 0
    drift = json.loads((tmp_path / "run" / "manifest.json").read_text())["drift"]
    assert [d["field"] for d in drift] == ["layers"]


def test_a_model_that_changed_since_the_run_began_is_refused(call, models, tmp_path):
    base = stories.copied(models / "stories260K", tmp_path / "base")
    command = [*quick(models, base=base), "--token-ids", "508", "--out", "run"]
    assert call(*command)[0] == 0
    with_number(0.25)(base / "model.safetensors")
    assert "models.base.sha256" in refused(call(*command))


def test_one_token_is_enough(call, models):
    command = ["patch", *pair(models), "--prompt-ids", "1", "--token-ids", "508", "--layers", "1"]
    status, out, _ = call(*command, "--json")
    doc = json.loads(out)
    assert (status, doc["n_tokens"]) == (0, 1)
    recovery = doc["controls"]["other_prompt"]["base_to_instruct"]["1"]["recovery"]
    assert recovery != doc["base_to_instruct"]["1"]["recovery"]


def test_a_prompt_beyond_the_context_runs_with_a_note(call, models):
    command = ["probe", "--model", models / "stories260K", "--prompt", "a " * 600]
    status, out, err = call(*command, "--token-ids", "508", "--json")
    assert status == 0
    assert "more than the 512 positions" in err
    assert any("512 positions" in text for text in json.loads(out)["notes"])


# --- processes ------------------------------------------------------------------------------------


def probe(models):
    command = ["probe", "--model", models / "stories260K-chat", "--prompt", TEXT]
    return [*command, "--token-ids", "508", "--out", "run"]


@pytest.mark.slow
def test_a_reader_that_goes_away_leaves_no_traceback(models, tmp_path):
    process = program(*probe(models))
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert "Traceback" not in err
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
def test_a_simple_terminal_gets_no_escape_codes(models):
    ours, theirs = os.openpty()
    env = PATHS | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"}
    how = {"env": os.environ | env, "stdout": theirs, "stderr": theirs, "text": False}
    process = program(*probe(models), **how)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b" not in shown
    assert b"summary.json" in shown


def _read(handle):
    try:
        return os.read(handle, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_second_process_on_a_run_is_told_who_has_it(call, models, tmp_path):
    from mlxroles.store.lock import RunLock

    command = [*quick(models), "--token-ids", "508", "--out", "run"]
    assert call(*command)[0] == 0
    holder = RunLock(tmp_path / "run" / "run.lock")
    try:
        line = refused(call(*command), status=4)
    finally:
        holder.release()
    assert str(os.getpid()) in line


def long_sweep(models):
    ids = ",".join(map(str, [1, *range(300, 340)]))
    command = ["patch", *pair(models), "--prompt-ids", ids, "--token-ids", "508", "--json"]
    return [*command, "--positions", "each", "--layers", "1", "--controls", "random", "--out"]


def wait_for_cells(folder, count):
    journal = folder / "cells.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError("the run did not get that far")


@pytest.fixture(scope="module")
def whole_sweep(zygote, shared, tmp_path_factory):
    """The document of the sweep that nothing stopped."""
    home = tmp_path_factory.mktemp("undisturbed")
    command = [*long_sweep(shared / "models"), "whole"]
    status, out, err = zygote.run(*command, cwd=home, code=NO_FIGURES)
    assert status == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_numbers(models, whole_sweep, zygote, tmp_path, number):
    # in processes of their own, as a user would: what else this one has loaded may round otherwise
    command, how = [*long_sweep(models), "run"], {"cwd": tmp_path, "code": NO_FIGURES}
    child = zygote.start(*command, **how)
    wait_for_cells(tmp_path / "run", 20)
    child.send(number)
    status, err = child.wait(), child.err.read_text()
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert status == -9
    else:
        assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert "the same command goes on from there" in err.splitlines()[-1]
        assert json.loads(child.out.read_text())["interrupted"] == number.name
    status, out, err = zygote.run(*command, **how)
    assert status == 0
    assert "stored earlier" in err
    assert without_times(json.loads(out)) == without_times(whole_sweep)
