"""Several processes on one run: who computes which batch, and how their cells come together.

Every process but the first writes into a shard of its own, and the first one takes the shards in.
A batch belongs to whoever made its claim file first. The claim of a process that is gone counts
for nothing: whether it is gone shows by the lock of its shard, or, on disks without locks, by
its silence. Two processes that take over the same claim at the same instant compute the same
numbers twice, which costs time only.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxroles.events import Cell
from mlxroles.store import files
from mlxroles.store.folder import LOCK, SHARDS, RunFolder
from mlxroles.store.follow import is_held, owner_of
from mlxroles.text import slug

CLAIMS = "claims"
LEAD = "lead.json"
FAREWELL = 3.0
"""Seconds that the processes of other shards have for leaving when all is done."""


class Claims:
    """The claims of a run, as one of its processes sees and makes them."""

    def __init__(self, folder: RunFolder) -> None:
        """Claims on behalf of whoever has ``folder`` open for writing."""
        self.folder, self.path = folder, folder.path / CLAIMS
        files.make_folder(self.path, parents=False)
        self._me = _owner(folder.path, folder.rank)
        if folder.rank == 0:
            files.write_json(self.path / LEAD, {"owner": self._me})

    def take(self, cells: Sequence[Cell]) -> bool:
        """Whether this process is to compute these cells: nobody else who lives is."""
        text = "\n".join(cell.id for cell in cells)
        path = self.path / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        doc = json.dumps({"rank": self.folder.rank, "owner": self._me}).encode()
        temp = self.path / f"{secrets.token_hex(6)}.tmp"
        with files.plain_errors(path):
            temp.write_bytes(doc)
            try:
                _link(temp, path)
            except FileExistsError:
                found = files.read_object(path)
                rank = int(found.get("rank", 0))
                if found.get("owner") == self._me and rank == self.folder.rank:
                    return True
                if _is_alive(self.folder.path, rank, found.get("owner")):
                    return False
                temp.replace(path)
            finally:
                with suppress(FileNotFoundError):
                    temp.unlink()
        return files.read_object(path).get("owner") == self._me


def is_led(path: Path) -> bool:
    """Whether a first process is at work on the run in ``path`` and shares it."""
    return _is_alive(path, 0, files.read_object(path / CLAIMS / LEAD).get("owner"))


def _lock(path: Path, rank: int) -> Path:
    return path / LOCK if rank == 0 else path / SHARDS / str(rank) / LOCK


def _owner(path: Path, rank: int) -> list[Any]:
    owner = owner_of(_lock(path, rank))
    return [owner.get(key) for key in ("host", "pid", "start")]


def _is_alive(path: Path, rank: int, owner: object) -> bool:
    """Whether that very process still holds its lock."""
    return owner == _owner(path, rank) and is_held(_lock(path, rank))


def _link(temp: Path, path: Path) -> None:
    """Makes ``path``, whole from its first instant, unless it exists."""
    try:
        os.link(temp, path)
    except FileExistsError:
        raise
    except OSError:  # no second names here
        with path.open("xb") as file:
            file.write(temp.read_bytes())


def gather(folder: RunFolder) -> None:
    """Takes in all shards at the end of a run, when those who write them are about to leave.

    Raises:
        StoreError: something cannot be written.
    """
    end = time.monotonic() + FAREWELL
    while take_in(folder) or ((folder.path / SHARDS).exists() and time.monotonic() < end):
        time.sleep(0.1)
    shutil.rmtree(folder.path / CLAIMS, ignore_errors=True)


def take_in(folder: RunFolder) -> int:
    """Brings the cells of all shards into the run itself; returns how many there were.

    The shard of a process that is gone is removed afterwards. What is interrupted in the middle
    goes on the next time.

    Raises:
        StoreError: something cannot be written.
    """
    if not (folder.path / SHARDS).exists():
        return 0
    own = folder.own_records()
    count = 0
    for home in sorted((folder.path / SHARDS).glob("[0-9]*")):
        is_gone = not is_held(home / LOCK)
        for record in folder.shard_records(home):
            known = own.get(record.id)
            if known is not None and (known.status == "ok" or record.status != "ok"):
                continue
            arrays = None if record.arrays is None else home / "arrays" / record.arrays.file
            if arrays is not None and (slug(arrays.name) != arrays.name or not arrays.is_file()):
                continue
            folder.take_in(record, arrays)
            own[record.id] = record
            count += 1
        if is_gone:
            shutil.rmtree(home, ignore_errors=True)
    with suppress(OSError):
        (folder.path / SHARDS).rmdir()
    return count
