"""The lens on prompts: what every layer would say, of one model or of both of a pair.

The cells are (model, variant, prompt, run, lens): a variant is the prompt as it stands or without
the tools it offers, the run is clean or under a file of edits, the lens plain or tuned. With
``parts`` a further cell per prompt and run holds its direct logit attribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles import lens, probes
from mlxroles.edits import Edit
from mlxroles.errors import PromptError, SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.lens import Tuned
from mlxroles.models.model import Model
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import Prompt, token_texts
from mlxroles.runner import Result
from mlxroles.store.files import shown
from mlxroles.studies import together
from mlxroles.studies.inputs import Encoded, encoded, several_tokens, targets_for
from mlxroles.studies.lens import document, results
from mlxroles.studies.lens.positions import Where
from mlxroles.studies.lens.sources import edits_digest, sha256, tuned_file
from mlxroles.studies.lens.stored import contrast, stored
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject, stream_width
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import safe_text
from mlxroles.timing import Work
from mlxroles.timing.work import passes

TOP = 5
"""Tokens that are kept of every layer and position."""

PARTS = "parts"
"""What stands for the lens in a cell of direct logit attribution."""


@dataclass(frozen=True)
class View:
    """What is read, beside the prompts; the defaults are those of the command."""

    site: str = "resid_post"
    where: Where = field(default_factory=Where)
    tuned: Path | None = None
    """A file of ``mlxroles lens --fit``, or its run folder."""
    edits: Path | None = None
    """A file of edits, under which the prompts are read as well."""
    parts: bool = False
    """Whether direct logit attribution is computed as well."""


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


class LensStudy:
    """A planned reading.

    Args:
        subject: One model or a pair.
        prompts: What is read.
        how: Variant -> how the prompts are rendered, as ``studies.probe.variants`` makes it.
        view: What is read of them.
        strings: Strings to follow through the layers, the headline first; empty for the prompt's.
        token_ids: Ids to follow instead.
        seed: Of the bootstrap over prompts.

    Raises:
        PromptError: a variant, string or position that a prompt does not have.
        SpecError: a site that is not as wide as the stream, a tuned lens or edits that do not fit.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        how: Mapping[str, Mapping[str, Any]],
        view: View,
        *,
        strings: Sequence[str] = (),
        token_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.subject, self.view, self.seed = subject, view, seed
        if view.site not in lens.SITES:
            raise SpecError(f"--site {view.site} cannot be read: {', '.join(lens.SITES)} can")
        self.targets = targets_for(subject, prompts, strings, token_ids)
        self.by_ids = bool(token_ids)
        self.is_contrast = len(self.targets.strings) == 2 and len(strings) == 2
        subject.notes += several_tokens(self.targets)
        for prompt in prompts:
            if "no-tools" in how and prompt.plain_text is None:
                raise PromptError(
                    f"prompt '{safe_text(prompt.id)}' offers no tools that --no-tools could leave "
                    "out; use a conversation with a tools_text and a plain_text"
                )
        self.variants: dict[str, tuple[Encoded, ...]] = {
            name: encoded(subject, prompts, note=subject.notes.append, **options)
            for name, options in how.items()
        }
        self.positions = {
            name: [view.where.of(len(p.ids), p.id) for p in rows]
            for name, rows in self.variants.items()
        }
        self.tuned = {side: self._tuned(side) for side in subject.sides} if view.tuned else {}
        self.edits = None if view.edits is None else edits_digest(view.edits)
        self.cells = list(self._cells(len(prompts)))

    def _tuned(self, side: str) -> Tuned:
        """The tuned lens of a model, and a note where it is another model's."""
        assert self.view.tuned is not None
        path = tuned_file(self.view.tuned, side)
        found = lens.read_tuned(path, d_model=stream_width(self.subject))
        if found.site != self.view.site:
            raise SpecError(
                f"{shown(path)} was fitted on {found.site}; read that site, or fit a lens with "
                f"--fit --site {self.view.site}"
            )
        own = self.subject.sides[side].identity["sha256"]
        if found.model.get("sha256") != own:
            self.subject.notes.append(
                f"{side}: the tuned lens {shown(path)} was fitted on another model "
                f"({safe_text(str(found.model.get('name', 'unknown')), limit=40)}); what it gains "
                "on this one is not known"
            )
        return found

    def _cells(self, n_prompts: int) -> Iterator[Cell]:
        runs = ["clean", *(["edited"] if self.edits else [])]
        lenses = ["plain", *(["tuned"] if self.tuned else []), *([PARTS] * self.view.parts)]
        for side in self.subject.sides:
            for variant in self.variants:
                for p in range(n_prompts):
                    for run in runs:
                        for name in lenses:
                            coords = {"model": side, "variant": variant, "prompt": p}
                            coords |= {"run": run, "lens": name}
                            yield Cell(cell_id(coords), coords)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        found = {
            "kind": "lens",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "prompts": {
                name: [[p.id, p.digest] for p in rows] for name, rows in self.variants.items()
            },
            "strings": self.targets.document(),
            "headline": self.targets.headline,
            "site": self.view.site,
            "positions": self.positions,
            "computed_by": computed_by(self.subject.parts),
        }
        if self.tuned and self.view.tuned is not None:
            files = {side: tuned_file(self.view.tuned, side) for side in self.tuned}
            found["tuned"] = {side: sha256(path) for side, path in files.items()}
        if self.edits:
            found["edits"] = self.edits
        if self.view.parts:
            found["parts"] = True
        return found

    # --- computing ----------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group, and refuses one that has no lens or not these edits."""
        side = batches[0].cells[0].coords["model"]
        model = self.subject.model(side)
        lens.check(model)
        for batch in batches:
            self._edits(model, batch.cells[0])
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """The reading of one prompt."""
        cell = batch.cells[0]
        model = self.subject.model(cell.coords["model"])
        if cell.coords["lens"] == PARTS:
            yield self._parts(model, cell)
            return
        ids, where = self._place(cell)
        edits, lines = self._edits(model, cell)
        reading = lens.read(
            model,
            ids,
            site=self.view.site,
            positions=where,
            asked=[self.targets.head.first],
            top_k=TOP,
            edits=edits,
            tuned=self.tuned.get(cell.coords["model"]) if cell.coords["lens"] == "tuned" else None,
        )
        measured = probes.measure_rows(
            reading.last_logits, self.targets, decode=self._decode, top_k=1
        )
        values, arrays = stored(reading, measured)
        values |= {"edits": list(lines)} if lines else {}
        if self.is_contrast:
            arrays["contrast"] = contrast(reading.last_logits, self.targets)
        yield Result(cell, values, arrays, tokens=len(ids))

    def _place(self, cell: Cell) -> tuple[tuple[int, ...], list[int]]:
        """Ids of the cell's prompt, and the positions that are read."""
        variant, p = cell.coords["variant"], cell.coords["prompt"]
        return self.variants[variant][p].ids, self.positions[variant][p]

    def _edits(self, model: Model, cell: Cell) -> tuple[tuple[Edit, ...], tuple[str, ...]]:
        """The edits of a cell's run, and what they do in words."""
        if cell.coords["run"] != "edited" or self.view.edits is None:
            return (), ()
        from mlxroles.edit_file import read_edits

        ids, _ = self._place(cell)
        found = read_edits(self.view.edits, model, len(ids))
        for name, taken_from in found.origins:
            self.subject.note_origin(name, {"sha256": taken_from}, cell.coords["model"])
        if found.generated and not found.in_prompt:
            raise SpecError(
                f"{shown(self.view.edits)} only edits what is generated, and a lens generates "
                "nothing; use `mlxroles generate`"
            )
        return found.in_prompt, found.lines

    def _parts(self, model: Model, cell: Cell) -> Result:
        """Direct attribution of the headline's logit, less that of the second string's if two."""
        from mlxroles import direct

        ids, where = self._place(cell)
        minus = self.targets.strings[1].first if self.is_contrast else None
        plus = self.targets.head.first
        if minus == plus:
            raise PromptError("both strings begin with one token: their difference is 0 everywhere")
        edits, _ = self._edits(model, cell)
        found = direct.attribute(model, ids, where[-1], plus, minus, edits=edits)
        doc = found.document()
        values = np.asarray(doc.pop("values"), dtype=np.float64)
        return Result(cell, {PARTS: doc}, {"parts_values": values}, tokens=len(ids))

    def _decode(self, token: int) -> str:
        return token_texts([token], self.subject.tokenizer)[0]

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Reads what is not read yet; writes ``summary.json``, CSV, figures and the page."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {f"{n}/{p.id}": p.ids for n, rows in self.variants.items() for p in rows}
        about = {"view": self.about()}
        with place.open(
            self.subject, self.identity(), token_ids, about=about, shared=False
        ) as folder:
            self.subject.tell(emit)
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate, "ranks": self.subject.ranks}
            finished = together.run(self, self.cells, folder, emit, title=self.title, **how)
            doc = document.reading(self, folder, finished)
            doc["estimate"] = watch.stop(finished)
            results.write(folder, doc)
        return doc, finished

    @property
    def title(self) -> str:
        """One line that names the run."""
        return f"lens {self.subject.display}"

    def about(self) -> dict[str, Any]:
        """What displays need to know of the run."""
        named = dict.fromkeys(p.id for rows in self.variants.values() for p in rows)
        return {
            "kind": "lens",
            "n_layers": self.subject.n_layers,
            "layers": list(range(self.subject.n_layers)),
            "headline": self.targets.headline,
            "prompts": list(named),
        }

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        sides = self.subject.sides.values()
        n_layers, k = self.subject.n_layers, TOP
        read = [len(where) for rows in self.positions.values() for where in rows]
        cells = len(self.cells) / max(1, len(read))
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "prompts": [
                {"id": p.id, "variant": name, "n_tokens": p.n_tokens, "read": len(where)}
                for name, rows in self.variants.items()
                for p, where in zip(rows, self.positions[name], strict=True)
            ],
            "layer_calls": len(self.cells) * n_layers,
            "weights_bytes": sum(side.n_bytes for side in sides),
            "disk_bytes": int(cells * sum(read) * n_layers * (8 * k + 32)) + 4096 * len(self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        for cell in cells:
            ids, where = self._place(cell)
            rows = of.n_layers * len(where)
            work += passes(of, rows=1, length=len(ids)) + Work(
                unembeds=max(1, rows * of.vocab >> 24), reads=rows, measures=of.n_layers, cells=1
            )
        return Task("lens", self.subject, work, 2.0)
