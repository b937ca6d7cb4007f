"""The finding of an attribution run in plain words, and how far it can be trusted."""

import math
from collections.abc import Mapping
from typing import Any

from mlxroles import documents
from mlxroles.report.attribution import rows
from mlxroles.report.wording import headline, nothing
from mlxroles.stats import smallest_flip_p
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
_LEAST = 0.05
"""p below this, after correction, is counted as found."""


def sentence(doc: Values) -> str:
    """What the run found: per direction the largest effects, then how certain they are."""
    shown = rows.directions(doc)
    if not shown:
        return "No estimate was finished."
    parts = [_nothing(doc), f"{verdict(doc)}."]
    parts += [_direction(doc, direction) for direction in shown]
    parts += [_agreement(doc), _summed_keys(doc), _scope(doc), _failed(doc)]
    return " ".join(part for part in parts if part)


def verdict(doc: Values) -> str:
    """What kind of number all this is: verified, or not."""
    count = int(documents.number(doc, "verified_cells") or 0)
    if not count:
        return "First-order estimate, not verified"
    if is_complete(doc):
        return f"All {count} cells run exactly, beside their first-order estimates"
    return f"First-order estimate; {count} cells run exactly"


def is_complete(doc: Values) -> bool:
    """Whether every cell, and every edge where there are any, was run exactly."""
    found = []
    for direction in rows.directions(doc):
        entry, verified = doc[direction], dict(rows.verified(doc, direction))
        groups = [*entry["sites"], *["edges"] * bool(entry.get("edges"))]
        found += [bool(verified.get(group, {}).get("complete")) for group in groups]
    return bool(found) and all(found)


def metric(doc: Values) -> str:
    """What the effects are effects on."""
    name = safe_text(str(doc.get("headline") or "the headline string"), limit=40)
    return _METRICS.get(str(doc["metric"]), safe_text(str(doc["metric"]))).format(name)


def caution(doc: Values) -> str:
    """What a reader must know about estimates, and what would settle them."""
    how, points = "one gradient at the unpatched recipient", int(doc.get("ig") or 1)
    alone = rows.by_one_gradient(doc)
    if points > 1:
        how = f"gradients at {points} points between recipient and donor"
        if alone:
            how += f" (of {', '.join(alone)} one at the recipient)"
    text = (
        f"Each number is the effect that patching a cell alone would have if the model were linear "
        f"there: {how} times the difference of the activations. Saturated attention and sums of "
        "many patches are where this goes wrong."
    )
    if points > 1 and alone:
        text += " Heads are run exactly by mlxroles patch --site z --heads each."
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
        f"(the gap between the models is {gap}) most"
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


def _nothing(doc: Values) -> str:
    """That the models leave nothing to recover; empty where they do."""
    for direction in rows.directions(doc):
        if doc[direction].get("nothing_to_recover"):
            models = doc[direction]["models"]
            levels = (documents.number(models[m], "log_odds") for m in ("base", "instruct"))
            return nothing(headline(doc), *levels)
    return ""


def _agreement(doc: Values) -> str:
    whole = _agree(doc, complete=True, which="all {} cells of what was run whole")
    return " ".join(t for t in (whole, _agree(doc, complete=False, which="{} random cells")) if t)


def _agree(doc: Values, *, complete: bool, which: str) -> str:
    """How estimates and exact effects agree over sites of which all cells were run, or some."""
    found = [
        (entry if complete else entry["random"], site, direction)
        for direction in rows.directions(doc)
        for site, entry in rows.verified(doc, direction)
        if bool(entry.get("complete")) == complete
    ]
    known = sorted(
        (documents.number(entry, "spearman"), site, direction)
        for entry, site, direction in found
        if not math.isnan(documents.number(entry, "spearman"))
    )
    if not known:
        few = "Too few random cells were run exactly for a rank correlation."
        return few if found and not complete else ""
    shares = [(documents.number(e, "sign_agreement"), e["n"]) for e, _, _ in found if e["n"]]
    total = sum(n for _, n in shares)
    same = sum(share * n for share, n in shares) / total
    low, high = known[0], known[-1]
    span = f"{low[0]:.2f} ({low[1]}, {documents.arrow(low[2])})"
    if len(known) > 1:
        span += f" to {high[0]:.2f} ({high[1]}, {documents.arrow(high[2])})"
    return (
        f"Over {which.format(total)} the estimates have the sign of the exact effects in "
        f"{100 * same:.0f} %, and rank them with Spearman {span}."
    )


def _summed_keys(doc: Values) -> str:
    """What differs between the estimate and the exact run of a whole head's keys."""
    summed = (doc.get("positions") or {}).get("k") not in ("each", "last")
    if summed and any("k" in dict(rows.verified(doc, d)) for d in rows.directions(doc)):
        return (
            "Of k the estimate sums the effects of one position's key at a time, while the exact "
            "run replaces the keys of all of them together."
        )
    return ""


def _scope(doc: Values) -> str:
    count = documents.prompt_count(doc)
    if count == 1:
        return "One prompt: no interval."
    several = [d for d in rows.directions(doc) if doc[d]["n_prompts"] > 1]
    text = f"Means over {count} prompts; brackets are 95 % bootstrap intervals over prompts"
    tested = [(d, doc[d]["sites"]["z"]) for d in several if "z" in doc[d]["sites"]]
    tested = [(d, entry) for d, entry in tested if "significant" in entry]
    if tested:
        text += "; the q value is the sign-flip permutation p after Benjamini-Hochberg"
    counts = [
        f"{entry['significant']} of {entry['cells']} z cells ({documents.arrow(d)})"
        for d, entry in tested
        if entry["significant"]
    ]
    if counts:
        text += f", below {_LEAST} in " + " and ".join(counts)
    elif several:
        n = min(doc[d]["n_prompts"] for d in several)
        least = smallest_flip_p(n)
        most = max((entry["cells"] for _, entry in tested), default=1)
        if least > _LEAST:
            text += f" ({n} prompts cannot give a p below {least:.2g})"
        elif least * most > _LEAST:
            text += (
                f" ({n} prompts give no p below {least:.2g}, so that no single one of {most} cells "
                f"can have a q value below {_LEAST})"
            )
    return f"{text}."


def _failed(doc: Values) -> str:
    count = len(doc.get("failed_cells") or [])
    if not count:
        return ""
    return f"{count} cell{'s' * (count > 1)} failed and {'are' if count > 1 else 'is'} left out."
