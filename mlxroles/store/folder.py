"""The run folder: what makes a run this run, which of its cells are done, and their results.

    run.lock          held by the one process that writes
    manifest.json     everything that identifies the run, written first
    cells.jsonl       the truth: one line per finished or failed cell
    arrays/           one safetensors file per cell that has arrays, written before its line
    shards/<rank>/    lock, journal and arrays of another machine, until they are taken over

Everything else in the folder is derived from these and may be deleted. Nothing here knows what
the numbers mean.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlxroles import plan
from mlxroles.errors import IntegrityError, StoreError
from mlxroles.events import Cell
from mlxroles.store import files
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.history import History
from mlxroles.store.journal import JournalWriter, Tail, decode_line, encode_line, read_journal
from mlxroles.store.location import place_of, set_aside, sweep
from mlxroles.store.lock import RunLock
from mlxroles.store.manifest import (
    MANIFEST,
    agree,
    agrees,
    drift_notes,
    read_manifest,
    refuse_foreign,
)
from mlxroles.store.record import ArraysFile, Record, entry_of, record_of
from mlxroles.text import safe_text, slug

if TYPE_CHECKING:
    import numpy as np

LOCK, JOURNAL, ARRAYS, SHARDS = "run.lock", "cells.jsonl", "arrays", "shards"


class RunFolder:
    """One run on disk, open for writing (``open``) or only for reading (``read``)."""

    def __init__(
        self, path: Path, doc: Mapping[str, object], lock: RunLock | None, rank: int = 0
    ) -> None:
        """Reads the journals; ``open``, ``join`` and ``read`` are the ways to get here."""
        self.path = path
        self.rank = rank
        """Of the machine that writes; the first one is the run's own and takes in the others."""
        self.home = path if rank == 0 else path / SHARDS / str(rank)
        """Where this process writes cells."""
        self.history = History(path, rank)
        self.manifest = doc
        """The content of ``manifest.json``."""
        self.notes: list[str] = list(lock.notes) if lock else []
        """What the user should know about this folder, one line each."""
        self._lock = lock
        self._writer: JournalWriter | None = None
        self._intact: dict[str, bool] = {}
        self._records: dict[str, Record] = {}
        self._tails: dict[Path, Tail] = {}
        self.torn_lines = 0
        """Journal lines that a kill or damage left unreadable; their cells are run again."""
        differing = 0
        for home in self._homes():
            content = read_journal(home / JOURNAL)
            self.torn_lines += content.torn_lines
            for entry in content.entries:
                record = record_of(entry)
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
        path = place_of(root, slug(experiment), run, folder)
        with plain_errors(path):
            refuse_foreign(path)
            files.make_folder(path)
        lock = RunLock(path / LOCK)
        try:
            if fresh and (path / MANIFEST).exists():
                set_aside(path)
                lock.release()
                lock = RunLock(path / LOCK)
            files.require_space(path, 0)
            sweep(path)
            doc = agree(
                path / MANIFEST,
                {"run_id": run, "experiment": experiment},
                identity=identity,
                manifest=manifest,
                allow_drift=allow_drift,
            )
            found = cls(path, doc, lock)
            found.notes += drift_notes(doc, identity)
            return found
        except BaseException:
            lock.release()
            raise

    @classmethod
    def join(cls, path: Path, *, rank: int, identity: Mapping[str, object]) -> Self:
        """Opens a run that another process has open, for writing into a shard of one's own.

        Args:
            path: the run folder.
            rank: number of this machine, 1 or more; no two have the same.
            identity: what this machine would compute.

        Raises:
            LockedError: another process writes this shard.
            StoreError: this is no run folder, or it holds another run.
        """
        doc = read_manifest(path / MANIFEST)
        agrees(path, doc, identity)
        home = path / SHARDS / str(rank)
        files.make_folder(home)
        lock = RunLock(home / LOCK)
        try:
            sweep(home)
            return cls(path, doc, lock, rank)
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

    def beat(self) -> None:
        """Shows by the age of the lock file that its owner lives, where locks do not work."""
        if self._lock is not None:
            self._lock.beat()

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

    def own_records(self) -> dict[str, Record]:
        """What the folder's own journal says, without the shards, by cell id."""
        return {record.id: record for record in self.shard_records(self.path)}

    def shard_records(self, home: Path) -> list[Record]:
        """What the journal in a shard, or in the folder itself, says."""
        found = (record_of(entry) for entry in read_journal(home / JOURNAL).entries)
        return [record for record in found if record is not None]

    def refresh(self) -> list[Record]:
        """Takes note of what other processes have stored since, and returns that."""
        new: list[Record] = []
        for home in self._homes():
            if home != self.home:
                tail = self._tails.setdefault(home, Tail(home / JOURNAL))
                for line in tail.lines():
                    record = record_of(decode_line(line) or {})
                    known = None if record is None else self._records.get(record.id)
                    if record is None or record == known:
                        continue
                    if known is None or known.status != "ok":
                        self._records[record.id] = record
                        new.append(record)
        return new

    def _homes(self) -> list[Path]:
        """The folder itself and its shards."""
        with plain_errors(self.path / SHARDS, verb="read"):
            return [self.path, *sorted((self.path / SHARDS).glob("[0-9]*"))]

    def latest(self, cell_id: str) -> Record | None:
        """What is known about a cell."""
        return self._records.get(cell_id)

    def records(self) -> dict[str, Record]:
        """What is known about each cell, by cell id, in the order of their first lines."""
        return dict(self._records)

    def done(self) -> set[str]:
        """Ids of the cells that are stored: recorded as ok, their arrays unchanged on disk."""
        return {record.id for record in self.records().values() if self._is_done(record)}

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
        line = encode_line(entry_of(record))
        files.require_space(self.home, len(line))
        if self._writer is None:
            self._writer = JournalWriter(self.home / JOURNAL)
        self._writer.append(line)
        # As a later process reads it: a fresh cell and a restored one look the same.
        self._records[record.id] = record_of(decode_line(line) or {}) or record

    def _write_arrays(self, cell_id: str, arrays: "Mapping[str, np.ndarray]") -> ArraysFile:
        if self._lock is None:
            raise ValueError(f"{self.path} is not open for writing")
        import numpy as np
        from safetensors.numpy import save

        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        files.require_space(self.home, len(data))
        # 16 digits: with the 8 of a slug two of 20,000 cells would share a file once in 20 runs.
        digest = hashlib.sha256(cell_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        readable = slug(cell_id.lower().replace("/", ".").replace("=", "-"))[:48].rstrip(".")
        name = f"{readable}-{digest}.safetensors"
        folder = self.home / ARRAYS
        with plain_errors(folder):
            if not folder.is_dir():
                files.make_folder(folder, parents=False)
        if folder.is_symlink():
            raise StoreError(f"{shown(folder)} is a symbolic link, which is not followed here")
        files.write_atomic(folder / name, data)
        return ArraysFile(name, hashlib.sha256(data).hexdigest(), len(data))

    def arrays_path(self, stored: ArraysFile) -> Path:
        """Where a cell's arrays lie: in the folder or, until it is taken over, in a shard."""
        places = [home / ARRAYS / stored.file for home in self._homes()]
        return next((place for place in places if place.is_file()), places[0])

    def take_in(self, record: Record, arrays: Path | None) -> None:
        """Stores a cell that a shard holds: first its arrays, a file in it, then its line.

        Raises:
            StoreError: it cannot be stored.
        """
        if arrays is not None:
            files.make_folder(self.path / ARRAYS, parents=False)
            files.link_or_copy(arrays, self.path / ARRAYS / arrays.name)
        self._append(record)

    def _read_arrays(self, record: Record) -> bytes:
        stored = record.arrays
        assert stored is not None
        path = self.arrays_path(stored)
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
