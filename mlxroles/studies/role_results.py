"""Everything that is made of a stored entropy run: packed file, statistics, figures, report.

No model is needed: the same is done at the end of a run and again, with other settings, whenever
someone asks for it.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlxroles import __version__, report
from mlxroles.errors import StoreError
from mlxroles.events import RunFinished
from mlxroles.plots import role_figures
from mlxroles.roles import compare, contrast, document, sources
from mlxroles.roles.table import Entropies, Reading
from mlxroles.store.files import plain_errors, shown, write_atomic
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.studies.place import SUMMARY, notes_of
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/entropy/1"
RUN_FILE = "run.h5"
FIGURES = "figures"
PAGE = "report.html"
_PER_QUERY = ("layer", "head", "query")
_NEAR = 3


@dataclass(frozen=True)
class Analysis:
    """How the numbers of a stored run are read; none of it needs the model."""

    reading: Reading = field(default_factory=Reading)
    contrast: str | None = None
    """``focus/reference[/confounder]``; None for the study's categories or the set's order."""
    seed: int = 0
    n_resamples: int = 10_000
    n_permutations: int = 10_000

    def document(self) -> dict[str, Any]:
        """The settings, and the version that worked with them."""
        return asdict(self) | {"mlxroles": __version__}


def finish(
    folder: RunFolder,
    analysis: Analysis,
    *,
    notes: Iterable[str] = (),
    finished: RunFinished | None = None,
) -> dict[str, Any]:
    """Writes everything derived from a run's cells; returns the document of ``summary.json``.

    A run that lacks cells gets its packed file and a document without statistics. What is there
    already, made with the same settings, is left as it is.

    Args:
        folder: The run.
        analysis: How to read it.
        notes: What this process has to say.
        finished: How the run ended, where it ran just now.

    Raises:
        StoreError: something cannot be written.
        SpecError: the contrast names categories that the run does not have.
    """
    doc = _about(folder, analysis, notes, finished)
    stored = _stored(folder.path, doc)
    if stored is not None and _has_files(stored, doc):
        return stored
    if any(r.status == "ok" for r in folder.records().values()):
        _pack(folder, doc)
    folder.write_json(SUMMARY, doc)
    if doc["missing_cells"]:
        return doc
    tables = sources.load(str(folder.path)).tables
    found, rows = statistics(tables, analysis, doc)
    doc |= found
    if rows:
        write_csv(folder.path / "heads.csv", rows)
    _write(folder, doc, tables)
    return doc


def read(path: Path, analysis: Analysis) -> dict[str, Any]:
    """The document of a stored run, worked out anew where it was read otherwise; writes nothing.

    Raises:
        StoreError: the folder is no complete entropy run, or cannot be read.
        SpecError: the contrast names categories that the run does not have.
    """
    doc = _about(RunFolder.read(path), analysis, (), None)
    stored = _stored(path, doc)
    if stored is not None:
        return stored | {"run": doc["run"], "file": doc["file"]}
    found, _ = statistics(sources.load(str(path)).tables, analysis, doc)
    return doc | found


def statistics(
    tables: Mapping[str, Entropies], analysis: Analysis, doc: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers of the document, with its notes continued, and a row per head."""
    first = next(iter(tables.values()))
    chosen, notes = contrast.contrast_of(first.categories, analysis.contrast)
    found, by_head = document.build_with_heads(
        tables,
        reading=analysis.reading,
        contrast=chosen,
        seed=analysis.seed,
        n_resamples=analysis.n_resamples,
        n_permutations=analysis.n_permutations,
    )
    merged = list(dict.fromkeys([*doc.get("notes", ()), *notes, *found.get("notes", ())]))
    prompts = doc.get("prompts") or found["prompts"]
    return found | {"notes": merged, "prompts": prompts}, by_head.rows()


def _about(
    folder: RunFolder, analysis: Analysis, notes: Iterable[str], finished: RunFinished | None
) -> dict[str, Any]:
    about: Any = folder.manifest.get("about")
    if not isinstance(about, dict) or "prompts" not in about:
        raise StoreError(f"{shown(folder.path)} is not a run of `mlxroles entropy`")
    records = folder.records().values()
    expected = len(about["models"]) * len(about["prompts"])
    return {
        "schema": SCHEMA,
        "run": str(folder.path),
        "file": str(folder.path / RUN_FILE),
        "run_id": folder.run_id,
        **about,
        "analysis": analysis.document(),
        "interrupted": finished.interrupted if finished else None,
        "missing_cells": expected - len(folder.done()),
        "failed_cells": [{"cell": r.id, "error": r.error} for r in records if r.status != "ok"],
        "notes": notes_of(folder, notes),
        "device": folder.manifest.get("device"),
        "timestamp": now(),
        "versions": folder.manifest.get("versions") or versions(),
    }


