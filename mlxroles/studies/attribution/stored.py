"""Reads the stored cells of an attribution run: levels, estimates, edges, exact effects."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import IntegrityError
from mlxroles.probes.effects import MIN_GAP
from mlxroles.store.folder import Record
from mlxroles.studies import attribution_edges
from mlxroles.studies.attribution import AttributionGrid, Numbers, summed

Arrays = Mapping[str, NDArray[np.floating]]
ReadArrays = Callable[[str], Arrays]
"""The arrays of a stored cell by its id."""


@dataclass(frozen=True, eq=False)
class Levels:
    """The metric of the unpatched models [prompt]; NaN for a prompt without a stored cell."""

    recipient: Numbers
    donor: Numbers

    @property
    def gap(self) -> Numbers:
        """Donor less recipient [prompt]; NaN where the two hardly differ."""
        gap = self.donor - self.recipient
        return np.where(np.abs(gap) < MIN_GAP, np.nan, gap)


class Stored:
    """The finished cells of a run.

    Args:
        grid: What the run is about.
        records: What the journal says.
        read: Gives the arrays of a cell.

    Raises:
        IntegrityError: a stored cell lacks its coordinates.
    """

    def __init__(self, grid: AttributionGrid, records: Iterable[Record], read: ReadArrays) -> None:
        self.grid, self.read = grid, read
        self._found: dict[tuple[str, str, int, str | None], Record] = {}
        wanted = {cell.id for cell in grid.cells()}
        for record in records:
            if record.status != "ok" or record.id not in wanted:
                continue
            c: Mapping[str, Any] = record.coords
            if not {"step", "direction", "prompt"} <= c.keys():
                raise IntegrityError(f"the stored cell {record.id} has no coordinates")
            key = str(c["step"]), str(c["direction"]), int(c["prompt"]), c.get("site")
            self._found[key] = record

    def packed(self) -> list[tuple[Record, dict[str, Any]]]:
        """The cells with arrays, and their coordinates with the prompt's name."""
        return [
            (record, {"prompt": self.grid.prompts[p].id, "direction": direction})
            for (step, direction, p, _), record in self._found.items()
            if step in ("estimate", "edges")
        ]

    def prompts(self, direction: str, step: str = "estimate", site: str | None = None) -> list[int]:
        """Numbers of the prompts of which this step is stored."""
        where = (step, direction, site)
        return sorted(p for s, d, p, at in self._found if (s, d, at) == where)

    def values(
        self, direction: str, prompt: int, step: str = "estimate", site: str | None = None
    ) -> Mapping[str, Any]:
        """The numbers of a stored cell."""
        return self._found[step, direction, prompt, site].values

    def arrays(self, direction: str, prompt: int, step: str = "estimate") -> Arrays:
        """The arrays of a stored cell."""
        return self.read(self._found[step, direction, prompt, None].id)

    def levels(self, direction: str) -> Levels:
        """The metric of both unpatched models, for the stored prompts in order."""
        rows = [self.values(direction, p) for p in self.prompts(direction)]
        one, other = (np.array([r[n] for r in rows], dtype=np.float64) for n in _LEVELS)
        return Levels(one, other)

    def estimates(self, direction: str) -> dict[str, Numbers]:
        """Site -> estimates of its cells [stored prompt, *axes of the site]."""
        found: dict[str, list[Numbers]] = {site: [] for site in self.grid.sites}
        for p in self.prompts(direction):
            arrays = self.arrays(direction, p)
            for site, rows in found.items():
                if site in arrays:
                    rows.append(self.grid.cut(p, site, arrays[site]))
        return {site: np.stack(rows) for site, rows in found.items() if rows}

    def over_positions(self, direction: str, site: str) -> Numbers:
        """Estimates summed over the positions that count [stored prompt, layer] or with heads."""
        where = self.grid.chosen
        return np.stack(
            [
                summed(np.asarray(self.arrays(direction, p)[site], np.float64), where(p, site))
                for p in self.prompts(direction)
            ]
        )

    def edge_ends(self, direction: str) -> tuple[list[Any], list[Any]]:
        """Sources and targets of the edges, each as layer, part and head."""
        values = self.values(direction, self.prompts(direction, "edges")[0], "edges")
        return list(values["sources"]), list(values["targets"])

    def mean_edges(self, direction: str) -> Numbers:
        """Mean over prompts of the edges' scores [source, target], of the tested layers."""
        sources, targets = self.edge_ends(direction)
        ours = self.prompts(direction, "edges")
        total = np.zeros((len(sources), len(targets)))
        for p in ours:
            total += self.edge_scores(direction, p)
        return attribution_edges.kept(total / len(ours), sources, targets, self.grid.layers)

    def edge_scores(self, direction: str, prompt: int) -> NDArray[np.floating]:
        """One prompt's scores [source, target], of all layers."""
        return self.arrays(direction, prompt, "edges")["edges"]


_LEVELS = ("recipient", "donor")
