"""Figures, page and tables of an ablation run, made from its document alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxroles.store.files import plain_errors, write_atomic, write_json
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.ablate.document import TABLE

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES, PAGE = "figures", "report.html"
EFFECTS = ("effects", "joint")
"""Tests whose document is one of effects; the others are about single positions."""


def write(path: Path, doc: dict[str, Any]) -> list[str]:
    """Writes figures and page of a run, and its summary again; the files to show, by name.

    Args:
        path: The run folder.
        doc: Its document, also when read back from JSON.

    Raises:
        StoreError: something cannot be read or written.
    """
    if doc["test"] not in EFFECTS:
        from mlxroles.studies.ablate import position_results

        return position_results.write(path, doc)
    from mlxroles.plots.ablate.effects import effect_figures
    from mlxroles.report.ablate import effect_page

    if not doc["rows"]:
        return [SUMMARY]
    with plain_errors(path / FIGURES):
        doc["figures"] = effect_figures(doc, path / FIGURES)
    write_atomic(path / PAGE, effect_page.html(doc, doc["figures"]).encode())
    write_json(path / SUMMARY, doc)
    return [PAGE, TABLE, SUMMARY]


def tables(doc: dict[str, Any]) -> "RenderableType":
    """What ends the run in a terminal."""
    if doc["test"] not in EFFECTS:
        from mlxroles.dashboard.position_tables import position_table

        return position_table(doc)
    from mlxroles.dashboard.ablate_tables import ablate_tables

    return ablate_tables(doc)
