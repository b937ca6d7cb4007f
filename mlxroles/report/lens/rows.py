"""The numbers of a lens document as rows of strings, the same for every kind of report."""

import math
from collections.abc import Mapping
from typing import Any

from mlxroles.report.lens.wording import (
    PARTS,
    SITES,
    differences_of,
    differs,
    followed,
    interval,
    name,
)
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text, show_token

Doc = Mapping[str, Any]


def layer_grids(doc: Doc) -> list[Grid]:
    """A table per model, variant, run and lens: a row per layer at the last position read."""
    return [layer_grid(doc, entry) for entry in doc.get("curves") or []]


def layer_grid(doc: Doc, entry: Doc) -> Grid:
    """One curve as a table; the row from which the headline stays on top ends in a mark."""
    several = int(entry["n_prompts"]) > 1
    head = ["layer", "P", "log-odds", *["contrast"] * ("contrast" in entry), "rank", "entropy"]
    head += ["KL", *([] if several else ["likeliest token"])]
    rows = []
    decided = None if doc["site"] in PARTS else entry["decided"].get("median")
    for at, layer in enumerate(doc["layers"]):
        line = [
            f"{layer}{' ◆' if decided is not None and layer == math.ceil(decided) else ''}",
            _alone(entry, "p_first_token", at, ".3f"),
            (_alone if "contrast" in entry else interval)(entry, "log_odds", at, "+.2f"),
            *([interval(entry, "contrast", at, "+.2f")] if "contrast" in entry else []),
            _rank(entry, at),
            _alone(entry, "entropy", at, ".2f"),
            _alone(entry, "kl", at, ".2f"),
        ]
        if not several:
            token, prob = entry["top"][at]
            text = show_token((doc.get("texts") or {}).get(str(token), token), limit=16)
            line.append(f"{text} {format_number(prob, '.2f')}")
        rows.append(line)
    return Grid(name(entry), head, rows)


def _alone(entry: Doc, key: str, at: int, form: str) -> str:
    """A number of a curve at a layer, without its interval."""
    value = entry[key][at]
    return format_number(math.nan if value is None else value, form)


def _rank(entry: Doc, at: int) -> str:
    """The headline's place: 1 is the top."""
    value = entry["rank"][at]
    return "–" if value is None else f"{1 + value:,.0f}"


def legend(doc: Doc) -> str:
    """What the columns mean."""
    headline = followed(doc)
    parts = [
        f"P, log-odds: of the first token of {headline}",
        "rank: 1 is the likeliest"
        + (f" of {doc['vocab']:,} tokens" if doc.get("vocab") else "")
        + (" (geometric mean over prompts)" if _several(doc) else ""),
        "entropy, KL to the model's own answer: nats",
        *([] if doc["site"] in PARTS else ["◆ on top from here to the end"]),
    ]
    if doc.get("contrast"):
        pair = " and ".join(show_token(text, limit=20) for text in doc["contrast"])
        parts.insert(1, f"contrast: ln of the odds between {pair}")
    if _several(doc):
        parts.append("brackets: 95 % bootstrap over prompts")
    return " · ".join(parts)


def _several(doc: Doc) -> bool:
    return any(int(entry["n_prompts"]) > 1 for entry in doc.get("curves") or [])


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was."""
    prompts = [safe_text(str(p.get("id")), limit=40) for p in doc.get("prompts") or []]
    more = f" and {len(prompts) - 8} more" if len(prompts) > 8 else ""
    tuned = doc.get("tuned") or {}
    edits = doc.get("edits") or {}
    lines = next(iter(edits.values()), []) if edits else []
    found = [
        ("models", safe_text(str(doc.get("display") or doc.get("pair") or ""), limit=80)),
        ("read", SITES.get(doc["site"], doc["site"])),
        ("followed string", followed(doc, 60)),
        ("prompts", ", ".join(prompts[:8]) + more),
        ("tuned lens", ", ".join(safe_text(str(t.get("path")), limit=80) for t in tuned.values())),
        ("edits", "; ".join(safe_text(line, limit=120) for line in lines)),
        ("run", safe_text(str(doc.get("run_id") or ""), limit=40)),
        ("made", safe_text(str(doc.get("timestamp") or ""), limit=40)),
        (
            "versions",
            ", ".join(
                f"{safe_text(k, limit=20)} {safe_text(str(v), limit=60)}"
                for k, v in (doc.get("versions") or {}).items()
            ),
        ),
    ]
    return [(key, value) for key, value in found if value]


def gain_grid(doc: Doc, model: str) -> Grid:
    """A row per layer of a fitted lens: KL of plain and tuned lens on held-out text, the gain."""
    head = ["layer", "KL plain", "tuned", "constant", "gain", "next token", "step"]
    rows = []
    for row in doc["rows"]:
        if row["model"] != model:
            continue
        rows.append(
            [
                str(row["layer"]),
                f"{row['kl_plain']:.3f}",
                f"{row['kl_tuned']:.3f}",
                f"{row['kl_constant']:.3f}",
                bracketed(row, "gain"),
                bracketed(row, "loss_gain"),
                str(row["best_step"]),
            ]
        )
    return Grid(model, head, rows)


def bracketed(row: Doc, key: str) -> str:
    """A number with its 95 % interval."""
    value, bounds = row[key], row.get(f"{key}_ci") or [None, None]
    text = format_number(math.nan if value is None else value, "+.3f")
    if None in bounds:
        return text
    return f"{text} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def difference_grid(doc: Doc) -> Grid | None:
    """What a change makes of the log-odds, layer by layer; None where nothing is compared."""
    found = differences_of(doc)
    if not found:
        return None
    head = ["layer", *(differs(entry) for entry in found)]
    rows = []
    for at, layer in enumerate(doc["layers"]):
        cells = [
            f"{d['mean'][at]:+.2f} [{d['ci'][0][at]:.2f}, {d['ci'][1][at]:.2f}]" for d in found
        ]
        rows.append([str(layer), *cells])
    what = "log of the odds" if doc.get("contrast") else "log-odds"
    return Grid(f"Change of the {what}, paired by prompt", head, rows)


GAIN_LEGEND = (
    "KL: nats per position to the model's own answer, on held-out texts · constant: of one answer "
    "for every position, the mean one of the training texts · gain: plain − tuned, "
    "[95 % bootstrap over texts] · next token: what it gains on the token that follows, nats · "
    "step: the one that is kept, 0 is the plain lens"
)


def parts_by_name(doc: Doc, most: int = 6) -> dict[str, Doc]:
    """Documents of direct attribution by model, variant and run; of several prompts the first."""
    found: dict[str, Doc] = {}
    first = (doc.get("parts") or [{}])[0].get("prompt")
    for entry in doc.get("parts") or []:
        if entry["prompt"] != first:
            continue
        which = f", prompt {safe_text(str(entry['prompt']), limit=30)}"
        found.setdefault(name(entry) + which * (len(doc["prompts"]) > 1), entry)
    return dict(list(found.items())[:most])
