"""The numbers of tests at single positions as rows of strings, for terminals and pages alike.

A number that does not exist is None in a document that was read back, and NaN in one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]

_LISTED = 12


def grids(doc: Doc, *, is_narrow: bool = False) -> list[Grid]:
    """The tables of a document, the most telling one first; ``is_narrow`` fits 80 columns."""
    made = {
        "redundancy": _redundancy,
        "offsets": _offsets,
        "patterns": _patterns,
        "compare": _compare,
    }
    return made[doc["test"]](doc, is_narrow)


def legend(doc: Doc) -> str:
    """What the words and signs of the tables mean."""
    told = _LEGENDS[doc["test"]]
    if doc.get("components"):
        for of_heads, of_components in _OF_COMPONENTS.items():
            told = told.replace(of_heads, of_components)
    return told + (
        " Brackets: 95 % bootstrap intervals over "
        + ("prompts." if len(doc["prompts"]) > 1 else "the positions of the one prompt.")
    )


_RANDOM = (
    "random: range over sets of as many other heads of the same layers, where there are enough; p "
    "is one-sided."
)
_LEGENDS = {
    "redundancy": "A: heads zero at t. B: values at t-1 zero, of all heads of the layer or "
    "those that the named heads read (spec). NIP: <x, y> / |x|^2 of the layer's attention output "
    "at t. KL: nats, of the logits at t. remains: |A - AB|^2 over |base - B|^2, all heads' "
    f"values. {_RANDOM}",
    "offsets": "A: heads zero at t. B: values at t-offset zero, of all heads of the layer. B, AB: "
    "what is left of the layer's attention output at t, as NIP, <x, y> / |x|^2. remains: "
    f"|A - AB|^2 over |base - B|^2. {_RANDOM}",
    "patterns": "moved: share of a head's attention at t that goes to other keys. p any: for any "
    f"head under random sets to move as far. {_RANDOM}",
    "compare": "other token: share of cases in which the likeliest next token is not the "
    "baseline's. KL: nats, to the baseline. logit: of the baseline's token, less the baseline's. "
    f"{_RANDOM}",
}


_OF_COMPONENTS = {
    "A: heads zero at t.": "A: components taken out, those of q and o at t, of k and v everywhere.",
    "the named heads read": "the components' heads read",
    "other heads of the same layers": "other components of the same maps",
}
"""What a legend says of heads, and of components in their place."""


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was."""
    counts = doc.get("n_samples") or {}
    versions = doc.get("versions") or {}
    prompts = doc["prompts"]
    named = ", ".join(safe_text(str(p["id"]), limit=40) for p in prompts[:8])
    more = f" and {len(prompts) - 8} more" if len(prompts) > 8 else ""
    found = [
        ("models", safe_text(str(doc.get("display") or doc.get("pair") or ""))),
        ("components" if doc.get("components") else "heads", heads(doc)),
        ("positions t", ", ".join(f"{n} in {name}" for name, n in counts.items())),
        ("prompts", named + more),
        ("random sets", str(len(doc.get("random") or doc.get("random_components") or []))),
        ("seed", str(doc.get("seed", ""))),
        ("run", safe_text(str(doc.get("run_id") or ""))),
        ("made", safe_text(str(doc.get("timestamp") or ""))),
        (
            "versions",
            ", ".join(f"{safe_text(str(k))} {safe_text(str(versions[k]))}" for k in versions),
        ),
        ("notes", "; ".join(safe_text(str(note)) for note in doc.get("notes") or [])),
    ]
    return [(name, value) for name, value in found if value]


def heads(doc: Doc) -> str:
    """The heads, or the components in their place, by name."""
    if doc.get("components"):
        return ", ".join(safe_text(str(name), limit=60) for name in doc["components"])
    return ", ".join(f"L{layer}H{head}" for layer, head in doc["heads"])


def taken(doc: Doc) -> str:
    """What is taken out at t: heads or components."""
    return "components" if doc.get("components") else "heads"


