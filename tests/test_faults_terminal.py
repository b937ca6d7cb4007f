"""Outputs that are closed, full, gone or simple: no traceback, no escape codes, nothing lost."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from run_contents import assert_same, cells, one_line
from zygote import NO_FIGURES, PATCH, ROOT, go, wait_for, watched

TABLE = [word for word in PATCH if word != "--json"]
PROBE = ["probe", "--pair", "tiny"]


class Terminal:
    """A terminal of a size, and what was shown on it."""

    def __init__(self, columns, rows=40):
        self.ours, self.theirs = os.openpty()
        termios.tcsetwinsize(self.ours, (rows, columns))
        self.path, self._shown = os.ttyname(self.theirs), b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while True:
            try:
                self._shown += os.read(self.ours, 65536)
            except OSError:  # the last one who could write is gone
                return

    def shown(self):
        """Everything, after its writers have ended."""
        os.close(self.theirs)
        self._thread.join()
        os.close(self.ours)
        return self._shown.decode()


def on_terminal(zygote, tmp_path, *args, columns=80, code="", **env):
    """Status of a command and what it shows on a terminal."""
    terminal = Terminal(columns)
    (tmp_path / "t.out").symlink_to(terminal.path)
    (tmp_path / "t.err").symlink_to(terminal.path)
    setting = {"TERM": "xterm-256color", "CI": "", "NO_COLOR": "", "COLUMNS": str(columns)} | env
    child = zygote.start(
        *args,
        cwd=tmp_path,
        name="t",
        code=f"import os\nos.environ.update({setting!r})\n{NO_FIGURES}{code}",
    )
    return child, terminal


# --- pipes ----------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and what opens its reading end."""
    path = tmp_path / "p.out"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("command", [PATCH, TABLE, PROBE], ids=["json", "table", "probe"])
def test_a_reader_of_the_results_that_goes_away_is_141_and_costs_no_result(
    zygote, tmp_path, pipe, command
):
    child = zygote.start(*command, "--out", "run", cwd=tmp_path, code=NO_FIGURES, name="p")
    with pipe.open("rb"):
        wait_for(tmp_path / "p.err", "cells, 0 done" if command is PROBE else "preparing")
    assert child.wait() == 141
    assert "Traceback" not in child.err.read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"] is None


def test_a_reader_of_the_messages_that_goes_away_ends_the_run_with_what_is_stored_safe(
    zygote, tmp_path, tiny_run
):
    fifo = tmp_path / "p.err"
    os.mkfifo(fifo)
    log = tmp_path / "log"
    code = watched(log, pause=6)
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=code, name="p")
    with fifo.open("rb"):
        wait_for(log, "begin", 6)
    go(log)
    assert child.wait() == 141
    assert child.out.read_text() == ""
    assert len(cells(tmp_path / "run")) >= 4
    assert zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(tmp_path / "run", tiny_run)


CLOSED = {
    "results": "os.close(1)\nsys.stdout = None\n",
    "messages": "os.close(2)\nsys.stderr = None\n",
    "both": "os.close(1)\nos.close(2)\nsys.stdout = sys.stderr = None\n",
    "all": "os.close(0)\nos.close(1)\nos.close(2)\nsys.stdin = sys.stdout = sys.stderr = None\n",
}


@pytest.mark.parametrize("what", CLOSED)
def test_outputs_that_were_closed_before_the_run_are_left_alone(zygote, tmp_path, tiny_run, what):
    code = NO_FIGURES + "import os, sys\n" + CLOSED[what]
    status, out, err = zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=code)
    assert status == 0, err
    assert "Traceback" not in err
    assert bool(out) == (what == "messages")
    # the numbers 1 and 2 went to files of the run, into which nothing is printed
    assert_same(tmp_path / "run", tiny_run)


@pytest.mark.slow
def test_the_shell_closes_the_output_of_the_program_itself(tmp_path):
    words = [sys.executable, "-m", "mlxroles.cli", *PROBE, "--out", "run"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(cells(tmp_path / "run")) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="platform: there is no /dev/full")
@pytest.mark.parametrize("what", ["out", "err"])
def test_an_output_on_a_full_disk_is_one_line(zygote, tmp_path, tiny_run, what):
    (tmp_path / f"f.{what}").symlink_to("/dev/full")
    child = zygote.start(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES, name="f")
    assert child.wait() == 1
    if what == "out":
        assert "the output cannot be written" in one_line(child.err.read_text())
        assert len(cells(tmp_path / "run")) == 38
    assert zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(tmp_path / "run", tiny_run)


# --- terminals ------------------------------------------------------------------------------------


def test_where_there_is_no_terminal_there_are_no_escape_codes(zygote, tmp_path):
    env = "import os\nos.environ |= {'TERM': 'xterm-256color', 'COLUMNS': '20'}\n"
    status, out, err = zygote.run(*TABLE[:-1], "--out", "run", cwd=tmp_path, code=env + NO_FIGURES)
    assert status == 0
    assert not any(c in out + err for c in "\x1b\r\x08")
    assert all(len(line) <= 200 for line in (out + err).splitlines())


@pytest.mark.parametrize(
    "env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"TERM": "dumb", "CI": "1"}], ids=str
)
@pytest.mark.parametrize("columns", [20, 80])
def test_a_simple_terminal_gets_plain_lines(zygote, tmp_path, env, columns):
    command = [*TABLE, "--layers", "2", "--controls", "none", "--out", "run"]
    command.remove("--plain")
    child, terminal = on_terminal(zygote, tmp_path, *command, columns=columns, **env)
    status, shown = child.wait(), terminal.shown()
    assert status == 0, shown
    assert not re.search(r"\x1b\[[0-9;]*[A-HJKfhlsu]", shown)  # nothing moves or hides the cursor
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-9]|38|48)[0-9;]*m", shown)  # no colour
    assert "[4/4]" in shown
    assert "summary.json" in shown.replace("\r\n", "")


@pytest.mark.parametrize("columns", [20, 80, 160])
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_the_live_display_gives_the_terminal_back(zygote, tmp_path, columns, number):
    command = [*TABLE, "--layers", "2-3", "--controls", "none", "--out", "run"]
    command.remove("--plain")
    log = tmp_path / "log"
    how = {"columns": columns, "code": watched(log, pause=3)}
    child, terminal = on_terminal(zygote, tmp_path, *command, **how)
    wait_for(log, "begin", 3)
    if number is not None:
        child.send(number)
        child.send(number)
    go(log)
    status, shown = child.wait(), terminal.shown()
    assert status in {None: (0,), signal.SIGINT: (130,), signal.SIGTERM: (143, 130)}[number], shown
    assert "Traceback" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.rindex("\x1b[?25l") < shown.rindex("\x1b[?25h")
    assert "\x1b[?1049h" not in shown or "\x1b[?1049l" in shown


def test_a_terminal_that_is_closed_while_running_leaves_the_run_whole(zygote, tmp_path, tiny_run):
    command = [word for word in TABLE if word != "--plain"]
    log = tmp_path / "log"
    child, terminal = on_terminal(
        zygote, tmp_path, *command, "--out", "run", code=watched(log, pause=3)
    )
    wait_for(log, "begin", 3)
    child.send(signal.SIGHUP)  # as the terminal's end does
    go(log)
    assert child.wait() == 129
    terminal.shown()
    assert zygote.run(*PATCH, "--out", "run", cwd=tmp_path, code=NO_FIGURES)[0] == 0
    assert_same(tmp_path / "run", tiny_run)
