"""The numbers of an entropy document as rows of strings, the same for page and Markdown."""

import math
from collections.abc import Mapping
from typing import Any

from mlxroles.report.roles import tracks
from mlxroles.report.roles.findings import findings
from mlxroles.report.roles.tracks import Doc, Track
from mlxroles.report.roles.wording import (
    LABELS,
    form_name,
    name_of,
    shown,
    signed,
    who_is,
    with_interval,
)
from mlxroles.report.rows import Grid
from mlxroles.roles.metrics import FORMS, METRICS
from mlxroles.text import format_number

MARKS = (
    "* q < .05 and the interval excludes 0 · † holds among prompts of equal length · "
    "‡ reverses among prompts of equal length"
)


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
    every = findings(doc)
    turns = any(each.normalised.reversed for each in every)
    head = ["model", "metric", "mean, raw", "uniform attention, raw", "mean, normalised"]
    head += [
        "p < .05, uncorrected, normalised",
        "of these by chance",
        "corrected, raw",
        "corrected, normalised",
        "holds at equal lengths, normalised",
    ]
    head += ["reverses at equal lengths, normalised"] if turns else []
    rows = []
    for found in every:
        raw, normalised = found.raw, found.normalised
        uniform = "–" if found.is_difference else signed(found.null)
        line = [who_is(found.who), LABELS[found.metric], signed(raw.mean), uniform]
        line += [signed(normalised.mean), f"{normalised.uncorrected}"]
        line.append(f"{normalised.expected:.2f}")
        line += [_up_down(track, track.significant) for track in (raw, normalised)]
        held = _up_down(normalised, normalised.same_length)
        line.append(held if normalised.is_tested_same_length else "no test")
        line += [_up_down(normalised, normalised.reversed)] if turns else []
        rows.append(line)
    return Grid("At a glance", head, rows)


def head_counts_grid(doc: Doc) -> Grid:
    """How many single heads differ, before and after every correction, length-normalised."""
    head = ["model", "heads", "p < .05, uncorrected", "of these by chance", "Benjamini-Hochberg"]
    head += ["maximum statistic", "holds at equal lengths"]
    rows = []
    for who in tracks.names(doc):
        found = tracks.heads(doc, who)
        if found:
            line = [who_is(who)]
            line += [f"{int(found.get(name) or 0):,}" for name in ("n", "below_05")]
            line.append(_number(found, "expected", ".2f"))
            kinds = (f"significant_{name}" for name in ("bh", "max", "same_length"))
            line += [f"{int(found.get(name) or 0):,}" for name in kinds]
            rows.append(line)
    return Grid(f"Single heads that differ, {_heads_of(doc)}", head, rows)


def layer_grid(doc: Doc, metric: str, scale: str) -> Grid:
    """One metric per layer on one scale: every model and the difference, with marks and q."""
    head, columns = ["layer"], []
    for who in tracks.names(doc):
        found = tracks.track(doc, who, metric, scale=scale)
        if found is not None:
            head += [who_is(who), "q", "q =len"]
            columns.append([marked(found, at) for at in range(len(found.layers))])
            columns += [[_p(value) for value in values] for values in (found.q, found.q_same)]
    layers = [str(layer) for layer in doc.get("layers") or []]
    focus, other = name_of(doc, metric)
    title = f"{LABELS[metric]} per layer, {scale}: {focus} against {other}"
    if scale == "raw":
        title += f" (uniform attention on these lengths: {signed(tracks.null(doc, metric))})"
    return Grid(title, head, [list(row) for row in zip(layers, *columns, strict=True)])


def layer_grids(doc: Doc, scale: str) -> list[Grid]:
    """Every metric on one scale that the document holds."""
    first = tracks.names(doc)[:1]
    return [
        layer_grid(doc, metric, scale)
        for metric in METRICS
        if any(tracks.track(doc, who, metric, scale=scale) for who in first)
    ]


