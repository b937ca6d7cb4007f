"""`mlxroles bench`: what the sweep engine costs on this machine, beside plain loops."""

import os
import sys
from pathlib import PurePath
from typing import Any

import click

from mlxroles.cli.inputs import model_options
from mlxroles.cli.options import json_option, plain_option
from mlxroles.cli.output import note, print_json, print_table
from mlxroles.pairs import pair
from mlxroles.text import format_bytes, safe_text


@click.command("bench")
@click.option("--pair", "pair_name", metavar="NAME", help="A pair.  [default: tiny]")
@click.option("--model", "model_ref", metavar="DIR", help="A model instead: a folder or a Hub id.")
@click.option(
    "--donor",
    metavar="DIR",
    help="Where activations come from.  [default: the model's own runs of other prompts]",
)
@click.option("--work", metavar="W1,W4", help="Works to measure, of W1 to W10.  [default: all]")
@click.option(
    "--tokens",
    type=click.IntRange(8, 8192),
    default=512,
    show_default=True,
    help="Length of the prompts; W6 runs a quarter of it, W10 32 times as much.",
)
@model_options
@plain_option
@json_option
def command(**given: Any) -> int:
    """Measure the sweep engine on this machine, each work beside a plain loop.

    Every figure but bytes is a ratio to one plain forward of the model, measured in the same run
    right before and after: CPU seconds of one thread, or time on a GPU. A plain loop runs the whole
    model once per cell; of long sweeps it runs some cells, and is scaled. Takes a minute or two on
    the embedded pair.

    \b
    Examples:
      mlxroles bench
      mlxroles bench --pair llama8b --work W4,W5 --json
      mlxroles bench --model DIR --donor DIR --work W1,W4
    """  # noqa: D301
    # CPU seconds are what is measured, and a BLAS of several threads spends them waiting.
    if "mlxroles.backend" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mlxroles.bench import bench, parse_works
    from mlxroles.models.load import load

    works = None if given["work"] is None else parse_works(given["work"])
    first, second = _models(given)
    options = {k: given[k] for k in ("allow_window_mismatch", "trust_remote_code")}
    # Lines and no moving display: drawing it would be measured with the rest.
    note("loading")
    recipient = load(first, **options)
    donor = None if second is None else load(second, **options)
    doc = bench(recipient, donor, works=works, tokens=given["tokens"], tell=note)
    if given["as_json"]:
        print_json(doc)
    else:
        _show(doc, plain=given["plain"])
    return 0


def _models(given: dict[str, Any]) -> tuple[str, str | None]:
    """References of the model and of its donor, if it has one."""
    if given["model_ref"] is None:
        if given["donor"] is not None:
            raise click.UsageError("--donor needs --model")
        chosen = pair(given["pair_name"] or "tiny")
        return chosen.base, chosen.instruct
    if given["pair_name"] is not None:
        raise click.UsageError("--model and --pair exclude each other")
    return given["model_ref"], given["donor"]


COLUMNS = ("work", "what", "#ratio", "#plain", "#goal", "#layer calls", "#memory")


def _show(doc: dict[str, Any], *, plain: bool) -> None:
    rows, columns = [_row(item) for item in doc["items"]], list(COLUMNS)
    if not doc["goals_apply"]:
        at = columns.index("#goal")
        rows, columns = [[*r[:at], *r[at + 1 :]] for r in rows], [*columns[:at], *columns[at + 1 :]]
    if plain:
        for line in ([name.lstrip("#") for name in columns], *rows):
            click.echo(safe_text("  ".join(line)))
    else:
        print_table(f"Bench, {_about(doc)}", columns, rows)
    for item in doc["items"]:
        if item["note"]:
            note(f"{item['work']}: {item['note']}")
    note("ratio: to one plain forward; plain: that of a plain loop; layer calls: made/least")
    if doc["goals_apply"]:
        note(f"goals are for {doc['goals_for']}")
    for line in doc["notes"]:
        note(line)
    click.echo(safe_text(_line(doc)))


def _row(item: dict[str, Any]) -> list[str]:
    in_bytes = item["ratio"] is None and item["possible"]
    own = item["peak_memory"] if in_bytes else item["ratio"]
    plain = item["twin_peak_memory"] if in_bytes else item["twin_ratio"]
    shown = _bytes if in_bytes else _ratio
    sampled = "~" if plain is not None and item["twin_cells"] < item["cells"] else ""
    goal = _bytes(item["goal"]) if item["goal"] >= 1 << 20 else f"{item['goal']:g}"
    made = "-" if item["layer_calls"] is None else f"{item['layer_calls']:.0f}"
    return [
        item["work"].replace("attribution", "attr."),
        item["what"] if item["possible"] else "not possible here",
        shown(own),
        sampled + shown(plain),
        goal,
        f"{made}/{item['least_layer_calls']:.0f}",
        _bytes(item["peak_memory"]),
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else format_bytes(value)


def _about(doc: dict[str, Any]) -> str:
    model, machine = doc["models"]["recipient"], doc["machine"]
    device = "" if machine["device"] == machine["chip"] else f" ({machine['device']})"
    return (
        f"{_short(model['name'])}: {model['architecture']}, "
        f"{model['layers']} layers, {model['dtype']}, {doc['tokens']} tokens, on "
        f"{machine['chip']}{device}"
    )


def _short(name: str) -> str:
    """The name of a model of this package, or the last part of a folder's or a Hub id."""
    inside = name.removeprefix("package:")
    return inside if inside != name else PurePath(name).name


def _line(doc: dict[str, Any]) -> str:
    """Everything in one line, to be posted."""
    figures = []
    for item in doc["items"]:
        if item["possible"]:
            row = _row(item)
            figures.append(f"{row[0]} {row[2]}")
    return f"mlxroles {doc['versions']['mlxroles']}, {_about(doc)}: {', '.join(figures)}"
