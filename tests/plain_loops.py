"""Forwards of a few architectures as plain loops: no taps, no fused attention, heads one by one.

``touch(site, layer, array)`` sees every site in the layout of ``edits.SITES`` and may return
another array to go on with; ``touching`` makes one of edits. Edits of linear leaves are ``beside``
them: other modules in their places.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from mlxroles.backend import mx, nn
from mlxroles.edits import LINEAR, Edit

Touch = Callable[[str, int, mx.array], mx.array]


class Heads(NamedTuple):
    """What one layer's attention computes with, [batch, head or kv head, position, d]."""

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    softcap: float | None = None
    sinks: mx.array | None = None
    extra: mx.array | None = None
    """Scores that are added before the softmax."""


def split(x: mx.array, heads: int) -> mx.array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def llama(a: Any, x: mx.array) -> Heads:
    kv = a.n_kv_heads
    q, k, v = split(a.q_proj(x), a.n_heads), split(a.k_proj(x), kv), split(a.v_proj(x), kv)
    return Heads(a.rope(q), a.rope(k), v, a.scale)


def gemma2(a: Any, x: mx.array) -> Heads:
    return llama(a, x)._replace(softcap=a.attn_logit_softcapping)


def qwen3(a: Any, x: mx.array) -> Heads:
    q = a.q_norm(a.q_proj(x).reshape(*x.shape[:2], a.n_heads, -1)).transpose(0, 2, 1, 3)
    k = a.k_norm(a.k_proj(x).reshape(*x.shape[:2], a.n_kv_heads, -1)).transpose(0, 2, 1, 3)
    return Heads(a.rope(q), a.rope(k), split(a.v_proj(x), a.n_kv_heads), a.scale)


def phi3(a: Any, x: mx.array) -> Heads:
    qkv = split(a.qkv_proj(x), a.n_heads + 2 * a.n_kv_heads)
    n, m = a.n_heads, a.n_heads + a.n_kv_heads
    return Heads(a.rope(qkv[:, :n]), a.rope(qkv[:, n:m]), qkv[:, m:], a.scale)


def gpt_neox(a: Any, x: mx.array) -> Heads:
    qkv = split(a.query_key_value(x), a.num_attention_heads)
    d = a.head_dim
    return Heads(a.rope(qkv[..., :d]), a.rope(qkv[..., d : 2 * d]), qkv[..., 2 * d :], a.scale)


def gpt_oss(a: Any, x: mx.array) -> Heads:
    n, kv = a.num_attention_heads, a.num_key_value_heads
    q, k, v = split(a.q_proj(x), n), split(a.k_proj(x), kv), split(a.v_proj(x), kv)
    return Heads(a.rope(q), a.rope(k), v, a.sm_scale, sinks=a.sinks)


def deepseek_v3(a: Any, x: mx.array) -> Heads:
    q = split(a.q_b_proj(a.q_a_layernorm(a.q_a_proj(x))), a.num_heads)
    plain, turned = q[..., : a.qk_nope_head_dim], q[..., a.qk_nope_head_dim :]
    low = a.kv_a_proj_with_mqa(x)
    latent = a.kv_a_layernorm(low[..., : a.kv_lora_rank])[:, None]
    k_turned = a.rope(low[:, None, :, a.kv_lora_rank :])
    k, v = a.embed_q(latent, transpose=False), a.unembed_out(latent)
    extra = (a.rope(turned) * a.scale) @ k_turned.swapaxes(-1, -2)
    return Heads(plain, k, v, a.scale, extra=extra)


class House(NamedTuple):
    """Where an architecture keeps its parts."""

    heads: Callable[[Any, mx.array], Heads]
    body: str = "model"
    attention: str = "self_attn"
    out: str = "o_proj"
    embedding: str = "embed_tokens"
    norm: str = "norm"
    before_mlp: str = "post_attention_layernorm"
    after_attention: str | None = None
    after_mlp: str | None = None
    parallel: bool = False


HOUSES = {
    "llama": House(llama),
    "qwen2": House(llama),
    "qwen3": House(qwen3),
    "phi3": House(phi3),
    "gpt_oss": House(gpt_oss),
    "deepseek_v3": House(deepseek_v3),
    "gemma2": House(
        gemma2,
        before_mlp="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    "gemma3_text": House(
        qwen3,
        before_mlp="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    "gpt_neox": House(
        gpt_neox,
        attention="attention",
        out="dense",
        embedding="embed_in",
        norm="final_layer_norm",
        parallel=True,
    ),
}


def window(name: str, body: Any, layer: int) -> int | None:
    """Positions that a query of the layer sees, or None for all before it."""
    if name == "gpt_oss" and body.layer_types[layer] == "sliding_attention":
        return body.window_size
    if name == "gemma3_text" and body.layers[layer].self_attn.is_sliding:
        return body.window_size
    return None


def hidden(length: int, window: int | None = None) -> np.ndarray:
    """True where a key lies after its query or outside its window."""
    i = np.arange(length)
    later = i[None] > i[:, None]
    return later if window is None else later | (i[None] <= i[:, None] - window)


