"""Figures, page and table of a test at single positions, from its document."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxroles.plots.ablate.position_figures import position_figures
from mlxroles.report.ablate import compare_page, position_page
from mlxroles.store.files import plain_errors, write_atomic, write_json
from mlxroles.store.summary import SUMMARY
from mlxroles.text import guarded

FIGURES, PAGE = "figures", "report.html"
TESTS = ("redundancy", "offsets", "patterns", "compare")


def write(path: Path, doc: dict[str, Any]) -> list[str]:
    """Writes figures, page and table of a run, and its summary again; what it wrote, by name.

    Raises:
        StoreError: something cannot be read or written.
    """
    with plain_errors(path / FIGURES):
        doc["figures"] = position_figures(doc, path / FIGURES)
    page = compare_page if doc["test"] == "compare" else position_page
    write_atomic(path / PAGE, page.html(doc, doc["figures"]).encode())
    table = f"{doc['test']}.csv"
    write_atomic(path / table, _csv(doc).encode())
    write_json(path / SUMMARY, doc)
    return [PAGE, table, SUMMARY]


def _csv(doc: Mapping[str, Any]) -> str:
    """The rows in long form: one number per line, with the interval where it has one."""
    lines = [dict(line) for line in _lines(doc)]
    places = list(dict.fromkeys(name for line in lines for name in line if name not in _NUMBERS))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*places, *_NUMBERS], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


_NUMBERS = ("measure", "value", "low", "high", "n")
_PLACES = ("model", "comparison", "layer", "head", "offset", "prompt", "position", "condition")


def _lines(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number of the rows with where it belongs."""
    for key in ("rows", "remains", "heads_alone", "shifts", "means"):
        for row in doc.get(key) or []:
            place = {name: _text(row[name]) for name in _PLACES if name in row}
            if "prompt" in row:
                place["prompt"] = guarded(str(doc["prompts"][row["prompt"]]["id"]))
            for name, value in row.items():
                if name not in _PLACES:
                    yield from _measured(place, name, value, row)


def _measured(
    place: Mapping[str, Any], name: str, value: Any, row: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One measure, with those that it holds."""
    if isinstance(value, Mapping) and "mean" in value and "ci" in value:
        low, high = value["ci"]
        numbers = {"value": value["mean"], "low": low, "high": high, "n": value["n"]}
        yield {**place, "measure": name, **numbers}
    elif isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _measured(place, f"{name}.{inner}", one, {})
    elif isinstance(value, int | float) and name != "n":
        low, high = row.get("ci") or ("", "") if name in ("share", "moved", "mean") else ("", "")
        yield {
            **place,
            "measure": name,
            "value": value,
            "low": low,
            "high": high,
            "n": row.get("n", ""),
        }


def _text(value: Any) -> Any:
    return guarded(value) if isinstance(value, str) else value
