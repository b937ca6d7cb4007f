"""The table of an experiment: its keys, the files it refers to, and its grid.

A grid lists values by option; a value may be a table of several options that belong together.
Every combination is an experiment, the last option changing fastest.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.spec.experiment import Experiment, over
from mlxroles.spec.files import load, shown_path
from mlxroles.text import did_you_mean, safe_text

OWN_KEYS = ("kind", "file", "name", "priority", "grid")
"""Keys of an experiment that are no options of its command."""

FOLDERS = ("base", "instruct", "model", "donor", "source", "sources")
FILES = ("prompt", "prompts", "prompt-ids", "ids")
"""Options whose values may be paths; those of prompts may as well be texts and names."""

MOST_EXPERIMENTS = 10_000
"""Experiments that a queue, and so a grid, may hold."""
MOST_TEXT = 100_000
"""Characters of one value: an operating system takes no longer arguments."""
NAME = 200
"""Characters of a name."""
_LABEL = 40
_SUFFIX = re.compile(r"\.(toml|json|csv|txt|npy)$")
_WORD = re.compile(r"[A-Za-z][\w.+-]*")


@dataclass(frozen=True)
class Table:
    """An experiment's table, with those of the files that it refers to."""

    kind: str = ""
    name: str | None = None
    priority: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence["_Choice"]] = field(default_factory=dict)
    """Option -> its values."""

    @classmethod
    def read(
        cls, doc: Mapping[str, Any], path: Path, source: str, seen: Sequence[Path] = ()
    ) -> "Table":
        """The table of an experiment.

        Args:
            doc: As TOML gives it.
            path: The file that it stands in; other paths are taken from its folder.
            source: What messages call it.
            seen: Files that led here.

        Raises:
            SpecError: a key has a value that cannot be meant, or a file refers to itself.
        """
        inherited = cls()
        if "file" in doc:
            if "kind" in doc:
                raise SpecError(f"{source} has kind and file; the file says the kind, drop one")
            inherited = _referred(doc["file"], path, source, seen)
        own = options({k: v for k, v in doc.items() if k not in OWN_KEYS}, path, source)
        grid = _grid(doc.get("grid", {}), path, source)
        both = own.keys() & grid.keys()
        if both:
            raise SpecError(f"{source}: {min(both)} stands in the grid and beside it; keep one")
        kept = over(inherited.options, dict.fromkeys(grid) | own)
        left = over(inherited.grid, dict.fromkeys(own) | grid)
        return cls(
            _kind(doc.get("kind", inherited.kind or None), source),
            checked_name(doc["name"], source) if "name" in doc else inherited.name,
            _priority(doc.get("priority", inherited.priority), source),
            {key: value for key, value in kept.items() if key not in grid},
            {key: value for key, value in left.items() if key not in own},
        )


def _kind(value: object, source: str) -> str:
    if value is None:
        raise SpecError(f'{source} has neither kind = "patch" nor file = "FILE.toml"')
    if not isinstance(value, str):
        raise SpecError(f'{source}: kind must be the name of a command, such as "patch"')
    return value


def _priority(value: object, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{source}: priority must be a whole number, such as 10")
    return value


def _referred(value: object, path: Path, source: str, seen: Sequence[Path]) -> Table:
    """The table of the file that ``file`` names."""
    if not isinstance(value, str) or not value:
        raise SpecError(f'{source}: file must be a path, such as file = "patch.toml"')
    try:
        other = path.parent / Path(value).expanduser()
        here = other.resolve()
    except (OSError, ValueError, RuntimeError):
        raise SpecError(f"{source}: file = '{safe_text(value, limit=80)}' is no path") from None
    trail = [*seen, path.resolve()]
    if here in trail:
        names = " -> ".join(safe_text(p.name) for p in [*trail[trail.index(here) :], here])
        raise SpecError(f"{source}: files refer to one another in a circle: {names}")
    try:
        doc = load(other)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None
    if "experiment" in doc:
        raise SpecError(
            f"{source}: {shown_path(other)} is a queue, and file takes a single experiment; name "
            "the queue beside this file on the command line"
        )
    return Table.read(doc, other, f"{source} ({shown_path(other)})", trail)


def checked_name(value: object, source: str) -> str:
    """A name of an experiment or a queue.

    Raises:
        SpecError: it is no text, empty, or not to be shown.
    """
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f'{source}: name must be text, such as name = "layers of llama"')
    if not value.isprintable() or len(value) > NAME:
        shown = safe_text(value, limit=80)
        raise SpecError(
            f"{source}: name '{shown}' must be one line of at most {NAME} printable characters"
        )
    return value.strip()


# --- options --------------------------------------------------------------------------------------


def options(given: Mapping[str, Any], path: Path, source: str) -> dict[str, Any]:
    """Options by their long names, local paths resolved.

    Raises:
        SpecError: an option stands there twice, or its value is no text, number or boolean.
    """
    found: dict[str, Any] = {}
    for written, value in given.items():
        key = written.replace("_", "-")
        if key in found:
            raise SpecError(f"{source}: {safe_text(key)} stands there twice, with - and with _")
        found[key] = _value(key, value, path, source)
    return found


