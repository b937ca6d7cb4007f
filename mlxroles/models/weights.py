"""Weight matrices per head, found by their place in the block and verified by what they compute.

A projection is only handed out if, on a short run, it maps what entered it to the values (or the
output) that the model itself computed: fused q/k/v matrices come in several orders, and some
architectures put norms or gates in between. What does not check out is refused by name.
"""

from collections.abc import Callable
from typing import Any

from mlxroles.anatomy import distance, tolerance
from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError
from mlxroles.forward import Network
from mlxroles.taps import AttentionCall, ModuleCall, Tap

SEPARATE = {
    "q": ("q_proj", "wq", "query"),
    "k": ("k_proj", "wk", "key"),
    "v": ("v_proj", "wv", "value"),
}
FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "att_proj", "in_proj")
PROBE = [[5, 9, 2, 7, 1, 3]]


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
    """Inputs and outputs of the leaves of one layer, and its attention call, on the probe."""

    def __init__(self, network: Network, layer: int) -> None:
        self.leaves: dict[str, tuple[nn.Module, mx.array, mx.array]] = {}
        self.call: AttentionCall | None = None
        self.z: mx.array | None = None

        def leaf(path: str) -> Callable[[ModuleCall], Any]:
            def hook(call: ModuleCall) -> Any:
                out = call.run()
                self.leaves[path] = (call.module, call.args[0][...], out[...])
                return out

            return hook

        def attention(call: AttentionCall) -> mx.array:
            z = call.fused()
            if call.frame.layer == layer:
                self.call, self.z = call, z
            return z

        block = network.layers[layer]
        linear = [(m, leaf(p)) for p, m in block.named_modules() if "weight" in m and _is_linear(m)]
        with Tap(network.layers, network.namespaces, modules=linear, attention=attention):
            network.module(mx.array(PROBE))


def _is_linear(module: nn.Module) -> bool:
    return module["weight"].ndim == 2 and not isinstance(
        module, (nn.Embedding, nn.QuantizedEmbedding)
    )


def projection(network: Network, layer: int, which: str) -> mx.array:
    """W_Q, W_K or W_V of a layer: [head or kv_head, d_model, d_head], float32.

    Raises:
        ModelError: the layer has no such matrix that is verified to compute the model's values.
    """
    watched = _watched(network, layer)
    call, z = watched.call, watched.z
    assert call is not None
    assert z is not None
    heads = {"q": call.q.shape[1], "k": call.k.shape[1], "v": call.v.shape[1]}
    widths = {"q": call.q.shape[-1], "k": call.k.shape[-1], "v": call.v.shape[-1]}
    values = call.v.swapaxes(1, 2)
    for path, (module, x, _) in watched.leaves.items():
        name = path.rsplit(".", 1)[-1]
        if name in SEPARATE["v"]:
            split = _separate(watched, path)
        elif name in FUSED:
            split = _fused(module, x, heads, widths, values)
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
    """
    watched = _watched(network, layer)
    z = watched.z
    assert z is not None
    flat = z.swapaxes(1, 2).reshape(z.shape[0], z.shape[2], -1)
    for module, x, _ in watched.leaves.values():
        if x.shape == flat.shape and distance(x, flat) == 0:
            return dense(module).T.reshape(z.shape[1], z.shape[-1], -1)
    raise ModelError(
        f"W_O of layer {layer}: {network.architecture} puts something between its heads and the "
        "output projection"
    )


def _watched(network: Network, layer: int) -> _Watched:
    if not 0 <= layer < len(network.layers):
        raise ValueError(f"layer {layer} is outside 0..{len(network.layers) - 1}")
    watched = _Watched(network, layer)
    if watched.call is None:
        raise ModelError(f"layer {layer} of {network.architecture} shows no attention kernel")
    return watched


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


def _fused(
    module: nn.Module,
    x: mx.array,
    heads: dict[str, int],
    widths: dict[str, int],
    values: mx.array,
) -> _Split | None:
    """Weight and bias of q, k and v cut from one matrix, in the order that gives the values."""
    weight, bias = dense(module), module.get("bias")
    rows = {w: heads[w] * widths[w] for w in "qkv"}
    if weight.shape[0] != sum(rows.values()):
        return None
    group = heads["q"] // heads["k"]
    joined = mx.arange(weight.shape[0])
    in_groups = joined.reshape(heads["k"], -1)
    q, k = rows["q"], rows["k"]
    orders = [
        {"q": joined[:q], "k": joined[q : q + k], "v": joined[q + k :]},
        {
            "q": in_groups[:, : group * widths["q"]],
            "k": in_groups[:, group * widths["q"] : group * widths["q"] + widths["k"]],
            "v": in_groups[:, group * widths["q"] + widths["k"] :],
        },
    ]
    for order in orders:
        picked = {w: order[w].reshape(-1) for w in "qkv"}
        split = {w: (weight[i], None if bias is None else bias[i]) for w, i in picked.items()}
        if _computes(split["v"], x, values):
            return split
    return None


def _computes(part: tuple[mx.array, mx.array | None], x: mx.array, values: mx.array) -> bool:
    """Whether a weight and bias map x to the values [batch, position, kv_head, d_head]."""
    weight, bias = part
    out = x.astype(mx.float32) @ weight.T
    if bias is not None:
        out = out + bias.astype(mx.float32)
    return out.size == values.size and distance(out.reshape(values.shape), values) <= 2 * tolerance(
        values.dtype
    )
