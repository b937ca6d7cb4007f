"""The Markdown summary of a run on role metrics."""

from mlxroles.report.markup import bullets, escape, table
from mlxroles.report.roles import rows, tracks
from mlxroles.report.roles.box import sentences
from mlxroles.report.roles.reading import reading
from mlxroles.report.roles.tracks import Doc
from mlxroles.report.roles.wording import reading_of, shown


def markdown(doc: Doc) -> str:
    """The finding, the reading and the tables but for that of all prompts; all text escaped."""
    name = shown(doc.get("display") or doc.get("family") or "a model", 80)
    how = reading_of(doc)
    title = f"Role metrics of {name}" + (f", {how}" if how else "")
    parts = [f"# {escape(title)}", *map(escape, sentences(doc))]
    for grid in (rows.glance_grid(doc), rows.head_counts_grid(doc)):
        parts += table(grid) if grid.rows else []
    for section in reading(doc):
        points = "\n".join(f"- {escape(point)}" for point in section.points)
        parts += [f"## {escape(section.heading)}", points]
    grids = []
    if tracks.contrast(doc) is not None:
        grids += [grid for scale in tracks.SCALES for grid in rows.layer_grids(doc, scale)]
        grids += [rows.head_grid(doc, who) for who in tracks.names(doc)]
    grids += [rows.candidate_grid(doc), rows.category_grid(doc)]
    for grid in grids:
        parts += table(grid) if grid.rows else []
    parts += [escape(rows.MARKS), "## The run", bullets(rows.facts(doc))]
    return "\n\n".join(parts) + "\n"
