"""Files of an injection run but for its cells: document, table, figures, page. No model is known.

What the document does not hold is read from the run folder, so that ``mlxroles report`` draws the
same again.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxroles.plots.inject import inject_figures
from mlxroles.report import inject as report
from mlxroles.store.files import plain_errors, write_atomic, write_json
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.inject.packed import maps

FIGURES, PAGE, EDITS = "figures", "report.html", "strongest.toml"


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


def edit_file(path: Path, doc: Mapping[str, Any]) -> str:
    """The strongest addition as a file of edits, for ``generate --edits`` and ``lens --edits``.

    Of a pair the instruct model's: the spot that the finding names, or of several vectors the one
    with the most evidence. Empty where nothing was added.
    """
    side = "instruct" if "instruct" in doc["models"] else next(iter(doc["models"]), "")
    found = [
        test
        for test in doc["tests"]
        if test["model"] == side
        and test["vector"] in doc["vectors"]
        and not isinstance(test["scale"], str)
    ]
    if not found or doc["mode"] == "localise":
        return ""
    at = max(found, key=report.rank)
    # beside this file, so that the folder can be moved
    ref = f"{vector_file(side, doc['models'])}#{at['vector']}"
    lines = [
        f"# The strongest addition of run {doc['run_id']}: mlxroles generate --edits THIS_FILE",
        *_unlike(doc),
        "[[edit]]",
        'site = "resid_post"',
        f"layers = {at['layer']}",
        'op = "add"',
        f"vector = {json.dumps(ref)}",
        f"scale = {float(at['scale'])!r}",
    ]
    where = doc["positions"].strip("'")
    if where == "last" or re.fullmatch(r"[0-9]+(-[0-9]+)?", where):
        lines.append(f'positions = "{where}"')
    return "\n".join(lines) + "\n"


def _unlike(doc: Mapping[str, Any]) -> list[str]:
    """What the edit does otherwise than the run did."""
    where = report.where(doc)
    if doc["positions"] == "last" or re.fullmatch(r"'[0-9]+(-[0-9]+)?'", doc["positions"]):
        return []
    return [
        f"# The run added it to {where} of each prompt.",
        "# Here it is added to every position, also of what is generated: write",
        '# positions = "4-9" for a part of your own prompt.',
    ]
