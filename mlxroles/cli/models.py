"""``mlxroles models``: the catalogue, the self-checks of a model, downloads."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table, terminal_width
from mlxroles.errors import ModelError
from mlxroles.pairs import SIDES, Pair, catalogue, find, pair, resolve
from mlxroles.snapshots import hub_id, weight_files
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from mlxroles.hub import Download, OnProgress, Progress

VERDICTS = ("works", "partial", "refused")
"""What a check can end in, best first."""

_LINE_EVERY = 0.05
_WIDE = 150
"""Columns of a terminal from which the names of both models have room in one line."""


@click.group(name="models")
def command() -> None:
    """Show, check and download models.

    A model is named by PAIR/base or PAIR/instruct, by a folder, or by a Hub id (org/name).
    """


@command.command(name="list")
@json_option
def list_models(as_json: bool) -> None:
    """Show the pairs of the catalogue and what of them is on this machine.

    Pairs of your own come from ~/.config/mlxroles/pairs.toml (or the file that MLXROLES_PAIRS
    names), in the same form as the packaged catalogue.
    """
    pairs = catalogue().values()
    folders = {p.name: {side: find(p.ref(side)) for side in SIDES} for p in pairs}
    if as_json:
        print_json(
            {
                "schema": "mlxroles/models/1",
                "pairs": [asdict(p) | {"local": _as_text(folders[p.name])} for p in pairs],
            }
        )
        return
    rows = [
        [
            p.name,
            p.display,
            p.kind,
            str(p.n_layers or "-"),
            _size(p, folders[p.name]),
            _here(folders[p.name]),
            p.base,
            p.instruct,
        ]
        for p in pairs
    ]
    columns = ("name", "display", "kind", "#layers", "#size", "here", "base", "instruct")
    width = terminal_width()
    shown = len(columns) if width is None or width >= _WIDE else len(columns) - len(SIDES)
    print_table("Pairs", columns[:shown], [row[:shown] for row in rows])


@command.command(name="check")
@click.argument("model", metavar="MODEL")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run Python code that a model folder brings along.",
)
@json_option
@click.pass_context
def check_model(ctx: click.Context, *, model: str, trust_remote_code: bool, as_json: bool) -> None:
    """Load a model and prove on it that hooks, patterns and patches are exact.

    MODEL may also be the name of a pair: both of its models are checked. The exit status is 1
    when a model is refused.
    """
    names = [f"{model}/{side}" for side in SIDES] if model in catalogue() else [model]
    folders = {name: resolve(name) for name in names}
    documents = [
        _checked(name, folder, trust_remote_code=trust_remote_code)
        for name, folder in folders.items()
    ]
    verdict = max((document["verdict"] for document in documents), key=VERDICTS.index)
    if as_json:
        together = {"schema": "mlxroles/check/1", "model": model, "verdict": verdict}
        print_json(documents[0] if len(documents) == 1 else together | {"models": documents})
    else:
        for document in documents:
            _print_check(document)
    if verdict == "refused":
        ctx.exit(1)


@command.command(name="pull")
@click.argument("model", metavar="MODEL")
@click.option("--dry-run", is_flag=True, help="Only say how much would be downloaded.")
@json_option
def pull_model(model: str, dry_run: bool, as_json: bool) -> None:
    """Download a model, or both models of a pair, into the Hugging Face cache.

    What is already there is not fetched again, an interrupted download is resumed, and free
    disk is checked first.
    """
    refs = _hub_refs(model)
    if not refs:
        note(f"{model}: part of this package, nothing to download")
    from mlxroles import hub

    planned = [hub.plan(ref) for ref in refs]
    done = []
    for ref, download in zip(refs, planned, strict=True):
        note(f"{ref}: {format_bytes(download.total)}, {format_bytes(download.missing)} to download")
        done.append(_pull_one(ref, download, dry_run=dry_run))
    if as_json:
        print_json({"schema": "mlxroles/pull/1", "model": model, "models": done})
        return
    for entry in done:
        if entry["folder"]:
            click.echo(entry["folder"])


def _as_text(folders: dict[str, Path | None]) -> dict[str, str | None]:
    return {side: str(folder) if folder else None for side, folder in folders.items()}


def _here(folders: dict[str, Path | None]) -> str:
    found = [side for side, folder in folders.items() if folder]
    return "both" if len(found) == len(SIDES) else found[0] if found else "no"


def _size(entry: Pair, folders: dict[str, Path | None]) -> str:
    """Bytes of both models: as stored when both are here, else what the catalogue says."""
    here = [folder for folder in folders.values() if folder]
    if len(here) == len(SIDES):
        return format_bytes(
            sum(file.stat().st_size for folder in here for file in weight_files(folder))
        )
    return f"~{format_bytes(entry.bytes)}" if entry.bytes else "-"


def _checked(name: str, folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The check's document; a model that cannot even be loaded is refused with the reason."""
    from mlxroles.models.check import check
    from mlxroles.models.load import load

    document: dict[str, Any] = {
        "schema": "mlxroles/check/1",
        "model": name,
        "folder": str(folder),
        "verdict": "refused",
        "checks": [],
        "repairs": [],
        "warnings": [],
        "notes": [],
    }
    try:
        loaded = load(name, trust_remote_code=trust_remote_code)
        return document | check(loaded).as_dict() | {"warnings": list(loaded.warnings)}
    except ModelError as error:
        return document | {"notes": [str(error)]}


def _print_check(document: dict[str, Any]) -> None:
    rows = [
        [c["name"], _number(c["value"]), _number(c["bound"]), "ok" if c["ok"] else "FAILED"]
        for c in document["checks"]
    ]
    if rows:
        print_table(document["model"], ("check", "#value", "#bound", "result"), rows)
    click.echo(f"{safe_text(document['model'])}: {document['verdict']}")
    for kind in ("repairs", "notes"):
        for line in document[kind]:
            note(f"{kind.removesuffix('s')}: {line}")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def _hub_refs(model: str) -> list[str]:
    """What to fetch for a name: the two models of a pair, one of them, or the Hub id itself."""
    pairs = catalogue()
    name, _, side = model.partition("/")
    if model in pairs:
        refs = [pairs[model].ref(side) for side in SIDES]
    elif name in pairs and side in SIDES:
        refs = [pairs[name].ref(side)]
    elif hub_id(model):
        refs = [model]
    else:
        refs = [pair(model).base]  # no such pair: its error names the nearest
    return [ref for ref in dict.fromkeys(refs) if not ref.startswith("package:")]


def _pull_one(ref: str, download: "Download", *, dry_run: bool) -> dict[str, Any]:
    from mlxroles import hub

    folder = None
    if not dry_run:
        with _progress(ref) as show:
            folder = str(hub.fetch(download, show))
    return {
        "ref": ref,
        "commit": download.commit,
        "bytes": download.total,
        "downloaded": 0 if dry_run else download.missing,
        "missing": download.missing if dry_run else 0,
        "folder": folder,
    }


@contextmanager
def _progress(ref: str) -> Generator["OnProgress", None, None]:
    """A callback that shows bytes on standard error: a bar on a terminal, lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _plain_progress(ref)
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(ref)
        yield lambda state: bar.update(task, completed=state.done, total=state.total)


def _plain_progress(ref: str) -> Callable[["Progress"], None]:
    shown = -1.0

    def show(state: "Progress") -> None:
        nonlocal shown
        share = state.done / state.total if state.total else 1.0
        if share >= shown + _LINE_EVERY or (share == 1.0 and shown < 1.0):
            shown = share
            note(f"{ref}: {format_bytes(state.done)} of {format_bytes(state.total)} ({share:.0%})")

    return show
