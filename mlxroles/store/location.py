"""Where a run folder lies, and how a place is made free for one."""

import os
from pathlib import Path

from mlxroles.errors import StoreError
from mlxroles.store import files
from mlxroles.store.files import plain_errors, shown


def place_of(root: Path, experiment: str, run: str, folder: Path | None) -> Path:
    """Where a run lies: ``folder``, or its place below ``root``.

    Raises:
        StoreError: a symbolic link leads elsewhere.
    """
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


def set_aside(path: Path) -> Path:
    """Renames a run folder to a free ``<folder>.old-<n>`` and makes an empty one."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    with plain_errors(path):
        path.rename(aside)
        files.make_folder(path)
    return aside


def sweep(path: Path) -> None:
    """Removes what a process left behind that was killed while it wrote a file."""
    for folder in (path, path / "arrays"):
        with plain_errors(folder):
            for stale in sorted(folder.glob("*.tmp")):
                if stale.is_file() or stale.is_symlink():
                    stale.unlink()
