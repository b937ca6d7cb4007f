"""Which stored run a user means: a folder, a file in it, a run id or the beginning of one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlxroles.errors import SpecError, StoreError
from mlxroles.store.files import shown
from mlxroles.store.manifest import MANIFEST
from mlxroles.store.sweep_state import QUEUE, STATE
from mlxroles.text import did_you_mean, safe_text

RESULTS = Path("results")
NOTHING = f"no runs below {RESULTS}/ here: `mlxroles patch --pair tiny` makes the first"
"""What is said where a list of runs is empty."""

CAPTURE = "capture.h5"
PARTS = ".parts"
"""Ends the name of the folder in which the parts of a capture to a file of its own lie."""

_SET_ASIDE = ".old-"
_CAPTURE_ENDS = (".h5", ".hdf5")
_SHOWN = 6


def is_run(path: Path) -> bool:
    """Whether this is a run folder."""
    return _is_there(path / MANIFEST)


def is_sweep(path: Path) -> bool:
    """Whether this is the folder of a sweep: a queue of experiments."""
    return any(_is_there(path / name) for name in (QUEUE, STATE))


def is_capture(path: Path) -> bool:
    """Whether this is a file that a capture wrote, by its name."""
    return path.suffix.lower() in _CAPTURE_ENDS and path.is_file()


def runs_below(results: Path = RESULTS) -> list[Path]:
    """Run folders below the folder of results, the one that was written last first."""
    return sorted(filter(is_run, _folders(results)), key=last_written, reverse=True)


def sweeps_below(results: Path = RESULTS) -> list[Path]:
    """Folders of sweeps below the folder of results, the one that was written last first."""
    return sorted(filter(is_sweep, _folders(results)), key=last_written, reverse=True)


def last_written(path: Path) -> float:
    """When something about a run or sweep was last stored, in seconds since 1970."""
    found = 0.0
    for name in ("cells.jsonl", "events.jsonl", "summary.json", MANIFEST, STATE, QUEUE):
        with suppress(OSError):
            found = max(found, (path / name).stat().st_mtime)
    return found


def find(text: str, *, results: Path = RESULTS) -> Path:
    """The run folder, sweep folder or capture file that a user's word stands for.

    Args:
        text: one of these, a file in a run folder, a folder that holds a single run, a run id, or
            a beginning of one that no other run below ``results`` shares.
        results: the folder of all results.

    Raises:
        StoreError: it is a path to something else.
        SpecError: nothing or more than one thing bears that name.
    """
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if not text or not _is_there(path):
        return _named(text, results)
    if path.is_file():
        if is_run(path.parent) or is_sweep(path.parent):
            return path.parent
        if is_capture(path):
            return path
        raise StoreError(f"{shown(path)} is no run: expected is a run folder, or a run id")
    if is_run(path) or is_sweep(path):
        return path
    below = (*_children(path), *_folders(path))
    inside = [one for one in below if is_run(one)] or [one for one in below if is_sweep(one)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        what = "runs" if is_run(inside[0]) else "sweeps"
        raise SpecError(f"{shown(path)} holds {len(inside)} {what} ({_listed(inside)}): name one")
    raise StoreError(f"{shown(path)} is no run folder and holds none{_newest(results)}")


def find_run(text: str, *, results: Path = RESULTS) -> Path:
    """As :func:`find`, for what is done with a run folder alone.

    Raises:
        SpecError: it is a sweep, or a capture file whose run folder is gone.
        StoreError: as in :func:`find`.
    """
    path = find(text, results=results)
    if is_run(path):
        return path
    if is_sweep(path):
        raise SpecError(f"{shown(path)} is a sweep of several runs: name one of them")
    raise SpecError(f"{shown(path)} is a capture by itself, its run folder is gone: name a run")


def _named(text: str, results: Path) -> Path:
    everything = [path for path in _folders(results, aside=True) if is_run(path) or is_sweep(path)]
    kept = [path for path in everything if _SET_ASIDE not in path.name]
    word = text.strip("/")
    for fitting in (
        [path for path in everything if path.name == word],
        [path for path in kept if word and path.name.startswith(word)],
        [path for path in kept if word and f"{path.parent.name}/{path.name}".startswith(word)],
    ):
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise SpecError(
                f"'{safe_text(text, limit=80)}' stands for {len(fitting)} runs"
                f" ({_listed(fitting)}): give more of the name"
            )
    hint = did_you_mean(word, [path.name for path in kept])
    raise SpecError(f"no run '{safe_text(text, limit=200)}'{hint}{_newest(results)}")


def _newest(results: Path) -> str:
    everything = [*runs_below(results), *sweeps_below(results)]
    found = sorted(everything, key=last_written, reverse=True)
    if not found:
        return f"; {NOTHING}"
    return f"; newest below {shown(results)}: {_listed(found)}"


def _listed(paths: Sequence[Path]) -> str:
    names = [f"{safe_text(p.parent.name)}/{safe_text(p.name)}" for p in paths[:_SHOWN]]
    return ", ".join(names) + (", ..." if len(paths) > _SHOWN else "")


def _folders(results: Path, *, aside: bool = False) -> Iterator[Path]:
    """Folders two levels down, those of runs that were set aside only if asked for."""
    for experiment in _children(results):
        for path in _children(experiment):
            if aside or _SET_ASIDE not in path.name:
                yield path


def _children(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _is_there(path: Path) -> bool:
    # Names that are too long, hold a NUL or lie behind a closed folder are not there either.
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
