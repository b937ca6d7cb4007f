"""What the doctor says of machines that are not here, and of this one."""

import fcntl
import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlxroles import cli
from mlxroles.cli.doctor import lines
from mlxroles.doctor import advice, answers, look, settings
from mlxroles.doctor.facts import (
    Answers,
    Backend,
    Caches,
    Facts,
    Finding,
    Storage,
    Terminal,
)
from mlxroles.machine.chip import Chip
from mlxroles.machine.disk import Place
from mlxroles.machine.memory import SystemMemory
from mlxroles.machine.power import Power

GIB = 1 << 30
GOOD = {
    "python": "3.12.4",
    "mlx": "0.32.4",
    "mlx-lm": "0.32.2",
    "numpy": "2.4.6",
    "h5py": "3.16.0",
    "hdf5": "2.0.0",
}

MACBOOK = Facts(
    chip=Chip("Apple M2", 8, "Mac14,2", 4, "macOS 15.2", (15, 2)),
    memory=SystemMemory(16 * GIB, 7 * GIB, 0, 200 << 20, "ok"),
    power=Power("ac", 100, low_power=False, lid="open"),
    backend=Backend("metal", "Apple M2", 16 * GIB, int(10.7 * GIB), wired_mb=0),
    answers=Answers(3e-5, 2e-5),
    storage=Storage(Path("results"), Place("apfs", None), 200 * GIB, 2e9, 0.004, "work"),
    caches=Caches(Path("/c"), None, Path("/h"), 3, 12 * GIB, {"llama8b/base": 4 * GIB}),
    terminal=Terminal(True, 120, "truecolor", "utf-8", "xterm-256color"),
    versions=GOOD,
)
STUDIO = replace(
    MACBOOK,
    chip=Chip("Apple M3 Ultra", 32, "Mac15,14", 24, "macOS 15.2", (15, 2)),
    memory=SystemMemory(256 * GIB, 200 * GIB, 0, 200 << 20, "ok"),
    power=Power("ac", low_power=False),
    backend=Backend("metal", "Apple M3 Ultra", 256 * GIB, 192 * GIB, wired_mb=0),
)
SERVER = replace(
    MACBOOK,
    chip=Chip("AMD EPYC", 16, system="Debian 12"),
    power=Power(),
    backend=Backend("cpu", "AMD EPYC", blas="libopenblas.so.0", gflops=150.0),
    answers=Answers(5e-5),
)


def said(facts: Facts, topic: str) -> list[Finding]:
    return [finding for finding in advice.findings(facts) if finding.topic == topic]


def one(facts: Facts, topic: str) -> Finding:
    [found] = said(facts, topic)
    return found


def with_models(facts: Facts, **models: int) -> Facts:
    return replace(facts, caches=replace(facts.caches, models=models))


@pytest.mark.parametrize("facts", [MACBOOK, STUDIO, SERVER], ids=["MacBook", "Studio", "server"])
def test_a_good_machine_is_ok_throughout(facts):
    found = advice.findings(facts)
    assert {finding.status for finding in found} == {"ok"}
    assert all(finding.text and finding.command is None for finding in found)


def test_nothing_known_is_nothing_said():
    assert [f.topic for f in advice.findings(Facts())] == ["settings"]


def test_machines_are_named():
    assert one(MACBOOK, "machine").text == "Apple M2, Mac14,2, 8 cores (4 fast), macOS 15.2"
    assert one(SERVER, "machine").text == "AMD EPYC, 16 cores, Debian 12"
    assert one(MACBOOK, "backend").text == "Metal on Apple M2"
    assert "no GPU" in one(SERVER, "backend").text


def test_an_old_macos_cannot_keep_large_models():
    old = replace(MACBOOK, chip=replace(MACBOOK.chip, system="macOS 14.5", macos=(14, 5)))
    assert one(old, "machine").status == "warn"
    large = with_models(old, big=8 * GIB)
    assert (one(large, "wired").status, one(large, "wired").command) == ("warn", None)
    assert "macOS 15 could" in one(large, "wired").text


# --- memory and wiring ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "status"), [("ok", "ok"), ("tight", "warn"), ("critical", "fix")]
)
def test_memory(level, status):
    assert one(replace(MACBOOK, level=level), "memory").status == status


