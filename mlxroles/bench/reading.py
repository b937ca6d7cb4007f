"""W1, W2, W3, W8, W10: what is read from unpatched runs, streams and attention entropies."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np

from mlxroles.anatomy import four_axes
from mlxroles.attention import pattern
from mlxroles.backend import memory, mx
from mlxroles.bench.ground import RECIPIENT, Ground
from mlxroles.bench.work import Ran, Work, evenly, plain_forward
from mlxroles.errors import ModelError
from mlxroles.forward import Network, Run, by_blocks, forward
from mlxroles.taps import AttentionCall, Frame, ModuleCall, Tap
from mlxroles.text import format_bytes

SHORT_PROMPTS = 120
SHORT_LENGTHS = (6, 7, 8, 9)
SHORT_SAMPLE = 24

LONG = 32
"""Times the usual length: 16,384 tokens for 512."""
SCORE_BYTES = 1 << 26
"""Attention scores of one layer, in float32, that a block of queries may have."""


class PlainForward(Work):
    """W1: the model's own call, which every other work is compared with."""

    name = "W1"
    what = "plain forward"
    goal = 1.0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.ground.tokens

    @property
    def n_cells(self) -> int:
        """One prompt."""
        return 1

    def least(self) -> float:
        """Every layer once."""
        return float(self.ground.n_layers)

    def run(self, kept: Collection[int]) -> Ran:
        """The same as the reference."""
        self.against()
        return Ran({cell: np.zeros(0) for cell in kept}, self.least())

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """The same as the reference."""
        self.against()
        return np.zeros(0)


class Streams(PlainForward):
    """W2: the stream after every layer, and the logits."""

    name = "W2"
    what = "keep every stream"
    goal = 1.02
    unit: ClassVar[str] = "stream"

    def run(self, kept: Collection[int]) -> Ran:
        """One forward that keeps the stream of every layer."""
        tokens = self.ground.prompts(1, self.length)
        run = forward(self.ground.network(RECIPIENT), tokens, keep=["resid_post"])
        cells = {0: flat([run["resid_post", i] for i in run.layers("resid_post")])} if kept else {}
        return Ran(cells, self.least())

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """A loop that evaluates every layer's output before it goes on."""
        streams: list[mx.array] = []

        def hook(call: ModuleCall) -> Any:
            out = call.run()
            h = (out[0] if isinstance(out, (tuple, list)) else out)[...]
            mx.eval(h)
            streams.append(h)
            return out

        network = self.ground.network(RECIPIENT)
        with Tap(network.layers, layer=hook):
            plain_forward(self.ground, self.ground.prompts(1, self.length))
        return flat(streams)


class Entropies(PlainForward):
    """W3: mean attention entropy per layer and head."""

    name = "W3"
    what = "entropy of every head"
    goal = 1.25
    unit: ClassVar[str] = "nats"

    def run(self, kept: Collection[int]) -> Ran:
        """One forward that keeps the entropies, averaged over the queries."""
        tokens = self.ground.prompts(1, self.length)
        run = forward(self.ground.network(RECIPIENT), tokens, keep=["entropy"], logits=False)
        mx.eval([run["entropy", i].mean(axis=-1) for i in run.layers("entropy")])
        return Ran(entropies(run, 0, kept), self.least())

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """A forward whose attention weights are made in full, layer after layer."""
        return flat(plain_entropies(self.ground, self.ground.prompts(1, self.length)))


class ShortPrompts(Work):
    """W8: entropies of many short prompts, against the same tokens as one plain batch."""

    name = "W8"
    what = f"entropy, {SHORT_PROMPTS} prompts"
    goal = 1.3
    unit = "nats"
    reference = "the same prompts as one padded plain batch"

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return self.ground.fit(max(SHORT_LENGTHS))

    @property
    def n_cells(self) -> int:
        """Prompts."""
        return SHORT_PROMPTS

    @property
    def sample(self) -> list[int]:
        """Prompts of the twin, of all lengths."""
        return evenly(SHORT_PROMPTS, SHORT_SAMPLE)

    def least(self) -> float:
        """Every layer once over every prompt."""
        return float(SHORT_PROMPTS * self.ground.n_layers)

    def _groups(self) -> list[mx.array]:
        """Prompts of one length each [prompt, position]; cells count through them."""
        count = SHORT_PROMPTS // len(SHORT_LENGTHS)
        return [self.ground.prompts(count, self.ground.fit(n)) for n in SHORT_LENGTHS]

    def run(self, kept: Collection[int]) -> Ran:
        """One forward per length."""
        found, first = {}, 0
        for tokens in self._groups():
            network = self.ground.network(RECIPIENT)
            run = forward(network, tokens, keep=["entropy"], logits=False)
            found |= entropies(run, first, kept)
            first += tokens.shape[0]
        return Ran(found, self.least())

    def prepare(self) -> list[mx.array]:
        """Every prompt by itself [1, position]."""
        return [group[i : i + 1] for group in self._groups() for i in range(group.shape[0])]

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """One prompt after the other, attention weights in full."""
        return flat(plain_entropies(self.ground, state[cell]))

    def against(self) -> None:
        """One call of the model on all prompts, padded on the right."""
        rows = [np.array(group) for group in self._groups()]
        padded = np.concatenate([np.pad(r, [(0, 0), (0, self.length - r.shape[1])]) for r in rows])
        plain_forward(self.ground, mx.array(padded))


