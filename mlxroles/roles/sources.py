"""Where role metrics take their numbers from: a stored run, patterns in a file, a published table.

One text names any of them: a run folder, an ``.npz``, a ``.csv`` of the original study, or a
family of the catalogue, which stands for its newest complete run, of both
models if there is one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlxroles import pairs
from mlxroles.errors import SpecError, StoreError
from mlxroles.roles import patterns, stored, tables_csv
from mlxroles.roles.patterns import Patterns
from mlxroles.roles.table import Entropies
from mlxroles.roles.tables_csv import Row
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.manifest import MANIFEST
from mlxroles.store.summary import SUMMARY, read_summary
from mlxroles.text import did_you_mean, safe_text, slug

RESULTS = Path("results")
EXPERIMENT = "entropy"
"""How the folders of entropy runs begin, below the folder of results."""

_TABLE_NAMES = re.compile(r"[ _-]*(?:detailed_comparison|patching_candidates)[ _-]*")

SourceKind = Literal["run", "patterns", "comparison", "candidates", "changes"]


@dataclass(frozen=True, eq=False)
class Source:
    """Numbers that role metrics can be worked out from."""

    name: str
    """The family, for headings."""
    path: Path
    """The run folder or file."""
    kind: SourceKind
    tables: Mapping[str, Entropies] = field(default_factory=dict)
    """Entropies by model; none for a published table."""
    patterns: Patterns | None = None
    comparison: list[Row] | None = None
    """Rows of a comparison, the study's or our own, in the order of layers."""
    candidates: list[Row] | None = None
    """Rows of the study's table of candidates, in the order of ranks."""

    def side(self, side: str) -> Entropies:
        """The entropies of ``base`` or ``instruct``, or those of the only model.

        Raises:
            SpecError: there are none, or only the other side's.
        """
        if not self.tables:
            raise SpecError(
                f"{shown(self.path)} is a published table and holds no entropies: name a run of"
                " `mlxroles entropy`, or an .npz with patterns"
            )
        if side in self.tables:
            return self.tables[side]
        only = next(iter(self.tables))
        if len(self.tables) > 1 or only in pairs.SIDES:
            raise SpecError(
                f"{shown(self.path)} has no model {side}, only {', '.join(self.tables)}"
            )
        return self.tables[only]


def load(text: str, *, results: Path = RESULTS) -> Source:
    """The numbers that a path or a name stands for.

    Args:
        text: as for :func:`find`.
        results: likewise.

    Raises:
        StoreError: it cannot be read or is not complete.
        SpecError: it is no path and no name.
        PairError: the user's catalogue is wrong.
    """
    path = find(text, results=results)
    return _of_run(path) if path.is_dir() else _of_file(path)


def find(text: str, *, results: Path = RESULTS) -> Path:
    """The run folder or file that a path or a name stands for.

    Args:
        text: a run folder (or a file in it), a folder of runs, a ``.csv`` of the study, an ``.npz``
            with patterns, a name of the catalogue, or the end of the name of a folder of runs. A
            path that exists comes first, unless it is a folder without runs that bears the name
            of a family.
        results: the folder of all results, in which runs are looked for.

    Raises:
        StoreError: there is nothing of that kind there.
        SpecError: it is no path and no name.
        PairError: the user's catalogue is wrong.
    """
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    with plain_errors(path, verb="read"):
        exists, is_folder = bool(text) and path.exists(), path.is_dir()
    if not exists:
        return _named(text, results)
    if not is_folder:
        inner = path.name in (stored.RUN_FILE, SUMMARY, MANIFEST)
        return path.parent if inner else path
    if stored.is_run(path):
        return path
    if stored.runs_in(path):
        return _newest(path, f"{shown(path)}", "run the command again that made it")
    if text in pairs.catalogue():
        return _named(text, results)
    raise StoreError(f"{shown(path)} is not a run folder: {_expected()}")


def _named(name: str, results: Path) -> Path:
    """The newest run of a family, or of the one folder of runs whose name ends or begins so."""
    wanted = f"run `mlxroles entropy --family {name}`"
    if name in pairs.catalogue():
        return _newest(results / slug(f"{EXPERIMENT}_{name}"), name, wanted)
    here = _experiments(results)
    fitting = [one for one in here if slug(name).lower() in one] if name else []
    if len(fitting) == 1:
        return _newest(here[fitting[0]], fitting[0], "run the command again that made it")
    hint = did_you_mean(name, [*pairs.catalogue(), *here])
    known = f"; runs here: {', '.join(map(safe_text, here))}" if here else ""
    raise SpecError(
        f"{safe_text(name, limit=200)!r} is no path and no family{hint}{known} ({_expected()})"
    )


def _experiments(results: Path) -> dict[str, Path]:
    """The folders of entropy runs by name, without what they all begin with."""
    with plain_errors(results, verb="read"):
        folders = sorted(results.glob(f"{EXPERIMENT}_*")) if results.is_dir() else []
    return {f.name.removeprefix(f"{EXPERIMENT}_"): f for f in folders if stored.runs_in(f)}


def _newest(folder: Path, name: str, what_to_do: str) -> Path:
    """The newest complete run of a folder, of both models if there is one."""
    runs = stored.runs_in(folder)
    complete = [run for run in runs if stored.is_complete(run)]
    if not complete:
        state = "has no complete run" if runs else "has no run"
        under = "" if name == shown(folder) else f" under {shown(folder)}"
        raise StoreError(f"{name} {state}{under}: {what_to_do} {'again' if runs else 'first'}")
    both = (run for run in complete if stored.n_models(run) > 1)
    return next(both, complete[0])


def _of_run(path: Path) -> Source:
    if not stored.is_run(path):
        raise StoreError(f"{shown(path)} is not a run folder: {_expected()}")
    run = read_summary(path)
    return Source(_display(run, path), path, "run", tables=stored.tables(path))


def _of_file(path: Path) -> Source:
    if not path.is_file():
        raise StoreError(f"{shown(path)} is no regular file: {_expected()}")
    ending = path.suffix.lower()
    if ending == ".npz":
        found = patterns.read(path)
        tables = {"model": found.entropies()}
        return Source(path.stem, path, "patterns", tables=tables, patterns=found)
    if ending == ".csv":
        kind, rows = tables_csv.read(path)
        name = _TABLE_NAMES.sub("_", path.stem).strip("_") or path.absolute().parent.name
        if kind == "candidates":
            return Source(name, path, kind, candidates=rows)
        return Source(name, path, kind, comparison=rows)
    raise StoreError(f"{shown(path)} is none of what can be read here: {_expected()}")


def _expected() -> str:
    return (
        "expected is a run folder of `mlxroles entropy`, a .csv of the study, an .npz with"
        " patterns, or a family of the catalogue"
    )


def _display(run: Mapping[str, object], path: Path) -> str:
    """The family's display name, as the run or the catalogue has it."""
    for key in ("display", "family"):
        name = run.get(key)
        if isinstance(name, str) and name:
            return name
    name = path.absolute().parent.name.removeprefix(f"{EXPERIMENT}_")
    known = pairs.catalogue().get(name)
    return known.display if known else name
