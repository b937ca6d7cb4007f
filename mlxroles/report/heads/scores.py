"""The numbers of a heads document as arrays [layer, head]: what figures, pages and tables draw."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxroles.report.heads.wording import NONE, SCORES, in_order, kind
from mlxroles.text import safe_text

Doc = Mapping[str, Any]
Numbers = NDArray[np.float64]
Head = tuple[int, int]

_USUAL = 0.3
_PARSED = "tables are arrays"


class Panel(NamedTuple):
    """One map of layers by heads."""

    title: str
    values: Numbers
    """[layer, head], NaN where there is none."""
    look: str
    """``score`` from 0, ``signed`` around 0, or ``ratio`` from 0 without an end at 1."""
    threshold: float | None = None


def sides(doc: Doc) -> list[str]:
    """The models, in their order."""
    return list(doc["models"])


def parsed(doc: Doc) -> Doc:
    """The document with its tables as arrays, so that they are read once; it stays as it is."""
    models = {}
    for side, model in doc["models"].items():
        size = shape(doc, side)
        found = {
            name: {key: _table(value, size) for key, value in values.items()}
            for name, values in model["detectors"].items()
        }
        _, mean, low, high = profile(doc, side)
        models[side] = {
            **model,
            "detectors": found,
            "classes": classes(doc, side),
            "profile": {**(model.get("profile") or {}), "mean": mean, "low": low, "high": high},
            _PARSED: True,
        }
    first = shape(doc, sides(doc)[0]) if models else (0, 0)
    changes = {
        name: {key: _table(value, first) for key, value in values.items()}
        for name, values in (doc.get("difference") or {}).items()
    }
    return {**doc, "models": models, "difference": changes}


def _table(value: Any, size: tuple[int, int]) -> Any:
    """An array of a table, anything else as it is."""
    is_table = isinstance(value, list) and value and isinstance(value[0], list)
    return array(value, size) if is_table else value


def shape(doc: Doc, side: str) -> tuple[int, int]:
    """Layers and heads of a model."""
    model = doc["models"][side]
    return int(model["n_layers"]), int(model["n_heads"])


def names(doc: Doc) -> list[str]:
    """Scores that any model has, in the order in which they are told."""
    return in_order(name for model in doc["models"].values() for name in model["detectors"])


def grid(doc: Doc, side: str, name: str, key: str = "score") -> Numbers:
    """One number of every head [layer, head]; NaN where there is none."""
    values = _found(doc, side, name)
    return array(values.get(key), shape(doc, side))


def _found(doc: Doc, side: str, name: str) -> Mapping[str, Any]:
    return doc["models"][side]["detectors"].get(SCORES.get(name, name)) or {}


def array(values: Any, size: tuple[int, int]) -> Numbers:
    """Nested lists with nulls as an array of this size; NaN for what is missing."""
    if isinstance(values, np.ndarray):
        return values
    found = np.full(size, np.nan)
    for layer, row in enumerate((values or [])[: size[0]]):
        for head, value in enumerate((row or [])[: size[1]]):
            found[layer, head] = np.nan if value is None else float(value)
    return found


def marked(doc: Doc, side: str, name: str) -> NDArray[np.bool_]:
    """Which heads are of that kind [layer, head]."""
    values = _found(doc, side, name)
    return np.nan_to_num(array(values.get("marked"), shape(doc, side))) > 0


def threshold(doc: Doc, side: str, name: str) -> float | None:
    """What a score must exceed besides its null."""
    values = _found(doc, side, name)
    found = values.get("threshold")
    return None if found is None else float(found)


def classes(doc: Doc, side: str) -> list[list[str]]:
    """The kind of every head [layer][head]; ``none`` where nothing holds."""
    layers, heads = shape(doc, side)
    found = doc["models"][side].get("classes") or []
    if doc["models"][side].get(_PARSED):
        return found
    return [
        [
            str(found[layer][head] or NONE)
            if layer < len(found) and head < len(found[layer])
            else NONE
            for head in range(heads)
        ]
        for layer in range(layers)
    ]


def also(doc: Doc, side: str, at: Head) -> list[str]:
    """What else holds of a head."""
    found = doc["models"][side].get("also") or []
    layer, head = at
    if layer >= len(found) or head >= len(found[layer]):
        return []
    return in_order(map(str, found[layer][head] or []))


def is_seen(doc: Doc, side: str) -> NDArray[np.bool_]:
    """Heads of which any score is a number [layer, head]."""
    found = np.zeros(shape(doc, side), dtype=bool)
    for name in doc["models"][side]["detectors"]:
        found |= np.isfinite(grid(doc, side, name))
    return found


def of_kind(doc: Doc, side: str, name: str) -> list[Head]:
    """Heads whose class is this, the highest score first."""
    known = classes(doc, side)
    score = -np.nan_to_num(size(doc, side, name), nan=-np.inf)
    found = [(i, j) for i, row in enumerate(known) for j, one in enumerate(row) if one == name]
    return sorted(found, key=lambda at: (score[at], at))


def size(doc: Doc, side: str, name: str) -> Numbers:
    """How large the score is that says that a head is of a kind, see ``by`` [layer, head]."""
    random = f"{name}_random"
    first, second = (np.abs(grid(doc, side, one)) for one in (name, random))
    is_random = ~marked(doc, side, name) & marked(doc, side, random)
    return np.where(is_random | np.isnan(first), second, first)


def of_class(doc: Doc, side: str, name: str) -> list[Head]:
    """Heads that are of a kind first of all or also, the highest score first."""
    layers, heads = shape(doc, side)
    score = -np.nan_to_num(size(doc, side, name), nan=-np.inf)
    found = set(of_kind(doc, side, name))
    if doc["models"][side].get("also"):
        cells = ((i, j) for i in range(layers) for j in range(heads))
        found |= {at for at in cells if name in also(doc, side, at)}
    return sorted(found, key=lambda at: (score[at], at))


def by(doc: Doc, side: str, name: str, at: Head) -> str:
    """The score that says that a head is of a kind: that on text, unless only random ids do."""
    random = f"{name}_random"
    is_random = not marked(doc, side, name)[at] and marked(doc, side, random)[at]
    return random if is_random else name


def told(doc: Doc, name: str, key: str, otherwise: str) -> str:
    """What the document says of a score: ``what`` it is, or ``against`` what it is held."""
    for model in doc["models"].values():
        text = (model["detectors"].get(SCORES.get(name, name)) or {}).get(key)
        if text:
            return safe_text(str(text), limit=200)
    return otherwise


def ranked(doc: Doc, side: str, name: str) -> list[Head]:
    """All heads with this score, as it is judged, the highest first; of a signed one by size."""
    score = judged(doc, side, name)
    held = np.abs(score) if kind(name).is_signed else score
    order = np.argsort(-np.nan_to_num(held, nan=-np.inf), axis=None, kind="stable")
    places = [divmod(int(at), score.shape[1]) for at in order]
    return [at for at in places if np.isfinite(score[at])]


def counts(doc: Doc, side: str) -> dict[str, int]:
    """How many heads are of each kind, in order; ``none`` last. Only heads that are seen."""
    seen = is_seen(doc, side)
    flat = [
        one
        for i, row in enumerate(classes(doc, side))
        for j, one in enumerate(row)
        if seen[i, j] or one != NONE
    ]
    return {name: flat.count(name) for name in [*in_order(flat), NONE]}


def strength(doc: Doc, side: str) -> Numbers:
    """Each head's score of its own kind as a share of a whole [layer, head].

    Of attention weights the whole is 1, so that a weak head looks weak also where it is the best
    of its kind; of other scores the largest of all models.
    """
    known = np.array(classes(doc, side))
    found = np.full(shape(doc, side), np.nan)
    for name in counts(doc, side):
        if name != NONE:
            whole = largest(doc, name) if kind(name).is_signed else 1.0
            share = size(doc, side, name) / whole
            found = np.where(known == name, share, found)
    return np.clip(found, 0.0, 1.0)


def largest(doc: Doc, name: str) -> float:
    """The largest size of a score in any model; 1 where there is none."""
    values = [size(doc, side, name) for side in sides(doc)]
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def maps(doc: Doc, side: str, name: str) -> list[Panel]:
    """The maps of a score: one, or what it is made of."""
    score, least = grid(doc, side, name), threshold(doc, side, name)
    if name == "delimiter":
        raw, ratio = grid(doc, side, name, "raw"), grid(doc, side, name, "ratio")
        raw = raw if np.isfinite(raw).any() else score
        if not np.isfinite(ratio).any():
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = raw / grid(doc, side, name, "uniform")
            ratio[~np.isfinite(ratio)] = np.nan
        return [
            Panel("weight", raw, "score"),
            Panel("times uniform", ratio, "ratio", least),
        ]
    if name == "successor":
        control = grid(doc, side, name, "control")
        return [
            Panel("ordered lists", score, "score"),
            Panel("shuffled lists", control, "score"),
            Panel("difference", score - control, "signed", least),
        ]
    if name == "s_inhibition":
        copy = grid(doc, side, name, "copy")
        copy = copy if np.isfinite(copy).any() else grid(doc, side, "copying")
        return [
            Panel("weight on S2", score, "score", least),
            Panel("copying", copy, "signed"),
        ]
    return [Panel("score", score, "signed" if kind(name).is_signed else "score", least)]


def judged(doc: Doc, side: str, name: str) -> Numbers:
    """What is held against the threshold [layer, head]: the score, its ratio, its difference."""
    panels = maps(doc, side, name)
    return next((p.values for p in panels if p.threshold is not None), panels[0].values)


def difference(doc: Doc, name: str, key: str = "value") -> Numbers | None:
    """Instruct less base [layer, head]; None where models are not compared."""
    values = (doc.get("difference") or {}).get(name)
    if not values:
        return None
    return array(values.get(key), shape(doc, sides(doc)[0]))


def least(doc: Doc, name: str) -> float:
    """What a scale of differences reaches to at least: a small change shall look small."""
    return (threshold(doc, sides(doc)[0], name) or _USUAL) / 3


def peak_offset(doc: Doc, side: str) -> Numbers:
    """The distance, at least 1, at which each head's mean profile is largest [layer, head]."""
    stored = grid(doc, side, "positional", "offset")
    if np.isfinite(stored).any():
        return stored
    offsets, mean, _, _ = profile(doc, side)
    found = np.full(shape(doc, side), np.nan)
    if len(offsets) > 1:
        known = np.isfinite(mean[..., 1:]).any(axis=-1)
        peaks = np.argmax(np.nan_to_num(mean[..., 1:], nan=-1.0), axis=-1)
        found[known] = np.asarray(offsets, dtype=np.float64)[1:][peaks[known]]
    return found


