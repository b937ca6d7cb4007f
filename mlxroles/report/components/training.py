"""A training of components as tables and as one HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.rows import Grid
from mlxroles.text import safe_text

Doc = Mapping[str, Any]

LEFT = {
    "unmasked": "all components",
    "masked": "weighted by causal importance",
    "largest": "same importances, largest outputs",
    "shuffled": "same importances, random components",
    "stochastic": "unimportant in random parts",
    "none": "no components",
}
"""What is left of the maps, by the name of the measure."""
LEGEND = (
    "Means over batches of held-out text (a fifth of its rows) with 95 % bootstrap intervals over "
    "batches. Alive: "
    "mean importance above .01 on held-out text. At a position: with an importance above 0 there. "
    "Missing: share of the weight's squares that the components leave out. Largest outputs: the "
    "importances of a position are given to its components in the order of |a| |U|, which needs no "
    "trained function; a causal importance worth having does better."
)
_CAPTIONS = {
    "training": "Terms of the loss before their coefficients, and how many components are "
    "important at a position; dotted: the end of the warm-up on faithfulness alone.",
    "learned": "Left: how far the next token is from the model's own. Right: components that are "
    "important, as a share of each map's.",
}


def grids(doc: Doc, *, most: int | None = None) -> list[Grid]:
    """What is kept and how much is important; no tables of a training that is not over."""
    learned = doc.get("learned")
    if not learned:
        return []
    kept = [[text, *_of(learned["measures"][name], 4)] for name, text in LEFT.items()]
    head = ["left of the maps", "KL, nats", "from", "to"]
    maps = list(learned["maps"].items())
    rows = [
        [
            safe_text(key, limit=40),
            str(own["components"]),
            str(own["alive"]),
            *_of(own["active"], 2),
            f"{own['missing']:.2%}" if own["missing"] < 10 else ">1000%",
        ]
        for key, own in maps[:most]
    ]
    title = "Important components"
    if most is not None and len(maps) > most:
        title += f", first {most} of {len(maps)} maps"
    names = ["map", "components", "alive", "at a position", "from", "to", "missing"]
    return [Grid("Distance to the model's next token", head, kept), Grid(title, names, rows)]


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"Components of {safe_text(str(doc.get('display') or ''), limit=80)}, trained"
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    notes: Sequence[object] = doc.get("notes") or ()
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(safe_text(str(doc["sentence"])))}</p>',
        *(shell.figure(path, _CAPTIONS.get(name, name)) for name, path in drawn.items()),
        *(shell.table(grid) for grid in grids(doc)),
        shell.note(LEGEND),
        *(shell.note(safe_text(str(text))) for text in notes),
        "<h2>The run</h2>",
        shell.facts(_facts(doc)),
    ]
    return shell.page(title, body)


def _of(value: Mapping[str, float], digits: int) -> list[str]:
    return [f"{value[name]:.{digits}f}" for name in ("mean", "low", "high")]


def _facts(doc: Doc) -> list[tuple[str, str]]:
    recipe, text = doc["recipe"], doc.get("text") or {}
    terms = ("minimality", "stochastic", "layerwise", "subset", "masked", "adversarial")
    coefficients = ", ".join(f"{name} {recipe[name]:g}" for name in terms if recipe[name])
    found = [
        ("model", doc.get("display")),
        ("text", f"{text.get('name')}, {text.get('tokens'):,} tokens" if text else ""),
        (
            "steps",
            f"{recipe['steps']} after {recipe['warmup']} of warm-up, rate {recipe['rate']:g}",
        ),
        ("loss", coefficients),
        ("importance", f"{recipe['importance']}, hidden layers of {recipe['hidden']}"),
        ("seed", doc.get("seed")),
        ("run", doc.get("run_id")),
        ("made", doc.get("timestamp")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (doc.get("versions") or {}).items())),
    ]
    return [(name, safe_text(str(value), limit=200)) for name, value in found if value != ""]
