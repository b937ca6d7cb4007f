"""What the components of one layer's q and k do for an induction head.

Sequences [x, x] of random tokens; the INDUCTION SCORE of a head is the mean weight that the query
at the second copy of x_k gives to x_{k+1}, k = 0..L-2 (Olsson et al. 2022). Four questions, as in
the study that this follows:

1. SHARE: how much of a component lies in the target head, ||U[c, head]|| over the sum of all
   heads' (over .5 it is concentrated there, over .1 involved). A component of k lies in key-value
   heads: a query head h reads that of h // (heads / kv heads), not number h.
2. EFFECT: a_c U[c] is taken out of q (or k) before RoPE, at all positions; the effect is the score
   before less the score after, per sequence, with a bootstrap interval over sequences.
3. The TEN that matter most: each beside random directions of the same length in every head with
   the same activations; what they do to other heads of the layer; all of them at once beside
   random sets of as many other components.
4. WHERE the weight goes: the shares of the first position, of the induction target and of the rest
   before and after; components that lie in the head and do nothing for the score; other heads
   whose score rises when a component is gone.

What is looked at is chosen on sequences of its own: the head where none is named, the components
that are alive where no harvest says so, and the ten. Every effect is measured on the others.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mlxroles.backend import mx
from mlxroles.components.decomposition import Components, Decomposition, Name
from mlxroles.components.edits import ablation
from mlxroles.components.file import fitted, foreign
from mlxroles.components.harvest_file import ALIVE, Harvest
from mlxroles.components.importance import importance_of
from mlxroles.components.maps import inputs
from mlxroles.components.weights import head_norms, shares
from mlxroles.detectors import MARKED, pieces
from mlxroles.edits import Edit
from mlxroles.errors import SpecError
from mlxroles.forward import Start
from mlxroles.heads import head_name
from mlxroles.models.model import Model

MOST = 256
"""Components of a map that are tried, those with the largest part in the target head."""
AT_ONCE = 1 << 26
"""Weights of one layer that exist at once."""
PLACES = ("first", "target", "rest")
"""Keys between which the weight of the second copy's queries is shared."""
TARGET = PLACES.index("target")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settings:
    """What is run, and how much of it."""

    sequences: int = 32
    """Sequences that are measured on; as many others serve to choose."""
    length: int = 32
    """Tokens of x."""
    random: int = 20
    """Random directions beside each of the ten, and random sets beside all of them."""
    seed: int = 0


class Tried(NamedTuple):
    """One component without which the layer was run."""

    name: Name
    share: float
    """Of the target head in the component."""
    importance: float
    """Mean over the positions of the sequences to choose on, or of the harvest."""
    first: float
    """Mean effect on the sequences to choose on."""
    after: Array
    """Weight on each of ``PLACES`` without it [sequence, head, place]."""


class Sample(NamedTuple):
    """Sequences, and what the head's layer does on them as it is."""

    rows: Array
    """[sequence, position]"""
    chunks: list[tuple[Array, Start | None]]
    """Rows that run together, and where a run of them can begin at the layer."""
    before: Array
    """Weight on each of ``PLACES`` [sequence, head, place]."""
    uniform: Array
    """The same from uniform attention over what each query sees [place]."""


