"""Clean and ablated runs of one model on all prompts: what the cells of a study are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlxroles.backend import mx
from mlxroles.components.decomposition import HEADED, Components, parse
from mlxroles.components.file import fitted
from mlxroles.edits import Edit
from mlxroles.engine import memory
from mlxroles.engine.sweep import worth
from mlxroles.forward import Run, Start
from mlxroles.heads import by_layer
from mlxroles.models.model import Model
from mlxroles.plan import parse_positions
from mlxroles.probes import Targets
from mlxroles.prompts import token_texts
from mlxroles.studies.ablate import effects
from mlxroles.studies.ablate.ablation import Ablation
from mlxroles.studies.ablate.document import repeats
from mlxroles.studies.ablate.effects import Clean, Numbers
from mlxroles.studies.ablate.how import How, Reference, edits, first_position
from mlxroles.studies.encoded import Encoded

LOGITS = 1 << 28
"""Bytes of logits of one run at most."""
PATTERNS = 1 << 28
"""Weights of one layer's patterns at most, where entropies are measured."""

Own = Callable[[mx.array, Sequence[int]], Mapping[str, Numbers]]
"""Log-probabilities [prompt, position, vocab] and which prompts these are -> measure -> [prompt]"""


class Measured(NamedTuple):
    """What an ablation changed."""

    measures: dict[str, Numbers]
    """Name -> [prompt]."""
    entropy: Numbers | None
    """What the attention entropies gained, nats [layer, head]; NaN for ablated heads, for layers
    before the first edit and for those whose attention cannot be seen."""


@dataclass(frozen=True)
class _Chunk:
    """Prompts of one length that run together."""

    prompts: tuple[int, ...]
    length: int