def test_a_machine_that_swaps_is_warned():
    swapping = replace(MACBOOK.memory, swap_used=3 * GIB)
    found = one(replace(MACBOOK, memory=swapping), "memory")
    assert (found.status, "3.22 GB are swapped out" in found.text) == ("warn", True)


def test_the_wired_limit_is_left_alone_as_a_rule():
    assert "leave the wired limit alone" in one(MACBOOK, "wired").text
    assert "6.89 GB" in one(MACBOOK, "wired").text  # 60 % of 10.7 GiB
    assert said(SERVER, "wired") == []
    set_by_hand = replace(STUDIO, backend=replace(STUDIO.backend, wired_mb=240_000))
    assert "until the next start" in one(set_by_hand, "wired").text


def test_a_model_that_the_gpu_may_keep_needs_nothing():
    found = one(with_models(STUDIO, big=140 * GIB), "wired")
    assert (found.status, found.text) == (
        "ok",
        "big takes 150 GB, which the GPU keeps in memory",
    )


def test_a_model_that_needs_a_higher_limit_gets_the_command():
    found = one(with_models(STUDIO, small=GIB, big=200 * GIB), "wired")
    assert found.status == "warn"
    assert found.command == f"sudo sysctl iogpu.wired_limit_mb={204 * 1024}"
    raised = replace(STUDIO, backend=replace(STUDIO.backend, wired_mb=204 * 1024))
    assert one(with_models(raised, big=200 * GIB), "wired").status == "ok"


def test_no_limit_may_take_the_memory_of_the_system():
    for size in (7 * GIB, 12 * GIB):
        found = one(with_models(MACBOOK, big=size), "wired")
        assert found.command is None
    assert "too large to be kept in memory" in found.text


def test_limits_come_from_the_gpu_or_from_the_machine():
    assert one(MACBOOK, "limits").text.startswith("a run takes up to 8.62 GB of the 11.5 GB")
    assert one(SERVER, "limits").text == "a run takes up to 12.9 GB; --memory changes that"


# --- power ------------------------------------------------------------------------------------


def test_power():
    assert one(MACBOOK, "power").text == (
        "mains, battery at 100 %; runs keep the machine awake, but only with the lid open"
    )
    assert one(STUDIO, "power").text == "mains; runs keep the machine awake"
    tired = replace(MACBOOK, power=Power("battery", 54, low_power=True, lid="closed"))
    battery, slow, lid = said(tired, "power")
    assert {f.status for f in (battery, slow, lid)} == {"warn"}
    assert "on battery (54 %)" in battery.text
    assert slow.command == "sudo pmset -a lowpowermode 0"
    assert "the lid is closed" in lid.text


# --- MLX --------------------------------------------------------------------------------------


def test_a_mac_without_its_gpu_is_broken():
    found = one(replace(MACBOOK, backend=Backend("cpu", "Apple M2")), "backend")
    assert (found.status, found.command) == ("fix", "pip install --force-reinstall mlx")


@pytest.mark.parametrize(
    ("cpu", "gpu", "status"),
    [
        (5e-5, None, "ok"),
        (5e-5, 2e-5, "ok"),
        (5e-5, 6e-3, "warn"),
        (5e-5, 0.8, "fix"),
        (5e-5, float("nan"), "fix"),
        (0.3, 2e-5, "fix"),
        (float("nan"), None, "fix"),
    ],
)
def test_answers(cpu, gpu, status):
    assert one(replace(MACBOOK, answers=Answers(cpu, gpu)), "answers").status == status


def test_low_precision_on_cuda_has_a_switch():
    cuda = replace(SERVER, backend=Backend("cuda", "NVIDIA"), answers=Answers(5e-5, 6e-3))
    assert one(cuda, "answers").command == "export MLX_ENABLE_TF32=0"


def test_the_slow_blas_names_the_fast_one():
    slow = replace(SERVER, backend=replace(SERVER.backend, blas=None, gflops=1.1))
    found = one(slow, "BLAS")
    assert (found.status, found.command) == ("warn", "sudo apt install libopenblas0")
    busy = replace(SERVER, backend=replace(SERVER.backend, gflops=1.1))
    assert "is something else running" in one(busy, "BLAS").text
    assert said(MACBOOK, "BLAS") == []


# --- disk, caches, terminal -------------------------------------------------------------------


def stored(**changes) -> Facts:
    return replace(MACBOOK, storage=replace(MACBOOK.storage, **changes))


