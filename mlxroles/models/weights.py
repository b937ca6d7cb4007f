"""Weight matrices per head, found by their place in the block and verified by what they compute.

A projection is only handed out if, on a short run, it maps what entered it to the values (or the
output) that the model itself computed: fused q/k/v matrices come in several orders, and some
architectures put norms or gates in between. What does not check out is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from mlxroles.anatomy import PROBE, distance, tolerance
from mlxroles.backend import mx, nn, number
from mlxroles.errors import ModelError
from mlxroles.forward import Network, forward
from mlxroles.taps import LayerHook, ModuleCall, Tap

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


Inputs = dict[str, tuple[nn.Module, mx.array]]
"""Path -> (linear leaf of a layer, what entered it on the probe)."""


def _inputs(network: Network, layer: int) -> Inputs:
    seen: Inputs = {}

    def leaf(path: str) -> LayerHook:
        def hook(call: ModuleCall) -> Any:
            if call.args and isinstance(call.args[0], mx.array):
                seen[path] = (call.module, call.args[0][...])
            return call.run()

        return hook

    named = network.layers[layer].named_modules()
    linear = [(m, leaf(path)) for path, m in named if "weight" in m and _is_linear(m)]
    with Tap(network.layers, modules=linear):
        network.module(mx.array([PROBE]))
    return seen


def _is_linear(module: nn.Module) -> bool:
    embeddings = (nn.Embedding, nn.QuantizedEmbedding)
    return module["weight"].ndim == 2 and not isinstance(module, embeddings)


def _check_whole(network: Network) -> None:
    if network.ranks is not None:
        raise ModelError(
            f"{network.parts} processes hold the weights of {network.architecture} together; load "
            "it in one to read them"
        )


def projection(network: Network, layer: int, which: str) -> mx.array:
    """W_Q, W_K or W_V of a layer: [head or kv_head, d_model, d_head], float32.

    Raises:
        ModelError: the layer has no such matrix that is verified to compute the model's values.
        ValueError: the layer does not exist.
    """
    _check_whole(network)
    run = forward(network, mx.array([PROBE]), keep=list("qkv"), layers=[layer], logits=False)
    of = {w: run[w, layer] for w in "qkv"}
    leaves = _inputs(network, layer)
    for path, (module, x) in leaves.items():
        name = path.rsplit(".", 1)[-1]
        if name in SEPARATE["v"]:
            split = _separate(leaves, path)
        elif name in FUSED:
            split = _fused(module, x, of)
        else:
            continue
        if split is None or not _computes(split["v"], x, of["v"]):
            continue
        weight, (heads, width) = split[which][0], of[which].shape[2:]
        if weight.shape[0] == heads * width:
            return weight.reshape(heads, width, -1).swapaxes(1, 2)
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
    _check_whole(network)
    run = forward(network, mx.array([PROBE]), keep=["z"], layers=[layer], logits=False)
    z = run["z", layer]
    flat = z.reshape(*z.shape[:2], -1)
    for module, x in _inputs(network, layer).values():
        if x.shape == flat.shape and distance(x, flat) == 0:
            return dense(module).T.reshape(*z.shape[2:], -1)
    raise ModelError(
        f"W_O of layer {layer}: {network.architecture} puts something between its heads and the "
        "output projection"
    )


_Split = dict[str, tuple[mx.array, mx.array | None]]


def _separate(leaves: Inputs, v_path: str) -> _Split | None:
    """Weight and bias of q, k and v where each has a matrix of its own beside v's."""
    base = v_path.rpartition(".")[0]
    split: _Split = {}
    for which, names in SEPARATE.items():
        found = [leaves.get(f"{base}.{n}" if base else n) for n in names]
        module = next((f[0] for f in found if f is not None), None)
        if module is None:
            return None
        split[which] = (dense(module), module.get("bias"))
    return split


def _fused(module: nn.Module, x: mx.array, of: Mapping[str, mx.array]) -> _Split | None:
    """Weight and bias of q, k and v cut from one matrix, in the order that gives all three.

    The values tell v; at the first position, which no RoPE turns, q and k must point the way that
    the kernel was handed them (some models scale them).
    """
    weight, bias = dense(module), module.get("bias")
    rows = {w: a.shape[2] * a.shape[3] for w, a in of.items()}
    if weight.shape[0] != sum(rows.values()):
        return None
    groups, width = of["k"].shape[2:]
    joined = mx.arange(weight.shape[0])
    in_groups = joined.reshape(groups, -1)
    q, k = rows["q"], rows["k"]
    gq, gk = q // groups, width
    orders = [
        {"q": joined[:q], "k": joined[q : q + k], "v": joined[q + k :]},
        {"q": in_groups[:, :gq], "k": in_groups[:, gq : gq + gk], "v": in_groups[:, gq + gk :]},
    ]
    for order in orders:
        picked = {w: order[w].reshape(-1) for w in "qkv"}
        split = {w: (weight[i], None if bias is None else bias[i]) for w, i in picked.items()}
        if not _computes(split["v"], x, of["v"]):
            continue
        if all(_points_along(split[w], x, of[w][:, 0]) for w in "qk"):
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
