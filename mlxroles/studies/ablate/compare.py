"""The comparison: what a model says next to each prompt, condition by condition.

Every condition is held against its right baseline: an ablation alone against the unedited run, one
that adds to another against that other. One token is predicted per condition, at t.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.models.model import Model
from mlxroles.prompts import token_texts
from mlxroles.studies.ablate import conditions, spread, wording
from mlxroles.studies.ablate.at_positions import AtPositions, Sample
from mlxroles.studies.ablate.conditions import Condition, Head, name_of
from mlxroles.studies.ablate.measures import logit_change
from mlxroles.studies.ablate.redundancy import RANDOM, drawn_sets
from mlxroles.studies.subject import Subject

TOP = 10
"""Logits that are listed per condition, of those that rose and of those that fell."""

UNEDITED, HEADS, HEADS_EVERYWHERE = "unedited", "heads at t", "heads everywhere"
BASELINES = {
    UNEDITED: None,
    HEADS: UNEDITED,
    HEADS_EVERYWHERE: UNEDITED,
    "values at t-1": UNEDITED,
    "their values at t-1": UNEDITED,
    "values at t-1, t-2": UNEDITED,
    "all values, these layers": UNEDITED,
    "all values, all layers": UNEDITED,
    "heads and values at t-1": HEADS,
}
"""Condition -> what it is compared with, in the order of rows.

