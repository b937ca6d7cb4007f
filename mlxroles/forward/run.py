"""``forward``: checks what is asked, lets the network run under a tap, evaluates what was kept."""

from collections.abc import Sequence
from typing import Any

from mlxroles.anatomy import START_LATE
from mlxroles.backend import mx, number
from mlxroles.edits import Edit
from mlxroles.errors import ModelError, PromptError
from mlxroles.forward.asked import WHOLE_HEAD, Asked, Summary, at
from mlxroles.forward.job import Job
from mlxroles.forward.network import Network, Prefix, Recorder, Run, Start

Read = Sequence[int] | mx.array


def forward(
    network: Network,
    tokens: mx.array,
    *,
    keep: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
    start: Start | None = None,
    read: Read | None = None,
    prefix: Sequence[Prefix] | None = None,
    logits: bool = True,
    summary: Summary | None = None,
) -> Run:
    """Runs the network on tokens [batch, position] and returns what was asked for, evaluated.

    Args:
        network: What to run.
        tokens: Token ids; rows of different lengths are padded on the right, where causal
            attention hides the padding from every real position.
        keep: Sites to keep, of ``edits.SITES``.
        layers: Layers at which to keep them; None for all that have them.
        edits: Interventions, carried out in the order given where several meet.
        start: Where to begin, if not at the embedding.
        read: Positions at which logits are wanted: a list for all rows, or an array [batch, n].
            None reads all.
        prefix: One ``Prefix`` per layer for the positions before ``tokens``. Sites and edits
            count positions from the first of ``tokens``; only the key axis of ``pattern`` begins
            at the prefix.
        logits: Whether logits are wanted at all.
        summary: What is kept of every ``pattern`` in its place, so that no more than a few
            layers' patterns are ever in memory.

    Raises:
        ModelError: a site that cannot be captured here, or a model that cannot run at all,
            naming it and why.
        PromptError: an empty prompt or a token id that the model does not have.
        ValueError: a layer, head or position that does not exist, or a start or prefix that does
            not fit.
    """
    check_tokens(network, tokens)
    check_read(read, tokens)
    _check_prefix(network, prefix)
    if network.anatomy.refused:
        if keep or edits or start is not None or not network.anatomy.vocab:
            raise ModelError(f"{network.architecture}: {network.anatomy.refused}")
        return _plain(network, tokens, read, logits=logits)
    _check_start(network, start, tokens)
    offset = prefix[0].offset if prefix else 0
    asked = Asked(
        tuple(keep),
        None if layers is None else tuple(layers),
        tuple(edits),
        start,
        read,
        offset,
        through=logits or prefix is not None,
        summary=summary,
    )
    return _tapped(network, tokens, asked, prefix, logits=logits)


def prefix_of(network: Network, tokens: mx.array, edits: Sequence[Edit] = ()) -> list[Prefix]:
    """What every layer hands to its cache for tokens [batch, position], to continue from.

    Raises:
        ModelError: the architecture keeps more than plain keys and values.
    """
    caches = [Recorder() for _ in network.layers]
    forward(network, tokens, edits=edits, prefix=caches, logits=False)  # ty: ignore[invalid-argument-type]
    made = []
    for i, cache in enumerate(caches):
        if cache.kv is None:
            raise ModelError(f"layer {i} of {network.architecture} hands nothing to its cache")
        made.append(Prefix(*cache.kv))
    mx.eval([p.k for p in made], [p.v for p in made])
    return made


def _tapped(
    network: Network,
    tokens: mx.array,
    asked: Asked,
    prefix: Sequence[Prefix] | None,
    *,
    logits: bool,
) -> Run:
    job = Job(network, asked)
    with job.tap():
        out = _call(network, tokens, prefix)
    if asked.read is not None and network.architecture in WHOLE_HEAD:
        out = at(out, asked.read)
    mx.eval([list(kept.values()) for kept in job.kept.values()], [out] if logits else [])
    return Run(job.kept, out if logits else None, asked.offset)


def _plain(network: Network, tokens: mx.array, read: Read | None, *, logits: bool) -> Run:
    """Logits of a network whose layers cannot be watched."""
    out = _call(network, tokens, None) if logits else None
    if out is not None and read is not None:
        out = at(out, read)
    mx.eval([] if out is None else [out])
    return Run({}, out)


def _call(network: Network, tokens: mx.array, prefix: Sequence[Prefix] | None) -> mx.array:
    extra: dict[str, Any] = {} if prefix is None else {"cache": list(prefix)}
    out = network.module(tokens, **extra)
    return out[0] if isinstance(out, (tuple, list)) else out


def check_tokens(network: Network, tokens: mx.array) -> None:
    """Refuses what MLX would answer with nonsense; see ``forward``."""
    if tokens.ndim != 2:
        raise ValueError(f"tokens have {tokens.ndim} axes; expected [batch, position]")
    if not tokens.size:
        raise PromptError("a prompt has no tokens; give at least one")
    low, high = int(number(tokens.min())), int(number(tokens.max()))
    vocab = network.anatomy.vocab or high + 1
    if low < 0 or high >= vocab:
        bad = low if low < 0 else high
        raise PromptError(f"token id {bad} is outside 0..{vocab - 1} of {network.architecture}")


def check_read(read: Read | None, tokens: mx.array) -> None:
    """MLX does not check indices: a wrong one would read whatever lies in memory."""
    if read is None:
        return
    asked = read if isinstance(read, mx.array) else mx.array([int(p) for p in read], mx.int32)
    if not asked.size or (asked.ndim == 2 and asked.shape[0] != tokens.shape[0]):
        raise ValueError(f"positions to read have shape {asked.shape}; expected [n] or [batch, n]")
    low, high, length = int(number(asked.min())), int(number(asked.max())), tokens.shape[1]
    if low < 0 or high >= length:
        raise ValueError(f"position {low if low < 0 else high} is outside 0..{length - 1}")


def _check_prefix(network: Network, prefix: Sequence[Prefix] | None) -> None:
    if prefix is None:
        return
    if not network.anatomy.prefix:
        why = network.anatomy.forbidden.get(START_LATE, network.anatomy.refused)
        raise ModelError(f"{network.architecture} cannot go on from a prefix: {why}")
    if len(prefix) != len(network.layers) or len({p.offset for p in prefix}) != 1:
        raise ValueError(
            f"a prefix of {len(prefix)} layers with lengths {sorted({p.offset for p in prefix})} "
            f"does not fit {len(network.layers)} layers"
        )


def _check_start(network: Network, start: Start | None, tokens: mx.array) -> None:
    if start is None:
        return
    if not network.anatomy.resumable:
        raise ValueError(f"{network.architecture} cannot start from a residual stream")
    if not 0 <= start.layer <= len(network.layers):
        raise ValueError(f"start layer {start.layer} is outside 0..{len(network.layers)}")
    expected = (*tokens.shape, network.anatomy.d_model)
    if start.stream.shape != expected:
        raise ValueError(
            f"a stream of shape {start.stream.shape} cannot start; expected {expected}"
        )
