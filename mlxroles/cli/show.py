"""`mlxroles show`: what a stored run found, as its command printed it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table
from mlxroles.cli.results import show, show_files
from mlxroles.runs.find import CAPTURE
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from mlxroles.runs.found import Found

_FILES = ("summary.json", "run.h5", CAPTURE, "report.html", "figures")
_ABLATIONS, _INJECTIONS, _LENSES = ("ablate",), ("inject",), ("lens", "lens-fit")
_HEADS, _CIRCUITS, _TRAININGS = ("heads",), ("circuits",), ("components-train",)


@click.command("show")
@click.argument("run")
@json_option
def command(run: str, *, as_json: bool) -> int:
    """Print what a run found: its table, and the finding in a sentence.

    RUN is a run folder, the id of a run or the beginning of one, a capture file, or the folder of a
    sweep. Of a run that goes on, or that was killed, the cells stored so far are shown.

    \b
    Examples:
      mlxroles show 838a58
      mlxroles show results/patch_tiny/f92557bac8ad --json
    """  # noqa: D301
    from mlxroles.runs.find import find, is_run, is_sweep

    path = find(run)
    if is_sweep(path):
        _show_sweep(path, as_json=as_json)
        return 0
    if not is_run(path):
        from mlxroles.runs.found import captured

        doc = captured(path)
        if as_json:
            print_json(doc)
        else:
            _show_capture(doc)
        return 0
    from mlxroles.runs.found import found

    result = found(path)
    if as_json:
        about = {"state": result.state.state, "from": result.source}
        print_json(result.doc | {"show": about | {"cells": result.state.document()["cells"]}})
        return 0
    _remark(result)
    _tables(result)
    show_files(str(path), *_FILES)
    return 0


def _show_sweep(path: Path, *, as_json: bool) -> None:
    from mlxroles.cli.status import show_sweep
    from mlxroles.runs.sweeps import sweep_state

    doc = sweep_state(path)
    if as_json:
        print_json(doc)
    else:
        show_sweep(doc, is_whole=True)
        show_files(str(path), "summary.json", "report.html")


def _remark(result: "Found") -> None:
    """Says on standard error what the table does not: how far the run is."""
    state = result.state
    if state.state != "finished" or state.failed:
        total = "?" if state.total is None else state.total
        failed = f", {state.failed} failed" if state.failed else ""
        note(f"{state.state}: {state.done} of {total} cells are stored{failed}")
    for text in result.doc.get("notes") or ():
        note(str(text))


def _tables(result: "Found") -> None:
    from rich.text import Text

    doc, kind = result.doc, result.state.kind
    if kind == "capture":
        _show_capture(doc)
    elif kind == "patch":
        from mlxroles.dashboard import final_table

        show(final_table(doc), plain=False)
        sentence = (doc.get("summary") or {}).get("sentence", "No layer was finished yet.")
        show(Text(safe_text(str(sentence))), plain=False)
    elif kind == "probe":
        from mlxroles.dashboard import probe_table

        show(probe_table(doc), plain=False)
    elif kind == "attribution":
        _attribution(doc)
    elif "progress" in doc:
        columns = ["model", "category", "#prompts"]
        rows = [[r["model"], r["category"], f"{r['done']}/{r['prompts']}"] for r in doc["progress"]]
        print_table("captured so far", columns, rows)
    elif kind == "entropy" and doc.get("sentence"):
        from mlxroles.dashboard import roles_table

        show(roles_table(doc), plain=False)
    else:
        _other_tables(doc, kind, str(result.state.path))


def _other_tables(doc: dict[str, Any], kind: str, path: str) -> None:
    """Prints the tables of a kind; of a document that another version wrote, what can be read."""
    try:
        for part in _of_kind(doc, kind, path):
            show(part, plain=False)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        from mlxroles.dashboard import paragraphs

        told = safe_text(f"{type(error).__name__}: {error}", limit=100)
        note(f"no tables: its summary.json is not as this version writes it ({told})")
        show(paragraphs([str(doc.get("sentence") or "")]), plain=False)


def _of_kind(doc: dict[str, Any], kind: str, path: str) -> "Iterator[RenderableType]":
    """What ends a run of the kinds that write their own tables; the sentence of any other."""
    from mlxroles.dashboard import paragraphs

    sentence = doc.get("sentence")
    if kind in _HEADS and doc.get("models"):
        from mlxroles.studies.heads.results import tables as heads_tables

        yield heads_tables(doc)
    elif kind in _CIRCUITS and doc.get("models"):
        from mlxroles.dashboard.circuits_tables import circuits_tables

        yield circuits_tables(doc)
    elif kind in _TRAININGS and doc.get("learned"):
        from mlxroles.dashboard.training_tables import training_tables

        yield training_tables(doc)
    elif not doc.get("rows") or kind not in (*_ABLATIONS, *_INJECTIONS, *_LENSES):
        untold = "What it finds is worked out when all of its cells are stored."
        yield paragraphs([str(sentence) if isinstance(sentence, str) else untold])
    elif kind in _ABLATIONS:
        from mlxroles.studies.ablate.results import tables

        yield tables(doc)
    elif kind in _INJECTIONS:
        from mlxroles.dashboard.inject_tables import inject_tables
        from mlxroles.report.inject.wording import lines

        yield inject_tables(doc)
        yield paragraphs(["", *lines(doc)])
    else:
        from mlxroles.dashboard.lens_tables import lens_tables
        from mlxroles.studies.lens.results import stored_grids

        yield lens_tables(doc, stored_grids(doc | {"run": path}))


def _attribution(doc: dict[str, Any]) -> None:
    from mlxroles.dashboard import paragraphs
    from mlxroles.dashboard.attribution_tables import attribution_tables
    from mlxroles.report.attribution.rows import directions

    if directions(doc):
        show(attribution_tables(doc), plain=False)
    sentence = (doc.get("summary") or {}).get("sentence")
    if sentence:
        show(paragraphs([sentence]), plain=False)


def _show_capture(doc: dict[str, Any]) -> None:
    if doc["file"] is None:
        click.echo("its file is not whole yet")
        return
    rows = [
        [one["name"], " ".join(one["axes"]), "x".join(map(str, one["shape"])), one["dtype"]]
        for one in doc["variables"]
    ]
    print_table("captured", ["variable", "axes", "#shape", "type"], rows)
    click.echo(f"{safe_text(doc['file'])}  {format_bytes(doc['bytes'])}")
