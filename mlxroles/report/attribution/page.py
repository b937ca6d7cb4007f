"""Reports of an attribution document: the sentence, a Markdown summary, a self-contained page."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles import documents
from mlxroles.report import markup, rows, shell
from mlxroles.report.attribution import rows as numbers
from mlxroles.report.attribution.wording import caution, metric, sentence, verdict
from mlxroles.report.rows import Grid

__all__ = ["html", "markdown", "sentence"]

_PER_SITE, _EDGES = 8, 20
_CAPTIONS = {
    "layers": "Effect of putting in a whole layer's array: the estimates summed over positions.",
    "positions": "Effect per layer and position, one panel and one colour scale per site.",
    "heads": "Effect of each head's output z, summed over positions; names mark the largest.",
    "attention": "Effect of each head's queries, keys, values and attention pattern. Keys and "
    "values have heads of their own where several query heads share them.",
    "edges": "The largest edges: from what a part writes to what a later part reads. Width: size; "
    "colour: sign.",
    "verify": "Estimates against exact effects of the same cells. On the line they are equal. "
    "Filled: the largest cells, hollow: random ones.",
}


def html(doc: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    about = facts(doc)
    title = f"Attribution patching {dict(about).get('pair', '')}"
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(sentence(doc))}</p>',
        shell.note(caution(doc)),
        *(shell.figure(path, caption(doc, name)) for name, path in drawn.items()),
        *(shell.table(grid) for grid in _grids(doc)),
        shell.note(numbers.legend(doc)),
        *(shell.table(grid, is_folded=True) for grid in _folded(doc)),
        "<h2>The run</h2>",
        shell.facts(about),
    ]
    return shell.page(title, parts)


def markdown(doc: Mapping[str, Any]) -> str:
    """The finding and the tables; all text escaped."""
    about = facts(doc)
    parts = [
        f"# Attribution patching {markup.escape(dict(about).get('pair', ''))}",
        markup.escape(sentence(doc)),
        markup.escape(caution(doc)),
        markup.bullets(about),
    ]
    for grid in _grids(doc):
        parts += markup.table(grid)
    parts.append(markup.escape(numbers.legend(doc)))
    return "\n\n".join(parts) + "\n"


def caption(doc: Mapping[str, Any], name: str) -> str:
    """What a figure shows, and whether it is verified."""
    known = next((text for key, text in _CAPTIONS.items() if name.startswith(key)), name)
    which = next((documents.arrow(d) for d in documents.DIRECTIONS if name.endswith(d)), "")
    return f"{f'{which}: ' if which else ''}{known} {verdict(doc)}."


def facts(doc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was: pair, metric, sites, prompts, cost, versions."""
    shared = [
        (name, value) for name, value in rows.facts(doc) if name not in ("site", "measured string")
    ]
    passes = sum(documents.number(doc[d], "passes") for d in numbers.directions(doc))
    positions = sorted(set((doc.get("positions") or {}).values()))
    about = [
        ("effect on", metric(doc)),
        ("sites", ", ".join(doc["sites"])),
        ("positions", ", ".join(positions)),
        ("gradients", _gradients(doc)),
        ("cost", f"{passes:.0f} forward passes (a gradient counts as three)"),
        ("certainty", verdict(doc)),
    ]
    return [*shared[:1], *about, *shared[1:]]


def _gradients(doc: Mapping[str, Any]) -> str:
    points = int(doc.get("ig") or 1)
    if points == 1:
        return "at the unpatched recipient"
    text, alone = f"at {points} points on the way to the donor", numbers.by_one_gradient(doc)
    return text + (f"; of {', '.join(alone)} at the recipient alone" if alone else "")


def _grids(doc: Mapping[str, Any]) -> Iterator[Grid]:
    for direction in numbers.directions(doc):
        yield numbers.top_grid(doc, direction, per_site=_PER_SITE)
        for grid in (
            numbers.agreement_grid(doc, direction),
            numbers.miss_grid(doc, direction),
            numbers.edge_grid(doc, direction, count=_EDGES),
        ):
            if grid is not None:
                yield grid


def _folded(doc: Mapping[str, Any]) -> Iterator[Grid]:
    for direction in numbers.directions(doc):
        for site, _ in numbers.verified(doc, direction):
            grid = numbers.exact_grid(doc, direction, site)
            yield grid._replace(title=f"All cells run exactly: {grid.title}")
