"""Documents of patch and attribution runs, made again from what their folders hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxroles import report
from mlxroles.errors import ModelError
from mlxroles.plan import LayerRange
from mlxroles.report import attribution as attribution_report
from mlxroles.report.attribution.wording import verdict
from mlxroles.runs.found import common
from mlxroles.snapshots import read_config
from mlxroles.store.folder import RunFolder
from mlxroles.studies import patch_document as patches
from mlxroles.studies.attribution import document as attributions
from mlxroles.studies.attribution.grid import AttributionGrid
from mlxroles.studies.attribution.stored import Stored
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.patch import PatchGrid

Doc = dict[str, Any]
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def patch_document(folder: RunFolder, earlier: Mapping[str, Any]) -> Doc:
    """The document of a patch run, of the cells that are stored so far.

    Args:
        folder: The run.
        earlier: A document of fewer cells, for what the manifest does not say; may be empty.

    Raises:
        LookupError, TypeError, ValueError: the manifest lacks what every run writes.
    """
    identity = _identity(folder)
    grid = PatchGrid(
        prompts=_prompts(folder, identity),
        layers=_layers(folder, identity, earlier),
        site=identity["site"],
        positions=identity["positions"],
        heads=identity["heads"],
        controls=tuple(identity["controls"]),
    )
    doc = patches.document(
        grid,
        patches.stored_cells(folder.records().values()),
        headline=identity["headline"],
        strings=identity["strings"],
        seed=identity["seed"],
        about=_about(folder, earlier) | {"n_layers": grid.layers.n_layers},
    )
    if any(doc[direction] for direction in patches.DIRECTIONS):
        doc["summary"]["sentence"] = report.sentence(doc)
        doc["summary"]["brief"] = report.brief(doc)
    return doc


def attribution_document(folder: RunFolder, earlier: Mapping[str, Any]) -> Doc:
    """The document of an attribution run, of the cells that are stored so far.

    Args:
        folder: The run.
        earlier: As for :func:`patch_document`.

    Raises:
        LookupError, TypeError, ValueError: the manifest lacks what every run writes.
    """
    identity = _identity(folder)
    stream, heads = identity["positions"]
    grid = AttributionGrid(
        prompts=_prompts(folder, identity),
        layers=_layers(folder, identity, earlier),
        sites=tuple(identity["sites"]),
        stream_positions=stream,
        head_positions=heads,
        ig=identity["ig"],
    )
    about = _about(folder, earlier) | {
        "n_layers": grid.layers.n_layers,
        "headline": identity["headline"],
        "strings": identity["strings"],
    }
    doc = attributions.document(
        Stored(grid, folder.records().values(), folder.arrays),
        metric=identity["metric"],
        ig=identity["ig"],
        tokens=earlier.get("tokens") or [],
        seed=identity["seed"],
        about=about,
    )
    doc["summary"] = {"sentence": attribution_report.sentence(doc), "certainty": verdict(doc)}
    return doc


def _identity(folder: RunFolder) -> Any:
    return folder.manifest.get("identity")


def _prompts(folder: RunFolder, identity: Any) -> tuple[Encoded, ...]:
    ids: Any = folder.manifest["token_ids"]
    found = []
    for name, digest, *_ in identity["prompts"]:
        found.append(Encoded(name, tuple(ids[name]), digest))
    return tuple(found)


def _layers(folder: RunFolder, identity: Any, earlier: Mapping[str, Any]) -> LayerRange:
    layers = tuple(int(layer) for layer in identity["layers"])
    return LayerRange(layers, n_layers(folder, earlier) or max(layers, default=0) + 1)


def n_layers(folder: RunFolder, earlier: Mapping[str, Any]) -> int | None:
    """Layers of the model: as the run says, or the config of the model where it still is."""
    view = _view(folder)
    for found in (view.get("n_layers"), earlier.get("n_layers")):
        if isinstance(found, int):
            return found
    places: Any = folder.manifest.get("folders")
    for place in places.values() if isinstance(places, Mapping) else ():
        try:
            config: Any = read_config(Path(str(place)))
        except (ModelError, OSError):
            continue
        text: Any = config.get("text_config")
        for part in (text if isinstance(text, dict) else {}, config):
            for count in (part.get(key) for key in _LAYER_KEYS):
                if isinstance(count, int):
                    return count
    return None


def _view(folder: RunFolder) -> Mapping[str, Any]:
    about: Any = folder.manifest.get("about")
    found = about.get("view") if isinstance(about, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _about(folder: RunFolder, earlier: Mapping[str, Any]) -> Doc:
    kept = {name: earlier[name] for name in ("pair", "display", "d1_group") if name in earlier}
    return common(folder) | {"d1_group": None} | kept
