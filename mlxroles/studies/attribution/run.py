"""Computes the cells of an attribution run on whichever models are in memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlxroles import attribution, engine, probes
from mlxroles.attribution import Node
from mlxroles.backend import mx
from mlxroles.documents import donor, recipient
from mlxroles.edits import Edit
from mlxroles.events import Cell
from mlxroles.runner import Result
from mlxroles.stats import nan_mean
from mlxroles.studies.attribution import edges
from mlxroles.studies.attribution.grid import (
    DIRECTIONS,
    STEPS,
    STREAM_SITES,
    AttributionGrid,
    Numbers,
)
from mlxroles.studies.attribution.stored import Stored
from mlxroles.studies.attribution.verify import choose
from mlxroles.studies.subject import Subject, attention_heads, stream_width

STATE_BYTES = 2 << 30
"""States of prompts that may be held at once; beyond it prompts go in groups."""

SILENCE = 5.0
"""Seconds after which the progress of a long cell is told."""

EDGE_SITES = ("z", "mlp_out", "resid_pre")
"""What the donor's run must leave behind for edges: what parts put into the stream."""


@dataclass(frozen=True)
class Batch:
    """One cell and the group of prompts that it belongs to."""

    cells: tuple[Cell, ...]
    group: int


class AttributionWork:
    """The study's computing half: batches of pending cells in, results out.

    Args:
        subject: The two models.
        grid: What is estimated.
        targets: What the metric is about.
        metric: Of ``attribution.METRICS``.
        decode: Text of a token id.
        seed: Of the choice of cells that are run exactly.
        stored: Gives the cells that are stored by now.
        most: Bytes that exact runs may have in use; None for a share of the device's memory.
    """

    def __init__(
        self,
        subject: Subject,
        grid: AttributionGrid,
        targets: probes.Targets,
        *,
        metric: str,
        decode: Callable[[int], str],
        seed: int,
        stored: Callable[[], Stored],
        most: int | None = None,
    ) -> None:
        self.subject, self.grid, self.targets = subject, grid, targets
        self.metric, self.seed = metric, seed
        self.decode, self.stored, self.most = decode, stored, most
        self.kept = kept_sites(grid)
        self._states: dict[tuple[str, int, bool], engine.Clean] = {}
        self._chosen: dict[tuple[str, str], list[tuple[tuple[int, ...], str]]] = {}
        self._means: dict[str, dict[str, Numbers]] = {}

    # --- batches ------------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[Batch]:
        """One batch per cell; recipients change as rarely as memory allows."""
        wanted = {cell.id for cell in pending}
        return [Batch((cell,), group) for group, cell in self._order if cell.id in wanted]

    @cached_property
    def _order(self) -> list[tuple[int, Cell]]:
        """(group, cell) of the whole run in computing order; exact runs follow all estimates."""
        cells = self.grid.cells()
        per_group = max(1, STATE_BYTES // (2 * state_bytes(self.subject, self.grid)))
        groups = -(-len(self.grid.prompts) // per_group)

        def key(cell: Cell) -> tuple[int, int, int, int]:
            c = cell.coords
            late = str(c["step"]).startswith("verify")
            group = int(c["prompt"]) // per_group + late * groups
            order = DIRECTIONS.index(str(c["direction"])), int(c["prompt"])
            return group, *order, STEPS.index(str(c["step"]))

        return [(key(cell)[0], cell) for cell in sorted(cells, key=key)]

    # --- states -------------------------------------------------------------------------------

    def prepare(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Runs the clean runs that a group of batches needs, one model after the other."""
        wanted = sorted({key for batch in batches for key in self._needs(batch.cells[0])})
        self._states = {key: state for key, state in self._states.items() if key in wanted}
        for side, p, resumed in wanted:
            self._state(side, p, resumed=resumed)
            yield

    @staticmethod
    def _needs(cell: Cell) -> list[tuple[str, int, bool]]:
        """Clean runs behind a cell: (side, prompt, whether patched runs start from it)."""
        c = cell.coords
        resumed = str(c["step"]).startswith("verify")
        return [(side, int(c["prompt"]), resumed) for side in ("base", "instruct")]

    def _state(self, side: str, p: int, *, resumed: bool) -> engine.Clean:
        key = (side, p, resumed)
        if key not in self._states:
            model = self.subject.model(side)
            tokens, read = self.tokens(p)
            model.check_tokens([tokens])
            sites = [site for site in self.kept if self._has(side, site)]
            self._states[key] = engine.clean(
                model.network,
                mx.array([tokens]),
                read=read,
                site=sites,
                layers=None if self.grid.edges else self.grid.layers.layers,
                recipient=resumed,
            )
        return self._states[key]

    def _has(self, side: str, site: str) -> bool:
        """Whether any layer of a model has a site; where none does, the reader is told."""
        network = self.subject.model(side).network
        missing = [network.block(i).missing for i in range(len(network.layers))]
        if any(site not in block for block in missing):
            return True
        text = f"{site} is left out: {missing[0][site]}"
        if text not in self.subject.notes:
            self.subject.notes.append(text)
        return False

    def tokens(self, p: int) -> tuple[list[int], list[int]]:
        """What is run, and the positions at which the metric reads logits.

        A string that is measured whole stands after the prompt, but for its last token.
        """
        ids = list(self.grid.prompts[p].ids)
        if self.metric == "p_chain":
            ids += self.targets.head.chain[:-1]
        return ids, list(range(self.grid.prompts[p].n_tokens - 1, len(ids)))

    # --- computing ----------------------------------------------------------------------------

    def compute(self, batch: Batch) -> Iterator[Result]:
        """The cell of a batch with its numbers."""
        cell = batch.cells[0]
        c = cell.coords
        job = _Job(self, str(c["direction"]), int(c["prompt"]), str(c["step"]))
        step = str(c["step"])
        if step == "estimate":
            yield job.estimate(cell, c.get("site"))
        elif step == "edges":
            yield job.edges(cell)
        elif step == "verify":
            yield job.verify(cell, str(c["site"]))
        else:
            yield job.verify_edges(cell)

    def chosen(self, direction: str, site: str) -> list[tuple[tuple[int, ...], str]]:
        """Cells of a site, or edges, that are run exactly: the same ones for every prompt."""
        key = (direction, site)
        if key not in self._chosen:
            stored = self.stored()
            if site == "edges":
                mean = stored.mean_edges(direction)
            else:
                if direction not in self._means:
                    found = stored.estimates(direction)
                    self._means[direction] = {name: nan_mean(v) for name, v in found.items()}
                mean = self._means[direction][site]
            order = (*self.grid.sites, "edges").index(site)
            rng = np.random.default_rng([self.seed, DIRECTIONS.index(direction), order])
            assert self.grid.verify is not None
            self._chosen[key] = choose(mean, self.grid.verify, rng)
        return self._chosen[key]


class _Job:
    """One stored cell: a prompt, a direction and a step."""

    def __init__(self, work: AttributionWork, direction: str, p: int, step: str) -> None:
        self.work, self.direction, self.p = work, direction, p
        resumed = step.startswith("verify")
        self.given = work._state(donor(direction), p, resumed=resumed)
        self.own = work._state(recipient(direction), p, resumed=resumed)
        self.network = work.subject.model(recipient(direction)).network
        self.tokens, self.read = work.tokens(p)
        assert self.own.logits is not None
        assert self.given.logits is not None
        self.clean, self.goal = np.asarray(self.own.logits), np.asarray(self.given.logits)
        if not (np.isfinite(self.clean).all() and np.isfinite(self.goal).all()):
            raise FloatingPointError("the logits are not all finite numbers")
        self.metric = attribution.metric(
            work.metric, work.targets, clean_logits=mx.array(self.clean)
        )

    def level(self, logits: np.ndarray) -> float:
        """The metric of logits [1, n_read, vocab]."""
        return float(np.array(self.metric(mx.array(logits)))[0])

    def estimate(self, cell: Cell, site: object) -> Result:
        """First-order estimates at every place of one site, or of every one."""
        grid = self.work.grid
        sites = [one for one in grid.sites if site in (None, one)]
        layers = list(grid.layers.layers)
        given = {
            site: {i: array for i, array in self.given.sites[site].items() if i in grid.layers}
            for site in sites
            if site in self.given.sites
        }
        levels = self._levels()
        if not any(given.values()):
            return Result(cell, levels | {"gradients": 0.0}, {})
        found = attribution.estimate(
            self.network,
            mx.array([self.tokens]),
            {site: arrays for site, arrays in given.items() if arrays},
            self.metric,
            read=self.read,
            ig=grid.ig if site is None or site in grid.integrated else 1,
        )
        arrays = {
            site: np.ascontiguousarray(array[0][layers], dtype=np.float32)
            for site, array in found.cells.items()
        }
        values = levels | {"gradients": float(found.gradients)}
        return Result(cell, values, arrays, tokens=round(len(self.tokens) * found.passes))

    def _levels(self) -> dict[str, Any]:
        """The metric and other measures of both unpatched models."""
        levels = {"recipient": self.level(self.clean), "donor": self.level(self.goal)}
        if not all(map(np.isfinite, levels.values())):
            raise FloatingPointError(f"{self.work.metric} is no finite number here")
        return {
            **levels,
            "recipient_measures": self._measures(self.clean),
            "donor_measures": self._measures(self.goal),
        }

    def _measures(self, logits: np.ndarray) -> dict[str, float]:
        found = probes.measure(logits[0][0], self.work.targets, decode=self.work.decode)
        return {name: found[name] for name in ("p_first_token", "log_odds", "entropy")}

    def edges(self, cell: Cell) -> Result:
        """First-order estimates of every edge."""
        found = attribution.edges(
            self.network, mx.array([self.tokens]), self.given.sites, self.metric, read=self.read
        )
        ends = {
            name: [list(edges.triple(n.layer, n.part, n.head)) for n in nodes]
            for name, nodes in (("sources", found.sources), ("targets", found.targets))
        }
        arrays = {"edges": np.ascontiguousarray(found.scores[0], dtype=np.float32)}
        return Result(cell, ends, arrays, tokens=len(self.tokens))

    def verify(self, cell: Cell, site: str) -> Result:
        """Exact effects of the chosen cells of a site."""
        work, grid = self.work, self.work.grid
        stored = work.stored()
        if self.p not in stored.prompts(self.direction, site=site):
            raise FloatingPointError("there are no finite estimates that could be verified")
        arrays = stored.arrays(self.direction, self.p)
        if site not in arrays:
            return Result(cell, {"rows": []})
        chosen = work.chosen(self.direction, site)
        estimates = grid.cut(self.p, site, arrays[site])
        rows, runs = [], []
        for at, kind in chosen:
            where = dict(zip(grid.axes(site), at, strict=True))
            where["layer"] = grid.layers.layers[where["layer"]]
            value = float(estimates[at])
            rows.append({"site": site, **where, "kind": kind, "estimate": value})
            runs.append(engine.Row((self._edit(site, where),)))
        return self._exact(cell, rows, runs)

    def _edit(self, site: str, where: dict[str, int]) -> Edit:
        positions = self.work.grid.chosen(self.p, site)
        if "position" in where:
            positions = (where["position"],)
        heads = None if site in STREAM_SITES else (where["head"],)
        return engine.transplant(self.given, site, where["layer"], positions=positions, heads=heads)

    def verify_edges(self, cell: Cell) -> Result:
        """Exact effects of the chosen edges: the target alone sees the source's donor output."""
        stored = self.work.stored()
        if self.p not in stored.prompts(self.direction, "edges"):
            raise FloatingPointError("there are no finite edges that could be verified")
        chosen = self.work.chosen(self.direction, "edges")
        sources, targets = stored.edge_ends(self.direction)
        scores = stored.edge_scores(self.direction, self.p)
        pairs = [(Node(*sources[s]), Node(*targets[t])) for (s, t), _ in chosen]
        rows = [
            {
                "source": edges.name(sources[s]),
                "target": edges.name(targets[t]),
                "kind": kind,
                "estimate": float(scores[s, t]),
            }
            for (s, t), kind in chosen
        ]
        runs = attribution.path_rows(self.network, self.own, self.given.sites, pairs)
        return self._exact(cell, rows, runs)

    def _exact(self, cell: Cell, rows: list[dict[str, Any]], runs: Sequence[engine.Row]) -> Result:
        """The rows with the exact effect of each run on the metric."""
        before, said = self.level(self.clean), time.monotonic()
        answers = engine.sweep(self.network, self.own, runs, memory=self.work.most)
        for found, (index, answer) in enumerate(answers, start=1):
            rows[index]["exact"] = self.level(answer.logits[None]) - before
            if time.monotonic() - said > SILENCE:
                said = time.monotonic()
                self.work.subject.on_load(f"{found} of {len(runs)} cells run exactly")
        return Result(cell, {"rows": rows}, tokens=len(self.tokens) * len(runs))


def kept_sites(grid: AttributionGrid) -> list[str]:
    """Sites whose arrays the clean runs must keep."""
    return list(dict.fromkeys([*grid.sites, *(EDGE_SITES if grid.edges else ())]))


def state_bytes(subject: Subject, grid: AttributionGrid) -> int:
    """Bytes, about, that the kept arrays of the longest prompt take in one model."""
    longest = max(prompt.n_tokens for prompt in grid.prompts)
    stream = len([site for site in kept_sites(grid) if site != "pattern"]) * longest
    numbers = stream * stream_width(subject)
    if "pattern" in grid.sites:
        numbers += attention_heads(subject) * longest**2
    return max(1, 4 * subject.n_layers * numbers)
