"""Captures: any sites of any prompts, from one model, to one HDF5 file.

Prompts of one length run as batches; each batch is a cell whose arrays are stored as it is done,
so that a killed capture goes on where it was. The file is filled beside its place while the next
batch computes, from the parts where an earlier process left some, and takes its name when it is
whole; then the parts are removed.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.edits import SITES
from mlxroles.engine.pressure import relief
from mlxroles.errors import SpecError, StoreError
from mlxroles.events import Cell, Emit, Note, RunFinished, Stage
from mlxroles.forward import forward
from mlxroles.models.model import Model
from mlxroles.plan import parse_layers, run_id
from mlxroles.runner import Result
from mlxroles.store.capture import Store
from mlxroles.store.files import plain_errors, shown
from mlxroles.store.folder import ARRAYS, RunFolder
from mlxroles.store.manifest import MANIFEST
from mlxroles.studies import together
from mlxroles.studies.capture_file import Filling
from mlxroles.studies.inputs import Encoded
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.subject import Subject, attention_heads, stream_width
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import did_you_mean, safe_text, slug
from mlxroles.timing import Work
from mlxroles.timing.work import passes

NAMES = (*SITES, "logits")
OWN_NAME = "capture.h5"
"""The file in the folder of a run, where no other place was asked for."""
BATCH_TOKENS = 2048
"""Tokens per batch: enough to read the weights once for many short prompts."""
BATCH_NUMBERS = 1 << 26
"""Numbers kept per batch at most (256 MiB in float32)."""
ALIVE = 4
"""Batches that may be in memory at once."""


def parse_keep(text: str) -> tuple[str, ...]:
    """Sites named by a comma-separated list.

    Raises:
        SpecError: a name that is no site, with the nearest one that is.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in NAMES:
            raise SpecError(
                f"no site '{safe_text(name, limit=40)}'{did_you_mean(name, NAMES)}; sites are "
                f"{', '.join(NAMES)}"
            )
    return names


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    prompts: tuple[int, ...]
    group: int = 0


