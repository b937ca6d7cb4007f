"""Effects of ablations: every one by itself or growing sets, held against random ones.

The cells are (model, ablation, factor) and (model, ablation, random set), each on all prompts.
Random sets have as many heads in the same layers; for a direction they are random directions. No
model is needed here: the cells are computed in ``work`` and summed up in ``document``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.plan import cell_id, parse_positions, run_id
from mlxroles.probes import Targets
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import SUMMARY, failed_cells, notes_of
from mlxroles.studies import together
from mlxroles.studies.ablate import document
from mlxroles.studies.ablate.ablation import Ablation
from mlxroles.studies.ablate.packed import pack_run
from mlxroles.studies.ablate.prompts import partners
from mlxroles.studies.ablate.work import AblateWork, Options
from mlxroles.studies.encoded import Encoded
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import safe_text
from mlxroles.timing import Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions


class Ablate:
    """A planned study.

    Args:
        subject: One model or a pair.
        prompts: As ids.
        ablations: What is ablated; each has a key of its own.
        options: How.
        targets: What is measured after the last token of each prompt, or None.
        reference: Other prompts, for ``mean`` and ``resample``; the prompts themselves without.

    Raises:
        PromptError: there is nothing to resample from.
        SpecError: a position that a prompt does not have.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Encoded],
        ablations: Sequence[Ablation],
        options: Options,
        *,
        targets: Targets | None = None,
        reference: Sequence[Encoded] = (),
    ) -> None:
        self.subject, self.prompts, self.options = subject, tuple(prompts), options
        self.ablations, self.targets = tuple(ablations), targets
        self.reference = tuple(reference) or self.prompts
        self._check(prompts)
        drawn = options.method == "resample"
        self.partners = partners(self.prompts, self.reference, options.seed) if drawn else ()
        self.by_key = {ablation.key: ablation for ablation in ablations}
        self.cells = [cell for side in subject.sides for cell in self._cells(side)]
        self.work = AblateWork(
            subject,
            self.prompts,
            self.by_key,
            options,
            targets=targets,
            reference=(self.reference, self.partners),
        )

    def _check(self, prompts: Sequence[Encoded]) -> None:
        for prompt in prompts:
            try:
                where = parse_positions(self.options.positions, prompt.n_tokens)
            except SpecError as error:
                raise SpecError(f"prompt '{safe_text(prompt.id)}': {error}") from error
            if where.kind == "each":
                raise SpecError("--positions each is not one ablation; use all, last or numbers")
            most = max((max(a.offsets or (0,)) for a in self.ablations), default=0)
            first = min(where.positions) if where.kind != "all" else prompt.n_tokens - 1
            if most > first:
                shown = safe_text(prompt.id)
                raise SpecError(
                    f"prompt '{shown}' has no token {most} before position {first}; name "
                    "smaller --values or later --positions"
                )

    def _cells(self, side: str) -> Iterator[Cell]:
        yield self._cell({"model": side, "what": "baseline"})
        for ablation in self.ablations:
            for factor in self.options.steps:
                yield self._cell(self._coords(side, ablation, factor))
        for ablation in self.ablations:
            if self.has_random(ablation):
                for n in range(self.options.random):
                    coords = self._coords(side, ablation, self.options.strongest)
                    yield self._cell(coords | {"random": n})

    def _coords(self, side: str, ablation: Ablation, factor: float) -> dict[str, Any]:
        how = {"factor": f"{factor:g}"} if self.options.method == "scale" else {}
        return {"model": side, "what": ablation.key, **how}

    def _cell(self, coords: dict[str, Any]) -> Cell:
        return Cell(cell_id(coords), coords)

    @property
    def is_each(self) -> bool:
        """Whether every head of the models is ablated by itself: each is then another's null."""
        of = [a for a in self.ablations if a.kind == "heads" and len(a.heads) == 1]
        layers = {a.heads[0][0] for a in of}
        return (
            len(of) > 1 and len(layers) == self.subject.n_layers and len(of) == len(self.ablations)
        )

    def has_random(self, ablation: Ablation) -> bool:
        """Whether an ablation is held against random sets that are run for it."""
        if ablation.kind == "direction":
            return True
        if ablation.kind not in ("heads", "values", "components") or self.is_each:
            return False
        if self.options.test == "joint":
            return ablation.is_joint
        return bool(ablation.heads or ablation.slots or ablation.components)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        options = self.options
        found = {
            "kind": "ablate",
            "test": options.test,
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "prompts": [[p.id, p.digest] for p in self.prompts],
            "ablations": [ablation.document() for ablation in self.ablations],
            "method": options.method,
            "factors": list(options.steps),
            "positions": options.positions,
            "random": options.random,
            "seed": options.seed,
            "computed_by": computed_by(self.subject.parts),
        }
        if options.method in ("mean", "resample"):
            found["reference"] = [p.digest for p in self.reference]
        if options.parts is not None:
            found["components"] = options.parts.digest
        if options.directions:
            found["directions"] = document.digest(options.directions)
        if self.targets is not None:
            found |= {"strings": self.targets.document(), "headline": self.targets.headline}
        return found

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Measures what is not measured yet; the document is also written as ``summary.json``."""
        together.begin(self.work, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.prompts}
        opened = place.open(
            self.subject, self.identity(), token_ids, shared=False, about={"view": self._view()}
        )
        with opened as folder:
            self.subject.tell(emit)
            title = f"ablate {self.subject.display}, {self.options.test}"
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate, "ranks": self.subject.ranks}
            finished = together.run(self.work, self.cells, folder, emit, title=title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            folder.write_json(SUMMARY, doc)
            document.write_table(folder, doc, self.cells)
            pack_run(folder)
        return doc, finished

    def _view(self) -> dict[str, Any]:
        return {
            "kind": "ablate",
            "test": self.options.test,
            "n_layers": self.subject.n_layers,
            "layers": list(range(self.subject.n_layers)),
            "headline": document.headline(self.is_repeated, self.targets is not None),
            "prompts": [p.id for p in self.prompts],
        }

    @property
    def is_repeated(self) -> bool:
        """Whether all prompts are sequences [x, x], of which a repetition gain is measured."""
        return all(document.repeats(p.ids) for p in self.prompts)

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        options = self.options
        about = {
            "schema": document.SCHEMA,
            "kind": "ablate",
            "test": options.test,
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "models": list(self.subject.sides),
            "n_layers": self.subject.n_layers,
            "method": options.method,
            "positions": options.positions,
            "headline": document.headline(self.is_repeated, self.targets is not None),
            "measured": None if self.targets is None else self.targets.headline,
            "is_each": self.is_each,
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "seed": options.seed,
        }
        return document.build(
            about,
            folder,
            self.cells,
            {key: (a.name, a.kind, a.is_joint) for key, a in self.by_key.items()},
        ) | {
            "interrupted": finished.interrupted,
            "failed_cells": failed_cells(folder),
            "notes": notes_of(folder, self.subject.notes),
            "timestamp": now(),
            "versions": versions(),
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        return {
            "schema": "mlxroles/plan/1",
            "title": f"ablate {self.subject.display}, {self.options.test}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "ablations": len(self.ablations),
            "random": sum("random" in cell.coords for cell in self.cells),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "layer_calls": len(self.cells) * len(self.prompts) * self.subject.n_layers,
            "weights_bytes": sum(side.n_bytes for side in self.subject.sides.values()),
            "disk_bytes": sum(512 if "random" in c.coords else 8192 for c in self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        one = Work(cells=1)
        lengths = Counter(prompt.n_tokens for prompt in self.prompts)
        for length, rows in lengths.items():  # prompts of one length run together
            one += passes(of, rows=rows, length=length, times=0.6)
        tokens = sum(length * rows for length, rows in lengths.items())
        one += Work(unembeds=len(lengths), reads=tokens, measures=tokens / 8)
        return Task("ablate", self.subject, work + one * len(cells), 3.0)
