"""Tells whoever started a run that it is over. Whatever goes wrong here is a note, no error."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlxroles.text import safe_text

SUMMARY = "MLXROLES_SUMMARY"
"""Variable that holds the summary as JSON for the command of ``--notify``."""
SECONDS = 30
"""A command that takes longer is ended."""

_LARGEST_VARIABLE = 100_000
_LONGEST = 240
_SCRIPT = (
    "on run argv",
    "display notification (item 2 of argv) with title (item 1 of argv)",
    "end run",
)


def notify(
    title: str,
    text: str,
    command: str | None = None,
    *,
    summary: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
) -> list[str]:
    """Rings the terminal's bell, shows a notification on a Mac, runs the user's command.

    Args:
        title: Of the notification.
        text: One sentence.
        command: Split as a shell would, run without one. It gets the summary as JSON on its
            standard input and, up to 100 kB, in the variable ``MLXROLES_SUMMARY``.
        summary: What the command gets; title and text are added.
        seconds: What it may take.

    Returns:
        What did not work, one line each.
    """
    notes = []
    with suppress(OSError, ValueError):  # nobody is there to hear it
        if sys.stderr.isatty():
            sys.stderr.write("\a")
            sys.stderr.flush()
    if sys.platform == "darwin":
        failure = _run(centre(title, text), None, dict(os.environ), seconds)
        notes += [f"the notification was not shown: {failure}"] if failure else []
    if command:
        document = _plain({**(summary or {}), "title": title, "text": text})
        failure = _command(command, json.dumps(document, allow_nan=False), seconds)
        notes += [f"--notify '{safe_text(command, limit=80)}': {failure}"] if failure else []
    return notes


def centre(title: str, text: str) -> list[str]:
    """The command that shows a notification; what it shows are arguments, not part of a script."""
    lines = [word for line in _SCRIPT for word in ("-e", line)]
    shown = safe_text(title, limit=_LONGEST)
    shown = f" {shown}" if shown.startswith("-") else shown  # no option of osascript
    return ["/usr/bin/osascript", *lines, shown, safe_text(text, limit=_LONGEST)]


def _command(command: str, document: str, seconds: float) -> str | None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"cannot be read ({error}); check its quotes"
    if not words:
        return "is empty; name a program"
    environment = dict(os.environ)
    environment.pop(SUMMARY, None)
    if len(document) <= _LARGEST_VARIABLE:
        environment[SUMMARY] = document
    return _run(words, document, environment, seconds)


def _run(
    words: list[str], document: str | None, environment: Mapping[str, str], seconds: float
) -> str | None:
    """Runs a program; None, or what went wrong."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"cannot be started ({safe_text(reason)}); is the program installed?"
    try:
        process.communicate((document or "").encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"took more than {seconds:g} s and was ended"
    if process.returncode < 0:
        return f"was ended by signal {-process.returncode}"
    return f"ended with status {process.returncode}" if process.returncode else None


def _plain(value: Any) -> Any:
    """The same in what JSON has; anything that it has not as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
