"""Where a study puts its run: the folder, whether to begin anew, and what the manifest holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxroles.backend import device_name, on_gpu
from mlxroles.store.folder import RunFolder
from mlxroles.studies.subject import Subject
from mlxroles.versions import now, versions


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
    ) -> RunFolder:
        """The run folder of a study, for writing.

        Args:
            subject: The models, for the manifest.
            identity: What makes the run this run; its ``kind`` opens the experiment's name.
            token_ids: Prompt -> its ids, for the manifest.
            run_id: The id, if it is not the hash of the identity.
            folder: The folder, if it is not ``out``.
            about: What else the manifest holds, for reports.

        Raises:
            StoreError: it cannot be used, or holds another run.
        """
        manifest = {
            "argv": list(self.argv),
            "versions": versions(),
            "device": device_name(),
            "folders": {name: str(side.folder) for name, side in subject.sides.items()},
            "loading": dict(subject.options),
            "token_ids": {name: list(ids) for name, ids in token_ids.items()},
            "started": now(),
        } | ({} if about is None else {"about": dict(about)})
        return RunFolder.open(
            self.results,
            experiment=f"{identity['kind']}_{subject.pair or subject.display}",
            identity=identity,
            manifest=manifest,
            run_id=run_id,
            folder=folder or self.out,
            fresh=self.fresh,
            allow_drift=self.allow_drift,
        )


def computed_by() -> dict[str, str]:
    """What else changes the last digits of every number: the libraries and the kind of device."""
    names = ("mlx", "mlx-lm")
    return {n: v for n, v in versions().items() if n in names} | {
        "device": "gpu" if on_gpu() else "cpu"
    }
