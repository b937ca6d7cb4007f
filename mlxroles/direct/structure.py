"""Where a network's heads leave their output projection, and where its final stream is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mlxroles.anatomy import PROBE, distance, tolerance
from mlxroles.backend import mx, nn, number
from mlxroles.direct.norms import frozen
from mlxroles.direct.witness import Leaf, Witness
from mlxroles.edits import Edit
from mlxroles.errors import ModelError
from mlxroles.forward import Network, Start


@dataclass(frozen=True)
class Writer:
    """How a layer's attention output comes from the heads: scale * norm(the projection)."""

    path: str
    """Output projection, whose input holds the heads one after the other."""
    norm: str | None
    """Norm between the projection and the stream."""
    scale: float
    """Factor after the projection and before the norm, if there is one."""
    after: float
    """Factor after the norm."""


@dataclass(frozen=True)
class Structure:
    """What direct attribution needs to know beside the anatomy."""

    writers: tuple[Writer | None, ...]
    """One per layer; None where heads cannot be told apart, or there are none."""
    final: str
    """Path of the final norm, or of the head where the norm is no module."""
    is_norm: bool


_KNOWN: "WeakKeyDictionary[Network, Structure]" = WeakKeyDictionary()


def structure_of(network: Network) -> Structure:
    """The structure of a network, found by running it on a few tokens; found once.

    Raises:
        ModelError: a network whose final stream is not read by a norm and a head that can be
            seen, or of which this process holds a part only.
    """
    if network not in _KNOWN:
        _check(network)
        _KNOWN[network] = _found(network)
    return _KNOWN[network]


def _check(network: Network) -> None:
    why = network.anatomy.refused
    for block in network.anatomy.blocks:
        why = why or block.missing.get("resid_post")
    if network.parts > 1:
        why = f"{network.parts} processes hold its heads together; load it in one"
    if why:
        raise ModelError(f"{network.architecture} has no direct logit attribution: {why}")


def _found(network: Network) -> Structure:
    leaves: dict[Leaf, nn.Module] = {}
    for i, layer in enumerate(network.layers):
        part = network.block(i).attn_out
        for path, module in layer.named_modules():
            if _is_linear(module) or (part is not None and path == part.path):
                leaves[i, path] = module
    inside = {id(m) for layer in network.layers for m in layer.modules()}
    for path, module in network.module.named_modules():
        if path and id(module) not in inside:
            leaves[None, path] = module
    sites = [(site, i) for site in ("z", "attn_out") for i in _with(network, site)]
    streams = [("resid_pre", i) for i in range(len(network.layers))]
    run = Witness(network, [*sites, *streams], leaves)
    mx.eval(run.run(mx.array([PROBE])), list(run.seen.values()), list(run.noted.values()))
    final, is_norm = _reader(network, run)
    writers = tuple(_writer(network, i, run) for i in range(len(network.layers)))
    return Structure(writers, final, is_norm)


def _with(network: Network, site: str) -> list[int]:
    """Layers at which a site can be captured."""
    return [i for i, b in enumerate(network.anatomy.blocks) if site not in b.missing]


def _is_linear(module: nn.Module) -> bool:
    weight = module.get("weight")
    embeddings = (nn.Embedding, nn.QuantizedEmbedding)
    return weight is not None and weight.ndim == 2 and not isinstance(module, embeddings)


def _reader(network: Network, run: Witness) -> tuple[str, bool]:
    """The module that reads the final stream, and whether that is the final norm."""
    for path in run.final:
        if frozen(run.leaves[None, path], run.noted[None, path][0][0]) is not None:
            return path, True
    last = run.output
    for (layer, path), (x, _) in run.noted.items():
        outside = layer is None and last is not None and x.shape == last.shape
        if outside and last is not None and frozen(None, last[0], x[0]) is not None:
            return path, False
    raise ModelError(
        f"{network.architecture} has no direct logit attribution: no norm and head that read its "
        "final stream can be seen"
    )


def _writer(network: Network, layer: int, run: Witness) -> Writer | None:
    """How the layer's heads reach the stream, or None where that cannot be told."""
    part = network.block(layer).attn_out
    if part is None or not {("z", layer), ("attn_out", layer)} <= {*run.seen}:
        return None
    path = _projection(network, layer, run)
    if path is None:
        return None
    o, out = run.noted[layer, path][1], run.seen["attn_out", layer]
    scale = _factor(o, out)
    if scale is not None:
        return Writer(path, None, scale, 1.0)
    x, _ = run.noted.get((layer, part.path), (None, None))
    scale = None if x is None else _factor(o, x)
    if x is None or scale is None or frozen(run.leaves[layer, part.path], x[0]) is None:
        return None
    return Writer(path, part.path, scale, part.scale)


def _factor(a: mx.array, b: mx.array) -> float | None:
    """The number k with b = k a, or None."""
    if a.shape != b.shape:
        return None
    a32, b32 = a.astype(mx.float32), b.astype(mx.float32)
    k = number((a32 * b32).sum() / mx.maximum((a32 * a32).sum(), 1e-30))
    if abs(k - 1) <= tolerance(a.dtype):
        k = 1.0
    return k if distance(k * a32, b32) <= tolerance(a.dtype) else None


def _projection(network: Network, layer: int, run: Witness) -> str | None:
    """Path of the linear leaf of a layer that the heads enter one after the other."""
    z = run.seen["z", layer]
    flat = z.reshape(*z.shape[:2], -1)
    found = {
        path: x
        for (i, path), (x, y) in run.noted.items()
        if i == layer and x.shape == flat.shape and y.shape[-1] == network.anatomy.d_model
    }
    for path, x in found.items():
        if bool(number(mx.array_equal(x, flat))):
            return path
    return _scaled_with_heads(network, layer, run, found) if found else None


def _scaled_with_heads(
    network: Network, layer: int, run: Witness, found: Mapping[str, mx.array]
) -> str | None:
    """The leaf whose input grows head by head as z does: gates and norms may stand between."""
    heads = run.seen["z", layer].shape[2]
    factors = (1 + mx.arange(heads) / heads)[:, None]
    resumable = network.anatomy.resumable
    again = Witness(
        network,
        [],
        {(layer, path): run.leaves[layer, path] for path in found},
        edits=[Edit("z", layer, factors, "scale")],
        start=Start(layer, run.seen["resid_pre", layer]) if resumable else None,
        last=layer,
    )
    again.run(mx.array([PROBE]))
    for path, x in found.items():
        before = x.astype(mx.float32).reshape(*x.shape[:2], heads, -1) * factors
        after = again.noted[layer, path][0].astype(mx.float32).reshape(before.shape)
        size = (before * before).sum(axis=(2, 3), keepdims=True)
        common = (after * before).sum(axis=(2, 3), keepdims=True) / mx.maximum(size, 1e-30)
        if distance(common * before, after) <= 2 * tolerance(x.dtype):
            return path
    return None
