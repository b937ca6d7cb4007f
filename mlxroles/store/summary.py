"""The document of a run, ``summary.json``: derived, so that it may be missing or damaged."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxroles.store.files import read_object
from mlxroles.store.folder import RunFolder

SUMMARY = "summary.json"
"""The document of a finished or interrupted run, in its folder."""


def read_summary(path: Path) -> dict[str, Any]:
    """The document in a folder; empty where it is missing or damaged."""
    return read_object(path / SUMMARY)


def notes_of(folder: RunFolder, notes: Iterable[str], key: str = "notes") -> list[str]:
    """These notes after those of earlier processes, in which models were loaded that now are not.

    Args:
        folder: The run; its summary, where there is one, holds the earlier notes.
        notes: What this process has to say.
        key: Where the summary keeps them.
    """
    found = read_summary(folder.path).get(key)
    earlier = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
    return list(dict.fromkeys([*earlier, *folder.notes, *notes]))


def failed_cells(folder: RunFolder) -> list[dict[str, Any]]:
    """Id and error of every cell that is recorded as failed."""
    return [
        {"cell": record.id, "error": record.error}
        for record in folder.records().values()
        if record.status != "ok"
    ]
