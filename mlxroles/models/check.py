"""Self-checks of a model: does what we capture and edit agree with what the model computes?

Every check has a value and a bound, so that a verdict can be argued with. ``refused`` means that
no number from this model can be trusted; ``partial`` that some sites cannot be captured or that
a patch does not carry the whole state, with the reason beside it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxroles import attention as attn
from mlxroles.anatomy import NO_ATTENTION, ROUNDINGS, stream, sum_error, tolerance
from mlxroles.backend import mx, number
from mlxroles.edits import ATTENTION_SITES, SITES, Edit
from mlxroles.forward import Run, Start, forward
from mlxroles.models.model import Model
from mlxroles.taps import AttentionCall, Tap

LENGTH, BATCH = 12, 2


@dataclass(frozen=True)
class Check:
    """One measured quantity; ``ok`` is value <= bound."""

    name: str
    value: float
    bound: float
    fatal: bool = False
    """A failure means that nothing from this model can be trusted."""

    @property
    def ok(self) -> bool:
        """Whether the value keeps its bound; NaN does not."""
        return self.value <= self.bound


@dataclass(frozen=True)
class CheckReport:
    """All checks of one model, and what follows from them."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """Failed checks, missing sites, warnings of the config."""
    limited: bool
    """Something that the architecture has cannot be captured, or a full patch is partial."""
    sites: tuple[str, ...]
    """Sites that every layer (with attention, for its sites) offers."""
    repairs: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``works``, ``partial`` or ``refused``."""
        if not self.checks or any(c.fatal and not c.ok for c in self.checks):
            return "refused"
        return "partial" if self.limited else "works"

    def as_dict(self) -> dict[str, Any]:
        """The report as a JSON document (schema ``mlxroles/check/1``), without the model's name."""
        rows = [
            {"name": c.name, "value": c.value, "bound": c.bound, "ok": c.ok} for c in self.checks
        ]
        return {
            "schema": "mlxroles/check/1",
            "verdict": self.verdict,
            "checks": rows,
            "sites": list(self.sites),
            "notes": list(self.notes),
            "repairs": list(self.repairs),
        }


def check(model: Model) -> CheckReport:
    """Runs every self-check on short made-up prompts."""
    anatomy = model.network.anatomy
    if anatomy.refused:
        return CheckReport((), (anatomy.refused,), True, (), model.repairs)
    checks = tuple(_Checks(model).all())
    notes = [_failure(c) for c in checks if not c.ok]
    notes += model.warnings
    if anatomy.stateful:
        notes.append(f"a full-stream patch is partial: {anatomy.stateful}")
    absent = _missing(model)
    # a block that runs attention and MLP side by side has no stream between them to miss
    limited = bool(notes) or any(set(names) != {"resid_mid"} for names in absent.values())
    notes += [f"no {', '.join(names)}: {why}" for why, names in absent.items()]
    return CheckReport(checks, tuple(notes), limited, sites(model), model.repairs)


def sites(model: Model) -> tuple[str, ...]:
    """Sites that can be kept at every layer of a model that has them at all."""
    return tuple(site for site in SITES if _offered(model, site))


def _offered(model: Model, site: str) -> bool:
    blocks = model.network.anatomy.blocks
    if site in ATTENTION_SITES:
        blocks = tuple(b for b in blocks if NO_ATTENTION not in b.missing.get(site, ""))
    return bool(blocks) and all(site not in b.missing for b in blocks)


def _failure(c: Check) -> str:
    return f"{c.name.replace('_', ' ')}: {c.value:.2g} (bound {c.bound:.2g})"


def _missing(model: Model) -> dict[str, list[str]]:
    """Reason -> sites that cannot be captured for it."""
    reasons: dict[str, list[str]] = {}
    for block in model.network.anatomy.blocks:
        for site, why in block.missing.items():
            names = reasons.setdefault(why, [])
            if site not in names:
                names.append(site)
    return reasons


