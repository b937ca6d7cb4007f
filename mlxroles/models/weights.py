"""Weight matrices per head, found by their place in the block and verified by what they compute.

A projection is only handed out if, on a short run, it maps what entered it to the values (or the
output) that the model itself computed: fused q/k/v matrices come in several orders, and some
architectures put norms or gates in between. What does not check out is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def dense(module: nn.Module, rows: mx.array | None = None) -> mx.array:
    """Weight [out, in] of a linear layer or table in float32, dequantised where it is quantised.

    Args:
        module: The layer.
        rows: Which rows are made; None for all.
    """
    parts = [module.get(name) for name in ("weight", "scales", "biases")]
    if rows is not None:
        parts = [part if part is None else part[rows] for part in parts]
    weight, scales, biases = parts
    assert weight is not None
    if scales is not None:
        weight = mx.dequantize(
            weight,
            scales,
            biases,
            group_size=module.group_size,
            bits=module.bits,
            mode=getattr(module, "mode", "affine"),
        )
    return weight.astype(mx.float32)


class Cut(NamedTuple):
    """The weight of q, k or v of a layer, cut from a linear leaf."""

    weight: mx.array
    """[head * d_head, d_model], float32."""
    bias: mx.array | None
    path: str
    """Of the leaf, in its layer."""
    rows: mx.array | None
    """Places of the weight's rows in the leaf's output; None where it is the leaf's whole."""


Inputs = dict[str, tuple[nn.Module, mx.array]]
"""Path -> (linear leaf of a layer, what entered it)."""


def inputs(network: Network, layers: Sequence[int], tokens: mx.array) -> dict[int, Inputs]:
    """What enters every linear leaf of some layers in one run of tokens [batch, position]."""
    return inputs_and_logits(network, layers, tokens)[0]


def inputs_and_logits(
    network: Network, layers: Sequence[int], tokens: mx.array
) -> tuple[dict[int, Inputs], mx.array]:
    """The same with the logits [batch, position, vocab] of that run; nothing is evaluated."""
    seen: dict[int, Inputs] = {layer: {} for layer in layers}

    def leaf(path: str) -> LayerHook:
        def hook(call: ModuleCall) -> Any:
            known = call.frame is not None and call.frame.layer in seen
            if known and call.args and isinstance(call.args[0], mx.array):
                seen[call.frame.layer][path] = (call.module, call.args[0][...])
            return call.run()

        return hook

    linear = [
        (module, leaf(path))
        for layer in layers
        for path, module in network.layers[layer].named_modules()
        if "weight" in module and is_linear(module)
    ]
    with Tap(network.layers, modules=linear):
        out = network.module(tokens)
    return seen, out[0] if isinstance(out, (tuple, list)) else out


def _inputs(network: Network, layer: int) -> Inputs:
    return inputs(network, [layer], mx.array([PROBE]))[layer]


def is_linear(module: nn.Module) -> bool:
    """Whether a module with a weight multiplies by it."""
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
    cuts = attention_cuts(_inputs(network, layer), of)
    heads, width = of[which].shape[2:]
    if cuts is not None and cuts[which].weight.shape[0] == heads * width:
        return cuts[which].weight.reshape(heads, width, -1).swapaxes(1, 2)
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
    leaves = _inputs(network, layer)
    path = output_leaf(leaves, z)
    if path is not None:
        return dense(leaves[path][0]).T.reshape(*z.shape[2:], -1)
    raise ModelError(
        f"W_O of layer {layer}: {network.architecture} puts something between its heads and the "
        "output projection"
    )


def attention_cuts(leaves: Inputs, of: Mapping[str, mx.array]) -> dict[str, Cut] | None:
    """Where q, k and v of a layer come from; None where no leaf computes the model's values.

    Args:
        leaves: From ``inputs``, of a run on ``PROBE``.
        of: q, k and v of that run [batch, position, head, d_head], by site.
    """
    for path, (module, x) in leaves.items():
        name = path.rsplit(".", 1)[-1]
        if name in SEPARATE["v"]:
            split = _separate(leaves, path)
        elif name in FUSED:
            split = _fused(path, module, x, of)
        else:
            continue
        if split is not None and _computes(split["v"], x, of["v"]):
            return split
    return None


def output_leaf(leaves: Inputs, z: mx.array) -> str | None:
    """Path of the leaf that is handed z [batch, position, head, d_head], flattened; or None."""
    flat = z.reshape(*z.shape[:2], -1)
    for path, (_, x) in leaves.items():
        if x.shape == flat.shape and distance(x, flat) == 0:
            return path
    return None


def _separate(leaves: Inputs, v_path: str) -> dict[str, Cut] | None:
    """Weight and bias of q, k and v where each has a matrix of its own beside v's."""
    base = v_path.rpartition(".")[0]
    split: dict[str, Cut] = {}
    for which, names in SEPARATE.items():
        paths = [f"{base}.{n}" if base else n for n in names]
        path = next((p for p in paths if p in leaves), None)
        if path is None:
            return None
        module = leaves[path][0]
        split[which] = Cut(dense(module), module.get("bias"), path, None)
    return split


def _fused(
    path: str, module: nn.Module, x: mx.array, of: Mapping[str, mx.array]
) -> dict[str, Cut] | None:
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
        split = {
            w: Cut(weight[i], None if bias is None else bias[i], path, i) for w, i in picked.items()
        }
        if not _computes(split["v"], x, of["v"]):
            continue
        if all(_points_along(split[w], x, of[w][:, 0]) for w in "qk"):
            return split
    return None


def _projected(part: Cut, x: mx.array) -> mx.array:
    out = x.astype(mx.float32) @ part.weight.T
    return out if part.bias is None else out + part.bias.astype(mx.float32)


def _points_along(part: Cut, x: mx.array, first: mx.array) -> bool:
    """Whether a projection of x has the direction of ``first`` [batch, head, d] in every head."""
    a, b = _projected(part, x)[:, 0].reshape(first.shape), first.astype(mx.float32)
    norms = mx.linalg.norm(a, axis=-1) * mx.linalg.norm(b, axis=-1)
    return number(((a * b).sum(axis=-1) / mx.maximum(norms, 1e-30)).min()) >= ALIGNED


def is_plain_map(module: nn.Module, x: mx.array) -> bool:
    """Whether a leaf computes x W^T + b of its own weight [d_out, d_in] and bias, and no more.

    Routers of experts, say, or packed weights of another kind do not.
    """
    y, weight = module(x), dense(module)
    if not isinstance(y, mx.array) or y.shape != (*x.shape[:-1], weight.shape[0]):
        return False
    if x.shape[-1] != weight.shape[1]:
        return False
    own = _projected(Cut(weight, module.get("bias"), "", None), x)
    return distance(own, y) <= 2 * tolerance(y.dtype)


def _computes(part: Cut, x: mx.array, values: mx.array) -> bool:
    """Whether a weight and bias map x to the values [batch, position, kv_head, d_head]."""
    out = _projected(part, x)
    if out.size != values.size:
        return False
    out, bound = out.reshape(values.shape), 2 * tolerance(values.dtype)
    if distance(out, values) <= bound:
        return True
    # a CPU adds up quantised bfloat16 with errors of single elements; all of them agree still
    wanted = values.astype(mx.float32)
    off, size = mx.linalg.norm(out - wanted), mx.linalg.norm(wanted)
    return number(off / mx.maximum(size, 1e-30)) <= bound
