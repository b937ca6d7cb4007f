"""The run folder: what makes a run this run, which of its cells are done, and their results.

    run.lock          held by the one process that writes
    manifest.json     everything that identifies the run, written first
    cells.jsonl       the truth: one line per finished or failed cell
    arrays/           one safetensors file per cell that has arrays, written before its line

Everything else in the folder is derived from these and may be deleted. Nothing here knows what
the numbers mean.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from mlxroles import plan
from mlxroles.errors import IntegrityError, StoreError
from mlxroles.events import Cell
from mlxroles.store import files
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.journal import JournalWriter, decode_line, encode_line, read_journal
from mlxroles.store.lock import RunLock
from mlxroles.store.manifest import MANIFEST, agree, read_manifest, refuse_foreign
from mlxroles.text import safe_text, slug

if TYPE_CHECKING:
    import numpy as np

LOCK, JOURNAL, ARRAYS = "run.lock", "cells.jsonl", "arrays"


@dataclass(frozen=True)
class ArraysFile:
    """The file with a cell's arrays, as it was written."""

    file: str
    """Name within the folder ``arrays``."""
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class Record:
    """What the journal says about one cell."""

    id: str
    status: Literal["ok", "failed"]
    coords: Mapping[str, object] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)
    """The cell's numbers; empty for a failed one."""
    arrays: ArraysFile | None = None
    seconds: float = 0.0
    error: str | None = None
    """Why the cell failed."""
    attempt: int = 1