def difference(a: mx.array, b: mx.array) -> float:
    """Largest absolute difference; equal infinities count as equal."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    if a.shape != b.shape:
        return float("inf")
    return number(mx.where(a == b, 0.0, mx.abs(a - b)).max())


def worst(values: Iterable[float]) -> float:
    """The largest value; NaN if any is NaN, which ``max`` may pass over."""
    return float(np.max([0.0, *values]))


class _Checks:
    """The checks of one model, sharing its reference runs."""

    def __init__(self, model: Model) -> None:
        self.model, self.network = model, model.network
        self.vocab = max(2, min(model.vocab, 500))
        self.tokens = self._tokens(0)
        self.reference = stream(model.module(self.tokens))
        mx.eval(self.reference)
        self.scale = number(mx.abs(self._finite(self.reference)).max()) or 1.0
        self.loose = tolerance(self.reference.dtype) * 10 * self.scale

    def _tokens(self, seed: int) -> mx.array:
        rows = [
            [(11 * i * i + 7 * i + 13 * (b + 1) * (seed + 1)) % self.vocab for i in range(LENGTH)]
            for b in range(BATCH)
        ]
        return mx.array(rows)

    @staticmethod
    def _finite(x: mx.array) -> mx.array:
        return mx.where(mx.isinf(x), 0.0, x)

    def all(self) -> Iterator[Check]:
        """Every check that applies to this architecture."""
        offered = sites(self.model)
        yield Check("logits_are_numbers", number(mx.isnan(self.reference).sum()), 0, True)
        run = self._kept(offered)
        yield Check("hooks_change_no_logit", difference(self._logits(run), self.reference), 0, True)
        yield Check("causal", self._leak(), self.loose, True)
        if "resid_post" in offered:
            yield from self._stream_checks(run)
        if "pattern" in offered:
            yield from self._attention_checks(run)
        if "attn_out" in offered:
            yield Check("parts_sum_to_the_stream", self._sum_of_parts(run), ROUNDINGS)

    def _kept(self, offered: tuple[str, ...]) -> Run:
        return forward(self.network, self.tokens, keep=offered)

    @staticmethod
    def _logits(run: Run) -> mx.array:
        assert run.logits is not None
        return run.logits

    def _leak(self) -> float:
        """How far earlier logits move when only the last token changes."""
        last = (self.tokens[:, -1:] + 1) % self.vocab
        other = mx.concatenate([self.tokens[:, :-1], last], axis=1)
        return difference(stream(self.model.module(other))[:, :-1], self.reference[:, :-1])

    def _stream_checks(self, run: Run) -> Iterator[Check]:
        n = self.model.n_layers
        stored = {i: run["resid_post", i] for i in range(n)}
        off = worst(difference(self._patched(i, stored[i]), self.reference) for i in range(n))
        yield Check("self_patch_changes_nothing", off, 0, True)
        donor_tokens = self._tokens(1)
        donor = forward(self.network, donor_tokens, keep=["resid_post"])
        theirs = self._logits(donor)
        if self.network.anatomy.stateful is None:
            off = worst(
                difference(self._patched(i, donor["resid_post", i]), theirs) for i in range(n)
            )
            yield Check("full_patch_gives_the_donor", off, self.loose * 1e-2)
        yield Check(
            "read_last_equals_full",
            difference(
                self._logits(forward(self.network, self.tokens, read=[LENGTH - 1])),
                self.reference[:, -1:],
            ),
            self.loose,
        )
        if self.network.anatomy.resumable:
            starts = {(n + 1) // 2, n}
            off = worst(difference(self._from(i, stored), self.reference) for i in starts)
            yield Check("resumed_equals_whole", off, 0, True)

    def _patched(self, layer: int, stream_: mx.array) -> mx.array:
        edit = Edit("resid_post", layer, stream_)
        return self._logits(forward(self.network, self.tokens, edits=[edit]))

    def _from(self, layer: int, stored: dict[int, mx.array]) -> mx.array:
        return self._logits(
            forward(self.network, self.tokens, start=Start(layer, stored[layer - 1]))
        )

    def _attention_checks(self, run: Run) -> Iterator[Check]:
        kept = [run["pattern", i] for i in run.layers("pattern")]
        later = worst(number(mx.abs(mx.triu(p, k=1)).max()) for p in kept)
        yield Check("weight_on_later_keys", later, 0, True)
        if not self._sdpa():
            sums = worst(number(mx.abs(p.sum(axis=-1) - 1).max()) for p in kept)
            yield Check("pattern_rows_sum_to_1", sums, 1e-5, True)
            return
        calls = self._calls()
        patterns = [attn.pattern(call) for call, _ in calls]
        totals = [p.weights.sum(-1, True) + (0 if p.sink is None else p.sink) for p in patterns]
        sums = worst(number(mx.abs(total - 1).max()) for total in totals)
        yield Check("pattern_rows_sum_to_1", sums, 1e-5, True)
        pairs = zip(patterns, calls, strict=True)
        off = worst(self._relative(attn.z_from(p.weights, call.v), z) for p, (call, z) in pairs)
        yield Check("z_from_pattern_equals_kernel", off, tolerance(self.reference.dtype))

    @staticmethod
    def _relative(a: mx.array, b: mx.array) -> float:
        scale = number(mx.abs(b.astype(mx.float32)).max()) or 1.0
        return difference(a, b) / scale

    def _sdpa(self) -> bool:
        return any(b.kind == "sdpa" for b in self.network.anatomy.blocks)

    def _calls(self) -> list[tuple[AttentionCall, mx.array]]:
        """Every attention call of the reference run with the kernel's own output."""
        seen: list[tuple[AttentionCall, mx.array]] = []

        def attention(call: AttentionCall) -> mx.array:
            seen.append((call, call.fused()))
            return seen[-1][1]

        tap = Tap(
            self.network.layers,
            self.network.namespaces,
            attention=attention,
            direct=self.network.anatomy.direct,
        )
        with tap:
            mx.eval(stream(self.model.module(self.tokens)))
        return seen

    def _sum_of_parts(self, run: Run) -> float:
        """In roundings of the stream's dtype, element by element."""
        names = ("resid_pre", "attn_out", "mlp_out")
        layers = range(self.model.n_layers)
        errors = [sum_error(run["resid_post", i], *(run[n, i] for n in names)) for i in layers]
        return worst(number(error) for error in errors)
