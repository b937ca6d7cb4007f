r"""What all figures share: style, colours, titles, text that any font can draw, and saving.

Token text is drawn without mathtext (``$\frac$`` is a token, not a formula), and a character
that no installed font has is written as its escape instead of a box and a warning.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from mlxroles import documents
from mlxroles.text import safe_text

BLUE, ORANGE, RED, GREY, PURPLE = "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"
BROWN, VERMILION, OLIVE, SLATE, CYAN = "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"
"""The petroff10 palette (Petroff 2021): told apart with every kind of colour vision."""

MODEL_COLORS = {"base": ORANGE, "instruct": BLUE, "model": BLUE}
DIRECTION_COLORS = {"instruct_to_base": BLUE, "base_to_instruct": ORANGE}
CONTROL_COLORS = (PURPLE, "#717581", "#a96b59")
CONTROL_MARKERS = ("x", "+", "1")
INK = "#222222"

_DPI = 160
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)


def style() -> AbstractContextManager[None]:
    """The settings for drawing and saving; matplotlib's own are restored afterwards."""
    return mpl.rc_context(
        {
            "font.family": list(_fonts()),
            "font.size": 9,
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#777777",
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.unicode_minus": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "text.color": INK,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "legend.edgecolor": "none",
            "legend.framealpha": 0.9,
            "legend.fontsize": 8,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "svg.hashsalt": "mlxroles",
            "svg.fonttype": "path",
        }
    )


@cache
def _fonts() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _drawable_codes() -> frozenset[int]:
    codes: set[int] = set()
    for name in _fonts():
        path = fontManager.findfont(FontProperties(family=[name]))
        codes.update(FT2Font(path).get_charmap())
    return frozenset(codes)


def label(text: object, limit: int = 40) -> str:
    """The text as these fonts can draw it, cut to ``limit`` characters."""
    known = _drawable_codes()
    shown = safe_text(str(text), limit=limit)
    drawable = "".join(char if ord(char) in known else _escape(char) for char in shown)
    return safe_text(drawable, limit=limit)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def brightness(color: Sequence[float]) -> float:
    """Perceived brightness of an RGB colour, 0 to 1 (Rec. 601)."""
    return float(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number of things: ``1 prompt``, ``2 prompts``."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained", dpi=_DPI)


def dress(figure: Figure, doc: Mapping[str, Any], what: str, about: str | None = None) -> None:
    """Adds the title (pair, what, site, prompts) and the small print (run and versions).

    ``about`` takes the place of the title's second line, site and prompts.
    """
    count = documents.prompt_count(doc)
    prompts = doc.get("prompts") or [{}]
    which = f"{count} prompts" if count > 1 else f"prompt {label(prompts[0].get('id', '?'), 30)}"
    name = label(doc.get("display") or doc.get("pair") or "", 50)
    found = documents.place(doc.get("site") or "", doc.get("positions", "all"), doc.get("heads"))
    where = label(found, 60)
    which += f", seed {label(doc['seed'], 12)}" if doc.get("seed") else ""
    title = f"{what}: {name}" if name else what
    second = f"{where}, {which}" if about is None else about
    figure.suptitle(f"{title}\n{second}", x=0.01, ha="left", fontsize=11, linespacing=1.4)
    versions = [f"{label(k, 20)} {label(v, 20)}" for k, v in _libraries(doc)]
    run = [f"run {label(doc['run_id'], 40)}"] if doc.get("run_id") else []
    figure.supxlabel(
        "  ·  ".join([*run, *versions]), x=0.01, ha="left", fontsize=6, color="#999999"
    )


def _libraries(doc: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The versions but for the platform's, whose name is longer than all others together."""
    return [(k, v) for k, v in (doc.get("versions") or {}).items() if k != "platform"]


def layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    """Integer ticks over the tested layers, with room at both ends even for a single one."""
    if len(layers) <= 12:
        axes.set_xticks(list(layers))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    margin = max(0.02 * (max(layers) - min(layers)), 0.5) if len(layers) > 1 else 2.0
    axes.set_xlim(min(layers) - margin, max(layers) + margin)
    axes.set_xlabel("layer")


def save(figure: Figure, png: Path, vector: Path) -> None:
    """Writes the figure as PNG and SVG without a date or version in the files.

    Each is drawn once: ``Figure.savefig`` draws every file twice, only to lay it out.
    """
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # both files have the layout of the first
    FigureCanvasSVG(figure).print_svg(vector, metadata={"Date": None, "Creator": None})


def saved(drawn: Mapping[str, Figure | None], folder: Path) -> dict[str, str]:
    """Saves the figures that there are, each as ``NAME.png`` and ``NAME.svg``.

    Returns:
        The path of every PNG by name, and that of the SVG with ``_svg`` appended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for name, figure in drawn.items():
        if figure is not None:
            png, vector = folder / f"{name}.png", folder / f"{name}.svg"
            save(figure, png, vector)
            paths |= {name: str(png), f"{name}_svg": str(vector)}
    return paths
