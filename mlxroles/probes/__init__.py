"""From logits to numbers: what a model would say next, and what a patch changed about it.

:mod:`.targets` says which token ids an answer may begin with, :mod:`.measures` reads one row of
logits, :mod:`.effects` compares a patched run with both unpatched ones. All in float64 on
float32 logits, in nats. Not here: running a model, and intervals over prompts.
"""

from mlxroles.probes.effects import (
    Peak,
    effect,
    effects,
    first_half_layer,
    peak,
    recovery,
    study_summary,
)
from mlxroles.probes.measures import (
    chain_log_prob,
    entropy,
    entropy_study,
    kl,
    log_odds,
    log_softmax,
    measure,
    measure_rows,
)
from mlxroles.probes.targets import Target, Targets, targets, targets_from_ids

__all__ = [
    "Peak",
    "Target",
    "Targets",
    "chain_log_prob",
    "effect",
    "effects",
    "entropy",
    "entropy_study",
    "first_half_layer",
    "kl",
    "log_odds",
    "log_softmax",
    "measure",
    "measure_rows",
    "peak",
    "recovery",
    "study_summary",
    "targets",
    "targets_from_ids",
]