class RunFolder:
    """One run on disk, open for writing (``open``) or only for reading (``read``)."""

    def __init__(self, path: Path, doc: Mapping[str, object], lock: RunLock | None) -> None:
        """Reads the journal of the folder; ``open`` and ``read`` are the ways to get here."""
        self.path = path
        self.manifest = doc
        """The content of ``manifest.json``."""
        self.notes: list[str] = list(lock.notes) if lock else []
        """What the user should know about this folder, one line each."""
        self._lock = lock
        self._writer: JournalWriter | None = None
        self._intact: dict[str, bool] = {}
        content = read_journal(path / JOURNAL)
        self.torn_lines = content.torn_lines
        """Journal lines that a kill or damage left unreadable; their cells are run again."""
        self._records: dict[str, Record] = {}
        differing = 0
        for entry in content.entries:
            record = _record(entry)
            if record is None:
                self.torn_lines += 1
                continue
            before = self._records.get(record.id)
            if before is not None and before.status == record.status == "ok":
                differing += encode_line(before.values) != encode_line(record.values)
            self._records[record.id] = record
        if differing:
            self.notes.append(f"{differing} cells were stored twice with different values")

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        experiment: str,
        identity: Mapping[str, object],
        manifest: Mapping[str, object],
        run_id: str | None = None,
        folder: Path | None = None,
        fresh: bool = False,
        allow_drift: Sequence[str] = (),
    ) -> Self:
        """Opens a run for writing: a new one, or the one that this identity began earlier.

        Args:
            root: folder of all results; the run is ``root/<experiment>/<run id>``.
            experiment: name of the experiment, made a safe folder name.
            identity: everything that changes numbers; an earlier run must have the same.
            manifest: what else the manifest should hold, such as versions and the command.
            run_id: the id, if it is not the one of the whole identity.
            folder: the run folder itself, instead of one below ``root``.
            fresh: an earlier run is renamed to ``<folder>.old-<n>`` and a new one begun.
            allow_drift: fields of the identity that may differ from the earlier run.

        Raises:
            LockedError: another process writes this run.
            IntegrityError: the manifest is damaged.
            StoreError: the folder cannot be used; the message says why and what to do.
        """
        run = slug(run_id if run_id is not None else plan.run_id(identity))
        path = _place(root, slug(experiment), run, folder)
        with plain_errors(path):
            refuse_foreign(path)
            files.make_folder(path)
        lock = RunLock(path / LOCK)
        try:
            if fresh and (path / MANIFEST).exists():
                _set_aside(path)
                lock.release()
                lock = RunLock(path / LOCK)
            files.require_space(path, 0)
            _sweep(path)
            doc = agree(
                path / MANIFEST,
                {"run_id": run, "experiment": experiment},
                identity=identity,
                manifest=manifest,
                allow_drift=allow_drift,
            )
            return cls(path, doc, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, path: Path) -> Self:
        """Opens a run for reading, also while another process writes it or on a read-only disk.

        Raises:
            StoreError: this is no run folder, or it cannot be read.
        """
        return cls(path, read_manifest(path / MANIFEST), None)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Opens an existing run for writing what is derived from its cells.

        Raises:
            LockedError: another process writes this run.
            StoreError: this is no run folder, or it cannot be used.
        """
        doc = read_manifest(path / MANIFEST)
        lock = RunLock(path / LOCK)
        try:
            return cls(path, doc, lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        """Returns the folder; the block's end closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the folder."""
        self.close()

    def close(self) -> None:
        """Ends writing and gives the lock back; everything is on the medium already."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.manifest["run_id"])

    def records(self) -> dict[str, Record]:
        """What is known about each cell, by cell id, in the order of their first lines."""
        return dict(self._records)

    def done(self) -> set[str]:
        """Ids of the cells that are stored: recorded as ok, their arrays unchanged on disk."""
        return {record.id for record in self._records.values() if self._is_done(record)}

    def _is_done(self, record: Record) -> bool:
        if record.status != "ok" or record.arrays is None:
            return record.status == "ok"
        if record.id not in self._intact:
            try:
                self._read_arrays(record)
            except StoreError:
                self._intact[record.id] = False
            else:
                self._intact[record.id] = True
        return self._intact[record.id]

    def record(
        self,
        cell: Cell,
        values: Mapping[str, object],
        arrays: "Mapping[str, np.ndarray] | None" = None,
        *,
        seconds: float = 0.0,
        attempt: int = 1,
    ) -> None:
        """Stores a finished cell: first its arrays, then its journal line.

        Raises:
            StoreError: it cannot be stored. What was stored before is unaffected.
        """
        stored = self._write_arrays(cell.id, arrays) if arrays else None
        record = Record(
            cell.id, "ok", cell.coords, values, stored, seconds=seconds, attempt=attempt
        )
        self._append(record)
        self._intact[cell.id] = True

    def fail(self, cell: Cell, error: str, *, attempt: int = 1, seconds: float = 0.0) -> None:
        """Stores that a cell could not be computed, and why.

        Raises:
            StoreError: it cannot be stored.
        """
        self._append(
            Record(cell.id, "failed", cell.coords, seconds=seconds, error=error, attempt=attempt)
        )

    def arrays(self, cell_id: str) -> "dict[str, np.ndarray]":
        """The arrays of a cell, by name; none for a cell of numbers only.

        Raises:
            IntegrityError: the file is missing or does not hold what was written.
            StoreError: no such cell is stored, or the file cannot be read.
        """
        record = self._records.get(cell_id)
        if record is None:
            raise StoreError(f"{shown(self.path)} holds no cell {cell_id!r}")
        if record.arrays is None:
            return {}
        from safetensors.numpy import load

        return load(self._read_arrays(record))

    def write_json(self, name: str, doc: object) -> Path:
        """Writes a derived document such as ``summary.json`` into the folder.

        Raises:
            StoreError: it cannot be written.
        """
        if slug(name) != name or name in (MANIFEST, LOCK, JOURNAL, ARRAYS):
            raise ValueError(f"{name!r} is no name for a derived document")
        files.write_json(self.path / name, doc)
        return self.path / name

    def _append(self, record: Record) -> None:
        if self._lock is None:
            raise ValueError(f"{self.path} is not open for writing")
        entry: dict[str, object] = {"id": record.id, "status": record.status}
        entry |= {"coords": record.coords, "seconds": record.seconds, "attempt": record.attempt}
        if record.status == "ok":
            entry["values"] = record.values
        if record.error is not None:
            entry["error"] = record.error
        if record.arrays is not None:
            stored = record.arrays
            entry["arrays"] = {
                "file": stored.file,
                "sha256": stored.sha256,
                "bytes": stored.n_bytes,
            }
        line = encode_line(entry)
        files.require_space(self.path, len(line))
        if self._writer is None:
            self._writer = JournalWriter(self.path / JOURNAL)
        self._writer.append(line)
        # As a later process reads it: a fresh cell and a restored one look the same.
        self._records[record.id] = _record(decode_line(line) or {}) or record

    def _write_arrays(self, cell_id: str, arrays: "Mapping[str, np.ndarray]") -> ArraysFile:
        if self._lock is None:
            raise ValueError(f"{self.path} is not open for writing")
        import numpy as np
        from safetensors.numpy import save

        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        files.require_space(self.path, len(data))
        # 16 digits: with the 8 of a slug two of 20,000 cells would share a file once in 20 runs.
        digest = hashlib.sha256(cell_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        readable = slug(cell_id.lower().replace("/", ".").replace("=", "-"))[:48].rstrip(".")
        name = f"{readable}-{digest}.safetensors"
        folder = self.path / ARRAYS
        with plain_errors(folder):
            if not folder.is_dir():
                files.make_folder(folder, parents=False)
        if folder.is_symlink():
            raise StoreError(f"{shown(folder)} is a symbolic link, which is not followed here")
        files.write_atomic(folder / name, data)
        return ArraysFile(name, hashlib.sha256(data).hexdigest(), len(data))

    def _read_arrays(self, record: Record) -> bytes:
        stored = record.arrays
        assert stored is not None
        path = self.path / ARRAYS / stored.file
        if slug(stored.file) != stored.file or path.is_symlink() or not path.is_file():
            raise IntegrityError(
                f"{shown(path)} is missing: the cell {safe_text(record.id)} must be run again"
            )
        with plain_errors(path, verb="read"):
            is_whole = path.stat().st_size == stored.n_bytes
            data = path.read_bytes() if is_whole else b""
        if not is_whole or hashlib.sha256(data).hexdigest() != stored.sha256:
            raise IntegrityError(
                f"{shown(path)} does not hold what was written: the cell"
                f" {safe_text(record.id)} must be run again"
            )
        return data


def _record(entry: Mapping[str, Any]) -> Record | None:
    try:
        stored = entry.get("arrays")
        record = Record(
            entry["id"],
            entry["status"],
            coords=dict(entry["coords"]),
            values=dict(entry.get("values", {})),
            arrays=None if stored is None else _arrays_file(stored),
            seconds=float(entry["seconds"]),
            error=entry.get("error"),
            attempt=int(entry["attempt"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return record if isinstance(record.id, str) and record.status in ("ok", "failed") else None


def _arrays_file(stored: Mapping[str, Any]) -> ArraysFile:
    return ArraysFile(str(stored["file"]), str(stored["sha256"]), int(stored["bytes"]))


def _place(root: Path, experiment: str, run: str, folder: Path | None) -> Path:
    with plain_errors(folder or root):
        if folder is not None:
            return Path(os.path.realpath(folder))
        path = Path(os.path.realpath(root)) / experiment / run
        target = Path(os.path.realpath(path))
        if target != path:
            raise StoreError(
                f"{shown(path)} is or lies in a symbolic link that leads to"
                f" {shown(target)}: remove the link, or give that folder with --out"
            )
    return path


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    with plain_errors(path):
        path.rename(aside)
        files.make_folder(path)
    return aside


def _sweep(path: Path) -> None:
    for folder in (path, path / ARRAYS):
        with plain_errors(folder):
            for stale in sorted(folder.glob("*.tmp")):
                if stale.is_file() or stale.is_symlink():
                    stale.unlink()
