"""The report of a study of heads as one HTML file: a map of kinds, then kind by kind, then checks.

Maps are drawn by the page itself where the model is small, so that they follow its colours and are
sharp at any size; of larger models the figures stand in, as many as the page has room for.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlxroles.report import shell
from mlxroles.report.heads import board, rows, scores, story
from mlxroles.report.heads.wording import kind, title
from mlxroles.text import slug

Doc = Mapping[str, Any]

_NATIVE = 640
"""Heads of all models up to which the page draws maps of scores itself."""
_ROOM = 1_500_000
"""Bytes of figures in a page; base64 makes them a third larger."""
_DIFFERENCES, _CAUSAL = 40, 60
_HOW = (
    "In the tables below: a dot is the score, with its 95 % interval and, thin, the bounds that "
    "hold for all heads and scores at once; | is uniform attention, x the control, the dashed line "
    "what is needed. In the maps, frames are heads that are marked; of differences between models "
    "only clear ones have their number."
)
_CAPTIONS = {
    "causal": "Change of what the heads are for with the heads set to zero, and its 95 % interval; "
    "grey: random sets of as many other heads, of the same layers and without the class as far as "
    "there are any.",
    "profile": "Mean attention weight by distance, on text. Named: the heads with the highest peak "
    "beyond offset 0; bands: 95 % intervals over sequences.",
    "patterns": "Attention of the highest heads on one example each, query by key, the first 128 "
    "positions. Red lines: where a row of tokens begins to repeat; an induction head looks along "
    "the diagonal below.",
}


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page; ``figures`` are paths of PNG files by name, other files are left out.

    Raises:
        StoreError: a figure cannot be read.
    """
    doc = scores.parsed(doc)
    drawn = {name: Path(path) for name, path in figures.items() if path.endswith(".png")}
    pictures = _Pictures(drawn)
    order = list(_CAPTIONS)
    told = sorted((n for n in drawn if _family(n) in order), key=lambda n: order.index(_family(n)))
    checks = [pictures.shown(name) for name in told]
    sides = scores.sides(doc)
    tables = [
        rows.nearest_grid(doc),
        rows.difference_grid(doc, most=_DIFFERENCES),
        *(rows.causal_grid(doc, side, most=_CAUSAL) for side in sides),
    ]
    body = [
        f"<h1>{escape(title(doc))}</h1>",
        _finding(doc),
        _overview(doc),
        shell.note(_HOW),
        *story.sections(doc, lambda name: _maps(doc, name, pictures)),
        "<h2>Figures</h2>" if any(checks) else "",
        *checks,
        *(shell.table(grid) for grid in tables if grid is not None),
        shell.note(_legend()),
        shell.note(pictures.left_out()),
        *(shell.note(text) for text in rows.notes(doc)),
        "<h2>The run</h2>",
        shell.facts(rows.facts(doc)),
    ]
    style = "\n".join((board.STYLE, board.colors(), story.STYLE))
    return shell.page(title(doc), body, style=style, script=board.SCRIPT)


def _finding(doc: Doc) -> str:
    """The sentence of the document."""
    return f'<p class="finding">{"<br>".join(map(escape, rows.finding(doc)))}</p>'


def _overview(doc: Doc) -> str:
    boards = "\n".join(board.kinds(doc, side) for side in scores.sides(doc))
    text = (
        "A cell is a head: layers upwards, heads to the right. The letter and colour say what it "
        "does, the size of the tile how strongly; a dot, that something else holds too; an empty "
        "cell, that nothing does. Point at a cell, touch it or use the arrow keys for its numbers."
    )
    order = " → ".join(scores.sides(doc))
    several = f", {order}" if len(scores.sides(doc)) > 1 else ""
    several = f" Numbers: heads of which it is the first kind{several}."
    return (
        f"<h2>What each head does</h2>\n{shell.note(text + several)}\n{board.key(doc)}\n"
        f'<p id="reading" aria-live="polite">&nbsp;</p>\n<div class="boards">{boards}</div>'
    )


def _maps(doc: Doc, name: str, pictures: "_Pictures") -> str:
    """The maps of a score: drawn here, or its figure."""
    sides = scores.sides(doc)
    if sum(int(scores.is_seen(doc, side).sum()) for side in sides) > _NATIVE:
        return pictures.shown(slug(name), f"{kind(name).measures} Frames: marked heads.")
    several = len(sides) > 1
    by_side = {side: scores.maps(doc, side, name) for side in sides}
    lines: list[list[str]] = [[]]
    for side, panels in by_side.items():
        held, drawn = scores.marked(doc, side, name), lines[-1]
        for n, panel in enumerate(panels):
            if not scores.any_of([panel.values]):
                continue
            end = scores.end_of([one[n].values for one in by_side.values()], panel.threshold)
            title_ = panel.title if panel.title != "score" else ""
            title_ = ": ".join(text for text in (side if several else "", title_) if text)
            is_judged = panel.threshold is not None or len(panels) == 1
            drawn.append(
                board.shades(
                    panel,
                    held if is_judged else held & False,
                    end,
                    title=title_ or "score",
                    side=side if several else "",
                )
            )
        if len(panels) > 1:
            lines.append([])
    change, clear = scores.difference(doc, name), scores.difference(doc, name, "clear")
    if several and change is not None and clear is not None:
        panel = scores.Panel("", change, "signed")
        text, end = f"{sides[1]} − {sides[0]}", scores.end_of([change], scores.least(doc, name))
        lines[-1].append(board.shades(panel, clear > 0, end, title=text, side=text, is_change=True))
    return "\n".join(f'<div class="boards">{"".join(line)}</div>' for line in lines if line)


class _Pictures:
    """Figures that go into the page, as long as there is room."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths, self.room = paths, _ROOM
        self.without: list[str] = []

    def shown(self, name: str, caption: str = "") -> str:
        """A figure with its caption; nothing where there is none, or no room for it."""
        path = self.paths.get(name)
        if path is None:
            return ""
        size = path.stat().st_size if path.exists() else 0
        if size > self.room:
            self.without.append(name)
            return ""
        self.room -= size
        made = shell.figure(path, caption or _CAPTIONS.get(_family(name), name))
        return f'<div class="print">{made}</div>'

    def left_out(self) -> str:
        """Where figures are that are not in the page."""
        text = "Figures of every score for papers and slides, as PNG and SVG, are in figures/."
        rest = ", ".join(self.without)
        return f"{text} Too large for this page: {rest}." if rest else text


def _family(name: str) -> str:
    return name.partition("_")[0]


def _legend() -> str:
    return (
        "Scores are means over sequences of tokens, [95 % bootstrap interval over sequences]. "
        "Uniform: what attention without a preference over the visible tokens would score at the "
        "same places; control: see each kind. A head has a kind where its score lies above both, "
        "with bounds for all heads and scores at once, and above what is needed and twice either "
        "with its own 95 % bound. * a clear "
        "difference (sign-flip test over sequences, corrected for all heads and scores) · ✓ "
        "zeroing confirms it: the interval lies on the side where the class's heads must move it, "
        "and no random set goes as far. p is of each set alone and with n random sets not below "
        "1 / (n + 1), so that of 20 sets without an effect about one is beyond all of 20 random "
        "ones; q is p corrected for all sets and measures of the model."
    )