def test_disks():
    assert [f.topic for f in advice.findings(MACBOOK) if f.topic in ("results", "writing", "locks")]
    assert one(stored(free=100 << 20), "results").status == "fix"
    tight = one(stored(free=GIB, path=Path("my results")), "results")
    assert (tight.status, tight.command) == ("warn", "du -sh 'my results'/*/*")
    assert one(stored(sync=0.3), "writing").status == "warn"
    assert one(stored(locks="fail"), "locks").status == "warn"
    assert one(stored(locks="unsupported"), "locks").status == "warn"
    broken = stored(error="Permission denied")
    assert one(broken, "results").status == "fix"
    assert said(broken, "writing") == said(broken, "locks") == []


@pytest.mark.parametrize("place", [Place("nfs4", None), Place("apfs", "iCloud Drive")])
def test_places_that_are_no_good(place):
    space, warning = said(stored(place=place), "results")
    assert (space.status, warning.status) == ("ok", "warn")


def test_a_cache_that_cannot_be_written_costs_time_only():
    found = one(replace(MACBOOK, caches=replace(MACBOOK.caches, error="Read-only")), "cache")
    assert (found.status, found.command) == ("warn", "export MLXROLES_CACHE=FOLDER")


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({}, "ok", "120 columns, 16 million colours, utf-8"),
        ({"inside": "tmux", "colours": "256"}, "ok", "120 columns, 256 colours, utf-8, in tmux"),
        ({"no_color": True, "colours": None}, "ok", "no colours, utf-8, NO_COLOR is set"),
        ({"width": 60}, "warn", "wants 80 columns"),
        ({"term": "dumb"}, "warn", "TERM says"),
        ({"encoding": "ANSI_X3.4-1968"}, "warn", "no bars and marks"),
        ({"is_terminal": False, "encoding": "ascii"}, "ok", "plain lines"),
    ],
)
def test_terminals(changes, status, text):
    found = one(replace(MACBOOK, terminal=replace(MACBOOK.terminal, **changes)), "terminal")
    assert found.status == status
    assert text in found.text


# --- versions and settings --------------------------------------------------------------------


def test_the_least_versions_are_those_of_the_project():
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = {}
    for text in project["dependencies"]:
        match = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", text)
        asked[match[1]] = match[2]
    assert settings.MINIMUM.items() <= asked.items()
    least, most = re.findall(r"\d+\.\d+", project["requires-python"])
    assert (settings.numbers(least), (3, settings.numbers(most)[1] - 1)) == settings.PYTHON


def test_old_and_missing_packages():
    found = said(replace(MACBOOK, versions=GOOD | {"mlx": "0.9.0", "numpy": "2.10.0"}), "versions")
    assert [(f.status, f.command) for f in found] == [("fix", "pip install -U 'mlx>=0.32.2'")]
    missing = {name: version for name, version in GOOD.items() if name != "h5py"}
    assert "not installed" in one(replace(MACBOOK, versions=missing), "versions").text
    new = one(replace(MACBOOK, versions=GOOD | {"python": "3.14.0"}), "versions")
    assert (new.status, "3.11 to 3.13" in new.text) == ("fix", True)


def test_settings_that_harm():
    found = said(replace(SERVER, environment={"HDF5_USE_FILE_LOCKING": "FALSE"}), "settings")
    assert [(f.status, f.command) for f in found] == [("warn", "unset HDF5_USE_FILE_LOCKING")]
    few = replace(SERVER, environment={"OMP_NUM_THREADS": "1", "HF_HOME": "/big\x1b[2J"})
    warned, rest = said(few, "settings")
    assert (warned.status, warned.text) == (
        "warn",
        "OMP_NUM_THREADS=1: 16 cores are there to compute",
    )
    assert (rest.status, rest.text) == ("ok", "HF_HOME=/big\\x1b[2J")
    assert one(replace(STUDIO, environment={"OMP_NUM_THREADS": "1"}), "settings").status == "ok"
    assert "HF_TOKEN" not in settings.KNOBS


def test_what_cannot_be_examined_is_said():
    found = said(replace(MACBOOK, answers=None, troubles={"answers": "no\x1b kernel"}), "answers")
    assert [(f.status, f.text) for f in found] == [("fix", "cannot be examined: no\\x1b kernel")]


# --- this machine -----------------------------------------------------------------------------


