"""Where a study puts its run: the folder, whether to begin anew, and what the manifest holds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxroles import plan
from mlxroles.backend import device_name, memory, on_gpu
from mlxroles.engine import counting
from mlxroles.errors import StoreError
from mlxroles.events import RunFinished, Vitals
from mlxroles.machine.memory import system
from mlxroles.snapshots import file_facts
from mlxroles.store.folder import RunFolder
from mlxroles.store.location import place_of
from mlxroles.store.shards import is_led
from mlxroles.studies.subject import Subject
from mlxroles.supervision import LeftToFirst, supervision
from mlxroles.text import slug
from mlxroles.versions import now, versions

PATIENCE = 120.0
"""Seconds that a helping machine waits for the first one to begin."""


@dataclass(frozen=True)
class RunPlace:
    """What a user says about a run folder, the same for every study."""

    results: Path
    """Folder of all results."""
    out: Path | None = None
    """The run folder itself (for a capture: the file), instead of one below ``results``."""
    fresh: bool = False
    """Begin anew; an earlier run is set aside."""
    argv: tuple[str, ...] = ()
    """The command, for the record."""
    allow_drift: tuple[str, ...] = ()
    """Fields of the identity that may differ from those of the run that is continued."""

    def open(
        self,
        subject: Subject,
        identity: Mapping[str, Any],
        token_ids: Mapping[str, Sequence[int]],
        *,
        run_id: str | None = None,
        folder: Path | None = None,
        about: Mapping[str, Any] | None = None,
        shared: bool = True,
    ) -> RunFolder:
        """The run folder of a study, for writing.

        Args:
            subject: The models, for the manifest.
            identity: What makes the run this run; its ``kind`` opens the experiment's name.
            token_ids: Prompt -> its ids, for the manifest.
            run_id: The id, if it is not the hash of the identity.
            folder: The folder, if it is not ``out``.
            about: What else the manifest holds, for reports and displays.
            shared: Whether several machines may work on the run, each in a shard of it.

        Raises:
            LeftToFirst: this is another machine than the first, and the run is not shared.
            StoreError: it cannot be used, or holds another run.
        """
        wishes = supervision()
        experiment = f"{identity['kind']}_{subject.pair or subject.display}"
        if wishes.rank and not shared:
            raise LeftToFirst(RunFinished(0, 0, 0.0))
        if wishes.rank:
            run = slug(run_id if run_id is not None else plan.run_id(identity))
            path = place_of(self.results, slug(experiment), run, folder or self.out)
            return _joined(path, wishes.rank, identity)
        manifest = {
            "argv": list(self.argv),
            "cwd": str(Path.cwd()),
            "versions": versions(),
            "device": device_name(),
            "folders": {name: str(side.folder) for name, side in subject.sides.items()},
            "model_files": {n: file_facts(side.folder) for n, side in subject.sides.items()},
            "loading": dict(subject.options),
            "token_ids": {name: list(ids) for name, ids in token_ids.items()},
            "started": now(),
        } | ({} if about is None else {"about": dict(about)})
        return RunFolder.open(
            self.results,
            experiment=experiment,
            identity=identity,
            manifest=manifest,
            run_id=run_id,
            folder=folder or self.out,
            fresh=self.fresh,
            allow_drift=self.allow_drift,
        )


def _joined(path: Path, rank: int, identity: Mapping[str, Any]) -> RunFolder:
    """The run that the first of several machines has open, for writing a shard of it.

    Raises:
        StoreError: the first machine does not begin, or with something else.
    """
    end = time.monotonic() + PATIENCE
    while not is_led(path):
        if time.monotonic() > end:
            raise StoreError(
                f"machine {rank} waited {PATIENCE:.0f} s for the first one to begin {path}: do all "
                "of them see the same results folder, and the same models?"
            )
        time.sleep(0.2)
    return RunFolder.join(path, rank=rank, identity=identity)


def vitals() -> Vitals:
    """What this process takes and has done so far."""
    held, machine = memory(), system()
    free = None if machine is None else machine.free
    limit = held.limit or (None if machine is None else machine.total)
    return Vitals(held.active, held.peak, limit, free, counting.calls().made, 0)


def computed_by(parts: int = 1) -> dict[str, str]:
    """What else changes the last digits of every number: the libraries and the kind of device.

    Also into how many ``parts`` models were divided, where they were.
    """
    names = ("mlx", "mlx-lm")
    return {n: v for n, v in versions().items() if n in names} | {
        "device": "gpu" if on_gpu() else "cpu",
        **({"processes": str(parts)} if parts > 1 else {}),
    }
