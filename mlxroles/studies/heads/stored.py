"""A detection as arrays of a run folder, and back: what a document needs without the model."""

from collections.abc import Mapping

import numpy as np

from mlxroles.detectors import DETECTORS, Classes, Detection, Scores
from mlxroles.detectors.classify import ANTI

CLASSES = (*dict.fromkeys(d.class_name for d in DETECTORS.values()), ANTI)
"""Classes of heads, in the order of tables."""
PROFILES = ("profile", "profile_uniform", "profile_random")
_PARTS = ("score", "uniform", "control")


def arrays_of(detection: Detection) -> dict[str, np.ndarray]:
    """Every array of a detection by name: ``score_induction``, ``extra_delimiter_ratio``, ..."""
    found: dict[str, np.ndarray] = {name: getattr(detection, name) for name in PROFILES}
    for name, scores in detection.scores.items():
        found |= {f"{part}_{name}": getattr(scores, part) for part in _PARTS}
        found |= {f"extra_{name}_{key}": array for key, array in scores.more.items()}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def detection_of(arrays: Mapping[str, np.ndarray]) -> Detection:
    """The detection that such arrays were made of, in float32."""
    found = {}
    for name in (name for name in DETECTORS if f"score_{name}" in arrays):
        parts = [np.asarray(arrays[f"{part}_{name}"], np.float64) for part in _PARTS]
        start = f"extra_{name}_"
        more = {
            key.removeprefix(start): np.asarray(array, np.float64)
            for key, array in arrays.items()
            if key.startswith(start) and _owner(key) == name
        }
        found[name] = Scores(*parts, more)
    plain, uniform, random = (np.asarray(arrays[name]) for name in PROFILES)
    return Detection(found, plain, uniform, random)


def _owner(key: str) -> str:
    """The detector that a further array belongs to: the longest name that it begins with."""
    rest = key.removeprefix("extra_")
    return max((n for n in DETECTORS if rest.startswith(f"{n}_")), key=len, default="")


def best(detection: Detection, count: int) -> list[tuple[int, int, str]]:
    """Heads (layer, head, detector) to show: the best of every detector, each head once."""
    found: dict[tuple[int, int], str] = {}
    for name in detection.scores:
        at = detection.best(name)
        if at is not None and name != "copying":
            found.setdefault(at, name)
    return [(*at, name) for at, name in found.items()][:count]


def by_class(detection: Detection, classes: Classes) -> dict[str, list[tuple[int, int]]]:
    """Class -> its heads (layer, head), as first or as another one, the highest scores first."""
    return {
        name: sorted(
            classes.heads(name), key=lambda at: (-_judged(name, at, detection, classes), at)
        )
        for name in CLASSES
    }


def _judged(name: str, at: tuple[int, int], detection: Detection, classes: Classes) -> float:
    """The mean score by which a head is of a class: of the first detector that marks it."""
    sign = -1 if name == ANTI else 1
    return next(
        sign * float(scores.mean[at])
        for key, scores in detection.scores.items()
        if _is_of(name, key) and classes.marked[ANTI if name == ANTI else key][at]
    )


def _is_of(name: str, detector: str) -> bool:
    return detector == "copying" if name == ANTI else DETECTORS[detector].class_name == name
