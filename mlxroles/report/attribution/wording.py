"""The finding of an attribution run in plain words, and how far it can be trusted."""

import math
from collections.abc import Mapping
from typing import Any

from mlxroles import documents
from mlxroles.report import attribution_rows as rows
from mlxroles.text import safe_text

Values = Mapping[str, Any]

_METRICS = {
    "log_odds": "the log-odds of {}",
    "log_prob": "the log-probability of {}",
    "logit_diff": "the logit difference of {}",
    "p_first_token": "the probability of the first token of {}",
    "p_union": "the probability of any beginning of {}",
    "p_chain": "the probability of the whole of {}",
    "entropy": "the entropy of the next token",
    "kl": "the KL divergence from the unpatched run",
}
_RECOVERABLE = {"log_odds", "log_prob", "logit_diff"}
_LEAST = 0.05
"""p below this, after correction, is counted as found."""


def sentence(doc: Values) -> str:
    """What the run found: per direction the largest effects, then how certain they are."""
    shown = rows.directions(doc)
    if not shown:
        return "No estimate was finished."
    parts = [f"{verdict(doc)}."]
    parts += [_direction(doc, direction) for direction in shown]
    parts += [part for part in (_agreement(doc), _scope(doc), _failed(doc)) if part]
    return " ".join(parts)


def verdict(doc: Values) -> str:
    """What kind of number all this is: verified, or not."""
    count = int(documents.number(doc, "verified_cells") or 0)
    if not count:
        return "First-order estimate, not verified"
    return f"First-order estimate; {count} cells run exactly"


def metric(doc: Values) -> str:
    """What the effects are effects on."""
    name = safe_text(str(doc.get("headline") or "the headline string"), limit=40)
    return _METRICS.get(str(doc["metric"]), safe_text(str(doc["metric"]))).format(name)


def caution(doc: Values) -> str:
    """What a reader must know about estimates, and what would settle them."""
    how = (
        f"gradients at {doc['ig']} points between recipient and donor"
        if int(doc.get("ig") or 1) > 1
        else "one gradient at the unpatched recipient"
    )
    text = (
        f"Each number is the effect that patching a cell alone would have if the model were linear "
        f"there: {how} times the difference of the activations. Saturated attention and sums of "
        "many patches are where this goes wrong; R is the share of the gap between the models."
    )
    if not int(documents.number(doc, "verified_cells") or 0):
        text += " Run the largest cells exactly with --verify 20."
    return text


def _unit(doc: Values) -> str:
    return " nats" if doc.get("unit") == "nat" else ""


def _direction(doc: Values, direction: str) -> str:
    giver, target = documents.donor(direction), documents.recipient(direction)
    entry = doc[direction]
    gap = f"{rows.signed(documents.number(entry, 'gap'))}{_unit(doc)}"
    start = (
        f"{giver.capitalize()}'s activations in {target} change {metric(doc)} "
        f"(the gap between the models is {gap}{_small(doc, entry)}) most"
    )
    groups = (
        (_PARTS, "of attention and MLP outputs, "),
        (_WHOLE[: 0 if set(_PARTS) & set(entry["sites"]) else 1], "of the layers' outputs, "),
        (_HEADS, "of single heads, "),
    )
    found = [_largest(doc, direction, sites, words) for sites, words in groups]
    named = [text for text in found if text]
    return f"{start}: {'; '.join(named)}." if named else f"{start} nowhere: there is no number."


_PARTS, _WHOLE, _HEADS = ("attn_out", "mlp_out"), ("resid_post",), ("z", "q", "k", "v", "pattern")


def _largest(doc: Values, direction: str, sites: tuple[str, ...], words: str) -> str:
    """The largest cell of these sites (of heads: of the first site there is); empty for none."""
    sites_there = [s for s in sites if s in doc[direction]["sites"]]
    if sites == _HEADS:
        sites_there = sites_there[:1]
    known = [
        (site, doc[direction]["sites"][site]["top"][0])
        for site in sites_there
        if doc[direction]["sites"][site]["top"]
    ]
    if not known:
        return ""
    site, row = max(known, key=lambda one: abs(documents.number(one[1], "estimate")))
    exact = rows.exact_of(doc, direction, site, row)
    settled = "" if math.isnan(exact) else f" (exactly {rows.signed(exact)})"
    size = f"{rows.signed(documents.number(row, 'estimate'))}{_unit(doc)}"
    return f"{words}{site} {rows.place(site, row)} by {size}{settled}"


def _small(doc: Values, entry: Values) -> str:
    gap = documents.number(entry, "gap")
    if doc["metric"] in _RECOVERABLE and abs(gap) < documents.SMALL_GAP:
        return ", so they already agree and R says little"
    return ""


def _agreement(doc: Values) -> str:
    found = [
        (documents.number(entry["random"], "spearman"), site, direction)
        for direction in rows.directions(doc)
        for site, entry in rows.verified(doc, direction)
    ]
    known = sorted(item for item in found if not math.isnan(item[0]))
    shares = [
        (documents.number(entry["random"], "sign_agreement"), entry["random"]["n"])
        for direction in rows.directions(doc)
        for _, entry in rows.verified(doc, direction)
        if entry["random"]["n"]
    ]
    if not known:
        return "Too few random cells were run exactly for a rank correlation." if found else ""
    total = sum(n for _, n in shares)
    same = sum(share * n for share, n in shares) / total
    low, high = known[0], known[-1]
    span = f"{low[0]:.2f} ({low[1]}, {documents.arrow(low[2])})"
    if len(known) > 1:
        span += f" to {high[0]:.2f} ({high[1]}, {documents.arrow(high[2])})"
    return (
        f"Over {total} random cells the estimates have the sign of the exact effects in "
        f"{100 * same:.0f} %, and rank them with Spearman {span}."
    )


def _scope(doc: Values) -> str:
    count = documents.prompt_count(doc)
    if count == 1:
        return "One prompt: no interval."
    several = [d for d in rows.directions(doc) if doc[d]["n_prompts"] > 1]
    counts = [
        f"{doc[d]['sites'][site]['significant']} of {doc[d]['sites'][site]['cells']} {site} cells"
        f" ({documents.arrow(d)})"
        for d in several
        for site in ("z",)
        if "significant" in (doc[d]["sites"].get(site) or {})
    ]
    text = f"Means over {count} prompts; brackets are 95 % bootstrap intervals over prompts"
    if counts:
        text += (
            f"; q is the sign-flip permutation p after Benjamini-Hochberg, below {_LEAST} in "
            + " and ".join(counts)
        )
    if several:
        n = min(doc[d]["n_prompts"] for d in several)
        if 2.0 ** (1 - n) > _LEAST:
            text += f" ({n} prompts cannot give a p below {2.0 ** (1 - n):.2f})"
    return f"{text}."


def _failed(doc: Values) -> str:
    count = len(doc.get("failed_cells") or [])
    if not count:
        return ""
    return f"{count} cell{'s' * (count > 1)} failed and {'are' if count > 1 else 'is'} left out."
