"""The catalogue of pairs, and the folder on this machine that a model's name stands for.

A pair is a base model and the instruct model made from it. The packaged catalogue
(``data/pairs.toml``) is merged with the user's own file, entry by entry and key by key. A model
is named by ``pair/side`` (``llama8b/base``), a folder, a Hub id (``org/name``) or
``package:...`` for what is embedded here. Nothing in this module asks the network: a model that
is not on this machine is an error that says which command fetches it.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxroles.errors import ModelError, PairError
from mlxroles.snapshots import check_folder, hub_id, missing_files, offline, snapshot
from mlxroles.text import did_you_mean, safe_text, slug

SIDES = ("base", "instruct")
"""The two models of a pair."""

KINDS = ("pair", "family")
"""What an entry is meant for: patching studies or role studies."""

TEMPLATES = ("same", "instruct")
"""Whose chat template renders conversations: both models' if they agree, or the instruct one's."""

_DATA = Path(__file__).parent / "data"
_PACKAGE = "package:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Pair:
    """Two models of one architecture, one tokenizer and one layer count."""

    name: str
    """The name on the command line."""
    base: str
    """The base model: a Hub id, a folder, or ``package:...``."""
    instruct: str
    """The instruct model, in the same forms."""
    display: str = ""
    """The name in tables and figures; the name itself when none is given."""
    kind: str = "pair"
    """One of :data:`KINDS`."""
    n_layers: int | None = None
    """Blocks of each model, where known without opening it."""
    d_model: int | None = None
    """Width of the residual stream, where known without opening the model."""
    bytes: int | None = None
    """Weights of both models together, approximate."""
    d1_group: str | None = None
    """Group of the original patching study, A or B."""
    template: str = "same"
    """Whose chat template renders conversations: ``same`` asks that both models' agree,
    ``instruct`` takes the instruct model's for both."""
    notes: str = ""
    """What a user should know, one line."""

    def ref(self, side: str) -> str:
        """The reference of one of the :data:`SIDES`."""
        if side not in SIDES:
            raise ValueError(f"side {side!r} is not one of {SIDES}")
        return self.base if side == "base" else self.instruct


_KEYS: Mapping[str, type] = {
    "base": str, "instruct": str, "display": str, "kind": str, "n_layers": int,
    "d_model": int, "bytes": int, "d1_group": str, "template": str, "notes": str,
}  # fmt: skip


def user_catalogue() -> Path | None:
    """The user's own catalogue file, when there is one.

    ``MLXROLES_PAIRS`` names it, else it is ``mlxroles/pairs.toml`` below ``XDG_CONFIG_HOME``
    (``~/.config``).

    Raises:
        PairError: ``MLXROLES_PAIRS`` names a file that does not exist.
    """
    named = os.environ.get("MLXROLES_PAIRS")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise PairError(f"MLXROLES_PAIRS names {safe_text(named)}, which is not a file")
        return path
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(config).expanduser() / "mlxroles" / "pairs.toml"
    return path if path.is_file() else None


def catalogue() -> dict[str, Pair]:
    """All pairs by name: the packaged ones in their order, then the user's own.

    Raises:
        PairError: the user's file cannot be read, or an entry in it is wrong.
    """
    pairs = _read(_DATA / "pairs.toml", {})
    own = user_catalogue()
    return pairs if own is None else _read(own, pairs)


def pair(name: str) -> Pair:
    """The pair of that name.

    Raises:
        PairError: no entry has this name.
    """
    pairs = catalogue()
    if name not in pairs:
        raise PairError(
            f"no pair {safe_text(name, limit=80)!r} in the catalogue{did_you_mean(name, pairs)}"
            " (`mlxroles models list` shows all; --base DIR --instruct DIR takes any two folders)"
        )
    return pairs[name]


def pair_of(base: str, instruct: str) -> Pair:
    """The pair of two models given directly, as ``--base`` and ``--instruct`` do."""
    names = [Path(ref.rstrip("/")).name or "model" for ref in (base, instruct)]
    shown = " / ".join(safe_text(name, limit=60) for name in names)
    return Pair(name=slug("-".join(names)), base=base, instruct=instruct, display=shown)


def find(ref: str) -> Path | None:
    """The complete folder of a model on this machine; None when there is none."""
    try:
        return resolve(ref)
    except ModelError:
        return None


