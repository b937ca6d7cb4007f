"""The cells of a run: their ids, the id of the run itself, and the grid that a user types.

Ids are the contract between a plan and what is stored. A run id is a short hash of everything
that changes numbers and of nothing else, so that the same request finds the same run folder;
a cell id is readable and does not depend on what else is in the plan. Grids are never clipped:
a layer that the model lacks is refused with the range that would be right.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, SupportsIndex, cast

from mlxroles.errors import SpecError
from mlxroles.text import safe_text, slug

PLAN_VERSION = 1
"""Part of every run id: raised when cells with the same coordinates would hold other numbers."""

MAY_DIFFER = ("computed_by.mlx", "computed_by.mlx-lm")
"""Fields of an identity in which two processes of one run may differ: not part of its id."""

_ITEM = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NAMED = ("direction", "model", "site", "head", "layer", "position", "prompt")


def canonical_json(doc: object) -> str:
    """The one JSON text of a document: sorted keys, no spaces, ASCII; NaN is a ValueError."""
    return json.dumps(doc, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(identity: Mapping[str, object]) -> str:
    """First 12 hex digits of the SHA-256 of plan version and identity.

    Args:
        identity: everything that changes numbers, as plain JSON data. The order of its keys does
            not matter, and a tuple is the same as a list. Fields of :data:`MAY_DIFFER` do not
            count.
    """
    counted = dict(identity)
    for group, name in (field.split(".") for field in MAY_DIFFER):
        inner = counted.get(group)
        if isinstance(inner, Mapping):
            counted[group] = {key: value for key, value in inner.items() if key != name}
    text = canonical_json({"plan_version": PLAN_VERSION, "identity": counted})
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def cell_id(coords: Mapping[str, object]) -> str:
    """Readable id of the cell at these coordinates, e.g. ``base_to_instruct/resid_post/L07/all``.

    The parts are direction, model, site with its head (``z.H03``), layer (``L07``), position
    (``all``, ``last``, ``4-9`` or ``P012``), prompt (``p002`` or ``prompt=name``), then every other
    coordinate as ``key=value`` in order of its key. A coordinate that is None is left out.
    """
    given = {key: value for key, value in coords.items() if value is not None}
    parts = [_text(given[key]) for key in ("direction", "model") if key in given]
    head = f"H{_number(given['head']):02d}" if "head" in given else ""
    parts.append(".".join(filter(None, (_text(given.get("site", "")), head))))
    if "layer" in given:
        parts.append(f"L{_number(given['layer']):02d}")
    if "position" in given:
        position = given["position"]
        parts.append(_text(position) if isinstance(position, str) else f"P{_number(position):03d}")
    if "prompt" in given:
        prompt = given["prompt"]
        is_name = isinstance(prompt, str)
        parts.append(f"prompt={_text(prompt)}" if is_name else f"p{_number(prompt):03d}")
    parts += [f"{_text(key)}={_text(given[key])}" for key in sorted(given) if key not in _NAMED]
    return "/".join(filter(None, parts))


@dataclass(frozen=True)
class LayerRange:
    """The layers of a sweep, ascending and without repetition."""

    layers: tuple[int, ...]
    n_layers: int
    """Number of layers of the model that they belong to."""

    def __iter__(self) -> Iterator[int]:
        """Yields the layers in ascending order."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Number of layers in the sweep."""
        return len(self.layers)

    def __contains__(self, layer: object) -> bool:
        """Whether a layer is part of the sweep."""
        return layer in self.layers

    def __str__(self) -> str:
        """The shortest text that parses to the same layers, e.g. ``0,4-7``."""
        return _compact(self.layers)


@dataclass(frozen=True)
class Positions:
    """The token positions that an edit touches."""

    kind: Literal["all", "last", "each", "some"]
    """``each`` asks for one cell per position, the others for one cell with all of them."""
    positions: tuple[int, ...]

    def __str__(self) -> str:
        """The text that parses to the same positions."""
        return _compact(self.positions) if self.kind == "some" else self.kind


def parse_layers(text: str | None, n_layers: int) -> LayerRange:
    """The layers named by ``25-31``, ``2,4``, ``7`` or a mixture; None and ``all`` name every one.

    Raises:
        SpecError: the text is no list of layers or names one that the model does not have.
    """
    if n_layers < 1:
        raise ValueError(f"a model has at least one layer, not {n_layers}")
    if text is None or text.strip() == "all":
        return LayerRange(tuple(range(n_layers)), n_layers)
    return LayerRange(_parse_numbers(text, n_layers, "layer", "'25-31', '2,4' or '7'"), n_layers)


def parse_positions(text: str, n_tokens: int) -> Positions:
    """The positions named by ``all``, ``last``, ``each``, ``4-9``, ``2,4`` or ``7``.

    Raises:
        SpecError: the text names no positions, or one that the prompt does not have.
    """
    if n_tokens < 1:
        raise ValueError(f"a prompt has at least one token, not {n_tokens}")
    word = text.strip()
    if word == "last":
        return Positions("last", (n_tokens - 1,))
    if word in ("all", "each"):
        return Positions("all" if word == "all" else "each", tuple(range(n_tokens)))
    form = "'all', 'last', 'each', '4-9' or '7'"
    return Positions("some", _parse_numbers(text, n_tokens, "position", form))


def _parse_numbers(text: str, size: int, noun: str, form: str) -> tuple[int, ...]:
    valid = f"0..{size - 1}"
    found: list[int] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            shown = safe_text(text.strip())
            raise SpecError(f"{noun}s '{shown}' cannot be read: write {form}, within {valid}")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        for number in (first, last):
            if number >= size:
                raise SpecError(f"{noun} {number} is outside {valid}")
        if last < first:
            raise SpecError(f"{noun}s {first}-{last} are reversed: write {last}-{first}")
        found.extend(range(first, last + 1))
    for before, after in zip(sorted(found), sorted(found)[1:], strict=False):
        if before == after:
            raise SpecError(f"{noun} {after} is named twice in '{safe_text(text.strip())}'")
    return tuple(sorted(found))


def _compact(numbers: tuple[int, ...]) -> str:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _text(value: object) -> str:
    return "" if value == "" else slug(str(value))


def _number(value: object) -> int:
    return cast("SupportsIndex", value).__index__()
