"""The numbers of an injection document as rows of strings, the same for terminal and page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.report.inject.wording import (
    ALPHA,
    is_mean,
    number,
    probability,
    share,
    where,
)
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text

Values = Mapping[str, Any]

HEADS = 3
"""Heads that are listed per model and prompt."""

_BRIEF = (
    *("model", "vector", "layer", "scale", "score", "z", "right", "beyond 0"),
    *("P clean", "P", "P random", "random", "p, all"),
)

ROLES = {
    "detect": "asked about an injection",
    "no": "controls, right answer No",
    "yes": "controls, right answer Yes",
    "toward": "prompts that show it",
    "away": "prompts that lack it",
    "prompt": "prompts",
    "trial": "trials",
}


def clean_grid(doc: Values) -> Grid:
    """What the models say without any injection."""
    is_battery, is_prompts = doc["mode"] == "battery", doc["mode"] == "prompts"
    head = ["model", "asked", "n"]
    head += ["Yes - No", "right"] if is_battery else ["log-odds", "P"] if is_prompts else []
    head += ["entropy"] if is_prompts else ["P(answer)", "entropy"]
    rows = []
    for model, found in doc["models"].items():
        for role, values in found["clean"].items():
            row = [model, ROLES.get(role, role), str(values["n"])]
            if is_battery:
                row += [number(values["b"]), share(values.get("right"))]
            elif is_prompts:
                row += [number(values["log_odds"]), probability(values["p"])]
            row += [] if is_prompts else [probability(values["p_answer"])]
            rows.append([*row, format_number(values["entropy"], ".2f")])
    return Grid("Without injection", head, rows)


def tests_grid(doc: Values) -> Grid:
    """The strongest spot of every vector, with its p over all spots."""
    makers = {"battery": _score, "prompts": _steer, "localise": _right}
    heads = {
        "battery": ["question", "No ctrl", "Yes ctrl", "score", "z", "pct", "beyond 0", "right"],
        "prompts": ["asked", "done", "P clean", "P", "95 %", "P random"],
        "localise": ["right", "95 %", "as it is", "random"],
    }
    mode = doc["mode"]
    head = ["model", "vector", "layer", "scale", *heads[mode], "p", "p, all"]
    rows = []
    for test in doc["tests"]:
        name = safe_text(test["vector"], limit=24)
        lead = [test["model"], name, str(test["layer"]), _scale(test["scale"])]
        tail = [_p(test, "p"), _p(test, "p_any")]
        rows.append([*lead, *makers[mode](test), *tail])
    return Grid("Strongest spot of each vector", head, rows)


def brief(grid: Grid) -> Grid:
    """The same in the columns that say most, for narrow terminals."""
    kept = [n for n, name in enumerate(grid.head) if name in _BRIEF]
    rows = [[row[n] for n in kept] for row in grid.rows]
    return Grid(grid.title, [grid.head[n] for n in kept], rows)


def _score(test: Values) -> list[str]:
    keys = ("shift_detect", "shift_no", "shift_yes", "value", "z")
    numbers = [number(test.get(key)) for key in keys]
    shares = [share(test.get(key)) for key in ("percentile", "controls_right")]
    return [*numbers, shares[0], number(test.get("excess")), shares[1]]


def _steer(test: Values) -> list[str]:
    random = f"{probability(test['random_least'])}..{probability(test['random_most'])}"
    done = "projected out" if test["test"] == "out" else "added"
    role = f"{test['n_prompts']} {ROLES[test['role']]}"
    low, high = test.get("probability_ci") or (None, None)
    inside = f"{probability(low)}..{probability(high)}"
    levels = [probability(test[key]) for key in ("clean_probability", "probability")]
    return [role, done, *levels, inside, random]


def _right(test: Values) -> list[str]:
    bounds: Sequence[Any] = test.get("value_ci") or (None, None)
    low, high = test.get("random_low"), test.get("random_high")
    inside = f"{share(bounds[0])}..{share(bounds[1])}"
    return [
        share(test["value"]),
        inside,
        share(test.get("raw_right")),
        f"{share(low)}..{share(high)}",
    ]


def _p(test: Values, key: str, *, is_marked: bool = True) -> str:
    value = documents.number(test, key)
    mark = " *" if is_marked and value <= ALPHA else ""
    return format_number(value, ".3f") + mark


def _scale(scale: Any) -> str:
    return scale if isinstance(scale, str) else f"{scale:g}"


def map_grids(doc: Values) -> Iterator[Grid]:
    """Layer by scale for each model and vector: the main number, starred where p is small."""
    key = {"battery": "score", "prompts": "shift", "localise": "right"}[doc["mode"]]
    for model, name, family in families(doc):
        chosen = rows_of(doc, model, name, family)
        scales = list(dict.fromkeys(row["scale"] for row in chosen))
        layers = list(dict.fromkeys(row["layer"] for row in chosen))
        at = {(row["layer"], row["scale"]): row for row in chosen}
        body = []
        for layer in layers:
            cells = [at.get((layer, scale)) for scale in scales]
            body.append([str(layer), *("" if c is None else _cell(doc, c, key) for c in cells)])
        what = "mean of all vectors" if is_mean(doc, name) else safe_text(name, limit=24)
        title = f"{model}: {what}{_asked(family)}"
        yield Grid(title, ["layer", *(_scale(scale) for scale in scales)], body)


def mapped(doc: Values) -> str:
    """What the maps hold, in words."""
    return {
        "battery": "2x2 score by layer and scale, nats",
        "prompts": f"Shift of the {safe_text(doc['headline'], limit=60)} by layer and scale, nats",
        "localise": "Share of trials whose place is named, by layer and scale",
    }[doc["mode"]]


def families(doc: Values) -> list[tuple[str, str, tuple[str, str] | None]]:
    """(model, vector, (role, family)) of all that is mapped, in the order of the rows."""
    found = {}
    for row in doc["rows"]:
        family = (row["role"], row["family"]) if "role" in row else None
        found[row["model"], row["vector"], family] = None
    return list(found)


def rows_of(
    doc: Values, model: str, name: str, family: tuple[str, str] | None = None
) -> list[Values]:
    """The rows of one map."""
    return [
        row
        for row in doc["rows"]
        if (row["model"], row["vector"]) == (model, name)
        and (family is None or (row["role"], row["family"]) == family)
    ]


def _asked(family: tuple[str, str] | None) -> str:
    if family is None:
        return ""
    return f" {'out' if family[1] == 'out' else 'added'} ({family[0]})"


def _cell(doc: Values, row: Values, key: str) -> str:
    value = share(row[key]) if key == "right" else number(row[key])
    if row.get("answers") is False:
        return f"({value})"
    return value + ("*" if documents.number(row, "p") <= ALPHA else "")


def heads_grid(doc: Values) -> Grid | None:
    """Heads that the strongest addition moves most; None where no pattern was looked at."""
    rows = []
    for model, found in (doc.get("attention") or {}).items():
        for item in found["items"]:
            for head in item["heads"][:HEADS]:
                place = f"L{head['layer']}H{head['head']}"
                at = f"L{found['layer']} x {found['scale']:g}"
                values = [format_number(head[key], ".3f") for key in ("clean", "injected")]
                moved = number(head["change"], "+.3f")
                rows.append([model, item["id"], at, place, *values, moved])
                rows[-1] += [_p(head, "p", is_marked=False), _p(head, "p_max")]
    if not rows:
        return None
    head = ["model", "prompt", "added", "head", "without", "with", "change", "p", "p, all"]
    return Grid("Attention from the deciding query to the injected positions", head, rows)


def facts(doc: Values) -> list[tuple[str, str]]:
    """What the run was."""
    names = ", ".join(safe_text(name, limit=30) for name in doc["vectors"][:8])
    more = f" and {len(doc['vectors']) - 8} more" if len(doc["vectors"]) > 8 else ""
    versions = doc.get("versions") or {}
    lengths = [
        f"{model} {format_number(min(shares), '.2g')} to {format_number(max(shares), '.2g')}"
        for model, shares in _shares(doc)
    ]
    battery = safe_text(str(doc.get("battery") or ""), limit=60)
    found = [
        ("models", safe_text(str(doc.get("display")), limit=80)),
        ("vectors", names + more),
        ("length beside the stream's", "; ".join(lengths)),
        ("added at", where(doc)),
        ("layers", f"{', '.join(map(str, doc['layers']))} of {doc['n_layers']}"),
        ("scales", ", ".join(f"{scale:g}" for scale in doc["scales"])),
        ("random vectors", f"{doc['n_random']} of the same length, seed {doc['seed']}"),
        ("battery", battery),
        ("prompts", str(len(doc["prompts"]))),
        ("run", str(doc["run_id"])),
        ("made", str(doc.get("timestamp"))),
        ("versions", ", ".join(f"{safe_text(k)} {safe_text(str(v))}" for k, v in versions.items())),
    ]
    return [(name, value) for name, value in found if value]


def _shares(doc: Values) -> Iterator[tuple[str, list[float]]]:
    """Lengths of the vectors as shares of the stream's, by model."""
    for model, found in doc["models"].items():
        shares: list[float] = [
            length / stream
            for how in found["lengths"].values()
            for length, stream in zip(how["length"] or (), how["stream"] or (), strict=False)
            if stream
        ]
        if shares:
            yield model, shares


def legend(doc: Values) -> str:
    """What the columns mean."""
    p = (
        "p: share of draws, the vector among them, as far from the mean of all draws; over all "
        "spots, or heads, it is familywise · * p up to .05"
    )
    if doc["mode"] == "battery":
        return (
            "score: shift of Yes - No in the questions about an injection less that in the No "
            "controls, nats · z, pct: among the No controls · beyond 0: what is left when "
            "shifts follow the controls' own baselines · in parentheses: the controls are no "
            f"longer answered, not tested · {p}"
        )
    if doc["mode"] == "localise":
        return f"right: the number of the injected sentence gains most · as it is: likeliest · {p}"
    return f"P random: least and largest of the random vectors, mean over prompts · {p}"
