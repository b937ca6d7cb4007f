"""Files of an injection run but for its cells: document, table, figures, page. No model is known.

What the document does not hold is read from the run folder, so that ``mlxroles report`` draws the
same again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.plots.inject import inject_figures
from mlxroles.report import inject as report
from mlxroles.store.files import plain_errors, write_atomic, write_json
from mlxroles.store.summary import SUMMARY

FIGURES, PAGE, ATTENTION, EDITS = "figures", "report.html", "attention.npz", "strongest.toml"


def vector_file(side: str, sides: Iterable[str]) -> str:
    """Name of the file with a model's vectors: ``vectors.h5``, the base of a pair apart."""
    return "vectors_base.h5" if side == "base" and len([*sides]) > 1 else "vectors.h5"


def write(path: Path, doc: dict[str, Any]) -> None:
    """Writes figures, page and summary of a run, and adds the finding to the document.

    Raises:
        StoreError: something cannot be read or written.
    """
    doc["sentence"] = report.sentence(doc)
    doc["figures"] = {}
    if doc["tests"]:
        with plain_errors(path / FIGURES):
            doc["figures"] = inject_figures(doc, maps(path), path / FIGURES)
        text = edit_file(path, doc)
        if text:
            write_atomic(path / EDITS, text.encode())
        write_atomic(path / PAGE, report.html(doc, doc["figures"]).encode())
    write_json(path / SUMMARY, doc)


def maps(path: Path) -> dict[str, np.ndarray]:
    """The attention maps of a run by ``MODEL/PROMPT/clean`` and ``.../draws``; empty without."""
    file = path / ATTENTION
    if not file.is_file():
        return {}
    with plain_errors(file), np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def edit_file(path: Path, doc: Mapping[str, Any]) -> str:
    """The strongest addition as a file of edits, for ``generate --edits`` and ``lens --edits``.

    Of a pair the instruct model's. Empty where nothing was added.
    """
    side = "instruct" if "instruct" in doc["models"] else next(iter(doc["models"]), "")
    at = (doc.get("attention") or {}).get(side)
    if not at or not isinstance(at["scale"], (int, float)):
        return ""
    ref = f"{(path / vector_file(side, doc['models'])).resolve()}#{at['vector']}"
    positions = doc["positions"] if doc["positions"] in ("all", "last") else "all"
    lines = [
        f"# The strongest addition of run {doc['run_id']}: mlxroles generate --edits THIS_FILE",
        "[[edit]]",
        'site = "resid_post"',
        f"layers = {at['layer']}",
        'op = "add"',
        f"vector = {json.dumps(ref)}",
        f"scale = {float(at['scale'])!r}",
    ]
    # without positions the vector stays in place while the answer is written
    lines += [f'positions = "{positions}"'] if positions != "all" else []
    return "\n".join(lines) + "\n"
