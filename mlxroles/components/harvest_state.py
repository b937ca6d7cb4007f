"""The unfinished part of a harvest on the disk, so that one that was killed goes on.

Beside ``NAME.h5`` lies the folder ``NAME.h5.parts`` while the harvest is made: what it is of, and
per group of layers the sums so far (.npz), each file written whole or not at all.
"""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.components.harvest_file import read_harvest
from mlxroles.errors import SpecError, StoreError
from mlxroles.store.files import (
    make_folder,
    plain,
    plain_errors,
    read_object,
    require_space,
    shown,
    sync,
    sync_folder,
    temporary,
    write_json,
)
from mlxroles.store.lock import RunLock

PLAN = "plan.json"

State = Mapping[str, np.ndarray[Any, Any]]


class Parts:
    """The parts of the harvest that ends up in ``path``, held by this process alone.

    Raises:
        StoreError: another harvest lies there, or the folder cannot be written.
        LockedError: another process makes it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool) -> None:
        self.path, self.folder = path, path.with_name(f"{path.name}.parts")
        self.identity: Any = plain(dict(identity))
        self.whole = False
        """The file is there already."""
        with plain_errors(self.folder):
            make_folder(self.folder)
        self._lock = RunLock(self.folder / "run.lock")
        try:
            self._take(fresh)
        except BaseException:
            self._lock.release()
            raise

    def _take(self, fresh: bool) -> None:
        """Begins, goes on, or finds that all is done; what is not ours stays as it is."""
        kept, known = self._plan_there(), read_object(self.folder / PLAN)
        if fresh:
            for file in self.folder.glob("group_*.npz"):
                file.unlink()
        elif kept == self.identity:
            self.whole = True
            shutil.rmtree(self.folder)
            return
        elif known and known != self.identity:
            other = next((n for n in self.identity if known.get(n) != self.identity[n]), "plan")
            raise StoreError(
                f"{shown(self.folder)} holds an unfinished harvest that differs in its {other}; "
                "choose another place with --out, or begin anew with --fresh"
            )
        elif kept is not None and not known:  # else --fresh began this one in its place
            shutil.rmtree(self.folder)
            raise StoreError(
                f"{shown(self.path)} holds another harvest (of other components, text or "
                "settings); choose another place with --out, or begin anew with --fresh"
            )
        write_json(self.folder / PLAN, self.identity)

    def _plan_there(self) -> Any:
        """The identity of the harvest that lies in the path; None where nothing does.

        Raises:
            StoreError: something else lies there.
        """
        if not self.path.exists():
            return None
        try:
            with read_harvest(self.path) as harvest:
                return harvest.about["plan"]
        except (SpecError, StoreError):
            if not any(self.folder.glob("group_*.npz")):
                shutil.rmtree(self.folder)
            raise StoreError(
                f"{shown(self.path)} is no harvest and stays as it is; choose another place with "
                "--out"
            ) from None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def state(self, number: int) -> State | None:
        """The sums of a group so far; None where there are none, or none that can be read."""
        try:
            with np.load(self._file(number), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, number: int, state: State) -> None:
        """Writes the sums of a group, in place of those before."""
        n_bytes = sum(array.nbytes for array in state.values())
        require_space(self.folder, n_bytes)
        path = self._file(number)
        with plain_errors(path, needed=n_bytes), temporary(path) as temp:
            with temp.open("xb") as file:
                np.savez(file, **state)  # ty: ignore[invalid-argument-type]
                file.flush()
                sync(file.fileno())
            temp.replace(path)
            sync_folder(self.folder)

    def remove(self) -> None:
        """Removes the folder, once the file is written."""
        with plain_errors(self.folder, verb="removed"):
            shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"group_{number:03d}.npz"
