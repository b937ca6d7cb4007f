"""What an ablation changes, prompt by prompt, at the positions that can change.

Everything is worked out on the device in float32, from the log-probabilities of the clean run and
those of the ablated one. Means are over positions; what comes before the first edit is left out,
as it cannot differ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlxroles import probes
from mlxroles.backend import mx
from mlxroles.probes import Targets
from mlxroles.studies.ablate.measures import FLOOR

Numbers = NDArray[np.float64]

PROBES = ("p_first_token", "p_union", "log_odds", "entropy")
"""Measures of ``probes`` that are taken after the last token."""


@dataclass(frozen=True, eq=False)
class Clean:
    """What the model does by itself on prompts of one length."""

    tokens: mx.array
    """[prompt, position]"""
    log_probs: mx.array
    """[prompt, position, vocab], float32."""
    last: np.ndarray
    """Logits after the last token [prompt, vocab], float32."""
    best: tuple[mx.array, mx.array]
    """From ``two_best``."""
    attn_out: Mapping[int, mx.array] = field(default_factory=dict)
    """Layer -> [prompt, position, d_model]."""
    entropy: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Layer -> nats [prompt, head, query]."""
    streams: Mapping[int, mx.array] = field(default_factory=dict)
    """Layer -> what enters it [prompt, position, d_model]."""

    @property
    def n_bytes(self) -> int:
        """Bytes that it holds."""
        arrays = [self.log_probs, *self.attn_out.values(), *self.streams.values()]
        return sum(a.nbytes for a in arrays) + sum(a.nbytes for a in self.entropy.values())


def log_probs(logits: mx.array) -> mx.array:
    """Log-probabilities in float32.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    found = logits.astype(mx.float32)
    if not mx.isfinite(found).all().item():
        raise FloatingPointError("the logits are not all finite numbers")
    return found - mx.logsumexp(found, axis=-1, keepdims=True)


def two_best(log_probs: mx.array) -> tuple[mx.array, mx.array]:
    """The likeliest token of each position and the second one [prompt, position, 1]."""
    top = mx.argmax(log_probs, axis=-1, keepdims=True)
    least = mx.array(-np.inf, dtype=mx.float32)
    return top, mx.argmax(mx.put_along_axis(log_probs, top, least, axis=-1), axis=-1, keepdims=True)


def outputs(clean: Clean, log_probs: mx.array, first: int) -> dict[str, Numbers]:
    """Measures on the logits, one number per prompt.

    ``kl``: of the clean from the ablated distribution, in nats. ``top1_changed``: share of
    positions whose likeliest token is another. ``logit_diff``: what the clean run's likeliest
    token loses against its second one, in logits (negative: it lost). ``loss``: what the loss on
    the next token of the prompt gained, in nats.

    Args:
        clean: The clean run.
        log_probs: Of the ablated run, [prompt, position, vocab].
        first: The first position that can change.
    """
    p, q = clean.log_probs[:, first:], log_probs[:, first:]
    kl = mx.maximum((mx.exp(p) * (p - q)).sum(axis=-1), 0).mean(axis=-1)
    top, second = (tokens[:, first:] for tokens in clean.best)
    changed = (mx.argmax(q, axis=-1, keepdims=True) != top).astype(mx.float32).mean(axis=(1, 2))
    gaps = [
        mx.take_along_axis(a, top, axis=-1) - mx.take_along_axis(a, second, axis=-1) for a in (p, q)
    ]
    found = {"kl": kl, "top1_changed": changed, "logit_diff": (gaps[1] - gaps[0]).mean(axis=(1, 2))}
    if first < clean.tokens.shape[1] - 1:
        found["loss"] = (losses(log_probs, clean.tokens) - losses(clean.log_probs, clean.tokens))[
            :, first:
        ].mean(axis=-1)
    return {name: _numbers(values) for name, values in found.items()}


def losses(log_probs: mx.array, tokens: mx.array) -> mx.array:
    """-ln P of the next token [prompt, position - 1]."""
    return -mx.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def repetition(log_probs: mx.array, tokens: mx.array, length: int) -> dict[str, Numbers]:
    """Losses on both halves of sequences [x, x] and their difference, ``gain``, in nats.

    The same tokens x[1] to x[L-1] are foreseen both times: from what came before them in the
    first half, and in the second with x seen once.
    """
    each = losses(log_probs, tokens)
    first, second = each[:, : length - 1].mean(axis=-1), each[:, length:].mean(axis=-1)
    found = {"loss_first": first, "loss_second": second, "gain": first - second}
    return {name: _numbers(values) for name, values in found.items()}


def answers(
    last: np.ndarray, targets: Targets | None, decode: Callable[[int], str]
) -> dict[str, Numbers]:
    """The probe's measures after the last token, one number per prompt."""
    if targets is None:
        return {}
    rows = probes.measure_rows(last, targets, decode=decode)
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in PROBES}


def kept(
    clean: Mapping[int, mx.array], ablated: Mapping[int, mx.array], first: int
) -> dict[str, Numbers]:
    """How much of the attention outputs of some layers is left, one number per prompt.

    ``nip`` is <o, o'> / max(|o|^2, floor), ``cosine`` <o, o'> / max(|o| |o'|, floor): means over
    positions from ``first`` on, and over layers.
    """
    found: dict[str, list[Numbers]] = {"nip": [], "cosine": []}
    for layer, array in ablated.items():
        x, y = (a.astype(mx.float32)[:, first:] for a in (clean[layer], array))
        product, own, other = ((a * b).sum(axis=-1) for a, b in ((x, y), (x, x), (y, y)))
        found["nip"].append(_numbers((product / mx.maximum(own, FLOOR)).mean(axis=-1)))
        length = mx.maximum(mx.sqrt(own) * mx.sqrt(other), FLOOR)
        found["cosine"].append(_numbers((product / length).mean(axis=-1)))
    return {name: np.mean(rows, axis=0) for name, rows in found.items() if rows}


def entropy_change(
    clean: Mapping[int, np.ndarray], ablated: Mapping[int, np.ndarray], first: int
) -> dict[int, Numbers]:
    """Layer -> what each head's attention entropy gained, in nats [prompt, head].

    Means over queries from ``first`` on.
    """
    return {
        layer: (array[..., first:].astype(np.float64) - clean[layer][..., first:]).mean(axis=-1)
        for layer, array in ablated.items()
    }


def _numbers(values: mx.array) -> Numbers:
    return np.array(values.astype(mx.float32)).astype(np.float64)
