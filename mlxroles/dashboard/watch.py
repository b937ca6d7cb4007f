"""Chooses how a run is shown and hands out the function that takes its events.

The console must be the one for notes and progress, on stderr: stdout belongs to the result.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mlxroles.dashboard.facts import MemorySource
from mlxroles.dashboard.plain import PlainLines
from mlxroles.dashboard.progress import Progress
from mlxroles.dashboard.screen import Screen
from mlxroles.dashboard.state import RunState, empty_progress
from mlxroles.events import CellFailed, Died, Emit, Event, Note, Slept
from mlxroles.text import safe_text

Mode = Literal["auto", "live", "plain", "quiet"]

_REFRESH_HZ = 2
_FAILURES_PRINTED = 20


@contextmanager
def watch(
    console: Console,
    *,
    mode: Mode,
    n_layers: int,
    layers: Sequence[int],
    directions: Sequence[str],
    headline: str,
    value: str = "tool_call_prob",
    memory: MemorySource | None = None,
) -> Generator[Emit]:
    """Shows a run on the console while the block runs; yields what takes its events.

    Args:
        console: where to show it, on stderr.
        mode: ``live`` view, ``plain`` lines, ``quiet`` (failures only), or ``auto``: live where
            the console is an interactive terminal, plain elsewhere.
        n_layers: layers of the model.
        layers: tested layers.
        directions: tested directions.
        headline: the string whose probability the bars show.
        value: key of that probability in the values of a cell.
        memory: bytes active, at peak and available, for the gauge.
    """
    progress = Progress(
        sorted(layers), list(directions), n_layers=n_layers, headline=headline, value=value
    )
    if resolve(mode, console) == "live":
        with _live(console, progress, memory) as emit:
            yield emit
    else:
        yield PlainLines(progress, writer(console), quiet=mode == "quiet")


def resolve(mode: Mode, console: Console, env: Mapping[str, str] = os.environ) -> Mode:
    """What ``auto`` means here; any other mode as it is."""
    if mode != "auto":
        return mode
    is_plain = (
        not console.is_terminal
        or not console.is_interactive
        or env.get("TERM", "").lower() in {"", "dumb", "unknown"}
        or bool(env.get("NO_COLOR"))
        or bool(env.get("CI"))
        or not console.encoding.lower().startswith("utf")
    )
    return "plain" if is_plain else "live"


def writer(console: Console) -> Callable[[str], None]:
    """Writes whole lines past rich: no wrapping, no styles, no escape codes."""

    def write(line: str) -> None:
        console.file.write(f"{line}\n")
        console.file.flush()

    return write


@contextmanager
def any_run(console: Console, *, mode: Mode, memory: MemorySource | None = None) -> Generator[Emit]:
    """As :func:`watch`, for a run of any kind: what it has is said by its first event."""
    if resolve(mode, console) == "live":
        with _live(console, RunState(), memory) as emit:
            yield emit
    else:
        yield PlainLines(empty_progress(), writer(console), quiet=mode == "quiet")


@contextmanager
def _live(
    console: Console,
    shown: Progress | RunState,
    memory: MemorySource | None,
) -> Generator[Emit]:
    screen = Screen(shown, memory)
    failures = 0
    with Live(
        screen,
        console=console,
        refresh_per_second=_REFRESH_HZ,
        transient=False,
        redirect_stdout=False,
    ) as live:

        def emit(event: Event) -> None:
            nonlocal failures
            screen.fold(event)
            match event:
                case Note(text):
                    live.console.print(Text(safe_text(text), style="yellow"))
                case Died() | Slept():
                    last = screen.state.log[-1].text if screen.state.log else ""
                    live.console.print(Text(safe_text(last), style="yellow"))
                case CellFailed(cell, error) if failures < _FAILURES_PRINTED:
                    failures += 1
                    live.console.print(
                        Text(f"failed {safe_text(cell.id)}: {safe_text(error)}", style="red")
                    )

        yield emit
