"""The redundancy test: do values at t-1 still matter at t once some heads are gone?

A: heads are zero at t; or components are taken out, those of q and o at t, those of k and v
everywhere, since t reads them of all positions. B: values at t-1 are zero, those of all heads of
the layers (``all``) or of chosen ones (``spec``). AB: both. Read is the layers' attention output
at t. In the layer itself ``base`` less B is what all heads take from t-1, A less AB what the
others take once the heads are gone, so their sizes compare directly: the share that remains is the
sum over samples of |A - AB|^2 over that of |base - B|^2; 0 says that the heads are the only way
for those values, 1 that they have no part in it. ``spec`` of a head's own values is 0 by
construction where no other head reads them: it tells something of the values of other heads, or
where several share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.components.decomposition import parse
from mlxroles.components.edits import ablation
from mlxroles.components.file import fitted
from mlxroles.components.maps import Map
from mlxroles.edits import Edit
from mlxroles.errors import SpecError
from mlxroles.models.model import Model
from mlxroles.studies.ablate import conditions, spread, wording
from mlxroles.studies.ablate.at_positions import AtPositions, Sample, check_heads
from mlxroles.studies.ablate.conditions import Condition, Head, name_of
from mlxroles.studies.ablate.measures import change, logit_change
from mlxroles.studies.ablate.parts import Parts
from mlxroles.studies.subject import Subject, attention_heads

COMPARISONS = (
    ("base", "A"),
    ("base", "B_all"),
    ("base", "B_spec"),
    ("base", "AB_all"),
    ("base", "AB_spec"),
    ("A", "AB_all"),
    ("A", "AB_spec"),
)
"""What is compared with what: the first one is what similarity is relative to."""

NAMES = ("base", "A", "B_all", "B_spec", "AB_all", "AB_spec")
RANDOM = 20
"""Random sets of heads that the heads are compared with."""


@dataclass(frozen=True)
class Redundancy:
    """The test of some heads.

    ``value_heads`` are query heads whose value heads are ``spec``; None for those of ``heads``.
    ``random`` are other sets of as many heads of the same layers. With ``parts`` it is the test of
    components in place of heads, and ``random_parts`` are others of the same maps.
    """

    heads: tuple[Head, ...]
    value_heads: tuple[Head, ...] | None = None
    random: tuple[tuple[Head, ...], ...] = ()
    parts: Parts | None = None
    random_parts: tuple[tuple[str, ...], ...] = ()
    name: str = field(default="redundancy", init=False)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the heads or components, which are those that are measured."""
        if self.parts is not None:
            return tuple(self.parts.components.layers)
        return tuple(sorted({layer for layer, _ in self.heads}))

    def rows(self, _: int) -> int:
        """Runs per position."""
        return len(NAMES) + 2 * len(self._drawn)

    def fresh(self, length: int) -> int:
        """Last positions that each run computes for itself."""
        is_late = self.parts is None or all(n.key.endswith((".q", ".o")) for n in self.parts.names)
        return min(2, length) if is_late else length

    @property
    def _drawn(self) -> Sequence[tuple[Any, ...]]:
        return self.random if self.parts is None else self.random_parts

    @classmethod
    def of(
        cls,
        subject: Subject,
        heads: Sequence[Head],
        *,
        value_heads: Sequence[Head] | None = None,
        n_random: int = RANDOM,
        seed: int = 0,
    ) -> "Redundancy":
        """The test with random sets drawn.

        Raises:
            SpecError: no head, or one that the models do not have.
        """
        values = None if value_heads is None else tuple(value_heads)
        return cls(tuple(heads), values, drawn_sets(subject, heads, n_random, seed))

    @classmethod
    def of_components(cls, parts: Parts, *, n_random: int = RANDOM, seed: int = 0) -> "Redundancy":
        """The test of components taken out together.

        Raises:
            SpecError: components of an MLP, which an attention output does not show.
        """
        if not parts.in_attention:
            raise SpecError(
                "--test redundancy reads attention outputs: name components of q, k, v or o"
            )
        own = [str(name) for name in parts.names]
        return cls((), parts=parts, random_parts=tuple(parts.random(own, n_random, seed)))

    def identity(self) -> dict[str, Any]:
        """Everything about the test that changes numbers."""
        named = {}
        if self.parts is not None:
            named["components"] = [str(name) for name in self.parts.names]
            named["digest"] = self.parts.digest
            named["random_components"] = [list(names) for names in self.random_parts]
        return named | {
            "heads": [list(head) for head in self.heads],
            "layers": list(self.layers),
            "value_heads": [list(head) for head in self._values()],
            "comparisons": [f"{a} - {b}" for a, b in COMPARISONS],
            "random": [[list(head) for head in heads] for heads in self.random],
        }

    def _values(self) -> tuple[Head, ...]:
        return self.heads if self.value_heads is None else self.value_heads

    def conditions(self, model: Model, length: int) -> list[Condition]:
        """Those of ``NAMES``, then each random set's A and AB_all, of a prompt of this length."""
        every = tuple((layer, None) for layer in self.layers)
        spec = self._values() if self.parts is None else self._read(model)
        maps = None if self.parts is None else fitted(self.parts.components, model)

        def without(chosen: tuple[Any, ...]) -> dict[str, Any]:
            if maps is None:
                return {"heads": chosen}
            return {"edits": self._taken(model, maps, chosen, length)}

        gone = without(self.heads if maps is None else self._names)
        found = [
            Condition("base"),
            Condition("A", **gone),
            Condition("B_all", values=every),
            Condition("B_spec", values=spec),
            Condition("AB_all", **gone, values=every),
            Condition("AB_spec", **gone, values=spec),
        ]
        for chosen in self._drawn:
            gone = without(chosen)
            found += [Condition("R", **gone), Condition("RB_all", **gone, values=every)]
        return found

    @property
    def _names(self) -> tuple[str, ...]:
        return () if self.parts is None else tuple(str(name) for name in self.parts.names)

    def _taken(
        self, model: Model, maps: Mapping[str, Map], names: Sequence[str], length: int
    ) -> tuple[Edit, ...]:
        """The edits that take components out: of q and o at the last position alone."""
        assert self.parts is not None
        made: list[Edit] = []
        late = [name for name in names if parse(name).key.endswith((".q", ".o"))]
        for some, places in ((late, [length - 1]), ([n for n in names if n not in late], None)):
            if some:
                made += ablation(model, self.parts.components, some, places, maps=maps)
        return tuple(made)

    def _read(self, model: Model) -> tuple[tuple[int, int | None], ...]:
        """Layer and a query head of the values that components in given heads read; else all."""
        assert self.parts is not None
        found: dict[tuple[int, int | None], None] = {}
        for name in self.parts.names:
            d = self.parts.components.map(name.key)
            block = model.network.block(d.layer)
            group = 1 if d.kind in ("q", "o") else block.heads // (block.kv_heads or block.heads)
            for head in name.heads or (None,):
                found[d.layer, None if head is None else head * group] = None
        return tuple(found)

    def measure(
        self, model: Model, ids: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """What the seven comparisons show at t, the last position.

        Arrays: ``nip``, ``cosine`` and ``moved`` [comparison, layer], the last the squared length
        of the difference; ``kl`` and ``top1_changed`` [comparison], of the logits;
        ``random_moved`` [set, layer], as ``moved`` between R and RB_all.
        """
        seen = conditions.run(
            model, ids, self.conditions(model, len(ids)), ["attn_out"], self.layers
        )
        assert seen.logits is not None
        outputs = [seen.sites["attn_out"][layer] for layer in self.layers]
        at = {name: n for n, name in enumerate(NAMES)}
        pairs = [(at[a], at[b]) for a, b in COMPARISONS]
        compared = np.array([[change(out[a], out[b]) for out in outputs] for a, b in pairs])
        said = np.array([logit_change(seen.logits[a], seen.logits[b]) for a, b in pairs])
        arrays = {name: compared[..., k] for k, name in enumerate(("nip", "cosine", "moved"))}
        arrays |= {name: said[:, k] for k, name in enumerate(("kl", "top1_changed"))}
        firsts = range(len(NAMES), len(NAMES) + 2 * len(self._drawn), 2)
        drawn = [[change(out[n], out[n + 1])[2] for out in outputs] for n in firsts]
        if drawn:
            arrays["random_moved"] = np.array(drawn)
        values = {f"nip_{a}_{b}": compared[n, 0, 0] for n, (a, b) in enumerate(COMPARISONS)}
        return {name: float(value) for name, value in values.items()}, arrays

    def summary(
        self, samples: Mapping[str, Sequence[Sample]], context: AtPositions
    ) -> dict[str, Any]:
        """Rows of comparisons, the shares that remain, and the sentence."""
        rows: list[dict[str, Any]] = []
        remains: list[dict[str, Any]] = []
        for model, found in samples.items():
            if found:
                rows += self._rows(model, found, context.seed)
                remains += self._remains(model, found, context.seed)
        return {
            **self.identity(),
            "rows": rows,
            "remains": remains,
            "sentence": self._sentence(remains, context),
        }

    def _rows(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        prompts = [s.prompt for s in found]
        told = {
            name: spread.means(
                [s.arrays[name] for s in found], prompts, spread.generator(seed, model, name)
            )
            for name in ("nip", "cosine", "kl", "top1_changed")
        }
        return [
            {
                "model": model,
                "comparison": f"{a} - {b}",
                "layer": layer,
                "nip": told["nip"].at(n, m),
                "cosine": told["cosine"].at(n, m),
                "kl": told["kl"].at(n),
                "top1_changed": told["top1_changed"].at(n),
            }
            for n, (a, b) in enumerate(COMPARISONS)
            for m, layer in enumerate(self.layers)
        ]

    def _remains(self, model: str, found: Sequence[Sample], seed: int) -> list[dict[str, Any]]:
        """Per layer the share of the values' effect that remains without the heads."""
        prompts = [s.prompt for s in found]
        moved = np.stack([s.arrays["moved"] for s in found])
        at = {pair: n for n, pair in enumerate(COMPARISONS)}
        made = []
        for m, layer in enumerate(self.layers):
            whole = moved[:, at["base", "B_all"], m]
            left = moved[:, at["A", "AB_all"], m]
            share, ci = spread.ratio(left, whole, prompts, spread.generator(seed, model, layer))
            null = [
                spread.share(np.array([s.arrays["random_moved"][n, m] for s in found]), whole)
                for n in range(len(self._drawn))
            ]
            made.append(
                {
                    "model": model,
                    "layer": layer,
                    "share": share,
                    "ci": ci,
                    "random": spread.against(share, null, smaller=True) | {"shares": null},
                    "n": len(found),
                }
            )
        return made

    def _sentence(self, remains: Sequence[Mapping[str, Any]], context: AtPositions) -> str:
        """What remains without the heads in the layer where least does, per model.

        Random sets are taken in the layer where least remains without them.
        """
        told, what = [], "heads" if self.parts is None else "components"
        for model in context.subject.sides:
            known = [r for r in remains if r["model"] == model and np.isfinite(r["share"])]
            if not known:
                continue
            least = min(known, key=lambda r: r["share"])
            shares = [r["random"]["shares"] for r in known]
            null = [min(own) for own in zip(*shares, strict=True)]
            beside = spread.against(least["share"], null, smaller=True)
            told.append(
                f"{wording.within(model, context)}{100 * least['share']:.0f} % of what values at "
                f"t-1 give to layer {least['layer']}'s attention output remains"
                f"{wording.bounds(least['ci'])}{wording.beside(beside, what=what)}"
            )
        if not told:
            return "Nothing was measured."
        if self.parts is None:
            return f"Without {name_of(self.heads)} at t, {'; '.join(told)}."
        return f"Without {', '.join(self._names)}, {'; '.join(told)}."


def drawn_sets(
    subject: Subject, heads: Sequence[Head], count: int, seed: int
) -> tuple[tuple[Head, ...], ...]:
    """Random sets of as many heads of the same layers, as the config counts them.

    Raises:
        SpecError: no head, or one that the models do not have.
    """
    n_heads = attention_heads(subject)
    check_heads(subject, heads, n_heads)
    if not n_heads:
        subject.notes.append(
            "the config names no number of heads: there are no random heads to compare with"
        )
        return ()
    rng = spread.generator(seed, "random heads")
    counts = dict.fromkeys(range(subject.n_layers), n_heads)
    found = conditions.random_sets(heads, counts, count, rng)
    if len(found) < count:
        subject.notes.append(
            f"there are {len(found)} other sets of as many heads of the same layers, so no p is "
            f"below {1 / (1 + len(found)):.2g}"
        )
    return tuple(found)
