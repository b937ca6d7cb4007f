"""Tables, packed file, figures and page of a study of circuits, from what is stored: no model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.store.files import plain_errors, write_atomic
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.circuits.axes import axes_of
from mlxroles.studies.role_results import write_csv
from mlxroles.text import show_token

FIGURES, PAGE = "figures", "report.html"
HEADS, CURVES = "heads.csv", "curves.csv"
COMPOSITION, PAIRS = "composition.csv", "pairs.csv"
FILES = (PAGE, HEADS, COMPOSITION, CURVES, PAIRS, SUMMARY, "run.h5", FIGURES)
_PLACED = ("model", "layer", "place")


def write(folder: RunFolder, doc: dict[str, Any]) -> None:
    """Writes everything that follows from what a run has stored; the document last.

    Raises:
        StoreError: something cannot be read or written.
    """
    doc["figures"] = {}
    if doc["models"]:
        from mlxroles.plots.circuits import circuit_figures
        from mlxroles.report import circuits as report

        write_csv(folder.path / HEADS, list(head_rows(doc)))
        for name, made in (
            (COMPOSITION, composition_rows),
            (CURVES, curve_rows),
            (PAIRS, pair_rows),
        ):
            rows = list(made(doc))
            if rows:
                write_csv(folder.path / name, rows)
        pack_run(folder)
        with plain_errors(folder.path / FIGURES):
            doc["figures"] = circuit_figures(doc, eigenvalues(folder), folder.path / FIGURES)
        write_atomic(folder.path / PAGE, report.html(doc, doc["figures"]).encode())
    folder.write_json(SUMMARY, doc)


def again(folder: RunFolder, doc: dict[str, Any]) -> Path:
    """Tables, figures and page of a stored run, made again; returns the page.

    Raises:
        StoreError: something cannot be read or written.
    """
    write(folder, doc)
    return folder.path / PAGE


def eigenvalues(folder: RunFolder) -> dict[str, dict[int, np.ndarray]]:
    """Model -> layer -> eigenvalues of the OV circuits [head, eigenvalue]."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for record in _records(folder):
        if record.coords["part"] == "layer":
            arrays, layer = folder.arrays(record.id), int(str(record.coords["layer"]))
            values = arrays["ov_real"] + 1j * arrays["ov_imag"]
            found.setdefault(str(record.coords["model"]), {})[layer] = values
    return found


# --- tables ---------------------------------------------------------------------------------------


def head_rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for every number of every head."""
    for model, of in doc["models"].items():
        copying = of["copying"]
        for layer, line in enumerate(copying["score"]):
            for head in range(len(line)):
                at = (layer, head)
                if line[head] is None:
                    continue
                bounds = {k: _at(copying, k, at) for k in ("low", "high", "null_low", "null_high")}
                yield _row(model, "copying", at, copying["score"], **bounds)
                yield _row(model, "copying_excess", at, copying["excess"])
                for circuit in ("ov", "qk"):
                    share = of[f"{circuit}_share"]
                    null = {f"null_{k}": share[f"random_{k}"][layer] for k in ("low", "high")}
                    yield _row(model, f"{circuit}_positive_share", at, share["score"], **null)
                yield _row(model, "best_distance", at, of["curves"]["peak_offset"])
                yield _row(model, "best_distance_peak", at, of["curves"]["peak"])
    yield from _difference_rows((doc.get("difference") or {}).get("copying") or {"value": []})


def _difference_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for layer, line in enumerate(found["value"]):
        for head, value in enumerate(line):
            if value is not None:
                at = (layer, head)
                bounds = {k: _at(found, k, at) for k in ("low", "high")}
                yield _row("instruct - base", "copying_excess", at, found["value"], **bounds)


def _row(
    model: str, measure: str, at: tuple[int, int], table: Sequence[Sequence[Any]], **known: Any
) -> dict[str, Any]:
    bounds = dict.fromkeys(("low", "high", "null_low", "null_high")) | known
    about = {"model": model, "measure": measure, "layer": at[0], "head": at[1]}
    return about | {"value": table[at[0]][at[1]]} | bounds


def curve_rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line per distance of every curve that is shown; all of them are in ``run.h5``."""
    for model, of in doc["models"].items():
        for curve in of["curves"]["shown"]:
            for n, offset in enumerate(of["curves"]["offsets"]):
                numbers = {k: curve[k][n] for k in ("mean", "low", "high", "spread", "same")}
                yield {"model": model, "head": curve["head"], "offset": offset, **numbers}


def _at(found: Mapping[str, Any], key: str, at: tuple[int, int]) -> Any:
    return found[key][at[0]][at[1]]


def composition_rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each of the strongest compositions; all of them are in ``run.h5``."""
    for model, of in doc["models"].items():
        for kind, found in of["composition"].items():
            for row in found["top"]:
                null = {name: found[name] for name in ("null_mean", "null_spread", "bound")}
                yield {"model": model, "kind": kind, **row, "clear": int(row["clear"]), **null}


def pair_rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for every pair of tokens that is listed."""
    for model, of in doc["models"].items():
        for entry in of["pairs"]:
            for end in ("top", "bottom"):
                for row in entry[end]:
                    about = {"model": model, "head": entry["head"], "circuit": entry["circuit"]}
                    texts = {k: show_token(row[k]) for k in ("left_text", "right_text")}
                    yield {**about, "end": end, **row, **texts}


# --- run.h5 ---------------------------------------------------------------------------------------


def pack_run(folder: RunFolder) -> None:
    """Packs every array of the run; a shorter one leaves NaN at the end of its axes.

    Raises:
        StoreError: something cannot be read or written.
    """
    records = _records(folder)
    variables: dict[str, Variable] = {}
    coords: dict[str, Any] = {}
    for record in records:
        placed = [axis for axis in _PLACED if axis in record.coords]
        for axis in placed:
            known = coords.setdefault(axis, [])
            known += [v for v in [record.coords[axis]] if v not in known]
        for name, array in folder.arrays(record.id).items():
            own = axes_of(name, array.ndim)
            variables.setdefault(name, Variable(name, (*placed, *own), "f4"))
            for axis, size in zip(own, array.shape, strict=True):
                coords[axis] = max(coords.get(axis, 0), size)
    pack(folder, list(variables.values()), coords, records=records)


def _records(folder: RunFolder) -> list[Record]:
    records = folder.records().values()
    return [r for r in records if r.status == "ok" and r.arrays is not None]
