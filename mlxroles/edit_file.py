"""Files of edits: TOML in, edits of one prompt of one model out, each also in words.

A table names a site, where it is edited and what with:

    [[edit]]
    site = "resid_post"           # of edits.EDITABLE
    layers = "3-5"                # or 3, [3, 4], "all"; or heads = "L5H8,L6H1", kv heads at k and v
    vector = "steer.h5#ocean"     # at each layer that layer's; or value = 0.0
    vector_layer = 4              # the vector of this layer at all of them
    op = "add"                    # replace, add, scale, project
    scale = 4.0                   # of the vector
    positions = "last"            # "all", "first", [0, -1], "3-7": positions of the prompt
    on = "both"                   # prompt, generated
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import EDITABLE, STREAM_SITES, Edit, Operation, project_out
from mlxroles.errors import MlxrolesError, SpecError
from mlxroles.heads import by_layer, check_head, head_name, parse_heads
from mlxroles.models.model import Model
from mlxroles.spec.files import load, shown_path
from mlxroles.text import did_you_mean, ranges, safe_text
from mlxroles.vectors import Vectors, read

KEYS = (
    "site", "layers", "heads", "op", "value",
    "vector", "scale", "vector_layer", "positions", "on",
)  # fmt: skip
WHERE = ("both", "prompt", "generated")
MOST_EDITS = 10_000
"""Edits that a file may stand for, one per layer and table."""
_SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_KV = ("k", "v")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class EditSet:
    """Edits by where they hold; within each kind in the order of the file."""

    both: tuple[Edit, ...] = ()
    """In the prompt and in what is generated."""
    prompt: tuple[Edit, ...] = ()
    """In the prompt alone."""
    generated: tuple[Edit, ...] = ()
    """In what is generated alone."""
    lines: tuple[str, ...] = ()
    """What each table of the file does, in words."""
    digest: str = ""
    """SHA-256 of all that the edits do."""
    origins: tuple[tuple[str, str], ...] = ()
    """Each vector, as the file names it, with the ``sha256`` of the model that it was taken from,
    where that is known."""

    @property
    def in_prompt(self) -> tuple[Edit, ...]:
        """All edits that hold while the prompt is read."""
        return self.both + self.prompt


class _Entry(NamedTuple):
    """One table, with what it stands in and for."""

    given: Mapping[str, Any]
    where: str
    folder: Path
    model: Model
    n_tokens: int
    origins: dict[str, str]
    """What the vectors were taken from, filled as they are read."""


def read_edits(path: Path, model: Model, n_tokens: int) -> EditSet:
    """The edits of a file for one prompt.

    Args:
        path: A TOML file of ``[[edit]]`` tables; paths in it are taken from its folder.
        model: The model that is edited.
        n_tokens: Length of the prompt.

    Raises:
        SpecError: a key, value, site, layer, head or position that cannot be meant.
        VectorError, StoreError: a vector that cannot be read or does not fit.
        ModelError: a site that this architecture does not have.
    """
    path = Path(path)
    shown = shown_path(path)
    found: dict[str, list[Edit]] = {where: [] for where in WHERE}
    lines = []
    origins: dict[str, str] = {}
    for n, given in enumerate(tables(path), 1):
        entry = _Entry(given, f"{shown}, edit {n}", path.parent, model, n_tokens, origins)
        try:
            on, edits, line = _made(entry)
        except MlxrolesError as error:
            if str(error).startswith(shown):
                raise
            raise type(error)(f"{entry.where}: {error}") from None
        found[on] += edits
        lines.append(line)
    if sum(map(len, found.values())) > MOST_EDITS:
        raise SpecError(f"{shown} stands for more than {MOST_EDITS} edits")
    kinds = [tuple(found[where]) for where in WHERE]
    return EditSet(*kinds, tuple(lines), _digest(kinds), tuple(origins.items()))


def tables(path: Path) -> list[Mapping[str, Any]]:
    """The tables of a file as they stand there, which needs no model.

    Raises:
        SpecError: it cannot be read, holds no edit, or a key that is none.
    """
    doc, shown = load(path, "edit file"), shown_path(path)
    for key in doc:
        if key != "edit":
            hint = did_you_mean(key, ("edit",)) or "; a file of edits has [[edit]] tables only"
            raise SpecError(f"{shown}: unknown key '{safe_text(key, limit=60)}'{hint}")
    given: Any = doc.get("edit")
    found: list[Mapping[str, Any]] = [given] if isinstance(given, dict) else given
    if not isinstance(found, list) or not found:
        raise SpecError(f"{shown} has no [[edit]] table")
    for n, table in enumerate(found, 1):
        if not isinstance(table, dict):
            raise SpecError(f"{shown}: edit {n} is no table; write [[edit]] above its keys")
        for key in table:
            if key not in KEYS:
                hint = did_you_mean(key, KEYS) or f"; known are {', '.join(KEYS)}"
                named = safe_text(key, limit=60)
                raise SpecError(f"{shown}, edit {n}: unknown key '{named}'{hint}")
    return found


def _made(entry: _Entry) -> tuple[str, list[Edit], str]:
    """Where an entry holds, its edits, and the line on them."""
    site, op = _site(entry), _operation(entry)
    places = _places(entry, site)
    positions, on = _positions(entry)
    spot, when = _spot_told(site, places), _when_told(positions, on)
    if "vector" in entry.given:
        edits, what = _of_vector(entry, site, op, [*places], positions)
        return on, edits, f"{what} {spot}, {when}"
    value = _number(entry, "value", 0.0)
    edits = [Edit(site, layer, value, op, positions, heads) for layer, heads in places.items()]
    told = {
        "add": f"add {value:g} to {spot}",
        "scale": f"multiply {spot} by {value:g}",
        "replace": f"set {spot} to {value:g}",
    }
    return on, edits, f"{told[op]}, {when}"


# --- what is edited -------------------------------------------------------------------------------


def _site(entry: _Entry) -> str:
    site = entry.given.get("site", "resid_post" if "vector" in entry.given else None)
    if site is None:
        raise SpecError(f'there is no site; write site = "z", or another of {", ".join(EDITABLE)}')
    return _one_of("site", site, EDITABLE)


def _operation(entry: _Entry) -> Operation:
    """The operation; ``replace`` for a value and ``add`` for a vector where none is named."""
    given = entry.given
    if ("value" in given) == ("vector" in given):
        found = "both value and vector" if "value" in given else "neither value nor vector"
        raise SpecError(f"there is {found}; an edit has one of them")
    by_default = "add" if "vector" in given else "replace"
    op: Any = _one_of("op", given.get("op", by_default), get_args(Operation))
    if op == "project" and "value" in given:
        raise SpecError("op project takes a direction out; name it with vector, not value")
    if op == "scale" and "vector" in given:
        raise SpecError("op scale multiplies by a number; name it with value, not vector")
    if "vector_layer" in given and "vector" not in given:
        raise SpecError("vector_layer is the layer of a vector, and there is no vector")
    if "scale" in given and ("vector" not in given or op == "project"):
        hint = (
            'to multiply what is there write op = "scale" and value'
            if op != "project"
            else ("a direction is taken out whole, whatever its length")
        )
        raise SpecError(f"scale is the strength of a vector that is added; {hint}")
    return op


def _places(entry: _Entry, site: str) -> dict[int, tuple[int, ...] | None]:
    """Layer -> the heads that are edited there, None for all."""
    given, n_layers = entry.given, entry.model.n_layers
    heads = given.get("heads")
    if heads is not None and site in STREAM_SITES:
        raise SpecError(f"{site} has no heads; leave heads out, or edit z")
    if isinstance(heads, str):
        if "layers" in given:
            raise SpecError("heads such as L5H8 name their layers; leave layers out")
        named = parse_heads(
            heads, n_layers=n_layers, n_heads=_counts(entry, site), kind=_kind(site)
        )
        places: dict[int, tuple[int, ...] | None] = {**by_layer(named)}
    else:
        layers = _layers(entry, site)
        chosen = None if heads is None else _head_numbers(entry, heads, layers, site)
        places = dict.fromkeys(layers, chosen)
    for layer in places:
        why = entry.model.network.block(layer).missing.get(site)
        if why is not None:
            raise SpecError(
                f"{site} of layer {layer} cannot be edited in {entry.model.architecture}: {why}"
            )
    return places


def _layers(entry: _Entry, site: str) -> list[int]:
    given, n_layers = entry.given.get("layers"), entry.model.n_layers
    if given is None:
        raise SpecError('there are no layers; write layers = 3, [3, 4], "3-5" or "all"')
    if given == "all":
        blocks = [entry.model.network.block(layer) for layer in range(n_layers)]
        found = [layer for layer, block in enumerate(blocks) if site not in block.missing]
        return found or [0]
    return _numbers("layers", given, n_layers, "layer")


def _head_numbers(
    entry: _Entry, given: object, layers: Sequence[int], site: str
) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(map(_is_whole, given)):
        raise SpecError('heads must be "L5H8,L6H1", or numbers such as [1, 2] beside layers')
    heads = tuple(given)
    if len({*heads}) < len(heads) or min(heads) < 0:
        raise SpecError(f"heads {given} must be numbers from 0, each once")
    for layer in layers:
        for head in heads:
            check_head(layer, head, n_heads=_counts(entry, site), kind=_kind(site))
    return heads


def _kind(site: str) -> str:
    """What the heads of a site are called."""
    return "kv head" if site in _KV else "head"


def _counts(entry: _Entry, site: str) -> list[int]:
    """Heads of every layer; kv heads where the site is of those."""
    blocks = [entry.model.network.block(layer) for layer in range(entry.model.n_layers)]
    return [block.kv_heads if site in _KV else block.heads for block in blocks]


def _of_vector(
    entry: _Entry, site: str, op: Operation, layers: list[int], positions: tuple[int, ...] | None
) -> tuple[list[Edit], str]:
    """Edits with a vector, at each layer the vector of that layer, and what they do in words."""
    if site not in STREAM_SITES:
        raise SpecError(f"a vector is of the residual stream, and {site} is not; use resid_post")
    own = entry.given.get("vector_layer")
    if own is not None and not _is_whole(own):
        raise SpecError("vector_layer must be a layer, such as 3")
    scale = _number(entry, "scale", 1.0)
    vectors = _vectors(entry, own if own is not None or len(layers) > 1 else layers[0])
    name = vectors.single
    if site != vectors.site and site not in ("attn_out", "mlp_out"):
        raise SpecError(
            f"the vector is of {vectors.site}, which is not {site} of the same layer; use site = "
            f'"{vectors.site}"'
        )
    edits = []
    for layer in layers:
        source = layer if own is None else own
        if op == "project":
            direction = vectors.unit(name, source)
            edits.append(project_out(site, layer, direction, positions=positions))
        else:
            value = mx.array(vectors.at(name, source) * np.float32(scale))
            edits.append(Edit(site, layer, value, op, positions))
    shown = f"'{safe_text(name, limit=60)}'" + ("" if own is None else f" of layer {own}")
    times = "" if scale == 1 else f"{scale:g} x "
    what = {"add": f"add {times}{shown} to", "replace": f"put {times}{shown} in place of"}
    return edits, what.get(op, f"take {shown} out of")


def _vectors(entry: _Entry, layer: int | None) -> Vectors:
    ref = entry.given["vector"]
    if not isinstance(ref, str) or not ref:
        raise SpecError('vector must be a file, such as vector = "steer.h5#ocean"')
    network = entry.model.network
    beside = entry.folder / ref.partition("#")[0]
    with suppress(OSError, ValueError):  # what is no path is refused when it is read
        ref = str(entry.folder / ref) if beside.exists() else ref
    found = read(ref, n_layers=len(network.layers), d_model=network.anatomy.d_model, layer=layer)
    if found.model and "sha256" in found.model:
        entry.origins[entry.given["vector"]] = str(found.model["sha256"])
    return found


# --- where in the text ----------------------------------------------------------------------------


def _positions(entry: _Entry) -> tuple[tuple[int, ...] | None, str]:
    """The positions, None for all, and where the edit holds."""
    given, n = entry.given.get("positions", "all"), entry.n_tokens
    on = _one_of("on", entry.given.get("on", "both" if given == "all" else "prompt"), WHERE)
    if given == "all":
        return None, on
    if on != "prompt":
        raise SpecError(f'positions are those of the prompt, and on is "{on}"; leave one out')
    if given in ("last", "first"):
        return (n - 1 if given == "last" else 0,), on
    if isinstance(given, list) and all(map(_is_whole, given)):
        bad = [p for p in given if not -n <= p < n]
        if bad:
            raise SpecError(f"position {bad[0]} is outside the prompt: 0..{n - 1}")
        given = [p % n for p in given]
    return tuple(_numbers("positions", given, n, "position")), on


def _numbers(key: str, given: object, count: int, what: str) -> list[int]:
    """Numbers from 0 of one of the forms 3, [3, 4] and "0,3-5", each below ``count``."""
    listed_so = [given] if _is_whole(given) else given
    found: Any = _spans(key, given) if isinstance(given, str) else listed_so
    if not isinstance(found, list) or not found or not all(map(_is_whole, found)):
        raise SpecError(f'{key} must be a number, a list such as [3, 4], or "3-5"')
    for number in found:
        if not 0 <= number < count:
            raise SpecError(f"{what} {number} is outside 0..{count - 1}")
        if found.count(number) > 1:
            raise SpecError(f"{what} {number} is named twice")
    return sorted(found)


def _spans(key: str, text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            shown = safe_text(text, limit=60)
            hint = '"all", "last", "first", ' if key == "positions" else '"all", '
            raise SpecError(f"{key} = '{shown}' is none of {hint}a number, [3, 4] or \"3-5\"")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_EDITS:
            raise SpecError(f"{key} = '{safe_text(text, limit=60)}' runs from {first} to {last}")
        found += range(first, last + 1)
    return found


# --- values and words -----------------------------------------------------------------------------


def _one_of(key: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        shown = safe_text(str(value), limit=60)
        hint = did_you_mean(shown, choices) or f"; it is one of {', '.join(choices)}"
        raise SpecError(f"{key} cannot be '{shown}'{hint}")
    return value


def _number(entry: _Entry, key: str, by_default: float) -> float:
    value = entry.given.get(key, by_default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST:
        raise SpecError(f"{key} must be a finite number that float32 holds, such as {key} = 0.5")
    return float(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _spot_told(site: str, places: Mapping[int, tuple[int, ...] | None]) -> str:
    if None in places.values():
        layers = sorted(places)
        return f"{site} of layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
    named = [head_name(layer, h) for layer, heads in places.items() for h in heads or ()]
    kind = _kind(site)
    return f"{site} of {kind}{'s' if len(named) > 1 else ''} {', '.join(named)}"


def _when_told(positions: tuple[int, ...] | None, on: str) -> str:
    if positions is not None:
        return f"at position{'s' if len(positions) > 1 else ''} {ranges(positions)} of the prompt"
    told = {"both": "everywhere", "prompt": "in the prompt"}
    return told.get(on, "in what is generated")


def _digest(kinds: Sequence[Sequence[Edit]]) -> str:
    found = hashlib.sha256()
    for on, edits in zip(WHERE, kinds, strict=True):
        for edit in edits:
            where = (on, edit.site, edit.layer, edit.op, edit.positions, edit.heads)
            value = np.array(edit.value, dtype=np.float32)
            found.update(repr((*where, value.shape)).encode() + value.tobytes())
    return found.hexdigest()