class Runs:
    """One model's runs.

    Args:
        model: Loaded.
        prompts: Of any lengths.
        positions: Where edits are made, as a user says it.
        targets: What is measured after the last token, or None.
        tokenizer: For the texts of tokens.
        reference: Other prompts and, for each prompt, which of them it is resampled from.
        own: Further measures of every run, clean ones too.
        components: Those that are ablated.

    Raises:
        SpecError: components that do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Encoded],
        positions: str,
        targets: Targets | None,
        *,
        tokenizer: Any = None,
        reference: tuple[Sequence[Encoded], Sequence[int]] = ((), ()),
        own: Own | None = None,
        components: Components | None = None,
    ) -> None:
        self.model, self.prompts, self.positions, self.targets = model, prompts, positions, targets
        self.tokenizer, self.reference, self.own = tokenizer, reference, own
        self.components = None if components is None else (components, fitted(components, model))
        self.is_repeated = all(repeats(prompt.ids) for prompt in prompts)
        self.notes: list[str] = []
        self._blocks = model.network.anatomy.blocks
        self._heads = max((b.heads for b in self._blocks), default=0)
        self._seen = [i for i, b in enumerate(self._blocks) if b.heads and self._sees(i, "entropy")]
        self._written = all(self._sees(i, "attn_out") for i in self._seen)
        longest = max(prompt.n_tokens for prompt in prompts)
        if self._seen and self._heads * longest**2 > PATTERNS:
            self._seen = []
            self.notes.append(
                f"entropies of later layers are not measured: patterns of {longest} tokens are too "
                "large"
            )
        self._chunks = self._cut()
        self._clean: dict[_Chunk, Clean] = {}
        self._room = int(0.25 * max(memory.limit() - mx.get_active_memory(), 0))
        self._means: dict[str, dict[int, mx.array]] = {}

    def _sees(self, layer: int, site: str) -> bool:
        return site not in self._blocks[layer].missing

    def _cut(self) -> list[_Chunk]:
        """Prompts of one length, as many as are worth running together and fit."""
        alike: dict[int, list[int]] = {}
        for n, prompt in enumerate(self.prompts):
            alike.setdefault(prompt.n_tokens, []).append(n)
        found = []
        for length, own in sorted(alike.items()):
            most = min(
                2 * worth() // length,
                LOGITS // (4 * length * max(self.model.vocab, 1)),
                PATTERNS // (max(self._heads, 1) * length**2),
            )
            size = max(1, most)
            found += [_Chunk(tuple(own[i : i + size]), length) for i in range(0, len(own), size)]
        return found

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that are watched."""
        return (*(("attn_out",) * self._written), *(("entropy",) * bool(self._seen)))

    # --- clean --------------------------------------------------------------------------------

    def clean(self, chunk: _Chunk) -> Clean:
        """The clean run of some prompts; made once where all of them fit into memory."""
        if chunk in self._clean:
            return self._clean[chunk]
        tokens = mx.array([self.prompts[n].ids for n in chunk.prompts])
        streams = {}
        resumable = self.model.network.anatomy.resumable and self.model.ranks is None
        if resumable:
            kept = self.model.run(tokens, ["resid_pre"], logits=False)
            streams = {i: kept["resid_pre", i] for i in kept.layers("resid_pre")}
        run = self._run(tokens, (), 0, {}, is_watched=True)
        said, last = self._said(run)
        made = Clean(tokens, said, last, effects.two_best(said), *self._watched(run), streams)
        mx.eval(made.log_probs, made.best)
        if made.n_bytes <= self._room:
            self._room -= made.n_bytes
            self._clean[chunk] = made
        return made

    def _watched(self, run: Run) -> tuple[dict[int, mx.array], dict[int, np.ndarray]]:
        wrote = {i: run["attn_out", i] for i in _layers(run, "attn_out")}
        spread = {
            i: np.array(run["entropy", i].astype(mx.float32)) for i in _layers(run, "entropy")
        }
        return wrote, spread

    def _run(
        self,
        tokens: mx.array,
        made: Sequence[Edit],
        first: int,
        streams: Mapping[int, mx.array],
        *,
        is_watched: bool,
    ) -> Run:
        layers = [i for i in self._seen if i >= first]
        keep = self.sites if is_watched and layers else ()
        start = Start(first, streams[first]) if first in streams and first > 0 else None
        return self.model.run(tokens, keep, made, layers=layers or None, start=start)

    def baseline(self) -> dict[str, Numbers]:
        """What the model does by itself, by measure [prompt]."""
        rows = {}
        for chunk in self._chunks:
            clean = self.clean(chunk)
            rows[chunk] = self._levels(clean.log_probs, clean.last, clean.tokens, chunk)
        return self._joined(rows)

    def _levels(
        self, log_probs: mx.array, last: np.ndarray, tokens: mx.array, chunk: _Chunk
    ) -> dict[str, Numbers]:
        """Measures that a clean run has too."""
        found = effects.answers(last, self.targets, self._decode)
        if self.is_repeated:
            found |= effects.repetition(log_probs, tokens, chunk.length // 2)
        if self.own is not None:
            found |= self.own(log_probs, chunk.prompts)
        return found

    def _decode(self, token: int) -> str:
        if self.tokenizer is None:
            return str(token)
        return token_texts([token], self.tokenizer)[0]

    # --- ablated ------------------------------------------------------------------------------

    def measure(
        self,
        ablation: Ablation,
        how: How,
        *,
        directions: Mapping[int, np.ndarray] | None = None,
        is_watched: bool = True,
    ) -> Measured:
        """What an ablation changes on all prompts.

        Args:
            ablation: With its heads, not slots.
            how: Method and factor; its positions are those of each prompt.
            directions: Layer -> direction [d_model], for an ablation of directions.
            is_watched: Whether attention outputs and entropies are wanted beside the logits.

        Raises:
            FloatingPointError: a logit is not finite.
            ModelError: what is to be edited does not exist in this architecture.
        """
        rows, total, count = {}, None, 0
        for chunk in self._chunks:
            found, changed = self._chunk(chunk, ablation, how, directions, is_watched=is_watched)
            rows[chunk] = found
            if changed is not None:
                total = changed if total is None else total + changed
            count += len(chunk.prompts)
        return Measured(self._joined(rows), None if total is None else total / count)

    def levels(self, ablation: Ablation, how: How) -> dict[str, Numbers]:
        """Measures of ``baseline`` as an ablation leaves them, by measure [prompt].

        Raises:
            FloatingPointError: a logit is not finite.
        """
        rows = {}
        for chunk in self._chunks:
            _, run = self._ablated(chunk, ablation, how, None, is_watched=False)
            said, last = self._said(run)
            rows[chunk] = self._levels(said, last, self.clean(chunk).tokens, chunk)
        return self._joined(rows)

    def _ablated(
        self,
        chunk: _Chunk,
        ablation: Ablation,
        how: How,
        directions: Mapping[int, np.ndarray] | None,
        *,
        is_watched: bool,
    ) -> tuple[list[Edit], Run]:
        """The run of some prompts with the edits that it was made with."""
        clean = self.clean(chunk)
        where = How(how.method, how.factor, self.places(chunk.length))
        made = edits(
            ablation,
            where,
            self.model,
            chunk.length,
            reference=self._reference(chunk, how.method),
            directions=directions,
            components=self.components,
        )
        lowest = min(edit.layer for edit in made)
        return made, self._run(clean.tokens, made, lowest, clean.streams, is_watched=is_watched)

    @staticmethod
    def _said(run: Run) -> tuple[mx.array, np.ndarray]:
        """Log-probabilities, and the logits after the last token [prompt, vocab]."""
        assert run.logits is not None
        return effects.log_probs(run.logits), np.array(run.logits[:, -1].astype(mx.float32))

    def _chunk(
        self,
        chunk: _Chunk,
        ablation: Ablation,
        how: How,
        directions: Mapping[int, np.ndarray] | None,
        *,
        is_watched: bool,
    ) -> tuple[dict[str, Numbers], Numbers | None]:
        """The measures of some prompts, and the sum over them of what entropies gained."""
        clean = self.clean(chunk)
        made, run = self._ablated(chunk, ablation, how, directions, is_watched=is_watched)
        begin = first_position(made, chunk.length)
        said, last = self._said(run)
        found = effects.outputs(clean, said, begin)
        found |= self._levels(said, last, clean.tokens, chunk)
        wrote, spread = self._watched(run)
        if ablation.kind in ("heads", "values", "components"):
            edited = self._attended(ablation, made)
            own = {i: array for i, array in wrote.items() if i in edited}
            found |= effects.kept(clean.attn_out, own, begin)
        if not spread:
            return found, None
        changed = np.full((len(self._blocks), self._heads), np.nan)
        for layer, values in effects.entropy_change(clean.entropy, spread, begin).items():
            changed[layer, : values.shape[1]] = values.sum(axis=0)
        self._mask(changed, ablation)
        return found, changed

    def _attended(self, ablation: Ablation, made: Sequence[Edit]) -> set[int]:
        """Layers whose attention is edited."""
        if self.components is None or not ablation.components:
            return {edit.layer for edit in made}
        named = [self.components[0].map(parse(text).key) for text in ablation.components]
        return {d.layer for d in named if d.kind in HEADED}

    def _mask(self, changed: Numbers, ablation: Ablation) -> None:
        """Entropies of ablated heads say nothing: they become NaN."""
        if ablation.kind == "heads":
            for layer, head in ablation.heads:
                changed[layer, head] = np.nan
        elif ablation.kind == "values" and ablation.heads:
            for layer, heads in by_layer(ablation.heads).items():
                block = self._blocks[layer]
                group = block.heads // (block.kv_heads or block.heads)
                for head in heads:
                    changed[layer, head * group : (head + 1) * group] = np.nan
        elif ablation.kind == "values" or ablation.site == "attn_out":
            changed[list(ablation.layers)] = np.nan

    def places(self, length: int) -> tuple[int, ...] | None:
        """Positions of edits in a prompt of this length; None for all of them."""
        where = parse_positions(self.positions, length)
        return None if where.kind == "all" else where.positions

    def _joined(self, rows: Mapping[_Chunk, Mapping[str, Numbers]]) -> dict[str, Numbers]:
        """Numbers of all prompts in their order; NaN for what a prompt does not have."""
        names = dict.fromkeys(name for found in rows.values() for name in found)
        joined = {name: np.full(len(self.prompts), np.nan) for name in names}
        for chunk, found in rows.items():
            for name, values in found.items():
                joined[name][list(chunk.prompts)] = values
        return joined

    # --- reference ----------------------------------------------------------------------------

    def _reference(self, chunk: _Chunk, method: str) -> Reference | None:
        if method == "mean":
            return lambda site, layers: self._mean(site, layers)
        if method == "resample":
            return lambda site, layers: self._drawn(chunk, site, layers)
        return None

    def _mean(self, site: str, layers: Sequence[int]) -> dict[int, mx.array]:
        """Layer -> mean over all prompts and positions of the reference [1, 1, ...]."""
        known = self._means.setdefault(site, {})
        wanted = [i for i in layers if i not in known]
        if wanted:
            # the other layers are asked for sooner or later, and come from the same runs
            has = [i for i in range(len(self._blocks)) if self._sees(i, site)]
            layers_now = has if set(wanted) <= set(has) else wanted
            sums: dict[int, np.ndarray] = {}
            count = 0
            for prompt in self.reference[0]:
                run = self.model.run([prompt.ids], [site], layers=layers_now, logits=False)
                count += prompt.n_tokens
                for i in layers_now:
                    array = np.array(run[site, i].astype(mx.float32)).astype(np.float64)
                    part = array.sum(axis=(0, 1), keepdims=True)
                    sums[i] = part if i not in sums else sums[i] + part
            known |= {i: mx.array((s / count).astype(np.float32)) for i, s in sums.items()}
        return {i: known[i] for i in layers}

    def _drawn(self, chunk: _Chunk, site: str, layers: Sequence[int]) -> dict[int, mx.array]:
        """Layer -> what each prompt's partner has [prompt, position, ...]."""
        prompts, partner = self.reference
        rows = [prompts[partner[n]].ids[: chunk.length] for n in chunk.prompts]
        run = self.model.run(rows, [site], layers=list(layers), logits=False)
        return {i: run[site, i] for i in layers}


def _layers(run: Run, site: str) -> list[int]:
    return run.layers(site) if site in run.sites else []