def attend(h: Heads, mask: np.ndarray, layer: int, touch: Touch) -> mx.array:
    """z [batch, position, head, d], one head after the other, softmax in float64."""
    q = touch("q", layer, h.q.swapaxes(1, 2)).swapaxes(1, 2)
    k = touch("k", layer, h.k.swapaxes(1, 2)).swapaxes(1, 2)
    v = touch("v", layer, h.v.swapaxes(1, 2)).swapaxes(1, 2)
    group, rows = q.shape[1] // k.shape[1], []
    for head in range(q.shape[1]):
        scores = np.array((q[:, head] @ k[:, head // group].swapaxes(-1, -2)) * h.scale)
        scores = scores.astype(np.float64)
        if h.softcap is not None:
            scores = h.softcap * np.tanh(scores / h.softcap)
        if h.extra is not None:
            scores = scores + np.array(h.extra[:, head])
        e = np.where(mask, 0, np.exp(scores - scores.max()))
        sink = 0 if h.sinks is None else np.exp(float(h.sinks[head].item()) - scores.max())
        rows.append(e / (e.sum(-1, keepdims=True) + sink))
    pattern = touch("pattern", layer, mx.array(np.stack(rows, axis=1).astype(np.float32)))
    each = [pattern[:, n] @ v[:, n // group] for n in range(q.shape[1])]
    return touch("z", layer, mx.stack(each, axis=2))


def run(name: str, module: nn.Module, tokens: mx.array, touch: Touch | None = None) -> mx.array:
    """Logits of a forward in which every site passes through ``touch``."""
    touch = touch or (lambda _site, _layer, array: array)
    house = HOUSES[name]
    body: Any = module[house.body]
    x = body[house.embedding](tokens)
    if name == "gemma2":
        x = x * (x.shape[-1] ** 0.5)
    if name == "gemma3_text":
        x = x * mx.array(x.shape[-1] ** 0.5, mx.bfloat16).astype(x.dtype)
    for i, layer in enumerate(module.layers):
        mask = hidden(tokens.shape[1], window(name, body, i))
        x = touch("resid_pre", i, x)
        attention = layer[house.attention]
        z = attend(house.heads(attention, layer.input_layernorm(x)), mask, i, touch)
        a = attention[house.out](z.reshape(*z.shape[:2], -1))
        a = touch("attn_out", i, layer[house.after_attention](a) if house.after_attention else a)
        mid = x if house.parallel else touch("resid_mid", i, x + a)
        m = layer.mlp(layer[house.before_mlp](mid))
        m = touch("mlp_out", i, layer[house.after_mlp](m) if house.after_mlp else m)
        x = touch("resid_post", i, x + a + m)
    x = body[house.norm](x)
    if name == "gemma2":
        cap = module.final_logit_softcapping
        return cap * mx.tanh(body.embed_tokens.as_linear(x) / cap)
    if name == "gpt_neox":
        return body.embed_out(x)
    return module.lm_head(x) if "lm_head" in module else body.embed_tokens.as_linear(x)


def touching(edits: Sequence[Edit]) -> Touch:
    """A ``touch`` that carries the edits out, one number after the other in numpy."""

    def touch(site: str, layer: int, array: mx.array) -> mx.array:
        here = [e for e in edits if (e.site, e.layer) == (site, layer)]
        if not here:
            return array
        changed = np.array(array)
        for edit in here:
            _carry_out(edit, changed)
        return mx.array(changed)

    return touch


def _carry_out(edit: Edit, array: np.ndarray) -> None:
    """One edit of an array [row, ...] in the layout of its site, in place."""
    axes: dict[int, Sequence[int]] = {}
    at_heads, at_positions = (1, 2) if edit.site == "pattern" else (2, 1)
    if edit.positions is not None:
        axes[at_positions] = edit.positions
    if edit.heads is not None:
        axes[at_heads] = edit.heads
    shape = list(array.shape)
    for axis, items in axes.items():
        shape[axis] = len(items)
    value = np.broadcast_to(np.array(edit.value, dtype=np.float32), shape)
    for cell in product(*(range(n) for n in shape[:-1])):
        place = tuple(axes[axis][n] if axis in axes else n for axis, n in enumerate(cell))
        old, new = array[place].astype(np.float64), value[cell].astype(np.float64)
        if edit.op == "add":
            new = old + new
        elif edit.op == "scale":
            new = old * new
        elif edit.op == "project":
            new = old - new * (old @ new) / (new @ new)
        array[place] = new


class Beside(nn.Module):
    """A linear leaf with maps of low rank beside it, carried out position by position."""

    def __init__(self, leaf: nn.Module, edits: Sequence[Edit]) -> None:
        super().__init__()
        self.leaf, self._edits = leaf, edits

    def __call__(self, x: mx.array) -> mx.array:
        y = self.leaf(x)
        given, out = np.array(x.astype(mx.float32)), np.array(y.astype(mx.float32))
        for edit in self._edits:
            v, u = np.array(edit.value.V, np.float64), np.array(edit.value.U, np.float64)
            for p in range(x.shape[1]) if edit.positions is None else edit.positions:
                out[:, p] += (given[:, p].astype(np.float64) @ v) @ u
        return mx.array(out).astype(y.dtype)


@contextmanager
def beside(module: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """The module with its linear leaves under those of the edits that are at leaves."""
    places: dict[tuple[int, str], list[Edit]] = {}
    for edit in edits:
        if edit.site == LINEAR:
            places.setdefault((edit.layer, edit.value.leaf), []).append(edit)
    undo = []
    for (layer, path), here in places.items():
        holder, (*between, last) = module.layers[layer], path.split(".")
        for name in between:
            holder = holder[name]
        undo.append((holder, last, holder[last]))
        holder[last] = Beside(holder[last], here)
    try:
        yield
    finally:
        for holder, last, leaf in undo:
            holder[last] = leaf


def weighted(logits):
    """A metric in which no logit's rounding is larger than the effects."""
    weights = np.random.default_rng(7).standard_normal(logits.shape[-1]).astype(np.float32)
    return (logits[:, 0] * mx.array(weights)).sum(axis=-1)
