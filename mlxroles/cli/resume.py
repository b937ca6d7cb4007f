"""`mlxroles resume`: goes on with a run by the command that began it."""

import os
import shlex
import sys
from pathlib import Path

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.results import drift_option


@click.command("resume")
@click.argument("run", required=False)
@click.option("--dry-run", is_flag=True, help="Show the command and run nothing.")
@drift_option
@json_option
def command(run: str | None, *, dry_run: bool, allow_drift: tuple[str, ...], as_json: bool) -> int:
    """Go on with a run that was stopped, by the command that began it.

    RUN is a run folder, the id of a run or the beginning of one, or the folder of a sweep; without
    it the unfinished run that was written last below results/. What is stored is not computed
    again; where a model has changed since, the command refuses.

    \b
    Examples:
      mlxroles resume
      mlxroles resume 838a58
    """  # noqa: D301
    from mlxroles.runs.command import command_of, unfinished
    from mlxroles.runs.find import NOTHING, RESULTS, find, runs_below

    path = find(run) if run is not None else unfinished()
    if path is None:
        if as_json:
            print_json({"schema": "mlxroles/resume/1", "run": None, "command": None})
        else:
            note(NOTHING if not runs_below() else f"no unfinished run below {RESULTS}/")
        return 0
    again = command_of(path, drift=allow_drift)
    argv = [*again.argv, *(["--json"] if as_json and "--json" not in again.argv else [])]
    text = shlex.join(["mlxroles", *argv])
    if dry_run and as_json:
        about = {"run": str(again.run), "folder": str(again.folder), "command": text}
        print_json({"schema": "mlxroles/resume/1", **about})
    elif dry_run:
        click.echo(text)
    if dry_run:
        return 0
    note(f"in {again.folder}: {text}")
    return _run(argv, again.folder)


def _run(argv: list[str], folder: Path) -> int:
    """Runs a command in this process as if it had been given in that folder."""
    from mlxroles.cli import run

    place, arguments = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = [arguments[0], *argv]
    try:
        return run(argv)
    finally:
        sys.argv = arguments
        os.chdir(place)
