"""Stored cells of an injection run, and the table of every single run that is made of them."""

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxroles.store.folder import RunFolder
from mlxroles.studies.inject.items import Item
from mlxroles.studies.inject.packed import joined

if TYPE_CHECKING:
    from mlxroles.studies.inject.injection import Injection

TABLE = "inject.csv"


def cells_of(
    study: "Injection", folder: RunFolder, side: str, name: str
) -> list[tuple[Item, dict[str, np.ndarray]]]:
    """What is stored of a model and a vector, in the order of the prompts."""
    done = {record.id for record in folder.records().values() if record.status == "ok"}
    found = []
    for cell in study.cells:
        c = cell.coords
        if (c["model"], c["vector"]) == (side, name) and cell.id in done:
            found.append((study.items[c["prompt"]], folder.arrays(cell.id)))
    return found


def table(study: "Injection", folder: RunFolder) -> str:
    """One line per run as CSV: model, prompt, vector, draw, layer, scale and all measures.

    ``draw`` 0 is the vector itself. Runs without injection have no vector and no layer.
    """
    text = io.StringIO(newline="")
    names = study.asked.readout.names
    head = ["model", "prompt", "role", "about", "question", "vector", "draw", "layer", "scale"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "positions", *names, "shift"])
    for side in study.subject.sides:
        for n, name in enumerate(study.source.names):
            for item, arrays in cells_of(study, folder, side, name):
                about = [side, item.id, item.role, item.about, item.text]
                clean = arrays["unedited"]
                if n == 0:
                    writer.writerow([*about, "", "", "", 0, 0, *_numbers(clean), 0])
                for line in _lines(study, item, arrays):
                    writer.writerow([*about, name, *line])
    return text.getvalue()


def _lines(study: "Injection", item: Item, arrays: dict[str, np.ndarray]) -> Iterator[list[Any]]:
    values, clean = joined(arrays), arrays["unedited"]
    for k, spot in enumerate(study.spots(item)):
        where = [*spot.document().values()]
        count = len(item.ids) if spot.is_out else len(item.where)
        for draw in range(len(values)):
            row = values[draw, k]
            yield [draw, *where, count, *_numbers(row), f"{row[0] - clean[0]:.9g}"]


def _numbers(row: np.ndarray) -> list[str]:
    return [f"{float(x):.9g}" for x in row]
