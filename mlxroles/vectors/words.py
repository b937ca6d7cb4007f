"""The packaged words: concepts to inject, and the everyday words that they are held against."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data" / "words"


@cache
def concepts() -> tuple[str, ...]:
    """Words whose vectors are worth injecting."""
    return _lines("concepts")


@cache
def baseline() -> tuple[str, ...]:
    """Everyday words, none of them a concept."""
    return _lines("baseline")


def _lines(name: str) -> tuple[str, ...]:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
