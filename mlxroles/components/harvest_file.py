"""Reads a harvest; the layout is told in ``harvest``. No model library is needed here."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mlxroles.errors import SpecError, StoreError
from mlxroles.store.files import shown
from mlxroles.text import safe_text

SCHEMA = "mlxroles/harvest/1"
EXAMPLES = ("random", "strongest")
ALIVE = 0.01
"""Mean importance above which a component counts as alive."""
_JSON = ("model", "components", "text", "notes", "versions", "plan")
_NUMBERS = (
    "firing",
    "mean_importance",
    "mean_importance_error",
    "mean_activation",
    "mean_abs_activation",
)

Array = np.ndarray[Any, Any]


class TopTokens(NamedTuple):
    """Tokens that go with each component [C, 10], the surest first; id -1 where there are fewer."""

    id: Array
    pmi: Array
    """ln( P(token, fires) / (P(token) P(fires)) ), nats."""
    low: Array
    """Lower end of its interval (``harvest_tokens``); a token with low <= 0 is not clear."""
    count: Array


class Examples(NamedTuple):
    """Positions where each component fires [C, E] and what is around them [C, E, 41]."""

    row: Array
    position: Array
    importance: Array
    activation: Array


class Window(NamedTuple):
    """One example: its tokens, and the component's numbers at each of them."""

    text: tuple[str, ...]
    importance: Array
    activation: Array
    at: int
    """Which of the tokens the component was shown for."""


@dataclass(frozen=True, eq=False)
class MapHarvest:
    """The harvest of one map."""

    key: str
    layer: int
    kind: str
    n_heads: int
    d_head: int
    firing: Array
    """[C] int64"""
    mean_importance: Array
    mean_importance_error: Array
    mean_activation: Array
    mean_abs_activation: Array
    input_tokens: TopTokens
    output_tokens: TopTokens
    examples: Mapping[str, Examples]
    """``random`` and ``strongest``."""

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.firing)


class Harvest:
    """An open harvest; maps and pairs are read when they are asked for."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        with _whole(path):
            self._open(file)

    def _open(self, file: h5py.File) -> None:
        about = {name: _plain(value) for name, value in file.attrs.items()}
        self.about: dict[str, Any] = about | {n: json.loads(about.get(n, "null")) for n in _JSON}
        if not all(isinstance(self.about[n], dict | None) for n in _JSON if n != "notes"):
            raise ValueError("what identifies it is no table")
        self.keys: list[str] = sorted(file["maps"], key=lambda key: file["maps"][key].attrs["at"])
        self.tokens: Array = file["tokens"][()]
        self._ids: Array = file["vocabulary/id"][()]
        self._texts: list[str] = list(file["vocabulary/text"].asstr()[()])

    @property
    def n_tokens(self) -> int:
        """Positions that were harvested."""
        return int(self.about["n_tokens"])

    @property
    def measure(self) -> str:
        """``causal importance`` or ``share of the output``."""
        return str(self.about["measure"])

    @property
    def window(self) -> int:
        """Positions on either side of an example."""
        return int(self.about["window"])

    def map(self, key: str) -> MapHarvest:
        """The harvest of a map.

        Raises:
            SpecError: the harvest has no such map.
            StoreError: the file is damaged.
        """
        if key not in self.keys:
            raise SpecError(
                f"{shown(self.path)} has no map '{safe_text(key, limit=60)}'; it has "
                f"{', '.join(self.keys[:12])}{' ...' if len(self.keys) > 12 else ''}"
            )
        with _whole(self.path):
            return self._map(key, self._file["maps"][key])

    def _map(self, key: str, group: h5py.Group) -> MapHarvest:
        def top(kind: str) -> TopTokens:
            return TopTokens(*(group[f"{kind}_tokens/{name}"][()] for name in TopTokens._fields))

        found = MapHarvest(
            key,
            int(group.attrs["layer"]),
            str(_plain(group.attrs["kind"])),
            int(group.attrs["n_heads"]),
            int(group.attrs["d_head"]),
            *(group[name][()] for name in _NUMBERS),
            input_tokens=top("input"),
            output_tokens=top("output"),
            examples={
                kind: Examples(*(group[f"examples/{kind}/{n}"][()] for n in Examples._fields))
                for kind in EXAMPLES
            },
        )
        parts = [getattr(found, name) for name in _NUMBERS]
        parts += [*found.input_tokens, *found.output_tokens]
        parts += [array for part in found.examples.values() for array in part]
        if any(array.shape[:1] != (int(group.attrs["n_components"]),) for array in parts):
            raise ValueError(f"the arrays of {key} are of different lengths")
        return found

    def pairs(self, first: str, second: str) -> Array | None:
        """Positions at which both fire [C of first, C of second], int64; None where not counted."""
        with _whole(self.path):
            counts = self._file["pairs"]
            if first in counts and second in counts[first]:
                return counts[first][second][()]
            if second in counts and first in counts[second]:
                return counts[second][first][()].T
        return None

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Pairs of maps that were not counted for want of room."""
        with _whole(self.path):
            return [(first, second) for first, second in self._file["pairs_left_out"].asstr()[()]]

    def token(self, token: int) -> str:
        """The text of an id, raw; its number in brackets where the harvest does not know it."""
        at = int(np.searchsorted(self._ids, token))
        known = at < len(self._ids) and self._ids[at] == token
        return self._texts[at] if known else f"[{token}]"

    def windows(self, of: MapHarvest, component: int, kind: str = "random") -> list[Window]:
        """The examples of one component, with texts raw."""
        found, examples = [], of.examples[kind]
        for n, row in enumerate(examples.row[component]):
            if row < 0:
                continue
            position = int(examples.position[component, n])
            ids = self.tokens[row]
            here = range(position - self.window, position + self.window + 1)
            inside = [i for i, p in enumerate(here) if 0 <= p < len(ids) and ids[p] >= 0]
            found.append(
                Window(
                    tuple(self.token(int(ids[here[i]])) for i in inside),
                    examples.importance[component, n, inside],
                    examples.activation[component, n, inside],
                    inside.index(self.window),
                )
            )
        return found

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Harvest":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_harvest(path: Path) -> Harvest:
    """Opens a harvest.

    Raises:
        SpecError: there is no such file, or it is not a harvest.
        StoreError: it is damaged.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SpecError(
            f"{shown(path)} {what}; name the .h5 file that `mlxroles components harvest` wrote"
        )
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise SpecError(f"{shown(path)} is no readable HDF5 file") from error
    if _plain(file.attrs.get("schema")) != SCHEMA:
        file.close()
        raise SpecError(
            f"{shown(path)} is no harvest of this program; `mlxroles components harvest` makes one"
        )
    return Harvest(path, file)


@contextmanager
def _whole(path: Path) -> Generator[None]:
    """Turns what a file that was changed raises into one line.

    Raises:
        StoreError: the file is not as it was written.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as error:
        why = safe_text(str(error), limit=160)
        raise StoreError(f"{shown(path)} is damaged or was changed by hand: {why}") from None


def _plain(value: Any) -> Any:
    """An attribute as a Python value."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value
