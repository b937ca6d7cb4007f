"""What a human should look at first, most important first; and the findings that surprise."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlxroles.events import Died, Note, RunStarted
from mlxroles.report.night.grids import Grid, disagreements
from mlxroles.report.night.hours import Hours
from mlxroles.report.night.reading import Night, Run, number, one_line
from mlxroles.report.night.told import BARE, MATCHED, Told
from mlxroles.report.night.wording import alone, counted, cure, proceed, reason
from mlxroles.text import format_seconds, slug

_LARGEST_FACTOR = 2.0
_LEAST_SECONDS = 30.0
"""An estimate is off when it is wrong by this factor and by so many seconds."""
_MEMORY = re.compile(r"short of memory|memory|swap", re.IGNORECASE)
_POWER = re.compile(r"battery|low power|plug", re.IGNORECASE)
_MOST_CAUSES = 3
_VERSIONS = ("mlxroles", "mlx", "mlx-lm", "transformers", "numpy", "python")


class Concern(NamedTuple):
    """Something that needs a human."""

    what: str
    """``sweep``, ``failed``, ``cells``, ``death``, ``damage``, ``memory``, ``power``, ``drift``,
    ``estimate``."""
    title: str
    text: str
    command: str | None = None
    experiment: int | None = None
    log: str | None = None
    """Relative path of the log, where there is one."""


class Surprise(NamedTuple):
    """A finding that is worth a look."""

    what: str
    """``largest``, ``differs``, ``explained`` or ``verdict``."""
    text: str
    experiments: list[int]


def concerns(night: Night, axis: Hours | None) -> list[Concern]:
    """Everything that needs a human, the most important first, estimates last."""
    found = [*_sweep(night), *_failed(night), *_cells(night), *_deaths(night, axis)]
    return [*found, *_damage(night), *_notes(night), *_drift(night), *_estimates(night)]


def surprises(
    night: Night, told: Mapping[int, Sequence[Told]], together: Sequence[Grid]
) -> list[Surprise]:
    """The findings that stand out, and those that do not hold: what a reader should look at."""
    names = {at: one_line(e.name, 60) for at, e in enumerate(night.state.entries)}
    return [
        *_largest(told, names),
        *_verdicts(told, names),
        *_differing(told, together),
        *_explained(told, names),
    ]


def log_of(night: Night, at: int) -> str | None:
    """The log of an experiment, relative to the sweep."""
    entry = night.state.entries[at]
    path = night.path / "logs" / f"{entry.number:02d}-{slug(entry.name)[:60]}.log"
    return f"logs/{path.name}" if path.is_file() else None


def notes_of(run: Run) -> list[str]:
    """What a run has noted, in its document and since the sweep began, each once."""
    doc = run.summary
    kept = [doc.get("notes"), doc.get("run_notes")]
    stored = [text for notes in kept if isinstance(notes, list) for text in notes]
    said = [line.event.text for line in run.lines if isinstance(line.event, Note)]
    return list(dict.fromkeys(one_line(text) for text in [*stored, *said]))


def _sweep(night: Night) -> Iterator[Concern]:
    if not night.is_running and night.state.finished is None and night.state.entries:
        text = "Its last state is what stands here; stored cells are safe."
        yield Concern("sweep", "The sweep did not come to its end", text, proceed(night))


def _failed(night: Night) -> Iterator[Concern]:
    for at, entry in enumerate(night.state.entries):
        if entry.status == "failed":
            why = reason(night, at)
            command = cure(entry.error) or alone(entry, night)
            title = f"{one_line(entry.name, 80)}: failed"
            yield Concern("failed", title, why, command, at, log_of(night, at))


def _cells(night: Night) -> Iterator[Concern]:
    for at, (entry, run) in enumerate(zip(night.state.entries, night.runs, strict=True)):
        count = len(run.failures) or entry.failed
        if not count or entry.status == "failed":
            continue
        causes = Counter(one_line(event.error, 160) or "no reason" for event in run.failures)
        first = {one_line(e.error, 160): one_line(e.cell.id, 80) for e in reversed(run.failures)}
        parts = [
            f"{n} of: {cause} (first {first.get(cause, '?')})"
            for cause, n in causes.most_common(_MOST_CAUSES)
        ]
        rest = len(causes) - _MOST_CAUSES
        more = f"; and {counted(rest, 'other cause')}" if rest > 0 else ""
        text = "; ".join(parts) + more or "their errors are not stored any more"
        title = f"{one_line(entry.name, 80)}: {counted(count, 'cell')} failed"
        command = cure(text) or alone(entry, night)
        yield Concern("cells", title, f"{text}. The command tries them again.", command, at)


def _deaths(night: Night, axis: Hours | None) -> Iterator[Concern]:
    """Processes that ended without a word: one by one, or many of them together."""
    found = []
    for at, (entry, run) in enumerate(zip(night.state.entries, night.runs, strict=True)):
        died = [line.event for line in run.lines if isinstance(line.event, Died)]
        marks = [] if axis is None else [m for m in axis.rows[at].marks if m.kind == "died"]
        count = max(entry.deaths, len(marks))
        if count:
            cells = [one_line(event.cells[0], 80) for event in died if event.cells]
            found.append((at, count, [mark.text for mark in marks], cells))
    if len(found) > _MOST_CAUSES:
        total = sum(count for _, count, _, _ in found)
        causes = _causes([cause for _, _, own, _ in found for cause in own])
        worst = sorted(found, key=lambda one: -one[1])[:_MOST_CAUSES]
        names = [f"{one_line(night.state.entries[at].name, 60)} ({n})" for at, n, _, _ in worst]
        title = f"{counted(total, 'process')} died, in {counted(len(found), 'experiment')}"
        text = f"{causes}. Most: {', '.join(names)}. Stored cells are safe."
        yield Concern("death", title, text)
        return
    for at, count, causes, cells in found:
        entry = night.state.entries[at]
        where = f"; the last time at {cells[-1]}" if cells else ""
        end = "" if entry.status != "done" else ". It went on from its last stored cell."
        title = f"{one_line(entry.name, 80)}: {counted(count, 'process')} died"
        log = log_of(night, at)
        yield Concern("death", title, f"{_causes(causes)}{where}{end}", None, at, log)


def _causes(causes: Sequence[str]) -> str:
    known = Counter(causes).most_common(_MOST_CAUSES)
    listed = [cause + (f" ({n} times)" if n > 1 else "") for cause, n in known]
    return ", ".join(listed) or "no cause is stored"


def _damage(night: Night) -> Iterator[Concern]:
    for text in night.problems:
        yield Concern("damage", "The sweep's own files", text)
    for at, (entry, run) in enumerate(zip(night.state.entries, night.runs, strict=True)):
        if run.problems:
            command = None if run.path is None else alone(entry, night)
            title = f"{one_line(entry.name, 80)}: files that cannot be read"
            text = "; ".join(dict.fromkeys(run.problems))
            yield Concern("damage", title, text, command, at)


def _notes(night: Night) -> Iterator[Concern]:
    """What was said of memory and power, each once with the experiments that said it."""
    said: dict[str, list[int]] = {}
    for at, run in enumerate(night.runs):
        for text in notes_of(run):
            said.setdefault(text, []).append(at)
    names = [f"{entry.name}: " for entry in night.state.entries]
    for event in night.state.events:
        text = one_line(event.get("text"))
        if event.get("kind") != "progress" and not text.startswith(tuple(names)):
            said.setdefault(text, [])
    for what, pattern, title in (("memory", _MEMORY, "Memory"), ("power", _POWER, "Power")):
        for text, members in said.items():
            if pattern.search(text):
                who = ", ".join(one_line(night.state.entries[at].name, 60) for at in members[:4])
                more = f" and {len(members) - 4} more" if len(members) > 4 else ""
                yield Concern(what, title + (f": {who}{more}" if who else ""), text)


def _drift(night: Night) -> Iterator[Concern]:
    for at, (entry, run) in enumerate(zip(night.state.entries, night.runs, strict=True)):
        found: Any = run.manifest.get("drift")
        parts = [
            f"{one_line(one.get('field'), 60)} {one_line(one.get('was'), 40)} → "
            f"{one_line(one.get('now'), 40)}"
            for one in (found if isinstance(found, list) else [])
            if isinstance(one, Mapping)
        ]
        if parts:
            text = f"{', '.join(parts)}: cells of the two may differ in their last digits"
            yield Concern("drift", f"{one_line(entry.name, 80)}: versions changed", text, None, at)
    for name in _VERSIONS:
        values: dict[str, list[str]] = {}
        for entry, run in zip(night.state.entries, night.runs, strict=True):
            versions: Any = run.manifest.get("versions")
            if isinstance(versions, Mapping) and name in versions:
                values.setdefault(one_line(versions[name], 40), []).append(entry.name)
        if len(values) > 1:
            parts = [f"{v} ({one_line(', '.join(who[:3]), 120)})" for v, who in values.items()]
            text = f"{'; '.join(parts)}: compare these runs with care"
            yield Concern("drift", f"Runs were made with different {name}", text)


def _estimates(night: Night) -> Iterator[Concern]:
    off = []
    for entry, run in zip(night.state.entries, night.runs, strict=True):
        likely, took = measured(entry, run)
        if likely is None or took is None or entry.status != "done":
            continue
        factor = max(took, 0.1) / max(likely, 0.1)
        is_far = not 1 / _LARGEST_FACTOR <= factor <= _LARGEST_FACTOR
        if is_far and abs(took - likely) > _LEAST_SECONDS:
            off.append((abs(took - likely), one_line(entry.name, 60), likely, took))
    off.sort(reverse=True)
    if off:
        parts = [
            f"{n}: {format_seconds(s)} thought, {format_seconds(t)} taken" for _, n, s, t in off
        ]
        more = f"; and {len(off) - _MOST_CAUSES} more" if len(off) > _MOST_CAUSES else ""
        title = f"{counted(len(off), 'estimate')} off by more than a factor of two"
        text = f"{'; '.join(parts[:_MOST_CAUSES])}{more}. The next plan knows these times."
        yield Concern("estimate", title, text)


def measured(entry: Any, run: Run) -> tuple[float | None, float | None]:
    """Seconds that an experiment was thought to take, and took, as like is compared with like.

    Nothing of one that did not run in one go: what it took has its stops and starts in it.
    """
    starts = sum(isinstance(line.event, RunStarted) for line in run.lines)
    if entry.deaths or entry.restored or starts > 1:
        return None, None
    said: Any = run.summary.get("estimate")
    if isinstance(said, Mapping) and number(said.get("seconds")) is not None:
        return number(said.get("likely")), number(said.get("seconds"))
    return entry.estimate, entry.seconds


def is_urgent(what: str) -> bool:
    """Whether a concern stands before the findings; times stand behind them."""
    return what != "estimate"


# --- findings


def _largest(told: Mapping[int, Sequence[Told]], names: Mapping[int, str]) -> Iterator[Surprise]:
    known = [
        (each.margin, at, each)
        for at, answers in told.items()
        for each in answers
        if each.answer == "half" and each.margin is not None and each.margin > 0
    ]
    if known:
        _, at, each = max(known, key=lambda one: one[0])
        text = f"Largest against its controls: {names[at]}, {each.question}: {each.text}."
        yield Surprise("largest", text, [at])


def _verdicts(told: Mapping[int, Sequence[Told]], names: Mapping[int, str]) -> Iterator[Surprise]:
    for at, answers in told.items():
        for each in answers:
            if each.question == "verdict" and each.answer.startswith(("Sign of", "Unconfirmed")):
                yield Surprise("verdict", f"{names[at]}: {each.text}", [at])


def _differing(told: Mapping[int, Sequence[Told]], together: Sequence[Grid]) -> Iterator[Surprise]:
    for grid in together:
        for text, members in disagreements(grid, told):
            yield Surprise("differs", text, members)


def _explained(told: Mapping[int, Sequence[Told]], names: Mapping[int, str]) -> Iterator[Surprise]:
    """Patches that a control matches are told together, the rest one by one."""
    patches = [
        (at, each) for at, answers in told.items() for each in answers if each.answer == MATCHED
    ]
    if patches:
        parts = [f"{names[at]}, {each.question}, {each.brief}" for at, each in patches]
        more = f"; and {len(parts) - _MOST_CAUSES} more" if len(parts) > _MOST_CAUSES else ""
        text = "A control does as much, so that nothing is specific to the patch: "
        text += "; ".join(parts[:_MOST_CAUSES]) + f"{more}."
        text += f" {BARE}" if any(each.is_bare for _, each in patches) else ""
        yield Surprise("explained", text, list(dict.fromkeys(at for at, _ in patches)))
    for at, answers in told.items():
        for each in answers:
            if each.matched and each.answer != MATCHED:
                yield Surprise("explained", f"{names[at]}: {each.text}.", [at])
