"""The folder of a sweep: its queue, and the state in which an earlier process left it."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlxroles import plan
from mlxroles.errors import StoreError
from mlxroles.snapshots import file_facts
from mlxroles.store import files
from mlxroles.store.manifest import MANIFEST, read_manifest
from mlxroles.store.summary import read_summary
from mlxroles.store.sweep_state import QUEUE, Entry, QueueState, read_state
from mlxroles.text import slug

_EXPERIMENT_KEYS = ("name", "kind", "argv", "priority")


@dataclass(frozen=True)
class Planned:
    """An experiment as the supervisor knows it: a name and a command."""

    name: str
    kind: str
    argv: tuple[str, ...]
    priority: int = 0


def folder_of(results: Path, name: str, experiments: Sequence[Planned]) -> tuple[str, Path]:
    """The id of a queue, which the same experiments always have, and the folder of its sweep."""
    doc = {"sweep": [list(e.argv) for e in experiments]}
    short = plan.run_id(doc)
    return short, results / slug(f"sweep_{name}") / short


def begin(
    path: Path, name: str, short: str, experiments: Sequence[Planned], argv: Sequence[str]
) -> QueueState:
    """The state to go on from; the folder is made and the queue written where it is new.

    Raises:
        StoreError: the folder cannot be used.
    """
    files.make_folder(path / "logs")
    listed = [{key: getattr(e, key) for key in _EXPERIMENT_KEYS} for e in experiments]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries = [
        Entry(n, e.name, e.kind, list(e.argv), e.priority) for n, e in enumerate(experiments)
    ]
    state = QueueState(name, short, str(path), now, entries)
    earlier = _earlier(path)
    if earlier is not None and len(earlier.entries) == len(entries):
        state.started, state.sessions = earlier.started, earlier.sessions + 1
        state.events, state.deaths, state.slept = earlier.events, earlier.deaths, earlier.slept
        if earlier.finished is None and list(argv) == queue_argv(path):
            state.until = earlier.until
        for entry, before in zip(entries, earlier.entries, strict=True):
            entry.seconds, entry.deaths, entry.run = before.seconds, before.deaths, before.run
            entry.estimate, entry.estimate_low = before.estimate, before.estimate_low
            entry.estimate_high = before.estimate_high
            entry.cells, entry.done = before.cells, before.done
            is_clean = before.status == "done" and not before.failed and not before.error
            if is_clean and _is_still_true(before):
                entry.status = "done"
                entry.restored = before.done
                take_findings(entry)
    queue = {"schema": "mlxroles/queue/1", "name": name, "id": short, "cwd": str(Path.cwd())}
    files.write_json(path / QUEUE, queue | {"argv": list(argv), "experiments": listed})
    state.pid, state.host = os.getpid(), socket.gethostname()
    return state


def queue_argv(path: Path) -> list[str]:
    """The words of the command that the sweep in a folder was begun or last continued with."""
    found = files.read_object(path / QUEUE).get("argv")
    return [str(word) for word in found] if isinstance(found, list) else []


def _earlier(path: Path) -> QueueState | None:
    try:
        return read_state(path)
    except StoreError:
        return None


def _is_still_true(entry: Entry) -> bool:
    """Whether a finished run is there and about the models that are there now."""
    if entry.run is None:
        return False
    try:
        manifest = read_manifest(Path(entry.run) / MANIFEST)
    except StoreError:
        return False
    folders, models = manifest.get("folders"), manifest.get("model_files")
    if not isinstance(folders, dict) or not isinstance(models, dict):
        return False
    return models == {name: file_facts(Path(str(f))) for name, f in folders.items()}


def take_findings(entry: Entry) -> None:
    """Takes what a run has found from its summary."""
    if entry.run is None:
        return
    doc = read_summary(Path(entry.run))
    inner = doc.get("summary")
    said = {**doc, **(inner if isinstance(inner, dict) else {})}
    entry.sentence = str(said["sentence"]) if said.get("sentence") else None
    entry.brief = str(said["brief"]) if said.get("brief") else None
