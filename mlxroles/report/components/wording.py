"""What was found about components, in sentences: of all layers, and of one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.text import safe_text

Doc = Mapping[str, Any]

CAUTION = (
    "W is made of weights alone: the gain of the norm in front, biases, the sizes of "
    "activations and the softmax's competition are not in it, and a sum over heads mixes scores of "
    "different softmaxes."
)
SIGNS = {
    True: "A component's sign is arbitrary: W is shown as it acts when both activations have the "
    "sign of their mean.",
    False: "A component's sign is arbitrary, and so is that of W: it holds while both activations "
    "have the same sign. A harvest would tell which they usually have.",
}
"""What the sign of W means, by whether there is a harvest."""
NO_HARVEST = (
    "A harvest (mlxroles components harvest, then --harvest FILE) would add how often each "
    "component fires and at which tokens, what fires together, and a ranking by importance."
)
NO_MODEL = (
    "The model (--model DIR) would add what query and key components give to scores by distance, "
    "whose partners the stories tell of, and the model's own weights beside VU."
)


def title(doc: Doc) -> str:
    """What the report is about."""
    return f"Components of {safe_text(str(doc['display']), limit=60)}"


def missing(doc: Doc) -> list[str]:
    """What a harvest and the model would add, a line each."""
    lines = [] if doc["harvest"] else [NO_HARVEST]
    return lines if doc["model"] else [*lines, NO_MODEL]


def sentence(doc: Doc) -> str:
    """The finding over all layers: components that belong to one head, beside chance."""
    maps = [m for layer in doc["layers"] for m in layer["maps"] if m["kind"] == "q"]
    what = "query"
    if not maps:
        maps = [m for layer in doc["layers"] for m in layer["maps"] if m["n_heads"] > 1]
        what = "attention"
    maps = [m for m in maps if m["chance_share"] is not None]
    total = sum(m["shown"] for m in maps)
    count = sum(layer["n_components"] for layer in doc["layers"])
    made = safe_text(str(doc["made"]), limit=20)
    layers = len(doc["layers"])
    start = f"{count:,} components ({made}) in {layers} layer{'s' * (layers > 1)}"
    if not total:
        return f"{start}; none that is alive is in a map with several heads."
    in_one = sum(m["in_one_head"] for m in maps)
    told = (
        f"{start}: {in_one} of the {total} leading {what} components belong to one head more than "
        f"95 % of random directions do (about {round(0.05 * total)} by chance)"
    )
    heads = Counter(f"L{m['layer']}H{h}" for m in maps for h in m["heads_of_those"])
    if in_one > 0.1 * total:
        told += f": {', '.join(f'{n} to {head}' for head, n in heads.most_common(3))}"
    return f"{told}."


def layer_sentence(layer: Doc) -> str:
    """What was found in one layer."""
    parts = []
    for m in layer["maps"]:
        if m["chance_share"] is not None and m["shown"]:
            found = f"{m['in_one_head']} of {m['shown']} {m['kind']}"
            if m["in_one_head"] > 0.1 * m["shown"]:
                found += f" ({_where(m)})"
            parts.append(found)
    told = f"Components in one head beyond chance: {', '.join(parts)}." if parts else ""
    chance = layer["chance"]
    if layer["pairs"] and chance is not None:
        first = layer["pairs"][0]
        told += (
            f" Largest contribution to a score: q:{first['q']} with k:{first['k']}, "
            f"{first['peak']:+.2f} at distance {first['offset']}, most of it in H{first['head']} "
            f"(random key components: up to {chance['largest']:.2f})."
        )
        best = max(range(len(chance["above"])), key=lambda h: chance["above"][h])
        told += (
            f" Pairs beyond chance: {chance['above'][best]:.0%} in H{best}, the most of any head "
            f"(by chance 5% in each, {chance['most']:.0%} at most)."
        )
    return told.strip() or "No map with heads is decomposed here."


def _where(found: Doc) -> str:
    """In which heads those of a map lie that lie in one."""
    heads = Counter(int(h) for h in found["heads_of_those"])
    named = [f"{n} in H{h}" for h, n in heads.most_common(2)]
    rest = sum(heads.values()) - sum(n for _, n in heads.most_common(2))
    return ", ".join(named) + (f", {rest} elsewhere" if rest else "")


def measure(doc: Doc) -> str:
    """What components are ranked by, in words."""
    return safe_text(str(doc["measure"]), limit=40)


def facts(doc: Doc) -> list[tuple[str, str]]:
    """What the report was made from."""
    harvest = doc["harvest"] or {}
    found = [
        ("components", str(doc["file"])),
        ("made by", str(doc["made"])),
        ("model", str(doc["model"] or "")),
        ("harvest", str(harvest.get("path") or "")),
        ("tokens", f"{harvest['n_tokens']:,}" if harvest else ""),
        ("ranked by", str(doc["about"])),
        ("seed", str(doc["seed"])),
        ("made", str(doc["timestamp"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in doc["versions"].items())),
    ]
    return [(name, safe_text(value, limit=200)) for name, value in found if value]


def remarks(doc: Doc) -> Sequence[str]:
    """Notes of the document, safe to show."""
    return [safe_text(str(text), limit=400) for text in doc["notes"]]
