"""The real command in processes that begin at once and can be killed at any moment.

A process that has loaded MLX, mlx_lm and a tokenizer, but computed nothing, forks itself for
every command, so that fifty killed runs cost the time of fifty runs and not of fifty imports.
Where a process may have a mount namespace of its own, this one has: what is mounted there is gone
with it. On macOS, where MLX does not survive a fork, every command is an ordinary process.

Run as a program it is that process: a line of JSON per request on standard input, one per answer
on standard output.
"""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
FORKS = sys.platform == "linux"
LONG = 240
"""Seconds after which a command that hangs is ended by an alarm, which no test expects."""

PATCH = ("patch", "--pair", "tiny", "--plain", "--json")

NO_FIGURES = """
from mlxroles.studies import patch_sweep, role_results
role_results.role_figures = lambda doc, tables, folder: {}
patch_sweep.patch_figures = lambda doc, folder: {}
patch_sweep.svg = lambda doc, path, *, title: None
"""
"""Run before a command: figures have tests of their own and take longer than the run."""

WATCHED = """
import os, time
from pathlib import Path
from mlxroles.studies.patch_run import PatchWork

class _Watched:
    log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    compute = PatchWork.compute
    batches = 0

def compute(work, batch):
    _Watched.batches += 1
    os.write(_Watched.log, ("begin " + " ".join(c.id for c in batch.cells) + "\\n").encode())
    while _Watched.batches == {pause} and not Path({go!r}).exists():
        time.sleep(0.002)
    for result in _Watched.compute(work, batch):
        os.write(_Watched.log, ("done " + result.cell.id + "\\n").encode())
        yield result

PatchWork.compute = compute
"""
"""Run before `patch`: notes begun batches and computed cells in the file ``log``; the batch with
the number ``pause`` waits for the file ``go``."""


def watched(log: Path, *, pause: int = 0) -> str:
    """Code that makes `patch` write to a log; the batch with that number waits for ``go(log)``."""
    return NO_FIGURES + WATCHED.format(log=str(log), pause=pause, go=str(log.with_suffix(".go")))


def go(log: Path) -> None:
    """Lets the batch go on that waits."""
    log.with_suffix(".go").touch()


def noted(log: Path) -> tuple[list[list[str]], list[str]]:
    """Batches that were begun, and cells that were computed."""
    lines = log.read_text().splitlines() if log.exists() else []
    begun = [line.split()[1:] for line in lines if line.startswith("begin ")]
    return begun, [line.split()[1] for line in lines if line.startswith("done ")]


def wait_for(path: Path, text: str, count: int = 1) -> None:
    """Returns when a file holds a text so many times."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count(text) >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{path} never held {count} times {text!r}")


class Child:
    """A running command; its output is in ``out`` and ``err``."""

    def __init__(self, owner: "Zygote", pid: int, out: Path, err: Path) -> None:
        self.owner, self.pid, self.out, self.err = owner, pid, out, err

    def send(self, number: int) -> None:
        """Sends a signal; nothing happens where the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status, negative for the signal that ended the process."""
        return int(self.owner.ask(wait=self.pid)["status"])


class Zygote:
    """Starts commands; as a context manager it ends with its block."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", __file__]
        self.has_mounts = FORKS and _can_mount()
        if self.has_mounts:
            command = [*_unshare(), *command]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert self._answer() == {"ready": True}

    def ask(self, **request: object) -> dict[str, object]:
        """The answer of the process to a request."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, object]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the process that starts commands is gone"
        return json.loads(line)

    def start(self, *args: object, cwd: Path, code: str = "", name: str = "run") -> Child:
        """Starts ``mlxroles args`` after ``code``; output goes to ``name``.out and .err."""
        out, err = (cwd / f"{name}.{kind}" for kind in ("out", "err"))
        pid = self.ask(
            args=[str(arg) for arg in args], cwd=str(cwd), code=code, out=str(out), err=str(err)
        )["pid"]
        assert isinstance(pid, int)
        return Child(self, pid, out, err)

    def run(self, *args: object, **how: object) -> tuple[int, str, str]:
        """Status, standard output and standard error of a command that ends by itself."""
        child = self.start(*args, **how)  # ty: ignore[invalid-argument-type]
        status = child.wait()
        return status, child.out.read_text(), child.err.read_text()

    def mount(self, place: Path, *, options: str) -> Path:
        """A fresh file system in memory at a folder; where this process sees what is in it."""
        self.shell("mount", "-t", "tmpfs", "-o", options, "none", str(place))
        return Path(f"/proc/{self._inside()}/root") / place.relative_to("/")

    def shell(self, *command: str) -> None:
        """Runs a command where the mounts are."""
        answer = self.ask(shell=command)
        assert answer["status"] == 0, answer

    def _inside(self) -> int:
        pid = self.ask(who=True)["pid"]
        assert isinstance(pid, int)
        return pid

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def _unshare() -> list[str]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--mount", "--propagation", "private"]


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = [*_unshare(), "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def serve() -> int:
    """Answers requests until standard input ends."""
    if FORKS:
        _load()
        gc.freeze()
    _say(ready=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            _say(status=os.waitstatus_to_exitcode(status))
        elif "shell" in request:
            done = subprocess.run(request["shell"], capture_output=True, text=True, check=False)
            _say(status=done.returncode, err=done.stderr)
        elif "who" in request:
            _say(pid=os.getpid())
        elif FORKS:
            pid = os.fork()
            if pid == 0:
                _leave(_become(request))
            _say(pid=pid)
        else:
            once = [sys.executable, "-W", "ignore", __file__, json.dumps(request)]
            _say(pid=subprocess.Popen(once, stdin=subprocess.DEVNULL).pid)
    return 0


def _say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _load() -> None:
    """Imports what commands import, and evaluates nothing: its threads would not be forked."""
    from mlxroles import cli
    from mlxroles.models.load import load
    from mlxroles.models.tokenizer import load_tokenizer
    from mlxroles.studies import capture, patch_sweep, probe, role_results

    import mlx_lm.models.llama  # isort: skip

    assert all((cli, load, capture, patch_sweep, probe, role_results, mlx_lm))
    load_tokenizer(ROOT / "mlxroles" / "data" / "tiny" / "base")


def _become(request: dict[str, object]) -> int:
    signal.alarm(LONG)
    os.chdir(str(request["cwd"]))
    fresh = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    places = ((os.devnull, os.O_RDONLY), (request["out"], fresh), (request["err"], fresh))
    for number, (path, flags) in enumerate(places):
        handle = os.open(str(path), flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["mlxroles", *request["args"]]  # ty: ignore[not-iterable]
    exec(str(request["code"]), {"__name__": "before"})
    from mlxroles import cli

    return cli.run() if request["args"] else 0


def _leave(status: int) -> NoReturn:
    """Ends this process without taking its modules apart, which takes a second."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a test may have closed it
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(_become(json.loads(sys.argv[1])) if len(sys.argv) > 1 else serve())