def form_grid(doc: Doc) -> Grid:
    """The forms of RFC and RSI side by side: mean over layers, and intervals that exclude 0."""
    rows = []
    for metric in METRICS:
        for who in tracks.names(doc):
            for scale in tracks.SCALES:
                found = [tracks.track(doc, who, metric, scale=scale, form=f) for f in FORMS]
                if any(found):
                    cells = [_mean(track) for track in found]
                    rows.append([who_is(who), LABELS[metric], scale, *cells])
        rows += _uniform(doc, metric)
    head = ["model", "metric", "scale", *map(form_name, FORMS)]
    return Grid("Forms of the ratio: mean over layers", head, rows)


def _uniform(doc: Doc, metric: str) -> list[list[str]]:
    """The row of what uniform attention gives in every form, where the document has it."""
    by_form = ((doc.get("null") or {}).get("raw") or {}).get("forms") or {}
    found = [tracks.number((by_form.get(form) or {}).get(metric)) for form in FORMS]
    if all(map(math.isnan, found)):
        return []
    return [["uniform attention", LABELS[metric], "raw", *map(signed, found)]]


def _mean(track: Track | None) -> str:
    return "–" if track is None else f"{signed(track.mean)} ({track.excludes_zero})"


def head_grid(doc: Doc, who: str) -> Grid:
    """The heads with the smallest p of a model or of the difference, on the normalised scale."""
    found = tracks.heads(doc, who)
    head = ["layer", "head", "focus", "reference", "difference", "RFC", "Cohen's d"]
    head += ["Cliff's delta", "p", "q", "p max", "p, equal length", "near zero"]
    rows = []
    for row in found.get("top") or []:
        line = [_text(row.get("layer")), _text(row.get("head"))]
        line += [_number(row, name, ".3f") for name in ("focus", "reference")]
        line += [_number(row, "diff", "+.3f"), _number(row, "rfc", "+.3f")]
        line += [_ranged(row, "d"), _ranged(row, "delta")]
        line += [_p(tracks.number(row.get(n))) for n in ("p", "q", "p_max", "p_same_length")]
        rows.append([*line, "yes" if row.get("flagged") else ""])
    title = f"Heads with the smallest p, {who_is(who)}: {_heads_of(doc)}"
    return Grid(title, head, rows)


def candidate_grid(doc: Doc) -> Grid:
    """The candidates for patching, best score first."""
    found: dict[str, Any] = doc.get("candidates") or {}
    head = ["rank", "layer", "head", "DiD, median [nats]", "consistency", "base entropy [nats]"]
    head += ["score", "z", "p", "p max"]
    rows = []
    for row in found.get("rows") or []:
        line = [_text(row.get(name)) for name in ("rank", "layer", "head")]
        line.append(
            with_interval(*(tracks.number(row.get(f"did_{n}")) for n in ("median", "low", "high")))
        )
        line += [_number(row, "consistency", ".2f"), _number(row, "baseline_entropy", ".3f")]
        line += [_number(row, name, ".2f") for name in ("composite_score", "z_null")]
        rows.append([*line, *(_p(tracks.number(row.get(name))) for name in ("p", "p_max"))])
    return Grid("Candidates for patching", head, rows)


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


def marked(track: Track, at: int) -> str:
    """Value and interval at an index of the layers, with the marks of its tests."""
    marks = mark(track, track.layers[at])
    text = with_interval(track.value[at], track.low[at], track.high[at])
    return f"{text} {marks}" if marks else text


def mark(track: Track, layer: int) -> str:
    """What the tests say of a layer, in the signs of :data:`MARKS`."""
    found = "*" * (layer in track.significant) + "†" * (layer in track.same_length)
    return found + "‡" * (layer in track.reversed)


def _heads_of(doc: Doc) -> str:
    """What the tests of single heads compare."""
    if tracks.contrast(doc) is None:
        return "length-normalised"
    return f"{' against '.join(name_of(doc, 'rfc'))}, length-normalised"


def _up_down(track: Track, layers: frozenset[int]) -> str:
    return f"{len(track.up & layers)} / {len(track.down & layers)}"


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
