"""The computing half of a study of circuits: layer by layer, then pairs of layers, then tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxroles import circuits
from mlxroles.backend import mx
from mlxroles.circuits import Copying, Heads, composition, pairs, spectrum
from mlxroles.circuits.composition import Reduced
from mlxroles.circuits.matrices import readable
from mlxroles.errors import ModelError
from mlxroles.events import Cell
from mlxroles.models.model import Model
from mlxroles.runner import Result
from mlxroles.studies.circuits.axes import COPYING
from mlxroles.studies.subject import Subject

RANDOM = 100
"""Heads of random numbers beside every layer's eigenvalue scores."""
TURNS = 19
"""Random turns of the stream beside every pair of layers: the largest score of what is no more than
one turn passes all that they give once in 20 times, whatever its distribution."""
WHOLE = 2 << 30
"""Bytes of what all layers write up to which they are kept in float32."""


@dataclass(frozen=True)
class Options:
    """What is worked out.

    Args:
        heads: Heads whose pairs of tokens are listed; None for those that copy most.
        fold_norms: Whether gains of norms are in the matrices.
        top: Pairs of tokens per end of a circuit.
        tokens: Ids that are drawn for copying scores and curves.
        offsets: Distances of the curves.
        shown: Heads that are listed where none are named.
        seed: Of ids, random heads and intervals.
    """

    heads: tuple[tuple[int, int], ...] | None = None
    fold_norms: bool = True
    top: int = 10
    tokens: int = circuits.TOKENS
    offsets: int = circuits.OFFSETS
    shown: int = 4
    seed: int = 0


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    group: int


@dataclass
class _Side:
    """What is known of a model while its cells are computed."""

    joined: spectrum.Between | None = None
    copying: Copying | None = None
    reduced: dict[int, Reduced | None] = field(default_factory=dict)


