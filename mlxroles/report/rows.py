"""The numbers of a patch document as rows of strings, the same for every kind of report."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlxroles import documents
from mlxroles.text import format_number, ranges, safe_text, show_token

_MOST_PARTS = 40


class Grid(NamedTuple):
    """A table: a title, the head and the rows, all as text that is safe to show."""

    title: str
    head: list[str]
    rows: list[list[str]]


def facts(doc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was: pair, models' layers, site, prompts, versions."""
    prompts = doc.get("prompts") or []
    named = ", ".join(safe_text(str(prompt.get("id")), limit=40) for prompt in prompts[:8])
    more = f" and {len(prompts) - 8} more" if len(prompts) > 8 else ""
    tested = documents.layers(doc)
    count = f"{len(tested)} of {doc.get('n_layers')}"
    versions = doc.get("versions") or {}
    found = [
        ("pair", _text(doc.get("display") or doc.get("pair"))),
        ("measured string", _text(doc.get("headline"))),
        ("patched", place(doc)),
        ("layers tested", f"{ranges(tested)} ({count})"),
        ("prompts", f"{named}{more}"),
        ("seed", _text(doc.get("seed") or None)),
        ("tokens", _text(doc.get("n_tokens_per_prompt") or doc.get("n_tokens"))),
        ("run", _text(doc.get("run_id"))),
        ("made", _text(doc.get("timestamp"))),
        ("versions", ", ".join(f"{_text(key)} {_text(versions[key])}" for key in versions)),
    ]
    return [(name, value) for name, value in found if value not in ("", "–")]


def title(doc: Mapping[str, Any]) -> str:
    """What was patched where, on which prompts: what tells a run from others of its pair."""
    prompts = doc.get("prompts") or []
    one = safe_text(str(prompts[0].get("id")), limit=40) if len(prompts) == 1 else ""
    tested, total = documents.layers(doc), doc.get("n_layers")
    is_part = isinstance(total, int) and 0 < len(tested) < total
    parts = [
        place(doc),
        f"layer{'s' * (len(tested) > 1)} {ranges(tested)}" if is_part else "",
        one or f"{len(prompts)} prompts",
        f"seed {_text(doc['seed'])}" if doc.get("seed") else "",
    ]
    pair = _text(doc.get("display") or doc.get("pair"))
    return f"Patching {pair}: {', '.join(part for part in parts if part)}"


def place(doc: Mapping[str, Any]) -> str:
    """Where the run patches, in words that are safe to show."""
    found = documents.place(doc.get("site"), doc.get("positions", "all"), doc.get("heads"))
    return safe_text(found, limit=120)


def baselines(doc: Mapping[str, Any]) -> Grid:
    """The unpatched models."""
    head = ["model", "P", "P first", "P chain", "log-odds", "rank", "entropy", "likeliest tokens"]
    rows = []
    for model in ("base", "instruct"):
        values = documents.baseline(doc, model)
        rows.append(
            [
                model,
                _with_interval(values, "tool_call_prob", ".3f"),
                _number(values, "p_first_token", ".3f"),
                _number(values, "p_chain", ".3f"),
                _with_interval(values, "log_odds", "+.2f"),
                _number(values, "rank", ".0f"),
                _number(values, "entropy", ".2f"),
                _top(values),
            ]
        )
    return Grid("Unpatched models", head, rows)


def layer_grid(doc: Mapping[str, Any], direction: str) -> Grid:
    """One direction: a row per layer, or the largest of its heads or positions."""
    title = documents.arrow(direction)
    for axis in ("by_head", "by_position"):
        if any(documents.parts(doc, direction, axis)):
            return _part_grid(doc, direction, axis, title)
    names = documents.controls(doc)
    head = [
        "layer",
        "P",
        "effect",
        *_test_heads(doc),
        "R",
        *(["increment"] if documents.accumulates(doc) else []),
        "KL",
        *(f"R, {_name(name)}" for name in names),
        "likeliest token",
    ]
    found = documents.finding(doc, direction)
    by_control = {name: documents.cells(doc, direction, name) for name in names}
    rows = []
    for layer, values in documents.cells(doc, direction).items():
        marks = [" ◆"] * (layer == found.peak_layer) + [" ½"] * (layer == found.half_layer)
        rows.append(
            [
                f"{layer}{''.join(marks)}",
                _with_interval(values, "tool_call_prob", ".3f"),
                _effect(values),
                *_tests(doc, values),
                _with_interval(values, "recovery", ".2f"),
                *([_number(values, "increment", "+.2f")] if "increment" in head else []),
                _number(values, "kl", ".3f"),
                *(_number(by_control[name].get(layer), "recovery", ".2f") for name in names),
                _top(values, count=1),
            ]
        )
    return Grid(title, head, rows)


