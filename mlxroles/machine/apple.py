"""How macOS is asked: kernel values by name, and its own small programs. Nothing elsewhere."""

import ctypes
import subprocess
import sys
from functools import cache

_SECONDS = 5
_LARGEST = 4096


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "darwin" else None


def sysctl(name: str) -> bytes | None:
    """The raw value of a kernel variable; None where there is none of this name."""
    library = _library()
    if library is None:
        return None
    value, size = ctypes.create_string_buffer(_LARGEST), ctypes.c_size_t(_LARGEST)
    failed = library.sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t())
    return None if failed else value.raw[: size.value]


def number(raw: bytes | None) -> int | None:
    """A kernel variable as a number; None where it is missing or none."""
    return int.from_bytes(raw, sys.byteorder) if raw and len(raw) in (4, 8) else None


def text(raw: bytes | None) -> str | None:
    """A kernel variable as text."""
    return raw.split(b"\0", 1)[0].decode(errors="replace") if raw else None


def footprint(pid: int) -> int | None:
    """Bytes that the kernel counts for a process, those of the GPU included."""
    library = _library()
    if library is None or not hasattr(library, "proc_pid_rusage"):
        return None
    # rusage_info_v0: a UUID of 16 bytes, then eight numbers; the eighth is the footprint
    usage = ctypes.create_string_buffer(512)
    if library.proc_pid_rusage(pid, 0, usage):
        return None
    return int.from_bytes(usage.raw[72:80], sys.byteorder)


def ask(*command: str) -> str:
    """What a system program prints; empty where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
            close_fds=False,  # lets Python start it without copying this process
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
