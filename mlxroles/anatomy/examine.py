"""Puts together what a watched run shows of every block, one block of each kind in full."""

from collections.abc import Callable
from typing import Any

from mlxroles import attention as attn
from mlxroles.anatomy.block import NO_ATTENTION, STATEFUL, Anatomy, Block
from mlxroles.anatomy.heads import from_kernel, from_softmax
from mlxroles.anatomy.parts import ROUNDINGS, add_up, parts_of
from mlxroles.anatomy.shortcuts import BESIDES, JOIN_LATE, START_LATE, caches_of, forbidden
from mlxroles.anatomy.watch import PROBE, Seen, architecture_of, submodules, watch
from mlxroles.backend import mx, nn, number
from mlxroles.edits import ATTENTION_SITES, STREAM_SITES
from mlxroles.taps import real_class

FAILURES = (ValueError, TypeError, RuntimeError, AttributeError, IndexError, KeyError)
"""What mlx_lm's own code raises on a model that it cannot run here."""


def examine(net: nn.Module) -> Anatomy:
    """Anatomy of a network; runs it on a few tokens, and evaluates all of it."""
    layers = list(net.layers)
    architecture = architecture_of(net)
    try:
        seen, logits, direct = _watched(net, layers)
    except FAILURES as error:
        text = str(error).strip().splitlines() or [""]
        why = f"mlx_lm's own forward fails: {type(error).__name__}: {text[0]}"
        return Anatomy(refused=why)
    vocab = int(logits.shape[-1])
    calls = {s.calls for s in seen}
    if calls != {1}:
        often = {0: "never calls its layers", 1: "calls only some of its layers"}
        why = often.get(max(calls, default=0), "calls a layer more than once")
        return Anatomy(vocab=vocab, direct=direct, refused=f"the model {why}")
    streams = [s.given for s in seen if s.given is not None]
    first = seen[0].taken
    assert first is not None
    axes = max(x.ndim for x in streams)
    narrow = None if axes == 3 else f"the residual stream has {axes} axes and not 3"
    stateful = STATEFUL.get(architecture)
    blocks = _blocks(net, layers, seen, narrow)
    besides = stateful or narrow or (None if all(s.single for s in seen) else BESIDES)
    caches = caches_of(net)
    not_allowed = forbidden(architecture, caches, len(layers), besides=besides)
    return Anatomy(
        blocks=tuple(blocks),
        d_model=int(first.shape[-1]),
        vocab=vocab,
        dtype=first.dtype,
        direct=direct,
        resumable=JOIN_LATE not in not_allowed,
        stateful=stateful,
        plain_cache=stateful is None and _plain(caches, len(layers)),
        prefix=START_LATE not in not_allowed,
        forbidden=not_allowed,
        shortest=_shortest(net, layers, blocks, direct=direct),
    )


def _watched(net: nn.Module, layers: list[nn.Module]) -> tuple[list[Seen], mx.array, bool]:
    """What a short run shows, its logits, and whether the file calls ``mx`` itself."""
    seen, logits = watch(net, layers, direct=False)
    mx.eval(logits)
    if not any(s.calls and not s.attention for s in seen):
        return seen, logits, False
    again, logits = watch(net, layers, direct=True)
    mx.eval(logits)
    pairs = zip(again, seen, strict=True)
    more = any(s.softmax or len(s.attention) > len(t.attention) for s, t in pairs)
    return (again, logits, True) if more else (seen, logits, False)


def _plain(caches: list[Any], n_layers: int) -> bool:
    from mlx_lm.models.cache import KVCache

    return len(caches) == n_layers and all(type(cache) is KVCache for cache in caches)


def _shortest(net: nn.Module, layers: list[nn.Module], blocks: list[Block], *, direct: bool) -> int:
    """Positions that a run needs to show q, k, v and z in their usual shapes: 1 or 2."""
    try:
        seen, _ = watch(net, layers, direct=direct, tokens=PROBE[:1])
    except FAILURES:
        return 2
    for block, s in zip(blocks, seen, strict=True):
        if block.kind != "sdpa" or len(s.attention) != 1:
            continue
        _, call, z = s.attention[0]
        if (attn.plain(call.k, call.cache).shape[1], z.shape[-1]) != (block.kv_heads, block.d_head):
            return 2
    return 1


def _blocks(
    net: nn.Module, layers: list[nn.Module], seen: list[Seen], narrow: str | None
) -> list[Block]:
    """A block per layer; one that is built like an earlier one has its anatomy, if that fits."""
    known: dict[tuple, Block] = {}
    blocks: list[Block] = []
    sums: list[tuple[int, mx.array]] = []

    def full(i: int) -> Block:
        return _block(net, layers, i, seen[i], narrow)

    for i, (layer, s) in enumerate(zip(layers, seen, strict=True)):
        key = (_signature(layer), len(s.attention), len(s.softmax))
        if key not in known:
            known[key] = full(i)
        elif known[key].attn_out:
            sums.append((i, add_up(s, known[key])))
        blocks.append(known[key])
    return _refitted(blocks, sums, full)


def _refitted(
    blocks: list[Block], sums: list[tuple[int, mx.array]], full: Callable[[int], Block]
) -> list[Block]:
    mx.eval([error for _, error in sums])
    for i, error in sums:
        if not number(error) <= ROUNDINGS:
            blocks[i] = full(i)
    return blocks


def _signature(layer: nn.Module) -> tuple:
    """Equal for layers that are built alike: classes and plain settings, indices left out."""

    def settings(module: nn.Module) -> tuple:
        plain = {**module, **vars(module)}
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

    parts = [(path, real_class(m).__name__, settings(m)) for path, m in submodules(layer)]
    return (real_class(layer).__name__, settings(layer), tuple(parts))


def _block(net: nn.Module, layers: list[nn.Module], i: int, s: Seen, narrow: str | None) -> Block:
    missing: dict[str, str] = {}
    shape: dict[str, Any] = {"kind": "none"}
    if s.attention:
        shape = from_kernel(s, missing)
    elif s.softmax:
        shape = from_softmax(net, layers, i, s, missing)
    else:
        why = f"{_mixer_name(layers[i])} layers have {NO_ATTENTION}"
        missing |= dict.fromkeys(ATTENTION_SITES, why)
    if narrow:
        return Block(**shape, missing=missing | dict.fromkeys(STREAM_SITES, narrow))
    parts = parts_of(layers[i], s)
    if parts is None:
        why = "a block's output is not its input plus an attention and an MLP part"
        missing |= dict.fromkeys(("attn_out", "mlp_out", "resid_mid"), why)
        return Block(**shape, missing=missing)
    if not parts.sequential:
        missing["resid_mid"] = "no submodule reads the stream between attention and MLP"
    return Block(**shape, attn_out=parts.attn_out, mlp_out=parts.mlp_out, missing=missing)


def _mixer_name(layer: nn.Module) -> str:
    quiet = ("norm", "mlp", "ln", "ffn", "feed")
    for name, child in layer.children().items():
        if isinstance(child, nn.Module) and not any(q in name.lower() for q in quiet):
            return real_class(child).__name__
    return real_class(layer).__name__
