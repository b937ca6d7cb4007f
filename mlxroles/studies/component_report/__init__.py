"""The report on a component file: every analysis that needs no training, layer by layer.

It runs on the file alone; a harvest and the model add what they know. Contributions to scores are
kept in ``offsets.h5``, a group per layer, and are not computed again for the same inputs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.components import file
from mlxroles.components import offsets as scores
from mlxroles.components.decomposition import Components
from mlxroles.components.harvest_file import Harvest
from mlxroles.components.maps import decomposable
from mlxroles.errors import ModelError, SpecError
from mlxroles.models.integrity import file_hash
from mlxroles.plan import run_id
from mlxroles.store.files import make_folder, shown
from mlxroles.studies.component_report import document, results
from mlxroles.studies.component_report.layers import (
    ALIVE,
    Sources,
    contributions,
    layer_view,
)
from mlxroles.text import ranges
from mlxroles.versions import now, versions

if TYPE_CHECKING:
    from mlxroles.models.model import Model
    from mlxroles.report.components.views import MapView

OFFSETS = "offsets.h5"


def is_of(harvest: Harvest, ref: Path, components: Components) -> bool:
    """Whether a harvest was made of this component file: of all its maps that it has."""
    told = (harvest.about["components"] or {}).get("sha256")
    if told and ref.is_file():
        return told == file_hash(ref)
    known = [key for key in harvest.keys if key in components.maps]
    return bool(known) and all(harvest.map(key).n == components.maps[key].n for key in known)


@dataclass(frozen=True)
class ComponentReport:
    """A report that can be made.

    Raises:
        SpecError: a layer without a decomposed map, a harvest of other components, or components
            of another model.
    """

    ref: Path
    """The component file."""
    components: Components
    harvest: Harvest | None = None
    model: "Model | None" = None
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = self.components.layers
        unknown = [layer for layer in self.layers or () if layer not in known]
        if unknown:
            raise SpecError(
                f"no map of layer {unknown[0]} is decomposed; the file has layers {ranges(known)}"
            )
        if self.harvest is not None and not is_of(self.harvest, self.ref, self.components):
            raise SpecError(
                f"{shown(self.harvest.path)} is the harvest of other components than "
                f"{shown(self.ref)}; make one with mlxroles components harvest"
            )
        if self.model is not None:
            file.fitted(self.components, self.model)

    @property
    def name(self) -> str:
        """What was decomposed, for titles: the model's name, or the file's."""
        made = self.components.meta.get("model")
        told = made.get("name") if isinstance(made, dict) else None
        return str(told or self.ref.stem)

    @property
    def chosen(self) -> list[int]:
        """The layers that are reported on, ascending."""
        return sorted(self.layers if self.layers is not None else self.components.layers)

    def identity(self) -> str:
        """A digest of everything that changes numbers: components, harvest, model, seed."""
        arrays = hashlib.sha256()
        for key, each in sorted(self.components.maps.items()):
            arrays.update(key.encode())
            arrays.update(np.ascontiguousarray(each.V).tobytes())
            arrays.update(np.ascontiguousarray(each.U).tobytes())
        harvest = None if self.harvest is None else self.harvest.about
        found = {
            "kind": "components-report",
            "components": arrays.hexdigest(),
            "harvest": None if harvest is None else str(sorted(harvest.items())),
            "model": None if self.model is None else file.identity(self.model),
            "layers": self.chosen,
            "seed": self.seed,
        }
        return run_id(found)

    def run(
        self, folder: Path, told: Callable[[int, int, int], None] = lambda layer, n, of: None
    ) -> dict[str, Any]:
        """Writes the whole report into a folder and returns its document.

        Args:
            folder: Made where it does not exist.
            told: Called before each layer with it, its number from 1 and the number of layers.

        Raises:
            StoreError: something cannot be written.
        """
        sources, identity, notes = self._sources(), self.identity(), self._notes()
        known = self._contributions(folder, sources, identity, notes)
        doc = self._document(folder, identity)
        pages = results.Pages(folder)
        maps: list[MapView] = []
        for n, layer in enumerate(self.chosen, 1):
            told(layer, n, len(self.chosen))
            view = layer_view(sources, layer, known.get(layer))
            maps += view.maps
            doc["layers"].append(document.layer(view))
            pages.draw(doc, view)
        doc["notes"] = list(dict.fromkeys(notes))
        pages.write(doc, maps)
        return doc

    def _contributions(
        self, folder: Path, sources: Sources, identity: str, notes: list[str]
    ) -> dict[int, scores.Offsets]:
        """Those of every layer that has them; why others have none goes to the notes."""
        known = scores.read(folder / OFFSETS, identity)
        missing = [layer for layer in self.chosen if layer not in known]
        why: dict[str, list[int]] = {}
        for layer in missing:
            try:
                found = contributions(sources, layer)
            except ModelError as error:
                why.setdefault(f"no contributions to scores: {error}", []).append(layer)
                continue
            known |= {} if found is None else {layer: found}
        if known and missing:
            make_folder(folder)
            scores.write(folder / OFFSETS, known, identity)
        for layer in known:
            if text := self._left_out(layer):
                why.setdefault(text, []).append(layer)
        notes += [f"layers {ranges(layers)}: {text}" for text, layers in why.items()]
        return known

    def _left_out(self, layer: int) -> str:
        """What the contributions of a layer leave out."""
        if self.model is None:
            return ""
        from mlxroles.circuits import rotary
        from mlxroles.studies.component_report.turning import left_out

        found = rotary(self.model, layer)
        maps = decomposable(self.model, ("q", "k"), layers=[layer])
        return "; ".join(text for text in (left_out(self.model, found, maps), *found.notes) if text)

    def _sources(self) -> Sources:
        if self.model is None:
            return Sources(self.components.maps, self.harvest, seed=self.seed)
        from mlxroles.circuits import rotary
        from mlxroles.studies.component_report.turning import rotate

        model = self.model
        maps = file.fitted(self.components, model)

        def turning(layer: int) -> tuple[scores.Rotate, float]:
            found = rotary(model, layer)
            return rotate(found), found.scale

        def weight(key: str) -> NDArray[Any]:
            return maps[key].weight(model)

        return Sources(self.components.maps, self.harvest, weight, turning, self.seed)

    def _notes(self) -> list[str]:
        found: list[str] = []
        if self.model is not None:
            foreign = file.foreign(self.components, self.model)
            found += [foreign] if foreign else []
        told = self.components.meta.get("notes")
        found += [str(text) for text in told] if isinstance(told, list) else []
        return found

    def _document(self, folder: Path, identity: str) -> dict[str, Any]:
        harvest = None
        measure, counts = "norm", f"norm above {ALIVE:.0%} of the largest in the map"
        if self.harvest is not None:
            about = self.harvest.about
            harvest = {
                "path": str(self.harvest.path),
                "n_tokens": self.harvest.n_tokens,
                "sentence": about.get("sentence"),
            }
            measure = f"mean {self.harvest.measure}"
            counts = f"{measure} above {ALIVE}"
        return {
            "schema": "mlxroles/components-report/1",
            "run": str(folder),
            "run_id": identity,
            "display": self.name,
            "file": str(self.ref),
            "made": str(self.components.meta.get("made") or "imported"),
            "model": None if self.model is None else self.model.name,
            "harvest": harvest,
            "measure": measure,
            "counts": counts,
            "about": f"by {measure}",
            "threshold": 0.0 if self.harvest is None else float(self.harvest.about["threshold"]),
            "seed": self.seed,
            "layers": [],
            "notes": [],
            "timestamp": now(),
            "versions": versions(),
        }
