"""Reading experiment files: a single experiment, a queue, or several files as one queue."""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.spec.experiment import Experiment, Queue
from mlxroles.spec.files import load, shown_path
from mlxroles.spec.tables import (
    MOST_EXPERIMENTS,
    NAME,
    OWN_KEYS,
    Table,
    checked_name,
    expand,
    label,
    options,
)
from mlxroles.spec.times import parse_budget, parse_until
from mlxroles.text import did_you_mean, safe_text

QUEUE_KEYS = ("name", "until", "budget", "notify", "defaults", "experiment")


def read(path: str | Path) -> Experiment | Queue:
    """The experiment or the queue of a file; a single experiment with a grid is a queue.

    Raises:
        SpecError: the file cannot be read, or something in it cannot be meant.
    """
    path = Path(path)
    doc, shown = load(path), shown_path(path)
    if "experiment" not in doc and not doc.keys() & {"kind", "file"}:
        raise SpecError(
            f'{shown} holds no experiment: an experiment has a line such as kind = "patch", a '
            f"queue a table [[experiment]] for each{_near_keys(doc)}"
        )
    if "experiment" in doc:
        return _queue(doc, path)
    table = Table.read(doc, path, shown)
    found = list(expand(table, shown, {}))
    return Queue(_stem(path), _distinct(found, shown)) if table.grid else found[0][0]


def read_queue(paths: Sequence[str | Path]) -> Queue:
    """One queue of all experiments of these files.

    Raises:
        SpecError: as :func:`read`, and where two files give different ends.
    """
    if not paths:
        raise SpecError("name at least one experiment file")
    found = []
    for path in map(Path, paths):
        one = read(path)
        found.append(Queue(_stem(path), (one,)) if isinstance(one, Experiment) else one)
    if len(found) == 1:
        return found[0]
    settings: dict[str, Any] = {}
    for key in ("until", "budget", "notify"):
        values = {value for queue in found if (value := getattr(queue, key)) is not None}
        if len(values) > 1:
            listed = " and ".join(repr(safe_text(value)) for value in sorted(values))
            raise SpecError(f"the files give {key} differently: {listed}; name it in one of them")
        if values:
            settings[key] = values.pop()
    _one_end(settings, "the files together")
    _few(sum(len(queue.experiments) for queue in found), "the files together")
    counts = Counter(e.name for queue in found for e in queue.experiments)
    experiments = tuple(
        replace(e, name=f"{e.name} ({_stem(path)})") if counts[e.name] > 1 else e
        for path, queue in zip(paths, found, strict=True)
        for e in queue.experiments
    )
    _unique([e.name for e in experiments], "the files together")
    stems = dict.fromkeys(queue.name for queue in found)
    return Queue("+".join(stems), experiments, **settings)


def _stem(path: str | Path) -> str:
    return safe_text(Path(path).stem, limit=80)


def _near_keys(doc: Mapping[str, Any]) -> str:
    known = (*OWN_KEYS, *QUEUE_KEYS)
    found = (did_you_mean(key, known) for key in doc if key not in known)
    return next(filter(None, found), "")


def _queue(doc: Mapping[str, Any], path: Path) -> Queue:
    shown = shown_path(path)
    for key in doc:
        if key in ("kind", "file"):
            raise SpecError(
                f"{shown} has {key} and [[experiment]]: a file is one experiment or a queue"
            )
        if key not in QUEUE_KEYS:
            hint = did_you_mean(key, QUEUE_KEYS) or (
                "; options of all experiments stand below [defaults]"
            )
            raise SpecError(f"{shown}: a queue has no key '{safe_text(key, limit=80)}'{hint}")
    tables = doc["experiment"]
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise SpecError(f"{shown}: every experiment of a queue is a table [[experiment]]")
    if not tables:
        raise SpecError(f"{shown} is an empty queue: it needs a table [[experiment]]")
    given = doc.get("defaults", {})
    if not isinstance(given, dict):
        raise SpecError(f"{shown}: defaults must be a table [defaults]")
    for key in given:
        if key in OWN_KEYS:
            raise SpecError(f"{shown}, [defaults]: {key} belongs to an experiment, not here")
    defaults = options(given, path, f"{shown}, [defaults]")
    if "out" in defaults:
        raise SpecError(f"{shown}, [defaults]: out is one run's folder and no default")
    named: list[tuple[Experiment, bool]] = []
    for number, table in enumerate(tables, start=1):
        source = f"{shown}, experiment {number}"
        named += expand(Table.read(table, path, source), source, defaults)
        _few(len(named), shown)
    settings = _settings(doc, shown)
    return Queue(settings.pop("name", _stem(path)), _distinct(named, shown), **settings)


def _settings(doc: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """Name, end and notification of a queue."""
    found: dict[str, Any] = {}
    for key in ("name", "until", "budget", "notify"):
        value = doc.get(key)
        if value is None:
            continue
        if key == "until" and isinstance(value, datetime.time | datetime.datetime):
            value = value.isoformat(timespec="seconds")  # a time that TOML itself knows
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            example = {"until": "07:00", "budget": "8h", "notify": "say done"}.get(key, "night")
            raise SpecError(f'{shown}: {key} must be text, such as {key} = "{example}"')
        found[key] = value
    _one_end(found, shown)
    try:
        if "budget" in found:
            parse_budget(found["budget"])
        if "until" in found:
            # whether it is over is asked when the queue runs
            parse_until(found["until"], datetime.datetime.min)
    except SpecError as error:
        raise SpecError(f"{shown}: {error}") from None
    if "name" in found:
        found["name"] = checked_name(found["name"], shown)
    return found


def _one_end(settings: Mapping[str, Any], shown: str) -> None:
    if "until" in settings and "budget" in settings:
        raise SpecError(f"{shown}: until and budget exclude each other; keep one")


def _few(count: int, shown: str) -> None:
    if count > MOST_EXPERIMENTS:
        raise SpecError(
            f"{shown}: {count} experiments are more than a queue may hold ({MOST_EXPERIMENTS})"
        )


def _distinct(named: list[tuple[Experiment, bool]], shown: str) -> tuple[Experiment, ...]:
    """The experiments with names of their own: made ones are told apart by what differs."""
    counts = Counter(experiment.name for experiment, _ in named)
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for experiment, _ in named:
        alike.setdefault(experiment.name, []).append(experiment.options)
    found = []
    for experiment, is_made in named:
        if is_made and counts[experiment.name] > 1:
            own, others = experiment.options, alike[experiment.name]
            differ = [k for k in own if any(other.get(k) != own[k] for other in others)]
            parts = [experiment.name, *(label(k, own[k]) for k in differ)]
            experiment = replace(experiment, name=safe_text(" ".join(parts), limit=NAME))
        found.append(experiment)
    _unique([e.name for e in found], shown)
    outs = Counter(str(e.options["out"]) for e in found if "out" in e.options)
    for out, count in outs.items():
        if count > 1:
            raise SpecError(f"{shown}: {count} experiments write to out = '{safe_text(out)}'")
    return tuple(found)


def _unique(names: Sequence[str], shown: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            numbers = [str(n) for n, other in enumerate(names, start=1) if other == name]
            raise SpecError(
                f"{shown}: runs {' and '.join(numbers[:2])} are both named '{safe_text(name)}'; "
                "give them names of their own, or drop one if they are the same"
            )
