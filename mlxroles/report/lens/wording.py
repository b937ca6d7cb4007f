"""What a lens run found, in words: where the answer is made, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.report.lens.grids import words
from mlxroles.text import format_number, safe_text, show_token

Doc = Mapping[str, Any]

SITES = {
    "resid_post": "the stream after each block",
    "resid_pre": "the stream before each block",
    "resid_mid": "the stream between attention and MLP",
    "attn_out": "what each attention writes",
    "mlp_out": "what each MLP writes",
}
PARTS = ("attn_out", "mlp_out")
"""Sites whose layers do not build on each other."""
_MOST_SAID = 4


def sentence(doc: Doc) -> str:
    """The finding in one to a few sentences; a clause per model and run."""
    if str(doc.get("schema")).startswith("mlxroles/lens-fit/"):
        return gain_sentence(doc)
    shown = main_curves(doc)
    if not shown:
        return "Nothing was read yet."
    headline = followed(doc)
    if doc.get("contrast"):
        headline = " against ".join(show_token(text, limit=20) for text in doc["contrast"])
    said = [f"{name(entry)}: {_clause(doc, entry)}" for entry in shown[:_MOST_SAID]]
    count = max(int(entry["n_prompts"]) for entry in shown)
    scope = "One prompt, so no interval." if count == 1 else f"{count} prompts."
    return (
        f"{headline} in {SITES[doc['site']]}: {' · '.join(said)}. {scope}{_differences_told(doc)}"
    )


def followed(doc: Doc, limit: int = 30) -> str:
    """The string that is followed, its spaces visible; ids are named as they are."""
    text = str(doc.get("headline") or "")
    return (safe_text if doc.get("by_ids") else show_token)(text, limit=limit)


def main_curves(doc: Doc) -> list[Doc]:
    """The curves that are told first: of the lens that is nearer to the answer, where two are."""
    found: dict[tuple, Doc] = {}
    for entry in doc.get("curves") or []:
        key = (entry["model"], entry["variant"], entry["run"])
        if key not in found or entry["kl_mean"] < found[key]["kl_mean"]:
            found[key] = entry
    return list(found.values())


def lens_note(doc: Doc) -> str:
    """Whether the tuned lens is nearer to the answer on these prompts; nothing without one."""
    plain, tuned = (
        {
            (c["model"], c["variant"], c["run"]): c["kl_mean"]
            for c in doc["curves"]
            if c["lens"] == n
        }
        for n in ("plain", "tuned")
    )
    worse = [key for key in tuned if key in plain and tuned[key] >= plain[key]]
    if not tuned or not plain:
        return ""
    means = [_mean(list(group.values())) for group in (tuned, plain)]
    said = f"KL to the answer, mean over layers: tuned {means[0]:.2f} nats, plain {means[1]:.2f}."
    if not worse:
        return f"{said} On these prompts the tuned lens is nearer to the answer."
    count = "all" if len(worse) == len(tuned) else f"{len(worse)} of {len(tuned)}"
    return (
        f"{said} In {count} runs the tuned lens is no nearer than the plain one: it was fitted on "
        "other text. Fit it on prompts like these."
    )


def name(entry: Doc) -> str:
    """Which model, variant, run and lens."""
    return ", ".join(part for part in words(entry) if part)


def differences_of(doc: Doc) -> list[Doc]:
    """The differences that are told: of the plain lens, at most three."""
    return [d for d in doc.get("differences") or [] if d["lens"] == "plain"][:3]


def differs(entry: Doc) -> str:
    """What changes, and in which curve: ``offer (instruct)``, ``edits (base)``."""
    axis = entry["axis"]
    change = {"variant": "offer", "run": "edits"}.get(axis, str(entry["change"]))
    usual = {"model": "", "variant": "default", "run": "clean"}
    rest = {name: entry[name] for name in ("model", "variant", "run", "lens")} | {axis: usual[axis]}
    kept = ", ".join(part for part in words(rest) if part)
    return change.replace(" - ", " − ") + (f" ({kept})" if kept else "")


def _differences_told(doc: Doc) -> str:
    """How far a change moves the end, and by which layer half of that is there."""
    told = []
    for entry in differences_of(doc):
        mean, (low, high) = entry["mean"], entry["ci"]
        text = f"{differs(entry)} {mean[-1]:+.1f} [{low[-1]:.1f}, {high[-1]:.1f}] in the end"
        if low[-1] > 0 or high[-1] < 0:
            shares = [value / mean[-1] for value in mean]
            below = [at for at, share in enumerate(shares) if share < 1 / 2]
            first = below[-1] + 1 if below else 0
            text += f", half of it from layer {doc['layers'][first]} on"
        told.append(text)
    return f" Paired differences: {'; '.join(told)}." if told else ""


def _clause(doc: Doc, entry: Doc) -> str:
    if "contrast" in entry:
        return _contrast_clause(doc, entry)
    decided, count = entry["decided"], int(entry["n_prompts"])
    if doc["site"] in PARTS:
        return f"at best {_best(doc, entry)}"
    if not decided["n"]:
        return f"not on top in the end, at best {_best(doc, entry)}"
    if count == 1:
        layer = int(decided["median"])
        return f"on top from layer {layer} on{_before(doc, entry, layer)}"
    share = "all" if decided["n"] == count else f"{decided['n']} of"
    span = f"{decided['least']} to {decided['most']}"
    return f"on top from layer {decided['median']:g} on (median; {span}) in {share} {count} prompts"


def _best(doc: Doc, entry: Doc) -> str:
    """The string's best place of any layer, and where that is."""
    ranks = [math.inf if r is None else r for r in entry["rank"]]
    if not ranks or min(ranks) == math.inf:
        return "without a number"
    best = ranks.index(min(ranks))
    vocab = f" of {doc['vocab']:,}" if doc.get("vocab") else ""
    return f"number {1 + ranks[best]:,.0f}{vocab} (layer {doc['layers'][best]})"


