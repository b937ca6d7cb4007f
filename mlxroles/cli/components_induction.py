"""`mlxroles components induction`: what components do for an induction head."""

from pathlib import Path
from typing import Any

import click

from mlxroles.cli.components_harvest import bar, component_file, loaded, named, of_model
from mlxroles.cli.inputs import model_options
from mlxroles.cli.options import json_option, plain_option, seed_option
from mlxroles.cli.output import print_json
from mlxroles.cli.results import show_files
from mlxroles.text import safe_text


@click.command("induction")
@of_model
@click.option(
    "--head",
    metavar="L2H5",
    help="The head.  [default: the highest induction score where q or k is decomposed]",
)
@click.option(
    "--harvest",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Components that are alive there are tried.  [default: alive on the sequences]",
)
@click.option(
    "--sequences",
    type=click.IntRange(min=4),
    default=32,
    show_default=True,
    help="Sequences of random tokens that are measured on; as many others serve to choose.",
)
@click.option(
    "--length",
    type=click.IntRange(min=2, max=1024),
    default=32,
    show_default=True,
    help="Random tokens of a sequence before they repeat.",
)
@click.option(
    "--random",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Random directions beside each of the ten that matter most, and random sets beside "
    "all of them.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write the document here, text and table beside it.  [default: beside FILE]",
)
@seed_option
@model_options
@json_option
@plain_option
def command(**given: Any) -> int:
    """Find the components of q and k that an induction head works by.

    On random tokens that repeat: how much of each component lies in the head, what the head's
    induction score loses when the component is taken out of q or k before RoPE (with an interval,
    beside random directions of the same length), what other heads of the layer lose, and where
    the head looks instead.

    \b
    Examples:
      mlxroles components induction tiny.safetensors --model tiny/base
      mlxroles components induction FILE --model DIR --head L2H5 --harvest FILE_harvest.h5
    """  # noqa: D301
    file = component_file(given["file"])
    head = _head(given["head"])
    if given["out"] and (given["out"].suffix.lower() != ".json" or given["out"].is_dir()):
        raise click.UsageError(f"--out: {safe_text(str(given['out']))!r} is no .json file")
    from contextlib import nullcontext

    from mlxroles.components.harvest_file import read_harvest
    from mlxroles.components.induction import Induction, Settings
    from mlxroles.components.induction_document import characterise

    with read_harvest(given["harvest"]) if given["harvest"] else nullcontext() as harvest:
        model, components = loaded(given, file)
        settings = Settings(**{n: given[n] for n in ("sequences", "length", "random", "seed")})
        induction = Induction(model, components, head, settings, harvest)
        told_of = None if harvest is None else (harvest.about["components"] or {}).get("sha256")
        if told_of not in (None, named(file)["sha256"]):
            induction.notes.append("the harvest is of another component file")
        with bar("taking components out", plain=given["plain"]) as told:
            doc = characterise(induction, told)
    doc |= {"model": model.name, "components_file": named(file)}
    path = given["out"] or file.with_name(f"{file.stem}_induction_{doc['head']}.json")
    _write(path, doc, given)
    return 0


def _head(text: str | None) -> tuple[int, int] | None:
    from mlxroles.heads import parse_heads

    found = [] if text is None else parse_heads(text)
    if len(found) > 1:
        raise click.UsageError("--head takes one head")
    return found[0] if found else None


def _write(path: Path, doc: dict[str, Any], given: dict[str, Any]) -> None:
    """Writes document, text and table; prints the text and the paths."""
    from mlxroles.components import induction_text
    from mlxroles.store.files import make_folder, plain_errors, write_atomic, write_json
    from mlxroles.studies.role_results import write_csv

    doc["sentence"] = induction_text.sentence(doc)
    text = induction_text.text(doc)
    with plain_errors(path.parent):
        make_folder(path.parent)
    words, table = path.with_suffix(".txt"), path.with_suffix(".csv")
    write_json(path, doc)
    write_atomic(words, text.encode())
    write_csv(table, induction_text.rows(doc))
    if given["as_json"]:
        print_json(doc)
        return
    click.echo(text)
    show_files(str(path.parent), path.name, words.name, table.name)