@dataclass(eq=False)
class Induction:
    """The layer of an induction head, run on repeated tokens with and without components.

    Raises:
        SpecError: components that do not fit the model, or none of q or k of the head's layer.
    """

    model: Model
    components: Components
    head: tuple[int, int] | None = None
    """Layer and query head; None for the head with the highest score where q or k is decomposed."""
    settings: Settings = field(default_factory=Settings)
    harvest: Harvest | None = None
    """Says which components are alive; without it the sequences themselves do."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.maps = fitted(self.components, self.model)
        self.notes += [text for text in [foreign(self.components, self.model)] if text]
        with_q_or_k = sorted({m.layer for m in self.maps.values() if m.kind in "qk"})
        if not with_q_or_k:
            raise SpecError("the components are of no q or k map, which an induction head reads by")
        self.start = len(pieces.opening(self.model.tokenizer))
        choice, measured = self._repeated(7), self._repeated(6)
        if self.head is None:
            self.head = self._best(choice, with_q_or_k)
        self.layer, self.target = self._checked(self.head, with_q_or_k)
        block = self.model.network.block(self.layer)
        self.n_heads, self.group = block.heads, block.heads // block.kv_heads
        self.choice, self.measured = self._sample(choice), self._sample(measured)
        score = float(self.measured.before[:, self.target, TARGET].mean())
        if score < MARKED:
            self.notes.append(
                f"{head_name(*self.head)} is no induction head (score {score:.3f}, below "
                f"{MARKED:g}); what its components do for the score is told all the same"
            )

    def _checked(self, head: tuple[int, int], layers: Sequence[int]) -> tuple[int, int]:
        """The head, if its layer has q or k decomposed."""
        layer, n = head
        if layer not in layers:
            listed = ", ".join(str(layer) for layer in layers)
            raise SpecError(f"{head_name(*head)}: q and k are decomposed in layers {listed} only")
        heads = self.model.network.block(layer).heads
        if n >= heads:
            raise SpecError(f"{head_name(*head)}: head {n} is outside 0..{heads - 1}")
        return head

    # --- running ------------------------------------------------------------------------------

    def _repeated(self, stream: int) -> Array:
        """Rows [x, x] of random ids, with what the tokenizer puts in front of a text."""
        rng = np.random.default_rng([self.settings.seed, stream])
        ordinary = pieces.ordinary_ids(self.model.tokenizer, self.model.n_ids, rng)
        x = rng.choice(ordinary, (self.settings.sequences, self.settings.length))
        front = np.array(pieces.opening(self.model.tokenizer), dtype=np.int64)
        rows = np.concatenate([np.tile(front, (len(x), 1)), x, x], axis=1)
        self.model.check_tokens(rows[:1].tolist())
        return rows

    def _places(self, _: int, weights: mx.array, visible: mx.array) -> mx.array:
        """Mean weight on each of ``PLACES`` of the second copy's queries [batch, head + 1, place].

        The last head is uniform attention over what each query sees.
        """
        length, start = self.settings.length, self.start
        seen = visible.astype(mx.float32)
        even = seen / mx.maximum(seen.sum(axis=-1, keepdims=True), 1)
        even = mx.broadcast_to(even, (weights.shape[0], 1, *weights.shape[2:]))
        rows = mx.concatenate([weights.astype(mx.float32), even], axis=1)
        rows = rows[:, :, start + length : start + 2 * length - 1]
        at = start + 1 + mx.arange(length - 1)[:, None]
        at = mx.broadcast_to(at, (*rows.shape[:3], 1))
        target = mx.take_along_axis(rows, at, axis=-1)[..., 0].mean(axis=-1)
        first = rows[..., 0].mean(axis=-1)
        return mx.stack([first, target, rows.sum(axis=-1).mean(axis=-1) - first - target], axis=-1)

    def _best(self, rows: Array, layers: Sequence[int]) -> tuple[int, int]:
        """The head of these layers with the highest induction score."""
        total: dict[tuple[int, int], float] = {}
        for part in self._parts(rows):
            run = self.model.run(
                part, keep=["pattern"], layers=layers, logits=False, summary=self._places
            )
            for layer in layers:
                sums = np.array(run["pattern", layer])[:, :-1, TARGET].sum(axis=0)
                for head, value in enumerate(sums):
                    total[layer, head] = total.get((layer, head), 0.0) + float(value)
        return max(total, key=lambda at: total[at])

    def _parts(self, rows: Array) -> Iterator[Array]:
        heads = max(block.heads for block in self.model.network.anatomy.blocks)
        size = max(1, AT_ONCE // (heads * rows.shape[1] ** 2))
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]

    def _sample(self, rows: Array) -> Sample:
        """The rows with where they can begin at the head's layer, run once as they are."""
        chunks: list[tuple[Array, Start | None]] = []
        for part in self._parts(rows):
            start = None
            if self.model.network.anatomy.resumable:
                run = self.model.run(part, keep=["resid_pre"], layers=[self.layer], logits=False)
                start = Start(self.layer, run["resid_pre", self.layer])
            chunks.append((part, start))
        found = self._run(chunks, [])
        return Sample(rows, chunks, found[:, :-1], found[:, -1].mean(axis=0))

    def _run(self, chunks: Sequence[tuple[Array, Start | None]], edits: Sequence[Edit]) -> Array:
        """Weight on each of ``PLACES`` in the head's layer [sequence, head + 1, place]."""
        found = []
        for part, start in chunks:
            run = self.model.run(
                part,
                keep=["pattern"],
                edits=edits,
                layers=[self.layer],
                start=start,
                logits=False,
                summary=self._places,
            )
            found.append(np.array(run["pattern", self.layer], dtype=np.float64))
        return np.concatenate(found)

    def without(
        self, names: Sequence[Name], of: Components | None = None, *, on: Sample | None = None
    ) -> Array:
        """Weight on each of ``PLACES`` without some components at once [sequence, head, place].

        Args:
            names: The components.
            of: Where they are from, if not from the file.
            on: Sequences; those that are measured on by default.
        """
        edits = ablation(self.model, of or self.components, names, maps=self.maps)
        return self._run((on or self.measured).chunks, edits)[:, :-1]

    # --- the four questions -------------------------------------------------------------------

    def candidates(self) -> list[tuple[Name, float, float]]:
        """(component, share in the target head, mean importance) of those that are tried.

        Alive ones; of more than ``MOST`` in a map those with the largest part in the head.
        """
        alive = self._importance()
        found = []
        for key, mean in alive.items():
            d = self.components.maps[key]
            norms = head_norms(d)
            own = self.target if d.kind == "q" else self.target // self.group
            part, chosen = shares(norms)[:, own], np.flatnonzero(mean > ALIVE)
            if len(chosen) > MOST:
                self.notes.append(
                    f"{key}: {MOST} of {len(chosen)} components that are alive were tried, those "
                    "with the largest part in the head"
                )
                chosen = np.sort(chosen[np.argsort(-norms[chosen, own], kind="stable")[:MOST]])
            found += [(Name(key, int(c)), float(part[c]), float(mean[c])) for c in chosen]
        return found

    def _importance(self) -> dict[str, Array]:
        """Mean importance of the components of the layer's q and k, by map."""
        keys = [k for k, m in self.maps.items() if m.layer == self.layer and m.kind in "qk"]
        if self.harvest is not None:
            return {key: self._harvested(self.harvest, key) for key in keys}
        of = importance_of(self.components)
        needed = list(self.maps) if of.joint else keys
        total: dict[str, Array] = {}
        for part, _ in self.choice.chunks:
            entering = inputs(self.model, [self.maps[k] for k in needed], mx.array(part))
            x = {key: array.astype(mx.float32) for key, array in entering.items()}
            a = {key: x[key] @ mx.array(self.components.maps[key].V) for key in needed}
            g = of.of_all(x, a) if of.joint else {key: of(key, x[key], a[key]) for key in keys}
            for key in keys:
                added = np.array(g[key], dtype=np.float64).sum(axis=(0, 1))
                total[key] = total.get(key, 0) + added
        return {key: value / self.choice.rows.size for key, value in total.items()}

    def _harvested(self, harvest: Harvest, key: str) -> Array:
        """The mean importance of a map's components in a harvest.

        Raises:
            SpecError: it is of other components.
        """
        mean = harvest.map(key).mean_importance
        if len(mean) != self.components.maps[key].n:
            raise SpecError(
                f"{harvest.path} is the harvest of other components: {len(mean)} of {key}, not "
                f"{self.components.maps[key].n}; harvest this file"
            )
        return mean

    def tried(self, name: Name, share: float, importance: float) -> Tried:
        """One of the candidates with what the layer does without it."""
        first = self.effect(self.without([name], on=self.choice), on=self.choice).mean()
        return Tried(name, share, importance, float(first), self.without([name]))

    def effect(self, after: Array, *, on: Sample | None = None) -> Array:
        """Loss of the target head's induction score [sequence]."""
        return ((on or self.measured).before - after)[:, self.target, TARGET]

    def random_directions(self, name: Name) -> Array:
        """Mean effect of random directions of the same length in every head [draw].

        The component's activations stay; what they write to each head points elsewhere.
        """
        d, drawn = self.components.maps[name.key], []
        rng = np.random.default_rng([self.settings.seed, 8, *str(name).encode()])
        for _ in range(self.settings.random):
            u = turned(d, name.index, rng)
            alone = replace(d, V=d.V[:, name.index, None], U=u[None])
            after = self.without([Name(name.key, 0)], Components({name.key: alone}))
            drawn.append(self.effect(after).mean())
        return np.array(drawn)

    def random_sets(self, top: Sequence[Name], others: Sequence[Name]) -> Array:
        """Mean effect of different sets of as many other components of each map [draw].

        Fewer than were asked for where there are no more sets, none where a map has too few.
        """
        rng = np.random.default_rng([self.settings.seed, 9])
        counts = {key: sum(n.key == key for n in top) for key in {n.key for n in top}}
        pools = {key: [n for n in others if n.key == key] for key in sorted(counts)}
        possible = math.prod(math.comb(len(pool), counts[key]) for key, pool in pools.items())
        drawn: dict[frozenset[Name], float] = {}
        while len(drawn) < min(self.settings.random, possible):
            chosen = []
            for key, pool in pools.items():
                chosen += [pool[i] for i in rng.choice(len(pool), counts[key], replace=False)]
            if frozenset(chosen) not in drawn:
                drawn[frozenset(chosen)] = self.effect(self.without(chosen)).mean()
        return np.array(list(drawn.values()))


def turned(d: Decomposition, c: int, rng: np.random.Generator) -> Array:
    """A random direction [d_out] with the length of U[c] in every head."""
    u = d.U[c].reshape(d.n_heads, d.d_head).astype(np.float64)
    drawn = rng.standard_normal(u.shape)
    drawn *= np.linalg.norm(u, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn.reshape(-1).astype(np.float32)
