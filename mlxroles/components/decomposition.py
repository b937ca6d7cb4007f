"""Linear maps as sums of rank-one components: W^T = V U, component c = outer(U[c], V[:, c]).

On an input x the component's activation is a_c = x . V[:, c]; what it adds to the map's output is
a_c U[c]. Arrays are float32 of numpy; where they come from (a file, a decomposition of a model's
weights, training) is not told here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mlxroles.errors import SpecError
from mlxroles.text import did_you_mean, safe_text

HEADED = ("q", "k", "v", "o")
_NAME = re.compile(
    r"(?P<key>L(?P<layer>\d+)\.[^:@#,]+):(?P<index>\d+)(?:@(?P<heads>H\d+(?:\+H\d+)*))?"
)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The components of one map.

    Raises:
        ValueError: arrays that do not fit each other or the heads, or are not finite.
    """

    key: str
    """Of the map: ``L3.q``, ``L3.mlp.down_proj``."""
    layer: int
    kind: str
    """``q``, ``k``, ``v``, ``o`` or ``mlp``."""
    V: np.ndarray = field(repr=False)
    """[d_in, component]"""
    U: np.ndarray = field(repr=False)
    """[component, d_out]"""
    n_heads: int = 0
    """Heads of the map itself: key-value heads of k and v; 0 in an MLP."""
    d_head: int = 0

    def __post_init__(self) -> None:
        for name in ("V", "U"):
            array = np.asarray(getattr(self, name), dtype=np.float32)
            if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
                raise ValueError(f"{name} of {self.key} is no finite matrix: {array.shape}")
            object.__setattr__(self, name, array)
        if self.V.shape[1] != self.U.shape[0]:
            raise ValueError(
                f"{self.key} has {self.V.shape[1]} components in V and {self.U.shape[0]} in U"
            )
        headed = self.d_in if self.kind == "o" else self.d_out
        if self.kind in HEADED and self.n_heads * self.d_head != headed:
            raise ValueError(
                f"{self.key} has {self.n_heads} heads of {self.d_head}, which do not make {headed}"
            )

    @property
    def n(self) -> int:
        """Number of components."""
        return self.U.shape[0]

    @property
    def d_in(self) -> int:
        """Width of the map's input."""
        return self.V.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the map's output."""
        return self.U.shape[1]

    def weight(self) -> np.ndarray:
        """The sum of all components (V U)^T [d_out, d_in]."""
        return (self.V @ self.U).T

    def component(self, c: int, heads: Iterable[int] | None = None) -> np.ndarray:
        """Component c as a matrix [d_out, d_in]: outer(U[c], V[:, c]), in given heads only.

        Raises:
            ValueError: a component or head that does not exist.
        """
        v, u = self.factors([c], heads)
        return np.outer(u[0], v[:, 0])

    def head(self, c: int, h: int) -> np.ndarray:
        """The part [d_head] of a component that belongs to head h.

        Of q, k and v part of U[c], what the component writes to the head; of o part of V[:, c],
        what it reads from it.

        Raises:
            ValueError: a component or head that does not exist.
        """
        self._check([c], [h])
        part = slice(h * self.d_head, (h + 1) * self.d_head)
        return self.V[part, c] if self.kind == "o" else self.U[c, part]

    def factors(
        self, chosen: Iterable[int], heads: Iterable[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """V [d_in, chosen] and U [chosen, d_out] of some components, 0 outside given heads.

        Raises:
            ValueError: a component or head that does not exist.
        """
        chosen = list(chosen)
        named = None if heads is None else list(heads)
        self._check(chosen, named or ())
        v, u = self.V[:, chosen], self.U[chosen]
        if named is not None:
            inside = np.isin(np.arange(self.n_heads), named).repeat(self.d_head)
            if self.kind == "o":
                v = v * inside[:, None]
            else:
                u = u * inside
        return v, u

    def _check(self, components: Iterable[int], heads: Iterable[int]) -> None:
        for c in components:
            if not 0 <= c < self.n:
                raise ValueError(f"component {c} of {self.key} is outside 0..{self.n - 1}")
        for h in heads:
            if not self.n_heads:
                raise ValueError(f"{self.key} has no heads")
            if not 0 <= h < self.n_heads:
                raise ValueError(f"head {h} of {self.key} is outside 0..{self.n_heads - 1}")


@dataclass(frozen=True, eq=False)
class Components:
    """The decompositions of a model's maps, as a component file holds them."""

    maps: Mapping[str, Decomposition]
    importance: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Parameters of the causal-importance function by name, each of one axis or more."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """``model`` (of ``identity``), ``made`` (svd, imported, trained) and what belongs to it."""

    @property
    def layers(self) -> list[int]:
        """Layers of which a map is decomposed."""
        return sorted({d.layer for d in self.maps.values()})

    @property
    def n(self) -> int:
        """Number of components of all maps."""
        return sum(d.n for d in self.maps.values())

    def map(self, key: str) -> Decomposition:
        """The decomposition of a map.

        Raises:
            SpecError: the file does not have it, with the nearest that it has.
        """
        if key not in self.maps:
            shown = safe_text(key, limit=60)
            raise SpecError(f"no map {shown} is decomposed{did_you_mean(key, self.maps)}")
        return self.maps[key]

    def of(self, layer: int, kind: str) -> list[Decomposition]:
        """The maps of a layer that are of one kind: one of q, k, v and o, several of an MLP."""
        return [d for d in self.maps.values() if d.layer == layer and d.kind == kind]


class Name(NamedTuple):
    """Which component is meant, and in which heads."""

    key: str
    index: int
    heads: tuple[int, ...] | None = None
    """None for all; heads of the map itself, key-value heads of k and v."""

    def __str__(self) -> str:
        """``L3.q:17@H4+H5``."""
        heads = "" if self.heads is None else "@" + "+".join(f"H{h}" for h in self.heads)
        return f"{self.key}:{self.index}{heads}"


def parse(text: str, components: Components | None = None) -> Name:
    """The component that ``L3.q:17`` or, in some heads, ``L3.q:17@H4+H5`` names.

    Raises:
        SpecError: another form; or a map, component or head that ``components`` lacks.
    """
    found = _NAME.fullmatch(text.strip())
    if found is None:
        shown = safe_text(text, limit=60)
        raise SpecError(
            f"{shown!r} names no component; write L3.q:17, or L3.q:17@H4+H5 in given heads only"
        )
    heads = found["heads"]
    named = None if heads is None else tuple(int(h[1:]) for h in heads.split("+"))
    name = Name(found["key"], int(found["index"]), named)
    if named is not None and len({*named}) < len(named):
        raise SpecError(f"{name} names a head twice")
    if components is not None:
        try:
            components.map(name.key)._check([name.index], named or ())
        except ValueError as error:
            raise SpecError(str(error)) from None
    return name
