"""What the blocks of a model are made of, found by watching one short run and not by their names.

A graph of a few tokens is built under taps: shapes, the order of calls and the identity of arrays
tell which submodule is the attention, what enters its output projection and what the block adds
to the stream. One block of each kind is then evaluated, and everything found is verified by
numbers (the parts sum to the block's output, z from the pattern is the kernel's z). What does
not hold is refused by name in ``Block.missing``; nothing is assumed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxroles import attention as attn
from mlxroles.backend import mx, nn
from mlxroles.taps import AttentionCall, Frame, ModuleCall, Tap, home_namespaces, real_class

PROBE_TOKENS = 6

# Architectures in which the residual stream is not all that one block hands to the next, as
# measured by replacing the whole stream by another prompt's: the other prompt's logits do not
# come out. A patch of the stream is partial there.
STATEFUL = {
    "afm7": "the last layers reuse keys and values of an earlier layer",
    "deepseek_v41": "a mixing state travels beside the stream",
    "gemma3n": "per-layer inputs of the tokens enter every block",
    "gemma4": "per-layer inputs and shared keys and values enter the blocks",
    "gemma4_text": "per-layer inputs and shared keys and values enter the blocks",
    "hunyuan": "every second layer reuses the keys and values of the one before",
    "kimi_k3": "residuals of earlier blocks travel beside the stream",
    "rwkv7": "the first layer's values travel beside the stream",
    "talkie": "the embedding enters every block again",
}
RESIDUAL_ARGUMENT = {"talkie": 1}
NO_ATTENTION = "no softmax attention"
"""In every reason why a layer that is no attention layer has no attention sites."""


@dataclass(frozen=True)
class Part:
    """A submodule of a block whose output, times ``scale``, is added to the stream."""

    path: str
    scale: float


@dataclass(frozen=True)
class Block:
    """One layer: how its attention is seen and what of it can be captured."""

    kind: str
    """How attention is seen: ``sdpa`` (q, k, v), ``softmax`` (weights only) or ``none``."""
    heads: int = 0
    kv_heads: int = 0
    d_head: int = 0
    attn_out: Part | None = None
    mlp_out: Part | None = None
    out_proj: str | None = None
    """Leaf whose input is the flattened z; only where the kernel is not seen."""
    rope: str | None = None
    """Leaf that returns q, then k [batch, head, position, d]; only where the kernel is not seen."""
    v_proj: str | None = None
    """Leaf that returns the flattened v; only where the kernel is not seen."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Site -> why it cannot be captured here."""


@dataclass(frozen=True)
class Anatomy:
    """What a forward needs to know about a network besides its own code."""

    blocks: tuple[Block, ...]
    d_model: int
    vocab: int
    direct: bool
    """The network's file calls ``mx.fast`` or ``mx.softmax`` itself."""
    resumable: bool
    """A run may start at any layer from its residual stream alone."""
    stateful: str | None
    """Why a full-stream patch is partial here, or None."""
    plain_cache: bool
    """Every layer has a plain key-value cache, so a prefix of keys and values can be shared."""
    refused: str | None = None
    """Why nothing can be captured layer by layer, or None."""


@dataclass
class _Seen:
    """What one layer did during the watched run."""

    inputs: mx.array | None = None
    output: Any = None
    calls: int = 0
    events: list[tuple[str, int, Any, Any]] = field(default_factory=list)
    """(path, depth, first argument, output) of each submodule call, in order of return."""
    attention: list[tuple[str, AttentionCall, mx.array]] = field(default_factory=list)
    softmax: list[tuple[str, mx.array]] = field(default_factory=list)


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


def examine(net: nn.Module) -> Anatomy:
    """Anatomy of a network; evaluates one block of each kind on a few tokens."""
    layers = list(net.layers)
    architecture = architecture_of(net)
    try:
        seen, logits = _watch(net, layers, direct=False)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        why = f"mlx_lm's own forward fails: {type(error).__name__}: {error}"
        return Anatomy(
            (), 0, 0, direct=False, resumable=False, stateful=None, plain_cache=False, refused=why
        )
    direct = False
    if any(s.calls and not s.attention for s in seen):
        again, again_logits = _watch(net, layers, direct=True)
        if any(s.softmax or len(s.attention) > len(t.attention) for s, t in zip(again, seen)):
            seen, logits, direct = again, again_logits, True
    calls = {s.calls for s in seen}
    if calls != {1}:
        why = "never calls its layers" if calls == {0} else "calls a layer more than once"
        return Anatomy(
            (),
            0,
            int(logits.shape[-1]),
            direct=direct,
            resumable=False,
            stateful=None,
            plain_cache=False,
            refused=f"the model {why}",
        )
    first = seen[0].inputs
    assert first is not None
    ndims = {stream(s.output).ndim for s in seen}
    narrow = None if ndims == {3} else f"the residual stream has {max(ndims)} axes and not 3"
    blocks = _blocks(net, layers, seen, narrow, direct=direct)
    single = all(isinstance(s.output, mx.array) for s in seen)
    stateful = STATEFUL.get(architecture)
    return Anatomy(
        blocks=tuple(blocks),
        d_model=int(first.shape[-1]),
        vocab=int(logits.shape[-1]),
        direct=direct,
        resumable=single and stateful is None and narrow is None,
        stateful=stateful,
        plain_cache=_has_plain_cache(net, architecture),
    )


