"""W4, W5, W6, W7, W9: sweeps of patches and ablations, on the engine and one forward per cell."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles import engine
from mlxroles.backend import mx
from mlxroles.bench.ground import DONOR, RECIPIENT, Ground
from mlxroles.bench.work import Ran, Work, evenly, softmax
from mlxroles.edits import Edit, zero
from mlxroles.errors import ModelError
from mlxroles.forward import forward

SIDES = (RECIPIENT, DONOR)

SHORT_PROMPTS, SHORT_LENGTH = 30, 8
"""W9's prompts."""
POSITIONS_SAMPLED, HEADS_SAMPLED, PROMPTS_SAMPLED = 3, 2, 2
"""What the twins of W6, W7 and W9 run of every layer."""


@dataclass(frozen=True)
class Spot:
    """A cell: whose run is changed, in which prompt, and where."""

    side: int
    layer: int
    prompt: int = 0
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


class Sweep(Work):
    """Single patches, each in a run of its own, whose last position is read."""

    site = "resid_post"
    transplants = True
    """Whether the other side's activations go in; else zeros."""

    def __init__(self, ground: Ground, spots: Sequence[Spot], prompts: int = 1) -> None:
        super().__init__(ground)
        self.spots, self.n_prompts = spots, prompts

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return self.ground.tokens

    @property
    def n_cells(self) -> int:
        """Patched runs."""
        return len(self.spots)

    @property
    def recipients(self) -> list[int]:
        """Sides that are patched."""
        return sorted({s.side for s in self.spots})

    @property
    def donors(self) -> list[int]:
        """Sides of which activations are taken."""
        return [1 - side for side in self.recipients] if self.transplants else []

    def _tokens(self, side: int) -> mx.array:
        return self.ground.prompts(self.n_prompts, self.length, side)

    def least(self) -> float:
        """The clean runs, and of each cell what comes after its edit, from its position on.

        A layer that is entered in its middle counts as one; the last layer counts where it is read.
        """
        n, length = self.ground.n_layers, self.length
        once = 1 / length
        total = self.n_prompts * len({*self.recipients, *self.donors}) * (n - 1 + once)
        for spot in self.spots:
            join = spot.layer + (self.site == "resid_post")
            share = 1.0 if spot.positions is None else (length - min(spot.positions)) / length
            if join < n:
                total += (n - 1 - join) * share + once
        return total

    def run(self, kept: Collection[int]) -> Ran:
        """Clean runs of the models, then all cells on the engine."""
        if not self.spots:
            why = next(iter(self.ground.network(RECIPIENT).block(0).missing.values()), "")
            raise ModelError(f"{self.ground.recipient.architecture} has no heads here: {why}")
        engine.reset_calls()
        states = {side: self._clean(side) for side in {*self.recipients, *self.donors}}
        values = {}
        for side in self.recipients:
            cells = [i for i, spot in enumerate(self.spots) if spot.side == side]
            rows = [engine.Row((self._edit(states, i),), self.spots[i].prompt) for i in cells]
            for n, answer in engine.sweep(self.ground.network(side), states[side], rows):
                probabilities = softmax(answer.logits[0])
                self.take(cells[n], probabilities)
                if cells[n] in kept:
                    values[cells[n]] = probabilities
        return Ran(values, engine.calls().made)

    def take(self, cell: int, probabilities: np.ndarray) -> None:
        """Called with the probabilities [vocab] that every cell ends in."""

    def _clean(self, side: int) -> engine.Clean:
        return engine.clean(
            self.ground.network(side),
            self._tokens(side),
            read=[self.length - 1],
            site=self.site if side in self.donors or not self.transplants else None,
            recipient=side in self.recipients,
            late=True,
            logits=side in self.recipients,
        )

    def _edit(self, states: dict[int, engine.Clean], cell: int) -> Edit:
        spot = self.spots[cell]
        if not self.transplants:
            return zero(self.site, spot.layer, positions=spot.positions, heads=spot.heads)
        return engine.transplant(
            states[1 - spot.side],
            self.site,
            spot.layer,
            prompt=spot.prompt,
            positions=spot.positions,
            into=states[spot.side],
        )

    def prepare(self) -> dict[int, list[dict[int, mx.array]]]:
        """Side -> prompt -> layer -> the activations that the twin puts in [1, position, ...]."""
        found: dict[int, list[dict[int, mx.array]]] = {}
        for side in self.donors:
            for tokens in np.array(self._tokens(side)):
                run = forward(self.ground.network(side), mx.array(tokens[None]), keep=[self.site])
                states = {i: run[self.site, i] for i in run.layers(self.site)}
                found.setdefault(side, []).append(states)
        return found

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """Probabilities [vocab] of one whole forward in which a hook changes the activations."""
        spot = self.spots[cell]
        value: mx.array | float = 0.0
        if self.transplants:
            value = state[1 - spot.side][spot.prompt][spot.layer]
            value = value if spot.positions is None else value[:, mx.array(spot.positions)]
        edit = Edit(self.site, spot.layer, value, positions=spot.positions, heads=spot.heads)
        tokens = self._tokens(spot.side)[spot.prompt : spot.prompt + 1]
        logits = forward(self.ground.network(spot.side), tokens, edits=[edit]).logits
        assert logits is not None
        return softmax(np.array(logits[0, -1].astype(mx.float32)))

    def note(self) -> str:
        """Where the engine had to run whole forwards."""
        network = self.ground.network(RECIPIENT)
        why = "; ".join(network.anatomy.forbidden.values())
        return f"{network.architecture} allows no shortcut everywhere: {why}" if why else ""


