"""One run through which gradients flow to the sites: the recipient's, with a zero added at each.

The sites are those of ``forward`` and are found the same way. What is added to a pattern is added
to its float32 weights and goes into z as their product with v, so that the kernel's output stays
what it was. Weights are never differentiated: gradients flow through activations alone, which is
why quantised models need nothing special.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mlxroles import attention as attn
from mlxroles.anatomy import four_axes, stream
from mlxroles.attribution.metrics import Metric
from mlxroles.backend import mx, nn, on_gpu
from mlxroles.edits import ATTENTION_SITES, Edit
from mlxroles.errors import ModelError
from mlxroles.forward import Network, Start
from mlxroles.forward.asked import WHOLE_HEAD, Asked, at
from mlxroles.forward.job import Job
from mlxroles.forward.run import check_read, check_tokens
from mlxroles.taps import AttentionCall, Frame, real_class

Key = tuple[str, int]
"""A site of a layer."""

KERNEL_FILES = {
    "bailing_moe_v3",
    "kimi_k3",
    "kimi_linear",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_next",
}
"""Files of mlx_lm whose GPU kernels have no gradient, and which leave them out in training."""


class Trace(Job):
    """The callbacks of a run in which an array is added at some sites and others are watched.

    Args:
        network: What runs.
        added: What is added at a site, in its layout and float32.
        watched: Further sites whose arrays are noted.
        edits: Interventions, carried out before anything is added.
        start: Where to begin, if not at the embedding.
        read: Positions at which logits are wanted; None for all.
        last: Last layer that is built; None for all of them, with the norm and the head.

    Raises:
        ModelError: a site that cannot be captured here.
    """

    def __init__(
        self,
        network: Network,
        added: Mapping[Key, mx.array],
        *,
        watched: Collection[Key] = (),
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        read: Sequence[int] | None = None,
        last: int | None = None,
    ) -> None:
        super().__init__(network, Asked((), (), tuple(edits), start, read, 0, through=True))
        self.added, self.watched = added, dict.fromkeys((*added, *watched))
        for site, layer in self.watched:
            if site in network.block(layer).missing:
                raise ModelError(self._why_not(site, layer))
        for key in added:
            self.edits.setdefault(key, [])
        if last is not None and network.anatomy.resumable:
            self.last = last
        self.seen: dict[Key, mx.array] = {}
        """Arrays at the watched sites, before anything is added."""
        self.calls: dict[int, AttentionCall] = {}
        """Calls of the kernel in the layers of which queries or keys are watched."""
        self.scores: dict[int, mx.array] = {}
        """Scores [batch, head, query, key] of such layers that take their softmax by hand."""

    def run(self, tokens: mx.array) -> mx.array:
        """Logits [batch, n_read, vocab], not evaluated."""
        network = self.network
        with self.tap():
            out = stream(network.module(tokens))
        read = self.asked.read
        return at(out, read) if read is not None and network.architecture in WHOLE_HEAD else out

    def wants_attention(self) -> bool:
        """Whether any attention site is watched or edited."""
        return bool({site for site, _ in {*self.watched, *self.edits}} & set(ATTENTION_SITES))

    def _has(self, site: str, layer: int) -> bool:
        return (site, layer) in self.watched or (site, layer) in self.edits

    def _known(self, site: str, layer: int) -> bool:
        return (site, layer) in self.added  # it has a gradient also where it is 0

    def _pass(self, site: str, layer: int, array: mx.array) -> mx.array:
        array = super()._pass(site, layer, array)
        if (site, layer) in self.watched:
            self.seen[site, layer] = array[...]
        extra = self.added.get((site, layer))
        if extra is None:
            return array
        if extra.shape != array.shape:
            raise ValueError(
                f"the donor's {site} has shape {extra.shape}, here it is {array.shape}"
            )
        return array + extra.astype(array.dtype)

    def attention(self, call: AttentionCall) -> mx.array:
        """The z of one attention call, which is noted where queries or keys are watched."""
        i = call.frame.layer
        if {("q", i), ("k", i)} & {*self.watched}:
            self.calls[i] = call
        return super().attention(call)

    def _weights(self, i: int, call: AttentionCall) -> mx.array | None:
        before = mx.stop_gradient(attn.pattern(call).weights)
        after = self._pass("pattern", i, before)
        if ("pattern", i) not in self.edits:
            return None
        return attn.z_from(after - before, mx.stop_gradient(attn.plain(call.v, call.cache)))

    def softmax(self, frame: Frame, scores: mx.array, out: mx.array) -> mx.array:
        """Weights of a model that takes its softmax by hand, with what is added to them."""
        i = frame.layer
        if self.network.block(i).kind != "softmax":
            return out
        self.scores[i] = four_axes(scores).astype(mx.float32)
        if not self._has("pattern", i):
            return out
        exact = mx.stop_gradient(mx.softmax(self.scores[i], axis=-1, precise=True))
        change = self._pass("pattern", i, exact) - exact
        return out + change.reshape(out.shape).astype(out.dtype)


@dataclass(frozen=True, eq=False)
class Gradients:
    """A run of some prompts, and how its metric changes with what is added at the sites."""

    value: mx.array
    """The metric [prompt], float32."""
    slope: dict[Key, mx.array]
    """d metric / d site in the site's layout, float32."""
    trace: Trace
    """The run's arrays at the sites."""

    def drop(self, layer: int) -> None:
        """Lets go of what is held of a layer."""
        for held in (self.slope, self.trace.seen):
            for key in [key for key in held if key[1] == layer]:
                del held[key]
        self.trace.calls.pop(layer, None)
        self.trace.scores.pop(layer, None)


