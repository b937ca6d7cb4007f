"""The report of a stored run, of any kind, made again from what the run folder holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxroles import report
from mlxroles.errors import StoreError
from mlxroles.plots import family_figures, patch_figures
from mlxroles.roles import sources
from mlxroles.roles.correlate import Profile
from mlxroles.store.files import make_folder, plain_errors, shown, write_atomic, write_json
from mlxroles.store.folder import RunFolder
from mlxroles.store.manifest import MANIFEST
from mlxroles.store.summary import SUMMARY, read_summary
from mlxroles.studies.ablate import results as ablate_results
from mlxroles.studies.attribution import results as attribution_results
from mlxroles.studies.circuits import results as circuits_results
from mlxroles.studies.component_training import results as training_results
from mlxroles.studies.heads import results as heads_results
from mlxroles.studies.inject import results as inject_results
from mlxroles.studies.lens import results as lens_results
from mlxroles.studies.role_results import FIGURES, PAGE, Analysis, finish, place_of


def write_report(text: str, analysis: Analysis) -> tuple[dict[str, Any], Path]:
    """Writes figures and page of a run; returns its document and the page.

    Args:
        text: A run folder, or a family, which stands for its newest entropy run.
        analysis: How an entropy run is read.

    Raises:
        StoreError: the run cannot be read, is not complete, or has no report.
        SpecError: no run has that name.
    """
    path = Path(text)
    if not (path / MANIFEST).is_file():
        path = sources.find(text)
    with RunFolder.reopen(path) as folder:
        kind = _kind(folder)
        if kind == "entropy":
            where = place_of(path, analysis)
            doc = finish(folder, analysis, where=where, again=True)
            if doc["missing_cells"]:
                raise StoreError(
                    f"{shown(path)} lacks {doc['missing_cells']} of its cells; run the command "
                    "again that made it"
                )
            return doc, where / PAGE
        if kind == "attribution":
            doc = _summary(path)
            attribution_results.write(path, doc)
            return doc, path / PAGE
        if kind == "ablate":
            doc = _summary(path)
            ablate_results.write(path, doc)
            return doc, path / PAGE
        if kind == "inject":
            doc = _summary(path)
            inject_results.write(path, doc)
            return doc, path / PAGE
        if kind == "circuits":
            doc = _summary(path)
            return doc, circuits_results.again(folder, doc)
        if kind == "heads":
            doc = _summary(path)
            return doc, heads_results.again(folder, doc)
        if kind == training_results.KIND:
            doc = _summary(path)
            return doc, training_results.again(folder, doc)
        if kind in lens_results.KINDS:
            doc = _summary(path)
            return doc, lens_results.again(folder, doc)
        if kind != "patch":
            raise StoreError(f"{shown(path)} is a run of `{kind}`, which has no report")
        doc = _summary(path)
        with plain_errors(path / FIGURES):
            kept = (doc.get("figures") or {}).get("dashboard_svg")
            doc["figures"] = patch_figures(doc, path / FIGURES)
            doc["figures"] |= {"dashboard_svg": kept} if kept else {}
        write_atomic(path / PAGE, report.html(doc, doc["figures"]).encode())
        return doc, path / PAGE


def write_correlation(
    folder: Path, doc: Mapping[str, Any], profiles: Mapping[str, Profile]
) -> None:
    """Writes ``correlation.json`` and the figures of several families.

    Raises:
        StoreError: something cannot be written.
    """
    with plain_errors(folder):
        make_folder(folder)
        if "pairs" in doc:
            family_figures(doc, profiles, folder / FIGURES)
    write_json(folder / "correlation.json", doc)


def _kind(folder: RunFolder) -> str:
    identity: Any = folder.manifest.get("identity")
    return str(identity.get("kind")) if isinstance(identity, dict) else "something else"


def _summary(path: Path) -> dict[str, Any]:
    doc = read_summary(path)
    if not doc.get("schema"):
        raise StoreError(
            f"{shown(path / SUMMARY)} is missing or damaged; run the command again that made the "
            "run: what is stored is not computed again"
        )
    return doc
