"""Files that a reading takes beside models and prompts: tuned lenses, edits and their vectors."""

import hashlib
from contextlib import suppress
from pathlib import Path

from mlxroles import lens
from mlxroles.edit_file import tables
from mlxroles.errors import SpecError
from mlxroles.store.files import shown


def tuned_file(path: Path, side: str) -> Path:
    """The tuned lens of a model: the file itself, or that of a run folder.

    Raises:
        SpecError: the folder holds none.
    """
    if not path.is_dir():
        return path
    named = path / f"tuned_{side}{lens.tuned.SUFFIX}"
    found = sorted(path.glob(f"tuned_*{lens.tuned.SUFFIX}"))
    if named in found or len(found) == 1:
        return named if named in found else found[0]
    raise SpecError(
        f"{shown(path)} holds no tuned lens {named.name}; make one with `mlxroles lens --fit`"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edits_digest(path: Path) -> str:
    """SHA-256 of a file of edits and of the vector files that it names.

    Raises:
        SpecError: it cannot be read, holds no edit, or a key that is none.
    """
    edits = tables(path)
    found = hashlib.sha256()
    found.update(path.read_bytes())
    for table in edits:
        ref = table.get("vector")
        if not isinstance(ref, str):
            continue
        name = ref.partition("#")[0]
        for file in (path.parent / name, Path(name)):
            with suppress(OSError, ValueError):
                found.update(file.read_bytes())
                break
    return found.hexdigest()
