"""Numbers of one row of logits: the distribution over the next token.

Probabilities saturate, so every one has a logarithmic twin: a patch that lifts a token from 1e-12
to 1e-6 moves the log-odds by 14 nats and the probability by nothing that can be seen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.probes.targets import Target, Targets

_BLOCK = 32
"""Rows worked on at a time: bounds the float64 copies to a few hundred MB at 256k tokens."""

_STUDY_EPSILON = 1e-10


def measure(
    logits: NDArray[np.floating],
    targets: Targets,
    *,
    decode: Callable[[int], str],
    chain: Mapping[str, float] | None = None,
    top_k: int = 5,
) -> dict[str, Any]:
    """The measures of one row ``(vocab,)``; see :func:`measure_rows`."""
    row = np.asarray(logits)
    if row.ndim != 1:
        raise ValueError(f"one row of logits is needed, found shape {row.shape}")
    chains = None if chain is None else [chain]
    return measure_rows(row[None], targets, decode=decode, chains=chains, top_k=top_k)[0]


def measure_rows(
    logits: NDArray[np.floating],
    targets: Targets,
    *,
    decode: Callable[[int], str],
    chains: Sequence[Mapping[str, float]] | None = None,
    top_k: int = 5,
) -> list[dict[str, Any]]:
    """The measures of every row of ``(cells, vocab)``, as plain Python numbers.

    ``P`` is the softmax of the row and ``first`` the headline's first token. Each dict holds
    ``tool_call_prob`` (the study's: largest P of any of the headline's sub-tokens),
    ``p_first_token`` = P[first], ``p_chain`` (probability of the whole headline, token by token;
    None where it has several tokens and ``chains`` does not say), ``p_union`` (sum of P over the
    ids it may begin with), ``log_odds`` = ln P[first] - ln(1 - P[first]), ``log_prob``,
    ``logit_diff`` (first less the best token that is none of those ids), ``rank`` (number of
    tokens with a larger logit, 0 = top), ``entropy`` in nats, ``entropy_study`` (with the study's
    1e-10 in the logarithm, 4 decimals), ``top5`` and ``strings``.

    Args:
        logits: one row per cell, finite.
        targets: the strings and their ids.
        decode: the text of one token id, for ``top5``.
        chains: per cell the log-probabilities of whole strings; see :func:`chain_log_prob`.
        top_k: how many of the most probable tokens are listed; the key is ``f"top{top_k}"``.

    Raises:
        PromptError: a target id is outside the vocabulary.
        ValueError: a logit is NaN or infinite.
    """
    rows = np.asarray(logits)
    if rows.ndim != 2:
        raise ValueError(f"logits must be (cells, vocab), found shape {rows.shape}")
    if chains is not None and len(chains) != len(rows):
        raise ValueError(f"{len(chains)} chains for {len(rows)} rows of logits")
    targets.check(rows.shape[1])
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), _BLOCK):
        block = _checked(rows[start : start + _BLOCK])
        ours = chains[start : start + _BLOCK] if chains is not None else [{}] * len(block)
        found.extend(_measure_block(block, targets, ours))
    for values, row in zip(found, rows, strict=True):
        values[f"top{top_k}"] = _top(row, values.pop("_normaliser"), decode, top_k)
    return found


def chain_log_prob(logits: NDArray[np.floating], ids: Sequence[int]) -> float:
    """The log-probability of a whole string: the sum over i of ln softmax(logits[i])[ids[i]].

    Row i ``(vocab,)`` is what the model says after the prompt and the first i ids (teacher
    forcing), so row 0 is the last row of the prompt.
    """
    rows = _checked(np.asarray(logits))
    if rows.ndim != 2 or len(rows) != len(ids):
        raise ValueError(f"{len(ids)} ids need as many rows of logits, found shape {rows.shape}")
    return float(np.sum(rows[np.arange(len(ids)), list(ids)] - _log_sum_exp(rows)))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The natural log of the softmax over the last axis, in float64."""
    rows = _checked(np.asarray(logits))
    return rows - _log_sum_exp(rows)[..., None]


def log_odds(logits: NDArray[np.floating], ids: Sequence[int]) -> NDArray[np.float64]:
    """The log-odds ln p - ln(1 - p) over the last axis, p = probability of any of the ids.

    Computed as the log-sum-exp of the ids less that of all the others, so it neither saturates
    near 1 nor loses digits near 0; infinite where the ids are the whole vocabulary.
    """
    rows = _checked(np.asarray(logits))
    chosen = sorted(set(ids))
    return _log_sum_exp(rows[..., chosen]) - _log_sum_exp(_without(rows, chosen))


