"""The harvest of a component file: how often, how strongly and on what each component acts on text.

One streaming pass over text per group of layers. What is kept does not grow with the text, counts
are int64 and sums float64, and a harvest that was killed goes on to the same numbers. A component
FIRES at a position where its importance is above the threshold: 0 for a trained causal-importance
function, ``SHARE_THRESHOLD`` for the share of the output that stands in for one
(``importance.importance_of``). Importance g is in [0, 1]; an ACTIVATION is a_c |U_c|, the signed
length of what the component adds to its map's output (a = x V). All of it is in natural units of
the model, PMI in nats.

Layout of the file (HDF5, schema ``mlxroles/harvest/1``; C components of a map, n tokens):

Attributes of the file; datasets of maps have ``units``::

    schema       "mlxroles/harvest/1"
    measure      "causal importance" or "share of the output"
    threshold    float, a component fires above it
    n_tokens     positions that were harvested (every real position of every row)
    n_rows       rows of text; row_length: positions of the longest row
    window       20: positions shown on either side of an example
    seed         of the choice of the examples
    sentence     one line that says what was measured, on what
    model, components, text, notes, versions, plan    JSON text: what identifies them
    timestamp    ISO 8601

Datasets (all little-endian; NaN = undefined, -1 = empty place)::

    tokens                       i4 [row, position]   the text; -1 behind a row's end
    vocabulary/id                i4 [D]               ids that occur below or in tokens, ascending
    vocabulary/text              utf-8 [D]            their texts, raw (pass through safe_text)
    vocabulary/count             i8 [D]               how often each was harvested as a position

    maps/<key>  one group per map, key "L3.q" or "L3.mlp.down_proj"; attributes layer, kind,
                n_heads, d_head, n_components
      firing                     i8 [C]     positions at which it fires; / n_tokens = density
      mean_importance            f8 [C]     mean of g over all positions (mean CI)
      mean_importance_error      f8 [C]     standard error of it over rows, not over positions
      mean_activation            f8 [C]     mean over all positions of a |U|, signed
      mean_abs_activation        f8 [C]     mean of |a| |U| over the positions where it fires; NaN
      examples/random            group: examples drawn evenly among the positions where it fires
      examples/strongest         group: positions where it fires with the largest |a| |U|
        row, position            i4 [C, E]           -1 where it fires at fewer than E positions
        importance               f4 [C, E, 41]       g at position - 20 .. position + 20; NaN
        activation               f4 [C, E, 41]       a |U| there; NaN outside of the row
      input_tokens, output_tokens group: tokens that go with the component, the surest first
        id                       i4 [C, 10]          -1 where there are fewer
        pmi                      f8 [C, 10]          ln( P(token, fires) / (P(token) P(fires)) )
        low                      f8 [C, 10]          lower end of its interval; rank by it
        count                    f8 [C, 10]          positions (output: probability mass) together

    pairs/<key of i>/<key of j>  i8 [C_i, C_j]  positions at which both fire; for maps of one
                                 layer among q, k, v, o and among its MLP maps, i before j in the
                                 order of the file's maps, also i = j (the diagonal is ``firing``)
    pairs_left_out               utf-8 [N, 2]  pairs of maps whose counts there was no room for

The input token is the one at the position; output tokens count with the probability that the
model gives them as the next token. Of large vocabularies only the ids that are commonest in the
text have a PMI. ``low`` is told in ``harvest_tokens``.

Read it with ``harvest_file.read_harvest``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxroles.backend import mx
from mlxroles.components import harvest_plan as plan
from mlxroles.components.decomposition import Components
from mlxroles.components.file import fitted, foreign
from mlxroles.components.harvest_state import Parts
from mlxroles.components.harvest_sums import Sums
from mlxroles.components.harvest_write import write_harvest
from mlxroles.components.importance import Importance, importance_of
from mlxroles.components.maps import Map
from mlxroles.errors import ModelError, PromptError
from mlxroles.models import weights
from mlxroles.models.model import Model
from mlxroles.text import format_bytes

CHECKPOINT = 60.0
"""Seconds between two states on the disk."""

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a harvest is made, beside model, components and text."""

    examples: int = 10
    """Examples of each kind that are kept of a component."""
    threshold: float | None = None
    """Above it a component fires; None for that of the importance function."""
    seed: int = 0


