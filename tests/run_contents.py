"""What a run folder holds, in forms that two folders can be compared by to the last bit."""

import json
import re
from pathlib import Path

import h5py

from mlxroles.store import RunFolder
from mlxroles.store.journal import encode_line

DIFFERS = ("time_s", "timestamp", "run", "figures", "started", "created", "estimate")
"""Keys of documents that depend on when and where a run was made."""


def cells(path: Path) -> dict[str, bytes]:
    """Every stored cell with its coordinates, numbers and the hash of its arrays.

    Reading the arrays again is part of it: a cell counts where they are what was written.
    """
    folder = RunFolder.read(path)
    found = {}
    for record in folder.records().values():
        assert record.status == "ok", record
        stored = record.arrays
        whole = {"coords": record.coords, "values": record.values}
        found[record.id] = encode_line(whole | {"sha256": stored and stored.sha256})
    assert folder.done() == found.keys()
    return found


def packed(path: Path) -> dict[str, object]:
    """Variables and attributes of an HDF5 file; the count of damaged lines is no result."""
    found: dict[str, object] = {}
    with h5py.File(path, "r", locking=False) as file:
        found["attributes"] = {k: str(v) for k, v in file.attrs.items() if k != "torn_lines"}
        for name, data in file.items():
            raw = data.asstr()[()].tolist() if data.dtype.kind == "O" else data[()].tobytes()
            found[name] = (str(data.dtype), data.shape, raw)
    return found


def document(path: Path) -> object:
    """A JSON document without what depends on when and where the run was made."""
    return _plain(json.loads(path.read_text().replace(str(path.parent), "RUN")))


def _plain(doc: object) -> object:
    if isinstance(doc, dict):
        return {key: _plain(value) for key, value in doc.items() if key not in DIFFERS}
    return [_plain(value) for value in doc] if isinstance(doc, list) else doc


def assert_sound(path: Path) -> None:
    """Whatever happened to its writer: what lies in the folder under its final name is whole."""
    for file in path.rglob("*.json"):
        json.loads(file.read_bytes())
    for file in path.rglob("*.h5"):
        packed(file)
    for file in path.rglob("*.html"):
        assert file.read_text().rstrip().endswith("</html>")
    if (path / "manifest.json").exists():
        cells(path)


def assert_same(path: Path, other: Path) -> None:
    """Two finished runs hold the same results, and nothing half written."""
    assert_sound(path)
    assert cells(path) == cells(other)
    for name in sorted(p.name for p in other.glob("*.h5")):
        assert packed(path / name) == packed(other / name)
    assert document(path / "summary.json") == document(other / "summary.json")
    assert not list(path.rglob("*.tmp"))


def one_line(err: str) -> str:
    """The one line of a refusal, without a traceback and without control characters."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lines[0])
    return lines[0]
