"""`mlxroles components`: a model's linear maps as sums of rank-one components.

The commands that make and show component files are here; each of the others lives in a module of
its own, ``components_NAME``, that is imported when it is called.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxroles.cli.inputs import loading, model_options
from mlxroles.cli.options import json_option
from mlxroles.cli.output import note, print_json, print_table
from mlxroles.text import format_bytes, safe_text

if TYPE_CHECKING:
    from mlxroles.components.decomposition import Components, Decomposition
    from mlxroles.models.model import Model

ELSEWHERE = {
    "train": "Train components and their causal importance.",
    "harvest": "When components fire on text, with examples.",
    "induction": "Which components make an induction head.",
    "report": "Figures and a page of every layer's components.",
}
"""Commands in modules of their own, with the line that ``--help`` shows."""

KINDS = ("q", "k", "v", "o", "mlp")


class Commands(click.Group):
    """A group that imports the commands of :data:`ELSEWHERE` only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that make a file, then those that use it."""
        return ["svd", "train", "import", "show", "harvest", "induction", "report"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name in ELSEWHERE:
            return import_module(f"mlxroles.cli.components_{cmd_name}").command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without importing any."""
        lines = {name: own.get_short_help_str(70) for name, own in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(n, (lines | ELSEWHERE)[n]) for n in self.list_commands(ctx)])


@click.group("components", cls=Commands)
def command() -> None:
    """Write a model's linear maps as sums of rank-one components, and explain them.

    A component of a map W is a direction V that its input is read along and a vector U that its
    output gets: W is the sum of all U V^T. It is named L3.q:17, or L3.q:17@H4+H5 in given heads
    (key-value heads in k and v). `mlxroles ablate --components FILE#L3.q:17` takes it out.

    \b
    Examples:
      mlxroles components svd tiny.safetensors --model tiny/base
      mlxroles components show tiny.safetensors --model tiny/base
      mlxroles components harvest tiny.safetensors --model tiny/base
    """  # noqa: D301


def _file(ctx: click.Context, param: click.Parameter, value: str) -> Path:
    path = Path(value)
    if path.suffix.lower() not in (".safetensors", ".h5"):
        raise click.BadParameter("a component file ends in .safetensors or .h5")
    return path


