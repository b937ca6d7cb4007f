"""Which submodules write to the stream: the attention part, the MLP part, and their scales."""

import math
from typing import NamedTuple

from mlxroles.anatomy.block import Block, Part
from mlxroles.anatomy.rounding import sum_error
from mlxroles.anatomy.watch import Event, Seen
from mlxroles.backend import mx, nn, number

ROUNDINGS = 4
"""A block may differ from the sum of its parts by so many roundings; 1.4 is the most measured."""


class Parts(NamedTuple):
    """What a block adds to its stream."""

    attn_out: Part
    mlp_out: Part
    sequential: bool
    """The MLP reads the stream after the attention, so that there is a stream between them."""


def parts_of(layer: nn.Module, s: Seen) -> Parts | None:
    """The two submodules whose scaled outputs the layer adds to its stream, or None."""
    assert s.taken is not None
    assert s.given is not None
    if s.taken.shape != s.given.shape:
        return None
    top = _top_level(s, s.given.shape)
    seen = s.attention or s.softmax
    source = seen[0][0] if seen else ""
    found = [n for n, e in enumerate(top) if source == e.path or source.startswith(f"{e.path}.")]
    if not source or not found:
        return None
    at = found[0]
    # a norm may stand between the attention and the stream
    normed = [n for n in range(at + 1, len(top)) if _same(_taken(top[n]), _given(top[at]))]
    mixers = [at, *normed[:1]]
    for a in reversed(mixers):
        for m in reversed([m for m in range(len(top)) if m not in mixers]):
            scales = _fit(layer, s, _given(top[a]), _given(top[m]))
            if scales is not None:
                between = s.taken + scales[0] * _given(top[a])
                return Parts(
                    Part(top[a].path, scales[0]),
                    Part(top[m].path, scales[1]),
                    any(_reads(e, between, s.taken) for e in top),
                )
    return None


def add_up(s: Seen, like: Block) -> mx.array:
    """``sum_error`` of a layer that is built like one whose parts are known, not evaluated."""
    assert s.taken is not None
    assert s.given is not None
    terms = [s.taken]
    for part in (like.attn_out, like.mlp_out):
        assert part is not None
        given = next((e.given for e in s.events if e.path == part.path), None)
        if given is None:
            return mx.array(math.inf)
        terms.append(given * part.scale)
    return sum_error(s.given, *terms)


def _taken(event: Event) -> mx.array:
    assert event.taken is not None
    return event.taken


def _given(event: Event) -> mx.array:
    assert event.given is not None
    return event.given


def _top_level(s: Seen, shape: tuple[int, ...]) -> list[Event]:
    """Calls of the outermost submodules that return arrays of the stream's shape, in order."""
    paths = {e.path for e in s.events}
    return [
        e
        for e in s.events
        if e.taken is not None
        and e.given is not None
        and e.given.shape == shape
        and not any(e.path.startswith(f"{p}.") for p in paths)
    ]


def _same(a: mx.array, b: mx.array) -> bool:
    return bool(number(mx.array_equal(a, b)))


def _reads(event: Event, between: mx.array, before: mx.array) -> bool:
    """Whether a submodule was handed the stream after the attention and not the one before."""
    x = _taken(event)
    if x.shape != between.shape:
        return False
    return number(sum_error(x, between)) <= 2 < number(sum_error(x, before))


def _fit(layer: nn.Module, s: Seen, a: mx.array, m: mx.array) -> tuple[float, float] | None:
    """Scales (alpha, beta) with output = input + alpha a + beta m, both known to the layer."""
    assert s.taken is not None
    assert s.given is not None
    flat = [x.astype(mx.float32).reshape(-1) for x in (s.given, s.taken, a, m)]
    delta = flat[0] - flat[1]
    aa, mm, am = (
        number((x * y).sum()) for x, y in ((flat[2], flat[2]), (flat[3], flat[3]), flat[2:])
    )
    ad, md = number((flat[2] * delta).sum()), number((flat[3] * delta).sum())
    det = aa * mm - am * am
    if not math.isfinite(det) or det <= 1e-9 * max(aa * mm, 1e-30):
        return None
    scales = _known_scales(layer)
    fitted = ((ad * mm - md * am) / det, (md * aa - ad * am) / det)
    alpha, beta = (min(scales, key=lambda k, f=f: abs(k - f)) for f in fitted)
    off = number(sum_error(s.given, s.taken, a * alpha, m * beta))
    return (alpha, beta) if off <= ROUNDINGS else None


def _known_scales(layer: nn.Module) -> set[float]:
    """Factors that a block may multiply its parts by: 1, and plain numbers that it holds."""
    args = vars(layer).get("args")
    own = {**vars(layer), **layer, **(vars(args) if args is not None else {})}
    factors = {
        float(v)
        for k, v in own.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and ("scale" in k or "mult" in k)
    }
    count = own.get("num_hidden_layers")
    return {1.0, *factors, *(f / math.sqrt(count) for f in factors if count)}
