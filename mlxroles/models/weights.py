"""Weight matrices per head, found by their place in the block and verified by what they compute.

A projection is only handed out if, on a short run, it maps what entered it to the values (or the
output) that the model itself computed: fused q/k/v matrices come in several orders, and some
architectures put norms or gates in between. What does not check out is refused by name.
"""

from collections.abc import Callable
from typing import Any

from mlxroles.anatomy import PROBE, distance, tolerance
from mlxroles.backend import mx, nn, number
from mlxroles.errors import ModelError
from mlxroles.forward import Network
from mlxroles.taps import AttentionCall, ModuleCall, Tap

SEPARATE = {
    "q": ("q_proj", "wq", "query"),
    "k": ("k_proj", "wk", "key"),
    "v": ("v_proj", "wv", "value"),
}
FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "att_proj", "in_proj")
ALIGNED = 0.999
"""Cosine above which a projection of the first position counts as the kernel's own q or k."""


def dense(module: nn.Module) -> mx.array:
    """Weight [out, in] of a linear layer in float32, dequantised where it is quantised."""
    weight = module["weight"]
    if "scales" in module:
        weight = mx.dequantize(
            weight,
            module["scales"],
            module.get("biases"),
            group_size=module.group_size,
            bits=module.bits,
            mode=getattr(module, "mode", "affine"),
        )
    return weight.astype(mx.float32)


class _Watched:
    """Inputs of the linear leaves of one layer, and its attention call, on the probe."""

    def __init__(self, network: Network, layer: int) -> None:
        self.leaves: dict[str, tuple[nn.Module, mx.array]] = {}
        self.call: AttentionCall | None = None
        self.z: mx.array | None = None

        def leaf(path: str) -> Callable[[ModuleCall], Any]:
            def hook(call: ModuleCall) -> Any:
                if call.args and isinstance(call.args[0], mx.array):
                    self.leaves[path] = (call.module, call.args[0][...])
                return call.run()

            return hook

        def attention(call: AttentionCall) -> mx.array:
            z = call.fused()
            if call.frame.layer == layer:
                self.call, self.z = call, z
            return z

        block = network.layers[layer]
        linear = [(m, leaf(p)) for p, m in block.named_modules() if "weight" in m and _is_linear(m)]
        direct = network.anatomy.direct
        tap = Tap(
            network.layers, network.namespaces, modules=linear, attention=attention, direct=direct
        )
        with tap:
            network.module(mx.array([PROBE]))


def _is_linear(module: nn.Module) -> bool:
    return module["weight"].ndim == 2 and not isinstance(
        module, (nn.Embedding, nn.QuantizedEmbedding)
    )


def projection(network: Network, layer: int, which: str) -> mx.array:
    """W_Q, W_K or W_V of a layer: [head or kv_head, d_model, d_head], float32.

    Raises:
        ModelError: the layer has no such matrix that is verified to compute the model's values.
        ValueError: the layer does not exist.
    """
    watched, call, _ = _watched(network, layer)
    heads = {"q": call.q.shape[1], "k": call.k.shape[1], "v": call.v.shape[1]}
    widths = {"q": call.q.shape[-1], "k": call.k.shape[-1], "v": call.v.shape[-1]}
    values = call.v.swapaxes(1, 2)
    for path, (module, x) in watched.leaves.items():
        name = path.rsplit(".", 1)[-1]
        if name in SEPARATE["v"]:
            split = _separate(watched, path)
        elif name in FUSED:
            split = _fused(module, x, call)
        else:
            continue
        if split is None or not _computes(split["v"], x, values):
            continue
        weight, _ = split[which]
        if weight.shape[0] == heads[which] * widths[which]:
            return weight.reshape(heads[which], widths[which], -1).swapaxes(1, 2)
    raise ModelError(
        f"W_{which.upper()} of layer {layer}: {network.architecture} has no matrix that maps the "
        "block's normed input to its heads"
    )


