"""The injection study: every prompt under every vector, layer and strength, and random vectors.

A cell is (model, prompt, vector): all layers and strengths of it run as one sweep beside as many
random vectors of the same length. The vectors are made when a model is loaded, and kept in the
run folder with the layers that they belong to.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from mlxroles import engine, vectors
from mlxroles.backend import mx
from mlxroles.errors import PromptError, SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import cell_id, run_id
from mlxroles.runner import Result
from mlxroles.store.files import write_atomic
from mlxroles.store.folder import RunFolder
from mlxroles.store.reader import read
from mlxroles.studies import together
from mlxroles.studies.inject import attention, packed, results
from mlxroles.studies.inject.cost import work
from mlxroles.studies.inject.document import build
from mlxroles.studies.inject.grid import Directions, Grid, Spot, edits
from mlxroles.studies.inject.items import Item, Where
from mlxroles.studies.inject.readout import Readout
from mlxroles.studies.inject.source import Source
from mlxroles.studies.inject.tables import TABLE, table
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch
from mlxroles.text import safe_text
from mlxroles.vectors import Vectors

KIND = "inject"
MOST_CELLS = 100_000
AT_ONCE = 32
"""Answers whose logits are summed up together."""


@dataclass(frozen=True)
class Asked:
    """What a run asks: prompts, how they are read, and where vectors go."""

    mode: str
    """``battery``, ``prompts`` or ``localise``."""
    items: tuple[Item, ...]
    readout: Readout
    where: Where
    battery: str | None = None
    """Name of the battery."""
    labels: tuple[str, ...] = ()
    """Of trials: how each place is answered."""


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


class Injection:
    """A planned injection run.

    Args:
        subject: One model or a pair; each has vectors of its own.
        asked: Prompts and what is read.
        source: What is injected.
        grid: Layers and strengths.
        n_random: Random vectors beside each vector.
        relative: Whether vectors get the length of the stream, so that a strength is a share of it.
        seed: Of the random vectors and of the bootstrap.

    Raises:
        SpecError: layers of which there are no vectors, or a plan that is too large.
        PromptError: two prompts with one id.
    """

    def __init__(
        self,
        subject: Subject,
        asked: Asked,
        source: Source,
        grid: Grid,
        *,
        n_random: int = 20,
        relative: bool = False,
        seed: int = 0,
    ) -> None:
        self.subject, self.asked, self.source, self.grid = subject, asked, source, grid
        self.n_random, self.relative, self.seed = n_random, relative, seed
        _check_layers(source, grid)
        self.items = {item.id: item for item in asked.items}
        if len(self.items) < len(asked.items):
            raise PromptError("two prompts have one id; give every prompt an id of its own")
        self.cells = [
            self._cell(side, item, name)
            for side in subject.sides
            for name in source.names
            for item in asked.items
        ]
        if len(self.cells) > MOST_CELLS or len({c.id for c in self.cells}) < len(self.cells):
            raise SpecError(
                f"{len(self.cells)} cells are too many for one run, or two vectors have names that "
                "differ only in signs; inject fewer vectors at once"
            )
        self._vectors: dict[str, Vectors] = {}
        self._clean: tuple[tuple[str, str], Any] | None = None

    def _cell(self, side: str, item: Item, name: str) -> Cell:
        coords = {"model": side, "vector": name, "prompt": item.id}
        return Cell(cell_id(coords), coords)

    def spots(self, item: Item) -> tuple[Spot, ...]:
        """What is done to a prompt."""
        return self.grid.spots(item.role)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        asked = self.asked
        items = [[i.id, i.role, i.about, i.right, i.digest, list(i.where)] for i in asked.items]
        return {
            "kind": KIND,
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "mode": asked.mode,
            "items": items,
            "read": asked.readout.document(),
            "source": self.source.identity(),
            "layers": list(self.grid.layers),
            "scales": list(self.grid.scales),
            "directions": self.grid.directions,
            "readouts": list(self.asked.readout.names),
            "relative": self.relative,
            "random": self.n_random,
            "seed": self.seed,
            "computed_by": computed_by(self.subject.parts),
        }

    # --- computing ----------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group and makes its vectors."""
        side = batches[0].cells[0].coords["model"]
        self.subject.model(side)
        yield
        self.vectors(side)
        yield

    def vectors(self, side: str) -> Vectors:
        """The vectors of a model, made once; ``meta`` has their lengths beside the stream's."""
        if side not in self._vectors:
            model = self.subject.model(side)
            found = self.source.make(model, self.grid.layers, self.subject.sides[side].identity)
            found = found.subset(self.source.names)
            item = self.asked.items[0]
            streams = model.run(
                [item.ids], keep=["resid_post"], layers=self.grid.layers, logits=False
            )
            norms = [_norm(streams["resid_post", i], item.where) for i in self.grid.layers]
            self._vectors[side] = _measured(found, self.grid.layers, norms, fit=self.relative)
        return self._vectors[side]

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """One prompt under one vector and its random ones, at all layers and strengths.

        The arrays ``added`` [draw, layer, scale, measure] and ``projected`` [draw, direction,
        measure] have the vector itself as draw 0, ``unedited`` is [measure]. The journal has the
        first measure without injection, and how the vector and the mean random one shift it at
        every spot.
        """
        cell = batch.cells[0]
        side, item = cell.coords["model"], self.items[cell.coords["prompt"]]
        model, spots = self.subject.model(side), self.spots(item)
        found = Directions(self.vectors(side), cell.coords["vector"], self.n_random, self.seed)
        own = self._unedited(side, item)
        assert own.logits is not None
        clean, readout = own.logits[0, 0].astype(np.float64), self.asked.readout
        draws = 1 + self.n_random
        values = np.full((draws, len(spots), len(readout.names)), np.nan)
        for members in _together(spots):
            places = [(draw, n) for n in members for draw in range(draws)]
            rows = [engine.Row(edits(model, item, spots[n], found, draw)) for draw, n in places]
            for part in _parts(engine.sweep(model.network, own, rows)):
                logits = np.stack([answer.logits[0] for _, answer in part]).astype(np.float64)
                for (at, _), numbers in zip(part, readout.measure(logits, clean), strict=True):
                    values[places[at]] = numbers
        base = readout.measure(clean[None], clean)[0]
        shift = values[:, :, 0] - base[0]
        noise = shift[1:].mean(axis=0) if self.n_random else np.zeros(len(spots))
        line = {
            "clean": float(base[0]),
            "shift": [round(float(x), 6) for x in shift[0]],
            "random": [round(float(x), 6) for x in noise],
        }
        runs = draws * len(spots) * len(item.where)
        sizes = (len(self.grid.layers), len(self.grid.scales), sum(s.is_out for s in spots))
        arrays = {**packed.split(values, *sizes), "unedited": base}
        yield Result(cell, line, arrays=arrays, tokens=runs)

    def _unedited(self, side: str, item: Item) -> engine.Clean:
        if self._clean is None or self._clean[0] != (side, item.id):
            self._clean = None
            model = self.subject.model(side)
            model.check_tokens([item.ids])
            layers = sorted({*self.grid.layers, *([0] if self.grid.projects else [])})
            own = engine.clean(model.network, [item.ids], read=[len(item.ids) - 1], layers=layers)
            self._clean = (side, item.id), own
        return self._clean[1]

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Measures what is not measured yet; writes document, table, vectors, figures, page."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {item.id: item.ids for item in self.asked.items}
        about = {"view": self._view()}
        with place.open(
            self.subject, self.identity(), token_ids, about=about, shared=False
        ) as folder:
            self.subject.tell(emit)
            title, notes = f"inject {self.subject.display}", self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            how["ranks"] = self.subject.ranks
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            self._write_vectors(folder)
            doc = build(self, folder, finished)
            whole = finished.interrupted is None
            maps = attention.look(self, folder, doc) if whole else {}
            packed.pack_run(folder, self._stored_arrays(), maps)
            write_atomic(folder.path / TABLE, table(self, folder).encode())
            doc["estimate"] = watch.stop(finished)
            results.write(folder.path, doc)
        return doc, finished

    def _stored_arrays(self) -> list[str]:
        spots = {spot for item in self.asked.items for spot in self.spots(item)}
        is_out = {spot.is_out for spot in spots}
        names = {False: "added", True: "projected"}
        return ["unedited", *(name for kind, name in names.items() if kind in is_out)]

    def _view(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "n_layers": self.subject.n_layers,
            "layers": list(self.grid.layers),
            "headline": self.asked.readout.what,
            "prompts": list(self.items),
        }

    def stored(self, folder: RunFolder, side: str) -> Vectors | None:
        """The vectors of a model: those of this process, else those of the run folder."""
        if side in self._vectors:
            return self._vectors[side]
        path = folder.path / results.vector_file(side, self.subject.sides)
        if not path.is_file():
            return None
        width = int(read(path, "vector").shape[-1])
        return vectors.read(str(path), n_layers=self.subject.n_layers, d_model=width)

    def _write_vectors(self, folder: RunFolder) -> None:
        for side, found in self._vectors.items():
            vectors.write(folder.path / results.vector_file(side, self.subject.sides), found)

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        sides = self.subject.sides.values()
        runs = sum(len(self.spots(self.items[c.coords["prompt"]])) for c in self.cells)
        task = self.task()
        return {
            "schema": "mlxroles/plan/1",
            "title": f"inject {self.subject.display}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "runs": runs * (1 + self.n_random),
            "vectors": list(self.source.names),
            "layers": list(self.grid.layers),
            "scales": list(self.grid.scales),
            "positions": self.asked.where.document(),
            "prompts": [item.document() for item in self.asked.items],
            "layer_calls": round(task.work.blocks),
            "weights_bytes": sum(side.n_bytes for side in sides),
            "disk_bytes": self._disk(),
            "seconds": task.seconds(),
        }

    def _disk(self) -> int:
        measures = len(self.asked.readout.names)
        spots = sum(len(self.spots(self.items[c.coords["prompt"]])) for c in self.cells)
        return spots * (1 + self.n_random) * (12 * measures + 120) + (1 << 20)

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells = self.cells if pending is None else pending
        return Task(KIND, self.subject, work(self, cells), 4.0)


