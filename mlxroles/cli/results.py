"""Where the results of a study go and how its end is told: tables, paths, exit status."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlxroles.cli.output import note, print_json
from mlxroles.errors import FAILED_CELLS, SIGNAL_STATUS
from mlxroles.events import DEADLINE, RunFinished

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mlxroles.studies.place import RunPlace

Command = TypeVar("Command", bound=Callable[..., object])

RESULTS = Path("results")
LOG_COLUMNS = 200
"""A table that goes to a file or a pipe is at most this wide."""

WORDS = "mlxroles.words"
"""Where a context keeps the words of a command that a file, not the command line, gave."""


def run_study(
    study: Any,
    given: dict[str, Any],
    tell: Callable[[dict[str, Any], dict[str, Any]], None],
    *,
    finish: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Runs a planned study under the live view, then prints what it found; the exit status.

    Args:
        study: What is run.
        given: The command's options.
        tell: Prints tables and paths, of the run's document and ``given``; not with ``--json``.
        finish: Writes what is made of the document, still under the live view.
    """
    from mlxroles.cli.progress import progress

    with progress(plain=given["plain"]) as emit:
        doc, finished = study.run(emit, place(given))
        if finish is not None:
            finish(doc)
    if given["as_json"]:
        print_json(doc)
    else:
        tell(doc, given)
    open_report(doc["run"], given)
    say_time(doc)
    return exit_status(finished, given)


def drift_option(command: Command) -> Command:
    """Adds ``--allow-drift``."""
    return click.option(
        "--allow-drift",
        multiple=True,
        metavar="FIELD",
        help="Go on with a run whose identity differs in this field, as the refusal names it; "
        "recorded in the manifest. May be given several times.",
    )(command)


def place(given: dict[str, Any]) -> "RunPlace":
    """Where the options ``--out``, ``--fresh`` and ``--allow-drift`` put the run."""
    from mlxroles.studies.place import RunPlace

    return RunPlace(
        RESULTS,
        out=given["out"],
        fresh=given["fresh"],
        argv=_words(),
        allow_drift=given["allow_drift"],
    )


def _words() -> tuple[str, ...]:
    """The command that this run would take on a command line."""
    context = click.get_current_context(silent=True)
    words = None if context is None else context.meta.get(WORDS)
    return tuple(sys.argv[1:] if words is None else words)


def show(renderable: "RenderableType", *, plain: bool) -> None:
    """Prints a table to standard output; with ``plain`` without any escape code.

    Where the output is no terminal, the table has the width that it needs.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(force_terminal=False if plain else None)
    if not console.is_terminal:
        wide = Console(width=LOG_COLUMNS, force_terminal=False)
        needed = Measurement.get(wide, wide.options, renderable).maximum
        console = Console(width=needed, force_terminal=False)
    with console.capture() as text:
        console.print(renderable)
    click.echo(text.get(), nl=False, color=True)


def show_files(folder: str, *names: str) -> None:
    """Prints the paths of those files of a run folder that were written."""
    for path in (Path(folder) / name for name in names):
        if path.exists():
            click.echo(path)


def open_report(folder: str, given: Mapping[str, Any]) -> None:
    """With ``--open``: shows the page of a run in the browser, if it has one."""
    page = Path(folder) / "report.html"
    if given.get("opens") and page.exists():
        from mlxroles.cli.report import open_page

        open_page(page)


def say_time(doc: Mapping[str, Any]) -> None:
    """Prints how long a run took and what was thought, where something was."""
    from mlxroles.timing import sentence

    if doc.get("estimate"):
        note(sentence(doc["estimate"]))


def exit_status(finished: RunFinished, given: dict[str, Any]) -> int:
    """0 for a run that is whole or out of time, 3 with failed cells, 128 + n after a signal."""
    again = "the same command"
    if given["fresh"]:
        again += " without --fresh"
    if finished.interrupted == DEADLINE:
        note(f"stopped for now; {finished.done} cells are stored, and {again} goes on from there")
        return 0
    if finished.interrupted is not None:
        note(
            f"stopped by {finished.interrupted}; {finished.done} cells are stored, and {again} "
            "goes on from there"
        )
        return SIGNAL_STATUS.get(finished.interrupted, 130)
    if finished.failed:
        note(f"{finished.failed} cells failed; {again} tries them again")
        return FAILED_CELLS
    return 0
