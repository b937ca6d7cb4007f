"""W6 once more: the same cells estimated at once by one backward pass, not run."""

from collections.abc import Collection
from typing import Any

import numpy as np

from mlxroles import attribution, engine
from mlxroles.attribution.metrics import metric
from mlxroles.bench.ground import DONOR, RECIPIENT, Ground
from mlxroles.bench.sweeps import EveryPosition
from mlxroles.bench.work import Ran, Work
from mlxroles.probes import targets_from_ids


class Attribution(Work):
    """Attribution patching of W6's cells: the change of one token's log-odds, in nats.

    Args:
        ground: The models.
        exact: W6 itself, whose effects the estimates are ranked against once it has run.
    """

    name = "W6 attribution"
    what = "the same, estimated"
    goal = 1.0
    unit = "nats"

    def __init__(self, ground: Ground, exact: EveryPosition) -> None:
        super().__init__(ground)
        self.exact = exact
        self.estimates, self.unpatched = np.zeros(0), 0.0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.exact.length

    @property
    def n_cells(self) -> int:
        """Cells that are estimated."""
        return self.exact.n_cells

    @property
    def sample(self) -> list[int]:
        """None: the plain twin is W6's own, which runs every cell."""
        return []

    def least(self) -> float:
        """The donor's run, the recipient's, and a backward pass that costs as much as one."""
        return 3.0 * self.ground.n_layers

    def run(self, kept: Collection[int]) -> Ran:
        """One clean run of the donor, one forward and one backward of the recipient."""
        engine.reset_calls()
        read = [self.length - 1]
        donor = engine.clean(
            self.ground.network(DONOR),
            self.ground.prompts(1, self.length, DONOR),
            read=read,
            site="resid_post",
            recipient=False,
            logits=False,
        )
        found = attribution.estimate(
            self.ground.network(RECIPIENT),
            self.ground.prompts(1, self.length),
            donor.sites,
            metric("log_odds", targets_from_ids([EveryPosition.TOKEN])),
            read=read,
            sites=["resid_post"],
        )
        estimates = found.cells["resid_post"][0].ravel()
        self.estimates, self.unpatched = estimates, float(found.value[0])
        made = engine.calls().made + found.passes * self.ground.n_layers
        return Ran({cell: estimates[cell : cell + 1] for cell in kept}, made)

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """Not run: see ``sample``."""
        return self.exact.plain(state, cell)

    def note(self) -> str:
        """How well the estimates rank the cells."""
        effects = self.exact.odds - self.unpatched
        known = effects.size == self.estimates.size and np.isfinite(effects).all()
        if not known or not np.isfinite(self.estimates).all():
            return "first-order estimate"
        from scipy.stats import spearmanr

        rank = float(spearmanr(self.estimates, effects).statistic)
        return f"first-order estimate; rank correlation {rank:.2f} to W6 exactly"
