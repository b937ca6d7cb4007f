"""Metrics of which gradients can be taken: the probes' measures again, as functions of MLX arrays.

Same definitions as ``probes.measures``, in float32: a metric reads the first of the positions that
are read, ``p_chain`` one position per token of the string. Ranks, top lists and the study's
rounded numbers have no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mlxroles.backend import mx
from mlxroles.errors import SpecError
from mlxroles.probes import Target, Targets

METRICS = (
    "log_odds",
    "log_prob",
    "logit_diff",
    "p_first_token",
    "p_union",
    "p_chain",
    "entropy",
    "kl",
)
"""Measures that attribution can explain."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One number per prompt, made of logits [prompt, n_read, vocab]; called, gives [prompt]."""

    name: str
    of: Callable[[mx.array], mx.array]

    def __call__(self, logits: mx.array) -> mx.array:
        """The metric of every prompt [prompt], float32."""
        return self.of(logits.astype(mx.float32))


def metric(name: str, targets: Targets, clean_logits: mx.array | None = None) -> Metric:
    """The metric of a name of ``METRICS``, of the headline of ``targets``.

    Args:
        name: Of ``METRICS``.
        targets: The strings and their ids.
        clean_logits: What ``kl`` compares with [prompt, n_read, vocab]: the divergence is from a
            patched run to these, in nats.

    Raises:
        SpecError: a measure without a gradient.
        ValueError: ``kl`` without logits to compare with.
    """
    head = targets.head
    if name == "kl":
        if clean_logits is None:
            raise ValueError("kl needs logits to compare with")
        return Metric(name, _kl(clean_logits))
    simple = {
        "log_odds": lambda rows: rows[:, head.first] - _log_sum_exp(_hidden(rows, (head.first,))),
        "log_prob": lambda rows: _log_softmax(rows)[:, head.first],
        "logit_diff": lambda rows: rows[:, head.first] - _hidden(rows, head.variants).max(axis=-1),
        "p_first_token": lambda rows: mx.exp(_log_softmax(rows)[:, head.first]),
        "p_union": lambda rows: _union(rows, head),
        "entropy": _entropy,
    }
    if name in simple:
        return Metric(name, lambda logits: simple[name](logits[:, 0]))
    if name == "p_chain":
        return Metric(name, lambda logits: _chain(logits, head))
    raise SpecError(
        f"attribution cannot explain {name!r}, which has no gradient; choose one of "
        f"{', '.join(METRICS)}"
    )


def _log_sum_exp(rows: mx.array) -> mx.array:
    return mx.logsumexp(rows, axis=-1)


def _log_softmax(rows: mx.array) -> mx.array:
    # after the largest is taken off, the sum's logarithm keeps its digits
    rows = rows - mx.stop_gradient(rows.max(axis=-1, keepdims=True))
    return rows - mx.logsumexp(rows, axis=-1, keepdims=True)


def _hidden(rows: mx.array, ids: tuple[int, ...]) -> mx.array:
    """Rows [prompt, vocab] with minus infinity at the ids."""
    named = (mx.arange(rows.shape[-1])[:, None] == mx.array(ids)).any(axis=-1)
    return mx.where(named, -mx.inf, rows)


def _union(rows: mx.array, head: Target) -> mx.array:
    return mx.minimum(mx.exp(_log_softmax(rows)[:, mx.array(head.variants)]).sum(axis=-1), 1.0)


def _entropy(rows: mx.array) -> mx.array:
    log_p = _log_softmax(rows)
    return mx.maximum(-(mx.exp(log_p) * log_p).sum(axis=-1), 0.0)


def _chain(logits: mx.array, head: Target) -> mx.array:
    n = len(head.chain)
    if logits.shape[1] < n:
        raise ValueError(f"p_chain of {n} tokens needs as many positions, found {logits.shape[1]}")
    index = mx.array(head.chain)[None, :, None]
    log_p = _log_softmax(logits[:, :n])
    index = mx.broadcast_to(index, (log_p.shape[0], n, 1))
    return mx.exp(mx.take_along_axis(log_p, index, axis=-1).sum(axis=(1, 2)))


def _kl(clean: mx.array) -> Callable[[mx.array], mx.array]:
    log_q = _log_softmax(clean[:, 0].astype(mx.float32))

    def divergence(logits: mx.array) -> mx.array:
        log_p = _log_softmax(logits[:, 0])
        return (mx.exp(log_p) * (log_p - log_q)).sum(axis=-1)

    return divergence
