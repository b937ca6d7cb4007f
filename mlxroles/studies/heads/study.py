"""A study of what heads do: the plan, the run folder, the document.

The cells are (model, scores): all detectors in one pass; and with a causal check (model, class, set
of heads). The computing half is ``work``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxroles import detectors
from mlxroles.errors import PromptError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import load_prompts
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import failed_cells, notes_of
from mlxroles.studies import together
from mlxroles.studies.heads import document, results
from mlxroles.studies.heads.causal import ALONE, RANDOM, SETS, TOGETHER
from mlxroles.studies.heads.stored import CLASSES
from mlxroles.studies.heads.work import HeadsWork
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import safe_text
from mlxroles.timing import NOTHING, Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions

APART = 1_000_003
"""Added to the seed of the scores: heads are zeroed on other rows than those that marked them."""
ZEROED = (16, 65)
"""Rows of every kind, and tokens of each, on which heads are zeroed at most."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        text: A file or packaged name for the scores on text; None for generated English.
        sequences: Rows of tokens of every kind.
        length: Tokens of a row at most.
        causal: Whether marked heads are set to zero.
        seed: Of rows, intervals and random sets.
    """

    text: str | None = None
    sequences: int = 32
    length: int = 256
    causal: bool = False
    seed: int = 0


class Heads:
    """A planned study.

    Args:
        subject: One model or a pair.
        options: What is measured.

    Raises:
        PromptError: a text that cannot be used.
    """

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        self.material = self._material(options.seed, (options.sequences, options.length))
        held_out = self._material(options.seed + APART, ZEROED) if options.causal else None
        subject.notes += self.material.notes
        if held_out is not None and options.text is not None:
            subject.notes.append(
                "the loss with heads at zero is that of the text they were found on"
            )
        self.cells = [cell for side in subject.sides for cell in self._cells(side)]
        self.work = HeadsWork(subject, self.material, held_out, seed=options.seed)

    def _material(self, seed: int, most: tuple[int, int]) -> detectors.Material:
        """Rows of ids, at most so many of at most so many tokens."""
        subject, options = self.subject, self.options
        return detectors.material(
            subject.tokenizer,
            subject.vocab,
            text=None if options.text is None else _text(options.text),
            sequences=min(options.sequences, most[0]),
            length=min(self._length(), most[1]),
            seed=seed,
        )

    def _length(self) -> int:
        """Tokens of a row: as asked for, at most as many as the models were made for."""
        known = [side.context for side in self.subject.sides.values() if side.context]
        return min([self.options.length, *known])

    def _cells(self, side: str) -> list[Cell]:
        coords: list[dict[str, Any]] = [{"model": side, "what": "scores"}]
        if self.options.causal:
            coords += [
                {"model": side, "class": name, "set": one} for name in CLASSES for one in SETS
            ]
        return [Cell(cell_id(at), at) for at in coords]

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        options = self.options
        found = {
            "kind": "heads",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "material": self.material.digest,
            "detectors": {d.name: d.threshold for d in detectors.DETECTORS.values()},
            "sequences": options.sequences,
            "length": self._length(),
            "seed": options.seed,
            "computed_by": computed_by(self.subject.parts),
        }
        if options.causal:
            found["causal"] = {"alone": ALONE, "together": TOGETHER, "random": RANDOM}
        return found

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Measures what is not measured yet; writes ``summary.json``, tables, figures, the page."""
        together.begin(self.work, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {
            f"{name}{n:02d}": row
            for name, of in self.material.sets.items()
            for n, row in enumerate(of.ids)
        }
        opened = place.open(
            self.subject, self.identity(), token_ids, shared=False, about={"view": self._view()}
        )
        with opened as folder:
            self.subject.tell(emit)
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate, "ranks": self.subject.ranks}
            finished = together.run(self.work, self.cells, folder, emit, title=self.title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            results.write(folder, doc)
        return doc, finished

    @property
    def title(self) -> str:
        """One line that names the run."""
        return f"heads {self.subject.display}" + (", causal" if self.options.causal else "")

    def _view(self) -> dict[str, Any]:
        return {
            "kind": "heads",
            "n_layers": self.subject.n_layers,
            "layers": list(range(self.subject.n_layers)),
            "prompts": list(self.material.sets),
        }

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        about = {
            "schema": document.SCHEMA,
            "kind": "heads",
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "n_layers": self.subject.n_layers,
            "names": {name: side.folder.name for name, side in self.subject.sides.items()},
            "seed": self.options.seed,
            "notes": notes_of(folder, self.subject.notes),
            "material": dict(self.material.about) | {"rows": self._rows()},
        }
        return document.build(about, folder, self.cells, self.material, self.subject.tokenizer) | {
            "interrupted": finished.interrupted,
            "failed_cells": failed_cells(folder),
            "timestamp": now(),
            "versions": versions(),
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "sets": self._rows(),
            "tokens": sum(len(row) for of in self.material.sets.values() for row in of.ids),
            "layer_calls": len(self.cells) * self.subject.n_layers,
            "weights_bytes": sum(side.n_bytes for side in self.subject.sides.values()),
            "disk_bytes": self._disk(),
            "seconds": self.task().seconds(),
        }

    def _rows(self) -> dict[str, int]:
        """Set -> its rows."""
        return {name: len(of) for name, of in self.material.sets.items()}

    def _disk(self) -> int:
        """Bytes of the arrays, packed once more in ``run.h5``."""
        heads = sum(s.n_layers for s in self.subject.sides.values()) * sizes(self.subject).heads
        each = 4 * heads * self.options.sequences * (3 * len(detectors.DETECTORS) + 256)
        return 2 * each + 1024 * len(self.cells)

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        scores = NOTHING
        for given in self.material.sets.values():
            scores += passes(of, rows=len(given), length=max(map(len, given.ids)), times=1.5)
        n, length = ZEROED
        once = passes(of, rows=n, length=length, times=0.6)
        once += Work(unembeds=1, reads=n * length, measures=n * length / 8)
        for cell in cells:
            is_scores = cell.coords.get("what") == "scores"
            work += scores if is_scores else once * (RANDOM / 4)  # few sets have heads
            work += Work(cells=1)
        return Task("heads", self.subject, work, 4.0 + 2.0 * len(self.subject.sides))


def _text(source: str) -> str:
    """The user's text.

    Raises:
        PromptError: it cannot be read, or is no text.
    """
    found = [prompt.text for prompt in load_prompts(source)]
    if not all(found) or not found:
        raise PromptError(
            f"{safe_text(source, limit=80)} holds conversations or ids; give a text (.txt) or a "
            "set of texts"
        )
    if found == [source] and len(source.split()) == 1:
        raise PromptError(f"there is no text file {safe_text(source, limit=80)}")
    return "\n\n".join(str(text) for text in found)
