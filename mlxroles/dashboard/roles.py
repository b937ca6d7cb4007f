"""What a run on role metrics looks like when it ends: layers, heads, candidates, the finding."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlxroles.dashboard.adapt import Adaptive, Screen, grid_table, side_by_side
from mlxroles.dashboard.role_tables import candidates_table
from mlxroles.dashboard.sparks import sparks
from mlxroles.report.roles import rows, tracks
from mlxroles.report.roles.findings import Finding, findings
from mlxroles.report.roles.reading import disagreements
from mlxroles.report.roles.wording import LABELS, sentences, shown, who_is, with_interval
from mlxroles.report.rows import Grid
from mlxroles.text import format_number

MOST_LAYERS, MOST_HEADS = 12, 5
_WIDEST = 100


def roles_table(doc: Mapping[str, Any], *, width: int | None = None) -> RenderableType:
    """The summary of an entropy document: curves over layers, tables, and the finding in words.

    The layers and heads shown are those with the smallest p; what is significant after correction
    is marked, and counted over all of them. Nothing is told by colour alone, and a terminal
    without UTF-8 gets ASCII.

    Args:
        doc: schema ``mlxroles/entropy/1``.
        width: columns; those of the terminal by default.
    """
    return Adaptive(lambda screen: Group(*_parts(doc, screen)), width, _WIDEST)


def _parts(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    yield screen.text(shown(doc.get("display") or doc.get("family") or "role metrics", 60), "bold")
    yield screen.text(_scope(doc), "dim")
    found = findings(doc)
    for metric in tracks.METRICS:
        if any(each.metric == metric for each in found):
            yield Text()
            yield from sparks(found, metric, screen)
    if found:
        yield screen.text("above/below: layers beyond 0 after correction", "dim")
        yield Text()
        yield from side_by_side([_layers(each, screen) for each in _last(found)], screen)
        yield screen.text(rows.MARKS.replace(" · ", "\n"), "dim")
        yield Text()
        yield from _heads(doc, screen)
        yield from _candidates(doc, screen)
    else:
        yield Text()
        yield grid_table(_categories(doc), screen, left=(0,))
        yield Text()
    doubts = disagreements(doc, _last(found)) if found else []
    yield from (screen.text(line) for line in doubts)
    if doubts:
        yield Text()
    for line in sentences(doc):
        yield screen.text(line)


def _scope(doc: Mapping[str, Any]) -> str:
    names = " / ".join(shown(each, 20) for each in tracks.contrast(doc) or () if each)
    size = f"{len(doc.get('layers') or [])} layers × {doc.get('n_heads')} heads"
    parts = [names, f"{len(doc.get('prompts') or [])} prompts", size]
    return " · ".join(part for part in parts if part)


def _last(found: list[Finding]) -> list[Finding]:
    """The findings of the difference, or of the only model."""
    return [each for each in found if each.who == found[-1].who]


def _layers(found: Finding, screen: Screen) -> Table:
    raw, normalised = found.raw, found.normalised
    order = sorted(range(len(raw.layers)), key=lambda at: _rank(found, at))
    kept = sorted(order[:MOST_LAYERS])
    lines = []
    for at in kept:
        layer = raw.layers[at]
        line = [str(layer)]
        for track in (raw, normalised):
            mark = "*" * (layer in track.significant) + "†" * (layer in track.same_length)
            text = with_interval(track.value[at], track.low[at], track.high[at])
            line += [text, mark, format_number(track.q[at], ".3f")]
        lines.append(line)
    title = f"{LABELS[found.metric]}, {who_is(found.who)}"
    if len(kept) < len(raw.layers):
        title += f": {len(kept)} of {len(raw.layers)} layers, those with the smallest p"
    head = ["layer", "raw", "", "q", "normalised", "", "q"]
    return grid_table(Grid(title, head, lines), screen, left=(2, 5))


def _rank(found: Finding, at: int) -> tuple[float, float]:
    """Orders layers by p on the normalised scale, those without one last."""
    p, value = found.normalised.p[at], found.normalised.value[at]
    return (p if p == p else 2.0, -abs(value) if value == value else 0.0)


def _heads(doc: Mapping[str, Any], screen: Screen) -> Iterator[RenderableType]:
    names = [who for who in tracks.names(doc) if tracks.heads(doc, who)]
    if not names:
        return
    counts = []
    for who in names:
        found = tracks.heads(doc, who)
        line = [
            f"{int(found.get(f'significant_{n}') or 0):,}" for n in ("bh", "max", "same_length")
        ]
        line.append(f"{int(found.get('below_05') or 0):,}")
        line.append(format_number(tracks.number(found.get("expected")), ".1f"))
        counts.append([who_is(who), f"{int(found.get('n') or 0):,}", *line])
    head = ["heads that differ", "of", "BH", "maximum", "equal length", "p < .05", "by chance"]
    yield grid_table(Grid("", head, counts), screen, left=(0,))
    yield Text()
    who = names[-1]
    top = list(tracks.heads(doc, who).get("top") or [])[:MOST_HEADS]
    if top:
        title = f"Heads (layer.head) with the smallest p, {who_is(who)}, normalised"
        lines = [_head_row(row) for row in top]
        names = ["head", "difference", "Cohen's d", "p", "q", "p max", "=len"]
        yield grid_table(Grid(title, names, lines), screen)
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
    significant = int(found.get("significant") or 0)
    bound = tracks.number((found.get("null") or {}).get("max_composite_95"))
    yield candidates_table(found["rows"][:MOST_HEADS])
    said = f"{significant}" if significant else "none"
    yield screen.text(
        f"{said} of {found.get('n_heads')} heads significant against shuffled labels, whose best "
        f"score stays below {format_number(bound, '.2f')} in 95 % of shuffles",
        "dim",
    )
    yield Text()


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