class WholeStream(Sweep):
    """W4: every layer's whole stream replaced, both directions."""

    name = "W4"
    what = "patch layers, both ways"
    goal = 9.9

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground, [Spot(s, i) for s in SIDES for i in range(ground.n_layers)])


class LastPosition(Sweep):
    """W5: the stream replaced at the last position only, one direction."""

    name = "W5"
    what = "patch the last position"
    goal = 1.8

    def __init__(self, ground: Ground) -> None:
        last = (ground.tokens - 1,)
        spots = [Spot(RECIPIENT, i, positions=last) for i in range(ground.n_layers)]
        super().__init__(ground, spots)


class EveryPosition(Sweep):
    """W6: the stream of every layer replaced at every position in turn, one direction."""

    name = "W6"
    what = "patch layer by position"
    goal = 54.0
    TOKEN = 1
    """Whose log-odds are compared with the estimates."""

    def __init__(self, ground: Ground) -> None:
        cells = [(i, p) for i in range(ground.n_layers) for p in range(quarter(ground))]
        super().__init__(ground, [Spot(RECIPIENT, i, positions=(p,)) for i, p in cells])
        self.odds = np.full(len(cells), np.nan)
        """Log-odds of the token that each cell ends in; NaN before ``run``."""

    @property
    def length(self) -> int:
        """A quarter of the usual length."""
        return quarter(self.ground)

    @property
    def sample(self) -> list[int]:
        """A few positions of every layer."""
        positions = evenly(self.length, POSITIONS_SAMPLED)
        return [i * self.length + p for i in range(self.ground.n_layers) for p in positions]

    def take(self, cell: int, probabilities: np.ndarray) -> None:
        """Remembers the log-odds."""
        p = float(probabilities[self.TOKEN])
        with np.errstate(divide="ignore"):
            self.odds[cell] = np.log(p) - np.log1p(-p)


class Heads(Sweep):
    """W7: one head's z set to zero at all positions, every head of every layer."""

    name = "W7"
    what = "ablate every head"
    goal = 39.0
    site = "z"
    transplants = False

    def __init__(self, ground: Ground) -> None:
        blocks = ground.recipient.network.anatomy.blocks
        cells = [(i, h) for i, b in enumerate(blocks) for h in range(b.heads)]
        cells = [(i, h) for i, h in cells if "z" not in blocks[i].missing]
        super().__init__(ground, [Spot(RECIPIENT, i, heads=(h,)) for i, h in cells])

    @property
    def sample(self) -> list[int]:
        """A few heads of every layer."""
        by_layer: dict[int, list[int]] = {}
        for cell, spot in enumerate(self.spots):
            by_layer.setdefault(spot.layer, []).append(cell)
        return [cells[h] for cells in by_layer.values() for h in evenly(len(cells), HEADS_SAMPLED)]


class ShortSweep(Sweep):
    """W9: every layer's whole stream, both directions, over many short prompts."""

    name = "W9"
    what = f"patch {SHORT_PROMPTS} short prompts"
    goal = 0.2
    reference = "the same cells one by one"
    is_against_twin = True

    def __init__(self, ground: Ground) -> None:
        n = ground.n_layers
        cells = [(s, p, i) for s in SIDES for p in range(SHORT_PROMPTS) for i in range(n)]
        super().__init__(ground, [Spot(s, i, prompt=p) for s, p, i in cells], SHORT_PROMPTS)

    @property
    def length(self) -> int:
        """Tokens of every prompt."""
        return self.ground.fit(SHORT_LENGTH)

    @property
    def sample(self) -> list[int]:
        """Every cell of a few prompts."""
        chosen = evenly(SHORT_PROMPTS, PROMPTS_SAMPLED)
        return [i for i, spot in enumerate(self.spots) if spot.prompt in chosen]


def quarter(ground: Ground) -> int:
    """A quarter of the usual length: 128 tokens for 512."""
    return max(2, ground.tokens // 4)
