"""The file of a capture while it is filled: cell by cell as they are stored, whole at the end.

It lies beside its place until ``finish`` and is a derived thing: what a killed process had put
into it is taken from the stored parts again.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mlxroles.events import Cell
from mlxroles.runner import Result
from mlxroles.store.capture import CaptureFile
from mlxroles.store.folder import RunFolder
from mlxroles.store.schema import CAPTURE_VARIABLES
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.studies.capture import Capture


class Filling:
    """The file of a study; as a context manager it removes what ``finish`` has not made whole.

    Args:
        study: The capture.
        path: The file.
        fresh: Replace a file that is there already.
    """

    def __init__(self, study: "Capture", path: Path, *, fresh: bool) -> None:
        self.study, self.path, self.fresh = study, path, fresh
        self._file: CaptureFile | None = None
        self._added: set[str] = set()

    def add(self, result: Result) -> None:
        """Puts a cell that is stored into the file, which is created for the first one.

        Raises:
            StoreError: the file exists and is not to be replaced, or cannot be written.
        """
        assert result.arrays is not None
        self._add(result.cell, result.arrays)

    def finish(self, folder: RunFolder) -> None:
        """Adds the cells of earlier processes from their parts and gives the file its name.

        Raises:
            StoreError: as in ``add``, or a part cannot be read.
        """
        for cell in self.study.cells:
            if cell.id not in self._added:
                self._add(cell, folder.arrays(cell.id))
        assert self._file is not None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes a file that is not whole."""
        if self._file is not None:
            self._file.discard()

    def _add(self, cell: Cell, arrays: Mapping[str, np.ndarray]) -> None:
        if self._file is None:
            self._file = self._create(arrays)
        study = self.study
        for row, n in enumerate(cell.coords["prompts"]):
            length = study.prompts[n].n_tokens
            ids = np.array(study.prompts[n].ids, dtype="i4")
            self._file.put("tokens", (n, slice(0, length)), ids)
            self._file.put("length", (n,), np.int32(length))
            for name, array in arrays.items():
                site, _, layer = name.partition(".")
                place = (n,) if not layer else (n, study.layers.layers.index(int(layer)))
                extent = tuple(slice(0, size) for size in array.shape[1:])
                self._file.put(site, (*place, *extent), array[row])
        self._added.add(cell.id)

    def _create(self, first: Mapping[str, np.ndarray]) -> CaptureFile:
        study, sizes = self.study, self._sizes(first)
        variables = [CAPTURE_VARIABLES[name] for name in (*study.keep, "tokens", "length")]
        coords: dict[str, Any] = {
            axis: sizes[axis] for variable in variables for axis in variable.axes if axis in sizes
        }
        coords |= {"prompt": [p.id for p in study.prompts], "layer": list(study.layers.layers)}
        return CaptureFile(
            self.path,
            variables,
            coords={a: c for a, c in coords.items() if any(a in v.axes for v in variables)},
            attrs=self._attributes(first),
            store=study.store,
            overwrite=self.fresh,
        )

    def _sizes(self, first: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Length of every axis, from the model and the arrays of one cell."""
        model, blocks = self.study.model, self.study.model.network.anatomy.blocks
        sizes = dict.fromkeys(("position", "query", "key"), self.study.longest)
        sizes |= {"d_model": model.d_model, "vocab": model.vocab}
        sizes["head"] = max((b.heads for b in blocks), default=0)
        sizes["kv_head"] = max((b.kv_heads for b in blocks), default=0)
        widths = [a.shape[-1] for name, a in first.items() if name[0] in "qkvz" and "." in name]
        sizes["d_head"] = max(widths, default=model.d_head)
        return sizes

    def _attributes(self, first: Mapping[str, np.ndarray]) -> dict[str, Any]:
        study, model = self.study, self.study.model
        have = {site: [n for n in first if n.startswith(f"{site}.")] for site in study.keep}
        gaps = {
            site: [i for i in study.layers if f"{site}.{i}" not in found]
            for site, found in have.items()
            if site != "logits"
        }
        side = study.subject.sides["model"]
        return {
            "run_id": study.run_id,
            "model": str(side.folder),
            "model_sha256": side.identity["sha256"],
            "architecture": model.architecture,
            "n_heads": model.n_heads,
            "n_kv_heads": model.n_kv_heads,
            "layers_without": {site: gap for site, gap in gaps.items() if gap},
            "repairs": list(model.repairs),
            "warnings": list(model.warnings),
            "created": now(),
            "versions": versions(),
        }
