"""Tables, packed file, figures and page of a study of heads, from what is stored: no model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles.errors import StoreError
from mlxroles.store.files import plain_errors, shown, write_atomic, write_json
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.heads.axes import axes_of
from mlxroles.studies.role_results import write_csv

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES, PAGE = "figures", "report.html"
TABLE, CAUSAL = "heads.csv", "causal.csv"
FILES = (PAGE, TABLE, CAUSAL, SUMMARY, "run.h5", FIGURES)
DIFFERENCE = "instruct - base"
"""What the rows of a difference are called in the table."""


def write(folder: RunFolder, doc: dict[str, Any]) -> None:
    """Writes everything that follows from what a run has stored; the document last.

    Raises:
        StoreError: something cannot be read or written.
    """
    if doc["models"]:
        from mlxroles.plots.heads import head_figures
        from mlxroles.report import heads as report

        write_csv(folder.path / TABLE, list(rows(doc)))
        if doc["causal"]:
            write_csv(folder.path / CAUSAL, list(causal_rows(doc)))
        pack_run(folder)
        with plain_errors(folder.path / FIGURES):
            doc["figures"] = head_figures(doc, stored_patterns(folder), folder.path / FIGURES)
        write_atomic(folder.path / PAGE, report.html(doc, doc["figures"]).encode())
    write_json(folder.path / SUMMARY, doc, indent=None)


def tables(doc: dict[str, Any]) -> "RenderableType":
    """What ends the run in a terminal."""
    from mlxroles.dashboard.heads_tables import heads_tables

    return heads_tables(doc)


def again(folder: RunFolder, doc: dict[str, Any]) -> Path:
    """Tables, figures and page of a stored run, made again; returns the page.

    Raises:
        StoreError: nothing was scored yet, or something cannot be read or written.
    """
    if not doc.get("models"):
        raise StoreError(
            f"{shown(folder.path)} holds no scores; run the command again that made it"
        )
    write(folder, doc)
    return folder.path / PAGE


def stored_patterns(folder: RunFolder) -> dict[str, dict[str, np.ndarray]]:
    """Model -> head -> its example pattern [query, key].

    Raises:
        StoreError: they cannot be read.
    """
    return {
        str(record.coords["model"]): {
            name.removeprefix("pattern_"): array
            for name, array in folder.arrays(record.id).items()
            if name.startswith("pattern_")
        }
        for record in _records(folder)
        if record.coords.get("what") == "scores" and record.arrays is not None
    }


# --- tables ---------------------------------------------------------------------------------------


def rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for every score of every head, and for the differences of a pair."""
    for model, of in doc["models"].items():
        for name, found in of["detectors"].items():
            for layer, line in enumerate(found["score"]):
                for head, score in enumerate(line):
                    if score is not None:
                        yield _row(model, name, of, found, (layer, head))
    for name, found in (doc.get("difference") or {}).items():
        for layer, line in enumerate(found["value"]):
            for head, value in enumerate(line):
                if value is not None:
                    yield _difference(name, found, (layer, head))


def _row(
    model: str, name: str, of: Mapping[str, Any], found: Mapping[str, Any], at: tuple[int, int]
) -> dict[str, Any]:
    layer, head = at
    return {
        "model": model,
        "detector": name,
        "layer": layer,
        "head": head,
        **{key: _at(found, key, at) for key in ("score", "low", "high", "uniform", "control")},
        "control_low": _at(found, "control_low", at),
        "control_high": _at(found, "control_high", at),
        "threshold": found["threshold"],
        "marked": int(bool(found["marked"][layer][head])),
        "class": of["classes"][layer][head],
        "q": None,
        "clear": None,
    }


def _difference(name: str, found: Mapping[str, Any], at: tuple[int, int]) -> dict[str, Any]:
    layer, head = at
    nothing = dict.fromkeys(("uniform", "control", "control_low", "control_high", "threshold"))
    return {
        "model": DIFFERENCE,
        "detector": name,
        "layer": layer,
        "head": head,
        "score": found["value"][layer][head],
        "low": _at(found, "low", at),
        "high": _at(found, "high", at),
        **nothing,
        "marked": None,
        "class": None,
        "q": _at(found, "q", at),
        "clear": int(bool(found["clear"][layer][head])),
    }


def _at(found: Mapping[str, Any], key: str, at: tuple[int, int]) -> Any:
    table = found.get(key)
    return None if table is None else table[at[0]][at[1]]


def causal_rows(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for every set of heads at zero and every measure."""
    for model, found in doc["causal"].items():
        for row in found:
            drawn = row["random"]
            yield {
                "model": model,
                "class": row["class"],
                "set": row["set"],
                "heads": " ".join(row["heads"]),
                **{key: row[key] for key in ("measure", "unit", "clean", "change", "low", "high")},
                "n_random": len(drawn),
                "random_mean": float(np.mean(drawn)) if drawn else None,
                "random_min": min(drawn, default=None),
                "random_max": max(drawn, default=None),
                "p": row["p"],
                "q": row["q"],
                "confirmed": int(row["confirmed"]),
            }


# --- run.h5 ---------------------------------------------------------------------------------------


def pack_run(folder: RunFolder) -> None:
    """Packs every array of the run; a shorter one leaves NaN at the end of its axes.

    Raises:
        StoreError: something cannot be read or written.
    """
    records = [record for record in _records(folder) if record.arrays is not None]
    found = {record.id: folder.arrays(record.id) for record in records}
    variables: dict[str, Variable] = {}
    coords: dict[str, Sequence[str | int] | int] = {}
    for record in records:
        placed = [axis for axis in record.coords if axis != "what"]
        for axis in placed:
            known = coords.setdefault(axis, [])
            assert isinstance(known, list)
            known += [v for v in [str(record.coords[axis])] if v not in known]
        for name, array in found[record.id].items():
            own = axes_of(name, array.ndim)
            variables.setdefault(name, Variable(name, (*placed, *own), "f4"))
            for axis, size in zip(own, array.shape, strict=True):
                largest = coords.setdefault(axis, 0)
                assert isinstance(largest, int)
                coords[axis] = max(largest, size)
    pack(folder, list(variables.values()), coords, records=records)


def _records(folder: RunFolder) -> list[Record]:
    return [record for record in folder.records().values() if record.status == "ok"]