class LongPrompt(Work):
    """W10: peak memory for the entropies of one long prompt, by blocks of queries.

    Causal attention sees nothing of what follows, so that the twin runs the beginning of the
    prompt alone; its memory grows with the square of the length.
    """

    name = "W10"
    what = "entropy of a long prompt"
    goal = float(1 << 30)
    unit = "nats"
    reference = "none: bytes"
    is_memory = True

    def __init__(self, ground: Ground, length: int | None = None) -> None:
        super().__init__(ground)
        self._length = ground.fit(LONG * ground.tokens) if length is None else length

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self._length

    @property
    def n_cells(self) -> int:
        """Squares of queries and keys that the twin, which runs one of them, would need."""
        return self.part**2

    @property
    def part(self) -> int:
        """How many times shorter the twin's prompt is."""
        return max(1, min(LONG // 2, self.length // 2))

    @property
    def sample(self) -> list[int]:
        """The beginning of the prompt."""
        return [0]

    def least(self) -> float:
        """Every layer once."""
        return float(self.ground.n_layers)

    def run(self, kept: Collection[int]) -> Ran:
        """One pass over the prompt, blocks of queries one after the other."""
        network = self.ground.network(RECIPIENT)
        heads = max(block.heads for block in network.anatomy.blocks)
        size = max(1, SCORE_BYTES // (4 * max(heads, 1) * self.length))
        if not network.anatomy.plain_cache:
            size = self.length
            needed = 4 * heads * self.length**2
            if needed > (memory().limit or needed):
                raise ModelError(
                    f"{network.architecture} cannot run a prompt in parts, and the attention of "
                    f"{self.length} tokens at once would take {format_bytes(needed)}"
                )
        tokens = self.ground.prompts(1, self.length)
        parts: dict[int, list[np.ndarray]] = {}
        for _, run in by_blocks(network, tokens, keep=("entropy",), size=size):
            for layer in run.layers("entropy"):
                parts.setdefault(layer, []).append(np.array(run["entropy", layer]))
        own = [np.concatenate(blocks, axis=-1) for blocks in parts.values()]
        first = self.length // self.part
        cells = {0: np.concatenate([a[..., :first].ravel() for a in own])} if kept else {}
        return Ran(cells, self.least())

    def plain(self, state: Any, cell: int) -> np.ndarray:
        """The beginning of the prompt at once, attention weights in full."""
        tokens = self.ground.prompts(1, self.length)[:, : self.length // self.part]
        return flat(plain_entropies(self.ground, tokens))

    def note(self) -> str:
        """How the twin's memory was found."""
        first = self.length // self.part
        return f"plain: measured on {first} of {self.length} tokens, times {self.part**2}"


def entropies(run: Run, first: int, kept: Collection[int]) -> dict[int, np.ndarray]:
    """Cell -> entropies of all layers, of the rows of a run that begin with cell ``first``."""
    layers = [run["entropy", i] for i in run.layers("entropy")]
    rows = layers[0].shape[0]
    return {
        first + row: flat([a[row : row + 1] for a in layers])
        for row in range(rows)
        if first + row in kept
    }


def plain_entropies(ground: Ground, tokens: mx.array) -> list[mx.array]:
    """-sum p ln p of every layer with attention [prompt, head, query], by the definition."""
    network = ground.network(RECIPIENT)
    found: dict[int, mx.array] = {}

    def reduce(layer: int, weights: mx.array) -> None:
        found[layer] = -(weights * mx.log(mx.where(weights > 0, weights, 1.0))).sum(axis=-1)
        mx.eval(found[layer])

    def attention(call: AttentionCall) -> mx.array:
        reduce(call.frame.layer, pattern(call).weights)
        return call.fused()

    def by_hand(frame: Frame, scores: mx.array, out: mx.array) -> mx.array:
        if network.block(frame.layer).kind == "softmax":
            reduce(frame.layer, four_axes(mx.softmax(scores.astype(mx.float32), axis=-1)))
        return out

    direct = network.anatomy.direct
    tap = Tap(
        network.layers,
        namespaces=network.namespaces,
        attention=attention,
        softmax=by_hand if direct else None,
        direct=direct,
    )
    with tap:
        plain_forward(ground, tokens)
    return [found[i] for i in sorted(found) if _has_entropy(network, i)]


def _has_entropy(network: Network, layer: int) -> bool:
    return "entropy" not in network.block(layer).missing


def flat(arrays: Sequence[mx.array]) -> np.ndarray:
    """All numbers of some arrays in a row, float32."""
    return np.concatenate([np.array(a.astype(mx.float32)).ravel() for a in arrays])
