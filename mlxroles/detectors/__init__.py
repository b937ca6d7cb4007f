"""What each attention head does: scores of its pattern, each beside its nulls, and a class.

:func:`material` makes rows of ids (text, random ids that repeat, lists, sentences about two
people) and the places that each score reads in them; :func:`detect` takes all scores of a model in
one pass of each set, without keeping a pattern, together with what uniform attention over the
visible keys and a control give at the same places; :func:`classify` names what stands out.
:func:`head_scores` is the short way to previous-token and induction heads. Formulas on a pattern
that is at hand are in :mod:`.formulas`.
"""

from mlxroles.detectors.catalogue import DETECTORS, Detector
from mlxroles.detectors.classify import NONE, Classes, classify
from mlxroles.detectors.detect import Detection, Example, Scores, combined, detect, patterns
from mlxroles.detectors.formulas import induction, previous_token
from mlxroles.detectors.material import Material, RowSet, material
from mlxroles.detectors.reading import Reading, read
from mlxroles.detectors.repeats import (
    LENGTH,
    MARKED,
    SEQUENCES,
    HeadScores,
    head_scores,
    repeated,
)

__all__ = [
    "DETECTORS",
    "LENGTH",
    "MARKED",
    "NONE",
    "SEQUENCES",
    "Classes",
    "Detection",
    "Detector",
    "Example",
    "HeadScores",
    "Material",
    "Reading",
    "RowSet",
    "Scores",
    "classify",
    "combined",
    "detect",
    "head_scores",
    "induction",
    "material",
    "patterns",
    "previous_token",
    "read",
    "repeated",
]
