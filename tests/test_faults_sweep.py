"""A night under a supervisor: memory that ends for real, and places that go away meanwhile."""

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
from run_contents import cells, one_line
from test_faults_disk import fill
from zygote import NO_FIGURES, ROOT

from mlxroles.overnight import child as child_module
from mlxroles.overnight.queue import Planned, begin, folder_of
from mlxroles.overnight.ranks import Ranks
from mlxroles.overnight.supervise import Supervisor

TOY = (sys.executable, str(Path(__file__).parent / "toy_command.py"))
QUEUE = """
name = "night"
[[experiment]]
kind = "patch"
pair = "tiny"
layers = "2"
controls = "none"
"""

GREEDY = (
    NO_FIGURES
    + """
import os, resource, sys
from pathlib import Path
from mlxroles import cli
from mlxroles.backend import mx
from mlxroles.studies.patch_run import PatchWork
from mlxroles.supervision import leave_unattended

compute = PatchWork.compute

def greedy(work, batch):
    mark = Path("was-greedy")
    if "layer" in batch.cells[0].coords and not mark.exists():
        mark.touch()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26,) * 2)
        mx.eval([mx.random.normal((2**24,)) for _ in range(8)])
    return compute(work, batch)

PatchWork.compute = greedy
leave_unattended()
sys.exit(cli.run())
"""
)


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """Leads a queue of experiments whose command is a program; its final state."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)

    def lead(program, *argvs, show=lambda state, events: None):
        monkeypatch.setattr(child_module, "PROGRAM", program)
        experiments = [Planned(f"e{n}", argv[0], tuple(argv)) for n, argv in enumerate(argvs)]
        short, path = folder_of(Path("results").absolute(), "night", experiments)
        state = begin(path, "night", short, experiments, ["sweep"])
        return Supervisor(state, show, Ranks(path), cooldown=0.01).lead()

    return lead


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(resource, "RLIMIT_AS"),
    reason="platform: the memory of a process cannot be limited here",
)
def test_memory_that_ends_in_the_middle_costs_neither_the_run_nor_a_number(
    supervised, tiny_run, tmp_path
):
    """Over the limit MLX ends its process or raises: either way the numbers are the same."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    program = (sys.executable, "-W", "ignore", str(tmp_path / "greedy.py"))
    state = supervised(program, ["patch", "--pair", "tiny", "--plain", "--json"])
    (entry,) = state.entries
    assert (tmp_path / "was-greedy").exists()
    assert (entry.status, entry.failed, entry.done) == ("done", 0, 38)
    assert cells(Path(entry.run)) == cells(tiny_run)


def test_a_sweep_whose_folder_goes_away_loses_its_log_and_no_run(supervised):
    gone = []

    def show(state, events):
        if state.current == 0 and not gone:
            shutil.rmtree(state.path)
            gone.append(state.path)

    toy = [["toy", name, "--cells", "3"] for name in ("a", "b")]
    state = supervised(TOY, *toy, show=show)
    assert [entry.status for entry in state.entries] == ["done", "done"]
    assert state.entries[1].done == 3  # which run the first one had, nobody could tell any more
    assert all(len(cells(Path("results/toy") / name)) == 3 for name in "ab")


def test_a_run_folder_that_goes_away_fails_its_experiment_alone(supervised):
    def show(state, events):
        run = Path("results/toy/a")
        if state.current == 0 and (run / "cells.jsonl").exists():
            shutil.rmtree(run, ignore_errors=True)

    toy = [["toy", "a", "--cells", "30", "--seconds", "0.1"], ["toy", "b", "--cells", "3"]]
    first, second = supervised(TOY, *toy, show=show).entries
    assert first.status in ("done", "failed")
    assert first.status == "done" or "deleted or moved" in first.error or "replaced" in first.error
    assert (second.status, second.done) == ("done", 3)


def test_a_sweep_on_a_full_disk_is_refused_in_one_line(zygote, tmp_path):
    if not zygote.has_mounts:
        pytest.skip("platform: no mount namespace can be made here")
    place = tmp_path / "disk"
    place.mkdir()
    seen = zygote.mount(place, options="size=4m")
    (tmp_path / "night.toml").write_text(QUEUE)
    (seen / "results").symlink_to("inner")
    (seen / "inner").mkdir()
    fill(seen)
    code = f"import os\nos.chdir({str(place)!r})\n"
    status, out, err = zygote.run("sweep", tmp_path / "night.toml", cwd=tmp_path, code=code)
    zygote.shell("umount", "--lazy", str(place))
    assert (status, out) == (1, "")
    line = one_line(err)
    assert "the disk is full" in line
    assert "needed" in line
    assert os.listdir(place) == []  # noqa: PTH208  (nothing beside the mount either)
