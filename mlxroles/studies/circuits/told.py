"""What a study of circuits found, in a sentence or two per model."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlxroles.heads import head_name

Doc = Mapping[str, Any]

WORDS = {"q": "queries", "k": "keys", "v": "values"}
_NAMED = 3


def sentence(doc: Doc) -> str:
    """What was measured, of every model."""
    parts = [part for side in doc["models"] for part in _model(doc, side)]
    parts += _difference(doc)
    return " ".join(parts) or "No layer has heads whose weights could be read."


def counts(of: Doc) -> tuple[int, int, int]:
    """Heads that can be read, that copy, and that do against it."""
    flat = [
        (score, sign)
        for scores, signs in zip(of["copying"]["score"], of["copying"]["sign"], strict=True)
        for score, sign in zip(scores, signs, strict=True)
        if score is not None
    ]
    return len(flat), sum(s > 0 for _, s in flat), sum(s < 0 for _, s in flat)


def best(table: Any, count: int, *, least: bool = False) -> list[tuple[int, int, float]]:
    """(layer, head, value) of the largest or smallest numbers of a table [layer, head]."""
    flat = [
        (value, i, h)
        for i, row in enumerate(table)
        for h, value in enumerate(row)
        if value is not None
    ]
    ordered = sorted(flat, key=lambda one: (one[0] if least else -one[0], *one[1:]))
    return [(i, h, value) for value, i, h in ordered[:count]]


def _model(doc: Doc, side: str) -> Iterator[str]:
    of = doc["models"][side]
    heads, copying, against = counts(of)
    if not heads:
        yield f"{of['name']}: no layer has heads whose weights could be read."
        return
    excess = of["copying"]["excess"]
    most, least = (
        ", ".join(head_name(i, h) for i, h, _ in best(excess, count, least=is_least))
        for count, is_least in ((min(_NAMED, copying), False), (min(1, against), True))
    )
    yield (
        f"{of['name']}: {copying} of {heads} heads make the tokens that they attend to likelier "
        f"than random pairings of tokens do{f' (most {most})' if copying else ''}, {against} "
        f"less likely{f' (most {least})' if against else ''}."
    )
    found = of["composition"]
    if not found:
        return
    told = [f"{WORDS[kind]} {one['clear']}" for kind, one in found.items()]
    pairs = next(iter(found.values()))["pairs"]
    kind, one = max(found.items(), key=lambda item: item[1]["top"][0]["z"] or 0.0)
    top = one["top"][0]
    strongest = (
        f"; most of all {top['to']} reads {top['from']} with its {WORDS[kind]} "
        f"({top['score']:.2f}; by chance {one['null_mean']:.2f}, {one['bound']:.2f} at most)"
    )
    yield (
        f"Of {pairs} pairs of heads, those in which the later one reads the earlier one beyond "
        f"chance: {_joined(told)}{strongest if top['clear'] else ''}."
    )


def _joined(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]


def _difference(doc: Doc) -> list[str]:
    found = (doc.get("difference") or {}).get("copying")
    if not found:
        return []
    clear = [(i, h) for i, row in enumerate(found["clear"]) for h, c in enumerate(row) if c]
    if not clear:
        return ["Copying differs clearly in no head between base and instruct."]
    most = max(clear, key=lambda at: abs(found["value"][at[0]][at[1]]))
    value = found["value"][most[0]][most[1]]
    return [
        f"Instruct less base: copying differs clearly in {len(clear)} heads, most in "
        f"{head_name(*most)} ({value:+.2f} standard deviations)."
    ]
