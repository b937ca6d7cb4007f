"""The report on components: a page of all layers, and a page per layer that tells its stories."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.components import rows, wording
from mlxroles.report.components.story import STYLE, legend, story
from mlxroles.report.components.views import LayerView

Doc = Mapping[str, Any]

LAYERS = "layers"
"""The folder of the layers' pages, beside the page of all."""
_OPEN = 2
"""Stories that are shown unfolded."""
_EMBEDDED = ("heads", "qk_heads", "qk_single", "together", "likeness", "weights")
"""Figures of a layer that its page holds; the others are named."""
_CAPTIONS = {
    "importance": "How important the components of every map are, sorted; below, the same on a "
    "logarithmic scale.",
    "spread": "The largest share that one head has in a component's norm, beside chance.",
    "heads": "Which heads the components write to (of o: read from).",
    "weights": "The model's own weight where it is known, the sum of all components VU, and the "
    "most important components.",
    "likeness": "Cosines between what components of two maps read from the layer's input.",
    "together": "How often components of two maps fire at the same token.",
    "qk_heads": "W(D) of query and key components in each head, by distance D.",
    "qk_single": "The pairs with the largest sums over heads, head by head.",
}


def index(doc: Doc, figures: Mapping[str, str]) -> str:
    """The page of all layers.

    Args:
        doc: The document of the report.
        figures: Paths of PNG files by name; other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    parts = [
        f"<h1>{escape(wording.title(doc))}</h1>",
        f'<p class="finding">{escape(wording.sentence(doc))}</p>',
        *(shell.note(line) for line in (*wording.missing(doc), *wording.remarks(doc))),
        "<h2>Layers</h2>",
        _linked(doc),
        *(shell.figure(path, caption(name)) for name, path in drawn.items()),
        shell.note(wording.CAUTION if doc["model"] else ""),
        "<h2>What this was made from</h2>",
        shell.facts(wording.facts(doc)),
    ]
    return shell.page(wording.title(doc), parts, style=STYLE)


def layer_page(doc: Doc, view: LayerView, figures: Mapping[str, str]) -> str:
    """The page of one layer; ``figures`` are its own.

    Raises:
        StoreError: a figure cannot be read.
    """
    entry = next(each for each in doc["layers"] if each["layer"] == view.layer)
    name = f"Layer {view.layer} of {rows.display(doc)}"
    drawn = {each: Path(figures[each]) for each in _EMBEDDED if each in figures}
    parts = [
        _links(doc, view.layer),
        f"<h1>{escape(name)}</h1>",
        f'<p class="finding">{escape(wording.layer_sentence(entry))}</p>',
        *(shell.note(line) for line in wording.missing(doc)),
        *_stories(doc, view),
        *(shell.figure(path, caption(each)) for each, path in drawn.items()),
        *(shell.table(rows.map_grid(m, doc, view), is_folded=True) for m in view.maps),
        _others(figures, view.layer),
        _links(doc, view.layer),
    ]
    return shell.page(name, parts, style=STYLE)


def caption(name: str) -> str:
    """What stands below a figure."""
    return _CAPTIONS.get(name, name)


def file_name(layer: int) -> str:
    """The name of a layer's page."""
    return f"L{layer:02d}.html"


def _stories(doc: Doc, view: LayerView) -> list[str]:
    if not view.stories:
        return []
    shown = [
        story(each, wording.measure(doc), is_open=n < _OPEN) for n, each in enumerate(view.stories)
    ]
    values = (
        "phi, fire together, as if tokens were independent"
        if doc["harvest"]
        else "cosine, read alike"
    )
    told = (
        f"The {len(view.stories)} leading query components, the key components whose scores they "
        f"raise and lower most, and value components beyond chance with those (→, {values})."
    )
    heading = "<h2>What its query components look for</h2>"
    if view.qk is None:
        return ["<h2>Its query components</h2>", *shown]
    caution = f"{wording.CAUTION} {wording.SIGNS[bool(doc['harvest'])]}"
    return [heading, shell.note(told), legend(), shell.note(caution), *shown]


def _links(doc: Doc, layer: int) -> str:
    """The way to the page of all layers, the one before and the one after."""
    layers = [each["layer"] for each in doc["layers"]]
    at = layers.index(layer)
    links = ['<a href="../report.html">all layers</a>']
    for other, name in ((at - 1, "← layer"), (at + 1, "layer →")):
        if 0 <= other < len(layers):
            told = name.replace("layer", f"layer {layers[other]}")
            links.append(f'<a href="{file_name(layers[other])}">{told}</a>')
    return f"<nav>{''.join(links)}</nav>"


def _linked(doc: Doc) -> str:
    """The table of layers, each with a link to its page."""
    grid = rows.layer_grid(doc)
    body = []
    for layer, row in zip(doc["layers"], grid.rows, strict=True):
        link = f'<a href="{LAYERS}/{file_name(layer["layer"])}">layer {escape(row[0])}</a>'
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body.append(f"<tr><td>{link}</td>{cells}</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.head)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>\n"
        f"{shell.note(rows.legend(doc))}"
    )


def _others(figures: Mapping[str, str], layer: int) -> str:
    """Links to the figures that the page does not hold."""
    names: Sequence[str] = [n for n in figures if n not in _EMBEDDED and not n.endswith("_svg")]
    links = ", ".join(
        f'<a href="../figures/L{layer:02d}/{escape(Path(figures[n]).name)}">{escape(n)}</a>'
        for n in names
    )
    return f'<p class="note">More figures: {links}</p>' if links else ""