def _stored(path: Path, doc: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that an earlier process wrote with the same settings."""
    try:
        stored = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        same = stored["schema"] == SCHEMA and stored["analysis"] == doc["analysis"]
        whole = not stored["missing_cells"] and "raw" in stored
        here = stored["run_id"] == doc["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stored if same and whole and here else None


def _has_files(stored: Mapping[str, Any], doc: Mapping[str, Any]) -> bool:
    """Whether everything derived is still there, in the folder that the document names."""
    files = [
        Path(doc["run"], RUN_FILE),
        Path(doc["run"], PAGE),
        *map(Path, stored["figures"].values()),
    ]
    return stored["run"] == doc["run"] and all(file.exists() for file in files)


def _pack(folder: RunFolder, doc: Mapping[str, Any]) -> None:
    models, prompts = doc["models"], doc["prompts"]
    several = len(models) > 1
    rows, shape = [], (0, 0)
    for record in folder.records().values():
        if record.status != "ok":
            continue
        c: Mapping[str, Any] = record.coords
        coords = {"prompt": prompts[int(c["prompt"])]["id"]}
        rows.append(replace(record, coords=coords | ({"model": c["model"]} if several else {})))
        if shape == (0, 0):
            shape = folder.arrays(record.id)["entropy"].shape[:2]
    rows += [_prompt_record(folder, prompt) for prompt in prompts]
    coords = {
        "prompt": [prompt["id"] for prompt in prompts],
        "layer": shape[0],
        "head": shape[1],
        "query": max(prompt["n_tokens"] for prompt in prompts),
        "near": _NEAR,
    }
    if several:
        coords = {"model": list(models), **coords}
    pack(folder, _variables(several=several), coords, records=rows)


def _prompt_record(folder: RunFolder, prompt: Mapping[str, Any]) -> Record:
    ids: Any = folder.manifest["token_ids"]
    values = {
        "length": prompt["n_tokens"],
        "has_bos": int(prompt["has_bos"]),
        "category": prompt["category"],
        "tokens": ids[prompt["id"]],
    }
    coords = {"prompt": prompt["id"]}
    return Record(f"prompt {prompt['id']}", "ok", coords=coords, values=values)


def _variables(*, several: bool) -> list[Variable]:
    leading = ("model", "prompt") if several else ("prompt",)
    per_query, near = (*leading, *_PER_QUERY), (*leading, *_PER_QUERY, "near")
    no_first = "the same without key 0, renormalised"
    recent = "attention weight on a query's own key and the two before it"
    return [
        Variable("entropy", per_query, "f4", "nat", "entropy of the attention of each query"),
        Variable("entropy_no_first", per_query, "f4", "nat", no_first),
        Variable("first_keys", near, "f4", "1", "attention weight on keys 0, 1 and 2"),
        Variable("recent_keys", near, "f4", "1", recent),
        Variable("length", ("prompt",), "i4", "1", "tokens of the prompt"),
        Variable("has_bos", ("prompt",), "i4", "1", "whether the first token is the begin token"),
        Variable("category", ("prompt",), "str", "1", "category of the prompt"),
        Variable("tokens", ("prompt", "query"), "i4", "1", "token ids"),
    ]


def _write(folder: RunFolder, doc: dict[str, Any], tables: Mapping[str, Entropies]) -> None:
    path = folder.path
    if doc["raw"]["difference"] is not None:
        write_csv(path / "comparison.csv", compare.rows(doc))
    if doc["candidates"] is not None:
        write_csv(path / "candidates.csv", doc["candidates"]["rows"])
    with plain_errors(path / FIGURES):
        doc["figures"] = role_figures(doc, tables, path / FIGURES)
    doc["sentence"] = report.sentence(doc)
    write_atomic(path / PAGE, report.html(doc, doc["figures"]).encode())
    write_atomic(path / "summary.md", report.markdown(doc).encode())
    folder.write_json(SUMMARY, doc)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of equal keys; a number that does not exist is an empty field.

    Raises:
        StoreError: the file cannot be written.
    """
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: "" if v is None or v != v else v for k, v in row.items()})
    write_atomic(path, text.getvalue().encode())
