"""Plain MLX in place of the Metal kernels that two model modules call unconditionally.

They keep the structure of the calls, which is what captures depend on; they are no reference for
the kernels' numbers and are only put in where there is no Metal.
"""

from types import ModuleType

from mlxroles.backend import mx, nn


def put_into(name: str, module: ModuleType) -> None:
    """Replaces the kernels of the module of this name, if it has any and Metal is absent."""
    if mx.metal.is_available():
        return
    if name == "bitnet":
        vars(module).update(BitLinear=_linear)
    if name == "muse_spark":
        vars(module).update(
            norm_add_norm=_norm_add_norm,
            pre_norm=_pre_norm,
            qk_norm=_qk_norm,
            qk_norm_rope=_qk_norm,
            expert_routing=_expert_routing,
            post_expert_norm_combine=_combine,
            rms_norm_sigmoid_gate=_gate,
        )


def _linear(inputs, outputs, bias=True):
    return nn.Linear(inputs, outputs, bias=bias)


def _norm_add_norm(branch, stream, *, alpha, beta, post_weight, post_eps, next_norm):
    branch_f32 = branch.astype(mx.float32)
    weighted = branch_f32 if post_weight is None else branch_f32 * post_weight
    new = alpha * stream + beta * mx.fast.rms_norm(weighted, None, post_eps)
    return new, None if next_norm is None else next_norm(new).astype(branch.dtype)


def _pre_norm(stream, norm, *, dtype):
    return norm(stream).astype(dtype)


def _qk_norm(x, *, n_heads, n_kv_heads, head_dim, eps, query_scale, rope_base=None, offset=0):
    heads = x[..., : (n_heads + n_kv_heads) * head_dim].reshape(*x.shape[:-1], -1, head_dim)
    normed = mx.fast.rms_norm(heads, None, eps)
    q, k = normed[..., :n_heads, :] * query_scale, normed[..., n_heads:, :]
    if rope_base is not None:
        q, k = (_rotated(a, head_dim, rope_base, offset) for a in (q, k))
    return q.astype(x.dtype), k.astype(x.dtype)


def _rotated(x, head_dim, base, offset):
    turned = mx.fast.rope(
        x.swapaxes(1, 2), head_dim, traditional=True, base=base, scale=1.0, offset=offset
    )
    return turned.swapaxes(1, 2)


def _expert_routing(logits, bias, *, top_k, multiplier, score_eps, route_scale):
    scores = mx.sigmoid(logits * multiplier)
    chosen = mx.argpartition(-(scores + bias), kth=top_k - 1, axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    share = weights / (weights.sum(-1, keepdims=True) + score_eps)
    return [mx.stop_gradient(chosen).astype(mx.uint32), share * route_scale]


def _combine(experts, weights, *, norm_weight, eps):
    normed = mx.fast.rms_norm(experts.astype(mx.float32) * norm_weight, None, eps)
    return (normed * weights[..., None]).sum(-2).astype(experts.dtype)


def _gate(x, gate, *, eps):
    flat = mx.fast.rms_norm(x, None, eps).swapaxes(1, 2).flatten(2)
    return (flat * mx.sigmoid(gate)).astype(x.dtype)