def test_the_known_logits_are_those_of_the_embedded_model():
    assert answers.answers().cpu < 1e-3
    answers_off = {token: value + 1.0 for token, value in answers.KNOWN.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "KNOWN", answers_off)
        assert answers.answers().cpu == pytest.approx(1.0, abs=1e-3)


def test_the_known_logits_come_from_transformers():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = Path(look.__file__).parent.parent / "data" / "tiny" / "base"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([answers.TOKENS])).logits[0, -1]
    for token, value in answers.KNOWN.items():
        assert float(logits[token]) == pytest.approx(value, abs=1e-4)


def test_a_disk_is_measured_and_left_as_it_was(tmp_path):
    found = look.storage(tmp_path / "results" / "not yet")
    assert found.error is None
    assert found.locks == "work"
    assert found.speed > 0 < found.sync
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "results").write_text("x")
    assert look.storage(tmp_path / "results").error == "Not a directory"


@pytest.mark.parametrize(
    ("fails", "answer"), [((2,), "unsupported"), ((1,), "unsupported"), ((), "fail")]
)
def test_file_systems_whose_locks_do_not_lock(tmp_path, monkeypatch, fails, answer):
    calls = []

    def flock(_handle, _how):
        calls.append(1)
        if len(calls) in fails:
            raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "x"
    path.touch()
    handle = os.open(path, os.O_RDWR)
    try:
        assert look._locks(handle, path) == answer
    finally:
        os.close(handle)


def test_the_hub_cache_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "own"))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "x").write_bytes(b"12345")
    (tmp_path / "models--c--d").mkdir()
    found = look.caches()
    assert (found.hub_models, found.hub_bytes, found.error) == (2, 5, None)
    assert found.models["tiny/base"] > 10**6
    monkeypatch.setattr(look, "MANY", 0)
    assert look.caches().hub_bytes is None


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """The command on facts that a test chooses."""
    chosen = {"facts": MACBOOK}
    monkeypatch.setattr(look, "look", lambda _: chosen["facts"])

    def run(facts: Facts, *arguments: str):
        chosen["facts"] = facts
        return CliRunner().invoke(cli.group, ["doctor", *arguments])

    return run


def test_exit_status_says_whether_something_must_be_fixed(quick):
    assert quick(MACBOOK).exit_code == 0
    warned = quick(replace(MACBOOK, power=Power("battery", 54)))
    assert (warned.exit_code, "1 warn" in warned.stdout) == (0, True)
    broken = quick(replace(MACBOOK, answers=Answers(9.0)))
    assert (broken.exit_code, "1 fix" in broken.stdout) == (1, True)


def test_json_is_one_document(quick):
    result = quick(replace(MACBOOK, answers=Answers(float("nan"))), "--json")
    assert result.exit_code == 1
    doc = json.loads(result.stdout)
    assert (doc["schema"], doc["ok"], doc["counts"]["fix"]) == ("mlxroles/doctor/1", False, 1)
    assert doc["facts"]["answers"] == {"cpu": None, "gpu": None}
    assert doc["facts"]["storage"]["path"] == "results"
    assert set(doc["findings"][0]) == {"topic", "status", "text", "command"}


def test_plain_output_has_a_line_per_finding_and_no_escapes(quick):
    result = quick(with_models(STUDIO, big=200 * GIB))
    assert "\x1b" not in result.stdout
    shown = result.stdout.splitlines()
    assert shown[0].split() == ["ok", "machine", *advice.findings(STUDIO)[0].text.split()]
    assert "                 $ sudo sysctl iogpu.wired_limit_mb=208896" in shown


@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_lines_keep_within_the_terminal(width):
    facts = with_models(replace(STUDIO, storage=replace(STUDIO.storage, place=Place("nfs", None))))
    text = [line.plain for line in lines(advice.findings(facts), width)]
    assert max(map(len, text)) <= max(width, 38)
    words = " ".join(" ".join(text).split())
    for finding in advice.findings(facts):
        assert finding.text in words


@pytest.mark.slow
def test_this_machine_can_be_examined(tmp_path):
    result = CliRunner().invoke(cli.group, ["doctor", "--json", "--out", str(tmp_path)])
    doc = json.loads(result.stdout)
    assert doc["facts"]["troubles"] == {}
    assert {f["topic"] for f in doc["findings"]} >= {"machine", "memory", "answers", "versions"}
    assert result.exit_code == (0 if doc["ok"] else 1)
