"""One attribution run from the user's words to its document: read, planned, run, written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxroles.documents import recipient
from mlxroles.errors import SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import run_id
from mlxroles.prompts import Prompt, token_texts
from mlxroles.report.attribution.rows import metric_name
from mlxroles.runner import run
from mlxroles.store.folder import RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.summary import SUMMARY, notes_of
from mlxroles.studies.attribution import edges, results
from mlxroles.studies.attribution.cost import Cost
from mlxroles.studies.attribution.document import document, same_tokens
from mlxroles.studies.attribution.grid import (
    DIRECTIONS,
    HEAD_SITES,
    SITES,
    STREAM_SITES,
    UNITS,
    AttributionGrid,
    head_axis,
    outputs,
)
from mlxroles.studies.attribution.run import AttributionWork, state_bytes
from mlxroles.studies.attribution.stored import Stored
from mlxroles.studies.inputs import encoded, targets_for
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import HEAD_KEYS, Subject, attention_heads, memory_limit
from mlxroles.studies.timed import Task, Watch, loads
from mlxroles.text import format_bytes, safe_text
from mlxroles.timing import Work
from mlxroles.versions import now, versions

HELD = 4
"""Times the attention weights of a run that their gradients need, measured."""
MOST_PATTERNS = 0.2
"""Share of the memory that attention patterns may take without being asked for by name."""


FIGURES, EDGES = 2.9, 1.0
"""Seconds of figures and report, and of those of edges; see ``timing.prediction``."""

MOST_POINTS = 64
"""Points of ``--ig`` beyond which nothing is gained."""


@dataclass(frozen=True)
class AttributionOptions:
    """What a user may say about a run; the defaults are those of the command."""

    layers: str | None = None
    site: str | None = None
    """One site instead of all."""
    positions: str | None = None
    metric: str = "log_odds"
    ig: int = 1
    edges: bool = False
    verify: int | None = None
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    seed: int = 0
    memory: int | None = None
    """As in ``PatchOptions``."""


class AttributionSweep:
    """A planned run: everything is read and checked, nothing is loaded or written yet.

    Args:
        subject: The two models.
        prompts: What to run; the same ids go through both models.
        options: The rest of the user's words.

    Raises:
        MlxrolesError: something asked for does not exist or does not fit.
    """

    def __init__(
        self, subject: Subject, prompts: Sequence[Prompt], options: AttributionOptions
    ) -> None:
        self.subject, self.options = subject, options
        if options.ig > MOST_POINTS:
            raise SpecError(
                f"--ig {options.ig}: gradients are taken at {MOST_POINTS} points at most; 3 to 8 "
                "come near the exact effects"
            )
        if options.metric == "kl" and options.ig < 2:
            raise SpecError(
                "--metric kl has no slope at the unpatched recipient, so a single gradient is 0 "
                "everywhere; add --ig 5, or take another metric"
            )
        if options.edges and options.positions not in (None, "all", "each"):
            raise SpecError(
                "--edges sums over all positions and does not go with --positions "
                f"{safe_text(options.positions)}; drop one of them"
            )
        self.targets = targets_for(subject, prompts, options.strings, options.token_ids)
        if options.site not in STREAM_SITES or options.edges:
            subject.check_same("heads", HEAD_KEYS)
        rows = encoded(subject, prompts, note=subject.notes.append)
        self.grid = AttributionGrid.read(
            rows,
            n_layers=subject.n_layers,
            sites=_sites(options),
            layers=options.layers,
            positions=options.positions,
            edges=options.edges,
            verify=options.verify,
            ig=options.ig,
        )
        if options.site is None:
            self.grid = self._without_large_patterns(self.grid)
        self.cost = Cost.of(subject, self.grid)
        self.cells = self.grid.cells()
        subject.notes += self._on_gradients()

    def _on_gradients(self) -> list[str]:
        """What ``--ig`` leaves out here, and when it is dearer than exact runs."""
        grid, found = self.grid, []
        if grid.ig == 1:
            return []
        if grid.edges:
            found.append("edges come from one gradient, whatever --ig says")
        if self.options.metric == "kl" and self.options.site is None:
            found.append(
                "heads are left out: kl has no slope at the unpatched recipient; --site z takes "
                f"{grid.ig} gradients of every head"
            )
        elif set(grid.sites) - set(grid.integrated):
            found.append(
                f"--ig {grid.ig} is for the stream's sites; heads come from one gradient, as "
                "running them exactly costs less than more of them: patch --site z --heads each"
            )
        if self.cost.layer_calls > self.cost.exact_layer_calls:
            found.append(
                f"--ig {grid.ig} costs more (about {self.cost.layer_calls} layer calls) than "
                f"running all of these {self.cost.cells} cells exactly (about "
                f"{self.cost.exact_layer_calls}): take fewer points, or --method exact"
            )
        return found

    def _without_large_patterns(self, grid: AttributionGrid) -> AttributionGrid:
        """The grid without what needs attention patterns, where they would fill the memory."""
        costly = ("q", "k", "pattern")
        longest = max(prompt.n_tokens for prompt in grid.prompts)
        heads = self.subject.n_layers * attention_heads(self.subject)
        size = HELD * 4 * heads * longest**2
        if size <= MOST_PATTERNS * (self.options.memory or memory_limit()):
            return grid
        self.subject.notes.append(
            f"q, k and pattern are left out: the attention of prompts this long would take "
            f"{format_bytes(size)}; ask for one of them with --site"
        )
        return replace(grid, sites=tuple(site for site in grid.sites if site not in costly))

    @property
    def title(self) -> str:
        """One line that names the run."""
        n = len(self.grid.prompts)
        what = self.grid.prompts[0].id if n == 1 else f"{n} prompts"
        metric = metric_name(self.options.metric)
        return f"attribution {self.subject.display}: {metric}, {what}"

    def identity(self) -> dict[str, Any]:
        """Everything that changes estimates: exact runs and edges join the run they are about."""
        grid, options = self.grid, self.options
        return {
            "kind": "attribution",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "tokenizer": self.subject.tokenizer_identity(),
            "computed_by": computed_by(),
            "prompts": [[p.id, p.digest] for p in grid.prompts],
            "layers": list(grid.layers.layers),
            "sites": list(grid.sites),
            "positions": [grid.stream_positions, grid.head_positions],
            "metric": options.metric,
            "ig": options.ig,
            "strings": self.targets.document(),
            "headline": self.targets.headline,
            "seed": options.seed,
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows: passes and layer calls against an exact sweep of the same cells."""
        n, sides = self.subject.n_layers, self.subject.sides.values()
        prompts = len(self.grid.prompts)
        cost = self.cost
        weights = sum(side.n_bytes for side in sides)
        resident = weights if self.subject.resident > 1 else max(s.n_bytes for s in sides)
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "layers": list(self.grid.layers.layers),
            "sites": list(self.grid.sites),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.grid.prompts],
            "gradients": -(-cost.gradient_layers // n),
            "passes": -(-cost.layer_calls // n),
            "layer_calls": cost.layer_calls,
            "exact_runs": cost.exact_runs,
            "exact_runs_layer_calls": cost.exact_runs_layer_calls,
            "estimated_cells": cost.cells,
            "layer_calls_of_the_exact_sweep": cost.exact_layer_calls,
            "resident_models": self.subject.resident,
            "weights_bytes": weights,
            "memory_bytes": resident + 4 * state_bytes(self.subject, self.grid),
            "disk_bytes": sum(self._array_bytes(p) for p in range(prompts)),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it.

        Cells of one run are taken to cost the same.
        """
        share = 1.0 if pending is None else len(pending) / len(self.cells)
        written = sum(self._array_bytes(p) for p in range(len(self.grid.prompts)))
        work = self.cost.work + Work(cells=len(self.cells), written=written)
        order = ("base", "instruct", *(recipient(d) for d in DIRECTIONS)) if share else ()
        results = FIGURES + EDGES * self.grid.edges
        return Task("attribution", self.subject, work * share + loads(self.subject, order), results)

    def _array_bytes(self, p: int) -> int:
        """Bytes of a prompt's stored arrays, in the run folder and packed."""
        heads = max(attention_heads(self.subject), 1)
        rows = sum(heads if site in HEAD_SITES else 1 for site in self.grid.sites)
        n_tokens = self.grid.prompts[p].n_tokens
        return 2 * len(DIRECTIONS) * 4 * rows * len(self.grid.layers) * n_tokens

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Runs what is not done yet and writes everything derived from the cells.

        Returns:
            The document, also written as ``summary.json``, and how the run ended.
        """
        watch = Watch()
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.grid.prompts}
        with place.open(self.subject, self.identity(), token_ids) as folder:
            self.subject.tell(emit)
            work = AttributionWork(
                self.subject,
                self.grid,
                self.targets,
                metric=self.options.metric,
                decode=lambda token: token_texts([token], self.subject.tokenizer)[0],
                seed=self.options.seed,
                stored=lambda: self._stored(folder),
                most=self.options.memory,
            )
            notes = self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            finished = run(work, self.cells, folder, emit, title=self.title, **how)
            return self._write(folder, finished, watch), finished

    def _stored(self, folder: RunFolder) -> Stored:
        # by name: in whatever order they were computed, the results are the same
        records = sorted(folder.records().values(), key=lambda record: record.id)
        return Stored(self.grid, records, folder.arrays)

    def _write(self, folder: RunFolder, finished: RunFinished, watch: Watch) -> dict[str, Any]:
        """Everything derived: document, packed file, figures and report."""
        known = folder.records()
        records = [known[cell.id] for cell in self.cells if cell.id in known]
        stored = self._stored(folder)
        texts = [token_texts(list(p.ids), self.subject.tokenizer) for p in self.grid.prompts]
        about = {
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "d1_group": self.subject.d1_group,
            "n_layers": self.subject.n_layers,
            "headline": self.targets.headline,
            "strings": self.targets.document(),
            "timestamp": now(),
            "versions": versions(),
            "interrupted": finished.interrupted,
            "failed_cells": [{"cell": r.id, "error": r.error} for r in records if r.status != "ok"],
            "notes": notes_of(folder, self.subject.notes),
        }
        doc = document(
            stored,
            metric=self.options.metric,
            ig=self.options.ig,
            tokens=same_tokens(texts, self.grid),
            seed=self.options.seed,
            about=about,
        )
        pack(
            folder,
            outputs(
                self.grid,
                UNITS.get(self.options.metric, "1"),
                edges=any(stored.prompts(direction, "edges") for direction in DIRECTIONS),
            ),
            **self._packed(stored),
        )
        results.write(folder.path, doc)
        doc["estimate"] = watch.stop(finished)
        folder.write_json(SUMMARY, doc)
        return doc

    def _packed(self, stored: Stored) -> dict[str, Any]:
        """Coordinates of the packed file, and the stored cells as it wants them."""
        longest, heads = 1, {"head": 1, "kv_head": 1}
        ends: dict[str, list[str]] = {}
        for direction in DIRECTIONS:
            for p in stored.prompts(direction):
                for site, array in stored.arrays(direction, p).items():
                    longest = max(longest, array.shape[-1])
                    if site in HEAD_SITES:
                        axis = head_axis(site)
                        heads[axis] = max(heads[axis], array.shape[1])
            if stored.prompts(direction, "edges"):
                both = stored.edge_ends(direction)
                for axis, listed in zip(("source", "target"), both, strict=True):
                    ends[axis] = [edges.name(end) for end in listed]
        axes: dict[str, Any] = {
            "prompt": [p.id for p in self.grid.prompts],
            "direction": list(DIRECTIONS),
            "layer": list(self.grid.layers.layers),
            "position": longest,
            **heads,
            "source": ends.get("source", ["none"]),
            "target": ends.get("target", ["none"]),
        }
        rows = [replace(record, coords=named) for record, named in stored.packed()]
        return {"coords": axes, "records": rows}


def _sites(options: AttributionOptions) -> tuple[str, ...]:
    """Sites that are estimated; one gradient of kl is 0 everywhere, so that it has streams only."""
    if options.site is not None:
        return (options.site,)
    return STREAM_SITES if options.metric == "kl" else SITES
