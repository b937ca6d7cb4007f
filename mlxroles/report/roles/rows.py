"""The numbers of an entropy document as rows of strings, the same for page and Markdown."""

import math
from collections.abc import Mapping
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import findings
from mlxroles.report.roles.tracks import Doc, Track
from mlxroles.report.roles.wording import LABELS, name_of, shown, signed, who_is, with_interval
from mlxroles.report.rows import Grid
from mlxroles.text import format_number

MARKS = "* q < .05 and the interval excludes 0 · † also among prompts of equal length"


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was: family, models, reading, settings, versions."""
    reading: dict[str, Any] = doc.get("reading") or {}
    versions: dict[str, Any] = doc.get("versions") or {}
    layers = doc.get("layers") or []
    found = [
        ("family", _text(doc.get("display") or doc.get("family"))),
        ("models", ", ".join(map(shown, tracks.models(doc)))),
        (
            "focus, reference, confounder",
            ", ".join(shown(name) for name in tracks.contrast(doc) or () if name),
        ),
        ("queries, keys", ", ".join(_text(reading.get(name)) for name in ("queries", "keys"))),
        ("layers, heads", f"{len(layers)}, {_text(doc.get('n_heads'))} each"),
        ("prompts", _text(len(doc.get("prompts") or []))),
        ("resamples", _text(doc.get("n_resamples"))),
        ("permutations", _text(doc.get("n_permutations"))),
        ("seed", _text(doc.get("seed"))),
        ("run", _text(doc.get("run_id"))),
        ("made", _text(doc.get("timestamp"))),
        ("versions", ", ".join(f"{_text(key)} {_text(versions[key])}" for key in versions)),
    ]
    return [(name, value) for name, value in found if value.strip("–, ")]


def glance_grid(doc: Doc) -> Grid:
    """Every question in one row: means, uniform attention, and layers before and after correction.

    Layers are counted as above 0 / below 0.
    """
    head = ["metric", "mean, raw", "uniform attention", "mean, normalised", "p < .05, uncorrected"]
    head += ["by chance", "corrected, raw", "corrected, normalised", "also at equal lengths"]
    rows = []
    for found in findings(doc):
        raw, normalised = found.raw, found.normalised
        uniform = "–" if found.who == tracks.DIFFERENCE else signed(found.null)
        line = [LABELS[found.metric], signed(raw.mean), uniform, signed(normalised.mean)]
        line += [f"{normalised.uncorrected}", f"{normalised.expected:.1f}"]
        line += [_up_down(track.up, track.down) for track in (raw, normalised)]
        kept = normalised.same_length
        same = _up_down(normalised.up & kept, normalised.down & kept)
        line.append(same if normalised.is_tested_same_length else "no test")
        rows.append([*line, who_is(found.who)])
    return Grid("At a glance", [*head, "model"], rows)


def layer_grid(doc: Doc, metric: str, scale: str) -> Grid:
    """One metric per layer on one scale: every model and the difference, with marks.

    The p after correction is that of the last column: the difference, or the only model.
    """
    head, columns = ["layer"], []
    last: Track | None = None
    for who in tracks.names(doc):
        last = tracks.track(doc, who, metric, scale=scale)
        if last is not None:
            head.append(who_is(who))
            columns.append([_marked(last, at) for at in range(len(last.layers))])
    if last is not None:
        for name, values in (("p", last.p), ("q", last.q), ("q, equal lengths", last.q_same)):
            head.append(name)
            columns.append([_p(value) for value in values])
    layers = [str(layer) for layer in doc.get("layers") or []]
    focus, other = name_of(doc, metric)
    title = f"{LABELS[metric]} per layer, {scale}: {focus} against {other}"
    if scale == "raw":
        title += f" (uniform attention on these lengths: {signed(tracks.null(doc, metric))})"
    return Grid(title, head, [list(row) for row in zip(layers, *columns, strict=True)])


def layer_grids(doc: Doc) -> list[Grid]:
    """Every metric on every scale that the document holds."""
    first = tracks.names(doc)[:1]
    return [
        layer_grid(doc, metric, scale)
        for metric in tracks.METRICS
        for scale in tracks.SCALES
        if any(tracks.track(doc, who, metric, scale=scale) for who in first)
    ]


def form_grid(doc: Doc) -> Grid:
    """The forms of RFC and RSI side by side: mean over layers, and intervals that exclude 0."""
    rows = []
    for metric in tracks.METRICS:
        for who in tracks.names(doc):
            for scale in tracks.SCALES:
                found = [tracks.track(doc, who, metric, scale=scale, form=f) for f in tracks.FORMS]
                if any(found):
                    cells = [_mean(track) for track in found]
                    rows.append([LABELS[metric], scale, *cells, who_is(who)])
    head = ["metric", "scale", *tracks.FORMS.values(), "model"]
    return Grid("Forms of the ratio: mean over layers", head, rows)


def _mean(track: Track | None) -> str:
    return "–" if track is None else f"{signed(track.mean)} ({track.excludes_zero})"


def head_grid(doc: Doc, who: str) -> Grid:
    """The heads with the smallest p of a model or of the difference, on the normalised scale."""
    found = tracks.heads(doc, who)
    head = ["layer", "head", "focus", "reference", "confounder", "difference", "Cohen's d"]
    head += ["Cliff's delta", "p", "q", "p, max", "p, equal length", "near zero"]
    rows = []
    for row in found.get("top") or []:
        line = [_text(row.get("layer")), _text(row.get("head"))]
        line += [_number(row, name, ".3f") for name in ("focus", "reference", "confounder")]
        line += [_number(row, "diff", "+.3f"), _ranged(row, "d"), _ranged(row, "delta")]
        line += [_p(tracks.number(row.get(n))) for n in ("p", "q", "p_max", "p_same_length")]
        rows.append([*line, "yes" if row.get("flagged") else ""])
    title = f"Heads with the smallest p, {who_is(who)}, length-normalised"
    return Grid(title, head, rows)


def candidate_grid(doc: Doc) -> Grid:
    """The candidates for patching, best score first."""
    found: dict[str, Any] = doc.get("candidates") or {}
    return Grid("Candidates for patching", *candidate_rows(found.get("rows") or []))


def candidate_rows(rows: list[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of candidates."""
    head = ["rank", "layer", "head", "DiD, median [nats]", "DiD of logs", "consistency"]
    head += ["base entropy", "score", "p", "q", "p, all heads"]
    shown_rows = []
    for row in rows:
        line = [_text(row.get(name)) for name in ("rank", "layer", "head")]
        line.append(
            with_interval(*(tracks.number(row.get(f"did_{n}")) for n in ("median", "low", "high")))
        )
        line += [_number(row, "did_log_ratio_median", "+.3f"), _number(row, "consistency", ".2f")]
        line += [_number(row, "baseline_entropy", ".3f"), _number(row, "composite_score", ".2f")]
        line += [_p(tracks.number(row.get(name))) for name in ("p", "q", "p_max")]
        shown_rows.append(line)
    return head, shown_rows


