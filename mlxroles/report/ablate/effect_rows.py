"""The numbers of an effects document as rows of strings, for pages, terminals and figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles.heads import head_name
from mlxroles.report.rows import Grid
from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]
Row = Mapping[str, Any]

MARKED = 0.3
"""A head whose score is above this is called a previous-token or an induction head."""

_METHODS = {
    "zero": "set to zero",
    "scale": "scaled",
    "mean": "set to the mean of the reference",
    "resample": "replaced by another prompt's",
}
_EFFECTS = {
    "gain": "repetition gain lost [nats]",
    "log_odds": "change of log-odds [nats]",
    "kl": "KL from the clean run [nats]",
}


def models(doc: Doc) -> list[str]:
    """Models of which there is any row; all of them without a row."""
    found = {row["model"] for row in doc["rows"]}
    return [name for name in doc["models"] if name in found] or list(doc["models"])


def effect_name(doc: Doc) -> str:
    """The headline effect with its unit."""
    return _EFFECTS[doc["headline"]]


def method(doc: Doc) -> str:
    """How things are ablated, in words."""
    if any(row["kind"] == "direction" for row in doc["rows"]):
        return "projected out"
    if doc["method"] == "zero" and any(row["kind"] == "components" for row in doc["rows"]):
        return "taken out"
    return _METHODS.get(doc["method"], str(doc["method"]))


def positions(doc: Doc) -> str:
    """Where they are."""
    where = str(doc["positions"])
    if where == "all":
        return "at all positions"
    return "at the last position" if where == "last" else f"at positions {safe_text(where)}"


def name(row: Row) -> str:
    """An ablation's name, with its factor where it has one."""
    shown = safe_text(str(row["ablation"]), limit=60)
    return shown if row["factor"] is None else f"{shown} x{row['factor']:g}"


def number(values: Any, key: str = "mean") -> float:
    """A number of the document; NaN for none."""
    value = (values or {}).get(key)
    return math.nan if value is None else float(value)


def of_key(doc: Doc, model: str, key: str) -> list[Row]:
    """Rows of one ablation, one per factor."""
    return [row for row in doc["rows"] if row["model"] == model and row["key"] == key]


def strongest_keys(doc: Doc, model: str) -> list[str]:
    """Ablations by their largest effect."""
    sizes: dict[str, float] = {}
    for row in doc["rows"]:
        if row["model"] == model:
            size = abs(np.nan_to_num(number(row["effect"])))
            sizes[row["key"]] = max(sizes.get(row["key"], 0.0), size)
    return sorted(sizes, key=lambda key: -sizes[key])


def ordered(doc: Doc, *, most: int) -> dict[str, list[Row]]:
    """Rows of each model: as planned where there are few, else the largest effects first."""
    found = {}
    for model in models(doc):
        own = [row for row in doc["rows"] if row["model"] == model]
        if doc["is_each"] or len(own) > most:
            own = sorted(own, key=lambda row: -abs(np.nan_to_num(number(row["effect"]))))[:most]
        found[model] = own
    return found


def head_grid(doc: Doc, model: str) -> np.ndarray:
    """Headline effects of single heads [layer, head], NaN where there is none."""
    own = [r for r in doc["rows"] if r["model"] == model and len(r["heads"]) == 1]
    factor = min((r["factor"] for r in own if r["factor"] is not None), default=None)
    own = [r for r in own if r["factor"] == factor]
    width = max((r["heads"][0][1] for r in own), default=0) + 1
    grid = np.full((int(doc["n_layers"]), width), np.nan)
    for row in own:
        grid[tuple(row["heads"][0])] = number(row["effect"])
    return grid


def title(doc: Doc) -> str:
    """What was ablated in which models."""
    return f"Ablations in {safe_text(str(doc['display']), limit=60)}"


def grid(doc: Doc, model: str, *, most: int = 40) -> Grid:
    """The table of one model's effects."""
    own = ordered(doc, most=most)[model]
    total = sum(row["model"] == model for row in doc["rows"])
    columns = _columns(doc, own)
    has_heads = any(row["heads"] for row in own)
    head = ["ablated", *(["heads"] * has_heads), *(label for label, _ in columns)]
    found = []
    for row in own:
        count = [str(len(row["heads"])) if row["heads"] else ""] * has_heads
        found.append([name(row), *count, *(draw(row) for _, draw in columns)])
    shown = f"{model}: " if len(doc["models"]) > 1 else ""
    what = "effects" if len(own) == total else f"the {len(own)} largest of {total} effects"
    return Grid(f"{shown}{what}{_unablated(doc, model)}", head, found)


def _unablated(doc: Doc, model: str) -> str:
    """What the model does by itself, where effects are changes of that."""
    base = doc["baseline"].get(model) or {}
    if doc["headline"] == "gain":
        return f"; unablated, the gain is {format_number(number(base.get('gain')), '.2f')} nats"
    if doc["headline"] == "log_odds":
        odds = format_number(number(base.get("log_odds")), "+.2f")
        return f"; unablated {odds}, P {format_number(number(base.get('p_first_token')), '.3f')}"
    return ""


