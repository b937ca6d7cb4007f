"""The tokenizer of a model folder: transformers' own, never running code from the folder."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxroles.errors import ModelError
from mlxroles.models.integrity import reason

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A folder with none of these has no tokenizer."""

_shared: dict[Path, Any] | None = None


@contextmanager
def shared_tokenizers() -> Generator[None]:
    """Within it the tokenizer of a folder is read once, for planning many studies of few models."""
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def load_tokenizer(folder: Path) -> Any:
    """Tokenizer of a local folder, or None where it has none.

    Nothing is downloaded and no remote code runs.

    Raises:
        ModelError: the files are there but make no tokenizer.
    """
    if not any((folder / name).is_file() for name in FILES):
        return None
    if _shared is None:
        return _read(folder)
    if folder not in _shared:
        _shared[folder] = _read(folder)
    return _shared[folder]


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # its hints are about training and models of its own
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{folder}: the tokenizer cannot be read ({reason(error)}); copy or download its files "
            "again"
        ) from error
