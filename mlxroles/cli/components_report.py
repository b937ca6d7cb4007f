"""`mlxroles components report`: what the components of a file do, as pages to look at."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.inputs import model_options
from mlxroles.cli.options import json_option, out_option, plain_option, seed_option
from mlxroles.cli.output import note, print_json
from mlxroles.cli.results import RESULTS, open_report, show, show_files
from mlxroles.store.files import shown
from mlxroles.text import slug

if TYPE_CHECKING:
    from mlxroles.studies.component_report import ComponentReport


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--harvest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also tell when components fire.  [default: what `components harvest` wrote beside FILE]",
)
@click.option(
    "--model",
    "model_ref",
    metavar="DIR|PAIR/SIDE",
    help="Also tell what queries and keys give to scores: the model that was decomposed.",
)
@click.option("--layers", metavar="A-B|A,B|A", help="Layers that are reported on.  [default: all]")
@model_options
@click.option("--open", "opens", is_flag=True, help="Show the report in the browser at the end.")
@seed_option
@out_option
@plain_option
@json_option
def command(**given: Any) -> int:
    """Tell what the components of FILE do: figures, and a page of stories per layer.

    Which components matter and in which heads they live, what they read alike; with the model,
    what each pair of a query and a key component gives to scores by distance; with a harvest, at
    which tokens they fire and which fire together. Every number beside what chance gives.

    \b
    Examples:
      mlxroles components report svd.safetensors --open
      mlxroles components report svd.safetensors --model DIR --harvest harvest.h5
      mlxroles components report svd.safetensors --model DIR --layers 2-3
    """  # noqa: D301
    with ExitStack() as opened:
        study = _study(given, opened)
        told = f"components-report_{slug(study.name)}"
        folder = given["out"] or RESULTS / told / study.identity()
        doc = study.run(folder, _told)
    if given["as_json"]:
        print_json(doc)
        return 0
    from mlxroles.dashboard.components_tables import components_tables

    show(components_tables(doc), plain=given["plain"])
    for text in doc["notes"]:
        note(text)
    names = ("summary.json", "components.csv", "pairs.csv", "offsets.h5", "figures", "layers")
    show_files(str(folder), *names, "report.html")
    open_report(str(folder), given)
    return 0


def _study(given: dict[str, Any], opened: ExitStack) -> "ComponentReport":
    from mlxroles.cli.components_harvest import component_file
    from mlxroles.components import read
    from mlxroles.components.harvest_file import read_harvest
    from mlxroles.studies.component_report import ComponentReport, is_of

    file = component_file(given["file"])
    found = read(file)
    layers = None
    if given["layers"] is not None:
        from mlxroles.plan import parse_layers

        layers = parse_layers(given["layers"], max(found.layers) + 1).layers
    beside = file.with_name(f"{file.stem}_harvest.h5")
    path = given["harvest"] or (beside if beside.exists() else None)
    harvest = None if path is None else opened.enter_context(read_harvest(path))
    if harvest is not None and not given["harvest"] and not is_of(harvest, file, found):
        note(f"{shown(beside)} is the harvest of other components and left out")
        harvest = None
    model = None
    if given["model_ref"] is not None:
        from mlxroles.cli.inputs import loading
        from mlxroles.models.load import load

        model = load(given["model_ref"], **loading(given)["options"])
        for text in model.warnings:
            note(text)
    return ComponentReport(file, found, harvest, model, layers, given["seed"])


def _told(layer: int, n: int, count: int) -> None:
    note(f"layer {layer}, {n} of {count}")
