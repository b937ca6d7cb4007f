"""Tests at single positions t of prompts: the study around a test that measures one position.

The cells are (model, prompt, position). A prompt runs up to t only: what comes later cannot
change what is read there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mlxroles.errors import PromptError, SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.heads import check_head
from mlxroles.models.model import Model
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import Prompt
from mlxroles.runner import Result
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import SUMMARY, notes_of
from mlxroles.studies import together
from mlxroles.studies.ablate.packed import pack_run
from mlxroles.studies.inputs import Encoded, encoded
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import safe_text
from mlxroles.timing import Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/ablate/1"
SAMPLES = 40
"""Positions that are drawn by default, in all prompts together."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What a test measured at one position."""

    prompt: int
    position: int
    values: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class LocalTest(Protocol):
    """What is measured at a position, and what comes of many of them."""

    @property
    def name(self) -> str:
        """Of the test, as on the command line."""
        ...

    def rows(self, length: int, /) -> int:
        """Runs per position, of a prompt of this length."""
        ...

    def fresh(self, length: int, /) -> int:
        """Last positions that each run computes for itself, of a prompt of this length."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything about the test that changes numbers."""
        ...

    def measure(
        self, model: Model, ids: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Numbers and arrays of a prompt that ends at t."""
        ...

    def summary(
        self, samples: Mapping[str, Sequence[Sample]], context: "AtPositions"
    ) -> dict[str, Any]:
        """What the document says of the samples of each model, ``rows`` and ``sentence`` too."""
        ...


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


class AtPositions:
    """A planned test.

    Args:
        subject: One model or a pair.
        prompts: Texts or ids.
        test: What is measured.
        positions: Positions t of every prompt, negative ones from the end; None draws some.
        samples: How many are drawn, in all prompts together, at least one of each.
        earliest: First position that is drawn, where a prompt has it. With 2 the first position,
            at which many heads rest, is no t-1.
        seed: Of the draws, of random heads and of intervals.

    Raises:
        PromptError: a prompt of one token, or a position that it does not have.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        test: LocalTest,
        *,
        positions: Sequence[int] | None = None,
        samples: int = SAMPLES,
        earliest: int = 2,
        seed: int = 0,
    ) -> None:
        self.subject, self.test, self.seed = subject, test, seed
        self.prompts: tuple[Encoded, ...] = encoded(subject, prompts, note=subject.notes.append)
        self.positions = [
            _given(prompt, positions)
            if positions is not None
            else self._drawn(n, samples, earliest)
            for n, prompt in enumerate(self.prompts)
        ]
        self.cells = [
            self._cell(side, p, t)
            for side in subject.sides
            for p, places in enumerate(self.positions)
            for t in places
        ]

    def _drawn(self, n: int, samples: int, earliest: int) -> list[int]:
        prompt = self.prompts[n]
        if prompt.n_tokens < 2:
            raise PromptError(
                f"prompt '{safe_text(prompt.id)}' has one token; a position before t is needed, "
                "give prompts of two or more"
            )
        first = min(earliest, prompt.n_tokens - 1)
        count = min(-(-samples // len(self.prompts)), prompt.n_tokens - first)
        rng = np.random.default_rng([self.seed, n])
        places = first + rng.choice(prompt.n_tokens - first, size=count, replace=False)
        return sorted(int(t) for t in places)

    def _cell(self, side: str, p: int, t: int) -> Cell:
        coords = {"model": side, "prompt": p, "position": t}
        return Cell(cell_id(coords), coords)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": "ablate",
            "test": self.test.name,
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "prompts": [[p.id, p.digest] for p in self.prompts],
            "positions": self.positions,
            **self.test.identity(),
            "seed": self.seed,
            "computed_by": computed_by(self.subject.parts),
        }

    # --- computing ----------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group."""
        self.subject.model(batches[0].cells[0].coords["model"])
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """What the test measures at one position."""
        cell = batch.cells[0]
        model = self.subject.model(cell.coords["model"])
        ids = self.prompts[cell.coords["prompt"]].ids[: cell.coords["position"] + 1]
        values, arrays = self.test.measure(model, ids)
        yield Result(cell, values, arrays, tokens=len(ids) * self.test.rows(len(ids)))

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Measures what is not measured yet; the document is also written as ``summary.json``."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.prompts}
        opened = place.open(
            self.subject, self.identity(), token_ids, shared=False, about={"view": self._view()}
        )
        with opened as folder:
            self.subject.tell(emit)
            title = f"ablate {self.subject.display}, {self.test.name}"
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate, "ranks": self.subject.ranks}
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            folder.write_json(SUMMARY, doc)
            pack_run(folder)
        return doc, finished

    def _view(self) -> dict[str, Any]:
        return {
            "kind": "ablate",
            "test": self.test.name,
            "n_layers": self.subject.n_layers,
            "layers": list(range(self.subject.n_layers)),
            "headline": self.test.name,
            "prompts": [p.id for p in self.prompts],
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        return {
            "schema": "mlxroles/plan/1",
            "title": f"ablate {self.subject.display}, {self.test.name}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "layer_calls": self.subject.n_layers * sum(map(self._rows, self.cells)),
            "weights_bytes": sum(side.n_bytes for side in self.subject.sides.values()),
            "disk_bytes": 16384 * len(self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        for cell in cells:
            length = cell.coords["position"] + 1
            fresh = self.test.fresh(length)
            work += passes(of, rows=self._rows(cell), length=fresh)
            if fresh < length:  # what comes before runs once
                work += passes(of, rows=1, length=length - fresh)
            work += Work(unembeds=self._rows(cell), reads=1, measures=1, cells=1)
        return Task("ablate", self.subject, work, 3.0)

    def _rows(self, cell: Cell) -> int:
        return self.test.rows(cell.coords["position"] + 1)

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        records = folder.records()
        samples: dict[str, list[Sample]] = {side: [] for side in self.subject.sides}
        failed = []
        for cell in self.cells:
            record, c = records.get(cell.id), cell.coords
            if record is not None and record.status == "ok":
                arrays = folder.arrays(cell.id)
                samples[c["model"]].append(
                    Sample(c["prompt"], c["position"], record.values, arrays)
                )
            elif record is not None:
                failed.append({"cell": record.id, "error": record.error})
        return {
            "schema": SCHEMA,
            "kind": "ablate",
            "test": self.test.name,
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "models": list(self.subject.sides),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "positions": self.positions,
            "n_samples": {side: len(ours) for side, ours in samples.items()},
            "seed": self.seed,
            **self.test.summary(samples, self),
            "interrupted": finished.interrupted,
            "failed_cells": failed,
            "notes": notes_of(folder, self.subject.notes),
            "timestamp": now(),
            "versions": versions(),
        }


def _given(prompt: Encoded, positions: Sequence[int]) -> list[int]:
    """The positions of a prompt that were named, as numbers from 1 on."""
    found = []
    for p in positions:
        at = p + prompt.n_tokens if p < 0 else p
        if not 1 <= at < prompt.n_tokens:
            raise PromptError(
                f"position {p} of prompt '{safe_text(prompt.id)}' cannot be t: t must be in "
                f"1..{prompt.n_tokens - 1}, so that a position comes before it"
            )
        found.append(at)
    return sorted({*found})


def check_heads(subject: Subject, heads: Sequence[tuple[int, int]], n_heads: int) -> None:
    """Refuses heads that the models do not have, as far as their configs say.

    Raises:
        SpecError: none, or one that does not exist.
    """
    if not heads:
        raise SpecError("no head is named; name heads as L5H8,L16H23")
    for layer, head in heads:
        check_head(layer, head, n_layers=subject.n_layers, n_heads=n_heads or None)
