"""The manifest of a run: what identifies it, and what to do when a later command disagrees.

It is written before the first cell. A later process must ask for the same identity; where it does
not, the first field that differs is named with both values.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mlxroles.errors import IntegrityError, StoreError
from mlxroles.plan import MAY_DIFFER, PLAN_VERSION
from mlxroles.store.files import plain, plain_errors, shown, write_json
from mlxroles.text import safe_text

MANIFEST = "manifest.json"
SCHEMA = "mlxroles/run/1"

_OWN = ("schema", "run_id", "experiment", "plan_version", "created", "identity", "drift")
_HARMLESS = ("run.lock", ".DS_Store", "shards", "claims", "events.jsonl")
_SHOWN_FIELDS = 3


def refuse_foreign(folder: Path) -> None:
    """Checks that a folder is a run folder, empty, or not there.

    Raises:
        StoreError: it holds something else, which is then left alone.
    """
    with plain_errors(folder, verb="used"):
        if not folder.exists() or (folder / MANIFEST).exists():
            return
        for entry in sorted(folder.iterdir()):
            if entry.name not in _HARMLESS and entry.suffix != ".tmp":
                raise StoreError(
                    f"{shown(folder)} is not empty and not a run folder (it holds"
                    f" {safe_text(entry.name)}, but no {MANIFEST}): choose another folder with"
                    " --out"
                )


def read_manifest(path: Path) -> dict[str, object]:
    """The manifest of a run.

    Raises:
        StoreError: there is none, or its schema is unknown.
        IntegrityError: it is damaged.
    """
    with plain_errors(path, verb="read"):
        if not path.exists():
            raise StoreError(f"{shown(path.parent)} is not a run folder: it has no {MANIFEST}")
        data = path.read_bytes()
    try:
        doc = json.loads(data)
    except (ValueError, RecursionError):
        doc = None
    if not isinstance(doc, dict) or not isinstance(doc.get("schema"), str):
        raise IntegrityError(
            f"{shown(path)} is damaged: put it back from a copy, or use --fresh, which keeps the"
            " old folder beside the new one"
        )
    if doc["schema"] != SCHEMA:
        raise StoreError(
            f"{shown(path)} has schema {safe_text(doc['schema'])}, this mlxroles reads {SCHEMA}:"
            " use the version that wrote the run"
        )
    return doc


def agree(
    path: Path,
    name: Mapping[str, str],
    *,
    identity: Mapping[str, object],
    manifest: Mapping[str, object],
    allow_drift: Sequence[str],
) -> dict[str, object]:
    """The manifest at ``path``: a new one, or the earlier one if its identity is the same.

    Args:
        path: where it is or will be.
        name: run id and name of the experiment.
        identity: what the command asks for.
        manifest: what else a new manifest holds.
        allow_drift: fields of the identity, or groups of fields, that may differ. They are noted
            in the manifest under ``drift``.

    Raises:
        StoreError: the identities differ, or the manifest cannot be read or written.
    """
    asked = plain({"plan_version": PLAN_VERSION, "identity": identity})
    assert isinstance(asked, dict)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if not path.exists():
        if taken := [key for key in manifest if key in _OWN]:
            raise ValueError(f"the manifest has its own field {taken[0]!r}")
        doc = {"schema": SCHEMA, **name, "created": now, **asked, "drift": [], **manifest}
        write_json(path, doc)
        return read_manifest(path)
    doc = read_manifest(path)
    drift = _drift(path.parent, doc, asked, allow_drift)
    found = doc.get("drift")
    earlier = found if isinstance(found, list) else []
    latest = {d["field"]: d["now"] for d in earlier}
    first = {d["field"]: d["was"] for d in earlier}
    back = [
        {"field": field, "was": value, "now": first[field]}
        for field, value in latest.items()
        if value != first[field] and field not in {d["field"] for d in drift}
    ]
    seen = [d for d in drift if latest.get(d["field"], d["was"]) != d["now"]]
    new = [d | {"time": now} for d in (*seen, *back)]
    if new:
        doc["drift"] = [*earlier, *new]
        write_json(path, doc)
    return doc


def drift_notes(doc: Mapping[str, object], identity: Mapping[str, object]) -> list[str]:
    """What to say of fields that may differ and do."""
    asked = plain({"identity": identity})
    assert isinstance(asked, dict)
    return [
        f"this run was begun with {field.rpartition('.')[2]} {_value(was)} and goes on with"
        f" {_value(wanted)}: cells of the two may differ in their last digits"
        for field, was, wanted in _differences({"identity": doc.get("identity")}, asked)
        if field.removeprefix("identity.") in MAY_DIFFER
    ]


def agrees(folder: Path, doc: Mapping[str, object], identity: Mapping[str, object]) -> None:
    """Checks that a run is the one that a second process wants to take part in.

    Raises:
        StoreError: it is another one.
    """
    asked = plain({"plan_version": PLAN_VERSION, "identity": identity})
    assert isinstance(asked, dict)
    _drift(folder, doc, asked, ())


def _drift(
    folder: Path, doc: Mapping[str, object], asked: Mapping[str, object], allowed: Sequence[str]
) -> list[dict[str, object]]:
    """The fields that differ and may.

    Raises:
        StoreError: another one differs.
    """
    found = {key: doc.get(key) for key in asked}
    refused, drift = [], []
    for field, was, wanted in _differences(found, dict(asked)):
        short = field.removeprefix("identity.")
        if any(f"{short}.".startswith(f"{name}.") for name in (*allowed, *MAY_DIFFER)):
            drift.append({"field": short, "was": was, "now": wanted})
        else:
            refused.append(f"{short} is {_value(was)} there and {_value(wanted)} here")
    if refused:
        more = len(refused) - _SHOWN_FIELDS
        listed = "; ".join(refused[:_SHOWN_FIELDS]) + (f"; and {more} more" if more > 0 else "")
        raise StoreError(
            f"{shown(folder)} holds another run: {listed}. Choose another folder with --out,"
            " keep the old one aside with --fresh, or accept a field with --allow-drift"
        )
    return drift


def _differences(
    there: object, here: object, field: str = ""
) -> Iterator[tuple[str, object, object]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            inner = f"{field}.{key}" if field else key
            yield from _differences(there.get(key), here.get(key), inner)
    elif there != here:
        yield field, there, here


def _value(value: object) -> str:
    return safe_text(json.dumps(value, ensure_ascii=True), limit=60)
