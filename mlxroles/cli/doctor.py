"""``mlxroles doctor``: is this machine fit for long runs, and what to type where it is not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import print_json

if TYPE_CHECKING:
    from rich.text import Text

    from mlxroles.doctor.facts import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fix": "bold red"}
_INDENT = 17
"""Columns before the text of a line: status and topic."""
_WIDEST = 120
"""Columns beyond which a line of text is hard to read."""


@click.command(name="doctor")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    metavar="DIR",
    help="The folder that results will go to.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, *, out: Path, as_json: bool) -> None:
    """Examine this machine before a long run: each line ok, warn or fix.

    warn: it works, but slower or at a risk. fix: it does not work, or gives wrong numbers; the
    exit status is then 1. The line below says what to type. Takes a few seconds, loads the
    embedded model, writes one small file to the results folder and removes it.
    """
    from mlxroles.doctor.advice import findings
    from mlxroles.doctor.look import look

    facts = look(out)
    said = findings(facts)
    counts: Counter[str] = Counter(finding.status for finding in said)
    if as_json:
        print_json(
            {
                "schema": "mlxroles/doctor/1",
                "ok": not counts["fix"],
                "counts": {status: counts[status] for status in _STYLES},
                "findings": [asdict(finding) for finding in said],
                "facts": _as_json(asdict(facts)),
            }
        )
    else:
        _print(said)
    ctx.exit(1 if counts["fix"] else 0)


def _as_json(value: object) -> object:
    """The same with paths as text."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _print(said: "Sequence[Finding]") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for line in lines(said, min(console.width, _WIDEST) if console.is_terminal else None):
        console.print(line, soft_wrap=True)


def lines(said: "Sequence[Finding]", width: int | None) -> "Iterator[Text]":
    """The findings as lines: status, topic, text between margins; a command on a line of its own.

    Args:
        said: What the doctor says.
        width: Columns; None for lines that are not broken.
    """
    import textwrap

    from rich.text import Text

    room = None if width is None else max(width - _INDENT - 1, 20)
    for finding in said:
        broken = [finding.text]
        if room is not None:
            broken = textwrap.wrap(finding.text, room, break_on_hyphens=False)
        for at, part in enumerate(broken):
            line = Text()
            if at == 0:
                line.append(f" {finding.status:<4}  ", style=_STYLES[finding.status])
                line.append(f"{finding.topic:<10}", style="bold")
            else:
                line.append(" " * _INDENT)
            yield line.append(part)
        if finding.command:
            yield Text(" " * _INDENT + "$ ").append(finding.command, style="cyan")
    counts: Counter[str] = Counter(finding.status for finding in said)
    yield Text()
    yield Text(" " + ", ".join(f"{counts[status]} {status}" for status in _STYLES))
