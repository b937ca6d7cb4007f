"""The report of a run on role metrics as one HTML file: reading, figures, tables, the run."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from mlxroles.report import shell
from mlxroles.report.roles import captions, rows, sorting, tracks
from mlxroles.report.roles.box import said, small_print
from mlxroles.report.roles.reading import Section, reading
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.verdict import few_prompts
from mlxroles.report.roles.wording import (
    candidate_note,
    count,
    is_of_the_study,
    reading_of,
    shown,
    who_is,
)
from mlxroles.text import slug

_STYLE = (
    """\
.finding p { margin: 0 0 .5rem } .finding p:last-child { margin: 0 }
.finding .small { font-size: .9rem }
ul { margin: .35rem 0; padding-left: 1.2rem }
li { margin: .25rem 0 } .reading { max-width: 52rem } .reading h2 { margin-top: 2rem }
figure + .note { margin-top: -.9rem } .scroll + .note { margin-top: .5rem }
.contents { font-size: .9rem } .contents a { color: var(--accent); margin-right: 1rem }
.sortable th:last-child, .sortable td:last-child { text-align: right }
.sortable th:first-child, .sortable td:first-child { text-align: left }
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
    "raw: nats, ratio of means over all heads; normalised: each query's entropy divided by that "
    "of uniform attention, ln(q + 1). q and, among prompts of equal length, q =len are of the "
    f"estimate to their left. {rows.MARKS}."
)
_FORMS_HEAD = "In brackets: layers whose own interval, uncorrected, excludes 0."
_FORMS_NOTE = (
    "The study's two definitions, ratio of means and head form, are not equivalent: one head with "
    f"near-zero reference entropy can decide the second. {_FORMS_HEAD}"
)


_CONTENTS = (
    '<p class="contents"><a href="#glance">At a glance</a><a href="#reading">Reading</a>'
    '<a href="#layers">Layers</a><a href="#figures">Figures</a><a href="#tables">Heads and '
    'prompts</a><a href="#run">The run</a></p>'
)


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    how = reading_of(doc)
    title = f"Role metrics of {_name(doc)}" + (f", {how}" if how else "")
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    parts = [
        f"<h1>{escape(title)}</h1>",
        _finding(doc),
        _CONTENTS,
        '<div id="glance"></div>',
        *_glance(doc),
        '<div class="reading" id="reading">',
        *map(_section, reading(doc)),
        "</div>",
        '<div id="layers"></div>',
        *_layers(doc),
        '<div id="figures"></div>',
        *_figures(doc, drawn),
        '<div id="tables"></div>',
        *_tables(doc),
        '<h2 id="run">The run</h2>',
        shell.facts(rows.facts(doc)),
    ]
    return shell.page(title, parts, style=_STYLE, script=sorting.SCRIPT)


def _name(doc: Doc) -> str:
    return shown(doc.get("display") or doc.get("family") or "a model", 80)


def _finding(doc: Doc) -> str:
    lines = [f"<p>{escape(line)}</p>" for line in said(doc)]
    lines += [f'<p class="small">{escape(line)}</p>' for line in small_print(doc)]
    return '<div class="finding">\n{}\n</div>'.format("\n".join(lines))


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

    Of two models those of each are folded. What is said below a kind of figure is said once.
    """
    models = tracks.models(doc)
    repeated = {name for name in drawn if captions.is_repeated(name, len(models))}
    groups = [("Together", [name for name in captions.TOGETHER if name in drawn])]
    for model in models:
        own = [f"{kind}_{slug(model)}" for kind in captions.PER_MODEL]
        groups.append((who_is(model), [n for n in own if n in drawn and n not in repeated]))
    placed = {name for _, names in groups for name in names} | repeated
    groups.append(("Further figures", [name for name in drawn if name not in placed]))
    noted: set[str] = set()
    folded = set(map(who_is, models)) if len(models) > 1 else set()
    has_notes = is_of_the_study(doc)
    for heading, names in groups:
        parts = [part for n in names for part in _figure(n, drawn[n], noted, has_notes=has_notes)]
        if parts and heading in folded:
            yield shell.folded(f"{heading}: {count(len(names), 'figure')}", "\n".join(parts))
        elif parts:
            yield f"<h2>{escape(heading)}</h2>"
            yield from parts


def _figure(name: str, path: Path, noted: set[str], *, has_notes: bool) -> Iterator[str]:
    yield shell.figure(path, captions.caption(name))
    text = captions.footnote(name) if has_notes else ""
    if text and text not in noted:
        noted.add(text)
        yield shell.note(text)


def _layers(doc: Doc) -> Iterator[str]:
    if tracks.contrast(doc) is not None:
        for scale in ("normalised", "raw"):
            for grid in rows.layer_grids(doc, scale):
                yield shell.table(grid, is_sortable=True, ordered=0, is_folded=scale == "raw")
        yield shell.note(_LAYERS_NOTE)


def _tables(doc: Doc) -> Iterator[str]:
    """Every other number as a table; what few will read is folded."""
    if tracks.contrast(doc) is not None and not few_prompts(doc):
        yield from _head_tables(doc)
        yield shell.table(rows.form_grid(doc), is_sortable=True)
        yield shell.note(_FORMS_NOTE if is_of_the_study(doc) else _FORMS_HEAD)
    if (doc.get("candidates") or {}).get("rows") and not few_prompts(doc):
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