def number(value: Any) -> float:
    """The value as a float; NaN for what is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _redundancy(doc: Doc, is_narrow: bool) -> list[Grid]:
    remains = [
        [
            *_model(doc, row),
            str(row["layer"]),
            _percent(row["share"], row["ci"]),
            *_random(row["random"], percent=True),
        ]
        for row in doc["remains"]
    ]
    head = [*_models(doc), "layer", "remains", "random", "p"]
    rows = [
        [
            *_model(doc, row),
            row["comparison"],
            str(row["layer"]),
            _told(row["nip"]),
            _told(row["cosine"]),
            format_number(number(row["kl"]["mean"])),
        ]
        for row in doc["rows"]
    ]
    compared = [*_models(doc), "comparison", "layer", "NIP", "cosine", "KL"]
    return [
        Grid(f"What the values at t-1 still give without the {taken(doc)}", head, remains),
        Grid("Seven comparisons at t", compared, rows),
    ]


def _offsets(doc: Doc, is_narrow: bool) -> list[Grid]:
    rows = [
        [
            *_model(doc, row),
            str(row["layer"]),
            str(row["offset"]),
            str(row["n"]),
            _told(row["base - B"]["nip"], is_short=is_narrow),
            _told(row["base - AB"]["nip"], is_short=is_narrow),
            _percent(row["share"], row["ci"]),
            *_random(row["random"], percent=True),
        ]
        for row in doc["rows"]
    ]
    head = [*_models(doc), "layer", "offset", "n", "B", "AB", "remains"]
    alone = [
        [*_model(doc, row), str(row["layer"]), _told(row["nip"]), _told(row["cosine"])]
        for row in doc["heads_alone"]
    ]
    return [
        Grid(
            "What the values at t-offset still give without the heads",
            [*head, "random", "p"],
            rows,
        ),
        Grid("The heads alone, base - A", [*_models(doc), "layer", "NIP", "cosine"], alone),
    ]


def _patterns(doc: Doc, is_narrow: bool) -> list[Grid]:
    rows = []
    for model in doc["models"]:
        ours = [row for row in doc["rows"] if row["model"] == model]
        rows += [
            [
                *_model(doc, row),
                f"L{row['layer']}H{row['head']}",
                _percent(row["moved"], row["ci"]),
                *_random(row["random"], percent=True),
                format_number(number(row["p_any"])),
            ]
            for row in ours[:_LISTED]
        ]
    head = [*_models(doc), "head", "moved", "random", "p", "p any"]
    return [Grid("Later heads that look elsewhere from t", head, rows)]


def _compare(doc: Doc, is_narrow: bool) -> list[Grid]:
    rows = [
        [
            *_model(doc, row),
            row["condition"],
            _percent(row["changed"]["mean"], row["changed"]["ci"]),
            _told(row["kl"]),
            *([] if is_narrow else _random(row["kl"].get("random") or {})),
            format_number(number(row["change"]["mean"]), "+.2f"),
        ]
        for row in doc["means"]
    ]
    null = [] if is_narrow else ["random KL", "p"]
    head = [*_models(doc), "condition", "other token", "KL", *null, "logit"]
    return [Grid("What each condition changes at t", head, rows)]


def _models(doc: Doc) -> list[str]:
    return ["model"] if len(doc["models"]) > 1 else []


def _model(doc: Doc, row: Mapping[str, Any]) -> list[str]:
    return [str(row["model"])] if len(doc["models"]) > 1 else []


def _told(value: Mapping[str, Any], *, is_short: bool = False) -> str:
    """``0.948 [0.92, 0.97]``; without the interval where that is to be short."""
    shown = format_number(number(value["mean"]))
    low, high = (number(end) for end in value["ci"])
    return shown if math.isnan(low) or is_short else f"{shown} [{low:.2f}, {high:.2f}]"


def _percent(value: Any, ci: Sequence[Any]) -> str:
    """``31 % [17, 39]``."""
    share = number(value)
    if math.isnan(share):
        return "–"
    low, high = (number(end) for end in ci)
    bounds = "" if math.isnan(low) else f" [{_whole(low)}, {_whole(high)}]"
    return f"{_whole(share)} %{bounds}"


def _whole(share: float) -> str:
    """A share in percent, never as -0."""
    return f"{round(100 * share) + 0:d}"


def _random(null: Mapping[str, Any], *, percent: bool = False) -> list[str]:
    """The range over random sets, and p."""
    low, high = (number(end) for end in null.get("range") or (None, None))
    p = format_number(number(null.get("p")))
    if math.isnan(low):
        return ["–", p]
    return [f"{_whole(low)} to {_whole(high)} %" if percent else f"{low:.2g} to {high:.2g}", p]
