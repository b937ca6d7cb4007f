"""What a training leaves behind beside the components: log, measures, figures and the page.

No model is needed here, so that ``mlxroles report`` makes figures and page again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxroles.errors import StoreError
from mlxroles.plots.components.training import training_figures
from mlxroles.report.components.training import html
from mlxroles.store.files import plain_errors, shown, write_atomic
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.role_results import write_csv

KIND = "components-train"
LOG, TABLE, FIGURES, PAGE = "log.csv", "learned.csv", "figures", "report.html"
TERMS = ("faithfulness", "minimality", "stochastic", "layerwise", "subset", "masked", "adversarial")
COLUMNS = ("step", "loss", *TERMS, "active")
"""Of the log."""

Doc = dict[str, Any]


def write(folder: RunFolder, doc: Doc) -> None:
    """Writes log, measures and figure; the summary last.

    Raises:
        StoreError: something cannot be written.
    """
    doc["figures"] = {}
    if doc["log"]:
        write_csv(folder.path / LOG, doc["log"])
        _page(folder.path, doc)
    if doc["learned"]:
        write_csv(folder.path / TABLE, _rows(doc["learned"]))
    folder.write_json(SUMMARY, doc)


def again(folder: RunFolder, doc: Doc) -> Path:
    """Figures and page of a stored run, made again; returns the page.

    Raises:
        StoreError: there is nothing to show yet, or something cannot be written.
    """
    if not doc.get("log"):
        raise StoreError(f"{shown(folder.path)} holds no finished part of a training to report on")
    _page(folder.path, doc)
    return folder.path / PAGE


def _page(folder: Path, doc: Doc) -> None:
    with plain_errors(folder / FIGURES):
        doc["figures"] = training_figures(doc, folder / FIGURES)
    write_atomic(folder / PAGE, html(doc, doc["figures"]).encode())


def _rows(learned: Mapping[str, Any]) -> list[Doc]:
    """Every number in long form."""
    rows = [{"map": "", "measure": n, **value} for n, value in learned["measures"].items()]
    for key, own in learned["maps"].items():
        rows.append({"map": key, "measure": "active", **own["active"]})
        for name in ("components", "alive", "missing"):
            rows.append({"map": key, "measure": name, "mean": own[name], "low": None, "high": None})
    return rows
