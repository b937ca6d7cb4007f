"""Fits a tuned lens: the cells are (model, layer), the maps go into one file per model.

Texts are split once for the whole run: the same held-out texts measure every layer of both models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxroles import lens, stats
from mlxroles.errors import PromptError, SpecError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.lens import Settings, Tuned
from mlxroles.lens.fitting import CHECKS, LEAST_TEXTS, Split, batch_size, split, streams_of
from mlxroles.lens.tuned import SUFFIX
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import Prompt
from mlxroles.runner import Result
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import notes_of
from mlxroles.studies import together
from mlxroles.studies.inputs import Encoded, encoded
from mlxroles.studies.lens import results
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject, stream_width
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.timing import Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/lens-fit/1"
DEFAULT_TEXTS = "roles"
"""The packaged prompts that are texts enough."""
PIECE = 128
"""Tokens of a text that run at once; longer texts are cut."""
FEW_TOKENS = 5_000
FEW_HELD_OUT = 6
STREAM_SITES = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


class LensFit:
    """A planned fit.

    Args:
        subject: One model or a pair.
        prompts: The texts.
        site: Of the stream.
        seed: Of the split, the training and the bootstrap.

    Raises:
        PromptError: too few texts, or one that the models cannot be asked.
        SpecError: a site that is not the stream.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        *,
        site: str = "resid_post",
        seed: int = 0,
        settings: Settings | None = None,
    ) -> None:
        if site not in STREAM_SITES:
            raise SpecError(
                f"a tuned lens is fitted on the stream, and {site} is not: "
                f"{', '.join(STREAM_SITES)} are"
            )
        self.subject, self.site, self.seed = subject, site, seed
        self.settings = settings or Settings()
        found = encoded(subject, prompts, note=subject.notes.append)
        self.texts, sources = _pieces(found)
        apart = len(set(sources)) >= LEAST_TEXTS
        self.units = sources if apart else list(range(len(self.texts)))
        """Per piece the text that it is split by: all pieces of a text serve for the same."""
        self.split: Split = split(max(self.units) + 1, np.random.default_rng([seed, 1]))
        if not apart:
            subject.notes.append(
                f"{len(set(sources))} texts are cut into {len(self.texts)} pieces, and what is "
                "held out are other pieces of the same texts: on other texts the gain may be "
                f"smaller; {LEAST_TEXTS} texts or more are held out whole"
            )
        held_out = len(self.split.held_out)
        if held_out < FEW_HELD_OUT:
            subject.notes.append(
                f"{held_out} texts are held out: too few for an interval to be believed"
            )
        n_tokens = sum(t.n_tokens - 1 for t in self.texts)
        if n_tokens < FEW_TOKENS:
            subject.notes.append(
                f"{n_tokens:,} positions are few for a tuned lens; more text (--prompt FILE, any "
                "number of times) makes a better one"
            )
        last = subject.n_layers - 1
        layers = [i for i in range(subject.n_layers) if site != "resid_post" or i != last]
        if not layers:
            raise SpecError("a model of one layer has nothing to tune: its stream is the answer")
        self.layers = layers
        self.cells = [self._cell(side, layer) for side in subject.sides for layer in layers]

    def _cell(self, side: str, layer: int) -> Cell:
        coords = {"model": side, "layer": layer}
        return Cell(cell_id(coords), coords)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": "lens-fit",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "texts": [t.digest for t in self.texts],
            "site": self.site,
            "seed": self.seed,
            "settings": vars(self.settings),
            "computed_by": computed_by(self.subject.parts),
        }

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group."""
        lens.check(self.subject.model(batches[0].cells[0].coords["model"]))
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """The map of one layer, and how it does on the held-out texts."""
        cell = batch.cells[0]
        layer, side = cell.coords["layer"], cell.coords["model"]
        model = self.subject.model(side)
        streams = streams_of(model, [t.ids for t in self.texts], layer, site=self.site)
        streams = streams._replace(text=np.array(self.units)[streams.text])
        order = list(self.subject.sides)
        rng = np.random.default_rng([self.seed, 2, order.index(side), layer])
        found = lens.fit(model, streams, self.split, rng, self.settings)
        values = {
            "kl": found.kl.tolist(),
            "loss": [[None if np.isnan(v) else float(v) for v in row] for row in found.loss],
            "constant": found.constant.tolist(),
            "best_step": found.best_step,
        }
        arrays = {"weight": found.weight, "bias": found.bias}
        yield Result(cell, values, arrays, tokens=len(streams.text))

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Fits what is not fitted yet; writes ``tuned_MODEL.safetensors`` and the results."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {t.id: t.ids for t in self.texts}
        view = {"kind": "lens-fit", "n_layers": self.subject.n_layers, "layers": self.layers}
        about = {"view": view | {"headline": "KL", "prompts": [t.id for t in self.texts]}}
        with place.open(
            self.subject, self.identity(), token_ids, about=about, shared=False
        ) as folder:
            self.subject.tell(emit)
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": self.subject.notes, "signs": vitals}
            how |= {"estimate": watch.estimate, "ranks": self.subject.ranks}
            finished = together.run(self, self.cells, folder, emit, title=self.title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            results.write_fit(folder, doc)
        return doc, finished

    @property
    def title(self) -> str:
        """One line that names the run."""
        return f"lens --fit {self.subject.display}"

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        width = stream_width(self.subject)
        return {
            "schema": "mlxroles/plan/1",
            "title": self.title,
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "prompts": [{"id": t.id, "n_tokens": t.n_tokens} for t in self.texts],
            "held_out": len(self.split.held_out),
            "layer_calls": len(self.cells) * self.subject.n_layers * len(self.texts),
            "weights_bytes": sum(side.n_bytes for side in self.subject.sides.values()),
            "disk_bytes": 8 * width * (width + 1) * len(self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        each = Work(cells=1, written=4.0 * of.d_model * (of.d_model + 1))
        for text in self.texts:
            each += passes(of, rows=1, length=text.n_tokens)
        n_positions = sum(text.n_tokens - 1 for text in self.texts)
        # a step makes logits of the lens, and goes back through them to the stream
        steps = self.settings.steps
        rows = steps * min(batch_size(self.settings, of.vocab), n_positions)
        # the ends once; what decides when to stop at every look; what is held out with both lenses
        looks = n_positions * (1 + CHECKS / 10 + 2 / 5)
        each += Work(unembeds=2 * steps + CHECKS, reads=2 * rows + looks)
        return Task("lens-fit", self.subject, work + each * len(cells), 2.0)

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        records = folder.records()
        rows, failed, files = [], [], {}
        for cell in self.cells:
            record = records.get(cell.id)
            if record is None:
                continue
            if record.status != "ok":
                failed.append({"cell": record.id, "error": record.error})
                continue
            rows.append(self._row(cell, record.values))
        for side in self.subject.sides:
            ours = [r for r in rows if r["model"] == side]
            if len(ours) == len(self.layers):
                files[side] = str(self._write(folder, side, ours))
        return {
            "schema": SCHEMA,
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "site": self.site,
            "n_layers": self.subject.n_layers,
            "models": list(self.subject.sides),
            "files": files,
            "rows": rows,
            "texts_used": len(self.texts),
            "held_out_texts": max((r["n_texts"] for r in rows), default=0),
            "n_tokens": sum(t.n_tokens for t in self.texts),
            "prompts": [{"id": name} for name in dict.fromkeys(t.id for t in self.texts)][:50],
            "settings": vars(self.settings),
            "interrupted": finished.interrupted,
            "failed_cells": failed,
            "notes": notes_of(folder, self.subject.notes),
            "timestamp": now(),
            "versions": versions(),
        }

    def _row(self, cell: Cell, values: Any) -> dict[str, Any]:
        """KL and loss of both lenses on held-out texts, and the gain with its interval."""
        row: dict[str, Any] = {**cell.coords, "best_step": values["best_step"]}
        row["n_texts"] = len(values["constant"])
        row["kl_constant"] = float(np.mean(values["constant"]))
        for name, gain in (("kl", "gain"), ("loss", "loss_gain")):
            plain, tuned = np.array(values[name], dtype=np.float64)
            rng = np.random.default_rng([self.seed, 3, *cell.id.encode(), len(name)])
            low, high = stats.bootstrap_mean_ci(plain - tuned, rng)
            row |= {
                f"{name}_plain": float(stats.nan_mean(plain)),
                f"{name}_tuned": float(stats.nan_mean(tuned)),
                gain: float(stats.nan_mean(plain - tuned)),
                f"{gain}_ci": [float(low), float(high)],
            }
        return row

    def _write(self, folder: RunFolder, side: str, rows: Sequence[dict[str, Any]]) -> str:
        """The file of one model's maps; its path."""
        found = [folder.arrays(self._cell(side, layer).id) for layer in self.layers]
        place = self.subject.sides[side]
        meta = {
            "texts": len(self.texts),
            "held_out": max(r["n_texts"] for r in rows),
            "gain": {str(r["layer"]): [r["gain"], *r["gain_ci"]] for r in rows},
            "kl_plain": {str(r["layer"]): r["kl_plain"] for r in rows},
            "kl_tuned": {str(r["layer"]): r["kl_tuned"] for r in rows},
            "run_id": folder.run_id,
        }
        tuned = Tuned(
            self.site,
            tuple(self.layers),
            np.stack([f["weight"] for f in found]),
            np.stack([f["bias"] for f in found]),
            {"name": place.folder.name, **place.identity},
            meta,
        )
        path = folder.path / f"tuned_{side}{SUFFIX}"
        lens.write_tuned(path, tuned)
        return str(path)


def _pieces(texts: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """The texts, long ones cut into pieces of equal size, and the number of each one's text.

    Pieces of one token are left out; equal texts have one number.

    Raises:
        PromptError: nothing is left.
    """
    found, sources = [], []
    known: dict[tuple[int, ...], int] = {}
    for text in texts:
        count = -(-text.n_tokens // PIECE)
        for n, ids in enumerate(np.array_split(np.array(text.ids), count)):
            if len(ids) > 1:
                piece = tuple(int(i) for i in ids)
                name = text.id if count == 1 else f"{text.id}.{n}"
                digest = text.digest if count == 1 else f"{text.digest}.{n}"
                found.append(replace(text, id=name, ids=piece, digest=digest))
                sources.append(known.setdefault(text.ids, len(known)))
    if not found:
        raise PromptError("the texts have one token each; a tuned lens needs longer ones")
    return found, sources