Values are those of all heads of the heads' layers, ``their`` values those that the heads read; all
values are those at every position, t among them.
"""
_NUMBERS = ("p", "change", "kl")
RANDOM_HEADS = "random heads at t"
"""One random set of as many heads of the same layers, against the unedited run."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of some heads; ``random`` as in the redundancy test, its first set shown."""

    heads: tuple[Head, ...]
    top: int = TOP
    random: tuple[tuple[Head, ...], ...] = ()
    name: str = field(default="compare", init=False)

    @classmethod
    def of(
        cls,
        subject: Subject,
        heads: Sequence[Head],
        *,
        top: int = TOP,
        n_random: int = RANDOM,
        seed: int = 0,
    ) -> "Comparison":
        """The comparison with random sets drawn.

        Raises:
            SpecError: no head, or one that the models do not have.
        """
        return cls(tuple(heads), top, drawn_sets(subject, heads, n_random, seed))

    @property
    def baselines(self) -> dict[str, str | None]:
        """Condition -> what it is compared with."""
        return BASELINES | ({RANDOM_HEADS: UNEDITED} if self.random else {})

    def rows(self, _: int) -> int:
        """Runs per position."""
        return len(BASELINES) + len(self.random)

    def fresh(self, length: int) -> int:
        """Last positions that each run computes for itself."""
        return length

    def identity(self) -> dict[str, Any]:
        """Everything about the test that changes numbers."""
        return {
            "heads": [list(head) for head in self.heads],
            "conditions": list(self.baselines),
            "top": self.top,
            "random": [[list(head) for head in heads] for heads in self.random],
        }

    def conditions(self, model: Model) -> list[Condition]:
        """Those of ``BASELINES``, then the heads of every random set at t."""
        layers = sorted({layer for layer, _ in self.heads})
        own = tuple((layer, None) for layer in layers)
        blocks = enumerate(model.network.anatomy.blocks)
        every = tuple((i, None) for i, b in blocks if b.heads and "v" not in b.missing)
        made = (
            Condition(UNEDITED),
            Condition(HEADS, self.heads),
            Condition(HEADS_EVERYWHERE, self.heads, everywhere=True),
            Condition("", values=own),
            Condition("", values=self.heads),
            Condition("", values=own, offsets=(1, 2)),
            Condition("", values=own, offsets=None),
            Condition("", values=every, offsets=None),
            Condition("", self.heads, values=own),
        )
        return [*made, *(Condition(RANDOM_HEADS, heads) for heads in self.random)]

    def measure(
        self, model: Model, ids: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is predicted under each condition, and which logits moved.

        Arrays: [condition] ``predicted``, an id, ``p`` of it, ``change`` of the logit of the
        baseline's token, ``kl`` to the baseline in nats; [condition, rank] ``up_ids``, ``up``,
        ``down_ids``, ``down``, logits less the baseline's; [set] ``random_kl`` and
        ``random_changed``, 1 where another token is predicted.
        """
        seen = conditions.run(model, ids, self.conditions(model))
        assert seen.logits is not None
        logits, names = seen.logits, list(self.baselines)
        shape = (2, len(names), min(self.top, logits.shape[1]))
        ids_of, moved = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        numbers = np.zeros((len(names), 3))
        for n, name in enumerate(names):
            base = logits[names.index(self.baselines[name] or UNEDITED)]
            change = logits[n] - base
            for k, sign in enumerate((-1, 1)):
                ids_of[k, n] = np.argsort(sign * change, kind="stable")[: shape[2]]
                moved[k, n] = change[ids_of[k, n]]
            likely = int(np.argmax(logits[n]))
            kl, _ = logit_change(base, logits[n])
            numbers[n] = _probability(logits[n], likely), change[int(np.argmax(base))], kl
        drawn = [logit_change(logits[0], row) for row in logits[len(BASELINES) :]]
        arrays: dict[str, NDArray[Any]] = {
            "predicted": logits[: len(names)].argmax(axis=1).astype(np.int32),
            **{name: numbers[:, k] for k, name in enumerate(_NUMBERS)},
            "up_ids": ids_of[0],
            "down_ids": ids_of[1],
            "up": moved[0],
            "down": moved[1],
        }
        values = {"kl_heads": float(numbers[1, 2])}
        if drawn:
            arrays["random_kl"], arrays["random_changed"] = np.array(drawn).T
        return values, arrays

    def summary(
        self, samples: Mapping[str, Sequence[Sample]], context: AtPositions
    ) -> dict[str, Any]:
        """Rows per prompt and condition, means per condition, token texts and the sentence."""
        rows = [
            row
            for model, found in samples.items()
            for sample in found
            for row in self._rows(model, sample)
        ]
        used = {row["predicted"] for row in rows}
        used |= {int(i) for row in rows for side in ("up", "down") for i, _ in row[side]}
        used |= {i for p in context.prompts for i in p.ids}
        listed = sorted(used)
        texts = token_texts(listed, context.subject.tokenizer)
        means = [m for model, found in samples.items() for m in self._means(model, found, context)]
        return {
            **self.identity(),
            "baselines": self.baselines,
            "token_ids": [list(p.ids) for p in context.prompts],
            "texts": {str(i): text for i, text in zip(listed, texts, strict=True)},
            "rows": rows,
            "means": means,
            "sentence": self._sentence(means, context),
        }

    def _rows(self, model: str, sample: Sample) -> Iterator[dict[str, Any]]:
        a = sample.arrays
        names = list(self.baselines)
        for n, name in enumerate(names):
            base = self.baselines[name]
            before = int(a["predicted"][names.index(base or UNEDITED)])
            row: dict[str, Any] = {"model": model, "prompt": sample.prompt}
            row |= {"position": sample.position, "condition": name, "baseline": base}
            row |= {"predicted": int(a["predicted"][n]), "p": float(a["p"][n])}
            row |= {"before": before, "change": float(a["change"][n])}
            row |= {"kl": float(a["kl"][n])}
            for side in ("up", "down"):
                pairs = zip(a[f"{side}_ids"][n].tolist(), a[side][n].tolist(), strict=True)
                row[side] = [[i, round(x, 4)] for i, x in pairs] if base else []
            yield row

    def _means(
        self, model: str, found: Sequence[Sample], context: AtPositions
    ) -> Iterator[dict[str, Any]]:
        """Per condition: KL, change of the baseline's logit, share of predictions that changed."""
        if not found:
            return
        names = list(self.baselines)
        prompts = [s.prompt for s in found]
        said = np.stack([s.arrays["predicted"] for s in found])
        before = [names.index(self.baselines[name] or UNEDITED) for name in names]
        changed = (said != said[:, before]).astype(np.float64)
        table = [np.stack([s.arrays[name] for s in found]) for name in ("change", "kl")]
        numbers = np.stack([*table, changed], axis=-1)
        told = spread.means(numbers, prompts, spread.generator(context.seed, model, "compare"))
        for n, name in enumerate(names):
            if self.baselines[name] is None:
                continue
            mean: dict[str, Any] = {"model": model, "condition": name}
            mean |= {"change": told.at(n, 0), "kl": told.at(n, 1), "changed": told.at(n, 2)}
            if name == HEADS and self.random:
                for what in ("kl", "changed"):
                    null = np.mean([s.arrays[f"random_{what}"] for s in found], axis=0)
                    value = mean[what]["mean"]
                    mean[what]["random"] = spread.against(value, null.tolist(), smaller=False)
            yield mean

    def _sentence(self, means: Sequence[Mapping[str, Any]], context: AtPositions) -> str:
        """In how many cases the heads change what comes next, beside random heads."""
        told = []
        for mean in (m for m in means if m["condition"] == HEADS):
            kl, changed = mean["kl"], mean["changed"]
            n = changed["n"]
            others = round(changed["mean"] * n)
            text = (
                f"{wording.within(mean['model'], context)}another token is predicted in "
                f"{others} of {n} cases, and the mean KL is {kl['mean']:.3g} nats"
            )
            if np.isfinite(kl["ci"]).all():
                text += f" (95 % interval {kl['ci'][0]:.2g} to {kl['ci'][1]:.2g})"
            null = kl.get("random")
            if null is not None and null["n"]:
                low, high = null["range"]
                text += f"; random heads give {low:.2g} to {high:.2g} nats (p = {null['p']:.2g})"
            told.append(text)
        if not told:
            return "Nothing was measured."
        return f"Without {name_of(self.heads)} at t, {'; '.join(told)}."


def _probability(logits: NDArray[np.float32], token: int) -> float:
    row = logits.astype(np.float64)
    return float(np.exp(row[token] - np.logaddexp.reduce(row)))
