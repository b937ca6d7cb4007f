"""What a run found: the document of its command, stored or made again from its cells.

A finished run has its document; of one that goes on or was killed it is worked out from the
journal, as the command itself would, as far as the kind of run allows without its model.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlxroles.errors import IntegrityError
from mlxroles.runs.state import FINISHED, State, state_of
from mlxroles.store.files import shown
from mlxroles.store.folder import JOURNAL, RunFolder
from mlxroles.store.summary import SUMMARY, read_summary
from mlxroles.text import safe_text

Doc = dict[str, Any]


class Found(NamedTuple):
    """What a run found so far."""

    doc: Doc
    source: str
    """``summary``, ``journal`` or ``capture``."""
    state: State


def found(path: Path) -> Found:
    """The document of a run.

    Raises:
        StoreError: the run cannot be read.
    """
    state = state_of(path)
    doc = read_summary(path)
    if not str(doc.get("schema")).startswith("mlxroles/"):
        doc = {}
    if doc and (state.state == FINISHED or _is_newest(path)):
        return Found(doc, "summary", state)
    if state.kind == "capture":
        return Found(captured(path, state), "capture", state)
    again = _AGAIN.get(state.kind)
    if again is None and doc:
        return Found(doc, "summary", state)
    again = again or _counted
    folder = RunFolder.read(path)
    try:
        return Found(again(folder, doc), "journal", state)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise IntegrityError(
            f"{shown(path)}: what it found cannot be worked out from its cells"
            f" ({safe_text(f'{type(error).__name__}: {error}', limit=200)}); `mlxroles verify` says"
            " what is wrong"
        ) from error


def _is_newest(path: Path) -> bool:
    """Whether the stored document is of all cells that are stored."""
    try:
        return (path / SUMMARY).stat().st_mtime_ns >= (path / JOURNAL).stat().st_mtime_ns
    except OSError:
        return False


def _patch(folder: RunFolder, earlier: Doc) -> Doc:
    from mlxroles.runs.again import patch_document

    return patch_document(folder, earlier)


def _attribution(folder: RunFolder, earlier: Doc) -> Doc:
    from mlxroles.runs.again import attribution_document

    return attribution_document(folder, earlier)


def _probe(folder: RunFolder, _: Doc) -> Doc:
    """The rows of a probe; means over prompts are those of the whole run and left out."""
    identity: Any = folder.manifest["identity"]
    token_ids: Any = folder.manifest.get("token_ids", {})
    rows = []
    for record in folder.records().values():
        c: Mapping[str, Any] = record.coords
        if record.status != "ok" or not {"model", "variant", "prompt"} <= c.keys():
            continue
        name = str(identity["prompts"][c["variant"]][int(c["prompt"])][0])
        ids = token_ids.get(f"{c['variant']}/{name}", ())
        about = {"model": c["model"], "prompt": name, "variant": c["variant"]}
        rows.append({**about, "n_tokens": len(ids) or None} | dict(record.values))
    return {
        "schema": "mlxroles/probe/1",
        **common(folder),
        "headline": identity.get("headline"),
        "strings": identity.get("strings"),
        "rows": rows,
        "means": [],
    }


def _entropy(folder: RunFolder, _: Doc) -> Doc:
    """How far each category of an entropy run is; its statistics need all prompts."""
    identity: Any = folder.manifest["identity"]
    ok = {r.id: r.coords for r in folder.records().values() if r.status == "ok"}
    stored = {(str(c.get("model")), c.get("prompt")) for c in ok.values()}
    rows = []
    for model in identity["models"]:
        by_category: dict[str, list[bool]] = {}
        for n, prompt in enumerate(identity["prompts"]):
            by_category.setdefault(str(prompt[2]), []).append((str(model), n) in stored)
        rows += [
            {"model": model, "category": name, "done": sum(done), "prompts": len(done)}
            for name, done in by_category.items()
        ]
    return {"schema": "mlxroles/entropy/1", **common(folder), "progress": rows}


def _counted(folder: RunFolder, _: Doc) -> Doc:
    """A run whose cells mean something only together: how many there are says its state."""
    kind = str(folder.manifest["identity"]["kind"])  # ty: ignore[not-subscriptable]
    return {"schema": f"mlxroles/{kind}/1", **common(folder), "rows": [], "sentence": None}


def common(folder: RunFolder) -> Doc:
    """What every document says of its run."""
    failed = [r for r in folder.records().values() if r.status != "ok"]
    experiment = str(folder.manifest.get("experiment", ""))
    return {
        "run": str(folder.path),
        "run_id": folder.run_id,
        "pair": None,
        "display": experiment.partition("_")[2] or experiment,
        "timestamp": folder.manifest.get("created"),
        "versions": folder.manifest.get("versions"),
        "interrupted": None,
        "failed_cells": [{"cell": r.id, "error": r.error} for r in failed],
        "notes": list(folder.notes),
    }


_AGAIN: Mapping[str, Callable[[RunFolder, Doc], Doc]] = {
    "patch": _patch,
    "attribution": _attribution,
    "probe": _probe,
    "entropy": _entropy,
}


def captured(path: Path, state: State | None = None) -> Doc:
    """What a capture holds: its file's variables, or how many of its cells are stored.

    Args:
        path: The run folder, or the file.
        state: How the run stands, of a run folder.

    Raises:
        StoreError: the file cannot be read.
    """
    from mlxroles.runs.captures import file_of, overview

    doc: Doc = {"schema": "mlxroles/capture/1", "run": str(path)}
    if state is not None:
        identity: Any = state.manifest["identity"]
        doc |= {"run_id": state.run_id, "keep": identity.get("keep")}
        doc |= {"layers": identity.get("layers"), "prompts": identity.get("prompts")}
    file = file_of(path)
    return doc | ({"file": None, "variables": []} if file is None else overview(file))
