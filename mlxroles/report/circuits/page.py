"""The report of a study of circuits as one HTML file: the finding, figures, tables."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.circuits import rows
from mlxroles.text import safe_text

Doc = Mapping[str, Any]

MOST_COMPOSED = 12
MOST_HEADS = 24
_CAPTIONS = {
    "copying": "Copying of every head, and the share of positive eigenvalues of its OV and QK "
    "circuits. Framed: beyond random pairings of tokens, or heads of random numbers (5 %, for all "
    "heads of a map together).",
    "difference": "What tuning changed of copying, over the same tokens. Framed: beyond chance "
    "(5 %, for all heads together).",
    "composition": "Left: the strongest reading of one layer by a later one, per kind. Right: the "
    "strongest pairs of heads; grey is what chance gives, the line its bound.",
    "eigenvalues": "Eigenvalues of OV circuits between tokens, each over the largest of its head. "
    "A head that copies has them on the right.",
    "curves": "Mean score of a query with a key so many positions before it, over pairs of other "
    "tokens, with a 95 % band over tokens for the whole curve; dotted: of a token with itself.",
}


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"Circuits of {safe_text(str(doc.get('display') or ''), limit=80)}"
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(safe_text(str(doc["sentence"])))}</p>',
        *(shell.figure(path, caption(name)) for name, path in drawn.items()),
        *_tables(doc),
        *_notes(doc),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(title, body)


def caption(name: str) -> str:
    """What stands below a figure."""
    kind, _, model = name.partition("_")
    found = _CAPTIONS.get(kind, name)
    return f"{model}: {found}" if model else found


def _tables(doc: Doc) -> Iterator[str]:
    difference = rows.difference_grid(doc, count=MOST_HEADS)
    if difference is not None:
        yield shell.table(difference)
    for model in doc["models"]:
        yield shell.table(rows.copying_grid(doc, model, count=MOST_HEADS))
    yield shell.note(rows.COPYING_LEGEND)
    for model in doc["models"]:
        composed = rows.composition_grid(doc, model, count=MOST_COMPOSED)
        if composed is not None:
            yield shell.table(composed)
            yield shell.note(rows.clear_line(doc, model))
    yield shell.note(rows.COMPOSITION_LEGEND)
    yield from _pairs(doc)


def _pairs(doc: Doc) -> Iterator[str]:
    told = False
    for of in doc["models"].values():
        if not of["pairs"]:
            continue
        name = escape(safe_text(of["name"], limit=40))
        yield f"<h2>Tokens that heads join most, {name}</h2>"
        for entry in of["pairs"]:
            about = (
                f"Mean {entry['mean']:.3g}, standard deviation {entry['spread']:.3g} of all pairs; "
                f"a token with itself {entry['same_z']:+.1f} standard deviations from the mean. "
                f"Of as many independent normal numbers the largest would have z "
                f"{entry['expected']:.1f}."
            )
            both = [shell.table(rows.pair_grid(entry, least=least)) for least in (False, True)]
            heading = f"{entry['head']} {rows.CIRCUITS[entry['circuit']]}"
            yield shell.folded(heading, shell.note(about) + "\n".join(both))
        told = True
    yield shell.note(rows.PAIRS_LEGEND if told else "")


def _notes(doc: Doc) -> Iterator[str]:
    for model, of in doc["models"].items():
        for text in of["notes"]:
            yield shell.note(f"{model}, {safe_text(text)}")
    for text in doc.get("notes") or []:
        yield shell.note(safe_text(str(text)))
