"""A tiny random instance of every model module of mlx_lm, and the table of what works with them.

``python -m tests.architectures`` runs the self-checks on all of them and writes the table into
CONTRIBUTING.md.
"""

import importlib
import pkgutil
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import mlx_lm.models
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

TESTS = Path(__file__).parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

import architecture_values as values  # noqa: E402  (a neighbour, however this file was started)
import metal_stand_ins  # noqa: E402

from mlxroles.backend import mx, nn  # noqa: E402
from mlxroles.models.check import CheckReport, check  # noqa: E402
from mlxroles.models.implementation import SHARED  # noqa: E402
from mlxroles.models.load import wrap  # noqa: E402
from mlxroles.models.model import Model  # noqa: E402

CONTRIBUTING = TESTS.parent / "CONTRIBUTING.md"
BEGIN, END = "<!-- architectures:begin -->", "<!-- architectures:end -->"
HEADER = ("module", "verdict", "residual", "attention", "why")
BROKEN = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
"""How a module fails that cannot be built or cannot run on this machine."""


class Row(NamedTuple):
    """One line of the table."""

    module: str
    verdict: str
    residual: str
    attention: str
    why: str


def names() -> list[str]:
    """Every model module of the installed mlx_lm."""
    found = (m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__))
    return sorted((name for name in found if name not in SHARED), key=str.lower)


def config(name: str) -> dict[str, Any]:
    """A tiny config for the module; multimodal wrappers get a ``text_config``."""
    if name not in values.TOWERS:
        return {**values.SHARED, **values.SPECIAL.get(name, {}), "model_type": name}
    tower = values.TOWERS[name]
    text = {**values.SHARED, **values.SPECIAL.get(tower, {}), "model_type": tower}
    return {
        "model_type": name,
        "text_config": text | values.TEXT.get(name, {}),
        "vocab_size": values.VOCABULARY,
        **values.OUTER.get(name, {}),
    }


def build(name: str) -> nn.Module:
    """The module's model with random float32 weights, evaluated."""
    if name == "olmo":  # it refuses to import without a package that it does not use
        sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))
    module = importlib.import_module(f"mlx_lm.models.{name}")
    metal_stand_ins.put_into(name, module)
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config(name)))
    generator = np.random.default_rng(0)
    weights = []
    parameters: Any = tree_flatten(model.parameters())
    for path, weight in parameters:
        if mx.issubdtype(weight.dtype, mx.floating) and weight.size:
            # gates, sinks and scales are built as zeros or ones; noise makes all of them matter
            noise = generator.standard_normal(weight.shape, dtype=np.float32)
            weight = weight + mx.array(0.1 * noise).astype(weight.dtype)
        weights.append((path, weight))
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    return model


def examined(name: str) -> tuple[Model | None, CheckReport]:
    """A tiny instance and its self-checks; without an instance where it cannot be built or run."""
    try:
        model = wrap(build(name), config(name), name=name)
        return model, check(model)
    except BROKEN as error:
        text = str(error).strip().splitlines() or [""]
        notes = (f"{type(error).__name__}: {text[0][:120]}",)
        return None, CheckReport(checks=(), notes=notes, limited=True, sites=())


def row(name: str, model: Model | None, report: CheckReport) -> Row:
    """The module's line of the table."""
    blocks = model.network.anatomy.blocks if model else ()
    attention = sum("pattern" not in block.missing for block in blocks)
    return Row(
        name,
        report.verdict,
        "yes" if "resid_post" in report.sites else "no",
        f"{attention} of {len(blocks)} layers" if blocks else "no",
        "; ".join(report.notes).replace("|", "/"),
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def stored() -> dict[str, Row]:
    """The rows that CONTRIBUTING.md holds, by module."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    rows = (Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines)
    return {row.module: row for row in rows}


def write(rows: list[Row]) -> None:
    """Puts the table between its markers in CONTRIBUTING.md."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{CONTRIBUTING} has no {BEGIN} ... {END}")
    body = f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"
    CONTRIBUTING.write_text(body, encoding="utf-8")


if __name__ == "__main__":
    write([row(name, *examined(name)) for name in names()])
