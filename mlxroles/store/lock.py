"""One writer per run folder: an exclusive ``flock`` on ``run.lock``.

The kernel frees the lock when its owner dies, so that no lock is ever stale. What stands in the
file (process, host, start, command) is for people only. Reading a run needs no lock.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mlxroles.errors import LockedError
from mlxroles.store.files import plain_errors, shown, write_all
from mlxroles.text import safe_text

_GLANCES = (0.02, 0.1)
"""Seconds to wait for whoever only looks whether the lock is held, which takes an instant."""

_BLOCK = 4096
"""Bytes that the file takes of a disk."""

_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)


class RunLock:
    """Holds the lock of a run folder from construction to ``release``.

    Raises:
        LockedError: another process, or another part of this one, holds it.
        StoreError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock at ``path``; the folder must exist."""
        self.path = path
        self.notes: list[str] = []
        """What the user should know about this lock."""
        self._locked = True
        with plain_errors(path, needed=_BLOCK):
            self._handle = self._open()
            try:
                self._describe()
            except BaseException:
                os.close(self._handle)
                raise

    def _open(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(self.path, flags, 0o666)
            try:
                self._take(handle)
                # The folder may have been set aside between opening and locking.
                if self.path.exists() and os.path.samestat(os.fstat(handle), self.path.stat()):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _take(self, handle: int) -> None:
        try:
            for patience in (*_GLANCES, None):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if patience is None:
                        raise LockedError(_refusal(self.path, _owner(handle))) from None
                    time.sleep(patience)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._locked = False
            self.notes.append(
                f"{shown(self.path.parent)} lies on a file system without locks: make sure that"
                " only one process writes this run"
            )

    def _describe(self) -> None:
        host = socket.gethostname()
        last = _owner(self._handle)
        if last.get("host", host) != host:
            self.notes.append(
                f"{shown(self.path.parent)} was last written on {safe_text(str(last['host']))} and"
                " not closed there: make sure that it does not run there still"
            )
        start = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": host, "start": start, "argv": sys.argv}
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        write_all(self._handle, json.dumps(owner).encode("ascii") + b"\n")

    def beat(self) -> None:
        """Renews the age of the file."""
        with suppress(OSError):
            os.utime(self._handle)

    def release(self) -> None:
        """Gives the lock back, also for processes that were forked from this one."""
        if self._handle < 0:
            return
        handle, self._handle = self._handle, -1
        with plain_errors(self.path):
            try:
                os.ftruncate(handle, 0)
                if self._locked:
                    fcntl.flock(handle, fcntl.LOCK_UN)
            finally:
                os.close(handle)


def _owner(handle: int) -> dict[str, object]:
    try:
        owner = json.loads(os.pread(handle, 65536, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _refusal(path: Path, owner: dict[str, object]) -> str:
    pid, host, start = (
        safe_text(str(owner.get(key, "unknown"))) for key in ("pid", "host", "start")
    )
    return (
        f"{shown(path.parent)} is being written by process {pid} on {host} since {start}:"
        " wait for it, or stop it; `mlxroles watch` shows how far it is"
    )
