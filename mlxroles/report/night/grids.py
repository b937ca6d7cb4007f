"""Experiments that belong together, by what their commands have in common, and where they differ.

A grid of an experiment file is known by its commands alone: experiments that follow each other,
of one kind, with the same options and names that begin alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlxroles.report.night.reading import one_line
from mlxroles.report.night.told import BARE, MATCHED, Told
from mlxroles.store.sweep_state import Entry

_MODELS = ("pair", "family", "model", "base", "instruct")
_SUBJECTS = ("models", "seed", "prompt")
"""What a finding should not depend on."""
_MOST = 3
_AS_CONTROL = ", as a control does"


@dataclass(frozen=True)
class Grid:
    """Experiments that belong together."""

    name: str
    members: list[int]
    """Indices of entries."""
    varies: list[str]
    values: dict[int, dict[str, str]]
    """Index -> what differs -> its value, short."""

    def label(self, member: int) -> str:
        """What sets a member apart: ``attn_out, sunlight``."""
        return ", ".join(v for v in self.values[member].values() if v)


def grids(entries: Sequence[Entry]) -> list[Grid]:
    """All experiments, those that belong together as one."""
    found: list[list[int]] = []
    options = [_options(entry.argv) for entry in entries]
    for at in range(len(entries)):
        if found and _alike(entries[found[-1][0]], entries[at], options[found[-1][0]], options[at]):
            found[-1].append(at)
        else:
            found.append([at])
    return [_grid(members, entries, options) for members in found]


def disagreements(
    grid: Grid, told: Mapping[int, Sequence[Told]]
) -> Iterator[tuple[str, list[int]]]:
    """Where the answer depends on the pair, the seed or the prompt: what to say, and whom of.

    Parts of a grid in which the answers are the same are told together.
    """
    for axis in (name for name in _SUBJECTS if name in grid.varies):
        same: dict[object, list[list[int]]] = {}
        for alike in _but_for(grid, axis):
            known = {m: {t.question: t for t in told.get(m, ())} for m in alike}
            unlike = _unlike(known)
            if unlike:
                key = tuple(
                    (grid.values[m][axis], q, answers[q].answer, answers[q].layer)
                    for m, answers in known.items()
                    for q in unlike
                    if q in answers
                )
                same.setdefault(key, []).append(alike)
        for parts in same.values():
            known = {m: {t.question: t for t in told.get(m, ())} for m in parts[0]}
            places = [place for part in parts if (place := _rest(grid, axis, part[0]))]
            where = " and ".join(places)
            text = _said(grid, axis, _unlike(known), known)
            text += f" Numbers: {places[0]}." if len(places) > 1 else ""
            members = [member for part in parts for member in part]
            yield f"{grid.name}{f', {where}' if where else ''}: {text}", members


def _unlike(known: Mapping[int, Mapping[str, Told]]) -> list[str]:
    """Questions to which these members have different answers."""
    questions = dict.fromkeys(q for answers in known.values() for q in answers)
    return [
        question
        for question in questions
        if _differ([answers[question] for answers in known.values() if question in answers])
    ]


def _rest(grid: Grid, axis: str, member: int) -> str:
    return ", ".join(v for key, v in grid.values[member].items() if key != axis and v)


def _options(argv: Sequence[str]) -> dict[str, str]:
    """Option -> value; the models in whatever way they are named count as one."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in argv[1:]:
        if word.startswith("--") and len(word) > 2:
            name, _, value = word[2:].partition("=")
            found.setdefault(name, [])
            if value:
                found[name].append(value)
        else:
            found.setdefault(name, []).append(word)
    found.pop("plain", None)
    joined = {name: " ".join(words) for name, words in found.items()}
    models = [joined.pop(name) for name in _MODELS if name in joined]
    return joined | ({"models": " ".join(models)} if models else {})


def _alike(first: Entry, other: Entry, own: Mapping[str, str], others: Mapping[str, str]) -> bool:
    same_name = first.name.split()[:1] == other.name.split()[:1]
    return first.kind == other.kind and same_name and own.keys() == others.keys()


def _grid(
    members: list[int], entries: Sequence[Entry], options: Sequence[Mapping[str, str]]
) -> Grid:
    first = options[members[0]]
    varies = [key for key in first if len({options[m].get(key) for m in members}) > 1]
    words = [entries[m].name.split() for m in members]
    shared = words[0]
    for other in words[1:]:
        same = [a == b for a, b in zip(shared, other, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    values = {m: {key: _short(key, options[m].get(key, "")) for key in varies} for m in members}
    name = " ".join(shared) or entries[members[0]].kind
    return Grid(one_line(name, 80), members, varies, values)


def _short(key: str, value: str) -> str:
    """A value as it may stand in a line; paths by their last part."""
    parts = [word.rstrip("/").rpartition("/")[2].removesuffix(".toml") for word in value.split()]
    text = one_line("+".join(filter(None, parts)), 40)
    return f"{key} {text}" if text.lstrip("-").replace(".", "").isdecimal() else text


def _but_for(grid: Grid, axis: str) -> Iterator[list[int]]:
    """Members that differ in nothing but this axis."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for member in grid.members:
        rest = tuple(v for key, v in grid.values[member].items() if key != axis)
        groups.setdefault(rest, []).append(member)
    yield from (group for group in groups.values() if len(group) > 1)


def _differ(told: Sequence[Told]) -> bool:
    """Whether the answers differ, or the layers by more than a tenth of the model."""
    if len({each.answer for each in told}) > 1:
        return True
    layers = sorted(each.layer for each in told if each.layer is not None)
    most = max(1, told[0].n_layers // 10) if told else 1
    return any(b - a > most for a, b in pairwise(layers))


def _said(
    grid: Grid, axis: str, questions: Sequence[str], known: Mapping[int, Mapping[str, Told]]
) -> str:
    """That the answer depends on an axis, and the answers."""
    parts = []
    for member, answers in known.items():
        texts = {
            q: answers[q].brief + _AS_CONTROL * (answers[q].answer == MATCHED)
            for q in questions
            if q in answers
        }
        if len(texts) > 1 and len(set(texts.values())) == 1:
            words = f"both ways {next(iter(texts.values()))}"
        else:
            words = "; ".join(q * (q != "verdict") + f" {text}" for q, text in texts.items())
        parts.append(f"{grid.values[member][axis] or 'without'}: {words.strip()}.")
    if len(parts) > _MOST:
        parts[_MOST:] = [f"And {len(parts) - _MOST} more."]
    if any(answers[q].is_bare for answers in known.values() for q in questions if q in answers):
        parts.append(BARE)
    what = {"models": "pair"}.get(axis, axis)
    return f"the answer depends on the {what}. {' '.join(parts)}"
