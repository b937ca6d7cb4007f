"""One patch sweep from the user's words to its document: prompts read, cells run, files written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from mlxroles import documents, report
from mlxroles.dashboard import svg
from mlxroles.errors import SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import run_id
from mlxroles.plots import patch_figures
from mlxroles.prompts import Prompt, digest, token_texts
from mlxroles.store.files import plain_errors, write_atomic
from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.pack import pack
from mlxroles.store.summary import SUMMARY, notes_of
from mlxroles.studies import together
from mlxroles.studies.inputs import encoded, several_tokens, targets_for, with_others
from mlxroles.studies.patch import (
    CONTROLS,
    DIRECTIONS,
    HEAD_SITES,
    SIDES,
    PatchGrid,
    outputs,
)
from mlxroles.studies.patch_amounts import amounts
from mlxroles.studies.patch_document import document, stored_cells
from mlxroles.studies.patch_run import PatchWork
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import HEAD_KEYS, Subject, attention_heads, key_heads
from mlxroles.studies.timed import Task, Watch
from mlxroles.text import format_bytes
from mlxroles.versions import now, versions

FIGURES, PER_CELL = 1.3, 1e-3
"""Seconds of figures and report, and per cell; see ``timing.prediction``."""


@dataclass(frozen=True)
class PatchOptions:
    """What a user may say about a sweep; the defaults are those of the command."""

    layers: str | None = None
    site: str = "resid_post"
    positions: str = "all"
    heads: str | None = None
    controls: tuple[str, ...] = CONTROLS
    strings: tuple[str, ...] = ()
    """Strings to measure, the headline first; without any, those of the prompt."""
    token_ids: tuple[int, ...] = ()
    """Ids to measure instead of strings."""
    donor_head: bool = False
    seed: int = 0
    memory: int | None = None
    """Bytes that may be in use; None for a share of the device's memory. Changes no numbers."""


