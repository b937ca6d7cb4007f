"""How a layer's attention is seen: at the kernel, or at its softmax and the leaves around it."""

from typing import Any

from mlxroles import attention as attn
from mlxroles.anatomy.rounding import distance, tolerance
from mlxroles.anatomy.watch import PROBE_TOKENS, Seen, four_axes, watch
from mlxroles.backend import mx, nn, number
from mlxroles.edits import ATTENTION_SITES


def from_kernel(s: Seen, missing: dict[str, str]) -> dict[str, Any]:
    """Fields of a ``Block`` whose attention went through the kernel; adds to ``missing``."""
    if len(s.attention) > 1:
        why = f"the layer attends {len(s.attention)} times"
        missing |= dict.fromkeys(ATTENTION_SITES, why)
        return {"kind": "none"}
    _, call, fused = s.attention[0]
    heads, kv_heads = int(call.q.shape[1]), int(attn.plain(call.k, call.cache).shape[1])
    shape = {"kind": "sdpa", "heads": heads, "kv_heads": kv_heads, "d_head": int(fused.shape[-1])}
    if call.q.shape[0] != 1 or call.q.shape[2] != PROBE_TOKENS:
        why = (
            f"its queries attend apart, in an array {tuple(call.q.shape)} of {PROBE_TOKENS} tokens"
        )
        missing |= dict.fromkeys(ATTENTION_SITES, why)
        return shape
    if call.k.shape[2] != PROBE_TOKENS:
        why = f"its keys are gathered ({call.k.shape[2]} of {PROBE_TOKENS}), not positions"
        missing |= dict.fromkeys(("k", "v", "pattern", "entropy"), why)
        return shape
    weights = attn.pattern(call).weights
    above = later(weights)
    if above != 0:  # NaN too
        missing |= dict.fromkeys(("pattern", "entropy"), f"weight {above:.1e} lies on later keys")
    off = distance(attn.z_from(weights, call.v), fused)
    if not off <= tolerance(fused.dtype):
        why = f"z from the pattern differs from the kernel's by {off:.1e}"
        missing |= dict.fromkeys(("pattern", "entropy"), why)
    return shape


def later(weights: mx.array) -> float:
    """Largest weight on a key that comes after its query."""
    return number(mx.abs(mx.triu(weights.astype(mx.float32), k=1)).max())


def from_softmax(
    net: nn.Module, layers: list[nn.Module], i: int, s: Seen, missing: dict[str, str]
) -> dict[str, Any]:
    """The same for a layer that takes its softmax by hand."""
    usable = [(p, four_axes(w)) for p, w in s.softmax if w.shape[-1] == PROBE_TOKENS]
    if len(usable) != 1:
        why = f"the layer takes {len(usable)} softmaxes over the keys"
        missing |= dict.fromkeys(ATTENTION_SITES, why)
        return {"kind": "none"}
    path, weights = usable[0]
    heads = int(weights.shape[1])
    shape: dict[str, Any] = {"kind": "softmax", "heads": heads, "kv_heads": heads}
    by_hand = "the model's file computes attention by hand, without a kernel that shows q, k and v"
    missing |= dict.fromkeys(("q", "k", "v"), by_hand)
    above = later(weights)
    if above != 0:  # NaN too
        missing |= dict.fromkeys(("pattern", "entropy"), f"weight {above:.1e} lies on later keys")
    leaf = _projection_after(s, path)
    if leaf is None or not _zeroed_head_shows(net, layers, i, leaf, heads):
        missing["z"] = "no output projection takes the heads one after the other"
        return shape
    z = taken_by(s, leaf)
    shape |= {"out_proj": leaf, "d_head": int(z.shape[-1]) // heads}
    found = _rotated(s, path, weights, z)
    if found is not None:
        shape |= found
        for site in ("q", "k", "v"):
            del missing[site]
    return shape


def _rotated(s: Seen, mixer: str, weights: mx.array, z: mx.array) -> dict[str, Any] | None:
    """The leaves that return q, k and v, if a RoPE leaf was called for q, then for k.

    v is known by what it does: the weights times it are z.
    """
    inside = [(e.path, e.given) for e in s.events if e.path.startswith(f"{mixer}.")]
    arrays = [(path, out) for path, out in inside if out is not None]
    turned = [(path, out) for path, out in arrays if out.ndim == 4]
    if len(turned) != 2 or turned[0][0] != turned[1][0]:
        return None
    q, k = turned[0][1], turned[1][1]
    heads, kv_heads = int(q.shape[1]), int(k.shape[1])
    if heads != weights.shape[1] or heads % kv_heads:
        return None
    for path, out in arrays:
        if out.ndim != 3 or out.shape[-1] * heads != z.shape[-1] * kv_heads:
            continue
        v = out.reshape(*out.shape[:2], kv_heads, -1).swapaxes(1, 2)
        made = attn.z_from(weights.astype(mx.float32), v).swapaxes(1, 2)
        if distance(made.reshape(z.shape), z) <= 2 * tolerance(z.dtype):
            return {"rope": turned[0][0], "v_proj": path, "kv_heads": kv_heads}
    return None


def _projection_after(s: Seen, mixer: str) -> str | None:
    """The last leaf inside the mixer that takes [batch, position, width]."""
    inside = [
        e.path
        for e in s.events
        if e.taken is not None
        and e.taken.ndim == 3
        and (not mixer or e.path.startswith(f"{mixer}."))
    ]
    return inside[-1] if inside else None


def taken_by(s: Seen, path: str) -> mx.array:
    """What a submodule was handed first."""
    return next(e.taken for e in s.events if e.path == path and e.taken is not None)


def _zeroed_head_shows(
    net: nn.Module, layers: list[nn.Module], i: int, leaf: str, heads: int
) -> bool:
    """Whether zeroed weights of a head zero its slice of the leaf's input and no other."""
    runs = []
    for head in (heads, heads - 1):  # no head, then the last one
        seen, _ = watch(net, layers, direct=True, zero=(i, head))
        x = taken_by(seen[i], leaf)
        if x.shape[-1] % heads:
            return False
        runs.append(x.reshape(*x.shape[:-1], heads, -1))
    before, after = runs
    rest = mx.array_equal(before[..., :-1, :], after[..., :-1, :])
    return bool(number(rest & (after[..., -1, :] == 0).all()))