def _check_layers(source: Source, grid: Grid) -> None:
    if source.has is None:
        return
    missing = [layer for layer in grid.layers if layer not in source.has]
    if missing:
        there = ", ".join(map(str, source.has))
        raise SpecError(
            f"the vectors {', '.join(safe_text(n, limit=30) for n in source.names[:3])} are of "
            f"layer {there}, not of layer {missing[0]}: a vector acts at its own layer; give "
            f"--layers {there.replace(', ', ',')}"
        )


def _together(spots: Sequence[Spot]) -> list[list[int]]:
    """Spots in groups of a few layers: so few rows at a time that their edits take no room."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for n, spot in enumerate(spots):
        key = (spot.is_out, -1 if spot.layer is None else spot.layer // 8)
        groups.setdefault(key, []).append(n)
    return list(groups.values())


def _parts(answers: Iterable[tuple[int, engine.Answer]]) -> Iterator[list[Any]]:
    """Answers a few at a time, as their logits are worked on in float64."""
    waiting = iter(answers)
    while part := list(islice(waiting, AT_ONCE)):
        yield part


def _norm(stream: mx.array, where: Sequence[int]) -> float:
    rows = np.array(stream.astype(mx.float32))[0, list(where)].astype(np.float64)
    return float(np.linalg.norm(rows, axis=-1).mean())


def _measured(
    found: Vectors, layers: Sequence[int], norms: Sequence[float], *, fit: bool
) -> Vectors:
    """Vectors with the stream's length in their ``meta``; with ``fit`` they are given it.

    Raises:
        SpecError: one has length 0, and cannot be given another.
    """
    array, meta = np.array(found.array), {}
    for row, name in enumerate(found.names):
        own = [found.norm(name, layer) for layer in layers]
        if fit and not min(own) > 0:
            raise SpecError(f"vector '{safe_text(name, limit=60)}' has length 0 at a layer")
        if fit:
            for layer, norm, length in zip(layers, norms, own, strict=True):
                array[row, found.layers.index(layer)] *= norm / length
        lengths = list(norms) if fit else own
        meta[name] = {**found.meta.get(name, {}), "stream": list(norms), "length": lengths}
        meta[name]["at"] = list(layers)
    return replace(found, array=array, meta=meta)
