"""`mlxroles export`: a stored run as a table or as arrays, for other programs."""

from pathlib import Path

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json


@click.command("export")
@click.argument("run")
@click.option(
    "--to",
    "form",
    type=click.Choice(["csv", "parquet", "json", "safetensors", "npz"]),
    help="A table with a line per number, or arrays.  [default: as --out ends]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file to write.  [default: <experiment>-<run id>.<form> here]",
)
@click.option("--force", is_flag=True, help="Replace a file that is no export of this run.")
@json_option
def command(run: str, *, form: str | None, out: Path | None, force: bool, as_json: bool) -> int:
    """Write a stored run to a file for other programs.

    RUN is a run folder, the id of a run or the beginning of one, or a capture file. A table has a
    line per number, with every coordinate in a column; arrays come with a column per measure. An
    earlier export of the same run is replaced.

    \b
    Examples:
      mlxroles export 838a58 --to csv
      mlxroles export f92557 --out cells.parquet
    """  # noqa: D301
    from mlxroles.runs.cells import source
    from mlxroles.runs.export import export, target
    from mlxroles.runs.find import find, is_run
    from mlxroles.runs.state import state_of

    path = find(run)
    opened = source(path)
    where = target(opened, form, out)
    if is_run(path):
        state = state_of(path)
        if state.state != "finished":
            total = "?" if state.total is None else state.total
            note(f"{state.state}: {state.done} of {total} cells are stored")
    doc = export(opened, where, force=force)
    if as_json:
        print_json(doc)
    else:
        click.echo(where.path)
    return 0
