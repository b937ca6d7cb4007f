"""Attention entropies of role prompts: how each head of one or two models spreads its weight.

A cell is one prompt on one model. Prompts of one length run together, so that the weights are
read once per length and not once per prompt, and a prompt runs in the same rows whatever is
pending, so that a resumed run has the same numbers to the last bit. Long prompts run by blocks of
queries. What the numbers mean is worked out from the stored run alone (``role_results``).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mlxroles.attention import NEAR, SUMMARIES
from mlxroles.backend import mx
from mlxroles.engine.pressure import relief
from mlxroles.errors import ModelError, PromptError
from mlxroles.events import Cell, Emit, RunFinished, Stage
from mlxroles.forward import by_blocks
from mlxroles.models.model import Model
from mlxroles.plan import cell_id, run_id
from mlxroles.prompts import Message, Prompt
from mlxroles.roles.contrast import contrast_of
from mlxroles.runner import Result
from mlxroles.store.summary import SUMMARY
from mlxroles.studies import role_results, together
from mlxroles.studies.inputs import encoded
from mlxroles.studies.place import RunPlace, computed_by, vitals
from mlxroles.studies.role_results import Analysis
from mlxroles.studies.subject import Subject, attention_heads, memory_limit, text_config
from mlxroles.studies.timed import Task, Watch, loads, sizes
from mlxroles.text import format_bytes, safe_text
from mlxroles.timing import Work
from mlxroles.timing.work import passes

BATCH_TOKENS = 4096
"""Tokens per batch: enough to read the weights once for many short prompts."""
SCORE_BYTES = 1 << 26
"""Attention scores of one layer, in float32, that may be in memory at once."""
TABLE_SHARE = 0.5
"""Share of the memory that the table of a run, padded to its longest prompt, may take."""
STATISTICS, PER_HEAD = 6.0, 0.02
"""Seconds of statistics, figures and report, and of these per head; see ``timing.prediction``."""
UNNAMED = "all"
"""The category of prompts that have none."""


def role_prompts(
    prompts: Sequence[Prompt], *, per_category: int, chat_template: bool
) -> tuple[list[Prompt], list[str]]:
    """The first prompts of each category, and what the user should know about them.

    Args:
        prompts: Any set; those without a category count as one.
        per_category: How many of each category at most.
        chat_template: Whether plain texts become the user's turn of a conversation.
    """
    taken: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        taken.setdefault(prompt.category or UNNAMED, []).append(prompt)
    notes = []
    left_out = sum(max(0, len(group) - per_category) for group in taken.values())
    if left_out:
        notes.append(
            f"the first {per_category} prompts of each category run, {left_out} others do not "
            "(--prompts-per-category)"
        )
    taken = {name: group[:per_category] for name, group in taken.items()}
    notes += _duplicates(taken)
    if len({len(group) for group in taken.values()}) > 1:
        sizes = ", ".join(f"{safe_text(name)} {len(group)}" for name, group in taken.items())
        notes.append(f"the categories have different numbers of prompts: {sizes}")
    found = [p for group in taken.values() for p in group]
    if chat_template:
        found = [
            p if p.text is None else replace(p, text=None, messages=(Message("user", p.text),))
            for p in found
        ]
    return found, notes


def _duplicates(taken: Mapping[str, Sequence[Prompt]]) -> list[str]:
    notes = []
    for name, group in taken.items():
        counts = Counter((p.text, p.messages, p.ids) for p in group)
        notes += [
            f"category {safe_text(name)} holds '{safe_text(_shown(content), limit=60)}' "
            f"{n} times: its prompts are not independent"
            for content, n in counts.items()
            if n > 1
        ]
    return notes


def _shown(content: tuple[Any, ...]) -> str:
    text, messages, ids = content
    return str(messages[-1].content if messages else ids if text is None else text)


@dataclass(frozen=True)
class _Batch:
    cells: tuple[Cell, ...]
    """Those whose results are wanted."""
    group: int
    side: str
    prompts: tuple[int, ...]
    """All prompts that run together, whatever is wanted."""
    rows: tuple[Cell, ...]
    """Their cells."""


class EntropyStudy:
    """A planned capture of attention entropies.

    Args:
        subject: One model or a pair.
        prompts: What is asked, from :func:`role_prompts`.
        raw: Whether conversations are written as plain paragraphs, without a template.

    Raises:
        PromptError: a prompt that the models cannot be asked.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        *,
        raw: bool = False,
    ) -> None:
        self.subject = subject
        self.sides = tuple(subject.sides)
        note = subject.notes.append
        self.prompts = encoded(subject, prompts, note=note, by_blocks=True, raw=raw)
        self.texts = [_text_of(p) for p in prompts]
        self.chat_template = _through_template(prompts, raw=raw)
        self.cells = [self._cell(side, p) for side in self.sides for p in range(len(prompts))]
        self._check_size()

    def _cell(self, side: str, p: int) -> Cell:
        coords = {"model": side, "prompt": p}
        return Cell(cell_id(coords), coords)

    def check_analysis(self, analysis: Analysis) -> None:
        """Refuses a contrast of categories that the prompts do not have, before anything runs.

        Raises:
            SpecError: naming the category and those that there are.
        """
        found = dict.fromkeys(p.category or UNNAMED for p in self.prompts)
        contrast_of(tuple(found), analysis.contrast)

    def identity(self) -> dict[str, Any]:
        """Everything that changes numbers."""
        return {
            "kind": "entropy",
            "models": {name: self.subject.sides[name].identity for name in self.sides},
            "prompts": [[p.id, p.digest, p.category or UNNAMED] for p in self.prompts],
            "computed_by": computed_by(self.subject.parts),
        }

    def about(self) -> dict[str, Any]:
        """What a report says of the run beside its numbers; kept in the manifest."""
        begin = self._begin_token
        return {
            "family": self.subject.pair,
            "display": self.subject.display,
            "models": list(self.sides),
            "chat_template": self.chat_template,
            "prompts": [
                {
                    "id": p.id,
                    "category": p.category or UNNAMED,
                    "n_tokens": p.n_tokens,
                    "has_bos": begin is not None and p.ids[0] == begin,
                    "text": text,
                }
                for p, text in zip(self.prompts, self.texts, strict=True)
            ],
        }

    @cached_property
    def _begin_token(self) -> int | None:
        if self.subject.tokenizer is not None:
            return getattr(self.subject.tokenizer, "bos_token_id", None)
        config = text_config(next(iter(self.subject.sides.values())).config)
        found = config.get("bos_token_id")
        return found if isinstance(found, int) else None

    # --- computing ----------------------------------------------------------------------------

    def batches(self, pending: Sequence[Cell]) -> list[_Batch]:
        """Pending cells with the prompts that they run with, one model after the other."""
        wanted = {cell.id: cell for cell in pending}
        found = []
        for group, side in enumerate(self.sides):
            for prompts in self._together:
                rows = tuple(self._cell(side, p) for p in prompts)
                cells = tuple(wanted[cell.id] for cell in rows if cell.id in wanted)
                if cells:
                    found.append(_Batch(cells, group, side, prompts, rows))
        return found

    @cached_property
    def _together(self) -> list[tuple[int, ...]]:
        """Prompts of one length that run as one batch."""
        by_length: dict[int, list[int]] = {}
        for p, prompt in enumerate(self.prompts):
            by_length.setdefault(prompt.n_tokens, []).append(p)
        found = []
        for length, members in sorted(by_length.items()):
            scores = 4 * max(attention_heads(self.subject), 1) * length**2
            rows = max(1, min(BATCH_TOKENS // length, SCORE_BYTES // scores))
            found += [tuple(members[i : i + rows]) for i in range(0, len(members), rows)]
        return found

    def prepare(self, batches: Sequence[_Batch]) -> Iterator[None]:
        """Loads the model of a group and refuses what it cannot run, before anything is run."""
        model = self.subject.model(batches[0].side)
        self._check(model)
        yield

    def _check(self, model: Model) -> None:
        model.check_tokens([p.ids for p in self.prompts])
        blocks = model.network.anatomy.blocks
        if all("entropy" in block.missing for block in blocks):
            why = next(iter(block.missing["entropy"] for block in blocks))
            raise ModelError(f"{model.architecture} shows no attention weights: {why}")
        longest = max(p.n_tokens for p in self.prompts)
        needed = 4 * max(block.heads for block in blocks) * longest**2
        if not model.network.anatomy.plain_cache and needed > memory_limit():
            raise PromptError(
                f"{model.architecture} cannot run a prompt in parts, and the attention of "
                f"{longest} tokens at once would take {format_bytes(needed)}; shorten the prompts"
            )

    def compute(self, batch: _Batch) -> Iterator[Result]:
        """The batch's cells with their arrays [layer, head, query(, near)], float32."""
        model = self.subject.model(batch.side)
        arrays = summaries(model, [self.prompts[p].ids for p in batch.prompts])
        for row, p in enumerate(batch.prompts):
            cell = self._cell(batch.side, p)
            if cell not in batch.cells:
                continue
            own = {name: array[row] for name, array in arrays.items()}
            for layer, block in enumerate(model.network.anatomy.blocks):
                attends = "entropy" not in block.missing
                if attends and not _is_finite(own, layer, block.heads):
                    raise FloatingPointError(f"the attention of layer {layer} is not finite")
            yield Result(cell, {}, own, self.prompts[p].n_tokens)

    # --- running ------------------------------------------------------------------------------

    def run(
        self, emit: Emit, place: RunPlace, analysis: Analysis
    ) -> tuple[dict[str, Any], RunFinished]:
        """Captures what is not captured yet, then works out and writes everything else."""
        together.begin(self, self.identity(), self.cells, self.subject.ranks)
        watch = Watch()
        self.subject.check_weights()
        token_ids = {p.id: p.ids for p in self.prompts}
        with place.open(self.subject, self.identity(), token_ids, about=self.about()) as folder:
            self.subject.tell(emit)
            title = f"entropy {self.subject.display}"
            notes = self.subject.notes
            watch.begin(self.task(), folder)
            how: dict[str, Any] = {"notes": notes, "signs": vitals, "estimate": watch.estimate}
            how["ranks"] = self.subject.ranks
            finished = together.run(self, self.cells, folder, emit, title=title, **how)
            self.subject.release()
            doc = role_results.finish(
                folder,
                analysis,
                notes=notes,
                finished=finished,
                tell=lambda text: emit(Stage(text)),
            )
            estimate = watch.stop(finished)
            if estimate is not None:
                doc["estimate"] = estimate
                folder.write_json(SUMMARY, doc)
        return doc, finished

    def plan(self) -> dict[str, Any]:
        """What a dry run shows, without loading weights."""
        tokens, numbers = self._tokens(), self.subject.n_layers * self._per_query()
        sides = [self.subject.sides[name] for name in self.sides]
        return {
            "schema": "mlxroles/plan/1",
            "title": f"entropy {self.subject.display}",
            "run_id": run_id(self.identity()),
            "cells": len(self.cells),
            "batches": len(self._together) * len(self.sides),
            "prompts": self.about()["prompts"],
            "notes": list(self.subject.notes),
            "tokens": tokens * len(self.sides),
            "layer_calls": len(self.cells) * self.subject.n_layers,
            "weights_bytes": sum(side.n_bytes for side in sides),
            "disk_bytes": 2 * 4 * numbers * tokens * len(self.sides),
            "seconds": self.task().seconds(),
        }

    def task(self, pending: Sequence[Cell] | None = None) -> Task:
        """What there is to do, for an estimate; ``pending`` are cells, all of them without it."""
        cells = self.cells if pending is None else pending
        of, batches = sizes(self.subject), self.batches(cells)
        work = loads(self.subject, [batch.side for batch in batches]) + Work(cells=len(cells))
        per_token = 4 * self.subject.n_layers * self._per_query()
        for batch in batches:
            rows, length = len(batch.prompts), self.prompts[batch.prompts[0]].n_tokens
            work += passes(of, rows=rows, length=length)
            work += Work(written=rows * length * per_token)
        heads = self.subject.n_layers * max(attention_heads(self.subject), 1)
        results = STATISTICS + PER_HEAD * heads * len(self.sides)
        return Task("entropy", self.subject, work, results)

    def _tokens(self) -> int:
        return sum(p.n_tokens for p in self.prompts)

    def _check_size(self) -> None:
        """Refuses a table of all queries that could be computed but not read again."""
        longest = max(p.n_tokens for p in self.prompts)
        rows = len(self.sides) * len(self.prompts) * longest
        size = 4 * rows * self.subject.n_layers * self._per_query()
        if size > TABLE_SHARE * memory_limit():
            raise PromptError(
                f"{len(self.prompts)} prompts of up to {longest} tokens make a table of "
                f"{format_bytes(size)}, more than half of the memory here; run the long prompts on "
                "their own, or fewer"
            )

    def _per_query(self) -> int:
        """Numbers per query and layer."""
        return max(attention_heads(self.subject), 1) * (2 + 2 * NEAR)


def summaries(
    model: Model, rows: Sequence[Sequence[int]], names: Sequence[str] = SUMMARIES
) -> dict[str, np.ndarray]:
    """Summaries of the pattern [row, layer, head, query(, near)], float32.

    NaN for layers without attention weights and for heads that a layer does not have.

    Args:
        model: What runs.
        rows: Token ids, all of one length.
        names: Which of ``attention.SUMMARIES``.

    Raises:
        ModelError: the model shows no attention weights.
    """
    tokens = mx.array([list(row) for row in rows])
    n_rows, length = tokens.shape
    blocks = model.network.anatomy.blocks
    heads = max(block.heads for block in blocks)
    shape = (n_rows, len(blocks), heads, length)
    found = {
        name: np.full((*shape, NEAR) if name.endswith("_keys") else shape, np.nan, np.float32)
        for name in names
    }
    size = max(1, SCORE_BYTES // (4 * heads * length * n_rows))
    if not model.network.anatomy.plain_cache:
        size = length
    for now in relief.cut(range(n_rows), model.network.ranks):
        rows_now = slice(now[0], now[-1] + 1)
        for first, part in by_blocks(model.network, tokens[rows_now], keep=names, size=size):
            for name, whole in found.items():
                for layer in part.layers(name):
                    array = np.array(part[name, layer])
                    end = first + array.shape[2]
                    whole[rows_now, layer, : array.shape[1], first:end] = array
    return found


def _is_finite(own: Mapping[str, np.ndarray], layer: int, heads: int) -> bool:
    names = ("entropy", "first_keys", "recent_keys")
    return all(np.isfinite(own[name][layer, :heads]).all() for name in names)


def _through_template(prompts: Sequence[Prompt], *, raw: bool) -> bool | None:
    """Whether a chat template is around the prompts; None where all of them are token ids."""
    if all(p.ids is not None for p in prompts):
        return None
    return not raw and any(p.messages is not None for p in prompts)


def _text_of(prompt: Prompt) -> str | None:
    if prompt.messages is not None:
        return prompt.messages[-1].content
    return prompt.text