class Capture:
    """A planned capture.

    Args:
        subject: The one model, under the name ``model``.
        prompts: What to run.
        keep: Sites, of ``NAMES``.
        layers: Layers, as text; None for all.
        store: Type of the stored numbers.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Encoded],
        keep: Sequence[str],
        *,
        layers: str | None = None,
        store: Store = "f32",
    ) -> None:
        self.subject, self.prompts = subject, tuple(prompts)
        self.keep, self.store = tuple(keep), store
        self.layers = parse_layers(layers, subject.n_layers)
        self.named = layers is not None and layers.strip() != "all"
        self.cells = [batch.cells[0] for batch in self._all_batches()]

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers of the parts; they are float32 until written."""
        return {
            "kind": "capture",
            "models": {"model": self.subject.sides["model"].identity},
            "prompts": [[p.id, p.digest] for p in self.prompts],
            "keep": list(self.keep),
            "layers": list(self.layers.layers),
            "computed_by": computed_by(self.subject.parts),
        }

    @property
    def run_id(self) -> str:
        """The id of the file: of the identity and of the type that numbers are stored as."""
        return run_id(self.identity() | {"store": self.store})

    @property
    def model(self) -> Model:
        """The model, loaded on first use."""
        return self.subject.model("model")

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(p.n_tokens for p in self.prompts)

    # --- batches ------------------------------------------------------------------------------

    def _all_batches(self) -> list[_Batch]:
        by_length: dict[int, list[int]] = {}
        for n, prompt in enumerate(self.prompts):
            by_length.setdefault(prompt.n_tokens, []).append(n)
        batches = []
        for length, members in sorted(by_length.items()):
            rows = BATCH_NUMBERS // self._numbers(length)
            rows = max(1, min(rows, BATCH_TOKENS // length))
            for i in range(0, len(members), rows):
                some = tuple(members[i : i + rows])
                cell = Cell(f"capture/p{some[0]:04d}-p{some[-1]:04d}", {"prompts": list(some)})
                batches.append(_Batch((cell,), some))
        return batches

    def _numbers(self, length: int) -> int:
        """Numbers that one prompt of a length leaves behind, roughly, from the config's sizes."""
        heads = max(attention_heads(self.subject), 1)
        width, layers = stream_width(self.subject), len(self.layers)
        sizes = {"pattern": heads * length * layers, "entropy": heads * layers}
        sizes["logits"] = min(self.subject.vocab, 1 << 18)
        return length * sum(sizes.get(site, width * layers) for site in self.keep)

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """Batches whose cells are pending."""
        ids = {cell.id for cell in pending}
        return [batch for batch in self._all_batches() if batch.cells[0].id in ids]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Nothing is shared between batches but the model, which is loaded by now."""
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """Runs a batch: one array per site and layer [prompt, ...]."""
        rows = [list(self.prompts[n].ids) for n in batch.prompts]
        cut = relief.cut(rows, self.model.network.ranks)
        parts = [self._arrays(mx.array(list(now))) for now in cut]
        arrays = parts[0]
        if len(parts) > 1:
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in arrays}
        for name, array in arrays.items():
            self._check(name, array)
        yield Result(batch.cells[0], {}, arrays, len(rows) * len(rows[0]))

    def _arrays(self, tokens: mx.array) -> dict[str, np.ndarray]:
        sites = [name for name in self.keep if name != "logits"]
        kept = forward(
            self.model.network,
            tokens,
            keep=sites,
            layers=self.layers.layers if self.named else None,
            logits="logits" in self.keep,
        )
        arrays = {
            f"{site}.{layer}": _numpy(kept[site, layer])
            for site in sites
            for layer in kept.layers(site)
        }
        if kept.logits is not None:
            arrays["logits"] = _numpy(kept.logits)
        return arrays

    def _check(self, name: str, array: np.ndarray) -> None:
        """Refuses numbers that the file could not hold, before hours are spent on the others."""
        if not np.isfinite(array).all():
            raise FloatingPointError(f"{name} holds NaN or infinite numbers")
        largest = np.abs(array).max(initial=0.0)
        if self.store == "f16" and largest > np.finfo(np.float16).max and name[:7] != "entropy":
            raise StoreError(
                f"{name.replace('.', ' of layer ')} reaches {largest:.3g}, which does not fit f16: "
                "use --store f32 or bf16"
            )

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        side = self.subject.sides["model"]
        batches = self._all_batches()
        lengths = [self.prompts[batch.prompts[0]].n_tokens for batch in batches]
        sizes = [
            len(batch.prompts) * self._numbers(length)
            for batch, length in zip(batches, lengths, strict=True)
        ]
        padded = len(self.prompts) * self._numbers(self.longest)
        return {
            "schema": "mlxroles/plan/1",
            "title": f"capture {self.subject.display}: {', '.join(self.keep)}",
            "run_id": self.run_id,
            "cells": len(self.cells),
            "layers": list(self.layers.layers),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "tokens": sum(p.n_tokens for p in self.prompts),
            "layer_calls": len(self.prompts) * self.subject.n_layers,
            "weights_bytes": side.n_bytes,
            "memory_bytes": side.n_bytes + ALIVE * 4 * max(sizes),
            # the parts, which go when the file is whole, and the file, padded to the longest prompt
            "disk_bytes": 4 * sum(sizes) + (4 if self.store == "f32" else 2) * padded,
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        of, work = sizes(self.subject), Work()
        batches = self.batches(self.cells if pending is None else pending)
        for batch in batches:
            rows, length = len(batch.prompts), self.prompts[batch.prompts[0]].n_tokens
            work += passes(of, rows=rows, length=length)
            # in the parts, and in the file
            work += Work(cells=1, written=2 * 4 * rows * self._numbers(length))
            if "logits" in self.keep:
                work += Work(unembeds=1, reads=rows * length)
        work += loads(self.subject, ["model"] if batches else [])
        return Task("capture", self.subject, work, 0.05)

    # --- writing ------------------------------------------------------------------------------

    def run(self, emit: Emit, place: RunPlace) -> tuple[dict[str, Any], RunFinished]:
        """Captures what is not captured yet and writes the file.

        ``place.out`` is the file; its parts lie beside it until it is whole.

        Raises:
            StoreError: the file exists and holds something else, or cannot be written.
        """
        ranks, title = self.subject.ranks, f"capture {self.subject.display}"
        together.begin(self, self.identity(), self.cells, ranks, load=self._load)
        path, parts = self._paths(place)
        if not place.fresh and path.exists():
            if stored_run(path) != self.run_id:
                raise StoreError(
                    f"{shown(path)} exists and holds something else: choose another --out, or "
                    "pass --fresh to replace it"
                )
            emit(Note(f"{path} holds this capture already"))
            together.release(ranks)
            self._clear(place)
            return self._document(path), RunFinished(len(self.cells), 0, 0.0)
        watch = Watch()
        self.subject.tell(emit)
        self.subject.check_weights()
        # what the model refuses is refused before anything is written
        together.ask(ranks, "load", self._load)
        token_ids = {p.id: p.ids for p in self.prompts}
        opened = place.open(
            self.subject, self.identity(), token_ids, run_id=self.run_id, folder=parts, shared=False
        )
        with opened as folder, Filling(self, path, fresh=place.fresh) as file:
            notes = self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            how |= {"ranks": ranks, "stored": file.add}
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            is_whole = finished.interrupted is None and not finished.failed
            if is_whole:
                emit(Stage(f"writing {path}"))
                file.finish(folder)
        if is_whole:
            self._clear(place)
        return self._document(path) | {"estimate": watch.stop(finished)}, finished

    def _load(self) -> None:
        self.model.check_tokens([p.ids for p in self.prompts])

    def _clear(self, place: RunPlace) -> None:
        """Removes the parts of a file that is whole; those of another run are left alone."""
        path, parts = self._paths(place)
        if not (parts / MANIFEST).exists() or RunFolder.read(parts).run_id != self.run_id:
            return
        leftover = parts / ARRAYS if path.parent == parts else parts
        if leftover.is_dir():
            with plain_errors(leftover, verb="removed"):
                shutil.rmtree(leftover)

    def _paths(self, place: RunPlace) -> tuple[Path, Path]:
        """The file, and the folder of its parts."""
        if place.out is not None:
            # the file of a run in its own folder may be named too: so a run is gone on with
            if place.out.name == OWN_NAME and (place.out.parent / MANIFEST).exists():
                return place.out, place.out.parent
            return place.out, place.out.with_name(f"{place.out.name}.parts")
        folder = place.results / slug(f"capture_{self.subject.display}") / self.run_id
        return folder / OWN_NAME, folder

    def _document(self, path: Path) -> dict[str, Any]:
        return {
            "schema": "mlxroles/capture/1",
            "file": str(path),
            "run_id": self.run_id,
            "model": str(self.subject.sides["model"].folder),
            "prompts": [{"id": p.id, "n_tokens": p.n_tokens} for p in self.prompts],
            "keep": list(self.keep),
            "layers": list(self.layers.layers),
            "store": self.store,
            "bytes": path.stat().st_size if path.exists() else None,
            "notes": list(self.subject.notes),
        }


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def stored_run(path: Path) -> str | None:
    """Run id inside a capture file, or None where it is none."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("run_id"))
    except OSError:
        return None
