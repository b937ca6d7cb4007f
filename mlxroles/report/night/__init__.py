"""The morning report of a sweep: what ran, what was found, what failed, what to look at first.

Made from what the folder of the sweep and those of its runs hold, whatever state they are in, so
that it can be made again at any time, also while the sweep goes on or after it was killed.
"""

from pathlib import Path

from mlxroles.report.night.document import PAGE, document
from mlxroles.report.night.markdown import markdown
from mlxroles.report.night.page import html
from mlxroles.report.night.reading import read_night
from mlxroles.store.files import plain, write_atomic, write_json
from mlxroles.store.summary import SUMMARY

__all__ = ["document", "html", "markdown", "read_night", "write"]

MARKDOWN = "summary.md"


def write(path: Path) -> Path:
    """Writes ``report.html``, ``summary.md`` and ``summary.json`` of a sweep; returns the page.

    Whatever is missing or damaged below ``path`` is said in the page.

    Args:
        path: The folder of the sweep.

    Raises:
        StoreError: the report cannot be written.
    """
    doc = plain(document(read_night(path)))
    assert isinstance(doc, dict)
    write_json(path / SUMMARY, doc)
    write_atomic(path / MARKDOWN, markdown(doc).encode("utf-8", "backslashreplace"))
    write_atomic(path / PAGE, html(doc).encode("utf-8", "backslashreplace"))
    return path / PAGE
