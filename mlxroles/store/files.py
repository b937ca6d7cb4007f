"""Durable files: written beside their place, synced, renamed; system errors in plain words.

No file here is ever half there: a reader sees the old content or the new one. An error from
fsync is never retried, since a second call may report success for pages that were dropped.
"""

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxroles.errors import StoreError
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIB = 2**20
LARGEST_RESERVE = 200 * MIB
"""Bytes that a large write leaves free on the disk."""

_ADVICE = {
    errno.ENOSPC: "the disk is full{needed}; free space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up{needed}; free space, then run the same command again",
    errno.EROFS: "the file system is read-only; choose another place with --out",
    errno.EACCES: "no permission; choose another place with --out or change the permissions",
    errno.EPERM: "no permission; choose another place with --out or change the permissions",
    errno.ENOENT: "no such file or folder; was it deleted or moved while the run was going on?",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another place with --out",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one with --out",
    errno.ELOOP: "this is a symbolic link, which is not followed here; put the real file there",
}


@contextmanager
def plain_errors(
    path: Path, *, verb: str = "written", needed: int | None = None
) -> Generator[None]:
    """Turns an OSError inside the block into a StoreError of one line that says what to do.

    Args:
        path: what the block works on, for the message.
        verb: what could not be done to it.
        needed: bytes that the block wants to write.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(explain(error, path, verb=verb, needed=needed)) from error


def explain(
    error: BaseException, path: Path, *, verb: str = "written", needed: int | None = None
) -> str:
    """One line for a system error: the path, what is wrong and what to do."""
    number = getattr(error, "errno", None)
    if number is None and (match := re.search(r"errno = (\d+)", str(error))):
        number = int(match[1])
    wanted = "" if needed is None else f" ({format_bytes(needed)} are needed)"
    known = _ADVICE.get(number or 0, "").format(needed=wanted)
    reason = known or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{shown(path)} cannot be {verb}: {safe_text(reason)}"


def shown(path: Path) -> str:
    """A path as it may stand in a message: one line, no control characters."""
    return safe_text(str(path))


def require_space(path: Path, n_bytes: int) -> None:
    """Checks that ``n_bytes`` fit on the disk of ``path`` and leave it a reserve.

    The reserve is as much again and 1 MiB, at most 200 MiB, so that a tiny run is content with a
    tiny disk. The nearest folder that exists is asked.

    Raises:
        StoreError: they do not.
    """
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    with plain_errors(place, verb="measured"):
        free = shutil.disk_usage(place).free
    needed = n_bytes + min(n_bytes + MIB, LARGEST_RESERVE)
    if free < needed:
        raise StoreError(
            f"{shown(path)} cannot be written: the disk lacks {format_bytes(needed - free)}"
            f" ({format_bytes(free)} left, {format_bytes(needed)} needed); free space, then run"
            " the same command again"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a whole file: temporary file beside it, sync, rename, sync of the folder.

    Raises:
        StoreError: it cannot be written; the previous content is then still there.
    """
    with plain_errors(path, needed=len(data)), temporary(path) as temp:
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(handle, data)
            sync(handle)
        finally:
            os.close(handle)
        temp.replace(path)
        sync_folder(path.parent)


def link_or_copy(source: Path, path: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no such thing.

    Raises:
        StoreError: it cannot be written.
    """
    with plain_errors(path):
        try:
            path.unlink(missing_ok=True)
            path.hardlink_to(source)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT):
                raise
        else:
            sync_folder(path.parent)
            return
        write_atomic(path, source.read_bytes())


@contextmanager
def temporary(path: Path, *, prefix: str = "mlxroles") -> Generator[Path]:
    """A free name in the folder of ``path``; what is left there at the end is removed."""
    # The name does not contain that of the target: it may be of the greatest length already.
    temp = path.parent / f"{prefix}-{secrets.token_hex(6)}.tmp"
    try:
        yield temp
    finally:
        with suppress(FileNotFoundError):
            temp.unlink()


def write_all(handle: int, data: "Buffer") -> None:
    """Writes to a file descriptor until everything is written, in one system call as a rule."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync(handle: int) -> None:
    """Brings a file's content onto the medium; on macOS through the drive's own cache too."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(handle, full_sync)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
        else:
            return
    os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Brings a folder's list of names onto the medium, where the file system can do that."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path, *, parents: bool = True) -> None:
    """Creates a folder that outlives a power cut, with the folders above it if need be."""
    missing = [path]
    while parents and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        # The folder above an existing one may not be ours to read.
        with suppress(PermissionError):
            sync_folder(folder.parent)


def plain(doc: object) -> object:
    """The same document in types that JSON has: NaN and infinities become None."""
    if isinstance(doc, Mapping):
        return {str(key): plain(value) for key, value in doc.items()}
    if isinstance(doc, list | tuple | set | frozenset):
        return [plain(value) for value in doc]
    if isinstance(doc, float):
        return float(doc) if math.isfinite(doc) else None
    if isinstance(doc, Path):
        return str(doc)
    # numpy and mlx scalars and arrays, without importing either
    to_list = getattr(doc, "tolist", None)
    return doc if to_list is None else plain(to_list())


def to_json(doc: object, *, indent: int | None = 2) -> str:
    """The document as JSON text, NaN and infinities as null, only ASCII characters.

    Args:
        doc: The document.
        indent: Of nested lines; None for one line, which of many numbers is a third of the size.
    """
    return json.dumps(plain(doc), indent=indent, allow_nan=False) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, doc: object, *, indent: int | None = 2) -> None:
    """Writes a document as JSON, atomically; ``indent`` as in ``to_json``.

    Raises:
        StoreError: it cannot be written.
    """
    write_atomic(path, to_json(doc, indent=indent).encode("ascii"))
