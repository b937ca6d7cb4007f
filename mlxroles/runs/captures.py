"""The file of a capture: where it is, and what it holds, without reading its numbers."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from mlxroles.errors import IntegrityError
from mlxroles.runs.find import CAPTURE, PARTS, is_run
from mlxroles.store.files import shown
from mlxroles.store.hdf5 import plain_hdf5_errors
from mlxroles.store.reader import axes, read


def file_of(path: Path) -> Path | None:
    """The file of a capture that is whole, None where there is none yet.

    Args:
        path: The run folder, the folder of its parts, or the file itself.
    """
    if path.is_file():
        return path
    beside = path.with_name(path.name.removesuffix(PARTS))
    own = beside if path.name.endswith(PARTS) and is_run(path) else path / CAPTURE
    return own if own.is_file() else None


@contextmanager
def as_damage(path: Path) -> Generator[None]:
    """Turns what only a damaged capture can cause inside the block into an IntegrityError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{shown(path)} does not hold what a capture writes; `mlxroles verify` its run, or run"
            " the command again that made it"
        ) from error


def overview(file: Path) -> dict[str, Any]:
    """Variables with their axes, sizes and types, prompts, and what the file says of itself.

    Raises:
        StoreError: it cannot be read.
    """
    with as_damage(file):
        named = axes(file)
        prompts = [str(name) for name in read(file, "prompt")] if named else []
        with plain_hdf5_errors(file, verb="read"), h5py.File(file, "r", locking=False) as opened:
            variables = [
                {
                    "name": name,
                    "axes": list(along),
                    "shape": [int(size) for size in opened[name].shape],
                    "dtype": str(opened[name].attrs.get("dtype", opened[name].dtype)),
                    "bytes": int(opened[name].id.get_storage_size()),
                }
                for name, along in named.items()
            ]
            attrs = {str(name): _plain(value) for name, value in opened.attrs.items()}
    return {
        "file": str(file),
        "run_id": attrs.get("run_id"),
        "bytes": file.stat().st_size,
        "prompts": prompts,
        "variables": variables,
        "attributes": attrs,
    }


def run_id_of(file: Path) -> str | None:
    """The id of the run that wrote the file.

    Raises:
        StoreError: it cannot be read.
    """
    with (
        as_damage(file),
        plain_hdf5_errors(file, verb="read"),
        h5py.File(file, "r", locking=False) as opened,
    ):
        found = opened.attrs.get("run_id")
    return None if found is None else str(found)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
