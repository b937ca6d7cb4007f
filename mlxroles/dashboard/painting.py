"""Paints a screen that changes: on the alternate screen, and what it showed last below the prompt.

The alternate screen is painted from its corner, so that a change of size cannot garble it and
nothing flickers; what stood in the terminal before comes back when it ends. Whoever paints does so
from its own thread: there is nothing to lock.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mlxroles.dashboard.colors import depth
from mlxroles.dashboard.layout import Look

FINAL_ROWS = 40
"""Rows of the state that stays in the scrollback."""

LEAST_WIDTH, MOST_WIDTH = 20, 250
_INTERVAL = 0.4

Draw = Callable[[Look], list[Text]]
Paint = Callable[[Draw], None]
"""Takes what draws the present state; paints it, unless it has just done so."""


@contextmanager
def painted(console: Console, clock: Callable[[], float] = time.monotonic) -> Generator[Paint]:
    """Paints while the block runs; at its end the last state is printed and stays."""
    latest: list[Draw] = []
    last = -_INTERVAL
    try:
        with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live:

            def paint(draw: Draw) -> None:
                nonlocal last
                latest[:] = [draw]
                if clock() - last >= _INTERVAL:
                    last = clock()
                    look = Look(_width(console), max(console.size.height, 1), depth(console))
                    live.update(Group(*draw(look)), refresh=True)

            yield paint
    finally:
        for draw in latest:
            look = Look(_width(console), FINAL_ROWS, depth(console))
            console.print(Group(*draw(look)))


def _width(console: Console) -> int:
    return min(max(console.size.width, LEAST_WIDTH), MOST_WIDTH)
