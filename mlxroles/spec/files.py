"""Experiment files on disk: read once, as TOML; what is wrong with one is one line."""

import re
import tomllib
from pathlib import Path
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.text import did_you_mean, safe_text

MOST_BYTES = 1 << 20
"""Size of an experiment file."""

_AT = re.compile(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)


def shown_path(path: Path) -> str:
    """The path as messages show it."""
    return safe_text(str(path), limit=200)


def load(path: Path, what: str = "experiment file") -> dict[str, Any]:
    """The content of an experiment file, or of ``what`` messages call it.

    Raises:
        SpecError: it cannot be read, or is not TOML; with the line.
    """
    shown = shown_path(path)
    try:
        if path.is_dir():
            raise SpecError(f"{shown} is a folder; name an {what} in it")
        if not path.exists():
            near = did_you_mean(path.name, _beside(path))
            raise SpecError(f"no {what} {shown}{near}")
        if not path.is_file():
            raise SpecError(f"{shown} is not a regular file; name an {what} (.toml)")
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"{shown} is larger than 1 MB: that is no {what}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{shown} is not UTF-8: byte {error.start} cannot be read") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"{shown} cannot be read: {why}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(_syntax(shown, str(error), text)) from None
    except RecursionError:
        raise SpecError(f"{shown} is nested too deeply to be an {what}") from None


def _beside(path: Path) -> list[str]:
    """Files in the folder of one that is not there, as far as more than the ending is alike."""
    try:
        there = [
            other for other in path.parent.glob("*.toml") if did_you_mean(path.stem, [other.stem])
        ]
    except OSError:
        return []
    return [other.name for other in there]


def _syntax(shown: str, message: str, text: str) -> str:
    """One line on a syntax error, with the line's number first."""
    match = _AT.match(message)
    if match is None:
        return f"{shown} is not TOML: {safe_text(message)}"
    number = int(match[2]) if match[2] else max(len(text.splitlines()), 1)
    hint = '; text stands in quotes: key = "value"' if match[1] == "Invalid value" else ""
    column = f" (column {match[3]})" if match[3] else ""
    return f"{shown}, line {number}: {safe_text(match[1])}{column}{hint}"