class CircuitsWork:
    """Computes the cells of a study."""

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject, self.options = subject, options
        self._sides: dict[str, _Side] = {}

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """One batch per cell, model by model."""
        order = list(self.subject.sides)
        return [_Batch((cell,), order.index(cell.coords["model"])) for cell in pending]

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group.

        Raises:
            ModelError: its embedding or head cannot be read, or no layer has matrices that can.
        """
        name = batches[0].cells[0].coords["model"]
        self._sides = {name: self._sides.get(name) or _Side()}
        model = self.subject.model(name)
        circuits.ends_of(model)
        next(readable(model, fold_norms=self.options.fold_norms, notes=[]))
        yield

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """One layer, one layer beside the earlier ones, or the tokens of one head."""
        cell = batch.cells[0]
        name = cell.coords["model"]
        model, side = self.subject.model(name), self._sides[name]
        part = {"layer": self._layer, "composition": self._composition, "pairs": self._pairs}
        yield part[cell.coords["part"]](cell, model, side)

    def _rng(self, *about: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, *about])

    def _heads(self, model: Model, layer: int) -> Heads | str:
        """The matrices of a layer, or why there are none."""
        try:
            return circuits.heads_of(model, layer, fold_norms=self.options.fold_norms)
        except ModelError as error:
            return str(error).partition(": ")[2]

    # --- one layer ----------------------------------------------------------------------------

    def _layer(self, cell: Cell, model: Model, side: _Side) -> Result:
        layer, options = cell.coords["layer"], self.options
        heads = self._heads(model, layer)
        if isinstance(heads, str):
            return Result(cell, {"refused": heads})
        ends = circuits.ends_of(model)
        ids = circuits.drawn_ids(model, n=options.tokens, seed=options.seed)
        values: dict[str, Any] = {"heads": heads.q.shape[0], "notes": [*ends.notes, *heads.notes]}
        found = circuits.copied(model, heads, ids, self._rng(1), fold_norms=options.fold_norms)
        arrays = {name: found[name] for name in (*COPYING, "copied", "others")}
        if side.joined is None:
            side.joined = spectrum.between(ends, fold_norms=options.fold_norms)
        for name, eigenvalues in spectrum.eigenvalues(heads, side.joined).items():
            arrays |= {f"{name}_real": eigenvalues.real, f"{name}_imag": eigenvalues.imag}
        shares = spectrum.random_shares(heads, side.joined, self._rng(2, layer), draws=RANDOM)
        arrays |= {f"random_{name}": share for name, share in shares.items()}
        try:
            turned = circuits.rotary(model, layer)
        except ModelError as error:
            values["no_curve"] = str(error).partition(": ")[2]
        else:
            values["rope"] = "none" if turned.module is None else type(turned.module).__name__
            values["notes"] += turned.notes
            curves = circuits.curves(
                ends,
                heads,
                turned,
                ids,
                self._rng(3, layer),
                offsets=range(options.offsets),
            )
            arrays |= {f"curve_{name}": getattr(curves, name) for name in circuits.CURVE_FIELDS}
        return Result(cell, values, {k: np.asarray(v, np.float64) for k, v in arrays.items()})

    # --- pairs of layers ----------------------------------------------------------------------

    def _reduced(self, model: Model, side: _Side, layer: int) -> Reduced | None:
        """A layer as the one that writes; its readers are let go of."""
        if layer not in side.reduced:
            heads = self._heads(model, layer)
            made = None if isinstance(heads, str) else composition.reduced(heads)
            if made is not None:
                writer = made.writer
                if writer.nbytes * model.n_layers > WHOLE:
                    size = mx.sqrt((writer * writer).sum(axis=(1, 2), keepdims=True))
                    writer = (writer / mx.maximum(size, 1e-30)).astype(mx.float16)
                mx.eval(writer)
                made = Reduced(layer, writer, {})
            side.reduced[layer] = made
        return side.reduced[layer]

    def _composition(self, cell: Cell, model: Model, side: _Side) -> Result:
        layer = cell.coords["layer"]
        heads = self._heads(model, layer)
        if isinstance(heads, str):
            return Result(cell, {"refused": heads})
        later, rng = composition.reduced(heads), self._rng(4, layer)
        widest = max(block.heads for block in model.network.anatomy.blocks)
        shape = (layer, widest, heads.q.shape[0])
        arrays = {kind: np.full(shape, np.nan) for kind in composition.KINDS}
        null: dict[str, list[np.ndarray]] = {kind: [] for kind in composition.KINDS}
        for before in range(layer):
            earlier = self._reduced(model, side, before)
            if earlier is None:
                continue
            for kind, scores in composition.scores(earlier, later).items():
                arrays[kind][before, : len(scores)] = scores
            for _ in range(TURNS):
                turn = composition.turn(model.d_model, rng)
                for kind, scores in composition.scores(earlier, later, turn).items():
                    null[kind].append(scores.ravel())
        values: dict[str, Any] = {"turned": {}}
        for kind, parts in null.items():
            every = np.concatenate(parts) if parts else np.empty(0)
            values["turned"][kind] = {
                "n": int(every.size),
                "sum": float(every.sum()),
                "squares": float((every * every).sum()),
                "highest": float(every.max()) if every.size else None,
            }
        return Result(cell, values, {f"composition_{k}": a for k, a in arrays.items()})

    # --- tokens of a head ---------------------------------------------------------------------

    def _pairs(self, cell: Cell, model: Model, side: _Side) -> Result:
        at = self._chosen(cell.coords["place"], model, side)
        if at is None:
            return Result(cell, {"skipped": "the model has no more heads that copy"})
        layer, head = at
        values: dict[str, Any] = {"layer": layer, "head": head}
        heads = self._heads(model, layer)
        if isinstance(heads, str):
            return Result(cell, values | {"refused": heads})
        ends = circuits.ends_of(model)
        found = pairs.ends_of_head(ends, heads, head, fold_norms=self.options.fold_norms)
        both = [
            pairs.top_pairs(found["q"], found["k"], self.options.top),
            pairs.top_pairs(found["v"], found["o"], self.options.top),
        ]
        for name, one in zip(("qk", "ov"), both, strict=True):
            values[name] = {n: getattr(one, n) for n in ("mean", "spread", "same", "expected")}
        arrays = {
            f"pair_{name}": np.stack([np.asarray(getattr(one, name), np.float64) for one in both])
            for name in ("left", "right", "value")
        }
        return Result(cell, values, arrays)

    def _chosen(self, place: int, model: Model, side: _Side) -> tuple[int, int] | None:
        """The head at a place of the list: named, or one of those that copy most."""
        options = self.options
        if options.heads is not None:
            return options.heads[place]
        if side.copying is None:
            side.copying = circuits.copying(
                model, fold_norms=options.fold_norms, n=options.tokens, seed=options.seed
            )
        excess = np.where(np.isfinite(side.copying.excess), side.copying.excess, -np.inf)
        order = np.argsort(-excess, axis=None, kind="stable")
        if place >= np.isfinite(excess).sum():
            return None
        layer, head = np.unravel_index(order[place], excess.shape)
        return int(layer), int(head)
