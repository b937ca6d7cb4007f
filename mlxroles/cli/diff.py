"""`mlxroles diff`: what two stored runs do not share."""

import json
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table
from mlxroles.text import safe_text

if TYPE_CHECKING:
    from mlxroles.runs.differ import Difference, Measure

_WIDTH = 40
"""Characters of a value of the identity that are shown."""


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
    return 0


def _spec(found: "Difference") -> None:
    if found.spec:
        rows = [[one["field"], _text(one["first"]), _text(one["second"])] for one in found.spec]
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
            named = ", ".join(safe_text(cell) for cell in ids[:3]) + (", ..." if ids[3:] else "")
            click.echo(f"; {len(ids)} only in the {which} ({named})", nl=False)
    click.echo()


def _numbers(found: "Difference") -> None:
    differing = [measure for measure in found.measures.values() if measure.differing]
    alone = sum(measure.one_side for measure in found.measures.values())
    beside = f"; {alone} more in one run alone" if alone else ""
    if not differing:
        click.echo(f"numbers    {found.numbers} are the same to the last bit{beside}")
        return
    click.echo(f"numbers    {found.differing} of {found.numbers} differ{beside}")
    differing.sort(key=lambda measure: -(measure.largest or 0.0))
    columns = ["measure", "#differ", "#of", "#beyond 1e-06", "#largest", "first", "second", "where"]
    print_table("results", columns, [_row(measure) for measure in differing])


def _row(measure: "Measure") -> list[str]:
    here, there = measure.values or ("", "")
    largest = "" if measure.largest is None else f"{measure.largest:.3g}"
    counts = (measure.differing, measure.numbers, measure.beyond)
    values = [_number(here), _number(there)]
    return [measure.name, *map(str, counts), largest, *values, measure.where or ""]


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else safe_text(str(value), limit=20)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return safe_text(text, limit=_WIDTH)