def output(network: Network, layer: int) -> mx.array:
    """W_O of a layer: [head, d_head, d_model], float32.

    Raises:
        ModelError: something (a gate, a norm) stands between the heads and every matrix.
        ValueError: the layer does not exist.
    """
    watched, _, z = _watched(network, layer)
    flat = z.swapaxes(1, 2).reshape(z.shape[0], z.shape[2], -1)
    for module, x in watched.leaves.values():
        if x.shape == flat.shape and distance(x, flat) == 0:
            return dense(module).T.reshape(z.shape[1], z.shape[-1], -1)
    raise ModelError(
        f"W_O of layer {layer}: {network.architecture} puts something between its heads and the "
        "output projection"
    )


def _watched(network: Network, layer: int) -> tuple[_Watched, AttentionCall, mx.array]:
    """A watched layer, its attention call and the kernel's z."""
    if not 0 <= layer < len(network.layers):
        raise ValueError(f"layer {layer} is outside 0..{len(network.layers) - 1}")
    if network.anatomy.refused:
        raise ModelError(f"{network.architecture}: {network.anatomy.refused}")
    watched = _Watched(network, layer)
    if watched.call is None or watched.z is None:
        raise ModelError(f"layer {layer} of {network.architecture} shows no attention kernel")
    return watched, watched.call, watched.z


_Split = dict[str, tuple[mx.array, mx.array | None]]


def _separate(watched: _Watched, v_path: str) -> _Split | None:
    """Weight and bias of q, k and v where each has a matrix of its own beside v's."""
    base = v_path.rpartition(".")[0]
    split: _Split = {}
    for which, names in SEPARATE.items():
        found = [watched.leaves.get(f"{base}.{n}" if base else n) for n in names]
        module = next((f[0] for f in found if f is not None), None)
        if module is None:
            return None
        split[which] = (dense(module), module.get("bias"))
    return split


def _fused(module: nn.Module, x: mx.array, call: AttentionCall) -> _Split | None:
    """Weight and bias of q, k and v cut from one matrix, in the order that gives all three.

    The values tell v; at the first position, which no RoPE turns, q and k must point the way that
    the kernel was handed them (some models scale them).
    """
    weight, bias = dense(module), module.get("bias")
    of = {"q": call.q, "k": call.k, "v": call.v}
    rows = {w: a.shape[1] * a.shape[-1] for w, a in of.items()}
    if weight.shape[0] != sum(rows.values()):
        return None
    joined = mx.arange(weight.shape[0])
    in_groups = joined.reshape(call.k.shape[1], -1)
    q, k = rows["q"], rows["k"]
    gq, gk = q // call.k.shape[1], call.k.shape[-1]
    orders = [
        {"q": joined[:q], "k": joined[q : q + k], "v": joined[q + k :]},
        {"q": in_groups[:, :gq], "k": in_groups[:, gq : gq + gk], "v": in_groups[:, gq + gk :]},
    ]
    for order in orders:
        picked = {w: order[w].reshape(-1) for w in "qkv"}
        split = {w: (weight[i], None if bias is None else bias[i]) for w, i in picked.items()}
        if not _computes(split["v"], x, call.v.swapaxes(1, 2)):
            continue
        if all(_points_along(split[w], x, of[w][:, :, 0]) for w in "qk"):
            return split
    return None


def _projected(part: tuple[mx.array, mx.array | None], x: mx.array) -> mx.array:
    weight, bias = part
    out = x.astype(mx.float32) @ weight.T
    return out if bias is None else out + bias.astype(mx.float32)


def _points_along(part: tuple[mx.array, mx.array | None], x: mx.array, first: mx.array) -> bool:
    """Whether a projection of x has the direction of ``first`` [batch, head, d] in every head."""
    a, b = _projected(part, x)[:, 0].reshape(first.shape), first.astype(mx.float32)
    norms = mx.linalg.norm(a, axis=-1) * mx.linalg.norm(b, axis=-1)
    return number(((a * b).sum(axis=-1) / mx.maximum(norms, 1e-30)).min()) >= ALIGNED


def _computes(part: tuple[mx.array, mx.array | None], x: mx.array, values: mx.array) -> bool:
    """Whether a weight and bias map x to the values [batch, position, kv_head, d_head]."""
    out = _projected(part, x)
    if out.size != values.size:
        return False
    return distance(out.reshape(values.shape), values) <= 2 * tolerance(values.dtype)