def _has_plain_cache(net: nn.Module, architecture: str) -> bool:
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    if STATEFUL.get(architecture):
        return False
    return all(type(cache) is KVCache for cache in make_prompt_cache(net))


def _submodules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in layer.named_modules():
        if module is not layer and path and path.count(".") <= 2:
            yield path, module


def _watch(
    net: nn.Module, layers: list[nn.Module], *, direct: bool, zero: tuple[int, int] | None = None
) -> tuple[list[_Seen], mx.array]:
    """Builds the graph of one short run and notes what each layer did; evaluates nothing.

    Args:
        net: The network.
        layers: Its blocks.
        direct: Whether to look at ``mx.fast`` and ``mx.softmax`` too.
        zero: (layer, head) whose weights the softmax is made to return as zeros.
    """
    seen = [_Seen() for _ in layers]
    architecture = architecture_of(net)
    stack: list[str] = []
    last: list[mx.array | None] = [None]

    def layer_hook(call: ModuleCall) -> Any:
        assert call.frame is not None
        s = seen[call.frame.layer]
        s.calls += 1
        place = residual_place(call, last[0], architecture)
        s.inputs = (call.args[place] if isinstance(place, int) else call.kwargs[place])[...]
        s.output = call.run()
        last[0] = stream(s.output)
        return s.output

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
            seen[call.frame.layer].events.append((path, path.count("."), held, kept))
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

    parts = {id(m): (m, part_hook(path)) for layer in layers for path, m in _submodules(layer)}
    tap = Tap(
        layers,
        namespaces=home_namespaces(net),
        layer=layer_hook,
        modules=list(parts.values()),
        attention=attention_hook,
        softmax=softmax_hook,
        direct=direct,
    )
    tokens = mx.array([[(7 * i + 3) % 32 for i in range(PROBE_TOKENS)]])
    with tap:
        out = net(tokens)
    return seen, stream(out)


def four_axes(weights: mx.array) -> mx.array:
    """Weights [batch, head, query, key] of a softmax that may keep heads in groups."""
    if weights.ndim == 5:
        b, kv, rep, queries, keys = weights.shape
        return weights.reshape(b, kv * rep, queries, keys)
    return weights


def _signature(layer: nn.Module) -> tuple:
    """Equal for layers that are built alike: classes and plain settings, indices left out."""

    def settings(module: nn.Module) -> tuple:
        plain = {**{k: v for k, v in module.items()}, **vars(module)}
        return tuple(
            sorted(
                (k, repr(v))
                for k, v in plain.items()
                if isinstance(v, (bool, int, float, str))
                and "idx" not in k
                and "layer" not in k
                and not k.startswith("_")
            )
        )

    parts = [(path, real_class(m).__name__, settings(m)) for path, m in _submodules(layer)]
    return (real_class(layer).__name__, settings(layer), tuple(parts))


def _blocks(
    net: nn.Module,
    layers: list[nn.Module],
    seen: list[_Seen],
    narrow: str | None,
    *,
    direct: bool,
) -> list[Block]:
    known: dict[tuple, Block] = {}
    blocks = []
    for i, (layer, s) in enumerate(zip(layers, seen, strict=True)):
        key = _signature(layer)
        if key not in known:
            known[key] = _block(net, layers, i, s, narrow, direct=direct)
        blocks.append(known[key])
    return blocks


def _block(
    net: nn.Module,
    layers: list[nn.Module],
    i: int,
    s: _Seen,
    narrow: str | None,
    *,
    direct: bool,
) -> Block:
    missing: dict[str, str] = {}
    shape: dict[str, Any] = {"kind": "none"}
    if s.attention:
        shape = _from_kernel(s, missing)
    elif s.softmax:
        shape = _from_softmax(net, layers, i, s, missing)
    else:
        why = f"{_mixer_name(layers[i])} layers have {NO_ATTENTION}"
        missing |= dict.fromkeys(("q", "k", "v", "z", "pattern", "entropy"), why)
    if narrow:
        missing |= dict.fromkeys(
            ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), narrow
        )
        return Block(**shape, missing=missing)
    attn_out, mlp_out, sequential = _parts(layers[i], s)
    if attn_out is None:
        why = "a block's output is not its input plus an attention and an MLP part"
        missing |= dict.fromkeys(("attn_out", "mlp_out", "resid_mid"), why)
    elif not sequential:
        missing["resid_mid"] = "no submodule reads the stream between attention and MLP"
    return Block(**shape, attn_out=attn_out, mlp_out=mlp_out, missing=missing)


