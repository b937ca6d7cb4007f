"""Computes the cells of a patch sweep, batch by batch, on whichever models are in memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlxroles import engine, probes
from mlxroles.backend import mx
from mlxroles.documents import donor, recipient
from mlxroles.engine import Place, States
from mlxroles.events import Cell
from mlxroles.runner import Result
from mlxroles.studies.inputs import Encoded
from mlxroles.studies.patch import DIRECTIONS, PatchGrid
from mlxroles.studies.subject import Subject, stream_width

ROWS = 8
"""Cells of one layer that run as one batch where only their positions or heads differ."""

STATE_BYTES = 2 << 30
"""States of prompts that may be held at once; beyond it prompts go in groups."""

SILENCE = 5.0
"""Seconds after which a clean run is announced: large models take minutes for one."""


@dataclass(frozen=True)
class Batch:
    """Cells that are computed together: one prompt, direction, layer and control."""

    cells: tuple[Cell, ...]
    """Those that are pending."""
    group: int
    """Prompts of one group have their states in memory at the same time."""
    rows: tuple[Cell, ...]
    """All that run, with those that are stored already."""


class PatchWork:
    """The study's computing half: batches of pending cells in, results out.

    Args:
        subject: The two models.
        grid: The sweep.
        targets: What is measured on the logits.
        seed: Of the noise control.
        donor_head: Also read the patched stream with the donor's norm and head.
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
    ) -> None:
        self.subject, self.grid, self.targets = subject, grid, targets
        self.decode, self.seed, self.donor_head = decode, seed, donor_head
        self.chain = targets.head.chain
        self._states: dict[tuple[str, int, bool], States] = {}
        self._group: int | None = None

    # --- batches ------------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[Batch]:
        """Pending cells in computing order: recipients change as rarely as memory allows.

        A cell runs in the same rows whatever else is pending, so that a resumed run has the same
        numbers to the last bit.
        """
        wanted = {cell.id for cell in pending}
        found = []
        for group, rows in self._chunks:
            cells = tuple(cell for cell in rows if cell.id in wanted)
            if cells:
                found.append(Batch(cells, group, rows))
        return found

    @cached_property
    def _chunks(self) -> list[tuple[int, tuple[Cell, ...]]]:
        """(group, cells that run together) of the whole grid, in computing order."""
        per_group = self._prompts_per_group()
        order = {"base": 0, "instruct": 1, "base_to_instruct": 2, "instruct_to_base": 3}
        keyed: dict[tuple, list[Cell]] = {}
        for cell in self.grid.cells():
            c = cell.coords
            p = int(c["prompt"])
            stage = order[c.get("baseline") or c["direction"]]
            key = (p // per_group, stage, p, c.get("layer", -1), str(c.get("control") or ""))
            keyed.setdefault(key, []).append(cell)
        return [
            (key[0], tuple(keyed[key][i : i + ROWS]))
            for key in sorted(keyed)
            for i in range(0, len(keyed[key]), ROWS)
        ]

    def _prompts_per_group(self) -> int:
        """Prompts whose states, two models on the prompt and on the other text, fit together."""
        longest = max(p.n_tokens for p in self.grid.prompts) + len(self.chain) - 1
        arrays = 4 * len(self.grid.layers) * (1 if self.grid.site.startswith("resid") else 2)
        per_prompt = arrays * longest * stream_width(self.subject) * 4
        return max(1, STATE_BYTES // per_prompt)

    # --- states -------------------------------------------------------------------------------

    def prepare(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Runs the clean runs that a group of batches needs, one model after the other."""
        self._states.clear()
        wanted = sorted({key for batch in batches for key in self._needs(batch.cells[0])})
        said = 0.0
        for n, (side, p, other) in enumerate(wanted, start=1):
            if time.monotonic() - said > SILENCE:
                said = time.monotonic()
                text = "the control text" if other else self.grid.prompts[p].id
                self.subject.on_load(f"clean run {n} of {len(wanted)}: {side} on {text}")
            self._state(side, p, other)
            yield

    def _needs(self, cell: Cell) -> list[tuple[str, int, bool]]:
        """Clean runs behind a cell: (side, prompt, whether on the other text)."""
        c = cell.coords
        p = int(c["prompt"])
        if "baseline" in c:
            return [(str(c["baseline"]), p, False)]
        direction = str(c["direction"])
        other = c.get("control") == "other_prompt"
        return [(donor(direction), p, other), (recipient(direction), p, False)]

    def _state(self, side: str, p: int, other: bool) -> States:
        key = (side, p, other)
        if key not in self._states:
            model = self.subject.model(side)
            tokens, read = self._tokens(self.grid.prompts[p], other=other)
            model.check_tokens([tokens])
            self._states[key] = engine.clean(
                model.network,
                tokens,
                site=self.grid.site,
                layers=self.grid.layers.layers,
                read=read,
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
        coords = batch.cells[0].coords
        p = int(coords["prompt"])
        if "baseline" in coords:
            logits = self._state(str(coords["baseline"]), p, other=False).logits
            assert logits is not None
            yield Result(batch.cells[0], self._measures(logits))
            return
        yield from self._patched(batch, p)

    def _patched(self, batch: Batch, p: int) -> Iterator[Result]:
        coords, prompt = batch.cells[0].coords, self.grid.prompts[p]
        direction, layer = str(coords["direction"]), int(coords["layer"])
        control = coords.get("control")
        given = self._state(donor(direction), p, other=control == "other_prompt")
        own = self._state(recipient(direction), p, other=False)
        assert own.logits is not None
        value = given.site[layer]
        if control == "random":
            rng = np.random.default_rng([self.seed, p, layer, DIRECTIONS.index(direction)])
            value = engine.matched_noise(value, rng)
        tokens, read = self._tokens(prompt)
        site = self.grid.site
        places = [Place(site, layer, *self.grid.place(cell.coords)) for cell in batch.rows]
        model = self.subject.model(recipient(direction))
        run = engine.patched(model.network, tokens, own, value, places, read)
        foreign = self._through_donor(direction, run.final)
        for row, cell in enumerate(batch.rows):
            if cell not in batch.cells:
                continue
            values = self._measures(run.logits[row])
            values["kl"] = probes.kl(run.logits[row][0], own.logits[0])
            if foreign is not None:
                values["donor_head"] = self._measures(foreign[row])
            yield Result(cell, values, tokens=len(tokens))

    def _through_donor(self, direction: str, final: mx.array) -> np.ndarray | None:
        if not self.donor_head:
            return None
        logits = self.subject.model(donor(direction)).unembed(final)
        return np.array(logits.astype(mx.float32))

    def _measures(self, logits: np.ndarray) -> dict[str, Any]:
        """Numbers of one run from its logits [n, vocab] at the prompt's end and after."""
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits are not all finite numbers")
        chain = {self.targets.headline: probes.chain_log_prob(logits, self.chain)}
        return probes.measure(logits[0], self.targets, decode=self.decode, chain=chain)
