"""One batch of patched runs: rows join the model's loop where they differ from the clean run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles.anatomy import residual_place
from mlxroles.backend import mx
from mlxroles.edits import LINEAR, Edit, LowRank, add_map, apply, changes, onto
from mlxroles.engine import counting
from mlxroles.engine.caches import after, attend_shared, shares
from mlxroles.engine.clean import COMPANIONS, Clean
from mlxroles.engine.drive import Drive, again, cut, rows_of
from mlxroles.engine.rows import LATE, ORDER, Row, Spot, first_edits, least_calls, spot
from mlxroles.forward import Network, forward
from mlxroles.forward.asked import Asked, at
from mlxroles.taps import AttentionCall, ModuleCall


@dataclass(frozen=True, eq=False)
class Answer:
    """What one row ended in, at the positions that are read."""

    logits: np.ndarray
    """[n_read, vocab], float32."""
    final: mx.array | None
    """Final residual stream [n_read, d_model]; None where it cannot be captured."""


def run_batch(network: Network, own: Clean, rows: Sequence[Row]) -> list[Answer]:
    """Runs rows together; see ``engine.run``."""
    shape = own.shape
    if not network.anatomy.resumable:
        unmoved = [spot(row, shape) is None for row in rows]
        return [
            _unmoved(own, row) if n else _whole(network, own, row)
            for n, row in zip(unmoved, rows, strict=True)
        ]
    still = _unchanged(own, rows)
    if network.ranks is not None:  # all must run the same rows
        still = network.ranks.first(still)
    spots = [None if still[n] else spot(row, shape) for n, row in enumerate(rows)]
    moved = [(s, n) for n, s in enumerate(spots) if s is not None]
    moved.sort(key=lambda pair: (pair[0].order, pair[1]))
    answers = {n: _unmoved(own, row) for n, row in enumerate(rows) if spots[n] is None}
    if moved:
        job = _Batch(network, own, [(s, rows[n]) for s, n in moved])
        for (_, n), answer in zip(moved, job.answers(), strict=True):
            answers[n] = answer
    return [answers[n] for n in range(len(rows))]


def _unchanged(own: Clean, rows: Sequence[Row]) -> list[bool]:
    """Whether the edits of each row put in what is there: its run is then the clean one."""
    changed = []
    for row in rows:
        first, clean, begins = first_edits(row.edits), None, 0
        site, layer = first[0].site, first[0].layer
        if len(first) == len(row.edits) and site in ("resid_pre", "resid_post"):
            clean, begins = own.entering(layer + (site == "resid_post"))
        elif len(first) == len(row.edits):
            clean, begins = own.sites.get(site, {}).get(layer), own.begins(site, layer)
        if clean is None:
            changed.append(mx.array(True))
            continue
        array = rows_of(clean, [row.prompt])
        moved = [onto(edit, begins, own.shape.length) for edit in first]
        checks = [changes(edit, array) for edit in moved if edit is not None]
        changed.append(mx.stack(checks).any() if checks else mx.array(False))
    return [not c for c in mx.stack(changed).tolist()]  # ty: ignore[not-iterable]


def _unmoved(own: Clean, row: Row) -> Answer:
    """A row whose edits reach no position that is read."""
    assert own.logits is not None
    return Answer(own.logits[row.prompt], None if own.final is None else own.final[row.prompt])


def _whole(network: Network, own: Clean, row: Row) -> Answer:
    """A row of an architecture that cannot be resumed: the model runs from the first layer on."""
    last = len(network.layers) - 1
    ends = [] if own.final is None else ["resid_post"]
    run = forward(
        network,
        own.tokens[row.prompt : row.prompt + 1],
        keep=ends,
        layers=[last],
        edits=row.edits,
        read=list(own.read),
    )
    counting.add(made=last + 1, least=last + 1)
    assert run.logits is not None
    logits = np.array(run.logits[0].astype(mx.float32))
    return Answer(logits, at(run["resid_post", last], own.read)[0] if ends else None)


@dataclass(frozen=True, eq=False)
class _Placed:
    """A row, and what the batch does with its edits."""

    row: Row
    spot: Spot
    first: tuple[Edit, ...]
    """Those that come first, made as the row joins."""
    later: dict[int, list[Edit]]
    """Layer -> the others, made as the run passes them."""

    @classmethod
    def of(cls, row: Row, spot: Spot) -> "_Placed":
        """The row with its edits sorted."""
        first, later = first_edits(row.edits), {}
        for edit in row.edits:
            if not any(edit is made for made in first):
                later.setdefault(edit.layer, []).append(edit)
        return cls(row, spot, first, later)


class _Batch(Drive):
    """The forward of a batch.

    Args:
        network: The recipient.
        own: Its clean run.
        rows: What joins, in joining order.
    """

    def __init__(self, network: Network, own: Clean, rows: Sequence[tuple[Spot, Row]]) -> None:
        first = min(s.start for s, _ in rows)
        edits = tuple(e for _, row in rows for e in row.edits)
        super().__init__(
            network, Asked((), None, edits, None, None, 0, through=True), own.shape, first
        )
        self.own, self.rows = own, [_Placed.of(row, s) for s, row in rows]
        self.joining: dict[tuple[int, str | None], list[_Placed]] = {}
        for placed in self.rows:
            key = placed.spot.layer, placed.spot.inside
            self.joining.setdefault(key, []).append(placed)
        self.entered: list[_Placed] = []
        for s, _ in rows:  # hooks are made for these sites too
            if s.inside in own.sites and s.layer in own.sites[s.inside]:
                helpers = [name for name in COMPANIONS.get(s.inside, ()) if name in own.sites]
                self.edits |= {
                    (name, s.layer): [] for name in helpers if (name, s.layer) not in self.edits
                }
        self.every = dict(self.edits)
        self.stream: mx.array | None = None
        self.known: dict[tuple[str, int], mx.array] = {}
        self.final: mx.array | None = None
        self.made = 0.0

    def answers(self) -> list[Answer]:
        """Runs the batch and evaluates it."""
        tokens, shape = self.own.tokens[:1, self.first :], self.shape
        out = self.go(tokens)
        assert self.final is not None
        mx.eval(out, self.final)
        least = sum(least_calls(placed.spot, shape) for placed in self.rows)
        counting.add(made=self.made, least=least)
        logits = np.array(out.astype(mx.float32))
        return [Answer(logits[n], self.final[n]) for n in range(len(self.rows))]

    # --- layers -------------------------------------------------------------------------------

    def layer(self, call: ModuleCall) -> Any:
        """Runs one block on the rows that are in, then on those that join inside it."""
        assert call.frame is not None
        i = call.frame.layer
        place = residual_place(call, self.output, self.network.architecture)
        h = call.args[place] if isinstance(place, int) else call.kwargs[place]
        parts = [] if self.stream is None else [self.stream]
        before = self.joining.get((i, None), [])
        if before:
            parts.append(self._entering(i, before))
            self.entered += before
        left = []
        if parts:
            left.append(self._through(call, place, _joined(parts), self.entered))
        for site in ORDER:
            here = self.joining.get((i, site), [])
            if here:
                left.append(self._inside(call, place, site, here))
                self.entered = [*self.entered, *here]
        self.stream = _joined(left) if left else None
        if i < self.n - 1:
            self.output = h if self.stream is None else self.stream
            return self.output
        done = self.joining.get((self.n, None), [])
        if done:
            wanted = [p - self.shape.first_read for p in self.shape.read]
            left.append(at(self._entering(self.n, done), wanted))
        self.final = _joined(left)
        return self.final

    def _entering(self, i: int, rows: Sequence[_Placed]) -> mx.array:
        """Streams with which rows join before block i, their first edits made."""
        clean, begins = self.own.entering(i)
        return self._made(clean, begins, max(begins, self.first), rows)

    def _made(self, clean: mx.array, begins: int, first: int, rows: Sequence[_Placed]) -> mx.array:
        """Clean arrays of rows with their first edits, from position ``first`` on.

        Args:
            clean: Array [prompt, ...] that holds the positions from ``begins`` on.
            begins: Its first position.
            first: First position of the result.
            rows: Rows whose first edits are made here.
        """
        assert first >= begins
        made = []
        for placed in rows:
            array = rows_of(clean, [placed.row.prompt])
            array = _from(array, first - begins, placed.first[0].site)
            for edit in placed.first:
                moved = onto(edit, first, self.shape.length)
                array = array if moved is None else apply(moved, array)
            made.append(array)
        return _joined(made)

    def _through(
        self,
        call: ModuleCall,
        place: int | str,
        h: mx.array,
        rows: Sequence[_Placed],
        *,
        done: bool = True,
    ) -> mx.array:
        """What leaves a block for rows that enter it with streams h [row, position, d_model].

        At the last block only the positions that are read. ``done``: the rows' first edits are in
        their streams.
        """
        assert call.frame is not None
        i, shape = call.frame.layer, self.shape
        self.edits = self._edits_at(i, rows, done=done)
        late = i == self.n - 1 and self.first < shape.first_read
        late = late and not {("k", i), ("v", i)} & {*self.edits}
        if self.caches is not None:
            prompts = [placed.row.prompt for placed in rows]
            k, v = (rows_of(a[:, :, : self.first], prompts) for a in self.own.keys[i])
            self.caches[i].put((k, v))
            self.offset = self.first
        mine = again(call)
        h = self._pass("resid_pre", i, h[...])
        share = h.shape[1] / shape.length
        if late:
            h = self.late_block(mine, place, h)
            share = h.shape[1] / shape.length
        else:
            h, _ = self._block(mine, place, h)
        if self.caches is not None:
            self.caches[i].clear()
        self.made += len(rows) * share
        self.edits, self.known = self.every, {}
        if i < self.n - 1:
            return h
        return at(h, [p - (shape.first_read if late else self.first) for p in shape.read])

    def _inside(
        self, call: ModuleCall, place: int | str, site: str, rows: Sequence[_Placed]
    ) -> mx.array:
        """Rows that join inside a block, at a site of which the clean arrays are known.

        What lies before the site in the block is left unevaluated.
        """
        assert call.frame is not None
        i, own, prompts = call.frame.layer, self.own, [placed.row.prompt for placed in rows]
        begun, begins = self.first, own.begins(site, i)
        edited = {e.site for placed in rows for e in placed.row.edits if e.layer == i}
        if i == self.n - 1 and edited <= {*LATE}:
            self.first = self.shape.first_read
        # an edited pattern goes in as a difference to the one that is computed here
        stored = None if site == "pattern" else own.sites.get(site, {}).get(i)
        if stored is not None:
            self.known[site, i] = self._made(stored, begins, self.first, rows)
            for other in (s for s in COMPANIONS.get(site, ()) if i in own.sites.get(s, {})):
                whole = rows_of(own.sites[other][i], prompts)
                whole = mx.broadcast_to(whole, (len(rows), *whole.shape[1:]))
                self.known[other, i] = _from(whole, self.first - begins, other)
        h = rows_of(own.entering(i)[0], prompts)[:, self.first :]
        h = mx.broadcast_to(h, (len(rows), *h.shape[1:]))
        length = self.shape.length
        mine = call if self.first == begun else cut(call, length - begun, length - self.first)
        h = self._through(mine, place, h, rows, done=stored is not None)
        self.first = begun
        return h

    # --- edits --------------------------------------------------------------------------------

    def _edits_at(
        self, i: int, rows: Sequence[_Placed], *, done: bool
    ) -> dict[tuple[str, int], list[tuple[int, Edit]]]:
        """(site, layer) -> row and edit of all edits that are left to make in a block."""
        found: dict[tuple[str, int], list[tuple[int, Edit]]] = {key: [] for key in self.known}
        for n, placed in enumerate(rows):
            left = (
                placed.later.get(i, ()) if done else [e for e in placed.row.edits if e.layer == i]
            )
            for edit in left:
                found.setdefault((edit.site, i), []).append((n, edit))
        return found

    def _known(self, site: str, layer: int) -> bool:
        return (site, layer) in self.known

    def _pass(self, site: str, layer: int, array: mx.array) -> mx.array:
        """The array after the edits of the rows that are running [row, ...]."""
        array = self.known.get((site, layer), array)
        due = self.edits.get((site, layer), ())
        return self._edited(array, due, lambda _, edit, piece: apply(edit, piece))

    def _pass_leaf(self, path: str, layer: int, x: mx.array, y: mx.array) -> mx.array:
        """What a linear leaf returns after the edits of the rows that are running."""
        due = [
            (n, edit)
            for n, edit in self.edits[LINEAR, layer]
            if isinstance(edit.value, LowRank) and edit.value.leaf == path
        ]
        return self._edited(y, due, lambda n, edit, piece: add_map(edit, x[n : n + 1], piece))

    def _edited(
        self,
        array: mx.array,
        due: Sequence[tuple[int, Edit]],
        change: Callable[[int, Edit, mx.array], mx.array],
    ) -> mx.array:
        """The array [row, ...] with each row's edits made by ``change(row, edit, its part)``."""
        by_row: dict[int, list[Edit]] = {}
        for n, edit in due:
            moved = onto(edit, self.first, self.shape.length)
            if moved is not None:
                by_row.setdefault(n, []).append(moved)
        if not by_row:
            return array
        pieces, begun = [], 0
        for n, edits in sorted(by_row.items()):
            if n > begun:
                pieces.append(array[begun:n])
            piece = array[n : n + 1]
            for edit in edits:
                piece = change(n, edit, piece)
            pieces.append(piece)
            begun = n + 1
        if begun < array.shape[0]:
            pieces.append(array[begun:])
        return _joined(pieces)

    # --- attention ----------------------------------------------------------------------------

    def _own_positions(self, name: str, i: int, call: AttentionCall) -> mx.array:
        """As ``Job``'s, without reading a copy of the prefix where the cache has it."""
        n, cache = ("k", "v").index(name), None if self.caches is None else self.caches[i]
        if cache is None or cache.shown is None or getattr(call, name) is not cache.shown[n]:
            return super()._own_positions(name, i, call)
        assert cache.own is not None
        own = self._pass_heads(name, i, cache.own[n].swapaxes(1, 2), 2).swapaxes(1, 2)
        return own if cache.before is None else after(cache.before[n], own)

    def wants_attention(self) -> bool:
        """Also where rows share a prefix, which the kernel would have them copy."""
        shares_prefix = self.caches is not None and self.shape.first_read > 0
        return super().wants_attention() or shares_prefix

    def attention(self, call: AttentionCall) -> mx.array:
        """Outputs z of the rows that run; a shared prefix of keys and values is read in place."""
        i = call.frame.layer
        touched = {site for site, layer in self.edits if layer == i}
        if self.caches is not None and not touched & {"q", "k", "v", "pattern", "z"}:
            cache = self.caches[i]
            if shares(call, cache):
                return attend_shared(call, cache)
        return super().attention(call)


def _joined(parts: Sequence[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts))


def _from(array: mx.array, first: int, site: str) -> mx.array:
    """The array's positions from ``first`` on; queries of a pattern."""
    if first <= 0:
        return array
    return array[:, :, first:] if site == "pattern" else array[:, first:]
