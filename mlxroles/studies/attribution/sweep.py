"""One attribution run from the user's words to its document: read, planned, run, written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxroles.attribution.integrate import ways
from mlxroles.errors import SpecError
from mlxroles.events import Emit, RunFinished, Stage
from mlxroles.plan import run_id
from mlxroles.prompts import Prompt, token_texts
from mlxroles.runner import run
from mlxroles.store.folder import RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.summary import SUMMARY, notes_of
from mlxroles.studies import attribution_edges, attribution_results
from mlxroles.studies.attribution import (
    DIRECTIONS,
    HEAD_SITES,
    SITES,
    STREAM_SITES,
    UNITS,
    AttributionGrid,
    head_axis,
    outputs,
)
from mlxroles.studies.attribution_document import document, same_tokens
from mlxroles.studies.attribution_run import AttributionWork, state_bytes
from mlxroles.studies.attribution_stored import Stored
from mlxroles.studies.inputs import Encoded, encoded, targets_for
from mlxroles.studies.place import RunPlace, computed_by
from mlxroles.studies.subject import HEAD_KEYS, Subject, attention_heads, memory_limit
from mlxroles.text import format_bytes, safe_text
from mlxroles.versions import now, versions

BACKWARD = 2
"""Forward passes that one gradient costs, about: no weight needs one."""

MOST_PATTERNS = 0.2
"""Share of the memory that attention patterns may take without being asked for by name."""


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
            sites=SITES if options.site is None else (options.site,),
            layers=options.layers,
            positions=options.positions,
            edges=options.edges,
            verify=options.verify,
        )
        if options.edges and options.ig > 1:
            subject.notes.append("edges come from one gradient, whatever --ig says")
        if options.site is None:
            self.grid = self._without_large_patterns(self.grid)
        self.cells = self.grid.cells()

    def _without_large_patterns(self, grid: AttributionGrid) -> AttributionGrid:
        """The grid without attention patterns where they would fill the memory."""
        without = replace(grid, sites=tuple(site for site in grid.sites if site != "pattern"))
        size = 3 * (state_bytes(self.subject, grid) - state_bytes(self.subject, without))
        if size <= MOST_PATTERNS * memory_limit():
            return grid
        self.subject.notes.append(
            f"pattern is left out: the attention of prompts this long would take "
            f"{format_bytes(size)}; ask for it with --site pattern"
        )
        return without

    @property
    def title(self) -> str:
        """One line that names the run."""
        n = len(self.grid.prompts)
        what = self.grid.prompts[0].id if n == 1 else f"{n} prompts"
        return f"attribution {self.subject.display}: {self.options.metric}, {what}"

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
        gradients = sum(map(self._gradients, self.grid.prompts))
        passes = 2 * prompts + round(BACKWARD * gradients)
        exact_cells, exact_calls = self._exact()
        verified, verify_calls = self._verified()
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
            "gradients": round(gradients),
            "passes": passes,
            "layer_calls": passes * n,
            "exact_runs": verified,
            "exact_runs_layer_calls": verify_calls,
            "estimated_cells": exact_cells,
            "layer_calls_of_the_exact_sweep": exact_calls + 2 * prompts * n,
            "resident_models": self.subject.resident,
            "weights_bytes": weights,
            "memory_bytes": resident + 4 * state_bytes(self.subject, self.grid),
            "disk_bytes": sum(self._array_bytes(p) for p in range(prompts)),
        }

    def _gradients(self, prompt: Encoded) -> float:
        """Gradients through the whole model that a prompt takes, both directions."""
        heads = max(attention_heads(self.subject), 1)
        found = 1.0 + self.grid.edges
        if self.options.ig > 1:
            for site in self.grid.sites:
                shape = (1, heads, 1, 1) if site == "pattern" else (1, prompt.n_tokens, heads, 1)
                calls = sum(self.subject.n_layers - layer for layer in self.grid.layers)
                each = ways((site, 0), shape) * self.options.ig
                found += each * calls / self.subject.n_layers
        return len(DIRECTIONS) * found

    def _exact(self) -> tuple[int, int]:
        """Cells that are estimated, and layer calls of an exact sweep that resumes at each."""
        heads = max(attention_heads(self.subject), 1)
        cells = calls = 0
        for p in self.grid.prompts:
            for site in self.grid.sites:
                each = p.n_tokens if self.grid.positions(site) == "each" else 1
                each *= len(DIRECTIONS) * (heads if site in HEAD_SITES else 1)
                cells += each * len(self.grid.layers)
                calls += each * sum(self._left(site, layer) for layer in self.grid.layers)
        return cells, calls

    def _verified(self) -> tuple[int, int]:
        """Exact runs of ``--verify``, and their layer calls, about."""
        if self.grid.verify is None:
            return 0, 0
        groups = len(self.grid.sites) + self.grid.edges
        runs = 2 * self.grid.verify * groups * len(DIRECTIONS) * len(self.grid.prompts)
        tested = list(self.grid.layers)
        left = sum(self._left("z", layer) for layer in tested) / len(tested)
        return runs, round(runs * left)

    def _left(self, site: str, layer: int) -> int:
        """Layers that a run patched there has to compute."""
        return self.subject.n_layers - layer - (site == "resid_post")

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
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.grid.prompts}
        with place.open(self.subject, self.identity(), token_ids) as folder:
            self.subject.on_load = lambda text: emit(Stage(text))
            work = AttributionWork(
                self.subject,
                self.grid,
                self.targets,
                metric=self.options.metric,
                ig=self.options.ig,
                decode=lambda token: token_texts([token], self.subject.tokenizer)[0],
                seed=self.options.seed,
                stored=lambda: self._stored(folder),
                most=self.options.memory,
            )
            notes = self.subject.notes
            finished = run(work, self.cells, folder, emit, title=self.title, notes=notes)
            return self._write(folder, finished), finished

    def _stored(self, folder: RunFolder) -> Stored:
        return Stored(self.grid, folder.records().values(), folder.arrays)

    def _write(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        """Everything derived: document, packed file, figures and report."""
        wanted = {cell.id for cell in self.cells}
        records = [r for r in folder.records().values() if r.id in wanted]
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
            folder, outputs(self.grid, UNITS.get(self.options.metric, "1")), **self._packed(stored)
        )
        attribution_results.write(folder.path, doc)
        folder.write_json(SUMMARY, doc)
        return doc

    def _packed(self, stored: Stored) -> dict[str, Any]:
        """Coordinates of the packed file, and the stored cells as it wants them."""
        longest, heads = 1, {"head": 1, "kv_head": 1}
        edges: dict[str, list[str]] = {}
        for direction in DIRECTIONS:
            for p in stored.prompts(direction):
                for site, array in stored.arrays(direction, p).items():
                    longest = max(longest, array.shape[-1])
                    if site in HEAD_SITES:
                        axis = head_axis(site)
                        heads[axis] = max(heads[axis], array.shape[1])
            if stored.prompts(direction, "edges"):
                ends = stored.edge_ends(direction)
                for axis, listed in zip(("source", "target"), ends, strict=True):
                    edges[axis] = [attribution_edges.name(end) for end in listed]
        axes: dict[str, Any] = {
            "prompt": [p.id for p in self.grid.prompts],
            "direction": list(DIRECTIONS),
            "layer": list(self.grid.layers.layers),
            "position": longest,
            **heads,
            "source": edges.get("source", ["none"]),
            "target": edges.get("target", ["none"]),
        }
        rows = [replace(record, coords=named) for record, named in stored.packed()]
        return {"coords": axes, "records": rows}