def category_grid(doc: Doc) -> Grid:
    """Prompts and lengths per category, and what uniform attention gives there."""
    uniform = ((doc.get("null") or {}).get("raw") or {}).get("category") or {}
    models = tracks.models(doc)
    head = ["prompts", "mean tokens", "sd", "shortest", "longest", "uniform attention [nats]"]
    head += [f"{who_is(who)} [nats]" for who in models]
    rows = []
    for name, size in (doc.get("lengths") or {}).items():
        line = [_text(size.get("n")), _number(size, "mean", ".2f"), _number(size, "sd", ".2f")]
        line += [_text(size.get("min")), _text(size.get("max"))]
        line.append(format_number(tracks.number(uniform.get(name)), ".3f"))
        for who in models:
            line.append(format_number(tracks.mean(tracks.category(doc, who, name)), ".3f"))
        rows.append([*line, shown(name)])
    return Grid("Prompts by category", [*head, "category"], rows)


def prompt_grid(doc: Doc) -> Grid:
    """Every prompt with its category and length."""
    head = ["tokens", "begin token", "category", "prompt"]
    rows = [
        [
            _text(prompt.get("n_tokens")),
            "yes" if prompt.get("has_bos") else "no",
            shown(prompt.get("category")),
            shown(prompt.get("id"), 80),
        ]
        for prompt in doc.get("prompts") or []
    ]
    return Grid("Prompts", head, rows)


def _up_down(up: frozenset[int], down: frozenset[int]) -> str:
    return f"{len(up)} / {len(down)}"


def _marked(track: Track, at: int) -> str:
    layer = track.layers[at]
    mark = " *" * (layer in track.significant) + "†" * (layer in track.same_length)
    return with_interval(track.value[at], track.low[at], track.high[at]) + mark


def _ranged(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (
        tracks.number(row.get(key)) for key in (name, f"{name}_low", f"{name}_high")
    )
    if math.isnan(low) or math.isnan(high):
        return format_number(value, "+.2f")
    return f"{format_number(value, '+.2f')} [{low:+.2f}, {high:+.2f}]"


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format_number(tracks.number(row.get(name)), form)


def _p(value: float) -> str:
    return format_number(value, ".3f")


def _text(value: object) -> str:
    return "–" if value is None else shown(value, 120)
