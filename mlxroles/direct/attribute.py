"""One run, and what each part of it writes to a logit."""

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mlxroles.anatomy import ROUNDINGS, sum_error, tolerance
from mlxroles.backend import mx, nn, number
from mlxroles.direct.norms import frozen
from mlxroles.direct.parts import Parts
from mlxroles.direct.readout import Readout, readout, spread
from mlxroles.direct.structure import Structure, Writer, structure_of
from mlxroles.direct.witness import Leaf, Witness
from mlxroles.edits import Edit
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward import Network
from mlxroles.models.model import Model

Ids = int | Sequence[int]

_EXACT = 1e-5
"""Share of all that the parts write up to which what is left is nothing."""
_ROUNDED = {mx.float32: 1e-2, mx.float16: 2e-2}
"""Share up to which it is rounding (some heads of float32 models are bfloat16); bfloat16: 0.1."""
_SATURATED = 1 - 1e-6
"""Largest share of a soft-cap that is inverted."""


class _Value(NamedTuple):
    """One part and what it writes."""

    name: str
    kind: str
    layer: int | None
    head: int | None
    value: mx.array
    """[position], float32."""


def attribute(
    model: Model,
    ids: Sequence[int],
    position: int,
    ids_plus: Ids,
    ids_minus: Ids | None = None,
    *,
    edits: Sequence[Edit] = (),
) -> Parts:
    """Direct attribution of a logit, or of a difference of logits, at one position.

    Args:
        model: The model.
        ids: Token ids of one prompt.
        position: Where the logit is read; negative positions count from the end.
        ids_plus: Token id, or several, of which the mean logit is taken.
        ids_minus: Those whose mean logit is taken off; None for the logit itself.
        edits: Interventions under which the model runs.

    Returns:
        Values [part], which add up to ``total``.

    Raises:
        ModelError: a model whose final stream cannot be read as a sum, by name.
        PromptError: a token id that the model does not have, or one on both sides.
        ValueError: a position that does not exist.
    """
    several = attribute_positions(model, ids, [position], ids_plus, ids_minus, edits=edits)
    return Parts(
        several.names,
        several.kinds,
        several.layers,
        several.heads,
        several.values[:, 0],
        several.positions,
        several.logit[0],
        several.total[0],
        several.cap,
        several.ids_plus,
        several.ids_minus,
        several.notes,
    )


def attribute_positions(
    model: Model,
    ids: Sequence[int],
    positions: Sequence[int] | None,
    ids_plus: Ids,
    ids_minus: Ids | None = None,
    *,
    edits: Sequence[Edit] = (),
) -> Parts:
    """The same at several positions of one run; None for all of them.

    Returns:
        Values [part, position].

    Raises:
        as ``attribute``.
    """
    row = [operator.index(i) for i in ids]
    structure = structure_of(model.network)
    model.check_tokens([row])
    read = _positions(positions, len(row))
    plus, minus = _sides(model, ids_plus, ids_minus)
    weights = spread(model.vocab, plus, minus)
    job = _Job(model.network, structure, row, read, edits=edits, weights=weights)
    values = job.values(job.readout())
    used = mx.where(weights != 0, job.logits.astype(mx.float32) * weights, 0.0)
    arrays = np.array(mx.stack([v.value for v in values]), dtype=np.float64)
    return Parts(
        names=tuple(v.name for v in values),
        kinds=tuple(v.kind for v in values),
        layers=tuple(v.layer for v in values),
        heads=tuple(v.head for v in values),
        values=arrays,
        positions=tuple(read),
        logit=np.array(used.sum(axis=-1), dtype=np.float64),
        total=arrays.sum(axis=0),
        cap=job.cap,
        ids_plus=plus,
        ids_minus=minus,
        notes=tuple(job.notes),
    )


def _positions(positions: Sequence[int] | None, length: int) -> list[int]:
    wanted = range(length) if positions is None else [operator.index(p) for p in positions]
    bad = [p for p in wanted if not -length <= p < length]
    if bad or not wanted:
        found = f"position {bad[0]} is outside 0..{length - 1}" if bad else "no position is named"
        raise ValueError(found)
    return [p % length for p in wanted]


