"""Finds out everything about this machine that the doctor speaks of, in a few seconds."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Literal

from mlxroles import cache
from mlxroles.doctor.facts import Backend, Caches, Facts, Storage, Terminal
from mlxroles.doctor.settings import KNOBS
from mlxroles.machine import apple, chip, disk, memory, power
from mlxroles.pairs import SIDES, catalogue, find
from mlxroles.snapshots import hub_cache, weight_files
from mlxroles.store.files import sync
from mlxroles.versions import PACKAGES, versions

WRITTEN = 16 << 20
"""Bytes that are written to measure a disk."""
LINES = 5
"""Lines that are synced one by one to measure it."""
MANY = 20_000
"""Files that are counted at most."""
SIDE = 640
"""Of the matrices whose product measures the BLAS."""

Locks = Literal["work", "fail", "unsupported"]


def look(results: Path) -> Facts:
    """Everything about this machine.

    Args:
        results: The folder that runs are stored in; it need not exist.
    """
    troubles: dict[str, str] = {}

    def examined(topic: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # noqa: BLE001  (one broken part must not hide the others)
            troubles[topic] = f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    pressure = memory.Pressure()
    return Facts(
        chip=examined("machine", chip.chip),
        level=pressure.level(),
        memory=pressure.seen,
        power=examined("power", power.state),
        backend=examined("backend", backend),
        answers=examined("answers", _answers),
        storage=examined("results", lambda: storage(results)),
        caches=examined("cache", caches),
        terminal=examined("terminal", terminal),
        versions=examined("versions", _versions) or {},
        environment={name: os.environ[name] for name in KNOBS if name in os.environ},
        troubles=troubles,
    )


def _answers() -> Any:
    from mlxroles.doctor.answers import answers

    return answers()


def _versions() -> dict[str, str]:
    import h5py

    found = versions()
    kept = {name: found[name] for name in ("mlxroles", "python", *PACKAGES) if name in found}
    return kept | {"hdf5": h5py.version.hdf5_version}


# --- MLX --------------------------------------------------------------------------------------


def backend() -> Backend:
    """What MLX computes on, and how fast the CPU is where that is what counts."""
    from mlxroles.backend import BLAS, device_name, mx, on_gpu
    from mlxroles.engine.memory import SHARE

    info = mx.device_info()
    whole = info.get("memory_size") or info.get("total_memory")
    working_set = info.get("max_recommended_working_set_size")
    on_cpu = not on_gpu()
    return Backend(
        "cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda",
        str(info.get("device_name") or device_name()),
        int(whole) if whole else None,
        int(working_set) if working_set else None,
        SHARE,
        apple.number(apple.sysctl("iogpu.wired_limit_mb")),
        BLAS,
        _gflops() if on_cpu and sys.platform == "linux" else None,
    )


def _gflops() -> float:
    """Billions of operations per second of a product of two matrices, the best of three."""
    from mlxroles.backend import mx

    a = mx.random.normal((SIDE, SIDE))
    mx.eval(a)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - begun)
        if best > 0.3:  # the slow BLAS: once is enough
            break
    return 2e-9 * SIDE**3 / best


# --- disk -------------------------------------------------------------------------------------


def storage(results: Path) -> Storage:
    """What can be said of the disk of a folder after writing a file there, which is removed."""
    folder = results
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    place = disk.place(results)
    free = None
    try:
        free = shutil.disk_usage(folder).free
        with _scratch(folder) as (handle, path):
            speed = None if free < 4 * WRITTEN else _speed(handle)
            return Storage(results, place, free, speed, _line(handle), _locks(handle, path))
    except OSError as error:
        return Storage(results, place, free, error=error.strerror or str(error))


@contextlib.contextmanager
def _scratch(folder: Path) -> Generator[tuple[int, Path]]:
    handle, name = tempfile.mkstemp(prefix="mlxroles-", suffix=".tmp", dir=folder)
    try:
        yield handle, Path(name)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _speed(handle: int) -> float:
    block = os.urandom(1 << 20)
    begun = time.perf_counter()
    for _ in range(WRITTEN >> 20):
        os.write(handle, block)
    sync(handle)
    return WRITTEN / (time.perf_counter() - begun)


def _line(handle: int) -> float:
    """Seconds for one line, the median."""
    seconds = []
    for _ in range(LINES):
        begun = time.perf_counter()
        os.write(handle, b"x" * 200 + b"\n")
        sync(handle)
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds)[LINES // 2]


def _locks(handle: int, path: Path) -> Locks:
    """Whether a file that is locked is refused to whoever opens it again."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return "unsupported"
    other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "work"
    except OSError:
        return "unsupported"
    finally:
        os.close(other)
    return "fail"


# --- caches and models ------------------------------------------------------------------------


def caches() -> Caches:
    """The folders that are kept between runs, and the models in them."""
    hub = hub_cache()
    folders = [path for path in _entries(hub) if path.name.startswith("models--")]
    own = cache.folder()
    return Caches(own, _unwritable(own), hub, len(folders), _bytes(folders), _models())


def _unwritable(folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _scratch(folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _bytes(folders: list[Path]) -> int | None:
    """Bytes of the files of models, as long as counting them takes no time."""
    files = [path for folder in folders for path in _entries(folder / "blobs")]
    if len(files) > MANY:
        return None
    total = 0
    for path in files:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _models() -> dict[str, int]:
    """Models of the catalogue that are here, with the bytes of their weights."""
    found = {}
    for pair in catalogue().values():
        for side in SIDES:
            folder = find(pair.ref(side))
            if folder is not None:
                size = sum(file.stat().st_size for file in weight_files(folder))
                found[f"{pair.name}/{side}"] = size
    return found


# --- terminal ---------------------------------------------------------------------------------


def terminal() -> Terminal:
    """What standard output is shown on."""
    from rich.console import Console

    console = Console()
    inside = next((name for name, key in _INSIDE.items() if os.environ.get(key)), None)
    return Terminal(
        console.is_terminal,
        console.width,
        console.color_system,
        console.encoding,
        os.environ.get("TERM", ""),
        no_color=bool(os.environ.get("NO_COLOR")),
        inside=inside,
    )


_INSIDE = {"tmux": "TMUX", "screen": "STY"}
