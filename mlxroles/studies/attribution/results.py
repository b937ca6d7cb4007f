"""Figures and reports of an attribution run, from its document and its packed file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.plots.attribution import attribution_figures
from mlxroles.report import attribution as report
from mlxroles.report.attribution.rows import directions
from mlxroles.report.attribution.wording import verdict
from mlxroles.store.files import plain_errors, write_atomic
from mlxroles.store.reader import read

Numbers = NDArray[np.float64]

PACKED, FIGURES = "run.h5", "figures"


def write(path: Path, doc: dict[str, Any]) -> None:
    """Writes figures, page and summary of a run, and adds the finding to the document.

    Args:
        path: The run folder; its packed file is there.
        doc: The document; nothing is written where it holds no estimate.

    Raises:
        StoreError: something cannot be read or written.
    """
    doc["summary"] = {"sentence": report.sentence(doc), "certainty": verdict(doc)}
    doc["figures"] = {}
    if not directions(doc):
        return
    with plain_errors(path / FIGURES):
        doc["figures"] = attribution_figures(doc, maps(path, doc), path / FIGURES)
    write_atomic(path / "report.html", report.html(doc, doc["figures"]).encode())
    write_atomic(path / "summary.md", report.markdown(doc).encode())


def maps(path: Path, doc: Mapping[str, Any]) -> dict[str, dict[str, Numbers]]:
    """Direction -> site -> means over prompts [tested layer, position].

    Empty where prompts differ in length: their positions are not the same places.
    """
    lengths = {prompt["n_tokens"] for prompt in doc["prompts"]}
    if len(lengths) > 1:
        return {}
    length = lengths.pop()
    order = [str(name) for name in read(path / PACKED, "direction")]
    found: dict[str, dict[str, Numbers]] = {}
    for direction in directions(doc):
        at = order.index(direction)
        found[direction] = {
            site: _mean(read(path / PACKED, site, (slice(None), at))[..., :length])
            for site, entry in doc[direction]["sites"].items()
            if "head" not in entry["axes"]
        }
    return found


def _mean(values: np.ndarray) -> Numbers:
    """The mean over prompts [prompt, layer, position] of those that are stored."""
    stored = values[~np.isnan(values).all(axis=(1, 2))].astype(np.float64)
    return stored.mean(axis=0) if len(stored) else np.full(values.shape[1:], np.nan)