@dataclass(eq=False)
class Harvester:
    """A planned harvest.

    Raises:
        SpecError: components that do not fit the model.
        PromptError: no text, or rows that the model cannot be asked.
    """

    model: Model
    components: Components
    rows: Sequence[Sequence[int]]
    """Token ids of each row."""
    settings: Settings = field(default_factory=Settings)
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What identifies ``model``, ``components`` and ``text``, each with a ``name`` for people."""
    importance: Importance = field(init=False)
    maps: dict[str, Map] = field(init=False)
    threshold: float = field(init=False)
    notes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise PromptError("there is no text to harvest on; name a file with --text")
        self.model.check_tokens(self.rows)
        self.maps = fitted(self.components, self.model)
        self.importance = importance_of(self.components)
        given = self.settings.threshold
        self.threshold = self.importance.threshold if given is None else given
        self.notes = [text for text in [foreign(self.components, self.model)] if text]
        self.columns = plan.common_ids(self.rows, self.model.vocab)
        maps = {key: self.components.maps[key] for key in self.maps}
        self.pairs, self.left_out = plan.counted_pairs(maps)
        if self.left_out:
            self.notes.append(
                f"co-activation of {len(self.left_out)} pairs of maps is left out: a layer's "
                f"counts may take {format_bytes(plan.AT_ONCE)}"
            )
        self.groups = plan.passes(maps, self.pairs, len(self.columns), self.settings.examples)
        self.cuts = plan.cuts(self.rows)
        self._factors: dict[str, tuple[mx.array, mx.array]] = {}

    @property
    def n_tokens(self) -> int:
        """Positions of the text."""
        return sum(len(row) for row in self.rows)

    @property
    def passes(self) -> int:
        """How often the text runs through the model."""
        return len(self.groups)

    def identity(self) -> dict[str, Any]:
        """What a harvest must share with the one that it continues."""
        about = {part: dict(facts) for part, facts in self.about.items()}
        for facts in about.values():
            facts.pop("name", None)  # files may be given other names
        sizes = plan.POSITIONS, plan.COLUMNS, plan.AT_ONCE
        return {
            **about,
            "measure": self.importance.name,
            "threshold": self.threshold,
            "examples": self.settings.examples,
            "seed": self.settings.seed,
            "maps": {key: self.components.maps[key].n for key in self.maps},
            "shape": [len(self.rows), self.n_tokens, *sizes],
        }

    def run(
        self,
        path: Path,
        *,
        fresh: bool = False,
        told: Progress = lambda done, of: None,
        every: float = CHECKPOINT,
    ) -> Path:
        """Harvests what is not harvested yet and writes the file.

        Args:
            path: The file.
            fresh: Begin anew, whatever lies there.
            told: Called after each batch with the number of batches done and of all.
            every: Seconds between two states on the disk.

        Raises:
            StoreError: the file cannot be written, or another harvest lies there.
        """
        with Parts(path, self.identity(), fresh=fresh) as parts:
            if parts.whole:
                return path
            total = len(self.cuts) * self.passes
            for number in range(self.passes):
                self._pass(number, parts, lambda done: told(done, total), every)
            write_harvest(path, self, parts)
            parts.remove()
        return path

    # --- one pass -----------------------------------------------------------------------------

    def _pass(self, number: int, parts: Parts, told: Callable[[int], None], every: float) -> None:
        """The batches of one group of layers that are not summed yet."""
        keys, state = self.groups[number], parts.state(number)
        tally = Tally(self, keys)
        begin = tally.restore(state) if state else 0
        n_batches, saved = len(self.cuts), time.monotonic()
        for n in range(begin, n_batches):
            tally.add(self.batch(n))
            told(number * n_batches + n + 1)
            if time.monotonic() - saved >= every or n == n_batches - 1:
                parts.save(number, tally.state(n + 1))
                saved = time.monotonic()

    def batch(self, n: int) -> plan.Batch:
        """The n-th batch of the text."""
        return plan.batch(self.rows, self.cuts[n], self.columns, self.settings.seed)

    def entering(
        self, batch: plan.Batch, keys: Sequence[str]
    ) -> tuple[dict[str, mx.array], mx.array]:
        """What enters these maps at each real position [position, d_in], and the logits there."""
        layers = sorted({self.maps[key].layer for key in keys})
        seen, logits = weights.inputs_and_logits(self.model.network, layers, batch.tokens)

        def real(array: mx.array) -> mx.array:
            return array.reshape(-1, array.shape[-1])[batch.flat].astype(mx.float32)

        found = {key: real(seen[self.maps[key].layer][self.maps[key].path][1]) for key in keys}
        logits = real(logits)
        mx.eval(found, logits)
        return found, logits

    def measured(
        self, entering: Mapping[str, mx.array], keys: Sequence[str]
    ) -> Iterator[tuple[str, mx.array, mx.array]]:
        """(map, importance, a |U|) of each map [position, C], map by map."""
        joint: dict[str, mx.array] = {}
        if self.importance.joint:
            activations = {key: entering[key] @ self.factors(key)[0] for key in self.maps}
            joint = self.importance.of_all(entering, activations)
        for key in keys:
            v, lengths = self.factors(key)
            a = entering[key] @ v
            g = joint[key] if joint else self.importance(key, entering[key], a)
            yield key, g, a * lengths

    def factors(self, key: str) -> tuple[mx.array, mx.array]:
        """V [d_in, C] and the lengths |U| [C] of a map."""
        if key not in self._factors:
            d = self.components.maps[key]
            self._factors[key] = mx.array(d.V), mx.array(np.linalg.norm(d.U, axis=1))
        return self._factors[key]

    def pairs_of(self, keys: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs that are counted among these maps."""
        return [pair for pair in self.pairs if pair[0] in keys]


