"""Writes a stored run to a file for other programs, streamed and put into place whole.

``csv``, ``parquet`` and ``json`` are long tables with a line per number; ``safetensors`` and
``npz`` hold a column per measure, with an entry per cell, and the arrays of the cells.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from mlxroles.errors import SpecError, StoreError
from mlxroles.runs.cells import Source
from mlxroles.runs.long import write_csv, write_json, write_parquet
from mlxroles.runs.tensors import write_npz, write_safetensors
from mlxroles.store import files
from mlxroles.store.files import plain_errors, shown
from mlxroles.text import safe_text, slug

MARK = "mlxroles/export/1"
_ENDS = 1 << 16
_CSV_HEAD = b"run,cell,"

Writer = Callable[[Source, IO[bytes], str], dict[str, Any]]
"""Writes a run; gets the file and the text that says whose it is, returns counts."""

WRITERS: Mapping[str, Writer] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "json": write_json,
    "safetensors": write_safetensors,
    "npz": write_npz,
}


class Target(NamedTuple):
    """Where an export goes, and in which form."""

    path: Path
    form: str


def target(source: Source, form: str | None, out: Path | None) -> Target:
    """Where an export goes.

    Args:
        source: The run.
        form: One of :data:`WRITERS`; None for what the name says.
        out: The file; None for ``<experiment>-<run id>.<form>`` in the current folder.

    Raises:
        SpecError: neither says which form is wanted.
    """
    if form is None:
        ending = "" if out is None else out.suffix.lower().removeprefix(".")
        if ending not in WRITERS:
            what = "--to is missing" if out is None else f"{shown(out)} does not say in which form"
            raise SpecError(f"{what}: use --to with one of {', '.join(WRITERS)}")
        form = ending
    if out is None:
        experiment = source.kind if source.folder is None else source.folder.manifest["experiment"]
        out = Path(slug(f"{str(experiment).lower()}-{source.run_id}") + f".{form}")
    return Target(out, form)


def export(source: Source, where: Target, *, force: bool = False) -> dict[str, Any]:
    """Writes a run to a file; returns what was written, as JSON.

    Args:
        source: The run.
        where: File and form.
        force: Replace a file that is no earlier export of the same run.

    Raises:
        StoreError: the file exists and is something else, or cannot be written; or the cells of
            the run cannot be read. Nothing is left behind then.
        SpecError: a package for this form is not installed.
    """
    mark = f"{MARK} {source.run_id}"
    path = where.path
    _refuse(path, source, mark, force=force)
    with plain_errors(path):
        if not path.parent.is_dir():
            raise StoreError(f"{shown(path.parent)} is no folder: create it first")
    files.require_space(path.parent, 0)
    with plain_errors(path), files.temporary(path) as temp:
        with temp.open("xb") as file:
            counts = WRITERS[where.form](source, file, mark)
            file.flush()
            files.sync(file.fileno())
        temp.replace(path)
        files.sync_folder(path.parent)
    return {
        "schema": MARK,
        "run": str(source.path),
        "run_id": source.run_id,
        "kind": source.kind,
        "file": str(path),
        "form": where.form,
        "bytes": path.stat().st_size,
        **counts,
    }


def _refuse(path: Path, source: Source, mark: str, *, force: bool) -> None:
    """Leaves alone what is no earlier export of this run, and what is no plain file at all."""
    with plain_errors(path, verb="used"):
        if not path.exists() and not path.is_symlink():
            return
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{shown(path)} is no plain file: choose another name with --out")
        inside = source.folder is not None and path.resolve().is_relative_to(source.path.resolve())
        is_own = _is_own(path, source, mark)
    if is_own or (force and not inside):
        return
    what = "is part of the run" if inside else "exists and is no export of this run"
    raise StoreError(
        f"{shown(path)} {what}: choose another name with --out"
        + ("" if inside else ", or replace it with --force")
    )


def _is_own(path: Path, source: Source, mark: str) -> bool:
    """Whether the file was written by an export of this run."""
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(path.stat().st_size - _ENDS, 0), io.SEEK_SET)
        tail = file.read()
    own = safe_text(mark).encode()
    if own in head or own in tail:
        return True
    lines = head.split(b"\n", 2)
    is_table = lines[0].startswith(_CSV_HEAD) and len(lines) > 1
    return is_table and lines[1].startswith(f"{source.run_id},".encode())