@dataclass(frozen=True, eq=False)
class Recipient:
    """A network on some prompts of one length, and the metric that is to be explained.

    Raises:
        ModelError: a network whose layers cannot be seen.
        PromptError: an empty prompt or a token id that the model does not have.
        ValueError: a position to read that does not exist.
    """

    network: Network
    tokens: mx.array
    """[prompt, position]"""
    metric: Metric
    read: Sequence[int]
    """Positions that the metric reads."""

    def __post_init__(self) -> None:
        if self.network.anatomy.refused:
            raise ModelError(f"{self.network.architecture}: {self.network.anatomy.refused}")
        check_tokens(self.network, self.tokens)
        check_read(self.read, self.tokens)

    def shapes(self, keys: Collection[Key]) -> dict[Key, tuple[int, ...]]:
        """Shapes of the arrays at sites, from a run of which nothing is evaluated."""
        trace = Trace(self.network, {}, watched=keys, read=self.read)
        trace.run(self.tokens)
        return {key: trace.seen[key].shape for key in keys}

    def gradients(
        self,
        shapes: Mapping[Key, Sequence[int]],
        *,
        watched: Collection[Key] = (),
        edits: Sequence[Edit] = (),
        start: Start | None = None,
        copies: int = 1,
    ) -> Gradients:
        """One forward and one backward for all sites at once; nothing is evaluated.

        Args:
            shapes: Sites and layers at which the gradient is taken, and their arrays' shapes.
            watched: Further sites whose arrays are noted.
            edits: Interventions under which the run goes.
            start: Where to begin, if not at the embedding.
            copies: How often the prompts come one after the other in the batch.
        """
        keys = list(shapes)
        traces: list[Trace] = []
        tokens = mx.tile(self.tokens, (copies, 1))

        def run(added: list[mx.array]) -> tuple[mx.array, mx.array]:
            trace = Trace(
                self.network,
                dict(zip(keys, added, strict=True)),
                watched=watched,
                edits=edits,
                start=start,
                read=self.read,
            )
            values = self.metric(trace.run(tokens))
            traces.append(trace)
            return values.sum(), values  # prompts do not mix, so one sum serves all of them

        zeros = [mx.zeros(tuple(shapes[key])) for key in keys]
        with differentiable(self.network):
            (_, value), slopes = mx.value_and_grad(run)(zeros)
        return Gradients(value, dict(zip(keys, slopes, strict=True)), traces[0])


@contextmanager
def differentiable(network: Network) -> Generator[None]:
    """Has a network on a GPU compute with operations that have gradients, as in training."""
    modules = []
    if on_gpu():
        found = [m for m in network.module.modules() if _home(m) in KERNEL_FILES]
        modules = [m for m in found if not m.training]
    try:
        for module in modules:
            module.train()
        yield
    finally:
        for module in modules:
            module.eval()


def _home(module: nn.Module) -> str:
    return real_class(module).__module__.rsplit(".", 1)[-1]
