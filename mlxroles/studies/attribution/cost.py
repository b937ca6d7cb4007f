"""What an attribution run costs in layer calls, against an exact sweep of the same cells.

A layer call is one layer over one whole prompt. A run that begins at a later layer counts from
there, one that begins at a later position in proportion; a backward counts as two forwards.
"""

from dataclasses import dataclass

from mlxroles.anatomy import JOIN_LATE, START_LATE, forbidden_by_type
from mlxroles.attribution.integrate import ways
from mlxroles.engine.sweep import worth
from mlxroles.models.implementation import module_name
from mlxroles.studies.attribution.document import GRADIENT
from mlxroles.studies.attribution.grid import DIRECTIONS, HEAD_SITES, AttributionGrid
from mlxroles.studies.inputs import Encoded
from mlxroles.studies.subject import Subject, attention_heads, key_heads
from mlxroles.studies.timed import sizes
from mlxroles.timing import NOTHING, Work
from mlxroles.timing.work import passes

BY_HAND, WEIGHTS = frozenset({"q", "k", "pattern"}), 6.0
"""Sites whose estimates need the attention weights, and what attention costs with these."""
STARTED = 0.6
"""Share of a prompt that exact runs compute, about: they start where they are edited."""


@dataclass(frozen=True)
class Cost:
    """Layer calls of a planned run, both directions and all prompts together."""

    gradient_layers: int
    """Layers through which gradients are taken."""
    layer_calls: int
    """Of the clean runs and the gradients."""
    cells: int
    """Cells that are estimated."""
    exact_layer_calls: int
    """Of the clean runs and an exact sweep of these cells, about."""
    exact_runs: int
    """Of ``--verify``, at most."""
    exact_runs_layer_calls: int
    """Of these, about."""
    work: Work
    """Of all of it, for an estimate of the time; the weights' loading left out."""

    @classmethod
    def of(cls, subject: Subject, grid: AttributionGrid) -> "Cost":
        """What the run of a grid costs."""
        return _Count(subject, grid).cost()


class _Count:
    """The sums behind a cost."""

    def __init__(self, subject: Subject, grid: AttributionGrid) -> None:
        self.grid, self.n_layers, self.sizes = grid, subject.n_layers, sizes(subject)
        heads, kv_heads = max(attention_heads(subject), 1), max(key_heads(subject), 1)
        self.heads = {s: kv_heads if s in ("k", "v") else heads for s in HEAD_SITES}
        forbidden = forbidden_by_type(module_name(next(iter(subject.sides.values())).config))
        self.joins_late, self.starts_late = (s not in forbidden for s in (JOIN_LATE, START_LATE))

    def cost(self) -> Cost:
        """All of it."""
        clean = 2 * len(self.grid.prompts) * self.n_layers
        gradients = sum(map(self._gradient_layers, self.grid.prompts))
        cells, exact = self._exact()
        runs, calls = self._verified()
        work = sum((self._work(prompt, calls, runs) for prompt in self.grid.prompts), NOTHING)
        return Cost(
            gradient_layers=gradients,
            layer_calls=clean + GRADIENT * gradients,
            cells=cells,
            exact_layer_calls=clean + round(exact),
            exact_runs=runs,
            exact_runs_layer_calls=calls,
            work=work,
        )

    def _work(self, prompt: Encoded, calls: int, runs: int) -> Work:
        """Of one prompt: clean runs, gradients, and its part of the exact runs."""
        n, length, share = self.n_layers, prompt.n_tokens, len(self.grid.prompts)
        clean = passes(self.sizes, rows=1, length=length, times=2)
        work = clean + passes(
            self.sizes, rows=1, length=length, times=GRADIENT * self._gradient_layers(prompt) / n
        )
        if BY_HAND.intersection(self.grid.sites):
            work += Work(pairs=(WEIGHTS - 1) * work.pairs)
        if runs:
            whole = passes(self.sizes, rows=1, length=length, times=calls / n / share)
            together = max(1, worth() // length)
            work += clean + whole * STARTED + Work(blocks=whole.blocks * (1 / together - STARTED))
        heads = len(DIRECTIONS) + 2 + runs / share
        return work + Work(unembeds=heads, reads=heads, measures=heads)

    def _gradient_layers(self, prompt: Encoded) -> int:
        grid, n = self.grid, self.n_layers
        found = n * (grid.edges + (len(grid.sites) if grid.ig > 1 else 1))
        for site in grid.integrated:
            shape = (1, prompt.n_tokens, self.heads.get(site, 1), 1)
            if site == "pattern":
                shape = (1, self.heads[site], prompt.n_tokens, prompt.n_tokens)
            rows = ways((site, 0), shape) * grid.ig
            found += rows * sum(n - layer if self.joins_late else n for layer in grid.layers)
        return len(DIRECTIONS) * found

    def _exact(self) -> tuple[int, float]:
        """Cells, and layer calls of an exact sweep that resumes at each of them."""
        cells, calls = 0, 0.0
        for p, prompt in enumerate(self.grid.prompts):
            for site in self.grid.sites:
                each = prompt.n_tokens if self.grid.positions(site) == "each" else 1
                each *= len(DIRECTIONS) * self.heads.get(site, 1)
                cells += each * len(self.grid.layers)
                left = sum(self._left(site, layer) for layer in self.grid.layers)
                calls += each * left * self._share(p, site)
        return cells, calls

    def _verified(self) -> tuple[int, int]:
        if self.grid.verify is None:
            return 0, 0
        groups = len(self.grid.sites) + self.grid.edges
        runs = 2 * self.grid.verify * groups * len(DIRECTIONS) * len(self.grid.prompts)
        left = sum(self._left("z", layer) for layer in self.grid.layers) / len(self.grid.layers)
        return runs, round(runs * left)

    def _left(self, site: str, layer: int) -> int:
        """Layers that a run patched there has to compute."""
        if not self.joins_late:
            return self.n_layers
        return self.n_layers - layer - (site == "resid_post")

    def _share(self, p: int, site: str) -> float:
        """Share of the prompt, in the mean of a site's cells, that a patched run computes."""
        length = self.grid.prompts[p].n_tokens
        if not self.starts_late:
            return 1.0
        if self.grid.positions(site) == "each":
            return (length + 1) / (2 * length)
        chosen = self.grid.chosen(p, site)
        return 1.0 if chosen is None else (length - min(chosen)) / length
