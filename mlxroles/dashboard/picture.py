"""A picture of the dashboard's final state as SVG, drawn from the very lines of the screen.

rich's own export loads a font from a server and draws bars as characters, which shows seams in
every browser. Here bars are rectangles, text keeps its columns in whatever monospace font there
is, and nothing is loaded. The same state gives the same file.
"""

import io
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.color import blend_rgb
from rich.console import Console, RenderableType
from rich.style import Style
from rich.terminal_theme import TerminalTheme

from mlxroles.dashboard.bars import COLORS
from mlxroles.dashboard.progress import Progress, from_document
from mlxroles.dashboard.screen import Screen
from mlxroles.text import safe_text

_COLUMNS = 100
_CELL, _LINE, _FONT = 9.0, 20.0, 15.0
_MARGIN, _TOP = 16.0, 44.0
_PARTIAL = "▏▎▍▌▋▊▉"
_RUNS = re.compile(rf"█+[{_PARTIAL}]?|[{_PARTIAL}]|[━─]+|┃|■+|▀+|▄+| +|[^█{_PARTIAL}━─┃■▀▄ ]+")
_THEME = TerminalTheme(
    (22, 27, 34),
    (214, 220, 227),
    [
        (72, 79, 88),
        (255, 107, 97),
        (63, 185, 80),
        (224, 175, 60),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (200, 206, 214),
    ],
    [
        (72, 79, 88),
        (255, 123, 114),
        (86, 211, 100),
        (240, 196, 86),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (255, 255, 255),
    ],
)
_PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">
<title>{title}</title>
<rect x="0.5" y="0.5" width="{inner_width:g}" height="{inner_height:g}" rx="9" fill="{paper}" \
stroke="#30363d"/>
<circle cx="20" cy="19" r="5.5" fill="#ff5f57"/>
<circle cx="38" cy="19" r="5.5" fill="#febc2e"/>
<circle cx="56" cy="19" r="5.5" fill="#28c840"/>
<g font-family="ui-monospace, Menlo, 'DejaVu Sans Mono', Consolas, monospace" \
font-size="{font:g}">
<text x="{middle:g}" y="24" text-anchor="middle" fill="#8b949e">{title}</text>
{shapes}
</g>
</svg>
"""


class _Box(NamedTuple):
    """Where in a line's height a character stands, as top and bottom in cells."""

    top: float
    bottom: float


_BAR, _RULE, _GAUGE, _FULL = _Box(0.1, 0.9), _Box(0.45, 0.58), _Box(0.25, 0.75), _Box(0.02, 0.98)
_WHOLE, _UPPER, _LOWER = _Box(0.0, 1.0), _Box(0.0, 0.5), _Box(0.5, 1.0)


def svg(shown: Mapping[str, Any] | Progress, path: Path, *, title: str = "mlxroles patch") -> None:
    """Writes the state, or that of a finished patch document, as an SVG of a terminal."""
    screen = Screen(shown if isinstance(shown, Progress) else from_document(shown))
    path.write_text(page(screen, title=title, columns=_COLUMNS), encoding="utf-8")


def page(shown: RenderableType, *, title: str, columns: int, rows: int = 60) -> str:
    """Whatever a terminal of this size would show, as SVG."""
    console = Console(
        width=columns,
        height=rows,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    lines = console.render_lines(shown, pad=False)
    shapes: list[str] = []
    for row, line in enumerate(lines):
        column = 0
        for text, style, _ in line:
            for run in _RUNS.findall(text):
                shapes += _shapes(run, style or Style(), row, column)
                column += cell_len(run)
    width = 2 * _MARGIN + columns * _CELL
    height = _TOP + len(lines) * _LINE + _MARGIN
    return _PAGE.format(
        width=width,
        height=height,
        inner_width=width - 1,
        inner_height=height - 1,
        middle=width / 2,
        font=_FONT,
        paper=_THEME.background_color.hex,
        title=escape(safe_text(title)),
        shapes="\n".join(shapes),
    )


def _shapes(run: str, style: Style, row: int, column: int) -> Iterator[str]:
    ink, paper = _colors(style)
    length = float(cell_len(run))
    if paper is not None:
        is_bar = paper in COLORS.values()
        yield _rectangle(row, column, length, _BAR if is_bar else _WHOLE, paper)
    if run[0] == " ":
        return
    if run[0] == "█" or run[-1] in _PARTIAL:
        full = run.count("█")
        rest = (_PARTIAL.index(run[-1]) + 1) / 8 if run[-1] in _PARTIAL else 0
        yield _rectangle(row, column, full + rest, _BAR, ink)
    elif run[0] in "▀▄":
        yield _rectangle(row, column, length, _UPPER if run[0] == "▀" else _LOWER, ink)
    elif run[0] in "━─":
        yield _rectangle(row, column, length, _RULE, ink)
    elif run[0] == "┃":
        yield _rectangle(row, column + 0.4, 0.2, _FULL, ink)
    elif run[0] == "■":
        for each in range(len(run)):
            yield _rectangle(row, column + each + 0.08, 0.84, _GAUGE, ink)
    else:
        weight = ' font-weight="bold"' if style.bold else ""
        x, y = _MARGIN + column * _CELL, _TOP + (row + 0.74) * _LINE
        yield (
            f'<text x="{x:g}" y="{y:g}" textLength="{length * _CELL:g}" '
            f'lengthAdjust="spacingAndGlyphs" fill="{ink}"{weight}>{escape(run)}</text>'
        )


def _rectangle(row: int, column: float, length: float, box: _Box, color: str) -> str:
    x, y = _MARGIN + column * _CELL, _TOP + (row + box.top) * _LINE
    height = (box.bottom - box.top) * _LINE
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{length * _CELL:g}" height="{height:g}" fill="{color}"/>'
    )


def _colors(style: Style) -> tuple[str, str | None]:
    """Text colour and, where there is one, background colour."""
    ink = _THEME.foreground_color
    if style.color is not None and not style.color.is_default:
        ink = style.color.get_truecolor(_THEME)
    if style.dim:
        ink = blend_rgb(ink, _THEME.background_color, 0.45)
    if style.bgcolor is None or style.bgcolor.is_default:
        return ink.hex, None
    return ink.hex, style.bgcolor.get_truecolor(_THEME).hex
