"""One short run under taps: what each layer was handed, called and returned. Evaluates nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles.backend import mx, nn
from mlxroles.taps import AttentionCall, Frame, ModuleCall, Tap, home_namespaces, real_class

PROBE_TOKENS = 6
PROBE = [(7 * i + 3) % 32 for i in range(PROBE_TOKENS)]
"""Token ids of the run: small ones, that any vocabulary has."""

RESIDUAL_ARGUMENT = {"talkie": 1}
"""Which argument of the first layer is the stream, where it is not the first array of 3 axes."""


class Event(NamedTuple):
    """The call of a submodule while a layer ran."""

    path: str
    taken: mx.array | None
    """Its first argument, where that is an array."""
    given: mx.array | None
    """Its output, or the first of several, where that is an array."""


@dataclass
class Seen:
    """What one layer did during the watched run."""

    taken: mx.array | None = None
    """The stream that it was handed."""
    given: mx.array | None = None
    """The stream that it returned."""
    single: bool = True
    """Whether it returned nothing else."""
    calls: int = 0
    events: list[Event] = field(default_factory=list)
    """Calls of submodules, in order of return."""
    attention: list[tuple[str, AttentionCall, mx.array]] = field(default_factory=list)
    """(path of the caller, call, the kernel's z)."""
    softmax: list[tuple[str, mx.array]] = field(default_factory=list)
    """(path of the caller, weights)."""


def stream(out: Any) -> mx.array:
    """The residual stream in what a layer returns: the array, or the first of a tuple."""
    return out[0] if isinstance(out, (tuple, list)) else out


def residual_place(call: ModuleCall, last: mx.array | None, architecture: str) -> int | str:
    """Index or keyword under which a layer was handed the stream."""
    items: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    if last is not None:
        for place, value in items:
            if value is last:
                return place
    preferred = RESIDUAL_ARGUMENT.get(architecture)
    if preferred is not None:
        return preferred
    for place, value in items:
        if isinstance(value, mx.array) and value.ndim >= 3:
            return place
    raise ValueError("the layer was not handed a residual stream")


def architecture_of(net: nn.Module) -> str:
    """Name of the mlx_lm model file that ``net`` was built from."""
    return real_class(net).__module__.rsplit(".", 1)[-1]


def submodules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of everything inside a layer, down to three levels."""
    for path, module in layer.named_modules():
        if module is not layer and path and path.count(".") <= 2:
            yield path, module


def watch(
    net: nn.Module,
    layers: list[nn.Module],
    *,
    direct: bool,
    zero: tuple[int, int] | None = None,
    tokens: Sequence[int] = PROBE,
) -> tuple[list[Seen], mx.array]:
    """Builds the graph of one short run and notes what each layer did; evaluates nothing.

    Args:
        net: The network.
        layers: Its blocks.
        direct: Whether to look at ``mx.fast`` and ``mx.softmax`` too.
        zero: (layer, head) whose weights the softmax is made to return as zeros.
        tokens: Ids of the prompt.
    """
    seen = [Seen() for _ in layers]
    architecture = architecture_of(net)
    stack: list[str] = []
    last: list[mx.array | None] = [None]

    def layer_hook(call: ModuleCall) -> Any:
        assert call.frame is not None
        s = seen[call.frame.layer]
        s.calls += 1
        place = residual_place(call, last[0], architecture)
        s.taken = (call.args[place] if isinstance(place, int) else call.kwargs[place])[...]
        out = call.run()
        last[0] = stream(out)
        s.given, s.single = stream(out)[...], isinstance(out, mx.array)
        return out

    def part_hook(path: str) -> Any:
        def hook(call: ModuleCall) -> Any:
            if call.frame is None:
                return call.run()
            stack.append(path)
            try:
                out = call.run()
            finally:
                stack.pop()
            first = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
            held = first[...] if isinstance(first, mx.array) else None
            kept = stream(out)[...] if isinstance(stream(out), mx.array) else None
            seen[call.frame.layer].events.append(Event(path, held, kept))
            return out

        return hook

    def attention_hook(call: AttentionCall) -> mx.array:
        z = call.fused()
        seen[call.frame.layer].attention.append((stack[-1] if stack else "", call, z))
        return z

    def softmax_hook(frame: Frame, scores: mx.array, out: mx.array) -> mx.array:
        if zero is not None and frame.layer == zero[0]:
            flat = four_axes(out)
            keep = (mx.arange(flat.shape[1]) != zero[1])[None, :, None, None]
            out = (flat * keep).reshape(out.shape).astype(out.dtype)
        seen[frame.layer].softmax.append((stack[-1] if stack else "", out))
        return out

    parts = {id(m): (m, part_hook(path)) for layer in layers for path, m in submodules(layer)}
    tap = Tap(
        layers,
        namespaces=home_namespaces(net),
        layer=layer_hook,
        modules=list(parts.values()),
        attention=attention_hook,
        softmax=softmax_hook,
        direct=direct,
    )
    with tap:
        return seen, stream(net(mx.array([list(tokens)])))


def four_axes(weights: mx.array) -> mx.array:
    """Weights [batch, head, query, key] of a softmax that may keep heads in groups."""
    if weights.ndim == 5:
        b, kv, rep, queries, keys = weights.shape
        return weights.reshape(b, kv * rep, queries, keys)
    return weights