def resolve(ref: str) -> Path:
    """The complete folder that the reference stands for; the network is never asked.

    Raises:
        ModelError: nothing usable is there; the message says what is wrong or which command
            fetches the model.
        PairError: the reference names a pair where one model is needed.
    """
    if ref.startswith(_PACKAGE):
        return _packaged(ref)
    path = Path(ref).expanduser()
    if not ref or _exists(path):
        return check_folder(path) if ref else _not_found(ref)
    pairs = catalogue()
    name, _, side = ref.partition("/")
    if name in pairs and side in SIDES:
        return resolve(pairs[name].ref(side))
    if name in pairs:
        hint = did_you_mean(side, SIDES) if side else ""
        raise PairError(f"{name} is a pair; say which model: {name}/base or {name}/instruct{hint}")
    model = hub_id(ref)
    if model is None:
        return _not_found(ref)
    folder = snapshot(model)
    if folder is None:
        raise ModelError(f"{ref}: not on this machine; {_how_to_get(ref, pairs)}")
    missing = missing_files(folder)
    if missing or _interrupted(folder):
        what = f"{missing[0]} is missing" if missing else "an interrupted download"
        raise ModelError(f"{ref}: incomplete in the Hub cache ({what}); {_how_to_get(ref, pairs)}")
    return folder


def _packaged(ref: str) -> Path:
    folder = (_DATA / ref.removeprefix(_PACKAGE)).resolve()
    if not folder.is_relative_to(_DATA.resolve()) or missing_files(folder):
        raise ModelError(
            f"{safe_text(ref, limit=80)}: not complete in this installation; reinstall mlxroles"
        )
    return folder


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _not_found(ref: str) -> Path:
    choices = [f"{name}/{side}" for name in catalogue() for side in SIDES]
    raise ModelError(
        f"{safe_text(ref, limit=200)!r}: no such folder, and not a Hub id (org/name)"
        f"{did_you_mean(ref, choices)}"
    )


def _interrupted(folder: Path) -> bool:
    """Whether a download stopped half way and no index can tell which file it was."""
    if (folder / "model.safetensors.index.json").is_file():
        return False
    return any((folder.parent.parent / "blobs").glob("*.incomplete"))


def _how_to_get(ref: str, pairs: Mapping[str, Pair]) -> str:
    owner = next((p.name for p in pairs.values() if ref in (p.base, p.instruct)), ref)
    unset = " (HF_HUB_OFFLINE is set: unset it first)" if offline() else ""
    return f"run `mlxroles models pull {owner}`{unset}"


def _read(path: Path, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs with the file's entries merged over them."""
    where = safe_text(str(path), limit=200)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PairError(f"{where}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PairError(f"{where}: not valid TOML: {error}") from error
    merged = dict(pairs)
    for name, entry in entries.items():
        label = f"{where}: [{safe_text(name, limit=80)}]"
        if not _NAME.fullmatch(name):
            raise PairError(f"{label} is not a name; use letters, digits, '.', '_' and '-'")
        if not isinstance(entry, dict):
            raise PairError(f"{label} is not a table; every entry starts with [name]")
        merged[name] = _entry(name, entry, label, merged.get(name))
    folder = path.parent
    return {name: _anchored(p, folder) if name in entries else p for name, p in merged.items()}


def _entry(name: str, entry: Mapping[str, Any], label: str, known: Pair | None) -> Pair:
    for key, value in entry.items():
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS) or f"; known keys: {', '.join(_KEYS)}"
            raise PairError(f"{label} has the unknown key {safe_text(key, limit=80)!r}{hint}")
        kind = _KEYS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "a whole number" if kind is int else "a text"
            raise PairError(f"{label} {key} = {value!r}: expected {expected}")
        if kind is int and value < 1:
            raise PairError(f"{label} {key} = {value}: expected 1 or more")
        if key in SIDES and not value:
            raise PairError(f"{label} {key} is empty; expected a Hub id or a folder")
    if entry.get("kind", "pair") not in KINDS:
        raise PairError(f"{label} kind = {entry['kind']!r}: expected one of {', '.join(KINDS)}")
    if entry.get("template", "same") not in TEMPLATES:
        expected = ", ".join(TEMPLATES)
        raise PairError(f"{label} template = {entry['template']!r}: expected one of {expected}")
    if known is not None:
        return replace(known, **entry)
    lacking = [side for side in SIDES if side not in entry]
    if lacking:
        raise PairError(f"{label} lacks {' and '.join(lacking)}")
    made = Pair(name=name, **entry)
    return made if made.display else replace(made, display=name)


def _anchored(entry: Pair, folder: Path) -> Pair:
    """The pair with ``./`` and ``../`` references taken from the catalogue file's folder."""
    changed = {
        side: str((folder / entry.ref(side)).resolve())
        for side in SIDES
        if entry.ref(side).startswith(("./", "../"))
    }
    return replace(entry, **changed)