class PatchSweep:
    """A planned sweep: everything is read and checked, nothing is loaded or written yet.

    Args:
        subject: The two models.
        prompts: What to run; the same ids go through both models.
        options: The rest of the user's words.

    Raises:
        MlxrolesError: something asked for does not exist or does not fit.
    """

    def __init__(self, subject: Subject, prompts: Sequence[Prompt], options: PatchOptions) -> None:
        if subject.ranks is not None and options.memory is not None:
            options = replace(options, memory=subject.ranks.least(options.memory))
        self.subject, self.options = subject, options
        self.targets = targets_for(subject, prompts, options.strings, options.token_ids)
        if options.site in HEAD_SITES:
            subject.check_same("heads", HEAD_KEYS)
        subject.notes += several_tokens(self.targets)
        rows = encoded(subject, prompts, note=subject.notes.append)
        if "other_prompt" in options.controls:
            rows = with_others(subject, rows, seed=options.seed)
        self.grid = PatchGrid.read(
            rows,
            n_layers=subject.n_layers,
            n_heads=(key_heads if options.site in ("k", "v") else attention_heads)(subject),
            layers=options.layers,
            site=options.site,
            positions=options.positions,
            heads=options.heads,
            controls=options.controls,
        )
        if options.donor_head and subject.resident == 1:
            raise SpecError("--read donor-head needs both models in memory: use --resident 2")
        self.cells = self.grid.cells()

    @property
    def title(self) -> str:
        """One line that names the sweep."""
        n, grid = len(self.grid.prompts), self.grid
        what = grid.prompts[0].id if n == 1 else f"{n} prompts"
        where = documents.place(grid.site, grid.positions, grid.heads)
        seed = f", seed {self.options.seed}" if self.options.seed else ""
        return f"patch {self.subject.display}: {where}, {what}{seed}"

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers, and nothing else."""
        grid = self.grid
        return {
            "kind": "patch",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "tokenizer": self.subject.tokenizer_identity(),
            "computed_by": computed_by(self.subject.parts),
            "prompts": [[p.id, p.digest, digest(p.other)] for p in grid.prompts],
            "layers": list(grid.layers.layers),
            "site": grid.site,
            "positions": grid.positions,
            "heads": grid.heads,
            "controls": list(grid.controls),
            "strings": self.targets.document(),
            "headline": self.targets.headline,
            "donor_head": self.options.donor_head,
            "seed": self.options.seed,
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows: cells, layer calls, memory and disk, without loading weights."""
        n, sides = self.subject.n_layers, self.subject.sides.values()
        most = self.options.memory
        work = PatchWork(self.subject, self.grid, self.targets, decode=str, most=most)
        n_cells = sum("layer" in c.coords for c in self.cells)
        clean = 2 * len(self.grid.prompts) * (1 + ("other_prompt" in self.grid.controls))
        weights = sum(s.n_bytes for s in sides)
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "layers": list(self.grid.layers.layers),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.grid.prompts],
            "clean_runs": clean,
            "layer_calls": round(work.layer_calls(), 1),
            "layer_calls_if_every_cell_ran_whole": (n_cells + clean) * n,
            "not_possible": work.forbidden,
            "resident_models": self.subject.resident,
            "weights_bytes": weights,
            "memory_bytes": work.peak_bytes(),
            "over_memory": work.over_memory(),
            "disk_bytes": 4096 * len(self.cells),
            "seconds": self.task(work).seconds(),
        }

    def task(self, work: PatchWork | None = None, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        if work is None:
            most = self.options.memory
            work = PatchWork(self.subject, self.grid, self.targets, decode=str, most=most)
        amount = amounts(work, self.cells if pending is None else pending)
        return Task("patch", self.subject, amount, FIGURES + PER_CELL * len(self.cells))

    def _view(self) -> dict[str, Any]:
        """What a display of the run needs to know beside its cells."""
        grid = self.grid
        return {
            "kind": "patch",
            "n_layers": self.subject.n_layers,
            "layers": list(grid.layers.layers),
            "directions": list(DIRECTIONS),
            "headline": self.targets.headline,
            "prompts": [p.id for p in grid.prompts],
            "n_tokens": [p.n_tokens for p in grid.prompts],
            "site": grid.site,
            "positions": grid.positions,
            "heads": grid.heads,
            "n_heads": grid.n_heads,
        }

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Runs what is not done yet and writes everything derived from the cells.

        Returns:
            The document, also written as ``summary.json``, and how the run ended.
        """
        work = self._work()
        together.begin(work, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.grid.prompts}
        about = {"view": self._view(), "memory": work.memory}
        with place.open(self.subject, self.identity(), token_ids, about=about) as folder:
            self.subject.tell(emit)
            notes = self.subject.notes
            notes += self._cut_as_begun(work, folder)
            over = work.over_memory()
            notes += [] if over is None else [over]
            for shortcut, why in work.forbidden.items():
                notes.append(f"cannot {shortcut}: {why}; the numbers are the same, it takes longer")
            watch.begin(self.task(work), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            how["ranks"] = self.subject.ranks
            finished = together.run(work, self.cells, folder, emit, title=self.title, **how)
            return self._write(folder, finished, watch), finished

    def _cut_as_begun(self, work: PatchWork, folder: RunFolder) -> list[str]:
        """Has the batches cut for the memory that the run was begun with, if there is as much.

        A cell's last digits depend on the rows that it runs with: a run that goes on, here or on
        another machine, cuts what the first process cut.
        """
        about = folder.manifest.get("about")
        begun = about.get("memory") if isinstance(about, dict) else None
        if not isinstance(begun, int) or begun == work.memory or self.subject.ranks is not None:
            return []
        if begun < work.memory:
            work.cut_for(begun)
            return []
        return [
            f"this run was begun with {format_bytes(begun)} of memory and goes on with "
            f"{format_bytes(work.memory)}: cells may differ in their last digits"
        ]

    def _work(self) -> PatchWork:
        return PatchWork(
            self.subject,
            self.grid,
            self.targets,
            decode=lambda token: token_texts([token], self.subject.tokenizer)[0],
            seed=self.options.seed,
            donor_head=self.options.donor_head,
            most=self.options.memory,
        )

    def _tokens(self) -> list[str | None]:
        """Text at each position where there is a cell for each; None where prompts differ."""
        if self.grid.positions != "each":
            return []
        texts = [token_texts(list(p.ids), self.subject.tokenizer) for p in self.grid.prompts]
        rows = zip_longest(*texts)
        return [row[0] if len(set(row)) == 1 else None for row in rows]

    def _write(self, folder: RunFolder, finished: RunFinished, watch: Watch) -> dict[str, Any]:
        """Everything derived: document, figures, report and the packed file."""
        known = folder.records()
        records = [known[cell.id] for cell in self.cells if cell.id in known]
        failed = [{"cell": r.id, "error": r.error} for r in records if r.status != "ok"]
        about = {
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "d1_group": self.subject.d1_group,
            "n_layers": self.subject.n_layers,
            "timestamp": now(),
            "versions": versions(),
            "interrupted": finished.interrupted,
            "failed_cells": failed,
            "notes": notes_of(folder, self.subject.notes),
            "tokens": self._tokens(),
        }
        doc = document(
            self.grid,
            stored_cells(records),
            headline=self.targets.headline,
            strings=self.targets.document(),
            seed=self.options.seed,
            about=about,
        )
        if any(doc[d] for d in DIRECTIONS):
            doc["summary"]["sentence"] = report.sentence(doc)
            doc["summary"]["brief"] = report.brief(doc)
            figures = folder.path / "figures"
            picture = figures / "dashboard.svg"
            with plain_errors(figures):
                doc["figures"] = patch_figures(doc, figures)
                svg(doc, picture, title=self.title)
            doc["figures"]["dashboard_svg"] = str(picture)
            page = report.html(doc, doc["figures"])
            write_atomic(folder.path / "report.html", page.encode())
            write_atomic(folder.path / "summary.md", report.markdown(doc).encode())
        coords, rows = packed(self.grid, records)
        pack(folder, outputs(), coords, records=rows)
        doc["estimate"] = watch.stop(finished)
        folder.write_json(SUMMARY, doc)
        return doc


def packed(grid: PatchGrid, records: Sequence[Record]) -> tuple[dict[str, Any], list[Record]]:
    """Coordinates of the packed file, and the records as it wants them: every axis has a name."""
    rows = []
    for record in records:
        c: Mapping[str, Any] = record.coords
        values = dict(record.values)
        coords: dict[str, Any] = {"prompt": grid.prompts[int(c["prompt"])].id}
        if "baseline" in c:
            coords["model"] = c["baseline"]
            values = {f"baseline_{name}": value for name, value in values.items()}
        else:
            coords |= {"direction": c["direction"], "layer": c["layer"]}
            coords |= {"control": c.get("control") or "none", "place": _place(c)}
        rows.append(replace(record, coords=coords, values=values))
    places = {r.coords["place"]: None for r in rows if "place" in r.coords}
    axes = {
        "control": ["none", *grid.controls],
        "direction": list(DIRECTIONS),
        "model": list(SIDES),
        "layer": list(grid.layers.layers),
        "place": list(places) or ["all"],
        "prompt": [p.id for p in grid.prompts],
    }
    return axes, rows


def _place(coords: Any) -> str:
    return str(coords.get("head", coords.get("heads", coords["position"])))