def named_kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The kinds of maps that ``--maps`` names; all of them without it."""
    named = KINDS if value is None else tuple(dict.fromkeys(value.replace(" ", "").split(",")))
    for kind in named:
        if kind not in KINDS:
            raise click.BadParameter(f"{kind!r} is none of {','.join(KINDS)}")
    return named


def map_options(command: Callable[..., object]) -> Callable[..., object]:
    """Adds ``--model``, ``--maps`` and ``--layers``: which maps are decomposed."""
    options = (
        click.option(
            "--model", "model_ref", metavar="DIR", required=True, help="A folder or Hub id."
        ),
        click.option(
            "--maps",
            "kinds",
            metavar="q,k,v,o,mlp",
            callback=named_kinds,
            help="Which linear maps of a layer.  [default: all of these]",
        ),
        click.option("--layers", metavar="A-B|A,B|A", help="Which layers.  [default: all]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


fresh_option = click.option("--fresh", is_flag=True, help="Write over a file that is there.")


@command.command("svd", short_help="Make components of a model at once, by singular values.")
@click.argument("file", metavar="FILE", callback=_file)
@map_options
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    help="Most components of a map, the largest first.  [default: all]",
)
@fresh_option
@model_options
@json_option
def svd_command(file: Path, **given: Any) -> None:
    """Decompose a model's maps by their singular values; needs no training.

    Component 0 of a map has the largest singular value. With all of them the sum is the weight
    itself.

    \b
    Examples:
      mlxroles components svd tiny.safetensors --model tiny/base
      mlxroles components svd qk.safetensors --model DIR --maps q,k --layers 10-12 --rank 64
    """  # noqa: D301
    _free(file, given)
    model = _model(given)
    from mlxroles.components.file import write
    from mlxroles.components.svd import svd

    layers = _layers(given["layers"], model.n_layers)

    def told(m: Any, n: int, of: int) -> None:
        note(f"{m.key}: {m.d_in} to {m.d_out} ({n} of {of})")

    components = svd(
        model,
        given["kinds"],
        layers=layers,
        rank=given["rank"],
        told=(lambda *_: None) if given["as_json"] else told,
    )
    _written(write(file, components), components, given)


@command.command("import", short_help="Take components over from a state dict.")
@click.argument("state", metavar="STATE.safetensors")
@click.argument("file", metavar="FILE", callback=_file)
@click.option(
    "--model", "model_ref", metavar="DIR", help="The model they belong to: a folder or Hub id."
)
@click.option(
    "--d-head", type=click.IntRange(min=1), help="Width of a head, where no --model says it."
)
@fresh_option
@model_options
@json_option
def import_command(state: str, file: Path, **given: Any) -> None:
    """Take components over from a checkpoint of the original decomposition program.

    STATE is its state dict (model_STEP.pth) saved once with safetensors.torch.save_file; key names
    of all its versions are known. A .pth itself is not opened: it may run code.
    """
    _free(file, given)
    model = None if given["model_ref"] is None else _model(given)
    from mlxroles.components.file import write
    from mlxroles.components.importing import read_state

    components = read_state(state, model=model, d_head=given["d_head"])
    _written(write(file, components), components, given)


@command.command("show", short_help="What is in a component file.")
@click.argument("file", metavar="FILE")
@click.option(
    "--model", "model_ref", metavar="DIR", help="Check the file against a model and its weights."
)
@model_options
@json_option
def show_command(file: str, **given: Any) -> None:
    """Show which maps a component file decomposes, into how many components of which size.

    `top` names the largest component, `share` its share of the squares of all of the map's
    components, `half` how many of the largest hold half of them. With --model `missing` is the
    share of the weight's squares that the sum of the components leaves out.
    """
    from mlxroles.components.file import read

    model = None if given["model_ref"] is None else _model(given)
    components = read(file, model)
    document = _document(file, components, model)
    if given["as_json"]:
        print_json(document)
        return
    names = ["map", "#in", "#out", "#heads", "#components", "#top", "#share", "#half"]
    names += ["#missing"] if model is not None else []
    print_table(_title(components), names, [_row(row) for row in document["maps"]])
    for line in document["notes"]:
        note(line)


def _model(given: dict[str, Any]) -> "Model":
    from mlxroles.models.load import load

    return load(given["model_ref"], **loading(given)["options"])


def _layers(text: str | None, n_layers: int) -> list[int] | None:
    if text is None:
        return None
    from mlxroles.plan import parse_layers

    return list(parse_layers(text, n_layers))


def _free(file: Path, given: dict[str, Any]) -> None:
    if file.exists() and not given["fresh"]:
        raise click.UsageError(
            f"{safe_text(str(file))} is there already; give another name, or --fresh to write "
            "over it"
        )


def _written(path: Path, components: "Components", given: dict[str, Any]) -> None:
    size = path.stat().st_size
    about = {"maps": len(components.maps), "components": components.n, "bytes": size}
    if given["as_json"]:
        print_json({"schema": "mlxroles/component-file/1", "file": str(path), **about})
        return
    click.echo(_title(components))
    for line in _notes(components):
        note(line)
    click.echo(f"{safe_text(str(path))} ({format_bytes(size)})")


def _title(components: "Components") -> str:
    model = components.meta.get("model")
    of = f" of {safe_text(str(model.get('name')), limit=60)}" if isinstance(model, dict) else ""
    made = {"svd": "by singular values", "imported": "imported", "trained": "trained"}
    how = made.get(str(components.meta.get("made")), "")
    return f"{components.n} components in {len(components.maps)} maps{of}{how and ', ' + how}"


def _notes(components: "Components") -> list[str]:
    meta, lines = components.meta, []
    left_out, rest = meta.get("left_out"), meta.get("unexplained")
    if isinstance(left_out, float) and left_out:
        lines.append(f"the components left out hold up to {left_out:.2%} of a weight's squares")
    if isinstance(left_out, list) and left_out:
        lines.append(f"left out: components of {', '.join(safe_text(str(m)) for m in left_out)}")
    if isinstance(rest, float):
        lines.append(f"the components leave out {rest:.2%} of the squares of the target's weights")
    if meta.get("made") != "svd" and not components.importance:
        why = meta.get("no_importance")
        told = (
            safe_text(why, limit=200) if isinstance(why, str) else "it has no importance function"
        )
        lines.append(f"{told}; shares of the output stand for causal importance")
    return lines


def _document(file: str, components: "Components", model: "Model | None") -> dict[str, Any]:
    from mlxroles.components.file import fitted, foreign

    lines = _notes(components)
    maps = {} if model is None else fitted(components, model)
    other = None if model is None else foreign(components, model)
    rows = []
    for key, d in components.maps.items():
        weight = maps[key].weight(model) if model is not None else None
        rows.append(_facts(d, weight))
    return {
        "schema": "mlxroles/component-file/1",
        "file": file,
        "meta": dict(components.meta),
        "importance": sorted(components.importance),
        "maps": rows,
        "notes": [*lines, *([other] if other else [])],
    }


def _facts(d: "Decomposition", weight: Any) -> dict[str, Any]:
    """What a row says of one map; ``weight`` is the model's own, if it is known."""
    import numpy as np

    norms = np.linalg.norm(d.V.astype(float), axis=0) * np.linalg.norm(d.U.astype(float), axis=1)
    squares = np.sort(norms**2)[::-1]
    total = float(squares.sum()) or 1.0
    facts = {
        "map": d.key,
        "d_in": d.d_in,
        "d_out": d.d_out,
        "heads": d.n_heads,
        "components": d.n,
        "top": f"{d.key}:{int(norms.argmax())}",
        "share": float(squares[0]) / total,
        "half": int((squares.cumsum() < total / 2).sum()) + 1,
    }
    if weight is not None:
        rest = float(((weight - d.weight()).astype(float) ** 2).sum())
        facts["missing"] = rest / (float((weight.astype(float) ** 2).sum()) or 1.0)
    return facts


def _row(facts: dict[str, Any]) -> list[str]:
    top = f":{facts['top'].rsplit(':', 1)[1]}"
    cells = [facts["map"], *(str(facts[n]) for n in ("d_in", "d_out"))]
    cells += [str(facts["heads"] or "-"), str(facts["components"]), top]
    cells += [f"{facts['share']:.1%}", str(facts["half"])]
    return [*cells, f"{facts['missing']:.2%}"] if "missing" in facts else cells