def _sides(model: Model, plus: Ids, minus: Ids | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids on both sides, each once.

    Raises:
        PromptError: no ids, one outside the vocabulary, or one on both sides.
    """
    sides = []
    for given in (plus, () if minus is None else minus):
        several = given if isinstance(given, Sequence) else [given]
        sides.append(tuple(dict.fromkeys(operator.index(i) for i in several)))
    if not sides[0] or (minus is not None and not sides[1]):
        raise PromptError("no token id is given whose logit is attributed; give at least one")
    for i in (*sides[0], *sides[1]):
        if not 0 <= i < model.vocab:
            raise PromptError(f"token id {i} is outside 0..{model.vocab - 1} of {model.name}")
    both = {*sides[0]} & {*sides[1]}
    if both:
        raise PromptError(f"token id {min(both)} is on both sides of the difference; take one out")
    return sides[0], sides[1]


class _Job:
    """One run at the positions asked for, and how its arrays are read."""

    def __init__(
        self,
        network: Network,
        structure: Structure,
        row: Sequence[int],
        read: Sequence[int],
        *,
        edits: Sequence[Edit],
        weights: mx.array,
    ) -> None:
        self.network, self.structure, self.edits = network, structure, edits
        self.weights = weights
        self.notes: list[str] = []
        self.cap: float | None = None
        n = len(network.layers)
        sites = [(s, i) for s in ("resid_pre", "resid_post") for i in range(n)]
        for i, block in enumerate(network.anatomy.blocks):
            sites += [(s, i) for s in ("attn_out", "mlp_out") if s not in block.missing]
        self.modules = {leaf: self._module(leaf) for leaf in self._leaves()}
        run = Witness(network, sites, self.modules, read=read, edits=edits)
        logits = run.run(mx.array([[*row]]))
        self.logits = logits[0]
        mx.eval(self.logits, list(run.seen.values()), list(run.noted.values()))
        self.seen = {key: array[0].astype(mx.float32) for key, array in run.seen.items()}
        self.noted = {leaf: (x[0], y[0]) for leaf, (x, y) in run.noted.items()}

    def _leaves(self) -> Iterator[Leaf]:
        yield None, self.structure.final
        for i, writer in enumerate(self.structure.writers):
            if writer is not None:
                yield i, writer.path
                if writer.norm is not None:
                    yield i, writer.norm

    def _module(self, leaf: Leaf) -> nn.Module:
        layer, path = leaf
        whole = self.network.module if layer is None else self.network.layers[layer]
        return dict(whole.named_modules())[path]

    def readout(self) -> Readout:
        """How the final stream is read for the weighted sum of logits."""
        given, made = self.noted[None, self.structure.final]
        last = self.seen["resid_post", len(self.network.layers) - 1]
        self.final, normed = (given, made) if self.structure.is_norm else (last, given)
        self.final = self.final.astype(mx.float32)
        found = readout(
            self.network,
            self.structure,
            self.final,
            normed,
            logits=self.logits,
            weights=self.weights,
        )
        self.cap = found.cap
        return found

    def values(self, readout: Readout) -> list[_Value]:
        """Every part, in the order in which they are written."""
        n, last = readout.reader.shape[0], len(self.network.layers) - 1
        if self._edits(0, "resid_pre"):
            self.notes.append("the embedding is the edited one")

        def read(stream: mx.array) -> mx.array:
            return (stream * readout.reader).sum(axis=-1)

        parts = [_Value("embedding", "embedding", None, None, read(self.seen["resid_pre", 0]))]
        for i in range(last + 1):
            parts += self._written(i, readout.reader)
            after = self.final if i == last else self.seen["resid_pre", i + 1]
            left = self.seen["resid_post", i]
            if not _close(after, left, dtype=self.network.anatomy.dtype):
                edited = self._edits(i + 1, "resid_pre")
                name, kind = ("L{} edit", "edit") if edited else ("after L{}", "other")
                parts.append(_Value(name.format(i + edited), kind, i, None, read(after - left)))
        biases = {"final norm bias": readout.norm_bias, "head bias": readout.head_bias}
        for name, bias in biases.items():
            if bias:
                parts.append(_Value(name, "bias", None, None, mx.full(n, bias)))
        parts += self._rounding(sum((p.value for p in parts), mx.zeros(n)), parts)
        return parts

    def _rounding(self, total: mx.array, parts: Sequence[_Value]) -> Iterator[_Value]:
        """What is left to the model's own logit before a soft-cap, where that is anything.

        Raises:
            ModelError: more is left than roundings.
        """
        own = self.logits.astype(mx.float32)
        if self.cap is not None:
            inside = mx.clip(own / self.cap, -_SATURATED, _SATURATED)
            own = self.cap * mx.arctanh(inside)
        off = mx.where(self.weights != 0, own * self.weights, 0.0).sum(axis=-1) - total
        size = sum((mx.abs(p.value) for p in parts), mx.zeros(1))
        share = number((mx.abs(off) / mx.maximum(size, 1e-30)).max())
        dtype = self.network.anatomy.dtype
        if not share <= _ROUNDED.get(dtype, 0.1):
            raise ModelError(
                f"{self.network.architecture} has no direct logit attribution here: its parts "
                f"miss the logit by {share:.1e} of all that they write"
            )
        if dtype != mx.float32 or share > _EXACT:
            yield _Value("rounding", "rounding", None, None, off)

    def _written(self, i: int, reader: mx.array) -> Iterator[_Value]:
        """What one block writes."""
        before, after = (self.seen[site, i] for site in ("resid_pre", "resid_post"))
        terms = [before]
        attn, mlp = (self.seen.get((site, i)) for site in ("attn_out", "mlp_out"))
        if attn is not None:
            yield from self._attention(i, attn, reader)
            terms.append(attn)
        if mlp is not None:
            yield _Value(f"L{i} MLP", "mlp", i, None, (mlp * reader).sum(axis=-1))
            terms.append(mlp)
        if not _close(after, *terms, dtype=self.network.anatomy.dtype):
            edited = self._edits(i, "resid_post")
            name = "edit" if edited else "block" if attn is None and mlp is None else "other"
            rest = (after - sum(terms, mx.zeros_like(before))) * reader
            yield _Value(f"L{i} {name}", "edit" if edited else "other", i, None, rest.sum(axis=-1))

    def _edits(self, layer: int, site: str) -> bool:
        """Whether a site of a layer is edited."""
        return any(e.layer == layer and e.site == site for e in self.edits)

    def _attention(self, i: int, out: mx.array, reader: mx.array) -> Iterator[_Value]:
        """The heads of a layer and the biases after them, or its attention in one."""
        whole = (out * reader).sum(axis=-1)
        writer = self.structure.writers[i]
        found = None if writer is None else self._heads(i, writer, reader)
        if found is not None:
            values, bias = found
            size = mx.abs(values).sum(axis=-1) + mx.abs(bias) + mx.abs(whole)
            off = mx.abs(values.sum(axis=-1) + bias - whole) / mx.maximum(size, 1e-30)
            if number(off.max()) <= 5 * tolerance(self.network.anatomy.dtype):
                for h in range(values.shape[1]):
                    yield _Value(f"L{i}H{h}", "head", i, h, values[:, h])
                if number(mx.abs(bias).max()):
                    yield _Value(f"L{i} attention bias", "bias", i, None, bias)
                return
        edited = self._edits(i, "attn_out")
        why = "its output is edited" if edited else "nothing shows what each writes"
        self.notes.append(f"the heads of layer {i} are one part: {why}")
        yield _Value(f"L{i} attention", "attention", i, None, whole)

    def _heads(self, i: int, writer: Writer, reader: mx.array) -> tuple[mx.array, mx.array] | None:
        """What every head [position, head] and the biases after them [position] write, or None."""
        bias = mx.zeros(reader.shape[0])
        if writer.norm is not None:
            held = frozen(self.modules[i, writer.norm], self.noted[i, writer.norm][0])
            if held is None:
                return None
            reader = reader * writer.after
            bias = (reader * held.bias).sum(axis=-1)
            reader = held.pulled_back(reader)
        reader = reader * writer.scale
        module, x = self.modules[i, writer.path], self.noted[i, writer.path][0].astype(mx.float32)
        (constant,), (back,) = mx.vjp(module, [mx.zeros((1, *x.shape))], [reader[None]])
        bias = bias + (constant[0].astype(mx.float32) * reader).sum(axis=-1)
        heads = self.network.block(i).heads
        return (x * back[0]).reshape(x.shape[0], heads, -1).sum(axis=-1), bias


def _close(total: mx.array, *terms: mx.array, dtype: mx.Dtype) -> bool:
    """Whether terms add up to a total but for the roundings of the model's dtype."""
    return number(sum_error(total.astype(dtype), *terms)) <= 2 * ROUNDINGS
