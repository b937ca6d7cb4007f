"""The report of an injection run as one HTML file."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.inject import rows
from mlxroles.report.inject.wording import lines
from mlxroles.report.rows import Grid
from mlxroles.text import safe_text

_CAPTIONS = {
    "map": "Every layer and strength. A dot marks p up to .05 against random vectors, spot by "
    "spot; the frame marks the spot farthest from them. A cross: the controls are no longer "
    "answered there, and nothing is tested.",
    "dose": "The strongest layer at every strength. Band: the range of the random vectors.",
    "questions": "Every question at the strongest spot: without injection on the x axis, with it "
    "on the y axis. On the dashed line nothing moves; grey bars are the range of random vectors.",
    "prompts": "Every prompt at the strongest spots, without and with the vector; bars are the "
    "range of the random vectors.",
    "draws": "The vector beside random vectors of its length at the strongest spot.",
    "attention": "Share of attention from the deciding query to the injected positions, per head: "
    "without the vector, with it, and the difference.",
    "picks": "Trials at the strongest spot: where the injection was, and the place named.",
}
_MOST_ITEMS = 200


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"Injection: {safe_text(str(doc.get('display')), limit=80)}"
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    heads = rows.heads_grid(doc)
    findings = "".join(f'<p class="finding">{escape(line)}</p>\n' for line in lines(doc))
    parts = [
        f"<h1>{escape(title)}</h1>",
        findings,
        *(shell.figure(path, _caption(name)) for name, path in drawn.items()),
        shell.table(rows.tests_grid(doc)),
        shell.note(rows.legend(doc)),
        shell.table(rows.clean_grid(doc)),
        *([] if heads is None else [shell.table(heads)]),
        *(shell.table(_mapped(doc, grid), is_folded=True) for grid in rows.map_grids(doc)),
        *(shell.table(grid, is_folded=True) for grid in _items(doc)),
        *(shell.note(safe_text(text)) for text in doc.get("notes") or ()),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(title, parts)


def _mapped(doc: Mapping[str, Any], grid: Grid) -> Grid:
    return grid._replace(title=f"{rows.mapped(doc)}: {grid.title}")


def _caption(name: str) -> str:
    return next((text for key, text in _CAPTIONS.items() if name.startswith(key)), name)


def _items(doc: Mapping[str, Any]) -> list[Grid]:
    """Every prompt at the strongest spot, one table per test."""
    found = []
    for test in doc["tests"]:
        if not test.get("items"):
            continue
        body = []
        for item in test["items"][:_MOST_ITEMS]:
            values = [
                rows.number(item[key], "+.3f")
                for key in ("clean", "injected", "random_low", "random_high")
            ]
            shown = safe_text(item["text"] or item["id"], limit=100)
            body.append([*values, item["role"], shown])
        name = safe_text(test["vector"], limit=40)
        where = f"layer {test['layer']}, scale {test['scale']}"
        head = ["without", "with", "random, least", "random, largest", "asked", "question"]
        found.append(Grid(f"{test['model']}, {name}, {where}: every prompt", head, body))
    return found
