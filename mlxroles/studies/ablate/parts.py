"""Components of a file as what is ablated: which ones are meant, and random ones beside them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlxroles.components.decomposition import HEADED, Components, Decomposition, Name, parse
from mlxroles.components.edits import check_once
from mlxroles.components.file import read
from mlxroles.errors import SpecError
from mlxroles.studies.ablate.ablation import MOST_NAMED, Ablation
from mlxroles.text import safe_text

MUCH = 2.0
"""Times by which the sizes of random components differ before it is said."""
BIGGEST = "top"
"""Stands for the largest components of the file."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A component file and the components of it that are ablated, in order."""

    components: Components
    names: tuple[Name, ...]

    @classmethod
    def of(cls, ref: str, top: int) -> "Parts":
        """What ``FILE#L3.q:17,L3.k:2`` names, or ``FILE#top`` and ``FILE#L3.q``: the largest ones.

        Raises:
            SpecError: another form, a file, map or component that is not there, or one that is
                named twice in one head.
            StoreError: the file cannot be read.
        """
        path, mark, words = ref.rpartition("#")
        if not mark or not words.strip():
            shown = safe_text(ref, limit=80)
            raise SpecError(
                f"--components {shown} names none; write FILE#L3.q:17,L3.k:2, or FILE#{BIGGEST} or "
                "FILE#L3.q for the largest ones"
            )
        found = read(Path(path))
        names: list[Name] = []
        for word in (w.strip() for w in words.split(",")):
            if word == BIGGEST:
                names += _largest(found, found.maps, top)
            elif ":" not in word:
                names += _largest(found, [found.map(word).key], top)
            else:
                names.append(parse(word, found))
        named = tuple(dict.fromkeys(names))
        check_once(named, found)  # all of them are taken out together too
        used = {name.key: found.maps[name.key] for name in named}
        return cls(Components(used, meta=found.meta), named)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the maps that are used: random components come from all of them."""
        found = hashlib.sha256()
        for key, d in sorted(self.components.maps.items()):
            found.update(f"{key} {d.n_heads} {d.d_head}".encode())
            for array in (d.V, d.U):
                found.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return found.hexdigest()

    @property
    def in_attention(self) -> bool:
        """Whether all of them are components of q, k, v or o."""
        return all(d.kind in HEADED for d in self.components.maps.values())

    @property
    def note(self) -> str | None:
        """What random components can show where they are of another size; None where they are not.

        Those of singular values above all: the largest ones are ablated as a rule.
        """
        maps = self.components.maps
        own = np.median([_sizes(maps[n.key])[n.index] for n in self.names])
        every = np.median(
            np.concatenate([_sizes(maps[key]) for key in {n.key for n in self.names}])
        )
        ratio = float(every / own) if own else np.inf
        if 1 / MUCH < ratio < MUCH:
            return None
        return (
            f"random components are {ratio:.2g} times as large as those ablated (median of |V| "
            "|U|): their effects may differ by size alone"
        )

    def ablations(self, *, growing: bool) -> list[Ablation]:
        """Every component by itself, then all together; or the first two, the first three, ..."""
        names = self.names
        sizes = range(2, len(names) + 1) if growing else [len(names)] * (len(names) > 1)
        sets = [_ablation(names[:k], is_joint=True) for k in sizes]
        return [*(_ablation([name]) for name in names), *sets]

    def random(self, own: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
        """Different sets of as many other components of the same maps, in the same heads."""
        rng = np.random.default_rng([seed, *"-".join(own).encode()])
        names = [parse(text) for text in own]
        taken = {(name.key, name.index) for name in names}
        pools = {
            key: [c for c in range(d.n) if (key, c) not in taken]
            for key, d in self.components.maps.items()
        }
        wanted: dict[str, list[Name]] = {}
        for name in names:
            wanted.setdefault(name.key, []).append(name)
        if any(len(pools[key]) < len(same) for key, same in wanted.items()):
            return []
        found: dict[tuple[str, ...], None] = {}
        for _ in range(50 * count):
            if len(found) == count:
                break
            drawn = []
            for key, same in wanted.items():
                chosen = sorted(rng.choice(pools[key], size=len(same), replace=False))
                drawn += [Name(key, int(c), n.heads) for c, n in zip(chosen, same, strict=True)]
            found.setdefault(tuple(map(str, drawn)))
        return list(found)


def _ablation(names: Sequence[Name], *, is_joint: bool = False) -> Ablation:
    shown = " ".join(map(str, names[:MOST_NAMED]))
    shown += f" +{len(names) - MOST_NAMED}" if len(names) > MOST_NAMED else ""
    key = "+".join(map(str, names)).lower()
    key = key if len(names) <= MOST_NAMED else f"first-{len(names)}"
    return Ablation(shown, "components", key, is_joint=is_joint, components=tuple(map(str, names)))


def _largest(components: Components, keys: Iterable[str], top: int) -> list[Name]:
    """The components with the largest matrices |V| |U|, of some maps together."""
    sized: Mapping[tuple[str, int], float] = {
        (key, c): float(size) for key in keys for c, size in enumerate(_sizes(components.maps[key]))
    }
    ranked = sorted(sized, key=lambda at: -sized[at])
    return [Name(*at) for at in ranked[:top]]


def _sizes(d: Decomposition) -> np.ndarray:
    """Frobenius norm of every component."""
    return np.linalg.norm(d.V, axis=0) * np.linalg.norm(d.U, axis=1)