class Tally:
    """The sums of one group of maps over the batches so far."""

    def __init__(self, of: Harvester, keys: Sequence[str]) -> None:
        self.of, self.keys = of, list(keys)
        n_columns, n_examples = len(of.columns), of.settings.examples
        self.sums = {key: Sums(of.components.maps[key].n, n_examples, n_columns) for key in keys}
        self.pairs = {
            (a, b): np.zeros((of.components.maps[a].n, of.components.maps[b].n), dtype=np.int64)
            for a, b in of.pairs_of(keys)
        }
        self.mass = np.zeros(n_columns)
        """Probability that the model gave to each column's token, over all positions."""

    def add(self, batch: plan.Batch) -> None:
        """Runs a batch and adds it."""
        of = self.of
        needed = list(of.maps) if of.importance.joint else self.keys
        entering, logits = of.entering(batch, needed)
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        probs = mx.exp(mx.take(logits, mx.array(of.columns), axis=-1) - total)
        self.mass += np.array(probs, dtype=np.float64).sum(axis=0)
        fired: dict[str, mx.array] = {}
        for key, g, activation in of.measured(entering, self.keys):
            fires = g > of.threshold
            fired[key] = fires.astype(mx.float32)
            both = fired[key].T @ probs
            mx.eval(g, activation, fires, both)
            numbers = [np.array(array) for array in (g, activation, fires, both)]
            _check_finite(key, *numbers[:2])
            self.sums[key].add(*numbers, batch.span)
        for (a, b), counts in self.pairs.items():
            # exact: a sum of at most 2 ** 24 ones in float32
            counts += np.rint(np.array(fired[a].T @ fired[b])).astype(np.int64)

    def state(self, done: int) -> dict[str, Array]:
        """Everything, to be taken up again after ``done`` batches."""
        found: dict[str, Array] = {"done": np.array(done), "mass": self.mass}
        for key, sums in self.sums.items():
            found |= {f"maps/{key}/{name}": array for name, array in sums.state.items()}
        return found | {f"pairs/{a}/{b}": counts for (a, b), counts in self.pairs.items()}

    def restore(self, state: Mapping[str, Array]) -> int:
        """Takes up a state; the number of batches that are in it."""
        self.mass[...] = state["mass"]
        for key, sums in self.sums.items():
            sums.restore({name: state[f"maps/{key}/{name}"] for name in sums.state})
        for (a, b), counts in self.pairs.items():
            counts[...] = state[f"pairs/{a}/{b}"]
        return int(state["done"])


def _check_finite(key: str, *arrays: Array) -> None:
    """Refuses numbers that would make every sum NaN.

    Raises:
        ModelError: some are not finite.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise ModelError(
            f"the activations of {key} are not all finite numbers: the model overflows on this "
            "text, or its weights are damaged"
        )
