"""The report of a run on role metrics as one HTML file: reading, figures, tables, the run."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from mlxroles.report import shell
from mlxroles.report.roles import captions, rows, sorting, tracks
from mlxroles.report.roles.reading import Section, reading
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.wording import sentences, shown
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
    "Means are over layers. Counts are layers above 0 / below 0; corrected: q < .05 "
    "(Benjamini-Hochberg over layers) and the interval excludes 0. Uniform attention: what the "
    "lengths of these prompts give without any model; on the normalised scale it is 0."
)
_HEADS_NOTE = (
    "Rows are those with the smallest p, values as a share of uniform attention's entropy (for "
    "instruct − base: their change). A list of the smallest is always full; q and the p of the "
    "maximum say what survives. The original study's top heads stood in an arbitrary order."
)
_LAYERS_NOTE = (
    "raw: nats, ratio of means over all heads (the original study left out heads 28 to 31 of 32); "
    "normalised: each query's entropy divided by that of uniform attention, ln(q + 1). "
    "p and q are those of the last estimate: instruct − base, or the only model. "
    f"{rows.MARKS}. A layer beyond ±.01 is not thereby significant."
)
_FORMS_NOTE = (
    "The study's two definitions, ratio of means and head form, are not equivalent: one head with "
    "near-zero reference entropy can decide the second. In brackets: layers whose own "
    "interval, uncorrected, excludes 0."
)
_CANDIDATES_NOTE = (
    "DiD: difference in differences of medians, focus minus reference of instruct minus base, "
    "not paired by a prompt's place in the list. consistency: how often a focus prompt's "
    "difference is on the same side of a reference prompt's. p and q: the score against shuffled "
    "labels; all heads: against the best of all heads."
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


def _glance(doc: Doc) -> list[str]:
    grid = rows.glance_grid(doc)
    return [shell.table(grid, is_sortable=True), shell.note(_GLANCE_NOTE)] if grid.rows else []


def _section(section: Section) -> str:
    points = "\n".join(f"<li>{escape(point)}</li>" for point in section.points)
    return f"<h2>{escape(section.heading)}</h2>\n<ul>\n{points}\n</ul>"


def _figures(doc: Doc, drawn: Mapping[str, Path]) -> Iterator[str]:
    """Those of the whole run, then those of each model, then any other; each with a heading.

    What is said below a kind of figure is said once.
    """
    groups = [("Together", [name for name in captions.TOGETHER if name in drawn])]
    for model in tracks.models(doc):
        own = [name for kind in captions.PER_MODEL if (name := f"{kind}_{slug(model)}") in drawn]
        groups.append((shown(model, 20), own))
    placed = {name for _, names in groups for name in names}
    groups.append(("Further figures", [name for name in drawn if name not in placed]))
    said: set[str] = set()
    for heading, names in groups:
        if names:
            yield f"<h2>{escape(heading)}</h2>"
        for name in names:
            yield shell.figure(drawn[name], captions.caption(name))
            text = captions.footnote(name)
            yield shell.note("" if text in said else text)
            said.add(text)


def _tables(doc: Doc) -> Iterator[str]:
    compared = tracks.contrast(doc) is not None
    for grid in rows.layer_grids(doc) if compared else ():
        yield shell.table(grid, is_sortable=True, ordered=0)
    if compared:
        yield shell.note(_LAYERS_NOTE)
        yield shell.table(rows.form_grid(doc), is_sortable=True, ordered=0)
        yield shell.note(_FORMS_NOTE)
        for who in tracks.names(doc):
            grid = rows.head_grid(doc, who)
            if grid.rows:
                yield shell.table(grid, is_sortable=True, ordered=8)
        yield shell.note(_HEADS_NOTE)
    if (doc.get("candidates") or {}).get("rows"):
        yield shell.table(rows.candidate_grid(doc), is_sortable=True, ordered=0)
        yield shell.note(_CANDIDATES_NOTE)
    yield shell.table(rows.category_grid(doc), is_sortable=True)
    yield shell.table(rows.prompt_grid(doc), is_sortable=True)
