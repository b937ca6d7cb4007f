"""What a run on role metrics looks like when it ends: layers, heads, candidates, the finding."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table
from mlxroles.dashboard.role_tables import candidate_legend, candidate_rows
from mlxroles.dashboard.sparks import sparks
from mlxroles.report.roles import rows, tracks
from mlxroles.report.roles.box import beyond_chance, sentences
from mlxroles.report.roles.findings import Finding, findings
from mlxroles.report.roles.reading import signs
from mlxroles.report.roles.verdict import few_prompts
from mlxroles.report.roles.wording import LABELS, name_of, reading_of, shown, who_is
from mlxroles.report.rows import Grid
from mlxroles.roles.metrics import METRICS
from mlxroles.text import format_number

MOST_LAYERS, MANY_LAYERS = 5, 12
"""Of a model with more than so many layers that many are listed per metric."""
MOST_HEADS, LEAST_HEADS, MOST_CANDIDATES = 5, 3, 3
_WIDEST = 100
_MARKS = "* q < .05, interval without 0 · † holds, ‡ reverses at equal prompt length"


def roles_table(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """The summary of an entropy document: curves over layers, tables, and the finding in words.

    Only layers that are significant after correction are listed, and the heads with the smallest
    p. Nothing is told by colour alone, and a terminal without UTF-8 gets ASCII.

    Args:
        doc: schema ``mlxroles/entropy/1``.
        width: columns; those of the terminal by default.
    """
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    title = shown(doc.get("display") or doc.get("family") or "role metrics", 60)
    yield screen.text(title, "bold")
    yield screen.text(_scope(doc), "dim")
    found = findings(doc)
    for metric in METRICS:
        if any(each.metric == metric for each in found):
            yield from sparks(found, metric, screen)
    if found:
        yield screen.text("mean over layers, and layers above/below 0 after correction", "dim")
        yield Text()
        yield from _layers(_last(found), screen)
        if not few_prompts(doc):
            yield from _heads(doc, screen)
            yield from _candidates(doc, screen)
    else:
        yield Text()
        yield grid_table(_categories(doc), screen, left=(0,))
        yield Text()
    for line in (*_doubts(doc, found), *sentences(doc)):
        yield screen.text(line)


def _scope(doc: Mapping[str, Any]) -> str:
    names = " / ".join(shown(each, 20) for each in tracks.contrast(doc) or () if each)
    size = f"{len(doc.get('layers') or [])} layers × {doc.get('n_heads')} heads"
    parts = [names, f"{len(doc.get('prompts') or [])} prompts", size]
    parts.append(reading_of(doc, with_contrast=False))
    return " · ".join(part for part in parts if part)


def _last(found: list[Finding]) -> list[Finding]:
    """The findings of the difference, or of the only model."""
    return [each for each in found if each.who == found[-1].who]


def _doubts(doc: Mapping[str, Any], found: list[Finding]) -> list[str]:
    """Where the ways of computing what is significant disagree in sign."""
    if few_prompts(doc):
        return []
    claimed = [each for each in _last(found) if each.standing != "nothing"] if found else []
    return [line for each in claimed for line in signs(doc, each)]


def _layers(found: list[Finding], screen: Screen) -> Iterator[RenderableType]:
    """The layers that are significant on either scale."""
    who, lines, total = who_is(found[0].who), [], 0
    for each in found:
        layers = sorted(each.raw.significant | each.normalised.significant)
        total += len(layers)
        if len(each.raw.layers) > MANY_LAYERS:
            layers = sorted(sorted(layers, key=lambda n: -_size(each, n))[:MOST_LAYERS])
        lines += [_layer(each, layer) for layer in layers]
    if not lines:
        names = " or ".join(LABELS[each.metric] for each in found)
        yield screen.text(f"No layer is significant after correction: {names}, {who}.")
        yield Text()
        return
    title = f"Layers that are significant after correction, {who}"
    if len(lines) < total:
        title += f": the largest {len(lines)} of {total}"
    head = ["layer", "raw", "q", "length-normalised", "q"]
    yield _compact(Grid(title, head, lines), screen, left=(0, 1, 3))
    yield screen.text(_MARKS, "dim")
    yield Text()


def _layer(found: Finding, layer: int) -> list[str]:
    line = [f"{LABELS[found.metric]} {layer}"]
    for track in (found.raw, found.normalised):
        at = track.layers.index(layer)
        line += [rows.marked(track, at), format_number(track.q[at])]
    return line


def _size(found: Finding, layer: int) -> float:
    """How far a layer is from 0 on the scale on which it is significant."""
    track = found.normalised if layer in found.normalised.significant else found.raw
    return abs(track.at(layer)[0])


def _heads(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    """Those that differ, up to five, and never fewer than three."""
    names = [who for who in tracks.names(doc) if tracks.heads(doc, who)]
    found = tracks.heads(doc, names[-1]) if names else {}
    listed = max(min(int(found.get("significant_bh") or 0), MOST_HEADS), LEAST_HEADS)
    top = list(found.get("top") or [])[:listed]
    if not top:
        return
    against = " against ".join(name_of(doc, "rfc"))
    title = f"Heads with the smallest p, {who_is(names[-1])}: {against}, length-normalised"
    head = ["layer.head", "difference", "Cohen's d", "p", "q", "p max", "p =len"]
    yield _compact(Grid(title, head, [_head_row(row) for row in top]), screen)
    yield screen.text(
        "q: Benjamini-Hochberg; p max: maximum statistic; p =len: prompts of equal length", "dim"
    )
    yield Text()


def _head_row(row: Mapping[str, Any]) -> list[str]:
    d = [tracks.number(row.get(name)) for name in ("d", "d_low", "d_high")]
    effect = format_number(d[0], "+.2f")
    if d[1] == d[1] and d[2] == d[2]:
        effect += f" [{d[1]:+.2f}, {d[2]:+.2f}]"
    numbers = [tracks.number(row.get(n)) for n in ("p", "q", "p_max", "p_same_length")]
    place = f"{row.get('layer')}.{row.get('head')}"
    change = format_number(tracks.number(row.get("diff")), "+.3f")
    return [place, change, effect, *(format_number(p, ".3f") for p in numbers)]


def _candidates(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    found: Mapping[str, Any] = doc.get("candidates") or {}
    if not found.get("rows"):
        return
    firm, _ = beyond_chance(doc)
    said = f"{len(firm) or 'none'} of {int(found.get('n_heads') or 0):,} heads beyond chance"
    grid = candidate_rows(found["rows"][:MOST_CANDIDATES])
    yield _compact(grid._replace(title=f"Candidates for patching: {said}"), screen)
    chance = tracks.number(found.get("chance_consistency"))
    yield screen.text(candidate_legend(found["rows"], chance=chance), "dim")
    yield Text()


def _compact(grid: Grid, screen: Screen, left: tuple[int, ...] = ()) -> Table:
    table = grid_table(grid, screen, left=left)
    table.box = None
    table.padding, table.pad_edge = (0, 2, 0, 0), False
    return table


def _categories(doc: Mapping[str, Any]) -> Grid:
    """Mean entropy per category and model, for a run that compares nothing."""
    models = tracks.models(doc)
    lines = []
    for name, size in (doc.get("lengths") or {}).items():
        means = [tracks.mean(tracks.category(doc, who, name)) for who in models]
        shares = [tracks.mean(tracks.category(doc, who, name, "normalised")) for who in models]
        numbers = [f"{m:.3f}" for pair in zip(means, shares, strict=True) for m in pair]
        lines.append([shown(name, 24), str(size.get("n")), f"{size.get('mean'):.2f}", *numbers])
    head = [name for who in models for name in (who_is(who), "norm")]
    title = "Mean entropy in nats, and length-normalised"
    return Grid(title, ["category", "n", "tokens", *head], lines)
