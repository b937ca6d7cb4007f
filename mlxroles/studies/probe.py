"""Probes: what a model is about to say after each prompt, in the measures of ``probes``.

The cells are (model, prompt, variant): a variant is the prompt as it stands, without the tools it
offers, or under a system message. Every string is measured whole, teacher-forced, from the
prompt's keys and values where the architecture has a plain cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles import engine, probes, stats
from mlxroles.backend import mx
from mlxroles.errors import PromptError
from mlxroles.events import Cell, Emit, RunFinished
from mlxroles.models.model import Model
from mlxroles.plan import cell_id, run_id
from mlxroles.probes import Targets
from mlxroles.prompts import Prompt, token_texts
from mlxroles.runner import Result
from mlxroles.store.folder import RunFolder
from mlxroles.store.summary import SUMMARY, notes_of
from mlxroles.studies import together
from mlxroles.studies.inputs import Encoded, encoded, several_tokens, targets_for
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import safe_text
from mlxroles.timing import NOTHING, Work
from mlxroles.timing.work import passes
from mlxroles.versions import now, versions

SCHEMA = "mlxroles/probe/1"


def variants(*, no_tools: bool, system: str | None) -> dict[str, dict[str, Any]]:
    """Name -> how the prompts are rendered, for every variant asked for."""
    found: dict[str, dict[str, Any]] = {"default": {}}
    if no_tools:
        found["no-tools"] = {"tools": False}
    if system is not None:
        found["system"] = {"system": system}
    if no_tools and system is not None:
        found["system, no-tools"] = {"tools": False, "system": system}
    return found


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


class Probe:
    """A planned probe.

    Args:
        subject: One model or a pair.
        prompts: What is asked.
        how: From ``variants``.
        strings: Strings to measure, the headline first; empty for those of the prompt.
        token_ids: Ids to measure instead.
        seed: Of the bootstrap over prompts.

    Raises:
        PromptError: a variant that a prompt does not have, or nothing to measure.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        how: Mapping[str, Mapping[str, Any]],
        *,
        strings: Sequence[str] = (),
        token_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.subject, self.seed = subject, seed
        self.targets = targets_for(subject, prompts, strings, token_ids)
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
        self.cells = [
            self._cell(side, variant, p)
            for side in subject.sides
            for variant in self.variants
            for p in range(len(prompts))
        ]

    def _cell(self, side: str, variant: str, p: int) -> Cell:
        coords = {"model": side, "variant": variant, "prompt": p}
        return Cell(cell_id(coords), coords)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": "probe",
            "models": {name: side.identity for name, side in self.subject.sides.items()},
            "prompts": {
                name: [[p.id, p.digest] for p in rows] for name, rows in self.variants.items()
            },
            "strings": self.targets.document(),
            "headline": self.targets.headline,
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
        """The measures of one prompt on one model."""
        cell = batch.cells[0]
        model = self.subject.model(cell.coords["model"])
        ids = self.variants[cell.coords["variant"]][cell.coords["prompt"]].ids
        row, chains = answers(model, ids, self.targets)
        values = probes.measure(row, self.targets, decode=self._decode, chain=chains)
        yield Result(cell, values, tokens=len(ids))

    def _decode(self, token: int) -> str:
        return token_texts([token], self.subject.tokenizer)[0]

    # --- document -----------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Measures what is not measured yet; the document is also written as ``summary.json``."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {f"{n}/{p.id}": p.ids for n, rows in self.variants.items() for p in rows}
        with place.open(self.subject, self.identity(), token_ids) as folder:
            self.subject.tell(emit)
            title, notes = f"probe {self.subject.display}", self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            how["ranks"] = self.subject.ranks
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            doc = self._document(folder, finished)
            doc["estimate"] = watch.stop(finished)
            folder.write_json(SUMMARY, doc)
        return doc, finished

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        sides = self.subject.sides.values()
        return {
            "schema": "mlxroles/plan/1",
            "title": f"probe {self.subject.display}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "prompts": [
                {"id": p.id, "variant": name, "n_tokens": p.n_tokens}
                for name, rows in self.variants.items()
                for p in rows
            ],
            "layer_calls": len(self.cells) * self.subject.n_layers,
            "weights_bytes": sum(side.n_bytes for side in sides),
            "disk_bytes": 4096 * len(self.cells),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells, of = self.cells if pending is None else pending, sizes(self.subject)
        chains = [len(t.chain) - 1 for t in self.targets.strings if len(t.chain) > 1]
        after = Work(blocks=of.n_layers, unembeds=1, tokens=of.n_layers * sum(chains))
        each = Work(unembeds=1, reads=1, measures=1, cells=1) + (after if chains else NOTHING)
        each += Work(reads=sum(chains), measures=sum(chains))
        work = loads(self.subject, sorted({cell.coords["model"] for cell in cells}))
        for cell in cells:
            prompt = self.variants[cell.coords["variant"]][cell.coords["prompt"]]
            work += passes(of, rows=1, length=prompt.n_tokens) + each
        return Task("probe", self.subject, work, 0.02)

    def _document(self, folder: RunFolder, finished: RunFinished) -> dict[str, Any]:
        records = folder.records()
        rows, failed = [], []
        for cell in self.cells:
            record = records.get(cell.id)
            if record is None:
                continue
            if record.status != "ok":
                failed.append({"cell": record.id, "error": record.error})
                continue
            c = cell.coords
            prompt = self.variants[c["variant"]][c["prompt"]]
            about = {"model": c["model"], "prompt": prompt.id, "variant": c["variant"]}
            rows.append(
                {**about, "category": prompt.category, "n_tokens": prompt.n_tokens}
                | dict(record.values)
            )
        return {
            "schema": SCHEMA,
            "run": str(folder.path),
            "run_id": folder.run_id,
            "pair": self.subject.pair,
            "display": self.subject.display,
            "headline": self.targets.headline,
            "strings": self.targets.document(),
            "rows": rows,
            "means": self._means(rows),
            "interrupted": finished.interrupted,
            "failed_cells": failed,
            "notes": notes_of(folder, self.subject.notes),
            "timestamp": now(),
            "versions": versions(),
        }

    def _means(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Per model and variant the mean over prompts with its 95 % bootstrap interval."""
        found = []
        for model in self.subject.sides:
            for variant in self.variants:
                ours = [r for r in rows if (r["model"], r["variant"]) == (model, variant)]
                if len(ours) < 2:
                    continue
                mean: dict[str, Any] = {"model": model, "variant": variant, "n_prompts": len(ours)}
                for name in ("p_first_token", "p_chain", "p_union", "log_odds", "entropy"):
                    column = np.array([r[name] for r in ours], dtype=np.float64)
                    rng = np.random.default_rng([self.seed, *f"{model} {variant} {name}".encode()])
                    bounds = stats.bootstrap_mean_ci(column, rng)
                    mean[name] = float(stats.nan_mean(column))
                    mean[f"{name}_ci"] = [float(bound) for bound in bounds]
                found.append(mean)
        return found


def answers(
    model: Model, ids: Sequence[int], targets: Targets
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits after the prompt [vocab], float32, and every string's log-probability after it."""
    long = {t.text: t.chain for t in targets.strings if len(t.chain) > 1}
    model.check_tokens([ids])
    clean = engine.clean(model.network, [list(ids)], read=[len(ids) - 1], layers=())
    assert clean.logits is not None
    first = clean.logits[0, 0]
    if not np.isfinite(first).all():
        raise FloatingPointError("the logits are not all finite numbers")
    if not long:
        return first, {}
    rows = [list(chain[:-1]) for chain in long.values()]
    if clean.shape.late:
        after = list(_logits(model.run(rows, prefix=clean.prefix()).logits))
    else:
        n = len(ids)
        after = [
            _logits(model.run([*ids, *row], positions=range(n, n + len(row))).logits)[0]
            for row in rows
        ]
    chains = {}
    for steps, (text, chain) in zip(after, long.items(), strict=True):
        whole = np.concatenate([first[None], steps[: len(chain) - 1]])
        if not np.isfinite(whole).all():
            raise FloatingPointError("the logits are not all finite numbers")
        chains[text] = probes.chain_log_prob(whole, chain)
    return first, chains


def _logits(array: Any) -> np.ndarray:
    return np.array(array.astype(mx.float32))
