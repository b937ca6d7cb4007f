"""`mlxroles diff`: what two stored runs do not share."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table, terminal_width
from mlxroles.text import safe_text, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxroles.runs.differ import Difference, Measure

_WIDTH, _LEAST = 40, 12
"""Characters of a value that are shown where there is no terminal, and at least."""
_NAMED = 6
"""Values of a coordinate that are named."""
_CHECKSUM = re.compile(r"[0-9a-f]{40,}")


@click.command("diff")
@click.argument("first")
@click.argument("second")
@json_option
def command(first: str, second: str, *, as_json: bool) -> int:
    """Tell what differs between two runs: in what was asked for, and in every number.

    Cells are matched by their coordinates, prompts by name; what one of the runs has alone is
    counted. The exit status is 0 whether they differ or not.

    \b
    Examples:
      mlxroles diff 838a58 f92557
      mlxroles diff results/patch_tiny/A results/patch_tiny/B --json
    """  # noqa: D301
    from mlxroles.runs.cells import source
    from mlxroles.runs.differ import differ
    from mlxroles.runs.find import find

    paths = find(first), find(second)
    one, other = (source(path) for path in paths)
    found = differ(one, other)
    if as_json:
        runs = {"first": str(paths[0]), "second": str(paths[1])}
        print_json({"schema": "mlxroles/diff/1", **runs, **found.document()})
        return 0
    _spec(found)
    _cells(found)
    _numbers(found)
    for which, path in zip(("first", "second"), paths, strict=True):
        text = _told(path)
        if text:
            click.echo(f"{which:<10} {text}")
    return 0


def _told(path: Path) -> str:
    """What a run has found, in half a line; empty where that cannot be said."""
    from mlxroles.store.files import read_object
    from mlxroles.store.summary import SUMMARY

    summary = read_object(path / SUMMARY).get("summary")
    return safe_text(str(summary.get("brief") or "")) if isinstance(summary, dict) else ""


def _spec(found: "Difference") -> None:
    if found.spec:
        longest = max(len(one["field"]) for one in found.spec)
        width = terminal_width()
        limit = _WIDTH if width is None else max((width - longest - 6) // 2, _LEAST)
        rows = [
            [one["field"], *(_text(one[run], limit) for run in ("first", "second"))]
            for one in found.spec
        ]
        print_table("asked for", ["field", "first", "second"], rows)
    else:
        click.echo("the same was asked for")
    for one in found.environment:
        note(f"{one['field']}: {_text(one['first'])} and {_text(one['second'])}")
    for name in found.other_tokens:
        note(f"prompt {name} has other tokens in the two runs")


def _cells(found: "Difference") -> None:
    click.echo(f"cells      {found.shared} shared", nl=False)
    for which, ids in (("first", found.only_first), ("second", found.only_second)):
        if ids:
            click.echo(f"; {len(ids)} only in the {which}", nl=False)
    click.echo()
    for axis, alone in () if _kinds(found) else found.coordinates.items():
        parts = [
            f"{_listed(values)} only in the {which}"
            for which, values in zip(("first", "second"), alone, strict=True)
            if values
        ]
        click.echo(f"{safe_text(axis):<10} {'; '.join(parts)}")


def _kinds(found: "Difference") -> list[str]:
    """The kinds of two runs that are not of one."""
    for one in found.spec:
        if one["field"] == "kind":
            return [safe_text(str(one[run]), limit=_WIDTH) for run in ("first", "second")]
    return []


def _listed(values: "Sequence[str]") -> str:
    if all(value.isdecimal() for value in values):
        values = sorted(values, key=int)
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(safe_text(value, limit=_WIDTH) for value in values[:_NAMED]) + more


def _numbers(found: "Difference") -> None:
    differing = [measure for measure in found.measures.values() if measure.differing]
    alone = sum(measure.one_side for measure in found.measures.values())
    beside = f"; {alone} more in one run alone" if alone else ""
    if not found.numbers:
        click.echo(f"numbers    nothing can be compared: {_why(found)}{beside}")
        return
    if not differing:
        click.echo(f"numbers    all {found.numbers} are the same to the last bit{beside}")
        return
    click.echo(f"numbers    {found.differing} of {found.numbers} differ{beside}")
    differing.sort(key=_weight)
    if terminal_width() is None:
        columns = ["measure", "#differ", "#of", "#beyond 1e-06", "#largest"]
        rows = [_row(measure) for measure in differing]
        print_table("results", [*columns, "first", "second", "where"], rows)
        return
    from mlxroles.cli.results import show
    from mlxroles.dashboard.listing import Column, Row, listing

    columns = [
        Column("differ", is_right=True),
        Column("of", is_right=True),
        Column("beyond 1e-06", is_right=True, turn=2),
        Column("largest", is_right=True),
        Column("first", is_right=True, turn=1),
        Column("second", is_right=True, turn=1),
    ]
    rows = [Row(line[0], line[1:-1], line[-1]) for line in map(_row, differing)]
    show(listing("", "measure", columns, rows, told="where"), plain=False)


def _weight(measure: "Measure") -> tuple[bool, float]:
    """The largest differences first; behind them ranks and texts, which have no measure."""
    return not isinstance((measure.values or ("",))[0], float), -(measure.largest or 0.0)


def _why(found: "Difference") -> str:
    """Why two runs have no number in common."""
    if found.shared:
        return "the cells that both have hold no number in common"
    if not found.only_first or not found.only_second:
        return "no cell is stored in one of them"
    kinds = _kinds(found)
    if kinds:
        return f"they are runs of two kinds, {' and '.join(kinds)}"
    apart = [axis for axis, (one, other) in found.coordinates.items() if one and other]
    if apart:
        return f"they are of other {' and '.join(f'{safe_text(axis)}s' for axis in apart)}"
    return "no cell of one run is a cell of the other"


def _row(measure: "Measure") -> list[str]:
    here, there = measure.values or ("", "")
    largest = "" if measure.largest is None else f"{measure.largest:.3g}"
    counts = (measure.differing, measure.numbers, measure.beyond)
    values = [_number(here), _number(there)]
    return [measure.name, *map(str, counts), largest, *values, measure.where or ""]


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else safe_text(str(value), limit=20)


def _text(value: Any, limit: int = _WIDTH) -> str:
    text = value if isinstance(value, str) else json.dumps(_brief(value), ensure_ascii=False)
    return shortened(text, limit)


def _brief(value: Any) -> Any:
    """The value with its checksums cut; of what begins with a name and has them, the name."""
    if isinstance(value, str):
        return f"{value[:8]}…" if _CHECKSUM.fullmatch(value) else value
    if isinstance(value, list):
        is_named = len(value) > 1 and isinstance(value[0], str)
        if is_named and any(_CHECKSUM.fullmatch(str(each)) for each in value[1:]):
            return value[0]
        return [_brief(each) for each in value]
    if isinstance(value, dict):
        return {key: _brief(each) for key, each in value.items()}
    return value