def _part_grid(doc: Mapping[str, Any], direction: str, axis: str, title: str) -> Grid:
    what = axis.removeprefix("by_")
    found = list(documents.parts(doc, direction, axis))
    found.sort(key=lambda row: -_size(row[2]))
    names = documents.controls(doc)
    by_control = {
        name: {row[:2]: row[2] for row in documents.parts(doc, direction, axis, name)}
        for name in names
    }
    rows = [
        [
            str(layer),
            str(part),
            _with_interval(values, "tool_call_prob", ".3f"),
            _effect(values),
            *_tests(doc, values),
            _with_interval(values, "recovery", ".2f"),
            _number(values, "kl", ".3f"),
            *(_number(by_control[name].get((layer, part)), "recovery", ".2f") for name in names),
            _top(values, count=1),
        ]
        for layer, part, values in found[:_MOST_PARTS]
    ]
    if len(found) > _MOST_PARTS:
        title += f" (the {_MOST_PARTS} largest effects of {len(found)})"
    numbers = ["P", "effect", *_test_heads(doc), "R", "KL"]
    controls = [f"R, {_name(name)}" for name in names]
    return Grid(title, ["layer", what, *numbers, *controls, "likeliest token"], rows)


def how_tested(doc: Mapping[str, Any]) -> str:
    """What p and q are, and how small p can be at all; empty where there are none."""
    flips = doc.get("sign_flips")
    if not flips:
        return ""
    least = format_number(documents.number(flips, "smallest_p"), ".2g")
    return (
        "p: of the effect's mean over prompts, by flipping the signs of prompts; q: corrected for "
        "the cells of a direction (Benjamini-Hochberg); log-odds: the same of the effect in "
        f"log-odds · with {documents.prompt_count(doc)} prompts no p can be below {least}"
    )


def _test_heads(doc: Mapping[str, Any]) -> list[str]:
    return ["p (q)", "p (q), log-odds"] if doc.get("sign_flips") else []


def _tests(doc: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    if not doc.get("sign_flips"):
        return []
    return [
        f"{_number(values, f'{name}_p', '.2g')} ({_number(values, f'{name}_q', '.2g')})"
        for name in ("effect", "effect_log_odds")
    ]


def _size(values: Mapping[str, Any]) -> float:
    effect = documents.number(values, "effect")
    return -1.0 if math.isnan(effect) else abs(effect)


def _effect(values: Mapping[str, Any]) -> str:
    is_marked = abs(documents.number(values, "effect")) > documents.MARKED_EFFECT
    return _with_interval(values, "effect", "+.3f") + " ***" * is_marked


def _number(values: Mapping[str, Any] | None, name: str, form: str) -> str:
    return format_number(documents.number(values, name), form)


def _with_interval(values: Mapping[str, Any], name: str, form: str) -> str:
    bounds = documents.interval(values, name)
    text = _number(values, name, form)
    return text if bounds is None else f"{text} [{bounds[0]:{form}}, {bounds[1]:{form}}]"


def _top(values: Mapping[str, Any], count: int = 3) -> str:
    return ", ".join(
        f"{show_token(entry.get('token'), limit=24)} {_number(entry, 'prob', '.3f')}"
        for entry in (values.get("top5") or [])[:count]
    )


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(_text(each) for each in value[:8])
        return shown + (", …" if len(value) > 8 else "")
    return "–" if value is None else safe_text(str(value), limit=120)


def _name(control: str) -> str:
    return safe_text(control, limit=40).replace("_", " ")
