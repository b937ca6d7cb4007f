"""`mlxroles components harvest`: what components do on text."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlxroles.cli.inputs import loading, model_options
from mlxroles.cli.options import json_option, plain_option, seed_option
from mlxroles.cli.output import note, print_json, print_table
from mlxroles.cli.results import show_files
from mlxroles.text import safe_text

TOKENS = 20_000
_TENTHS = 10


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number")
    return value


def of_model(command: Callable[..., object]) -> Callable[..., object]:
    """Adds the component file and ``--model``, the model that it is of."""
    model = click.option(
        "--model",
        "model_ref",
        required=True,
        metavar="DIR|PAIR/SIDE",
        help="The model that the components are of: a folder, a Hub id or tiny/base.",
    )
    return click.argument("file", type=click.Path(path_type=Path))(model(command))


@click.command("harvest")
@of_model
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to harvest on.  [default: generated English]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=16),
    default=TOKENS,
    show_default=True,
    help="Tokens of text, about.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, max=1),
    callback=_number,
    help="A component fires above it.  [default: 0 if its importance was trained, else .1]",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1, max=1000),
    default=10,
    show_default=True,
    help="Examples of each component that are kept, drawn evenly; and as many strongest ones.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Write the harvest here.  [default: FILE with _harvest.h5 in place of its ending]",
)
@click.option("--fresh", is_flag=True, help="Start anew instead of going on with what is there.")
@seed_option
@model_options
@json_option
@plain_option
def command(**given: Any) -> int:
    """Run text through a model and note when each component fires.

    Per component: how often it fires, its mean importance and activation, examples, and the tokens
    that go with it; per layer how often two components fire together. The importance is the one
    that the file was trained with; without one it is the component's share of its map's output.
    What is killed goes on with the same command. `mlxroles components report` shows all of it.

    \b
    Examples:
      mlxroles components harvest tiny.safetensors --model tiny/base
      mlxroles components harvest FILE --model DIR --text book.txt --tokens 200000
    """  # noqa: D301
    file = component_file(given["file"])
    path = _path(file, given)
    from mlxroles.components.file import identity
    from mlxroles.components.harvest import Harvester, Settings
    from mlxroles.components.harvest_text import OTHER, text_rows

    model, components = loaded(given, file)
    seed = given["seed"] + OTHER
    text = text_rows(model, given["text"], tokens=given["tokens"], seed=seed)
    about = {"model": identity(model), "components": named(file), "text": text.about}
    settings = Settings(given["examples"], given["threshold"], given["seed"])
    harvester = Harvester(model, components, text.rows, settings, about)
    harvester.notes += text.notes
    passes = "" if harvester.passes == 1 else f" in {harvester.passes} passes"
    try:
        with bar(f"{harvester.n_tokens:,} tokens{passes}", plain=given["plain"]) as told:
            harvester.run(path, fresh=given["fresh"], told=told)
    except KeyboardInterrupt:
        again = "the same command" + (" without --fresh" if given["fresh"] else "")
        note(f"what was harvested a minute ago is stored; {again} goes on from there")
        raise
    _show(path, given)
    return 0


def _path(file: Path, given: dict[str, Any]) -> Path:
    """Where the harvest goes.

    Raises:
        click.UsageError: it is no .h5 file, or the table beside it would replace the text.
    """
    path = given["out"] or file.with_name(f"{file.stem}_harvest.h5")
    told = f"--out: {safe_text(str(path))!r}"
    if path.suffix.lower() not in (".h5", ".hdf5") or path.is_dir():
        raise click.UsageError(f"{told} is no .h5 file")
    if given["text"] and given["text"].resolve() == path.with_suffix(".csv").resolve():
        raise click.UsageError(f"{told} puts its table in the place of the text; give another name")
    return path


def _show(path: Path, given: dict[str, Any]) -> None:
    """Writes the table of components, prints that of maps and the paths."""
    from mlxroles.components.harvest_file import read_harvest
    from mlxroles.components.harvest_tables import component_rows, map_rows
    from mlxroles.studies.role_results import write_csv

    table = path.with_suffix(".csv")
    with read_harvest(path) as harvest:
        write_csv(table, list(component_rows(harvest)))
        rows, about = map_rows(harvest), harvest.about
    if given["as_json"]:
        told = ("schema", "sentence", "measure", "threshold", "n_tokens", "n_rows", "seed")
        doc = {name: about[name] for name in (*told, "model", "components", "text", "notes")}
        print_json(doc | {"harvest": str(path), "table": str(table), "maps": rows})
        return
    heads = ("map", "#of", "#fire", "#alive", "#at once", "#top", "#its mean", "its tokens")
    print_table(
        f"{about['measure']} on {about['n_tokens']:,} tokens",
        heads,
        [_cells(row) for row in rows],
    )
    click.echo(about["sentence"])
    click.echo(
        "alive: mean above .01; at once: that fire at a position, on average;\n"
        "top: the largest mean; its tokens: those that surely go with it, if any"
    )
    for text in about["notes"]:
        note(text)
    show_files(str(path.parent), path.name, table.name)


def _cells(row: dict[str, Any]) -> Sequence[str]:
    best = f":{row['best']}"
    counts = (str(row[name]) for name in ("components", "fire", "alive"))
    numbers = (f"{row['at_once']:.1f}", best, f"{row['best_importance']:.3f}")
    return (row["map"], *counts, *numbers, row["best_tokens"])


# --- shared with `components induction` ---------------------------------------------------------


def component_file(file: Path) -> Path:
    """The component file itself, where a run folder that made one was named."""
    from mlxroles.components.file import IN_RUN

    return file / IN_RUN if file.is_dir() else file


def loaded(given: dict[str, Any], file: Path) -> tuple[Any, Any]:
    """The model and the components, which are read first: they are refused at once.

    Raises:
        MlxrolesError: there is no such file or model.
    """
    from mlxroles.components.file import read

    components = read(file)
    from mlxroles.models.load import load

    model = load(given["model_ref"], **loading(given)["options"])
    for text in model.warnings:
        note(text)
    return model, components


def named(file: Path) -> dict[str, str]:
    """What identifies a component file."""
    from mlxroles.models.integrity import file_hash

    return {"name": file.name, "sha256": file_hash(file)}


@contextmanager
def bar(title: str, *, plain: bool) -> Generator[Callable[[int, int], None]]:
    """What takes (done, of): a bar on a terminal, else a line for every tenth."""
    from rich.console import Console

    console = Console(stderr=True)
    if plain or not console.is_terminal or console.is_dumb_terminal:
        note(title)
        seen = 0

        def line(done: int, of: int) -> None:
            nonlocal seen
            if _TENTHS * done // of > seen:
                seen = _TENTHS * done // of
                note(f"{done} of {of}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
