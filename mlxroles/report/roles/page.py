"""The report of a run on role metrics as one HTML file: reading, figures, tables, the run."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from mlxroles.report import shell
from mlxroles.report.roles import captions, rows, sorting, tracks
from mlxroles.report.roles.reading import Section, reading
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.wording import candidate_note, count, sentences, shown, who_is
from mlxroles.text import slug

_STYLE = (
    """\
.finding p { margin: 0 0 .5rem } .finding p:last-child { margin: 0; font-size: .9rem }
ul { margin: .35rem 0; padding-left: 1.2rem }
li { margin: .25rem 0 } .reading { max-width: 52rem } .reading h2 { margin-top: 2rem }
figure + .note { margin-top: -.9rem } .scroll + .note { margin-top: .5rem }
.sortable th, .sortable td { padding: .28rem .45rem } .sortable { font-size: .84rem }
thead th { white-space: normal; vertical-align: bottom; min-width: 2.8rem }
"""
    + sorting.STYLE
)
_GLANCE_NOTE = (
    "Means are over layers, which are not independent, so they have no interval. Counts are layers "
    "above 0 / below 0; corrected: q < .05 (labels permuted over prompts, Benjamini-Hochberg over "
    "layers) and the interval excludes 0. Uniform attention: what the lengths of these prompts "
    "give without any model; on the normalised scale it is 0. Equal lengths: labels permuted among "
    "prompts of equal length alone."
)
_HEADS_NOTE = (
    "Rows are those with the smallest p. Focus, reference and their difference: entropy as a share "
    "of uniform attention's (for instruct − base: its change); p and q are of that difference. A "
    "list of the smallest is always full: q and p max, the p of the maximum statistic, say what "
    "survives. heads.csv has every head."
)
_LAYERS_NOTE = (
    "raw: nats, ratio of means over all heads (the original study left out heads 28 to 31 of 32); "
    "normalised: each query's entropy divided by that of uniform attention, ln(q + 1). "
    "p and q, and the words, are of the last estimate: instruct − base, or the only model. "
    f"{rows.MARKS}."
)
_FORMS_NOTE = (
    "The study's two definitions, ratio of means and head form, are not equivalent: one head with "
    "near-zero reference entropy can decide the second. In brackets: layers whose own "
    "interval, uncorrected, excludes 0."
)


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"Role metrics of {_name(doc)}"
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    parts = [
        f"<h1>{escape(title)}</h1>",
        _finding(doc),
        *_glance(doc),
        '<div class="reading">',
        *map(_section, reading(doc)),
        "</div>",
        *_figures(doc, drawn),
        *_tables(doc),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(title, parts, style=_STYLE, script=sorting.SCRIPT)


def _name(doc: Doc) -> str:
    return shown(doc.get("display") or doc.get("family") or "a model", 80)


def _finding(doc: Doc) -> str:
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in sentences(doc))
    return f'<div class="finding">\n{lines}\n</div>'


def _glance(doc: Doc) -> Iterator[str]:
    grid = rows.glance_grid(doc)
    if grid.rows:
        yield shell.table(grid, is_sortable=True)
        yield shell.note(_GLANCE_NOTE)
    heads = rows.head_counts_grid(doc)
    if heads.rows:
        yield shell.table(heads, is_sortable=True)


def _section(section: Section) -> str:
    points = "\n".join(f"<li>{escape(point)}</li>" for point in section.points)
    return f"<h2>{escape(section.heading)}</h2>\n<ul>\n{points}\n</ul>"


def _figures(doc: Doc, drawn: Mapping[str, Path]) -> Iterator[str]:
    """Those of the whole run, then those of each model, then any other; each with a heading.

    Those of a second model are folded. What is said below a kind of figure is said once.
    """
    groups = [("Together", [name for name in captions.TOGETHER if name in drawn])]
    for model in tracks.models(doc):
        own = [name for kind in captions.PER_MODEL if (name := f"{kind}_{slug(model)}") in drawn]
        groups.append((who_is(model), own))
    placed = {name for _, names in groups for name in names}
    groups.append(("Further figures", [name for name in drawn if name not in placed]))
    said: set[str] = set()
    second = {who_is(model) for model in tracks.models(doc)[1:]}
    for heading, names in groups:
        parts = [part for name in names for part in _figure(name, drawn[name], said)]
        if parts and heading in second:
            yield shell.folded(f"{heading}: {count(len(names), 'figure')}", "\n".join(parts))
        elif parts:
            yield f"<h2>{escape(heading)}</h2>"
            yield from parts


def _figure(name: str, path: Path, said: set[str]) -> Iterator[str]:
    yield shell.figure(path, captions.caption(name))
    text = captions.footnote(name)
    if text and text not in said:
        said.add(text)
        yield shell.note(text)


def _tables(doc: Doc) -> Iterator[str]:
    """Every number as a table; what few will read is folded."""
    if tracks.contrast(doc) is not None:
        for scale in ("normalised", "raw"):
            for grid in rows.layer_grids(doc, scale):
                yield shell.table(grid, is_sortable=True, ordered=0, is_folded=scale == "raw")
        yield shell.note(_LAYERS_NOTE)
        yield from _head_tables(doc)
        yield shell.table(rows.form_grid(doc), is_sortable=True, ordered=0)
        yield shell.note(_FORMS_NOTE)
    if (doc.get("candidates") or {}).get("rows"):
        yield shell.table(rows.candidate_grid(doc), is_sortable=True, ordered=0)
        yield shell.note(candidate_note(doc))
    yield shell.table(rows.category_grid(doc), is_sortable=True)
    yield shell.table(rows.prompt_grid(doc), is_sortable=True, is_folded=True)


def _head_tables(doc: Doc) -> Iterator[str]:
    names = tracks.names(doc)
    found = {who: grid for who in names if (grid := rows.head_grid(doc, who)).rows}
    for who in sorted(found, key=lambda who: who != names[-1]):
        grid = found[who]
        at = grid.head.index("p")
        yield shell.table(grid, is_sortable=True, ordered=at, is_folded=who != names[-1])
    if found:
        yield shell.note(_HEADS_NOTE)