def _columns(doc: Doc, own: Sequence[Row]) -> list[tuple[str, Any]]:
    """Label and text of each column that any row has."""
    gain, odds = doc["headline"] == "gain", doc["headline"] == "log_odds"
    base = {m: number(v.get("gain")) for m, v in doc["baseline"].items()}
    candidates: list[tuple[str, str, Any]] = [
        ("removed", "removed", lambda r: _percent(r.get("removed"))),
        ("gain", "gain left", lambda r: format_number(number(r.get("gain")), ".2f")),
        ("log_odds", "Δ log-odds", lambda r: _between(r["effect"], "+.2f")),
        ("p_first_token", "P", lambda r: format_number(number(r.get("p_first_token")), ".3f")),
        ("null", "random", lambda r: _random(doc, r, base)),
        ("null", "p", lambda r: format_number(number(r.get("null"), "p"), ".2g")),
        ("beyond_sum", "beyond sum", lambda r: _between(r.get("beyond_sum"), "+.2f")),
        ("kl", "KL", lambda r: format_number(number(r.get("kl")), ".3f")),
        ("top1_changed", "top-1", lambda r: _share(r.get("top1_changed"))),
        ("logit_diff", "Δ logit", lambda r: format_number(number(r.get("logit_diff")), "+.2f")),
        ("loss", "Δ loss", lambda r: format_number(number(r.get("loss")), "+.3f")),
        ("nip", "NIP", lambda r: format_number(number(r.get("nip")), ".2f")),
        ("cosine", "cos", lambda r: format_number(number(r.get("cosine")), ".2f")),
    ]
    left_out = set() if gain else {"removed", "gain"}
    left_out |= set() if odds else {"log_odds", "p_first_token"}
    return [
        (label, draw)
        for key, label, draw in candidates
        if key not in left_out and any(row.get(key) for row in own)
    ]


def _random(doc: Doc, row: Row, base: Mapping[str, float]) -> str:
    null = row.get("null")
    if not null or not null.get("n"):
        return "–"
    values = sorted(null["values"])
    low, high = values[0], values[-1]
    if doc["headline"] == "gain":
        whole = base[row["model"]]
        return f"{round(100 * low / whole)} to {round(100 * high / whole)} %"
    return f"{low:.2g} to {high:.2g}"


def _percent(removed: Any) -> str:
    value = number(removed)
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _share(values: Any) -> str:
    value = number(values)
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def _between(values: Any, form: str) -> str:
    if not values:
        return "–"
    shown = format_number(number(values), form)
    low, high = (math.nan if x is None else x for x in values["ci"])
    return shown if math.isnan(low) else f"{shown} [{low:{form}}, {high:{form}}]"


def score_grid(doc: Doc, model: str) -> Grid | None:
    """The heads with the highest scores of either kind."""
    scores = (doc.get("scores") or {}).get(model)
    if not scores:
        return None
    columns = []
    for kind in ("previous", "induction"):
        array = np.array(
            [[math.nan if v is None else v for v in row] for row in scores[kind]], dtype=float
        )
        order = np.argsort(-np.nan_to_num(array, nan=-1), axis=None, kind="stable")[:10]
        places = [divmod(int(at), array.shape[1]) for at in order]
        columns.append([(head_name(*at), format_number(float(array[at]), ".3f")) for at in places])
    body = [[*a, *b] for a, b in zip(*columns, strict=True)]
    shown = f"{model}: " if len(doc["models"]) > 1 else ""
    head = ["previous-token", "score", "induction", "score"]
    return Grid(f"{shown}heads by score on repeated random tokens", head, body)


def legend(doc: Doc) -> str:
    """What the columns mean."""
    parts = []
    if doc["headline"] == "gain":
        parts.append(
            "removed: share of the repetition gain (loss on a first sight less loss on its "
            "repetition) that is gone"
        )
    if doc["headline"] == "log_odds":
        shown = safe_text(str(doc.get("measured")), limit=40)
        parts.append(f"log-odds and P of {shown}, its first token, after the last one")
    if any(row.get("null") for row in doc["rows"]):
        what = "the other heads of the layer" if doc["is_each"] else "the random sets"
        parts.append(
            f"random: range of {what}; p: one-sided, that one of them has as large an effect, at "
            "least 1 / (their number + 1)"
        )
    parts.append(
        "KL: nats from the clean run · top-1: positions with another likeliest token · logit: the "
        "clean top token against its second · NIP, cos: what is left of the layers' attention "
        "output. Means over prompts and over positions that can change; [95 % interval]"
    )
    return " · ".join(parts)


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the run was."""
    prompts = doc["prompts"]
    shown = ", ".join(safe_text(str(p["id"]), limit=40) for p in prompts[:6])
    more = f" and {len(prompts) - 6} more" if len(prompts) > 6 else ""
    versions = doc.get("versions") or {}
    found = [
        ("models", safe_text(str(doc["display"]), limit=80)),
        ("ablated", f"{method(doc)}, {positions(doc)}"),
        ("effect", effect_name(doc)),
        ("prompts", f"{len(prompts)}: {shown}{more}"),
        ("seed", str(doc["seed"])),
        ("run", safe_text(str(doc.get("run_id", "")), limit=40)),
        ("made", safe_text(str(doc.get("timestamp", "")), limit=40)),
        ("versions", ", ".join(f"{safe_text(k)} {safe_text(str(v))}" for k, v in versions.items())),
    ]
    for model, values in doc["baseline"].items():
        said = ", ".join(
            f"{key} {format_number(number(value), '.3f')}" for key, value in values.items()
        )
        if said:
            found.insert(3, (f"{model}, unablated", said))
    return found