def _value(key: str, value: object, path: Path, source: str) -> Any:
    shown = safe_text(key, limit=80)
    if isinstance(value, list):
        if not value:
            raise SpecError(f"{source}: {shown} is an empty list; leave it out instead")
        if any(isinstance(item, list | dict) for item in value):
            raise SpecError(f"{source}: {shown} must be a list of texts or numbers")
        return [_value(key, item, path, source) for item in value]
    if isinstance(value, dict):
        raise SpecError(
            f"{source}: {shown} is a table{did_you_mean(key, OWN_KEYS) or ', not an option'}"
        )
    if isinstance(value, str):
        if "\0" in value:
            raise SpecError(f"{source}: {shown} holds a NUL character")
        if len(value) > MOST_TEXT:
            raise SpecError(
                f"{source}: {shown} is text of {len(value)} characters; put it into a .txt file"
            )
        return _resolved(key, value, path.parent)
    if not isinstance(value, bool | int | float):
        raise SpecError(f"{source}: {shown} is a date or a time; put it in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{source}: {shown} must be a finite number")
    return value


def _resolved(key: str, text: str, folder: Path) -> str:
    """The text, or the path that it is from the file's folder, where that exists."""
    if key not in (*FOLDERS, *FILES) or not text:
        return text
    if key in FILES and "." not in text:
        return text  # a packaged name: files of prompts have a suffix
    try:
        path = folder / Path(text).expanduser()
        is_there = path.is_file() if key in FILES else path.exists()
        return str(path.resolve()) if is_there else text
    except (OSError, ValueError, RuntimeError):
        return text  # too long for a file name


# --- grids ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """One value of a grid."""

    options: Mapping[str, Any]
    label: str


def _grid(given: object, path: Path, source: str) -> dict[str, list[_Choice]]:
    if not isinstance(given, dict):
        raise SpecError(f'{source}: grid must be a table of lists, such as site = ["z", "q"]')
    found: dict[str, list[_Choice]] = {}
    for written, values in given.items():
        key = written.replace("_", "-")
        where = f"{source}, grid"
        if key in OWN_KEYS:
            raise SpecError(f"{where}: {key} is no option and cannot be varied")
        if key in found:
            raise SpecError(f"{where}: {key} stands there twice, with - and with _")
        shown = safe_text(key, limit=80)
        if not isinstance(values, list):
            raise SpecError(f"{where}: {shown} must be a list of values, such as [0, 1, 2]")
        if not values:
            raise SpecError(f"{where}: {shown} is an empty list; leave it out instead")
        found[key] = [_choice(key, value, path, where) for value in values]
        for n, choice in enumerate(found[key]):
            if any(choice.options == other.options for other in found[key][:n]):
                raise SpecError(f"{where}: {shown} lists {safe_text(choice.label)} twice")
    return found


def _choice(key: str, value: object, path: Path, where: str) -> _Choice:
    if not isinstance(value, dict):
        return _Choice(options({key: value}, path, where), label(key, value))
    rest = {k: v for k, v in value.items() if k != "name"}
    for own in ("kind", "file", "priority", "grid"):
        if own in rest:
            raise SpecError(f"{where}: {own} is no option and cannot be varied")
    if not rest:
        raise SpecError(f"{where}: {safe_text(key, limit=80)} holds a table without an option")
    given = options(rest, path, where)
    if "name" in value:
        return _Choice(given, checked_name(value["name"], where))
    return _Choice(given, "+".join(label(k, v) for k, v in rest.items()))


def label(key: str, value: object) -> str:
    """A short name of an option's value: ``resid_post``, ``seed=1``, ``no-edges``."""
    key = key.replace("_", "-")
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    short = _short(value)
    return short if isinstance(value, str) and _WORD.fullmatch(short) else f"{key}={short}"


def _short(value: object) -> str:
    if isinstance(value, list):
        return safe_text("+".join(_short(item) for item in value), limit=_LABEL)
    if isinstance(value, str) and not re.search(r"\s", value):
        value = _SUFFIX.sub("", value.rstrip("/").rpartition("/")[2]) or value
    return safe_text(str(value), limit=_LABEL)


def expand(
    made: Table, source: str, defaults: Mapping[str, Any]
) -> Iterator[tuple[Experiment, bool]]:
    """Every experiment of a table, and whether its name was made here and not given.

    Raises:
        SpecError: the grid has too many, or two of its options set the same one.
    """
    count = math.prod(len(values) for values in made.grid.values())
    if count > MOST_EXPERIMENTS:
        raise SpecError(
            f"{source}: the grid makes {count} experiments, more than a queue may hold "
            f"({MOST_EXPERIMENTS})"
        )
    _apart(made, source)
    for choices in itertools.product(*made.grid.values()):
        chosen = {key: value for choice in choices for key, value in choice.options.items()}
        varied = [choice.label for choice in choices]
        own = over(made.options, chosen)
        start = [made.name] if made.name else [made.kind, *_subject(over(defaults, own), chosen)]
        name = safe_text(" ".join([*start, *varied]), limit=NAME)
        where = f"{source}, {' '.join(varied)}" if varied else source
        made_here = made.name is None
        yield Experiment(made.kind, name, own, made.priority, where, defaults), made_here


def _subject(own: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """Short names of the models, where they are not part of the grid."""
    named = ("pair", "family", "model", "base", "instruct", "source", "sources")
    return [_short(own[key]) for key in named if key in own and key not in chosen]


def _apart(made: Table, source: str) -> None:
    """Refuses a grid two of whose options set one and the same."""
    setters: dict[str, str] = {}
    for key, choices in made.grid.items():
        for name in {name for choice in choices for name in choice.options}:
            if setters.setdefault(name, key) != key:
                shown = " and ".join(safe_text(k, limit=80) for k in (setters[name], key))
                raise SpecError(f"{source}, grid: {shown} both set {safe_text(name, limit=80)}")