def profile(doc: Doc, side: str) -> tuple[list[int], Numbers, Numbers, Numbers]:
    """Offsets, and the mean weight at each with both ends of its interval [layer, head, offset]."""
    values = doc["models"][side].get("profile") or {}
    offsets = [int(d) for d in values.get("offsets") or []]
    size = (*shape(doc, side), len(offsets))
    found = []
    for key in ("mean", "low", "high"):
        if isinstance(values.get(key), np.ndarray):
            found.append(values[key])
            continue
        cube = np.full(size, np.nan)
        for layer, row in enumerate(values.get(key) or []):
            for head, line in enumerate(row or []):
                if line is not None:
                    cube[layer, head] = [np.nan if v is None else v for v in line]
        found.append(cube)
    return offsets, found[0], found[1], found[2]


def end_of(values: Sequence[Numbers], least: float | None) -> float:
    """The end of a scale: the largest size, the threshold at least.

    So a map without any head looks like one.
    """
    known = np.concatenate([np.empty(0), *(np.abs(v[np.isfinite(v)]) for v in values)])
    return max(float(known.max()) if known.size else 0.0, least or 0.0) or 1.0


def short(value: float) -> str:
    """The value in at most four characters: ``.62``, ``−.03``, ``1.7``, ``12``."""
    size = abs(value)
    text = f"{size:.2f}".removeprefix("0")
    if size >= 0.995:
        text = f"{size:.1f}" if size < 9.95 else f"{size:.0f}"
    return "0" if text == ".00" else f"−{text}" if value < 0 else text


def any_of(values: Sequence[Numbers]) -> bool:
    """Whether there is a number."""
    return any(bool(np.isfinite(each).any()) for each in values)
