"""How a run is gone on with: the command that began it, from where, into the same folder."""

import os
from pathlib import Path
from typing import NamedTuple

from mlxroles.errors import LockedError, SpecError, StoreError
from mlxroles.runs.find import (
    CAPTURE,
    PARTS,
    RESULTS,
    is_sweep,
    last_written,
    runs_below,
    sweeps_below,
)
from mlxroles.runs.state import RUNNING, state_of
from mlxroles.runs.sweeps import sweep_state
from mlxroles.store.files import read_object, shown
from mlxroles.store.sweep_state import QUEUE
from mlxroles.text import safe_text

_WITH_OUT = ("patch", "probe", "entropy", "ablate", "inject", "lens", "heads", "circuits")
"""Commands whose ``--out`` is the run folder."""


class Command(NamedTuple):
    """A command to run again."""

    argv: list[str]
    """What follows the program's name."""
    folder: Path
    """Where it is run from."""
    run: Path
    """The run or sweep that it goes on with."""


def unfinished(results: Path = RESULTS) -> Path | None:
    """The run or sweep below ``results`` that was written last and that nobody goes on with.

    Run folders that cannot be read are passed over.
    """
    everything = [*runs_below(results), *sweeps_below(results)]
    for path in sorted(everything, key=last_written, reverse=True):
        try:
            if is_sweep(path):
                if sweep_state(path)["state"] == "stopped":
                    return path
            elif state_of(path).is_unfinished:
                return path
        except StoreError:
            continue
    return None


def command_of(path: Path, *, drift: tuple[str, ...] = ()) -> Command:
    """The command that goes on with a run or sweep.

    Its results are held to the very folder: where a model has changed since, the command refuses,
    as its numbers would not belong to this run.

    Args:
        path: The folder.
        drift: Fields of the identity that may differ.

    Raises:
        LockedError: another process works on it.
        SpecError: it is complete.
        StoreError: it does not say by which command it was made.
    """
    path = path.resolve()
    if is_sweep(path):
        return _of_sweep(path)
    state = state_of(path)
    if state.state == RUNNING:
        pid, host = (safe_text(str(state.owner.get(key, "?"))) for key in ("pid", "host"))
        raise LockedError(
            f"{shown(path)} is being written by process {pid} on {host}: `mlxroles watch` shows it"
        )
    if not state.is_unfinished:
        raise SpecError(
            f"{shown(path)} is complete ({state.done} cells): `mlxroles show` tells what it found"
        )
    words = _argv(path, state.manifest.get("argv"))
    # behind a -- everything is an argument
    end = words.index("--") if "--" in words else len(words)
    argv = [word for word in words[:end] if word != "--fresh"]
    folder = _folder(path, state.manifest.get("cwd"))
    if argv[0] in _WITH_OUT:
        argv += ["--out", str(path)]
    elif argv[0] == "capture" and path.name.endswith(PARTS):
        argv += ["--out", str(path.with_name(path.name.removesuffix(PARTS)))]
    elif argv[0] == "capture":
        argv += ["--out", str(path / CAPTURE)]
    if argv[0] in (*_WITH_OUT, "capture"):
        argv += [word for field in drift for word in ("--allow-drift", field)]
    return Command([*argv, *words[end:]], folder, path)


def _of_sweep(path: Path) -> Command:
    state = sweep_state(path)
    if state["state"] == "running":
        raise LockedError(
            f"{shown(path)} is being run by another process: `mlxroles watch` shows it"
        )
    if state["resume"] is None:
        raise SpecError(f"{shown(path)} is complete: `mlxroles show` tells what it found")
    queue = read_object(path / QUEUE)
    return Command(_argv(path, queue.get("argv")), _folder(path, queue.get("cwd")), path)


def _argv(path: Path, found: object) -> list[str]:
    if not isinstance(found, list) or not found or not all(isinstance(w, str) for w in found):
        raise StoreError(
            f"{shown(path)} does not say by which command it was made: run that command again"
        )
    return [str(word) for word in found]


def _folder(path: Path, stored: object) -> Path:
    """Where the command was given; where that is gone or unknown, the folder of the results."""
    if isinstance(stored, str) and os.access(stored, os.X_OK) and Path(stored).is_dir():
        return Path(stored)
    return _default_place(path) or Path.cwd()


def _default_place(path: Path) -> Path | None:
    """The folder whose ``results`` hold a run that was put there by default."""
    is_default = len(path.parents) > 2 and path.parents[1].name == RESULTS.name
    return path.parents[2] if is_default else None