def _mixer_name(layer: nn.Module) -> str:
    quiet = ("norm", "mlp", "ln", "ffn", "feed")
    for name, child in layer.children().items():
        if isinstance(child, nn.Module) and not any(q in name.lower() for q in quiet):
            return real_class(child).__name__
    return real_class(layer).__name__


def tolerance(dtype: mx.Dtype) -> float:
    """Largest relative difference that rounding explains between two ways to the same array."""
    return {mx.float32: 2e-5, mx.float16: 4e-3}.get(dtype, 3e-2)


def distance(a: mx.array, b: mx.array) -> float:
    """Largest absolute difference, as a share of the largest value of ``b``."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    scale = mx.maximum(mx.abs(b).max(), 1e-30)
    return float((mx.abs(a - b).max() / scale).item())


def _from_kernel(s: _Seen, missing: dict[str, str]) -> dict[str, Any]:
    sites = ("q", "k", "v", "z", "pattern", "entropy")
    if len(s.attention) > 1:
        why = f"the layer attends {len(s.attention)} times"
        missing |= dict.fromkeys(sites, why)
        return {"kind": "none"}
    _, call, fused = s.attention[0]
    heads, kv_heads = int(call.q.shape[1]), int(attn.plain(call.k, call.cache).shape[1])
    shape = {"kind": "sdpa", "heads": heads, "kv_heads": kv_heads, "d_head": int(fused.shape[-1])}
    if call.k.shape[2] != PROBE_TOKENS:
        why = f"its keys are gathered ({call.k.shape[2]} of {PROBE_TOKENS}), not positions"
        missing |= dict.fromkeys(("k", "v", "pattern", "entropy"), why)
        return shape
    weights = attn.pattern(call).weights
    above = float(mx.abs(mx.triu(weights, k=1)).max().item())
    if above > 0:
        missing |= dict.fromkeys(("pattern", "entropy"), f"weight {above:.1e} lies on later keys")
    off = distance(attn.z_from(weights, call.v), fused)
    if not off <= tolerance(fused.dtype):
        why = f"z from the pattern differs from the kernel's by {off:.1e}"
        missing |= dict.fromkeys(("pattern", "entropy"), why)
    return shape


def _from_softmax(
    net: nn.Module, layers: list[nn.Module], i: int, s: _Seen, missing: dict[str, str]
) -> dict[str, Any]:
    usable = [(p, four_axes(w)) for p, w in s.softmax if w.shape[-1] == PROBE_TOKENS]
    if len(usable) != 1:
        why = f"the layer takes {len(usable)} softmaxes over the keys"
        missing |= dict.fromkeys(("q", "k", "v", "z", "pattern", "entropy"), why)
        return {"kind": "none"}
    path, weights = usable[0]
    heads = int(weights.shape[1])
    shape: dict[str, Any] = {"kind": "softmax", "heads": heads, "kv_heads": heads}
    by_hand = "the model's file computes attention by hand, without a kernel that shows q, k and v"
    missing |= dict.fromkeys(("q", "k", "v"), by_hand)
    if float(mx.abs(mx.triu(weights.astype(mx.float32), k=1)).max().item()) > 0:
        missing |= dict.fromkeys(("pattern", "entropy"), "weight lies on later keys")
    leaf = _projection_after(s, path)
    if leaf is None or not _zeroed_head_shows(net, layers, i, leaf, heads):
        missing["z"] = "no output projection takes the heads one after the other"
        return shape
    z = next(x for p, _, x, _ in s.events if p == leaf)
    shape |= {"out_proj": leaf, "d_head": int(z.shape[-1]) // heads}
    found = _rotated(s, path, weights, z)
    if found is not None:
        shape |= found
        for site in ("q", "k", "v"):
            del missing[site]
    return shape


def _rotated(s: _Seen, mixer: str, weights: mx.array, z: mx.array) -> dict[str, Any] | None:
    """The leaves that return q, k and v, if a RoPE leaf was called for q, then for k.

    v is known by what it does: the weights times it are z.
    """
    inside = [e for e in s.events if e[0].startswith(f"{mixer}.") and isinstance(e[3], mx.array)]
    turned = [e for e in inside if e[3].ndim == 4]
    if len(turned) != 2 or turned[0][0] != turned[1][0]:
        return None
    q, k = turned[0][3], turned[1][3]
    heads, kv_heads = int(q.shape[1]), int(k.shape[1])
    if heads != weights.shape[1] or heads % kv_heads:
        return None
    for path, _, _, out in inside:
        if out.ndim != 3 or out.shape[-1] * heads != z.shape[-1] * kv_heads:
            continue
        v = out.reshape(*out.shape[:2], kv_heads, -1).swapaxes(1, 2)
        made = attn.z_from(weights.astype(mx.float32), v).swapaxes(1, 2)
        if distance(made.reshape(z.shape), z) <= 2 * tolerance(z.dtype):
            return {"rope": turned[0][0], "v_proj": path, "kv_heads": kv_heads}
    return None


def _projection_after(s: _Seen, mixer: str) -> str | None:
    """The last leaf inside the mixer that takes [batch, position, width]."""
    inside = [
        path
        for path, _, x, _ in s.events
        if (path.startswith(f"{mixer}.") if mixer else True)
        and isinstance(x, mx.array)
        and x.ndim == 3
    ]
    return inside[-1] if inside else None


def _zeroed_head_shows(
    net: nn.Module, layers: list[nn.Module], i: int, leaf: str, heads: int
) -> bool:
    """Whether zeroed weights of a head zero its slice of the leaf's input and no other."""
    runs = []
    for head in (heads, heads - 1):  # no head, then the last one
        seen, _ = _watch(net, layers, direct=True, zero=(i, head))
        x = next(x for p, _, x, _ in seen[i].events if p == leaf)
        if x.shape[-1] % heads:
            return False
        runs.append(x.reshape(*x.shape[:-1], heads, -1))
    before, after = runs
    rest = bool((before[..., :-1, :] == after[..., :-1, :]).all().item())
    return rest and bool((after[..., -1, :] == 0).all().item())


