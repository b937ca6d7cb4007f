"""Are the weights what they should be? Hashes of the files, and one scan for impossible numbers.

A flipped bit or a NaN loads without a word and shows only as wrong results. Both answers are kept
in the user's cache under the files' hash, so that a model pays once.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxroles import cache
from mlxroles.backend import mx, number
from mlxroles.errors import ModelError
from mlxroles.snapshots import weight_files

LARGEST_WEIGHT = 1e4
"""Weights above this are taken for damage: trained language models stay far below it."""

BUFFERS = (".masked_bias",)
"""Ends of names of stored constants that are no weights; older files hold -1e9 there."""

TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a model folder may hold besides weights and code that changes its numbers or tokens."""

SHA256 = re.compile(r"[0-9a-f]{64}")


def file_hash(path: Path) -> str:
    """SHA-256 of a file; known without reading for a blob of the Hub's cache, else remembered."""
    real = path.resolve()
    if real.parent.name == "blobs" and SHA256.fullmatch(real.name):
        return real.name
    key = f"{real}:{_version(real)}"
    known = cache.read("hashes").get(key)
    if isinstance(known, str) and SHA256.fullmatch(known):
        return known
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache.remember("hashes", key, digest)
    return digest


def _version(path: Path) -> str:
    """Differs when a file was written to, without reading it."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of everything in a model folder that changes its numbers, by file name."""
    named = (folder / n for n in TEXT_FILES if (folder / n).is_file())
    files = [*weight_files(folder), *named, *folder.glob("*.py")]
    return {f.name: file_hash(f) for f in sorted(files)}


def combined(parts: Iterable[str]) -> str:
    """One hash of several, in the order given."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def scan(folder: Path) -> None:
    """Refuses weights that hold NaN, infinities or absurd magnitudes.

    Raises:
        ModelError: naming the file, the tensor and what was found in it.
    """
    for file in weight_files(folder):
        # a hash that is only a blob's name does not change when its content does
        key = f"{file_hash(file)}:{_version(file.resolve())}:{LARGEST_WEIGHT:g}"
        found = cache.read("scans").get(key)
        if not isinstance(found, list):
            found = [f"{name}: {what}" for name, what in _damage(file)]
            cache.remember("scans", key, found)
        if found:
            more = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
            raise ModelError(
                f"{file}: {found[0]}{more}; the file is damaged or the training diverged: "
                "download it again"
            )


def load_tensors(file: Path) -> dict[str, mx.array]:
    """Tensors of a safetensors file, not yet read from disk.

    Raises:
        ModelError: the file is not a whole safetensors file.
    """
    try:
        tensors: Any = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise _unreadable(file, error) from error
    return tensors


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{file}: not a readable safetensors file ({reason(error)}); download it again"
    )


def reason(error: Exception) -> str:
    """An error's text as one line; of a list in it, as mlx writes them, only the first item."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    more = lines[1].strip(" ,.") if len(lines) > 1 and lines[0].rstrip().endswith(":") else ""
    return f"{lines[0].rstrip()} {more}".strip()


def _damage(file: Path) -> list[tuple[str, str]]:
    """Tensors of a file that hold impossible numbers, and what was found in each."""
    damaged = []
    for name, tensor in load_tensors(file).items():
        if not mx.issubdtype(tensor.dtype, mx.floating) or tensor.size == 0:
            continue
        largest, bad = mx.abs(tensor).max(), (~mx.isfinite(tensor)).sum()
        try:
            mx.eval(largest, bad)
        except RuntimeError as error:
            raise _unreadable(file, error) from error
        if count := int(number(bad)):
            damaged.append((name, f"{count} of {tensor.size} values are NaN or infinite"))
        elif number(largest) > LARGEST_WEIGHT and not name.endswith(BUFFERS):
            damaged.append((name, f"a weight of magnitude {number(largest):.3g}"))
    return damaged
