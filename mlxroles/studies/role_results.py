"""Everything that is made of a stored entropy run: packed file, statistics, figures, report.

No model is needed: the same is done at the end of a run and again, with other settings, whenever
someone asks for it.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlxroles import __version__, report
from mlxroles.errors import StoreError
from mlxroles.events import RunFinished
from mlxroles.plots import role_figures
from mlxroles.roles import compare, contrast, document, sources
from mlxroles.roles.stored import RUN_FILE, is_readable
from mlxroles.roles.table import NEAR, Entropies, Reading
from mlxroles.store.files import make_folder, plain_errors, shown, write_atomic, write_json
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.store.summary import SUMMARY, notes_of, read_summary
from mlxroles.text import slug
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/entropy/1"
FIGURES = "figures"
PAGE = "report.html"
READINGS = "readings"
"""Folder, within a run, of reports that read it otherwise."""
_PER_QUERY = ("layer", "head", "query")
SINK = 1e-3
"""Weight that a first query may lack without a sink, by rounding."""


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
    where: Path | None = None,
    again: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes everything derived from a run's cells; returns the document of ``summary.json``.

    A run that lacks cells gets its packed file and a document without statistics. What is there
    already, made with the same settings, is left as it is.

    Args:
        folder: The run, open for writing.
        analysis: How to read it.
        notes: What this process has to say.
        finished: How the run ended, where it ran just now.
        where: The folder that document, tables, figures and page go to, if not the run's own.
        again: Whether what is there already is made anew.
        tell: Told in words what is being done.

    Raises:
        StoreError: something cannot be written.
        SpecError: the contrast names categories that the run does not have.
    """
    doc = _about(folder, analysis, notes, finished)
    place = where or folder.path
    stored = _stored(place, doc)
    if stored is not None and _has_files(stored, doc, place) and not again:
        return stored
    _pack_once(folder, doc)
    with plain_errors(place):
        make_folder(place)
    write_json(place / SUMMARY, doc)
    if doc["missing_cells"]:
        return doc
    tell("statistics")
    tables = sources.load(str(folder.path)).tables
    found, heads = statistics(tables, analysis, doc)
    doc |= found
    tell("figures and report")
    _write(place, doc, tables, heads)
    return doc


def place_of(path: Path, analysis: Analysis) -> Path:
    """Where a report with these settings goes: the run's folder, or one for another reading of it.

    The run's own report stays what the run's command made it.
    """
    stored = read_summary(path)
    if stored.get("schema") != SCHEMA or "raw" not in stored:
        return path
    if stored.get("analysis") == analysis.document():
        return path
    reading = analysis.reading
    parts = [f"queries-{reading.queries}", f"keys-{reading.keys}"]
    parts += [slug(analysis.contrast)] if analysis.contrast else []
    parts += [f"seed-{analysis.seed}"] if analysis.seed else []
    return path / READINGS / "_".join(parts)


def read(path: Path, analysis: Analysis) -> dict[str, Any]:
    """The document of a stored run, worked out anew where it was read otherwise; writes nothing.

    What is worked out anew lacks the statistics of single heads.

    Raises:
        StoreError: the folder is no complete entropy run, or cannot be read.
        SpecError: the contrast names categories that the run does not have.
    """
    doc = _about(RunFolder.read(path), analysis, (), None)
    for place in (path, place_of(path, analysis)):
        stored = _stored(place, doc)
        if stored is not None:
            return stored | {"run": doc["run"], "file": doc["file"]}
    found, _ = statistics(sources.load(str(path)).tables, analysis, doc, heads=False)
    return doc | found


