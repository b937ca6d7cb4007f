"""Reads the stored cells of an attribution run: levels, estimates, edges, exact effects."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import IntegrityError
from mlxroles.probes.effects import MIN_GAP
from mlxroles.store.folder import Record
from mlxroles.studies.attribution import edges
from mlxroles.studies.attribution.grid import AttributionGrid, Numbers, summed

Values = Mapping[str, Any]
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
    """The finished cells of a run, those of earlier commands with other options among them.

    Args:
        grid: What the run is about.
        records: What the journal says.
        read: Gives the arrays of a cell.

    Raises:
        IntegrityError: a stored cell lacks its coordinates.
    """

    def __init__(self, grid: AttributionGrid, records: Iterable[Record], read: ReadArrays) -> None:
        self.grid, self.read = grid, read
        self._found: dict[tuple[str, str, int, str | None], list[Record]] = {}
        for record in (record for record in records if record.status == "ok"):
            c: Mapping[str, Any] = record.coords
            if not {"step", "direction", "prompt"} <= c.keys():
                raise IntegrityError(f"the stored cell {record.id} has no coordinates")
            key = str(c["step"]), str(c["direction"]), int(c["prompt"]), c.get("site")
            if key[2] < len(grid.prompts) and key[3] in (None, *grid.sites):
                self._found.setdefault(key, []).append(record)

    def packed(self) -> list[tuple[Record, dict[str, Any]]]:
        """The cells with arrays, and their coordinates with the prompt's name.

        The levels, which are the same in every site's, come with the first alone.
        """
        found, known = [], set()
        for (step, direction, p, _), records in self._found.items():
            for record in records if step in ("estimate", "edges") else ():
                one = replace(record, values={}) if (step, direction, p) in known else record
                known.add((step, direction, p))
                found.append((one, {"prompt": self.grid.prompts[p].id, "direction": direction}))
        return found

    @property
    def verified(self) -> int | None:
        """The largest K of which exact runs are stored; None without any."""
        steps = [records for key, records in self._found.items() if key[0].startswith("verify")]
        return max((_k(record) for records in steps for record in records), default=None)

    def prompts(self, direction: str, step: str = "estimate", site: str | None = None) -> list[int]:
        """Numbers of the prompts of which this step is stored, of one site or of any."""
        return sorted(
            {
                p
                for s, d, p, at in self._found
                if (s, d) == (step, direction) and (site is None or at in (site, None))
            }
        )

    def values(self, direction: str, prompt: int, step: str = "estimate") -> Mapping[str, Any]:
        """The numbers of a stored cell; the levels are the same in every site's."""
        return self._records(direction, prompt, step)[0].values

    def gradients(self, direction: str, prompt: int) -> float:
        """Gradients through the whole model that the estimates of a prompt took."""
        records = self._records(direction, prompt, "estimate")
        return sum(_number(record, "gradients") for record in records)

    def arrays(self, direction: str, prompt: int, step: str = "estimate") -> Arrays:
        """The arrays of a prompt's cells of a step, of all sites."""
        found: dict[str, NDArray[np.floating]] = {}
        for record in self._records(direction, prompt, step):
            found |= self.read(record.id)
        return found

    def _records(self, direction: str, prompt: int, step: str) -> list[Record]:
        where = (step, direction, prompt)
        return [r for key, records in self._found.items() if key[:3] == where for r in records]

    def exact(self, direction: str, step: str, site: str | None = None) -> list[list[Values]]:
        """Cells that were run exactly, each with a row per prompt.

        Those of the largest K come first and say whether a cell is one of the largest; what a
        smaller K drew besides follows.
        """
        runs = [
            (-_k(record), p, record)
            for (s, d, p, at), records in self._found.items()
            if (s, d, at) == (step, direction, site)
            for record in records
        ]
        found: dict[str, dict[int, Values]] = {}
        for _, p, record in sorted(runs, key=lambda run: run[:2]):
            rows: Any = record.values["rows"]
            for row in rows:
                place = str({name: at for name, at in row.items() if name not in _SAID})
                found.setdefault(place, {}).setdefault(p, row)
        return [list(rows.values()) for rows in found.values()]

    def levels(self, direction: str) -> Levels:
        """The metric of both unpatched models, for the stored prompts in order."""
        rows = [self.values(direction, p) for p in self.prompts(direction)]
        one, other = (np.array([r[n] for r in rows], dtype=np.float64) for n in _LEVELS)
        return Levels(one, other)

    def estimates(self, direction: str) -> dict[str, Numbers]:
        """Site -> estimates of its cells [stored prompt, *axes of the site].

        NaN of a prompt whose other sites alone are stored so far.
        """
        found: dict[str, list[Numbers | None]] = {site: [] for site in self.grid.sites}
        for p in self.prompts(direction):
            arrays = self.arrays(direction, p)
            for site, rows in found.items():
                rows.append(self.grid.cut(p, site, arrays[site]) if site in arrays else None)
        return {
            site: _stacked(rows) for site, rows in found.items() if any(r is not None for r in rows)
        }

    def over_positions(self, direction: str, site: str) -> Numbers:
        """Estimates summed over the positions that count [stored prompt, layer] or with heads."""
        rows: list[Numbers | None] = []
        for p in self.prompts(direction):
            array = self.arrays(direction, p).get(site)
            whole = None if array is None else np.asarray(array, np.float64)
            rows.append(None if whole is None else summed(whole, self.grid.chosen(p, site)))
        return _stacked(rows)

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
        return edges.kept(total / len(ours), sources, targets, self.grid.layers)

    def edge_scores(self, direction: str, prompt: int) -> NDArray[np.floating]:
        """One prompt's scores [source, target], of all layers."""
        return self.arrays(direction, prompt, "edges")["edges"]


_LEVELS = ("recipient", "donor")
_SAID = ("kind", "estimate", "exact")
"""What a row says of its cell, beside where it is."""


def _k(record: Record) -> int:
    return int(str(record.coords.get("k", 0)))


def _number(record: Record, name: str) -> float:
    value: Any = record.values[name]
    return float(value)


def _stacked(rows: Sequence[Numbers | None]) -> Numbers:
    """Rows of one shape [row, ...], NaN for those that are missing."""
    known = next(row for row in rows if row is not None)
    return np.stack([np.full(known.shape, np.nan) if row is None else row for row in rows])
