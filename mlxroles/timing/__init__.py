"""How long a study will take, and how good that was: amounts of work, rates, what is learned.

A study counts its work from sizes alone (``work``); the rates of this machine, measured once and
kept in the user's cache (``rates``), make seconds of it (``prediction``); what finished runs really
took corrects later predictions (``history``). No model and no MLX: the rates are measured in
``engine.calibration``.
"""

from mlxroles.timing.estimates import Estimate, estimate, sentence, span
from mlxroles.timing.history import Ratio, Record, forget, learned, recall, record
from mlxroles.timing.prediction import Parts, predict
from mlxroles.timing.rates import Kind, Rates, keep, kept
from mlxroles.timing.work import NOTHING, Sizes, Work

__all__ = [
    "NOTHING",
    "Estimate",
    "Kind",
    "Parts",
    "Rates",
    "Ratio",
    "Record",
    "Sizes",
    "Work",
    "estimate",
    "forget",
    "keep",
    "kept",
    "learned",
    "predict",
    "recall",
    "record",
    "sentence",
    "span",
]
