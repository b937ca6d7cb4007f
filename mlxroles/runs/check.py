"""Checks a stored run against what was written: journal, arrays, manifest and the packed file.

A line that breaks off is what a killed process leaves and no damage: its cell was never done. A
whole line, an array or a manifest that is not what was written is damage. The cells that it costs
are run again by the command that made the run.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlxroles.errors import IntegrityError, MlxrolesError, StoreError
from mlxroles.plan import PLAN_VERSION, run_id
from mlxroles.runs.captures import file_of, run_id_of
from mlxroles.runs.find import PARTS
from mlxroles.runs.packed import compare_packed
from mlxroles.runs.state import RUNNING, State, state_of
from mlxroles.store.files import shown
from mlxroles.store.folder import ARRAYS, SHARDS, RunFolder
from mlxroles.store.manifest import MANIFEST
from mlxroles.store.record import Record
from mlxroles.text import safe_text, slug

_ID = re.compile(rb'"id":"((?:[^"\\]|\\.)*)"')
_AGAIN = "run them again with `mlxroles resume`"


@dataclass(frozen=True)
class Finding:
    """Something about a run that is not as it should be."""

    level: Literal["damage", "note"]
    """``damage``: not what was written. ``note``: harmless, but worth knowing."""
    what: str
    cells: tuple[str, ...] = ()
    """Ids of the cells that it costs."""
    cure: str = ""


@dataclass
class Checked:
    """What a check of a run found."""

    path: Path
    state: State | None = None
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return all(finding.level != "damage" for finding in self.findings)

    @property
    def damaged_cells(self) -> set[str]:
        """Cells whose arrays cannot be compared with anything."""
        return {cell for finding in self.findings for cell in finding.cells}

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "run": str(self.path),
            "ok": self.ok,
            "state": None if self.state is None else self.state.state,
            "counts": self.counts,
            "findings": [
                vars(finding) | {"cells": list(finding.cells)} for finding in self.findings
            ],
        }


def check(path: Path) -> Checked:
    """Checks a run folder; nothing in it is changed.

    Raises:
        StoreError: it is no run folder, or the system does not let it be read.
    """
    result = Checked(path)
    try:
        state = state_of(path)
        folder = RunFolder.read(path)
    except IntegrityError as error:
        result.findings.append(Finding("damage", str(error)))
        return result
    result.state = state
    file = file_of(path) if state.kind == "capture" else None
    result.findings += [
        *_manifest(folder, state),
        *_journal(state),
        *_arrays(folder, state, result.counts, has_file=file is not None),
        *_shards(path, state),
        *(_capture(file, state) if file is not None else ()),
    ]
    result.findings += compare_packed_file(folder, state, result)
    result.counts |= {
        "cells": len(state.tally.ok),
        "failed": len(state.tally.failed),
        "journal_lines": state.tally.lines,
        "torn_lines": len(state.tally.torn),
    }
    return result


def compare_packed_file(folder: RunFolder, state: State, result: Checked) -> Iterator[Finding]:
    """Differences between ``run.h5`` and the cells; a run that goes on has an old one."""
    if not (folder.path / "run.h5").is_file():
        return
    cure = "remove run.h5; the same command as before makes it anew"
    try:
        compared = compare_packed(folder, state.kind, result.damaged_cells)
    except MlxrolesError as error:
        yield Finding("damage", str(error), (), cure)
        return
    except (KeyError, IndexError, TypeError, ValueError):  # from h5py, of a damaged file
        yield Finding("damage", "run.h5 does not hold what a run writes", (), cure)
        return
    result.counts["packed_numbers"] = compared.numbers
    if compared.differing:
        cells = tuple(compared.differing)
        yield Finding("damage", f"run.h5 holds other numbers: {compared.first}", cells, cure)
    if compared.strange:
        text = f"run.h5 holds {compared.strange} numbers that no stored cell has"
        yield Finding("damage", text, (), cure)
    if compared.missing:
        text = f"run.h5 was packed before {len(compared.missing)} of the cells were stored"
        is_running = "" if state.state == RUNNING else cure
        yield Finding("note", text, tuple(compared.missing), is_running)


def _manifest(folder: RunFolder, state: State) -> Iterator[Finding]:
    doc = folder.manifest
    identity = doc.get("identity")
    if not isinstance(identity, Mapping) or not isinstance(doc.get("run_id"), str):
        text = f"{shown(folder.path / MANIFEST)} lacks what identifies the run"
        yield Finding("damage", text, (), "put it back from a copy")
        return
    # The id of a capture is also of the type that its numbers are stored as.
    if state.kind != "capture" and doc.get("plan_version") == PLAN_VERSION:
        expected = slug(run_id(identity))
        if doc["run_id"] != expected:
            text = f"{MANIFEST} is not what was written: its identity has the id {expected}, not"
            text += f" {safe_text(str(doc['run_id']), limit=40)}"
            yield Finding("damage", text, (), "put it back from a copy")
    drift = doc.get("drift")
    if isinstance(drift, list) and drift:
        fields = sorted({str(one.get("field")) for one in drift if isinstance(one, Mapping)})
        yield Finding("note", f"the run went on with another {', '.join(map(safe_text, fields))}")


def _journal(state: State) -> Iterator[Finding]:
    lost, torn = [], 0
    unnamed = 0
    for line in state.tally.torn:
        match = _ID.search(line)
        cell = match[1].decode("utf-8", "replace") if match else None
        if not line.endswith(b"}"):
            torn += 1
        elif cell is None:
            unnamed += 1
        elif cell not in state.tally.ok:
            lost.append(cell)
        else:
            torn += 1
    if torn:
        text = f"{torn} journal lines broke off or were written again: nothing is lost by them"
        yield Finding("note", text)
    is_whole = state.total is not None and state.done >= state.total
    if lost or unnamed:
        text = f"{len(lost) + unnamed} journal lines are not what was written"
        is_harmless = is_whole and not lost
        level = "note" if is_harmless else "damage"
        yield Finding(level, text, tuple(dict.fromkeys(lost)), "" if is_harmless else _AGAIN)


def _arrays(
    folder: RunFolder, state: State, counts: dict[str, int], *, has_file: bool
) -> Iterator[Finding]:
    known, files, n_bytes = set(), 0, 0
    missing: list[str] = []
    damaged: list[str] = []
    for record in folder.records().values():
        if record.status != "ok" or record.arrays is None:
            continue
        path = folder.arrays_path(record.arrays)
        known.add(path)
        wrong = _wrong(path, record)
        if wrong is None:
            files, n_bytes = files + 1, n_bytes + record.arrays.n_bytes
        else:
            (missing if wrong == "missing" else damaged).append(record.id)
    counts |= {"array_files": files, "array_bytes": n_bytes}
    if missing and has_file:
        yield Finding("note", f"{len(missing)} parts are in the capture's file and were removed")
    elif missing:
        text = f"the arrays of {len(missing)} cells are missing"
        yield Finding("damage", text, tuple(missing), _AGAIN)
    if damaged:
        text = f"the arrays of {len(damaged)} cells are not what was written"
        yield Finding("damage", text, tuple(damaged), _AGAIN)
    yield from _strays(folder.path, known, state)


def _wrong(path: Path, record: Record) -> str | None:
    assert record.arrays is not None
    if slug(record.arrays.file) != record.arrays.file or path.is_symlink() or not path.is_file():
        return "missing"
    try:
        with path.open("rb") as file:
            if path.stat().st_size != record.arrays.n_bytes:
                return "damaged"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise StoreError(f"{shown(path)} cannot be read: {error.strerror}") from error
    return None if digest == record.arrays.sha256 else "damaged"


def _strays(path: Path, known: set[Path], state: State) -> Iterator[Finding]:
    if state.state == RUNNING:
        return  # what is being written now is no stray
    homes = [path, *sorted(path.glob(f"{SHARDS}/*"))]
    left = [file for home in homes for file in (*home.glob("*.tmp"), *home.glob(f"{ARRAYS}/*.tmp"))]
    if left:
        yield Finding("note", f"{len(left)} unfinished files of a killed process; harmless")
    spare = [
        file for home in homes for file in home.glob(f"{ARRAYS}/*.safetensors") if file not in known
    ]
    if spare:
        names = ", ".join(safe_text(file.name) for file in spare[:3])
        yield Finding("note", f"{len(spare)} array files belong to no cell ({names}); harmless")


def _shards(path: Path, state: State) -> Iterator[Finding]:
    found = [home.name for home in sorted(path.glob(f"{SHARDS}/*")) if home.is_dir()]
    if found and state.state != RUNNING:
        text = f"the cells of {len(found)} other machines are not taken in yet; they count"
        yield Finding("note", text, (), "`mlxroles resume` takes them in")


def _capture(file: Path, state: State) -> Iterator[Finding]:
    cure = f"remove {shown(file)} and run the command again"
    try:
        found = run_id_of(file)
        lengths = _lengths(file)
    except MlxrolesError as error:
        yield Finding("damage", str(error), (), cure)
        return
    if found != state.run_id and not state.path.name.endswith(PARTS):
        text = f"{shown(file)} is of the run {safe_text(str(found), limit=40)}, not {state.run_id}"
        yield Finding("note", text)
    ids: Any = state.manifest.get("token_ids", {})
    wrong = [name for name, length in lengths.items() if name in ids and len(ids[name]) != length]
    if wrong:
        text = f"{shown(file)}: {len(wrong)} prompts have another length than they had"
        yield Finding("damage", text, tuple(wrong), cure)


def _lengths(file: Path) -> dict[str, int]:
    from mlxroles.store.reader import read

    names, lengths = read(file, "prompt"), read(file, "length")
    return {str(name): int(n) for name, n in zip(names, lengths, strict=True)}