def statistics(
    tables: Mapping[str, Entropies],
    analysis: Analysis,
    doc: Mapping[str, Any],
    *,
    heads: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers of the document, with its notes, and a row per head.

    Args:
        tables: The entropies by model.
        analysis: How to read them.
        doc: What is known of the run; may be empty.
        heads: Whether single heads are tested and ranked as well.
    """
    first = next(iter(tables.values()))
    chosen, notes = contrast.contrast_of(first.categories, analysis.contrast)
    found, by_head = document.build_with_heads(
        tables,
        reading=analysis.reading,
        contrast=chosen,
        seed=analysis.seed,
        n_resamples=analysis.n_resamples,
        n_permutations=analysis.n_permutations,
        heads=heads,
    )
    notes = [*doc.get("run_notes", ()), *notes, *found["notes"]]
    if analysis.reading.keys == "no-bos" and not first.has_bos.any():
        notes.append("no prompt has a begin token, so --keys no-bos changes nothing")
    about = {
        "notes": list(dict.fromkeys(notes)),
        "prompts": doc.get("prompts") or found["prompts"],
        "has_sinks": any(_has_sinks(table) for table in tables.values()),
    }
    return found | about, by_head.rows()


def _has_sinks(table: Entropies) -> bool:
    """Whether weight is missing where a query sees a single key: a sink that is no key took it."""
    alone = table.first_keys[:, :, :, 0, 0]
    return bool((alone < 1 - SINK).any())


def _about(
    folder: RunFolder, analysis: Analysis, notes: Iterable[str], finished: RunFinished | None
) -> dict[str, Any]:
    about: Any = folder.manifest.get("about")
    if not isinstance(about, dict) or "prompts" not in about:
        raise StoreError(f"{shown(folder.path)} is not a run of `mlxroles entropy`")
    records = folder.records().values()
    expected = len(about["models"]) * len(about["prompts"])
    run_notes = notes_of(folder, notes, "run_notes")
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
        "run_notes": run_notes,
        "notes": run_notes,
        "device": folder.manifest.get("device"),
        "timestamp": now(),
        "versions": folder.manifest.get("versions") or versions(),
    }


def _stored(place: Path, doc: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that an earlier process wrote with the same settings."""
    stored = read_summary(place)
    same = all(stored.get(key) == doc[key] for key in ("schema", "run_id", "analysis"))
    return stored if same and stored.get("missing_cells") == 0 and "raw" in stored else None


def _has_files(stored: Mapping[str, Any], doc: Mapping[str, Any], place: Path) -> bool:
    """Whether everything derived is still there, in the folder that the document names."""
    derived = [*stored.get("tables", {}).values(), *stored.get("figures", {}).values()]
    files = [Path(doc["file"]), place / PAGE, *map(Path, derived)]
    return stored["run"] == doc["run"] and all(file.exists() for file in files)


def _pack_once(folder: RunFolder, doc: Mapping[str, Any]) -> None:
    """Packs the run unless an earlier process has packed all of it."""
    earlier = read_summary(folder.path)
    whole = earlier.get("missing_cells") == 0 and earlier.get("run_id") == doc["run_id"]
    if whole and is_readable(Path(doc["file"])):
        return
    if any(record.status == "ok" for record in folder.records().values()):
        _pack(folder, doc)


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
        "near": NEAR,
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


def _write(
    place: Path,
    doc: dict[str, Any],
    tables: Mapping[str, Entropies],
    heads: Sequence[Mapping[str, Any]],
) -> None:
    rows = {"heads": heads}
    if doc["raw"]["difference"] is not None:
        rows["comparison"] = compare.rows(doc)
    if doc["candidates"] is not None:
        rows["candidates"] = doc["candidates"]["rows"]
    doc["tables"] = {name: str(place / f"{name}.csv") for name, some in rows.items() if some}
    for name, path in doc["tables"].items():
        write_csv(Path(path), rows[name])
    figures = place / FIGURES
    with plain_errors(figures):
        doc["figures"] = role_figures(doc, tables, figures)
        _remove_others(figures, doc["figures"].values())
    doc["sentence"] = report.sentence(doc)
    write_atomic(place / PAGE, report.html(doc, doc["figures"]).encode())
    write_atomic(place / "summary.md", report.markdown(doc).encode())
    write_json(place / SUMMARY, doc)


def _remove_others(figures: Path, kept: Iterable[str]) -> None:
    """Removes figures that an earlier reading left behind."""
    names = {Path(path).name for path in kept}
    for path in figures.glob("*"):
        if path.suffix in (".png", ".svg") and path.name not in names:
            path.unlink()


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
