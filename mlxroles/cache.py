"""Small facts worth keeping between runs: file hashes, weight scans. Losing them costs time only.

One JSON file per subject in the user's cache folder. A cache that cannot be read or written is
as good as an empty one, since everything in it can be measured again.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from mlxroles.errors import StoreError
from mlxroles.store.files import write_json


def folder() -> Path:
    """The user's cache folder: ``MLXROLES_CACHE``, else the platform's place for caches."""
    if named := os.environ.get("MLXROLES_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlxroles"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxroles"


def read(subject: str) -> dict[str, Any]:
    """Everything kept about a subject; empty where nothing can be read."""
    try:
        kept = json.loads((folder() / f"{subject}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return kept if isinstance(kept, dict) else {}


def remember(subject: str, key: str, fact: object) -> None:
    """Keeps a JSON fact under a key; the last writer wins."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        write_json(folder() / f"{subject}.json", read(subject) | {key: fact})
    except (OSError, StoreError, RuntimeError):
        return
