"""What one model's attention did on a set of prompts: entropies per query, and who asked what.

Everything that role metrics need stands here, so that every statistic is computed again from a
stored run without the model. A ``Reading`` says which queries and keys count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import SpecError
from mlxroles.stats import nan_mean

Queries = Literal["all", "no-first", "last"]
Keys = Literal["all", "no-bos"]
QUERIES: tuple[Queries, ...] = ("all", "no-first", "last")
KEYS: tuple[Keys, ...] = ("all", "no-bos")

NEAR = 3
"""Keys at either end of what a query sees whose weights are kept one by one."""

Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Reading:
    """Which queries and keys of a stored run count."""

    queries: Queries = "all"
    """``no-first`` leaves out query 0, which sees one key and so has entropy 0; ``last`` takes
    the last query of each prompt alone."""
    keys: Keys = "all"
    """``no-bos`` drops the begin token as a key, renormalises the rest of the row, and leaves out
    query 0; a prompt without a begin token keeps all of its keys."""


@dataclass(frozen=True, eq=False)
class Entropies:
    """What one model's attention did on a set of prompts."""

    model: str
    """``base``, ``instruct`` or ``model``."""
    prompts: tuple[str, ...]
    """Prompt ids."""
    category: tuple[str, ...]
    """Category of each prompt."""
    length: NDArray[np.integer]
    """Tokens per prompt [prompt]."""
    has_bos: NDArray[np.bool_]
    """Whether the prompt's first token is the tokenizer's begin token [prompt]."""
    layers: tuple[int, ...]
    """Numbers of the layers along the axis ``layer``, ascending: those with attention."""
    entropy: Numbers
    """Entropy of each query's weights in nats [prompt, layer, head, query]; NaN beyond the prompt
    and for heads that a layer does not have."""
    entropy_no_first: Numbers
    """The same after key 0 is dropped and the row renormalised; NaN for query 0."""
    first_keys: Numbers
    """Weight on keys 0, 1, 2 [prompt, layer, head, query, 3]; 0 on keys that are not there."""
    recent_keys: Numbers
    """Weight on the query's own key and the two before it [prompt, layer, head, query, 3]."""

    @property
    def n_heads(self) -> int:
        """Length of the axis ``head``."""
        return self.entropy.shape[2]

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories in the order of their first prompts."""
        return tuple(dict.fromkeys(self.category))

    def members(self, category: str) -> NDArray[np.integer]:
        """Indices of the prompts of a category.

        Raises:
            SpecError: no prompt has it.
        """
        found = np.flatnonzero(np.array(self.category, dtype=object) == category)
        if not found.size:
            known = ", ".join(self.categories)
            raise SpecError(f"no prompt has the category {category!r}; there are {known}")
        return found

    def counted(self, reading: Reading) -> NDArray[np.bool_]:
        """Whether a query counts under a reading [prompt, query]."""
        position = np.arange(self.entropy.shape[3])
        counts = position < self.length[:, None]
        first = position == 0
        if reading.keys == "no-bos":
            counts &= ~(first & self.has_bos[:, None])
        if reading.queries == "no-first":
            counts &= ~first
        elif reading.queries == "last":
            counts &= position == self.length[:, None] - 1
        return counts

    def queries(self, reading: Reading, *, normalised: bool = False) -> Numbers:
        """Entropy per query [prompt, layer, head, query], float64; NaN where it does not count.

        ``normalised`` divides by the entropy of uniform weights over the keys that a causal query
        sees (and that count), ln(q + 1), and leaves out queries that see a single key.
        """
        no_bos = (reading.keys == "no-bos") & self.has_bos
        values = np.where(no_bos[:, None, None, None], self.entropy_no_first, self.entropy)
        values = np.where(self.counted(reading)[:, None, None], values, np.nan).astype(np.float64)
        return values / self.uniform(reading)[:, None, None] if normalised else values

    def uniform(self, reading: Reading) -> Numbers:
        """Entropy of uniform causal attention [prompt, query], nats; NaN for a single key."""
        position = np.arange(self.entropy.shape[3])
        seen = position + 1.0 - ((reading.keys == "no-bos") & self.has_bos)[:, None]
        return np.where(seen > 1, np.log(np.maximum(seen, 1)), np.nan)

    def per_head(self, reading: Reading, *, normalised: bool = False) -> Numbers:
        """Mean over the queries that count [prompt, layer, head]; the study's E1."""
        return nan_mean(self.queries(reading, normalised=normalised), axis=-1)

    def per_layer(self, reading: Reading, *, normalised: bool = False) -> Numbers:
        """Mean of :meth:`per_head` over heads [prompt, layer]; the study's E2."""
        return nan_mean(self.per_head(reading, normalised=normalised), axis=-1)

    def chosen(self, prompts: Sequence[int]) -> "Entropies":
        """The same for some of the prompts, in the order given."""
        index = np.asarray(prompts, dtype=int)
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in index),
            category=tuple(self.category[i] for i in index),
            length=self.length[index],
            has_bos=self.has_bos[index],
            entropy=self.entropy[index],
            entropy_no_first=self.entropy_no_first[index],
            first_keys=self.first_keys[index],
            recent_keys=self.recent_keys[index],
        )