def entropy(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """-sum P ln P over the last axis, in nats; between 0 and ln(vocab)."""
    log_probs = log_softmax(logits)
    return np.maximum(-np.sum(np.exp(log_probs) * log_probs, axis=-1), 0.0)


def entropy_study(logits: NDArray[np.floating]) -> float:
    """The original study's entropy of one row: -sum P ln(P + 1e-10), rounded to 4 decimals."""
    probs = np.exp(log_softmax(logits))
    return round(float(-np.sum(probs * np.log(probs + _STUDY_EPSILON))), 4)


def kl(logits_p: NDArray[np.floating], logits_q: NDArray[np.floating]) -> float:
    """KL(p || q) = sum p ln(p/q) in nats; p is the patched run, q the unpatched recipient."""
    log_p, log_q = log_softmax(logits_p), log_softmax(logits_q)
    if log_p.ndim != 1 or log_p.shape != log_q.shape:
        raise ValueError(f"two rows of logits are needed, found {log_p.shape} and {log_q.shape}")
    return max(float(np.sum(np.exp(log_p) * (log_p - log_q))), 0.0)


def _measure_block(
    rows: NDArray[np.float64], targets: Targets, chains: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    head = targets.head
    normaliser = _log_sum_exp(rows)
    log_probs = rows - normaliser[:, None]
    probs = np.exp(log_probs)
    columns = {
        "tool_call_prob": probs[:, list(head.ids)].max(axis=1),
        "p_first_token": probs[:, head.first],
        "p_union": np.minimum(probs[:, list(head.variants)].sum(axis=1), 1.0),
        "log_odds": rows[:, head.first] - _log_sum_exp(_without(rows, [head.first])),
        "log_prob": log_probs[:, head.first],
        "logit_diff": rows[:, head.first]
        - _without(rows, head.variants).max(axis=1, initial=-np.inf),
        "entropy": np.maximum(-np.einsum("cv,cv->c", probs, log_probs), 0.0),
        "entropy_study": np.round(-(probs * np.log(probs + _STUDY_EPSILON)).sum(axis=1), 4),
        "_normaliser": normaliser,
    }
    ranks = np.count_nonzero(rows > rows[:, head.first, None], axis=1)
    found: list[dict[str, Any]] = []
    for cell, chain in enumerate(chains):
        values: dict[str, Any] = {name: float(column[cell]) for name, column in columns.items()}
        values["rank"] = int(ranks[cell])
        values["strings"] = {
            target.text: _string(target, probs[cell], chain) for target in targets.strings
        }
        values["p_chain"] = values["strings"][head.text]["p_chain"]
        found.append(values)
    return found


def _string(
    target: Target, probs: NDArray[np.float64], chain: Mapping[str, float]
) -> dict[str, float | None]:
    first = float(probs[target.first])
    if target.text in chain:
        whole: float | None = float(np.exp(chain[target.text]))
    else:
        whole = first if len(target.chain) == 1 else None
    return {
        "max_subtoken": float(probs[list(target.ids)].max()),
        "p_first": first,
        "p_chain": whole,
    }


def _top(
    row: NDArray[np.floating], normaliser: float, decode: Callable[[int], str], top_k: int
) -> list[dict[str, Any]]:
    """The most probable tokens, the lower id first on ties."""
    count = min(top_k, len(row))
    if count == 0:
        return []
    bar = np.partition(row, len(row) - count)[len(row) - count]
    near = np.flatnonzero(row >= bar)
    best = near[np.lexsort((near, -row[near]))][:count]
    return [
        {
            "id": int(token),
            "token": decode(int(token)),
            "prob": float(np.exp(np.float64(row[token]) - normaliser)),
        }
        for token in best
    ]


def _checked(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("non-finite logits")
    return rows


def _log_sum_exp(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if rows.shape[-1] == 0:
        return np.full(rows.shape[:-1], -np.inf)
    top = rows.max(axis=-1)
    return top + np.log(np.exp(rows - top[..., None]).sum(axis=-1))


def _without(rows: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    return np.delete(rows, list(ids), axis=-1)