def _contrast_clause(doc: Doc, entry: Doc) -> str:
    """Where the odds between two strings end, and since when they lean that way."""
    values = [math.nan if v is None else v for v in entry["contrast"]]
    end = len(values) - 1
    text = f"log of the odds {interval(entry, 'contrast', end, '+.2f')} in the end"
    if doc["site"] in PARTS:
        return text
    side = math.copysign(1.0, values[end])
    other = [at for at, v in enumerate(values) if v * side <= 0]
    first = other[-1] + 1 if other else 0
    return f"{text}, on that side from layer {doc['layers'][min(first, end)]} on"


def _before(doc: Doc, entry: Doc, layer: int) -> str:
    """The log-odds there and one layer before."""
    odds, at = entry["log_odds"], doc["layers"].index(layer)
    if odds[at] is None:
        return ""
    text = f" (log-odds {odds[at]:+.1f}"
    if at and odds[at - 1] is not None:
        text += f"; {odds[at - 1]:+.1f} one layer before"
    return f"{text})"


def caution(doc: Doc) -> str:
    """What a reader must know before believing a lens."""
    parts = [
        "A lens shows what the model's own head would make of a stream that it never sees there: "
        "where the reading is odd, the stream may hold the answer in another form."
    ]
    if doc["site"] in PARTS:
        parts.append(
            "The final norm scales what one part writes as if it were the whole stream: compare "
            "ranks, not probabilities, across layers."
        )
    if doc.get("tuned"):
        parts.append(
            "The tuned lens was trained to say what the model says in the end, so it can know what "
            "a layer only allows to be worked out."
        )
        parts.append(lens_note(doc))
    worst = largest_error(doc)
    if worst is not None:
        parts.append(
            "Checked: the last layer of the plain lens gives the model's own logits, "
            + (f"to {worst:.0e}." if worst else "to the last bit.")
        )
    return " ".join(parts)


def largest_error(doc: Doc) -> float | None:
    """How far the plain lens at the last layer is from the model's logits at most."""
    found = [r["end_error"] for r in doc.get("rows") or [] if r["lens"] == "plain"]
    return max((e for e in found if e is not None), default=None)


def gain_sentence(doc: Doc) -> str:
    """What a tuned lens gains over the plain one on held-out text, and whether that is sure."""
    said = []
    for model in doc.get("models") or []:
        rows = [r for r in doc["rows"] if r["model"] == model]
        if not rows:
            continue
        sure = sum(r["gain_ci"][0] > 0 for r in rows if r["gain_ci"][0] is not None)
        best = max(rows, key=lambda r: r["gain"])
        mean = _mean([r["gain"] for r in rows])
        closer = sum(r["kl_tuned"] < r["kl_constant"] for r in rows)
        said.append(
            f"{model}: KL to the answer {mean:.2f} nats smaller, mean of {len(rows)} layers, most "
            f"at layer {best['layer']} ({best['kl_plain']:.2f} to {best['kl_tuned']:.2f}); 95 % "
            f"interval of the gain above 0 at {sure} of {len(rows)}; a constant answer has "
            f"{best['kl_constant']:.2f}, and {closer} of {len(rows)} tuned layers are nearer"
        )
    if not said:
        return "Nothing was fitted yet."
    held = doc.get("held_out_texts")
    return f"Tuned against plain lens on {held} held-out texts: {'; '.join(said)}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def interval(entry: Doc, key: str, at: int, form: str) -> str:
    """A number of a curve at a layer with its 95 % interval, where it has one."""
    value = entry[key][at]
    text = format_number(math.nan if value is None else value, form)
    bounds = entry.get(f"{key}_ci")
    if bounds is None or None in (bounds[0][at], bounds[1][at]):
        return text
    low, high = (format_number(bound[at], form) for bound in bounds)
    return f"{text} [{low}, {high}]"


def title(doc: Doc) -> str:
    """What was read of which models."""
    what = "Tuned lens" if str(doc["schema"]).startswith("mlxroles/lens-fit/") else "Lens"
    shown = safe_text(str(doc.get("display") or doc.get("pair") or ""), limit=60)
    return f"{what}: {shown}, {SITES.get(doc['site'], doc['site'])}"
