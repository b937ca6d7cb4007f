"""The option that writes a command's table to a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mlxroles.cli.output import note

Command = TypeVar("Command", bound=Callable[..., object])


def table_option(command: Command) -> Command:
    """Adds ``--csv``."""
    return click.option(
        "--csv",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Also write the table to this file.",
    )(command)


def write_table(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows where ``--csv`` says, if it was given."""
    if path is None:
        return
    from mlxroles.studies.role_results import write_csv

    write_csv(path, rows)
    note(f"wrote {path}")
