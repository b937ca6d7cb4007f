"""What is stored of a reading: a few numbers in the journal, everything else as arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxroles import probes
from mlxroles.lens import Reading


def contrast(logits: np.ndarray, targets: probes.Targets) -> np.ndarray:
    """Log of the odds of the first string's tokens against the second's, per row of logits.

    Each side is the log-sum-exp over the ids that its string may begin with, less those of both.
    """
    first, second = ({*target.variants} for target in targets.strings)
    sides = [sorted(ids - other) for ids, other in ((first, second), (second, first))]
    if not all(sides):
        return np.zeros(len(logits))
    rows = logits.astype(np.float64)
    up, down = (np.logaddexp.reduce(rows[:, ids], axis=1) for ids in sides)
    return up - down


def stored(
    reading: Reading, measured: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What goes into the journal, and what into the cell's arrays."""
    settled = np.flatnonzero(reading.end_rank[:, -1] > 0)
    later = int(settled[-1]) + 1 if len(settled) else 0
    values: dict[str, Any] = {
        "n_tokens": len(reading.tokens),
        "read_at": reading.positions[-1],
        "end_id": int(reading.end_ids[-1]),
        "settled": reading.layers[later] if later < len(reading.layers) else None,
        "decided": _decided(reading, measured),
        "end_error": None if np.isnan(reading.end_error) else reading.end_error,
    }
    arrays: dict[str, np.ndarray] = {
        name: np.array([row[name] for row in measured], dtype=np.float64)
        for name in ("p_first_token", "p_union", "log_odds", "logit_diff", "rank")
    }
    arrays["string_p"] = np.array(
        [[s["p_first"] for s in row["strings"].values()] for row in measured]
    )
    arrays |= {
        "position": np.array(reading.positions, dtype=np.int32),
        "token": np.array([reading.tokens[p] for p in reading.positions], dtype=np.int32),
        "end_ids": reading.end_ids.astype(np.int32),
        "top_ids": reading.top_ids.astype(np.int32),
        "top_p": np.exp(reading.top_log_prob).astype(np.float32),
        "lens_entropy": reading.entropy.astype(np.float32),
        "kl": reading.kl.astype(np.float32),
        "end_rank": reading.end_rank.astype(np.int32),
        "next_log_prob": reading.next_log_prob.astype(np.float32),
        "headline_log_prob": reading.asked_log_prob[..., 0].astype(np.float32),
        "headline_rank": reading.asked_rank[..., 0].astype(np.int32),
    }
    return values, arrays


def _decided(reading: Reading, measured: Sequence[Mapping[str, Any]]) -> int | None:
    """The first layer from which on the headline is the top token; None if it is not at the end."""
    below = [n for n, row in enumerate(measured) if row["rank"] > 0]
    first = below[-1] + 1 if below else 0
    return reading.layers[first] if first < len(reading.layers) else None
