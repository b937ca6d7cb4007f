"""Finds the prompts that a name, a file or a literal text stands for.

A text that looks like a path to a missing file, or nearly like a packaged name, is refused:
measuring the ten letters of a misspelt file name would look like a result. The reading of the
single formats is in :mod:`.formats`.
"""

import difflib
import os
import re
import tokenize
from importlib import resources
from pathlib import Path

import numpy as np

from mlxroles.errors import PromptError
from mlxroles.prompts.formats import READERS, auto_id, parse_toml
from mlxroles.prompts.prompt import Prompt, is_prompt_id
from mlxroles.text import safe_text, slug

_AS_TEXT = "to use it as the text itself, put it into a .txt file"
_NEARLY = 0.8
"""From this similarity on, a single word counts as a misspelt packaged name."""


def packaged() -> list[str]:
    """The names of the prompts that come with the program."""
    folder = resources.files("mlxroles").joinpath("data", "prompts")
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_prompts(source: str) -> list[Prompt]:
    """The prompts that the source stands for, in this order of preference.

    1. a packaged name such as ``notepad``;
    2. a file: a conversation (.toml, .json), a set (.json, .toml, .csv), one text (.txt, taken
       to its last byte, also the line break there), token ids (.npy);
    3. the text itself, as one raw prompt.

    Raises:
        PromptError: the source is empty, a folder, a missing file or a malformed one.
    """
    if not source:
        raise PromptError("the prompt is empty; give a text, a file or a packaged name")
    if source in packaged():
        return _packaged_prompts(source)
    path = Path(source)
    if _exists(path):
        return _load_file(path)
    if _looks_like_path(source):
        raise PromptError(f"no such file: {safe_text(source, limit=200)}; {_AS_TEXT}")
    near = difflib.get_close_matches(source.strip().casefold(), packaged(), n=1, cutoff=_NEARLY)
    if near:
        raise PromptError(
            f"no packaged prompt '{safe_text(source)}'; did you mean '{near[0]}'? Or {_AS_TEXT}"
        )
    return [Prompt(id=auto_id(0), text=source)]


def load_ids(path: str | Path) -> list[Prompt]:
    """The prompts of a .npy file of integers: one for a vector, one per row for a matrix.

    Raises:
        PromptError: the file is missing, pickled, damaged, empty, or holds anything but token ids.
    """
    named = safe_text(str(path), limit=200)
    try:
        # A memory map never unpickles, and checks the header's shape against the size of the file.
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise PromptError(f"no such file: {named}") from None
    except OSError as error:
        raise PromptError(f"{named} cannot be read: {error.strerror or error}") from error
    except (ValueError, tokenize.TokenError) as error:
        raise PromptError(
            f"{named} is not an undamaged .npy file of numbers (pickled objects and archives are "
            "refused); write it with numpy.save, prompts of different lengths to a file each, "
            "as several --prompt FILE.npy"
        ) from error
    if array.dtype.kind not in "iu":
        raise PromptError(f"{named} holds {array.dtype}, not integers; token ids are needed")
    if array.ndim not in (1, 2) or array.size == 0:
        raise PromptError(
            f"{named} has shape {array.shape}; it must be (tokens,) or (prompts, tokens), not empty"
        )
    rows = np.atleast_2d(array).tolist()
    return [Prompt(id=auto_id(index), ids=tuple(row)) for index, row in enumerate(rows)]


def parse_ids(text: str) -> list[Prompt]:
    """The one prompt of a list such as ``1,410,471``; commas, spaces or both separate.

    Raises:
        PromptError: there is no id, or something that is not one.
    """
    pieces = [piece for piece in re.split(r"[\s,]+", text) if piece]
    if not pieces:
        raise PromptError("no token ids; write them as 1,410,471")
    for position, piece in enumerate(pieces):
        if not re.fullmatch(r"[-+]?[0-9]{1,12}", piece):
            shown = safe_text(piece, limit=40)
            raise PromptError(f"'{shown}' at position {position} is not a token id")
    return [Prompt(id=auto_id(0), ids=tuple(int(piece) for piece in pieces))]


def _packaged_prompts(name: str) -> list[Prompt]:
    entry = resources.files("mlxroles").joinpath("data", "prompts", f"{name}.toml")
    return parse_toml(entry.read_text(encoding="utf-8"), f"packaged prompt {name}", name)


def _load_file(path: Path) -> list[Prompt]:
    named = safe_text(str(path), limit=200)
    if path.is_dir():
        raise PromptError(f"{named} is a folder; name one prompt file in it, or {_AS_TEXT}")
    if not path.is_file():
        raise PromptError(f"{named} is not a regular file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return load_ids(path)
    reader = READERS.get(suffix)
    if reader is None:
        known = ", ".join([*READERS, ".npy"])
        raise PromptError(f"{named} is no prompt file: its name must end in one of {known}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{named} cannot be read: {error.strerror or error}") from error
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{named} is not UTF-8: byte {error.start} cannot be read") from error
    name = path.stem if is_prompt_id(path.stem) else slug(path.stem)
    prompts = reader(content, named, name)
    if not prompts:
        raise PromptError(f"{named} holds no prompt")
    _check_unique(prompts, named)
    return prompts


def _check_unique(prompts: list[Prompt], named: str) -> None:
    seen: dict[str, int] = {}
    for position, prompt in enumerate(prompts):
        if prompt.id in seen:
            raise PromptError(
                f"{named}: prompts {seen[prompt.id]} and {position} have the same id "
                f"'{safe_text(prompt.id)}'; ids must differ"
            )
        seen[prompt.id] = position


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False  # a text too long for a file name, or with a NUL: it names no file


def _looks_like_path(source: str) -> bool:
    if "\n" in source or "<" in source:
        return False  # several lines, or a tag such as </s>
    if source.lower().endswith((*READERS, ".npy")):
        return True
    return any(mark in source for mark in (os.sep, os.altsep) if mark) and not re.search(
        r"\s", source
    )
