"""The study: one cell per stretch of steps, then one that measures on held-out text.

The state of the training is one file in the run folder, written whole after every stretch and
before the stretch's cell; a run that was killed goes on from it to the same numbers. At the end
the components are written and the state is deleted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlxroles.backend import mx
from mlxroles.components.decomposition import Components, Decomposition
from mlxroles.components.file import IN_RUN, identity, write
from mlxroles.components.harvest_text import text_rows
from mlxroles.components.maps import Map, decomposable
from mlxroles.components.train import IMPORTANCE, Recipe, Trainer, random_key
from mlxroles.components.train_data import MOST, Windows, cut
from mlxroles.components.train_measures import DISTANCES, measure, missing
from mlxroles.components.train_target import Target
from mlxroles.detectors import pieces
from mlxroles.errors import SpecError, StoreError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import cell_id, run_id
from mlxroles.runner import Result
from mlxroles.store.files import plain_errors, require_space, shown, write_atomic
from mlxroles.store.folder import RunFolder
from mlxroles.studies import together
from mlxroles.studies.component_training import document, results
from mlxroles.studies.component_training.results import COLUMNS
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.timing import Work
from mlxroles.timing.work import passes

STATE = "training.safetensors"
STRETCHES = 40
"""Into how many cells a training is cut."""
LINES = 5
"""Lines of the log of a stretch at most, each a mean over steps."""
PASSES, BACKWARD = 4, 3
"""Forward passes of a step, and how much longer one takes with the way back."""
ROWS = 480
"""Rows of text, about."""


@dataclass(frozen=True)
class Wishes:
    """What is decomposed, on what."""

    kinds: tuple[str, ...]
    """Of maps."""
    layers: tuple[int, ...] | None
    size: float
    """Components of a map as a multiple of the largest rank that it can have."""
    text: Path | None
    length: int
    """Positions of a window of text."""
    batch: int
    """Windows in a step."""
    seed: int


class _Begun(NamedTuple):
    trainer: Trainer
    windows: Windows
    maps: Mapping[str, Map]
    about: dict[str, Any]


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int = 0


class Training:
    """A planned training of one model's components.

    Args:
        subject: One model.
        recipe: How it is trained; its coefficient of faithfulness is that of the share of the
            weights' squares that is left out, the same for weights of any size.
        wishes: On what.

    Raises:
        StoreError: the text cannot be read.
    """

    def __init__(self, subject: Subject, recipe: Recipe, wishes: Wishes) -> None:
        self.subject, self.recipe, self.wishes = subject, recipe, wishes
        ends = np.linspace(0, recipe.length, min(STRETCHES, recipe.length) + 1)
        self.ends = [int(end) for end in ends[1:]]
        """Steps that are done after each stretch."""
        self.text = None if wishes.text is None else _digest(wishes.text)
        self.cells = [_cell(stage="train", step=end) for end in self.ends]
        self.cells.append(_cell(stage="measure"))
        self._folder: Path | None = None
        self._made: _Begun | None = None
        self._log: dict[str, np.ndarray] = {}

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": results.KIND,
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "recipe": asdict(self.recipe),
            "wishes": asdict(self.wishes) | {"text": self.text},
            "computed_by": computed_by(self.subject.parts),
        }

    # --- computing ----------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, in order."""
        return [_Batch((cell,)) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model and the state of the training."""
        self._begun()
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """A stretch of training, or the measures.

        Raises:
            SpecError: the loss is no longer finite.
        """
        cell = batch.cells[0]
        if cell.coords["stage"] == "train":
            yield self._trained(cell, self.ends.index(cell.coords["step"]))
        else:
            yield self._measured(cell)

    def _begun(self) -> _Begun:
        """Model, text and state, read once."""
        if self._made is None:
            wishes, model = self.wishes, self.subject.model("model")
            maps = decomposable(model, wishes.kinds, layers=wishes.layers)
            text = text_rows(model, wishes.text, tokens=ROWS * 256, seed=wishes.seed)
            front = 0 if model.tokenizer is None else len(pieces.opening(model.tokenizer))
            rows = cut(text.rows, front, wishes.length)
            windows = Windows(rows, front, wishes.length, wishes.batch, wishes.seed)
            self.subject.notes += [n for n in text.notes if n not in self.subject.notes]
            about = {"model": identity(model), "made": "trained", "text": text.about}
            if model.dtype != mx.float32:
                model.module.set_dtype(mx.float32)
                self.subject.notes.append("the model runs in float32 while components are trained")
            counts = {
                key: max(1, round(wishes.size * min(m.d_in, m.d_out))) for key, m in maps.items()
            }
            target = Target.of_model(model, maps)
            trainer = Trainer(target, counts, _scaled(self.recipe, target), wishes.seed)
            self._made = _Begun(self._restored(trainer), windows, maps, about)
        return self._made

    def _restored(self, trainer: Trainer) -> Trainer:
        """The training where an earlier process left it."""
        assert self._folder is not None
        path = self._folder / STATE
        if not path.exists():
            return trainer
        with plain_errors(path, verb="read"):
            data = path.read_bytes()
        try:
            state = load(data)
            made = trainer.restored(state)
        except (SafetensorError, KeyError, ValueError):
            raise StoreError(f"{shown(path)} is damaged; begin anew with --fresh") from None
        self._log = {n.removeprefix("log/"): a for n, a in state.items() if n.startswith("log/")}
        return made

    def _at(self, step: int) -> Trainer:
        """The training, which must have come so far."""
        trainer = self._begun().trainer
        if trainer.step < step:
            raise StoreError(
                f"{STATE} is missing from the run or older than its journal; begin anew with "
                "--fresh"
            )
        return trainer

    def _trained(self, cell: Cell, n: int) -> Result:
        before, end, windows = self.ends[n - 1] if n else 0, self.ends[n], self._begun().windows
        trainer = self._at(before)
        if trainer.step < end:
            try:
                said = [trainer.advance(windows.training) for _ in range(trainer.step, end)]
            except FloatingPointError as error:  # no later cell can do without this one
                raise SpecError(str(error)) from None
            self._log[str(n)] = _lines(before, said)
            self._keep(trainer)
        lines = self._log[str(n)]
        last = zip(COLUMNS, lines[-1].tolist(), strict=True)
        values = {name: value for name, value in last if not np.isnan(value)}
        tokens = max(0, end - max(before, self.recipe.warmup)) * windows.batch * windows.width
        return Result(cell, values, {"log": lines}, tokens=tokens)

    def _keep(self, trainer: Trainer) -> None:
        """Writes the state, with the log of stretches whose cells may not be stored yet."""
        assert self._folder is not None
        logs = {f"log/{n}": lines for n, lines in self._log.items()}
        data = save({n: np.ascontiguousarray(a) for n, a in (trainer.state() | logs).items()})
        require_space(self._folder, len(data))
        write_atomic(self._folder / STATE, data)

    def _measured(self, cell: Cell) -> Result:
        trainer, batches = self._at(self.recipe.length), self._begun().windows.held_out()
        found = [
            measure(trainer, batch, random_key(self.wishes.seed, 4, n))
            for n, batch in enumerate(batches)
        ]
        arrays = {name: np.array([f.distances[name] for f in found]) for name in DISTANCES}
        arrays |= {
            "active": np.array([list(f.active.values()) for f in found]),
            "importance": np.mean([np.concatenate(list(f.importance.values())) for f in found], 0),
            "missing": np.array(list(missing(trainer).values())),
        }
        return Result(cell, {}, arrays, tokens=len(DISTANCES) * sum(b.size for b in batches))

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Trains what is not trained yet; the document is also written as ``summary.json``."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        about = {"view": {"kind": results.KIND}}
        with place.open(self.subject, self.identity(), {}, about=about, shared=False) as folder:
            self._folder = folder.path
            self.subject.tell(emit)
            title, notes = f"components of {self.subject.display}", self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            facts = self._written(folder, finished)
            doc = document.document(folder, self, facts, finished)
            doc["estimate"] = watch.stop(finished)
            results.write(folder, doc)
        return doc, finished

    def _written(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        """Writes the component file of a finished training; what the summary says of the maps."""
        from mlxroles.components.file import read

        path = folder.path / IN_RUN
        if finished.done == len(self.cells) and not path.exists():
            trainer, _, maps, about = self._begun()
            own = {k: np.array(v) for k, v in trainer.parameters.items()}
            made = {
                key: Decomposition(
                    key, m.layer, m.kind, own[f"{key}/V"], own[f"{key}/U"], m.n_heads, m.d_head
                )
                for key, m in maps.items()
            }
            parameters = {
                k.removeprefix(IMPORTANCE): v for k, v in own.items() if k.startswith(IMPORTANCE)
            }
            meta = about | {"recipe": asdict(self.recipe), "unexplained": _unexplained(trainer)}
            write(path, Components(made, parameters, meta))
        if not path.exists():
            return {}
        (folder.path / STATE).unlink(missing_ok=True)
        found = read(path)
        return {
            "components": IN_RUN,
            "maps": {key: d.n for key, d in found.maps.items()},
            "unexplained": found.meta.get("unexplained"),
            "text": found.meta.get("text"),
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        sides = self.subject.sides.values()
        width, n = next(iter(sides)).n_bytes, self.subject.n_layers
        share = 1 if self.wishes.layers is None else len(self.wishes.layers) / n
        return {
            "schema": "mlxroles/plan/1",
            "title": f"components of {self.subject.display}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "steps": self.recipe.length,
            "layer_calls": self.recipe.steps * PASSES * n,
            "weights_bytes": sum(side.n_bytes for side in sides),
            "disk_bytes": int(8 * self.wishes.size * share * width) + 4096 * len(self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        wishes, n_train = self.wishes, len(self.ends)
        stretches = sum(cell.coords["stage"] == "train" for cell in cells)
        steps = stretches / n_train * self.recipe.steps
        once = passes(of, rows=wishes.batch, length=wishes.length)
        reads = Work(unembeds=1, reads=wishes.batch * wishes.length)
        measured = (1 + len(DISTANCES)) * MOST * (len(cells) - stretches)
        work = (once + reads) * (PASSES * BACKWARD * steps + measured) + Work(cells=len(cells))
        return Task(results.KIND, self.subject, work + loads(self.subject, ["model"]), 1.0)


def _cell(**coords: str | int) -> Cell:
    return Cell(cell_id(coords), coords)


def _digest(path: Path) -> str:
    with plain_errors(path, verb="read"):
        return sha256(path.read_bytes()).hexdigest()


def _lines(before: int, said: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The log of a stretch [line, column]: means over steps, NaN for what a step does not have."""
    table = np.array([[one.get(name, np.nan) for name in COLUMNS] for one in said])
    table[:, 0] = before + 1 + np.arange(len(said))
    lines = []
    for part in np.array_split(table, min(LINES, len(table))):
        known = ~np.isnan(part)
        total = np.where(known, part, 0.0).sum(axis=0)
        count = known.sum(axis=0)
        mean = np.divide(total, count, out=np.full(len(COLUMNS), np.nan), where=count > 0)
        lines.append([part[-1, 0], *mean[1:]])
    return np.array(lines)


def _scaled(recipe: Recipe, target: Target) -> Recipe:
    """The recipe with the coefficient of the mean square that is left out, not of its share."""
    squares = sum(float(np.array((w**2).sum())) for w in target.weights.values())
    size = sum(w.size for w in target.weights.values())
    return replace(recipe, faithfulness=recipe.faithfulness * size / (squares or 1.0))


def _unexplained(trainer: Trainer) -> float:
    """Share of the squares of all weights that the components leave out."""
    squares = {key: float(np.array((w**2).sum())) for key, w in trainer.target.weights.items()}
    left = sum(share * squares[key] for key, share in missing(trainer).items())
    return left / (sum(squares.values()) or 1.0)