def _parts(layer: nn.Module, s: _Seen) -> tuple[Part | None, Part | None, bool]:
    """Attention part, MLP part, and whether the MLP reads the stream after the attention."""
    inputs, output = s.inputs, stream(s.output)
    assert inputs is not None
    if inputs.shape != output.shape:
        return None, None, False
    top = _top_level(s, output.shape)
    if s.attention or s.softmax:
        source = s.attention[0][0] if s.attention else s.softmax[0][0]
        at = next(
            (n for n, e in enumerate(top) if source == e[0] or source.startswith(e[0] + ".")), None
        )
    else:
        at = None
    if at is None:
        return None, None, False
    mixers = [at]
    mixers += [
        n for n in range(at + 1, len(top)) if top[n][2] is not None and _same(top[n][2], top[at][3])
    ][:1]
    for a in reversed(mixers):
        for m in range(len(top) - 1, -1, -1):
            if m in mixers:
                continue
            found = _fit(layer, inputs, output, top[a][3], top[m][3])
            if found is not None:
                mid = inputs + found[0] * top[a][3]
                sequential = any(
                    e[2] is not None and distance(e[2], mid) <= tolerance(mid.dtype)
                    for e in top
                    if e[2].shape == mid.shape
                )
                return Part(top[a][0], found[0]), Part(top[m][0], found[1]), sequential
    return None, None, False


def _top_level(s: _Seen, shape: tuple[int, ...]) -> list[tuple[str, int, Any, Any]]:
    """Calls of the outermost submodules that return arrays of the stream's shape, in order."""
    wide = [
        e
        for e in s.events
        if isinstance(e[3], mx.array) and e[3].shape == shape and isinstance(e[2], mx.array)
    ]
    paths = {e[0] for e in s.events}
    return [e for e in wide if not any(e[0].startswith(f"{p}.") for p in paths)]


def _same(a: mx.array, b: mx.array) -> bool:
    return a is b or (a.shape == b.shape and bool((a == b).all().item()))


def _fit(
    layer: nn.Module, inputs: mx.array, output: mx.array, a: mx.array, m: mx.array
) -> tuple[float, float] | None:
    """Scales (alpha, beta) with output = input + alpha a + beta m, both known to the layer."""
    f32 = [x.astype(mx.float32).reshape(-1) for x in (output, inputs, a, m)]
    delta = f32[0] - f32[1]
    aa, mm, am = (
        float((x * y).sum().item()) for x, y in ((f32[2],) * 2, (f32[3],) * 2, (f32[2], f32[3]))
    )
    ad, md = float((f32[2] * delta).sum().item()), float((f32[3] * delta).sum().item())
    det = aa * mm - am * am
    if not math.isfinite(det) or det <= 1e-9 * max(aa * mm, 1e-30):
        return None
    scales = _known_scales(layer)
    fitted = ((ad * mm - md * am) / det, (md * aa - ad * am) / det)
    alpha, beta = (min(scales, key=lambda k, f=f: abs(k - f)) for f in fitted)
    rebuilt = f32[1] + alpha * f32[2] + beta * f32[3]
    return (alpha, beta) if distance(rebuilt, f32[0]) <= tolerance(output.dtype) else None


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
