"""The characterisation of an induction head as text and as rows; from its document alone."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxroles.text import format_number, safe_text

Doc = Mapping[str, Any]

_MOST = 10
"""Lines of one part."""
_HEADS = 4
"""Other heads that are named in a line."""


def sentence(doc: Doc) -> str:
    """What was measured, in one sentence."""
    joint = doc["joint"]
    text = (
        f"{doc['head']} has the induction score {_interval(doc['score'])} (uniform attention "
        f"{doc['uniform']:.3f}) on {doc['sequences']} sequences of 2 x {doc['length']} random "
        "tokens"
    )
    if not joint:
        return text + "; none of its components is alive."
    what = f"{joint['n']} components that matter" if joint["n"] > 1 else "component that matters"
    text += f"; without the {what} most on as many others it loses {_interval(joint)}"
    if joint["random"]:
        text += f", without random other components {_range(joint['random'])}"
    return text + "."


def rows(doc: Doc) -> list[dict[str, Any]]:
    """One row per component that was tried, the largest effect first."""
    found = []
    for row in _by_effect(doc):
        null = row.get("random") or []
        found.append(
            {
                "head": doc["head"],
                **{n: row[n] for n in ("component", "map", "index", "share", "class")},
                **{n: row[n] for n in ("importance", "first", "effect", "low", "high")},
                "random_low": min(null, default=None),
                "random_high": max(null, default=None),
                "p": row.get("p"),
                **{f"after_{place}": value for place, value in row["after"].items()},
                "idle": row["idle"],
                "elsewhere": " ".join(f"{h}:{v:+.4f}" for h, v in row["elsewhere"].items()),
                "rises": " ".join(row["rises"]),
            }
        )
    return found


def text(doc: Doc) -> str:
    """The four parts, at most 79 columns wide."""
    return "\n".join([*_wrapped(sentence(doc)), *_parts(doc), ""])


def _parts(doc: Doc) -> Iterator[str]:
    where = doc["where"]
    yield ""
    yield (
        f"The second copy's weight: {where['target']:.3f} on the token that followed before, "
        f"{where['first']:.3f}"
    )
    yield f"on the first position, {where['rest']:.3f} on the rest."
    yield from _shares(doc)
    yield from _effects(doc)
    yield from _idle(doc)
    yield from _rises(doc)
    for note in doc["notes"]:
        yield from _wrapped(f"Note: {safe_text(note)}.")


def _shares(doc: Doc) -> Iterator[str]:
    yield ""
    yield f"1. SHARE of {doc['head']} in the components of q and k that are alive"
    for key in dict.fromkeys(row["map"] for row in doc["components"]):
        ours = [row for row in doc["components"] if row["map"] == key]
        count = {name: sum(row["class"] == name for row in ours) for name in _CLASSES}
        told = ", ".join(f"{n} {name}" for name, n in count.items())
        heads = doc["n_kv_heads"] if key.endswith(".k") else doc["n_heads"]
        where = f"key-value head {doc['kv_head']} of {heads}" if key.endswith(".k") else doc["head"]
        yield f"   {key}: {len(ours)} are alive: {told}"
        yield f"      in {where}, where an even share would be {1 / heads:.3f}"
    yield f"   (alive: {doc['measure']} above .01 on average, by"
    yield f"   {doc['alive_by']}; concentrated: over .5 of it in the head,"
    yield "   involved: over .1)"


_CLASSES = ("concentrated", "involved", "elsewhere")


def _effects(doc: Doc) -> Iterator[str]:
    yield ""
    yield f"2., 3. EFFECT on the score of taking a component out, the {len(doc['top'])} largest"
    yield (
        f"   {'component':<12}{'share':>6}{'effect':>8}  {'95 % interval':<18}"
        f"{'random':<17}{'p':>5}"
    )
    for row in (row for row in _by_effect(doc) if row["component"] in doc["top"]):
        interval = f"{row['low']:.3f} .. {row['high']:.3f}"
        null, p = row.get("random") or [], row.get("p")
        yield (
            f"   {row['component']:<12}{row['share']:>6.2f}{row['effect']:>8.3f}  {interval:<18}"
            f"{_range(null) if null else '-':<17}{'-' if p is None else format_number(p, '.2f'):>5}"
        )
        others = sorted(row["elsewhere"].items(), key=lambda item: -abs(item[1]))
        if others:
            more = f" and {len(others) - _HEADS} more" if len(others) > _HEADS else ""
            listed = ", ".join(f"{head} {value:+.3f}" for head, value in others[:_HEADS])
            yield f"      also {listed}{more}"
    joint = doc["joint"]
    if joint:
        yield f"   all {joint['n']} at once: {_interval(joint)}"
        if joint["random"]:
            sets = f"{len(joint['random'])} random sets of others: {_range(joint['random'])}"
            yield f"      {sets}, p {format_number(joint['p'], '.2f')}"
    yield "   (chosen on other sequences; random: the range of random directions of the"
    yield "   same length in every head with the component's activations; p: that the"
    yield "   largest of all components' random ones reaches the effect; also: loss of"
    yield "   other heads' scores)"


def _idle(doc: Doc) -> Iterator[str]:
    idle = [row for row in doc["components"] if row["idle"]]
    yield ""
    yield f"4. In the head (share > .1), and the effect surely within .01 of 0: {len(idle)}"
    before = doc["where"]
    idle.sort(key=lambda row: -abs(row["after"]["first"] - before["first"]))
    for row in idle[:_MOST]:
        moved = ", ".join(
            f"{place} {row['after'][place] - before[place]:+.3f}" for place in ("first", "rest")
        )
        yield f"   {row['component']:<12}share {row['share']:.2f}; without it {moved}"
    if len(idle) > _MOST:
        yield f"   and {len(idle) - _MOST} more in the table"


def _rises(doc: Doc) -> Iterator[str]:
    rises = [row for row in doc["components"] if row["rises"]]
    yield f"   Other heads whose score rises by more than .005 without a component: {len(rises)}"
    for row in rises[:_MOST]:
        listed = ", ".join(f"{h} {-row['elsewhere'][h]:+.3f}" for h in row["rises"][:_HEADS])
        yield f"   {row['component']:<12}{listed}"
    if len(rises) > _MOST:
        yield f"   and {len(rises) - _MOST} more in the table"


def _by_effect(doc: Doc) -> list[Mapping[str, Any]]:
    return sorted(doc["components"], key=lambda row: -row["effect"])


def _interval(of: Mapping[str, float]) -> str:
    return f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} .. {max(values):.3f}"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 79)
