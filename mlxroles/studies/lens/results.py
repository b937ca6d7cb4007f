"""What a lens run leaves behind: CSV, packed arrays, figures and the page, from what is stored.

No model is needed here, so that ``mlxroles report`` makes all of it again.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.plots.lens import gain_figures, lens_figures
from mlxroles.report import direct, shell
from mlxroles.report import lens as report
from mlxroles.report.lens.grids import TokenGrid, token_grid
from mlxroles.report.lens.rows import parts_by_name
from mlxroles.store.files import plain_errors, write_atomic
from mlxroles.store.folder import RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.schema import Variable
from mlxroles.store.summary import SUMMARY
from mlxroles.text import show_token

FIGURES, PAGE, TABLE = "figures", "report.html", "lens.csv"
KINDS = ("lens", "lens-fit")
"""Kinds of runs, as in their identity, whose results are written here."""

_CELL = ("model", "variant", "prompt", "run", "lens")
_GRID = (*_CELL, "layer", "slot")
VARIABLES = (
    Variable("p_first_token", (*_CELL, "layer"), long_name="of the followed string's first token"),
    Variable("log_odds", (*_CELL, "layer"), unit="nat", long_name="of that token"),
    Variable("logit_diff", (*_CELL, "layer"), long_name="of that token to the best other one"),
    Variable("rank", (*_CELL, "layer"), "i4", long_name="tokens with a larger logit"),
    Variable("position", (*_CELL, "slot"), "i4", long_name="position that is read"),
    Variable("token", (*_CELL, "slot"), "i4", long_name="id of the prompt there"),
    Variable("end_ids", (*_CELL, "slot"), "i4", long_name="id of the run's own answer"),
    Variable("top_ids", (*_GRID, "place"), "i4", long_name="likeliest ids"),
    Variable("top_p", (*_GRID, "place"), long_name="their probabilities"),
    Variable("lens_entropy", _GRID, unit="nat", long_name="entropy of the reading"),
    Variable("kl", _GRID, unit="nat", long_name="KL of the run's own answer to the reading"),
    Variable("end_rank", _GRID, "i4", long_name="rank of the run's own answer"),
    Variable("next_log_prob", _GRID, unit="nat", long_name="of the token that follows"),
    Variable("headline_log_prob", _GRID, unit="nat", long_name="of the followed string"),
    Variable("headline_rank", _GRID, "i4", long_name="rank of the followed string"),
)
COLUMNS = (
    "model",
    "variant",
    "prompt",
    "run",
    "lens",
    "layer",
    "position",
    "p_first_token",
    "log_odds",
    "logit_diff",
    "contrast",
    "rank",
    "entropy",
    "kl",
    "end_rank",
    "next_log_prob",
    "top_token",
    "top_p",
)


def write(folder: RunFolder, doc: dict[str, Any]) -> None:
    """Writes everything that follows from what a run has stored; the document last.

    Raises:
        StoreError: something cannot be read or written.
    """
    doc["sentence"] = report.sentence(doc)
    doc["figures"] = {}
    if doc["rows"]:
        found = arrays_of(folder, doc)
        grids = grids_of(doc, found)
        write_atomic(folder.path / TABLE, _csv(doc, found).encode())
        _pack(folder, doc)
        with plain_errors(folder.path / FIGURES):
            doc["figures"] = lens_figures(doc, grids, folder.path / FIGURES)
        page = report.html(doc, grids, doc["figures"], _part_tables(doc))
        write_atomic(folder.path / PAGE, page.encode())
    folder.write_json(SUMMARY, doc)


def write_fit(folder: RunFolder, doc: dict[str, Any]) -> None:
    """The same for a fitted lens.

    Raises:
        StoreError: something cannot be written.
    """
    doc["sentence"] = report.sentence(doc)
    doc["figures"] = {}
    if doc["rows"]:
        write_atomic(folder.path / TABLE, _gain_csv(doc).encode())
        with plain_errors(folder.path / FIGURES):
            doc["figures"] = gain_figures(doc, folder.path / FIGURES)
        write_atomic(folder.path / PAGE, report.html(doc, [], doc["figures"]).encode())
    folder.write_json(SUMMARY, doc)


def again(folder: RunFolder, doc: dict[str, Any]) -> Path:
    """Figures and page of a stored run, made again; returns the page.

    Raises:
        StoreError: something cannot be read or written.
    """
    is_fit = str(doc["schema"]).startswith("mlxroles/lens-fit/")
    (write_fit if is_fit else write)(folder, doc)
    return folder.path / PAGE


def arrays_of(folder: RunFolder, doc: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """The arrays of every row of the document, in its order."""
    order = {str(p["id"]): n for n, p in enumerate(doc["prompts"])}
    by_place = {
        tuple(record.coords[name] for name in _CELL): record.id
        for record in folder.records().values()
        if record.status == "ok"
    }
    return [
        folder.arrays(
            by_place[row["model"], row["variant"], order[row["prompt"]], row["run"], row["lens"]]
        )
        for row in doc["rows"]
    ]


def stored_grids(doc: Mapping[str, Any]) -> list[TokenGrid]:
    """The token grids of a document's run folder; none of a fit.

    Raises:
        StoreError: they cannot be read.
    """
    if doc.get("schema") != "mlxroles/lens/1" or not doc["rows"]:
        return []
    folder = RunFolder.read(Path(str(doc["run"])))
    return grids_of(doc, arrays_of(folder, doc))


def grids_of(doc: Mapping[str, Any], found: list[dict[str, np.ndarray]]) -> list[TokenGrid]:
    """The token grid of every row."""
    rows = zip(doc["rows"], found, strict=True)
    return [token_grid(doc, row, arrays) for row, arrays in rows]


def _part_tables(doc: Mapping[str, Any]) -> list[str]:
    """Tables of direct attribution, as HTML."""
    found = []
    for name, entry in parts_by_name(doc).items():
        title = f"Direct attribution, {name}: {direct.subject(entry)}; {direct.sums(entry)}"
        found.append(shell.table(direct.parts_grid(entry, count=15, title=title)))
    if found:
        found.append(shell.note(direct.how_to_read(doc["parts"][0])))
    return found


def _csv(doc: Mapping[str, Any], found: list[dict[str, np.ndarray]]) -> str:
    """A line per row and layer: the numbers at the last position that is read."""
    texts = doc.get("texts") or {}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, arrays in zip(doc["rows"], found, strict=True):
        for at, layer in enumerate(doc["layers"]):
            top = int(arrays["top_ids"][at, -1, 0])
            writer.writerow(
                [
                    *(row[name] for name in _CELL),
                    layer,
                    int(arrays["position"][-1]),
                    *(_number(arrays[name][at]) for name in COLUMNS[7:10]),
                    _number(arrays["contrast"][at]) if "contrast" in arrays else "",
                    int(arrays["rank"][at]),
                    *(_number(arrays[n][at, -1]) for n in ("lens_entropy", "kl")),
                    int(arrays["end_rank"][at, -1]),
                    _number(arrays["next_log_prob"][at, -1]),
                    show_token(texts.get(str(top), top)),
                    _number(arrays["top_p"][at, -1, 0]),
                ]
            )
    return out.getvalue()


def _gain_csv(doc: Mapping[str, Any]) -> str:
    """A line per model and layer of a fitted lens."""
    names = ("kl_plain", "kl_tuned", "kl_constant", "gain", "loss_plain", "loss_tuned", "loss_gain")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{name}_{end}" for name in ("gain", "loss_gain") for end in ("low", "high")]
    writer.writerow(["model", "layer", *names, *ends, "best_step"])
    for row in doc["rows"]:
        bounds = [*row["gain_ci"], *row["loss_gain_ci"]]
        writer.writerow(
            [row["model"], row["layer"], *(_number(row[n]) for n in names)]
            + [_number(b) for b in bounds]
            + [row["best_step"]]
        )
    return out.getvalue()


def _number(value: Any) -> str:
    return "" if value is None or np.isnan(value) else f"{float(value):.8g}"


def _pack(folder: RunFolder, doc: Mapping[str, Any]) -> None:
    """``run.h5``: arrays of all prompts; ``slot`` n is the n-th position read of a prompt."""
    records = [
        record
        for record in folder.records().values()
        if record.status == "ok" and record.coords.get("lens") in ("plain", "tuned")
    ]
    found = [folder.arrays(record.id) for record in records]
    coords = {
        "model": doc["models"],
        "variant": doc["variants"],
        "prompt": list(range(len(doc["prompts"]))),
        "run": sorted({str(r.coords["run"]) for r in records}),
        "lens": sorted({str(r.coords["lens"]) for r in records}),
        "layer": doc["layers"],
        "slot": max(len(a["position"]) for a in found),
        "place": max(a["top_ids"].shape[-1] for a in found),
    }
    pack(folder, VARIABLES, coords, records=records)
