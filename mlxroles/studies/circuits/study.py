"""A study of circuits: the plan, the run folder, the document. The computing half is ``work``.

The cells are (model, layer): copying, eigenvalues and curves of its heads; (model, composition,
layer): with all layers before it; and (model, pairs, place): the tokens of one head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.heads import check_head, head_name
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import token_texts
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import failed_cells, notes_of
from mlxroles.studies import together
from mlxroles.studies.circuits import document, results
from mlxroles.studies.circuits.work import RANDOM, TURNS, CircuitsWork, Options
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.timing import Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions


class Circuits:
    """A planned study.

    Args:
        subject: One model or a pair.
        options: What is worked out.

    Raises:
        SpecError: a head that the models do not have, or models in parts on several machines.
    """

    def __init__(self, subject: Subject, options: Options) -> None:
        if subject.ranks is not None:
            raise SpecError("circuits reads whole matrices: run it in one process")
        self.subject, self.options = subject, options
        n_heads = sizes(subject).heads or None
        for layer, head in options.heads or ():
            check_head(layer, head, n_layers=subject.n_layers, n_heads=n_heads)
        self.cells = [cell for side in subject.sides for cell in self._cells(side)]
        self.work = CircuitsWork(subject, options)

    def _cells(self, side: str) -> list[Cell]:
        options, layers = self.options, range(self.subject.n_layers)
        listed = options.shown if options.heads is None else len(options.heads)
        coords: list[dict[str, Any]] = [
            *({"model": side, "part": "layer", "layer": i} for i in layers),
            *({"model": side, "part": "composition", "layer": i} for i in layers if i),
            *({"model": side, "part": "pairs", "place": n} for n in range(listed)),
        ]
        return [Cell(cell_id(at), at) for at in coords]

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": "circuits",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "settings": self._settings(),
            "random": {"heads": RANDOM, "turns": TURNS},
            "computed_by": computed_by(self.subject.parts),
        }

    def _settings(self) -> dict[str, Any]:
        options = self.options
        named = None if options.heads is None else [head_name(*at) for at in options.heads]
        return {
            "heads": named if named is not None else options.shown,
            "fold_norms": options.fold_norms,
            "top": options.top,
            "tokens": options.tokens,
            "offsets": options.offsets,
            "seed": options.seed,
        }

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Works out what is not stored yet; writes ``summary.json``, tables, figures, the page."""
        watch = Watch()
        self.subject.check_weights()
        n = self.subject.n_layers
        view = {"kind": "circuits", "n_layers": n, "layers": list(range(n)), "prompts": []}
        opened = place.open(self.subject, self.identity(), {}, shared=False, about={"view": view})
        with opened as folder:
            self.subject.tell(emit)
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate}
            finished = together.run(self.work, self.cells, folder, emit, title=self.title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            results.write(folder, doc)
        return doc, finished

    @property
    def title(self) -> str:
        """One line that names the run."""
        return f"circuits {self.subject.display}"

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        about = {
            "schema": document.SCHEMA,
            "kind": "circuits",
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "n_layers": self.subject.n_layers,
            "names": {name: side.folder.name for name, side in self.subject.sides.items()},
            "settings": self._settings(),
        }
        return document.build(about, folder, self.cells, self._texts(folder)) | {
            "interrupted": finished.interrupted,
            "failed_cells": failed_cells(folder),
            "notes": notes_of(folder, self.subject.notes),
            "timestamp": now(),
            "versions": versions(),
        }

    def _texts(self, folder: RunFolder) -> Mapping[int, str]:
        """What the tokens of the lists say; nothing without a tokenizer."""
        ids = document.shown_ids(folder)
        if self.subject.tokenizer is None or not ids:
            return {}
        return dict(zip(ids, token_texts(ids, self.subject.tokenizer), strict=True))

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        of, n = sizes(self.subject), self.subject.n_layers
        pairs = sum((i * of.heads**2) for i in range(n))
        listed = len([c for c in self.cells if c.coords["part"] == "pairs"])
        disk = len(self.subject.sides) * 8 * (3 * pairs + n * of.heads * (700 + 4 * 128))
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "head_pairs": 3 * pairs * len(self.subject.sides),
            "listed": listed,
            "weights_bytes": sum(side.n_bytes for side in self.subject.sides.values()),
            "disk_bytes": disk,
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it.

        Multiply-adds are told as positions that pass a block, which is what rates are known of.
        """
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        wide, width = max(of.queries, 1), of.d_model
        for cell in cells:
            part, n = cell.coords["part"], 0.0
            if part == "composition":
                n = 3 * (1 + TURNS) * cell.coords["layer"] * width * wide * wide
            elif part == "layer":
                n = 2 * wide * width * width + 2 * of.vocab * width * width / self.subject.n_layers
            else:
                n = 2 * of.vocab**2 * wide / max(of.heads, 1)
            positions = n / max(of.weights, 1)
            work += passes(of, rows=1, length=8) + Work(tokens=positions, cells=1)
        return Task("circuits", self.subject, work, 4.0 + 2.0 * len(self.subject.sides))
