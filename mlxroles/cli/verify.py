"""`mlxroles verify`: whether stored runs are what was written."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxroles.cli.options import json_option
from mlxroles.cli.output import print_json
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from mlxroles.runs.check import Checked

DAMAGED = 5


@click.command("verify")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@json_option
def command(runs: tuple[str, ...], *, as_json: bool) -> int:
    """Check stored runs: journal, arrays, manifest, and run.h5 against the cells.

    RUN is a run folder, the id of a run or the beginning of one, or the folder of a sweep, which
    stands for its runs. Nothing is changed. Exit status 5 if anything is not what was written; what
    to do about it stands beside it.

    \b
    Examples:
      mlxroles verify 838a58
      mlxroles verify results/*/* --json
    """  # noqa: D301
    from mlxroles.runs.check import check

    checked = [check(path) for path in _chosen(runs)]
    is_ok = all(one.ok for one in checked)
    if as_json:
        documents = [one.document() for one in checked]
        print_json({"schema": "mlxroles/verify/1", "ok": is_ok, "runs": documents})
    else:
        for one in checked:
            _show(one)
    return 0 if is_ok else DAMAGED


def _chosen(runs: tuple[str, ...]) -> list[Path]:
    """The run folders that are meant, each once."""
    from mlxroles.runs.find import find, find_run, is_run, is_sweep
    from mlxroles.runs.sweeps import sweep_state

    found: dict[Path, Path] = {}
    for text in runs:
        path = find(text)
        if is_sweep(path):
            listed = [entry["run"] for entry in sweep_state(path)["entries"]]
            paths = [Path(run) for run in listed if run and is_run(Path(run))]
        else:
            paths = [find_run(text)]
        for each in paths:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def _show(checked: "Checked") -> None:
    counts = checked.counts
    click.echo(f"{'ok' if checked.ok else 'DAMAGED':<8} {safe_text(str(checked.path))}")
    if counts:
        arrays = f"{counts['array_files']} arrays ({format_bytes(counts['array_bytes'])})"
        packed = counts.get("packed_numbers")
        in_file = "" if packed is None else f", {packed} numbers of run.h5"
        click.echo(
            f"         {counts['cells']} cells, {counts['failed']} failed,"
            f" {counts['journal_lines']} journal lines, {arrays}{in_file}"
        )
    for finding in checked.findings:
        cells = ", ".join(safe_text(cell) for cell in finding.cells[:5])
        more = len(finding.cells) - 5
        listed = f": {cells}" + (f" and {more} more" if more > 0 else "") if cells else ""
        cure = f"; {finding.cure}" if finding.cure else ""
        click.echo(f"{finding.level:<8} {safe_text(finding.what)}{listed}{cure}")
