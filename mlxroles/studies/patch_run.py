"""Computes the cells of a patch sweep, batch by batch, on whichever models are in memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mlxroles import engine, probes
from mlxroles.anatomy import JOIN_LATE, START_LATE, forbidden_by_type
from mlxroles.backend import mx
from mlxroles.documents import donor, recipient
from mlxroles.edits import Edit
from mlxroles.engine import Answer, Clean, Row, Shape, memory
from mlxroles.errors import ModelError
from mlxroles.events import Cell
from mlxroles.models.implementation import module_name
from mlxroles.runner import Result
from mlxroles.studies.inputs import Encoded
from mlxroles.studies.patch import DIRECTIONS, PatchGrid
from mlxroles.studies.subject import Subject, text_config
from mlxroles.text import format_bytes

STATE_BYTES = 2 << 30
"""States of prompts that may be held at once; beyond it prompts go in groups."""

FEW = 4
"""Batches of one kind that are not worth an order of their own."""

SILENCE = 5.0
"""Seconds after which a clean run is announced: large models take minutes for one."""


class Passage(NamedTuple):
    """A clean run that patched runs need: prompts of one length in one model."""

    side: str
    prompts: tuple[int, ...]
    other: bool
    """Whether on the control text."""


@dataclass(frozen=True)
class Batch:
    """Cells that are computed together: of one direction, and prompts of one length."""

    cells: tuple[Cell, ...]
    """Those that are pending."""
    group: int
    """Prompts of one group have their states in memory at the same time."""
    rows: tuple[Cell, ...]
    """All that run, with those that are stored already."""
    prompts: tuple[int, ...]
    """Prompts whose clean runs they share."""
    level: int = 0
    """0 for layers that show the shape of the result, more for those between them."""


class PatchWork:
    """The study's computing half: batches of pending cells in, results out.

    Args:
        subject: The two models.
        grid: The sweep.
        targets: What is measured on the logits.
        decode: The text of one token.
        seed: Of the noise control.
        donor_head: Also read the patched stream with the donor's norm and head.
        most: Bytes that may be in use; None for a share of the device's memory.
    """

    def __init__(
        self,
        subject: Subject,
        grid: PatchGrid,
        targets: probes.Targets,
        *,
        decode: Callable[[int], str],
        seed: int = 0,
        donor_head: bool = False,
        most: int | None = None,
    ) -> None:
        self.subject, self.grid, self.targets = subject, grid, targets
        self.decode, self.seed, self.donor_head = decode, seed, donor_head
        self.chain = targets.head.chain
        self.memory = memory.limit() if most is None else most
        self._states: dict[Passage, Clean] = {}
        self._group: int | None = None
        self._last: tuple[tuple[Cell, ...], list[Answer]] | None = None

    def cut_for(self, most: int) -> None:
        """Has batches cut for another number of bytes."""
        self.memory = most
        self.__dict__.pop("_batches", None)

    # --- batches ------------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[Batch]:
        """Pending cells in computing order: recipients change as rarely as memory allows.

        A cell runs in the same rows whatever else is pending, so that a resumed run has the same
        numbers to the last bit.
        """
        wanted = {cell.id for cell in pending}
        found = []
        for batch in self._batches:
            cells = tuple(cell for cell in batch.rows if cell.id in wanted)
            if cells:
                found.append(replace(batch, cells=cells))
        return found

    def alone(self, cell: Cell) -> Batch:
        """A batch of this cell, which runs without its neighbours."""
        return replace(self.batches([cell])[0], rows=(cell,))

    @cached_property
    def _batches(self) -> list[Batch]:
        """The whole grid in computing order."""
        per_group = self._prompts_per_group()
        order = {"base": 0, "instruct": 1, "base_to_instruct": 2, "instruct_to_base": 3}
        alike: dict[tuple[int, int, int], list[Cell]] = {}
        for cell in self.grid.cells():
            c = cell.coords
            p = int(c["prompt"])
            stage = order[c.get("baseline") or c["direction"]]
            alike.setdefault((p // per_group, stage, self.grid.prompts[p].n_tokens), []).append(
                cell
            )
        together: dict[tuple[int, int], list[int]] = {}
        for p, prompt in enumerate(self.grid.prompts):
            together.setdefault((p // per_group, prompt.n_tokens), []).append(p)
        made = []
        for key in sorted(alike):
            cells, prompts = alike[key], tuple(together[key[0], key[2]])
            for level, rows in self._levels(cells, prompts):
                made.append(Batch((), key[0], rows, prompts, level))
        return made

    def _levels(
        self, cells: Sequence[Cell], prompts: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[Cell, ...]]]:
        """Cells that run together, and how soon they are wanted.

        Where there are many batches, the layers that show the shape come in batches of their own.
        """
        whole = self._cut(cells, prompts)
        if len(whole) <= FEW:
            yield from ((0, tuple(cells[n] for n in rows)) for rows in whole)
            return
        by_level: dict[int, list[Cell]] = {}
        for cell in cells:
            by_level.setdefault(self.grid.level(int(cell.coords["layer"])), []).append(cell)
        for level, own in sorted(by_level.items()):
            yield from ((level, tuple(own[n] for n in rows)) for rows in self._cut(own, prompts))

    def _cut(self, cells: Sequence[Cell], prompts: tuple[int, ...]) -> list[list[int]]:
        """Indices of cells that run together."""
        if "baseline" in cells[0].coords:
            return [list(range(len(cells)))]
        shape = self.shape(prompts[0])
        spots = [engine.spot(self._row(c, 0.0, prompts), shape) for c in cells]
        n_prompts = min(len(self.grid.prompts), self._prompts_per_group())
        states = 4 * self._state_bytes * n_prompts
        fits = engine.room(self._sizes, shape, self.memory, known=states)
        return engine.cut(shape, spots, fits)

    @cached_property
    def forbidden(self) -> dict[str, str]:
        """Shortcuts that the models' architecture does not allow, and why not."""
        return forbidden_by_type(module_name(next(iter(self.subject.sides.values())).config))

    def layer_calls(self) -> float:
        """Row-layers that the sweep takes: one layer over one whole prompt counts as 1."""
        total, n = 0.0, self.subject.n_layers
        if JOIN_LATE in self.forbidden:
            passages = {key for batch in self._batches for key in self._needs(batch)}
            cells = sum("layer" in cell.coords for cell in self.grid.cells())
            return float(n * (cells + sum(len(key.prompts) for key in passages)))
        for batch in self._batches:
            shape = self.shape(batch.prompts[0])
            if "baseline" in batch.rows[0].coords:
                texts = 1 + ("other_prompt" in self.grid.controls)
                total += texts * len(batch.rows) * engine.clean_calls(shape)
                continue
            rows = (self._row(c, 0.0, batch.prompts) for c in batch.rows)
            spots = (engine.spot(row, shape) for row in rows)
            total += sum(engine.least_calls(s, shape) for s in spots if s is not None)
        return total

    def peak_bytes(self) -> int:
        """Bytes that the largest batch takes with weights and clean states, predicted."""
        n_prompts = min(len(self.grid.prompts), self._prompts_per_group())
        known, peak = 4 * self._state_bytes * n_prompts, 0
        for batch in self._batches:
            shape = self.shape(batch.prompts[0])
            found = {"rows": len(batch.rows), "length": shape.length, "read": len(shape.read)}
            peak = max(peak, memory.predict(self._sizes, **found, known=known))
        return peak

    def over_memory(self) -> str | None:
        """What to say where even the smallest batches take more than they may."""
        needed = self.peak_bytes()
        if needed <= self.memory:
            return None
        return (
            f"{format_bytes(needed)} is more than the {format_bytes(self.memory)} that it may take,"
            " with one row at a time"
        )

    def shape(self, p: int) -> Shape:
        """What the patched runs of a prompt have in common."""
        tokens, read = self._tokens(self.grid.prompts[p])
        late = START_LATE not in self.forbidden
        return Shape(self.subject.n_layers, len(tokens), tuple(read), late)

    def _row(self, cell: Cell, value: Any, prompts: Sequence[int]) -> Row:
        """A cell as a row of the engine."""
        c = cell.coords
        positions, heads = self.grid.place(c)
        edit = value
        if not isinstance(value, Edit):
            edit = Edit(self.grid.site, int(c["layer"]), value, positions=positions, heads=heads)
        return Row((edit,), prompts.index(int(c["prompt"])))

    @cached_property
    def _sizes(self) -> memory.Sizes:
        """Of the models in memory, as their configs say: nothing is loaded yet."""
        sides = list(self.subject.sides.values())
        parts = self.subject.parts
        held = [side.held_bytes(parts) for side in sides]
        weights = sum(held) if self.subject.resident > 1 else max(held)
        config = text_config(sides[0].config)
        return memory.sizes_of_config(config, weights, self.subject.n_layers, parts=parts)

    @property
    def _state_bytes(self) -> int:
        """Bytes of one clean run of the longest prompt."""
        longest = max(p.n_tokens for p in self.grid.prompts) + len(self.chain) - 1
        sites, layers = [self.grid.site], len(self.grid.layers)
        return memory.states(self._sizes, prompts=1, length=longest, sites=sites, layers=layers)

    def _prompts_per_group(self) -> int:
        """Prompts whose states, two models on the prompt and on the other text, fit together."""
        return max(1, STATE_BYTES // (4 * self._state_bytes))

    # --- states -------------------------------------------------------------------------------

    def prepare(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Runs the clean runs that batches of one group need, one model after the other."""
        if self._group != batches[0].group:
            self._group = batches[0].group
            self._states.clear()
        wanted = sorted({key for batch in batches for key in self._needs(batch)})
        said = 0.0
        for n, key in enumerate(wanted, start=1):
            if time.monotonic() - said > SILENCE:
                said = time.monotonic()
                text = "the control text" if key.other else self.grid.prompts[key.prompts[0]].id
                self.subject.on_load(f"clean run {n} of {len(wanted)}: {key.side} on {text}")
            self._state(key)
            yield

    def _needs(self, batch: Batch) -> set[Passage]:
        """Clean runs behind a batch."""
        c = batch.rows[0].coords
        if "baseline" in c:
            return {Passage(str(c["baseline"]), batch.prompts, other=False)}
        given, taker = donor(str(c["direction"])), recipient(str(c["direction"]))
        others = {cell.coords.get("control") == "other_prompt" for cell in batch.rows}
        donors = {Passage(given, batch.prompts, other=other) for other in others}
        return {Passage(taker, batch.prompts, other=False), *donors}

    def _state(self, key: Passage) -> Clean:
        if key not in self._states:
            model = self.subject.model(key.side)
            prompts = [self.grid.prompts[p] for p in key.prompts]
            tokens = [self._tokens(p, other=key.other)[0] for p in prompts]
            model.check_tokens(tokens)
            found = self._states[key] = engine.clean(
                model.network,
                tokens,
                read=self.shape(key.prompts[0]).read,
                site=self.grid.site,
                layers=self.grid.layers.layers,
                recipient=not key.other,
                late=True,
            )
            lacking = [i for i in self.grid.layers if i not in found.sites[self.grid.site]]
            if lacking:
                why = model.network.block(lacking[0]).missing.get(self.grid.site, "not there")
                raise ModelError(
                    f"layers {', '.join(map(str, lacking))} have no {self.grid.site} ({why}); "
                    "name the others with --layers"
                )
        return self._states[key]

    def _tokens(self, prompt: Encoded, *, other: bool = False) -> tuple[list[int], list[int]]:
        """The prompt with all but the last headline token after it, and the positions to read."""
        ids = [*(prompt.other if other else prompt.ids), *self.chain[:-1]]
        n = prompt.n_tokens
        return ids, list(range(n - 1, len(ids)))

    # --- computing ----------------------------------------------------------------------------

    def compute(self, batch: Batch) -> Iterator[Result]:
        """The batch's cells with their numbers."""
        coords = batch.rows[0].coords
        if "baseline" not in coords:
            yield from self._patched(batch)
            return
        state = self._state(Passage(str(coords["baseline"]), batch.prompts, other=False))
        assert state.logits is not None
        for cell in batch.cells:
            logits = state.logits[batch.prompts.index(int(cell.coords["prompt"]))]
            yield Result(cell, self._measures(logits))

    def _patched(self, batch: Batch) -> Iterator[Result]:
        direction = str(batch.rows[0].coords["direction"])
        own = self._state(Passage(recipient(direction), batch.prompts, other=False))
        assert own.logits is not None
        answers = self._answers(batch, direction, own)
        foreign = self._through_donor(direction, answers)
        for row, cell in enumerate(batch.rows):
            if cell not in batch.cells:
                continue
            logits = answers[row].logits
            values = self._measures(logits)
            clean = own.logits[batch.prompts.index(int(cell.coords["prompt"]))]
            values["kl"] = probes.kl(logits[0], clean[0])
            if foreign is not None:
                values["donor_head"] = self._measures(foreign[row])
            yield Result(cell, values, tokens=own.shape.length)

    def _answers(self, batch: Batch, direction: str, own: Clean) -> list[Answer]:
        """What the batch's rows end in; those of the last batch are remembered for retries."""
        if self._last is None or self._last[0] != batch.rows:
            noise: dict[tuple[int, int], mx.array] = {}
            rows = []
            for cell in batch.rows:
                control = cell.coords.get("control")
                key = Passage(donor(direction), batch.prompts, other=control == "other_prompt")
                given, p = self._state(key), int(cell.coords["prompt"])
                layer, site = int(cell.coords["layer"]), self.grid.site
                row, value = batch.prompts.index(p), None
                if control == "random":
                    if (p, layer) not in noise:
                        noise[p, layer] = self._noise(given, layer, row, [p, layer], direction)
                    value = noise[p, layer]
                positions, heads = self.grid.place(cell.coords)
                edit = engine.transplant(
                    given,
                    site,
                    layer,
                    prompt=row,
                    positions=positions,
                    heads=heads,
                    value=value,
                    into=own,
                )
                rows.append(self._row(cell, edit, batch.prompts))
            network = self.subject.model(recipient(direction)).network
            self._last = batch.rows, engine.run(network, own, rows)
        return self._last[1]

    def _noise(
        self, given: Clean, layer: int, row: int, at: Sequence[int], direction: str
    ) -> mx.array:
        """What the noise control puts in for a prompt's array of a layer."""
        rng = np.random.default_rng([self.seed, *at, DIRECTIONS.index(direction)])
        value = given.value(self.grid.site, layer, row)
        if self.grid.site == "pattern":
            return engine.shuffled_keys(value, rng)
        return engine.matched_noise(value, rng, given.begins(self.grid.site, layer))

    def _through_donor(self, direction: str, answers: Sequence[Answer]) -> np.ndarray | None:
        if not self.donor_head:
            return None
        finals = [answer.final for answer in answers if answer.final is not None]
        if len(finals) < len(answers):
            raise ModelError("the final stream of this architecture cannot be read by another head")
        final = mx.stack(finals)
        logits = self.subject.model(donor(direction)).unembed(final)
        return np.array(logits.astype(mx.float32))

    def _measures(self, logits: np.ndarray) -> dict[str, Any]:
        """Numbers of one run from its logits [n, vocab] at the prompt's end and after."""
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits are not all finite numbers")
        chain = {self.targets.headline: probes.chain_log_prob(logits, self.chain)}
        return probes.measure(logits[0], self.targets, decode=self.decode, chain=chain)
